//! Websocket frames, typed. Source: `server.py`, `protocol.py` and `execution.py` of ComfyUI 0.3.64
//! and the recorded transcripts in `tests/fixtures/transcripts`.

use std::collections::BTreeMap;

use bytes::Bytes;
use contract::failure::NodeFailure;
use serde::Deserialize;
use serde_json::Value;

use super::json;

/// What ComfyUI says on its websocket.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// How many prompts wait or run.
    Status {
        /// Prompts in the queue, the running one included.
        queue_remaining: u64,
    },
    /// A prompt has begun.
    Started,
    /// These nodes' outputs came from the execution cache.
    Cached(Vec<String>),
    /// This node runs; `None`: the prompt is over, whatever its end, and its history is written.
    Executing(Option<String>),
    /// Steps of the running node.
    Progress {
        /// The node.
        node: String,
        /// Steps done.
        value: f64,
        /// Steps in all.
        max: f64,
    },
    /// Where every node that has begun stands.
    ProgressState(BTreeMap<String, NodeProgress>),
    /// This node has produced outputs.
    Executed {
        /// The node.
        node: String,
        /// Its entry of the history's `outputs`.
        outputs: Value,
    },
    /// The prompt succeeded; its history is not written yet.
    Succeeded,
    /// A node failed; the history is not written yet.
    Failed(NodeFailure),
    /// The prompt was interrupted.
    Interrupted,
    /// A picture: a preview, or the output of a node that sends its outputs this way.
    Image(Image),
    /// Something that this version does not know: other nodes' own messages.
    Other(String),
}

/// Where a node stands.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct NodeProgress {
    /// Steps done.
    #[serde(default)]
    pub value: f64,
    /// Steps in all.
    #[serde(default)]
    pub max: f64,
    /// `pending`, `running`, `finished`, `error`.
    #[serde(default)]
    pub state: String,
}

/// A picture from a binary frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The node that sent it, when the frame says so.
    pub node: Option<String>,
    /// Its media type.
    pub content_type: &'static str,
    /// The file.
    pub bytes: Bytes,
}

/// An event and the prompt that it belongs to, where it says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// ComfyUI's `prompt_id`.
    pub prompt: Option<String>,
    /// What it says.
    pub event: Event,
}

/// Reads a text frame. `None` when it cannot be read: such a frame must not end the tracking.
#[must_use]
pub fn text_frame(text: &str) -> Option<Frame> {
    let message = json::parse(text).ok()?;
    let kind = message.get("type")?.as_str()?;
    let data = message.get("data").unwrap_or(&Value::Null);
    let field = |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned);
    let event = match kind {
        "status" => {
            Event::Status { queue_remaining: data.pointer("/status/exec_info/queue_remaining")?.as_u64()? }
        }
        "execution_start" => Event::Started,
        "execution_cached" => {
            let nodes = data.get("nodes")?.as_array()?;
            Event::Cached(nodes.iter().filter_map(|node| node.as_str().map(str::to_owned)).collect())
        }
        // Only an explicit null is the end.
        "executing" => match data.get("node")? {
            Value::Null => Event::Executing(None),
            node => Event::Executing(Some(node.as_str()?.to_owned())),
        },
        "progress" => Event::Progress {
            node: field("node").unwrap_or_default(),
            value: data.get("value").and_then(Value::as_f64).unwrap_or_default(),
            max: data.get("max").and_then(Value::as_f64).unwrap_or_default(),
        },
        "progress_state" => {
            let nodes = data.get("nodes")?.as_object()?;
            let nodes = nodes
                .iter()
                .filter_map(|(id, node)| Some((id.clone(), NodeProgress::deserialize(node).ok()?)));
            Event::ProgressState(nodes.collect())
        }
        "executed" => {
            Event::Executed { node: field("node")?, outputs: data.get("output").cloned().unwrap_or_default() }
        }
        "execution_success" => Event::Succeeded,
        // Not terminal: the node waits for something and the prompt goes on (`execution.py`).
        "execution_error" if field("exception_type").as_deref() == Some("ExecutionBlocked") => {
            Event::Other("ExecutionBlocked".to_owned())
        }
        "execution_error" => Event::Failed(node_failure(data)),
        "execution_interrupted" => Event::Interrupted,
        other => Event::Other(other.to_owned()),
    };
    Some(Frame { prompt: field("prompt_id"), event })
}

/// The exception that an `execution_error` message describes.
#[must_use]
pub fn node_failure(data: &Value) -> NodeFailure {
    let text = |name: &str| match data.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    };
    let traceback = data.get("traceback").and_then(Value::as_array);
    NodeFailure {
        node_id: text("node_id"),
        node_type: text("node_type"),
        exception_type: text("exception_type"),
        exception_message: text("exception_message"),
        traceback: traceback
            .map(|lines| lines.iter().filter_map(|line| line.as_str().map(str::to_owned)).collect())
            .unwrap_or_default(),
    }
}

/// Reads a binary frame, all integers u32 big-endian: `[event][payload]`. `None` when it is none
/// of the known ones or too short for what it claims.
#[must_use]
pub fn binary_frame(frame: &Bytes) -> Option<Frame> {
    let image = |node, content_type, bytes| Event::Image(Image { node, content_type, bytes });
    match (integer(frame, 0)?, integer(frame, 4)?) {
        // A picture without metadata: 1 is JPEG, 2 PNG.
        (1, format) => {
            let content_type = if format == 2 { "image/png" } else { "image/jpeg" };
            Some(Frame { prompt: None, event: image(None, content_type, frame.slice(8..)) })
        }
        // A picture with metadata, sent to clients that asked for it.
        (4, length) => {
            let end = 8usize.checked_add(usize::try_from(length).ok()?)?;
            let metadata: Value = serde_json::from_slice(frame.get(8..end)?).ok()?;
            let field = |name: &str| metadata.get(name).and_then(Value::as_str).map(str::to_owned);
            let content_type =
                if field("image_type").as_deref() == Some("image/png") { "image/png" } else { "image/jpeg" };
            let event = image(field("node_id"), content_type, frame.slice(end..));
            Some(Frame { prompt: field("prompt_id"), event })
        }
        // Text of a node, for its widget only.
        (3, _) => Some(Frame { prompt: None, event: Event::Other("text".to_owned()) }),
        _ => None,
    }
}

fn integer(frame: &Bytes, at: usize) -> Option<u32> {
    let bytes: [u8; 4] = frame.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(u32::from_be_bytes(bytes))
}
