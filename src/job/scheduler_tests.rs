#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use futures_util::FutureExt;

use super::*;

fn wanted(scheduler: &Scheduler) -> Option<TakeReason> {
    scheduler.wanted().now_or_never()
}

fn place(permit: &JobPermit) -> PromptPermit<'_> {
    permit.acquire_prompt_permit().now_or_never().unwrap()
}

#[tokio::test]
async fn another_job_is_wanted_near_the_end_of_the_one_that_runs() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    assert_eq!(wanted(&scheduler), Some(TakeReason::First));
    let first = scheduler.join();
    assert_eq!(wanted(&scheduler), None, "its end is not in sight");
    let running = place(&first);
    assert_eq!(wanted(&scheduler), None, "nobody knows how long it takes");
    running.expect(Some(Duration::from_secs(3600)));
    assert_eq!(wanted(&scheduler), None);
    running.expect(Some(*LEAD.start() / 2));
    assert_eq!(wanted(&scheduler), Some(TakeReason::Ahead));
    let second = scheduler.join();
    assert_eq!(wanted(&scheduler), None, "one is ahead already");
    let waiting = place(&second);
    assert!(!waiting.ahead.as_ref().unwrap().is_cancelled());
    drop(running);
    assert!(waiting.ahead.as_ref().unwrap().is_cancelled());
    assert_eq!(wanted(&scheduler), None);
    drop(waiting);
    assert_eq!(wanted(&scheduler), Some(TakeReason::Ahead), "both upload, and ComfyUI is idle");
    drop((first, second));
    assert_eq!(wanted(&scheduler), Some(TakeReason::First));
}

#[tokio::test]
async fn the_wait_for_the_end_ends_by_itself() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    let first = scheduler.join();
    let running = place(&first);
    running.expect(Some(*LEAD.start() + Duration::from_millis(50)));
    assert_eq!(wanted(&scheduler), None);
    assert_eq!(scheduler.wanted().await, TakeReason::Ahead);
}

#[tokio::test]
async fn a_slow_preparation_leaves_the_way_free() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    let stuck = scheduler.join();
    stuck.set(JobPhase::Preparing { since: Instant::now() - SLOW_PREPARATION + Duration::from_millis(50) });
    assert_eq!(wanted(&scheduler), None, "it may be ready in a moment");
    assert_eq!(scheduler.wanted().await, TakeReason::Ahead);
    let other = scheduler.join();
    assert_eq!(wanted(&scheduler), None, "that one is ready in a moment");
    let running = place(&other);
    assert_eq!(wanted(&scheduler), None, "nobody knows how long it takes");
    running.expect(Some(Duration::ZERO));
    assert_eq!(wanted(&scheduler), Some(TakeReason::Ahead));
    drop(running);
    assert_eq!(wanted(&scheduler), Some(TakeReason::Ahead));
    let more: Vec<_> = (2..MAX_IN_HAND).map(|_| scheduler.join()).collect();
    more.iter()
        .for_each(|permit| permit.set(JobPhase::Preparing { since: Instant::now() - SLOW_PREPARATION }));
    assert_eq!(wanted(&scheduler), None, "so many and no more");

    let scheduler = Scheduler::new(Lookahead::Never);
    let stuck = scheduler.join();
    stuck.set(JobPhase::Preparing { since: Instant::now() - SLOW_PREPARATION });
    assert_eq!(wanted(&scheduler), None);
}

#[tokio::test]
async fn without_lookahead_one_job_is_in_hand_and_with_it_always_two() {
    let scheduler = Scheduler::new(Lookahead::Never);
    let permit = scheduler.join();
    drop(place(&permit));
    assert_eq!(wanted(&scheduler), None, "it uploads still");
    drop(permit);
    assert_eq!(wanted(&scheduler), Some(TakeReason::First));

    let scheduler = Scheduler::new(Lookahead::Always);
    let _first = scheduler.join();
    assert_eq!(wanted(&scheduler), Some(TakeReason::Ahead));
    let _second = scheduler.join();
    assert_eq!(wanted(&scheduler), None);
}

#[tokio::test]
async fn two_prompts_are_in_comfyui_at_most_and_four_jobs_in_hand() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    let turns = [scheduler.join(), scheduler.join(), scheduler.join()];
    let (first, second) = (place(&turns[0]), place(&turns[1]));
    assert!(turns[2].acquire_prompt_permit().now_or_never().is_none());
    drop(first);
    let third = place(&turns[2]);
    drop((second, third));
    let _fourth = scheduler.join();
    assert_eq!(wanted(&scheduler), None, "as many as the disk should hold");
}

#[tokio::test]
async fn a_job_that_may_crash_the_worker_has_it_alone() {
    let scheduler = Scheduler::new(Lookahead::Always);
    let (first, suspect, after) = (scheduler.join(), scheduler.join(), scheduler.join());
    let running = place(&first);
    assert!(suspect.alone().now_or_never().is_none());
    assert!(after.acquire_prompt_permit().now_or_never().is_none(), "not before it");
    drop(running);
    assert!(suspect.alone().now_or_never().is_none(), "what uploads would be suspected, too");
    drop(first);
    assert!(suspect.alone().now_or_never().is_some());
    drop(place(&suspect));
    assert!(after.acquire_prompt_permit().now_or_never().is_none());
    drop(after);
    assert_eq!(wanted(&scheduler), None);
    drop(suspect);
    assert_eq!(wanted(&scheduler), Some(TakeReason::First));
}

#[tokio::test]
async fn the_lead_follows_what_preparations_take() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    let lead = || scheduler.0.state.borrow().lead;
    scheduler.prepared_in(Duration::from_secs(4));
    assert_eq!(lead(), Duration::from_secs(6));
    scheduler.prepared_in(Duration::ZERO);
    assert_eq!(lead(), Duration::from_millis(5400), "a quick one proves little");
    scheduler.prepared_in(Duration::from_secs(3600));
    assert_eq!(lead(), *LEAD.end());
    for _ in 0..100 {
        scheduler.prepared_in(Duration::ZERO);
    }
    assert_eq!(lead(), *LEAD.start());
}

#[tokio::test]
async fn a_job_is_not_held_behind_one_that_is_overdue() {
    let scheduler = Scheduler::new(Lookahead::Auto);
    let (first, second) = (scheduler.join(), scheduler.join());
    let (running, waiting) = (place(&first), place(&second));
    assert!(waiting.held_up().now_or_never().is_none(), "nobody knows");
    running.expect(Some(Duration::ZERO));
    assert!(waiting.held_up().now_or_never().is_none(), "it may end at any moment");
    let long_ago = Instant::now().checked_sub(OVERDUE * 2);
    scheduler.0.state.send_modify(|state| {
        if let JobPhase::Posted { ends_at, .. } = &mut state.jobs.get_mut(&1).unwrap().at {
            *ends_at = long_ago;
        }
    });
    waiting.held_up().await;
    drop(waiting);
    drop(second);
    assert_eq!(wanted(&scheduler), None, "it would come back at once");
}
