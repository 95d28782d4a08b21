#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use contract::{
    event::EventKind,
    result::{Status as Ended, Timings, WorkerInfo},
};
use serde_json::{Value, json};

use super::*;

fn event(id: &str, at: u64, kind: EventKind) -> JobEvent {
    JobEvent { version: 1, id: id.parse().unwrap(), seq: at, at, attempt: 1, worker: "w".into(), kind }
}

fn progress(node: &str, value: f64) -> EventKind {
    EventKind::Progress {
        node: node.into(),
        title: format!("T{node}"),
        value,
        max: 4.0,
        fraction: value / 8.0,
    }
}

fn result(id: &str, status: Ended) -> JobResult {
    JobResult {
        version: 1,
        id: id.parse().unwrap(),
        status,
        outputs: Vec::new(),
        history: None,
        prompt: None,
        error: None,
        warnings: Vec::new(),
        timings: Timings { executed_ms: 5, total_ms: 9, ..Timings::default() },
        nodes: BTreeMap::new(),
        attempt: 1,
        worker: WorkerInfo::default(),
        metadata: None,
    }
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

fn keys(news: &Value, list: &str) -> Vec<u64> {
    news[list].as_array().unwrap().iter().map(|job| job["key"].as_u64().unwrap()).collect()
}

#[test]
fn the_last_event_stands_in_the_status_as_it_was_told() {
    let board = StatusBoard::new("w".into());
    let place = board.take_job();
    assert_eq!(json(board.status())["job"], Value::Null, "nothing is known of it");
    place.event(&event("a", 10, EventKind::Accepted));
    place.event(&event("a", 20, progress("3", 1.0)));
    place.event(&event("a", 30, EventKind::Uploaded { filename: "x".into(), bytes: 1, done: 1, of: 2 }));
    let next = board.take_job();
    next.event(&event("b", 40, EventKind::Queued { prompt_id: "p".into() }));
    let status = json(board.status());
    let told = json(event("a", 20, progress("3", 1.0)));
    for (field, value) in told.as_object().unwrap() {
        assert_eq!(status["job"][field], *value, "{field}");
    }
    assert_eq!(status["job"]["uploads"], json!({"done": 1, "of": 2}));
    assert_eq!(status["next_jobs"][0]["event"], "queued");
    drop(next);
    let status = json(board.status());
    assert_eq!((&status["next_jobs"], &status["last_jobs"][0]["id"]), (&json!([]), &json!("b")));
    assert_eq!(status["jobs"], json!({"succeeded": 0, "failed": 0, "cancelled": 0, "handed_back": 1}));
}

#[test]
fn whoever_looks_is_told_what_changed_and_no_more() {
    let board = StatusBoard::new("w".into());
    let mut changes = board.changes();
    let (first, second) = (board.take_job(), board.take_job());
    first.event(&event("a", 10, EventKind::Accepted));
    first.event(&event("a", 20, progress("1", 1.0)));
    second.event(&event("b", 20, EventKind::Accepted));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let all = board.news(0);
    let revision = all.revision;
    let all = json(all);
    assert_eq!((keys(&all, "jobs"), &all["in_hand"]), (vec![1, 2], &json!([1, 2])));

    first.event(&event("a", 30, progress("2", 1.0)));
    first.event(&event("a", 31, progress("2", 2.0)));
    let news = board.news(revision);
    let (revision, news) = (news.revision, json(news));
    assert_eq!((keys(&news, "jobs"), &news["in_hand"]), (vec![1], &json!([1, 2])));
    let nodes = news["jobs"][0]["node_list"].as_array().unwrap();
    let told: Vec<_> =
        nodes.iter().map(|node| (node["title"].as_str().unwrap(), node["ms"].as_u64())).collect();
    assert_eq!(told, [("T1", Some(10)), ("T2", None)], "the one before is done");

    second.event(&event("b", 40, progress("9", 4.0)));
    first.ended(&result("a", Ended::Succeeded));
    drop(first);
    let news = board.news(revision);
    let (revision, news) = (news.revision, json(news));
    assert_eq!((keys(&news, "jobs"), keys(&news, "ended")), (vec![2], vec![1]));
    assert_eq!(news["ended"][0]["outcome"]["status"], "succeeded");
    assert_eq!(news["ended"][0]["stages"], json!([{"stage": "executed", "ms": 5}]));
    let quiet = json(board.news(revision));
    assert_eq!((keys(&quiet, "jobs"), keys(&quiet, "ended")), (vec![], vec![]));
}

#[test]
fn fifty_ended_jobs_are_kept_the_newest_first() {
    let board = StatusBoard::new("w".into());
    for number in 0..60 {
        let (place, id) = (board.take_job(), format!("j{number}"));
        place.event(&event(&id, number, EventKind::Accepted));
        let status = if number % 2 == 0 { Ended::Failed } else { Ended::Cancelled };
        place.ended(&result(&id, status));
    }
    let status = json(board.status());
    let last = status["last_jobs"].as_array().unwrap();
    assert_eq!((last.len(), &last[0]["id"], &last[49]["id"]), (50, &json!("j59"), &json!("j10")));
    assert_eq!(status["jobs"], json!({"succeeded": 0, "failed": 30, "cancelled": 30, "handed_back": 0}));
    // A page that was away gets them in the order in which they ended.
    assert_eq!(keys(&json(board.news(0)), "ended"), (11..=60).collect::<Vec<_>>());
}

#[test]
fn jobs_that_never_ran_are_told_of_too() {
    let board = StatusBoard::new("w".into());
    let answered = |id: &str, status| serde_json::to_vec(&result(id, status)).unwrap();
    // Refused, or its result was there.
    board.take_job().answered(&answered("refused", Ended::Failed));
    // Its result has been told of already, with its pictures.
    let place = board.take_job();
    place.event(&event("ran", 1, EventKind::Accepted));
    place.ended(&result("ran", Ended::Succeeded));
    place.answered(&answered("ran", Ended::Succeeded));
    drop(place);
    let place = board.take_job();
    place.event(&event("back", 1, EventKind::Accepted));
    place.handed_back("the store is away");
    drop(place);
    // Nothing is known of these.
    board.take_job().handed_back("x");
    drop(board.take_job());
    board.take_job().answered(b"{");
    let status = json(board.status());
    let told: Vec<_> = status["last_jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            (
                job["id"].as_str().unwrap(),
                job["outcome"]["status"].as_str().unwrap(),
                job["outcome"]["unrun"] == true,
            )
        })
        .collect();
    assert_eq!(
        told,
        [("back", "handed_back", false), ("ran", "succeeded", false), ("refused", "failed", true)]
    );
    assert_eq!(status["last_jobs"][0]["outcome"]["reason"], "the store is away");
}

