#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt as _};

use super::*;
use crate::telemetry::{JobSpan, StageName};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Written {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// What is written of what `tell` logs.
fn written(json: bool, tell: impl FnOnce()) -> Vec<String> {
    let written = Written::default();
    let layer = tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(Lines { json, colors: false })
        .with_writer(written.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), tell);
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(str::to_owned).collect()
}

fn parsed(line: &str) -> Value {
    let mut line: Value = serde_json::from_str(line).unwrap();
    let time = line.as_object_mut().unwrap().remove("timestamp").unwrap();
    assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
    line
}

/// Without its time.
fn after_time(line: &str) -> &str {
    line.split_once("Z ").unwrap().1
}

fn of_a_job() {
    let job = JobSpan::local();
    let rest = async {
        job.is_of(&"j-1".parse().unwrap());
        tracing::info!(files = 2_u64, "before an attempt");
        job.tries(3, None);
        let stage = job.stage(StageName::Stage);
        stage.within(async { tracing::warn!(error = %"no such file", "not there") }).await;
        let mut stage = job.stage(StageName::Wait);
        stage.within(async { tracing::debug!("waits") }).await;
        stage.becomes(StageName::Execute);
        stage
            .within(async { tracing::info!(job = %"other", stage = %StageName::Upload, "says so itself") })
            .await;
    };
    futures_util::FutureExt::now_or_never(job.around(rest)).unwrap();
    tracing::info!("after it");
}

#[test]
fn lines_of_a_job_have_its_fields_in_text() {
    let lines = written(false, of_a_job);
    assert_eq!(
        lines.iter().map(|line| after_time(line)).collect::<Vec<_>>(),
        [
            " INFO before an attempt job=j-1 files=2",
            " WARN not there job=j-1 attempt=3 stage=stage error=\"no such file\"",
            "DEBUG waits job=j-1 attempt=3 stage=wait",
            " INFO says so itself job=other attempt=3 stage=upload",
            " INFO after it",
        ]
    );
}

#[test]
fn lines_of_a_job_have_its_fields_in_json() {
    let lines = written(true, of_a_job);
    let target = "comfy_worker::telemetry::line::tests";
    assert!(lines[1].contains(r#""message":"not there","target":"comfy_worker::"#), "{}", lines[1]);
    assert!(
        lines[1].ends_with(r#""job":"j-1","attempt":3,"stage":"stage","error":"no such file"}"#),
        "{}",
        lines[1]
    );
    let expected = [
        json!({"level": "INFO", "message": "before an attempt", "target": target, "job": "j-1", "files": 2}),
        json!({"level": "WARN", "message": "not there", "target": target, "job": "j-1", "attempt": 3, "stage": "stage",
               "error": "no such file"}),
        json!({"level": "DEBUG", "message": "waits", "target": target, "job": "j-1", "attempt": 3, "stage": "wait"}),
        json!({"level": "INFO", "message": "says so itself", "target": target, "job": "other", "attempt": 3,
               "stage": "upload"}),
        json!({"level": "INFO", "message": "after it", "target": target}),
    ];
    assert_eq!(lines.iter().map(|line| parsed(line)).collect::<Vec<_>>(), expected);
}

#[test]
fn nothing_that_is_logged_makes_a_line_of_its_own() {
    let forged =
        "a\n2026-01-01T00:00:00.000000Z ERROR forged job=x\r\u{1b}[2K\u{9b}1m\u{202e}\u{7f}\u{2028}b";
    let tell = || {
        tracing::info!(target: "comfyui", "{forged}");
        tracing::warn!(error = forged, "{forged}");
    };
    for line in written(false, tell) {
        assert!(!line.contains(is_treacherous), "{line:?}");
        assert!(line.contains(r"a\n2026-01-01T00:00:00.000000Z ERROR"), "{line}");
    }
    let lines = written(false, tell);
    assert_eq!(lines.len(), 2);
    assert!(after_time(&lines[0]).starts_with(" INFO comfyui: a"), "{}", lines[0]);
    assert!(after_time(&lines[1]).contains(r#" error="a\n2026"#), "{}", lines[1]);
    let lines = written(true, tell);
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert!(line.is_ascii() && !line.contains(is_treacherous), "{line:?}");
        assert_eq!(parsed(line)["message"], forged);
    }
    assert_eq!(
        (parsed(&lines[0])["target"].clone(), parsed(&lines[1])["error"].clone()),
        (json!("comfyui"), json!(forged))
    );
}

#[test]
fn a_field_cannot_pass_for_what_every_line_has() {
    let tell = || tracing::info!(level = "ERROR", target = "comfyui", timestamp = "never", told = true, "so");
    assert_eq!(
        parsed(&written(true, tell)[0]),
        json!({"level": "INFO", "message": "so", "target": "comfy_worker::telemetry::line::tests", "told": true})
    );
}

#[test]
fn a_line_has_a_length_that_memory_bears() {
    let long = "é".repeat(1 << 20);
    let tell = || tracing::info!(error = %long, debugged = ?long, plain = long.as_str(), "{long}");
    for json in [false, true] {
        let lines = written(json, tell);
        assert!(lines.len() == 1 && lines[0].len() < 5 * LONGEST, "{}", lines[0].len());
        assert!(lines[0].matches('…').count() == 4);
    }
}

/// `cargo test --lib -- --ignored --nocapture the_price`: what a job's spans cost whatever is polled within them.
#[test]
#[ignore = "a measurement"]
fn the_price_of_being_polled_within_a_job() {
    const POLLS: u32 = 1_000_000;
    written(true, || {
        let job = JobSpan::local();
        job.tries(1, None);
        let stage = job.stage(StageName::Execute);
        let frames = async || {
            for _ in 0..POLLS {
                let mut once = false;
                std::future::poll_fn(|_| {
                    if std::mem::replace(&mut once, true) {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            }
        };
        let timed = |work: &mut dyn FnMut()| {
            let begin = std::time::Instant::now();
            work();
            begin.elapsed() / POLLS
        };
        let poll = |mut future: std::pin::Pin<&mut dyn Future<Output = ()>>| {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            while future.as_mut().poll(&mut context).is_pending() {}
        };
        let bare = timed(&mut || poll(std::pin::pin!(frames())));
        let within = timed(&mut || poll(std::pin::pin!(job.around(stage.within(frames())))));
        println!("a poll: {bare:?} bare, {within:?} within job and stage");
        tracing::info!("done");
    });
}
