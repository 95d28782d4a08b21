//! What comes from outside, made up at random: job bodies, websocket frames, history entries, names and
//! addresses. No panic, and what is accepted keeps its promises.
//!
//! A short run each time; `scripts/fuzz` runs each target for minutes. `FUZZ_SEED` repeats a run,
//! `FUZZ_SECONDS` is how long each target runs.

mod bodies;
mod frames;
mod histories;
mod json;
mod paths;

use std::{
    cell::Cell,
    env,
    fmt::Debug,
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use proptest::{
    strategy::Strategy,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner},
};

/// Cases between two looks at the clock.
const ROUND: u32 = 64;

/// Runs `test` on values of `strategy` until the time is over; a failure is shrunk and told with the
/// seed that repeats it.
fn fuzz<S: Strategy>(target: &str, strategy: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>)
where
    S::Value: Debug,
{
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>());
    let seed = match number("FUZZ_SEED") {
        Some(Ok(seed)) => seed,
        Some(Err(error)) => panic!("FUZZ_SEED: {error}"),
        None => RandomState::new().hash_one(target),
    };
    let seconds = match number("FUZZ_SECONDS") {
        Some(Ok(seconds)) => seconds,
        Some(Err(error)) => panic!("FUZZ_SECONDS: {error}"),
        None => 3,
    };
    println!("{target}: FUZZ_SEED={seed}, {seconds} s");
    let (begin, limit) = (Instant::now(), Duration::from_secs(seconds));
    let (mut rounds, mut cases) = (0u64, 0u64);
    while begin.elapsed() < limit {
        // A runner of its own for each round: one that has run its cases runs no more.
        let seed_of_round = [seed.to_le_bytes(), rounds.to_le_bytes(), [0; 8], [0; 8]].concat();
        let config = Config { cases: ROUND, failure_persistence: None, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_of_round);
        let counted = Cell::new(0);
        let outcome = TestRunner::new_with_rng(config, rng).run(strategy, |value| {
            counted.set(counted.get() + 1);
            test(value)
        });
        match outcome {
            Ok(()) => (rounds, cases) = (rounds + 1, cases + counted.get()),
            Err(TestError::Fail(reason, value)) => panic!("{target}: FUZZ_SEED={seed}: {reason}: {value:?}"),
            Err(TestError::Abort(reason)) => panic!("{target}: FUZZ_SEED={seed}: gave up: {reason}"),
        }
    }
    println!("{target}: {cases} cases in {:?}, nothing found", begin.elapsed());
    assert!(cases > 0, "no case was run");
}
