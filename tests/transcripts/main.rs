//! Recorded exchanges of a real ComfyUI 0.3.64 and 0.33.0 (`tests/fixtures/transcripts*`), replayed through the
//! pure half of `comfy`: events, tracker, history.

mod endings;
mod hostile;
mod recording;

use anyhow::Result;
use connector::comfy::events::{Event, text_frame};

use recording::{Line, Recording};

#[test]
fn every_frame_is_understood() -> Result<()> {
    for recording in Recording::all()? {
        for line in &recording.lines {
            let frame = line.frame().map(|frame| frame.event);
            // The answer to our own feature flags is the one message that means nothing here.
            let nothing = matches!(&frame, Some(Event::Other(kind)) if kind == "feature_flags");
            let known = frame.is_some() && (nothing || !matches!(frame, Some(Event::Other(_))));
            assert!(known, "{}: {line:?} is {frame:?}", recording.name);
        }
    }
    Ok(())
}

#[test]
fn an_end_is_an_explicit_null_for_this_prompt() {
    let end = r#"{"type":"executing","data":{"node":null,"prompt_id":"p"}}"#;
    let frame = text_frame(end);
    assert!(frame.is_some_and(|frame| frame.event == Event::Executing(None)), "{end}");
    for text in [
        r#"{"type":"executing","data":{"prompt_id":"p"}}"#,
        r#"{"type":"executing","data":{"node":0,"prompt_id":"p"}}"#,
        r#"{"type":"executing","data":{"node":{},"prompt_id":"p"}}"#,
        r#"{"type":"executing","data":null}"#,
        r#"{"type":"executing"}"#,
    ] {
        assert_eq!(text_frame(text), None, "{text}");
    }
}

#[test]
fn what_only_python_writes_and_what_nobody_knows_ends_nothing() {
    let progress = r#"{"type":"progress","data":{"value":NaN,"max":Infinity,"prompt_id":"p","node":"1"}}"#;
    let event = text_frame(progress).map(|frame| frame.event);
    assert_eq!(event, Some(Event::Progress { node: "1".into(), value: 0.0, max: 0.0 }));
    let monitor = r#"{"type":"crystools.monitor","data":{"cpu":-Infinity,"gpus":[NaN]}}"#;
    let event = text_frame(monitor).map(|frame| frame.event);
    assert_eq!(event, Some(Event::Other("crystools.monitor".into())));
    for text in ["", "null", "[]", "{}", "NaN", r#"{"type":5}"#, r#"{"type":"executed","data":{}}"#] {
        assert_eq!(text_frame(text), None, "{text}");
    }
}

#[test]
fn a_blocked_node_is_no_failure() {
    let text = r#"{"type":"execution_error","data":{"prompt_id":"p","exception_type":"ExecutionBlocked"}}"#;
    let event = text_frame(text).map(|frame| frame.event);
    assert_eq!(event, Some(Event::Other("ExecutionBlocked".into())));
}

#[test]
fn events_of_another_prompt_are_told_apart() -> Result<()> {
    for recording in Recording::all()? {
        let named = recording.lines.iter().filter_map(Line::frame).filter_map(|frame| frame.prompt);
        assert!(named.into_iter().all(|prompt| prompt == recording.prompt_id), "{}", recording.name);
    }
    Ok(())
}
