//! The history entry: the truth about a prompt. Judged by `status` *and* its messages.

use std::{collections::BTreeMap, fmt};

use contract::failure::{Failure, NodeFailure};
use serde_json::{Map, Value};

use super::events::node_failure;

/// One prompt's entry of `GET /history/{id}`.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    entry: Map<String, Value>,
}

/// How a prompt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecutionOutcome {
    /// All its nodes ran.
    Succeeded,
    /// A node raised an exception.
    Failed(NodeFailure),
    /// Interrupted.
    Interrupted,
    /// `error` without a message that says why.
    Unexplained,
}

/// A file that ComfyUI says it has written, or a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputItem {
    /// The node.
    pub node: String,
    /// The key it was listed under.
    pub key: String,
    /// Its position there.
    pub index: usize,
    /// What it is.
    pub content: OutputContent,
}

/// What an output item holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputContent {
    /// A file: outside data, every part of it hostile until opened under its folder.
    File {
        /// Name.
        filename: String,
        /// Folder under the type's.
        subfolder: String,
        /// `output`, `temp` or `input`.
        folder: String,
    },
    /// A text.
    Text(String),
}

/// A text itself, a file as `output/subfolder/name`.
impl fmt::Display for OutputContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::File { filename, subfolder, folder } if subfolder.is_empty() => {
                write!(f, "{folder}/{filename}")
            }
            Self::File { filename, subfolder, folder } => write!(f, "{folder}/{subfolder}/{filename}"),
        }
    }
}

impl History {
    /// The entry of `prompt_id` in an answer of `/history/{id}`; `None`: not written yet.
    #[must_use]
    pub fn find(answer: &Value, prompt_id: &str) -> Option<Self> {
        let entry = answer.get(prompt_id)?.as_object()?.clone();
        Some(Self { entry })
    }

    /// The entry as ComfyUI gave it.
    #[must_use]
    pub fn entry(&self) -> &Map<String, Value> {
        &self.entry
    }

    /// The entry without what must not be stored: `extra_data` holds API keys.
    #[must_use]
    pub fn without_secrets(&self) -> Value {
        let mut entry = self.entry.clone();
        let extra = entry.get_mut("prompt").and_then(|prompt| prompt.get_mut(3)?.as_object_mut());
        if let Some(extra) = extra {
            extra.retain(|key, _| !key.starts_with("api_key") && !key.starts_with("auth_token"));
        }
        Value::Object(entry)
    }

    fn messages(&self) -> impl Iterator<Item = (&str, &Value)> {
        let messages = self.entry.get("status").and_then(|status| status.get("messages")?.as_array());
        messages
            .into_iter()
            .flatten()
            .filter_map(|message| Some((message.get(0)?.as_str()?, message.get(1)?)))
    }

    /// Milliseconds between the first and the last message, on ComfyUI's clock.
    #[must_use]
    pub fn executed_ms(&self) -> Option<u64> {
        let mut times = self.messages().filter_map(|(_, data)| data.get("timestamp")?.as_u64());
        let first = times.next()?;
        times.last().and_then(|last| last.checked_sub(first))
    }

    /// How the prompt ended.
    #[must_use]
    pub fn outcome(&self) -> ExecutionOutcome {
        for (kind, data) in self.messages() {
            match kind {
                "execution_error"
                    if data.get("exception_type").and_then(Value::as_str) != Some("ExecutionBlocked") =>
                {
                    return ExecutionOutcome::Failed(node_failure(data));
                }
                "execution_interrupted" => return ExecutionOutcome::Interrupted,
                _ => {}
            }
        }
        let status = self.entry.get("status").and_then(|status| status.get("status_str")?.as_str());
        match status {
            Some("success") => ExecutionOutcome::Succeeded,
            _ => ExecutionOutcome::Unexplained,
        }
    }

    /// The nodes whose outputs came from the execution cache.
    #[must_use]
    pub fn cached_nodes(&self) -> Vec<String> {
        let cached = self.messages().filter(|(kind, _)| *kind == "execution_cached");
        cached
            .filter_map(|(_, data)| data.get("nodes")?.as_array())
            .flatten()
            .filter_map(|node| node.as_str().map(str::to_owned))
            .collect()
    }

    /// File items and texts under *any* key of any node, in the order of nodes and keys.
    #[must_use]
    pub fn outputs(&self) -> Vec<OutputItem> {
        let empty = Map::new();
        let nodes = self.entry.get("outputs").and_then(Value::as_object).unwrap_or(&empty);
        let mut items = Vec::new();
        let sorted: BTreeMap<_, _> = nodes.iter().map(|(node, keys)| (natural(node), (node, keys))).collect();
        for (node, entry) in sorted.into_values() {
            items.extend(outputs_of(node, entry));
        }
        items
    }
}

/// What a node's entry of the history's `outputs` lists.
pub fn outputs_of<'a>(node: &'a str, entry: &'a Value) -> impl Iterator<Item = OutputItem> + 'a {
    entry.as_object().into_iter().flatten().flat_map(move |(key, list)| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let contents = list.iter().enumerate().filter_map(|(index, item)| Some((index, content(item)?)));
        contents.map(move |(index, content)| OutputItem {
            node: node.to_owned(),
            key: key.clone(),
            index,
            content,
        })
    })
}

/// Node ids in the order of their numbers.
fn natural(id: &str) -> (Vec<u64>, &str) {
    (id.split(':').map(|part| part.parse().unwrap_or(u64::MAX)).collect(), id)
}

fn content(item: &Value) -> Option<OutputContent> {
    match item {
        Value::String(text) => Some(OutputContent::Text(text.clone())),
        Value::Object(file) => {
            let text = |key: &str| file.get(key).and_then(Value::as_str).map(str::to_owned);
            Some(OutputContent::File {
                filename: text("filename")?,
                subfolder: text("subfolder").unwrap_or_default(),
                folder: text("type").unwrap_or_else(|| "output".to_owned()),
            })
        }
        _ => None,
    }
}

impl ExecutionOutcome {
    /// Whether a node failed as one does whose device is broken: then every later call on the device fails, and only a new
    /// process helps. No proof: a message can be a publisher's own words.
    #[must_use]
    pub fn blames_device(&self) -> bool {
        let Self::Failed(node) = self else { return false };
        let message = node.exception_message.trim_start();
        is_torchs(node) && ["CUDA error", "HIP error"].iter().any(|error| message.starts_with(error))
    }

    /// The failure that a job's answer describes; `None` for success.
    #[must_use]
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Succeeded => None,
            Self::Failed(node) if is_out_of_memory(&node) => Some(Failure::OutOfMemory(Box::new(node))),
            Self::Failed(node) => Some(Failure::NodeFailed(Box::new(node))),
            Self::Interrupted => Some(Failure::Interrupted),
            Self::Unexplained => {
                Some(Failure::Internal("ComfyUI says `error` in the history and not why".to_owned()))
            }
        }
    }
}

/// `torch.OutOfMemoryError`, `torch.cuda.OutOfMemoryError`, and what other allocators say.
fn is_out_of_memory(node: &NodeFailure) -> bool {
    node.exception_type.ends_with("OutOfMemoryError")
        || is_torchs(node)
            && ["CUDA out of memory", "Allocation on device"]
                .iter()
                .any(|words| node.exception_message.trim_start().starts_with(words))
}

/// Whether torch itself raises such exceptions: others quote what a publisher wrote.
fn is_torchs(node: &NodeFailure) -> bool {
    node.exception_type == "RuntimeError" || node.exception_type.ends_with("AcceleratorError")
}
