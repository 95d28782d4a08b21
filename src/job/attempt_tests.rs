#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tempfile::TempDir;

use tokio_util::sync::CancellationToken;

use super::{super::heartbeat::kept_alive, *};
use crate::store::LocalStore;

/// One job's records, and deliveries of it.
struct Bed {
    folder: TempDir,
    base: ObjectUri,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = ObjectUri::File(folder.path().to_owned());
        Self { folder, base }
    }

    /// Each delivery has its own.
    fn records(&self) -> Records<'_> {
        Records::new(&LocalStore, &self.base, "j").unwrap()
    }

    async fn open(&self, delivery: &JobMessage) -> Result<Opened, Failure> {
        self.records().open("digest", "w", 3, delivery).await
    }

    async fn begin(&self, delivery: &JobMessage) -> OpenAttempt {
        match self.open(delivery).await {
            Ok(Opened::Attempt(attempt)) => attempt,
            other => panic!("no attempt: {other:?}"),
        }
    }

    async fn markers(&self) -> u32 {
        let mut number = 0;
        while self.records().find_marker(number + 1).await.unwrap().is_some() {
            number += 1;
        }
        number
    }
}

fn fresh() -> JobMessage {
    JobMessage::local("".into(), "j".to_owned())
}

fn redelivered() -> JobMessage {
    JobMessage { redelivered: true, ..fresh() }
}

#[tokio::test]
async fn a_copy_waits_for_an_attempt_that_lives_and_leaves_no_marker() {
    let bed = Bed::new();
    let attempt = bed.begin(&fresh()).await;
    let mut copy = fresh();
    // However often it comes, as long as the attempt says that it lives.
    for beats in 0..3 * SILENT_RETURNS {
        bed.records().note(&attempt, beats / 3, false).await.unwrap();
        let waits = bed.open(&copy).await.unwrap_err();
        assert!(matches!(waits, Failure::CopyRunning(_)), "{waits:?}");
        copy.returned = Some(copy.returned_for(&waits));
    }
    assert_eq!(bed.markers().await, 1);
    // Nothing is heard of it any more.
    let mut returns = 0;
    let second = loop {
        match bed.open(&copy).await {
            Ok(Opened::Attempt(attempt)) => break attempt,
            Err(waits) => copy.returned = Some(copy.returned_for(&waits)),
            other => panic!("{other:?}"),
        }
        returns += 1;
    };
    // Three of them had come since it was heard of last.
    assert_eq!(returns, SILENT_RETURNS - 3);
    assert_eq!((second.number, second.crashes), (2, 1));
}

#[tokio::test]
async fn a_redelivered_job_is_run_at_once_unless_its_worker_says_that_it_lives() {
    let bed = Bed::new();
    let first = bed.begin(&fresh()).await;
    let begin = Instant::now();
    let second = bed.begin(&redelivered()).await;
    assert!(begin.elapsed() < NOTE_LIMIT * 5);
    assert_eq!((second.number, second.crashes), (2, 1));
    bed.records().close(&second, "handed back").await.unwrap();
    assert_eq!(bed.begin(&redelivered()).await.crashes, 1, "the second did not crash");

    // Word comes while the third is being waited for.
    let bed = Bed::new();
    let records = bed.records();
    let living = bed.begin(&fresh()).await;
    let word = async {
        sleep(NOTE_LIMIT / 3).await;
        records.note(&living, 0, true).await.unwrap();
    };
    let delivery = redelivered();
    let (opened, ()) = tokio::join!(bed.open(&delivery), word);
    assert!(matches!(opened, Err(Failure::CopyRunning(_))), "{opened:?}");
    assert_eq!((bed.markers().await, first.number), (1, 1));
    // It ends: with a result, and the copy is answered from it.
    records.settle("{}".into()).await.unwrap();
    assert!(matches!(bed.open(&fresh()).await, Ok(Opened::Finished { .. })));
}

#[tokio::test]
async fn after_an_outage_word_may_come_later() {
    let bed = Bed::new();
    let living = bed.begin(&fresh()).await;
    let store = Dependency::new("store");
    store.lost("refused");
    store.back();
    let word = async {
        sleep(NOTE_LIMIT * 2).await;
        bed.records().note(&living, 0, true).await.unwrap();
    };
    let (records, delivery) = (bed.records().monitored(&store), redelivered());
    let (opened, ()) = tokio::join!(records.open("digest", "w", 3, &delivery), word);
    assert!(matches!(opened, Err(Failure::CopyRunning(_))), "{opened:?}");
}

#[tokio::test]
async fn that_an_attempt_goes_on_without_its_message_is_said_as_soon_as_the_store_takes_it() {
    let bed = Bed::new();
    let attempt = bed.begin(&fresh()).await;
    let [there, away] = ["j", "away"].map(|name| bed.folder.path().join(name));
    std::fs::rename(&there, &away).unwrap();
    std::fs::write(&there, "no folder").unwrap();
    let (records, lost) = (bed.records(), CancellationToken::new());
    lost.cancel();
    let work = async {
        sleep(NOTE_LIMIT).await;
        std::fs::remove_file(&there).unwrap();
        std::fs::rename(&away, &there).unwrap();
        let back = Instant::now();
        while !records.find_marker(1).await.unwrap().unwrap().disowned {
            assert!(back.elapsed() < LAST_WORD, "nothing is said");
            sleep(LOOK_EVERY).await;
        }
    };
    kept_alive(&records, &attempt, &lost, work).await;
}

#[tokio::test]
async fn what_was_found_dead_is_not_waited_for_again() {
    let bed = Bed::new();
    bed.begin(&fresh()).await;
    let second = bed.begin(&redelivered()).await;
    bed.records().close(&second, "an input is away").await.unwrap();
    // From the delay queue it comes as a fresh message.
    let third = bed.begin(&fresh()).await;
    assert_eq!((third.number, third.crashes), (3, 1));
    let waits = bed.open(&fresh()).await;
    assert!(matches!(waits, Err(Failure::CopyRunning(_))), "the third lives: {waits:?}");
}

#[tokio::test]
async fn the_third_attempt_that_ended_without_a_word_is_the_last() {
    let bed = Bed::new();
    for crashes in 0..3 {
        assert_eq!(bed.begin(&redelivered()).await.crashes, crashes);
    }
    let opened = bed.open(&redelivered()).await;
    assert!(matches!(opened, Ok(Opened::Poison { crashes: 3, .. })), "{opened:?}");
}

#[tokio::test]
async fn an_opening_that_broke_off_goes_on_with_its_own_marker() {
    let bed = Bed::new();
    bed.begin(&fresh()).await;
    let records = bed.records();
    for _ in 0..2 {
        let opened = records.open("digest", "w", 3, &redelivered()).await.unwrap();
        assert!(
            matches!(&opened, Opened::Attempt(attempt) if attempt.number == 2 && attempt.crashes == 1),
            "{opened:?}"
        );
    }
    assert_eq!(bed.markers().await, 2);
    let records = Records::new(&LocalStore, &bed.base, "k").unwrap();
    for _ in 0..2 {
        let opened = records.open("digest", "w", 3, &fresh()).await.unwrap();
        assert!(matches!(&opened, Opened::Attempt(attempt) if attempt.number == 1), "{opened:?}");
    }
}