#[test]
fn the_last_preview_of_a_job_in_hand_is_in_memory() {
    let board = StatusBoard::new("w".into());
    let place = board.take_job();
    let id: JobId = "a".parse().unwrap();
    let show = |seq, bytes: Bytes| {
        let image = Image { node: None, content_type: "image/jpeg", bytes };
        place.preview(&Preview { id: &id, seq, at: 1, attempt: 1, worker: "w", image: &image });
    };
    show(1, Bytes::from("before anything is known"));
    assert_eq!(board.preview(&id), None);
    place.event(&event("a", 10, EventKind::Accepted));
    show(2, Bytes::from("one"));
    show(3, Bytes::from("two"));
    show(4, Bytes::from(vec![0; (4 << 20) + 1]));
    assert_eq!(board.preview(&id), Some(("image/jpeg", Bytes::from("two"))));
    assert_eq!(json(board.news(0))["jobs"][0]["preview"], 3);
    drop(place);
    assert_eq!(board.preview(&id), None);
}

#[test]
fn what_is_used_is_shown_once_it_is_known() {
    let board = StatusBoard::new("w".into());
    assert_eq!(json(board.status())["resources"], Value::Null);
    let usage = |name: String| super::super::Usage { name, used: 1, total: Some(2) };
    board.resources(Resources {
        memory: vec![usage("worker".into())],
        devices: (0..99).map(|_| usage("\u{202e}x".repeat(99))).collect(),
    });
    let resources = json(board.news(0).worker)["resources"].take();
    assert_eq!(resources["memory"], json!([{"name": "worker", "used": 1, "total": 2}]));
    let devices = resources["devices"].as_array().unwrap();
    assert!(
        devices.len() == 32 && devices[0]["name"].as_str().unwrap().starts_with("\\u{202e}x"),
        "{devices:?}"
    );
}

#[test]
fn what_is_away_is_a_state_of_a_worker_that_was_ready() {
    let (board, store, disk) =
        (StatusBoard::new("w".into()), Dependency::new("store"), Dependency::new("disk"));
    board.depends_on(&store);
    board.depends_on(&disk);
    store.lost("refused");
    assert_eq!(board.unready_reason().as_deref(), Some("booting"));
    board.ready("1");
    assert_eq!((board.status().state, board.unready_reason()), (Phase::StoreAway, store.trouble()));
    disk.lost("no space left");
    store.back();
    assert_eq!((board.status().state, board.unready_reason()), (Phase::DiskFull, disk.trouble()));
    disk.back();
    assert_eq!((board.status().state, board.unready_reason()), (Phase::Ready, None));
    store.lost("refused");
    board.enter(Phase::Draining);
    assert_eq!(board.status().state, Phase::Draining);
}
