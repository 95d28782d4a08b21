//! Websocket frames: a tracker fed with anything goes forward only, and is over at most once.

use std::time::Duration;

use connector::comfy::{
    events::{binary_frame, text_frame},
    tracker::{Step, Tracker},
};
use proptest::{collection, prelude::*};
use serde_json::{Value, json};

use super::{fuzz, json};

const WORDS: &[&str] = &[
    "type",
    "data",
    "status",
    "progress",
    "progress_state",
    "executing",
    "executed",
    "execution_start",
    "execution_cached",
    "execution_error",
    "execution_success",
    "execution_interrupted",
    "node",
    "nodes",
    "prompt_id",
    "value",
    "max",
    "state",
    "running",
    "finished",
    "exception_message",
    "traceback",
    "output",
    "1",
    "2",
    "p",
    "sid",
    "image_type",
    "image/png",
    "node_id",
    "display_node_id",
];

#[derive(Clone, Debug)]
enum Frame {
    Text(String),
    Binary(Vec<u8>),
}

#[test]
fn websocket_frames() {
    let known = [
        json!({"type": "execution_start", "data": {"prompt_id": "p"}}),
        json!({"type": "execution_cached", "data": {"prompt_id": "p", "nodes": ["1"]}}),
        json!({"type": "executing", "data": {"prompt_id": "p", "node": "1"}}),
        json!({"type": "executing", "data": {"prompt_id": "p", "node": null}}),
        json!({"type": "progress", "data": {"prompt_id": "p", "node": "1", "value": 1, "max": 20}}),
        json!({"type": "progress_state", "data": {"prompt_id": "p", "nodes": {"1": {"value": 1, "max": 2, "state": "running"}}}}),
        json!({"type": "execution_error", "data": {"prompt_id": "p", "node_id": "1", "traceback": ["a"]}}),
        json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}, "sid": "x"}}),
    ];
    let known = proptest::sample::select(known.to_vec());
    let text = known.prop_flat_map(|frame| json::near(frame, WORDS)).prop_map(|frame| frame.to_string());
    let metadata = json!({"node_id": "1", "prompt_id": "p", "image_type": "image/png"});
    let with_metadata = (json::near(metadata, WORDS), any::<u32>(), collection::vec(any::<u8>(), 0..32));
    let with_metadata = with_metadata.prop_map(|(metadata, lie, image)| {
        let metadata = metadata.to_string().into_bytes();
        // Mostly the true length.
        let length = if lie % 4 == 0 { lie } else { u32::try_from(metadata.len()).unwrap_or(0) };
        [4u32.to_be_bytes().as_slice(), &length.to_be_bytes(), &metadata, &image].concat()
    });
    let frame = prop_oneof![
        6 => text.prop_map(Frame::Text),
        1 => any::<String>().prop_map(Frame::Text),
        2 => with_metadata.prop_map(Frame::Binary),
        1 => collection::vec(any::<u8>(), 0..64).prop_map(Frame::Binary),
    ];
    let prompt = json!({"1": {"class_type": "A"}, "2": {"class_type": "SaveImageWebsocket"}});
    let Value::Object(prompt) = prompt else { unreachable!("an object") };
    fuzz("websocket frames", &collection::vec(frame, 1..10), |frames| {
        let mut tracker = Tracker::new(&prompt);
        let (mut ends, mut furthest, mut now) = (0, 0.0, Duration::ZERO);
        for frame in frames {
            now += Duration::from_millis(1);
            let read = match frame {
                Frame::Text(text) => text_frame(&text),
                Frame::Binary(bytes) => binary_frame(&bytes.into()),
            };
            let Some(frame) = read else { continue };
            match tracker.step(frame.event, now) {
                Step::Ended => ends += 1,
                Step::Progress(progress) => {
                    prop_assert!((furthest..=1.0).contains(&progress.fraction), "{progress:?}");
                    furthest = progress.fraction;
                }
                _ => {}
            }
        }
        prop_assert!(ends <= 1);
        prop_assert!(tracker.into_timings().values().all(|timing| timing.ms.is_finite() && timing.ms >= 0.0));
        Ok(())
    });
}
