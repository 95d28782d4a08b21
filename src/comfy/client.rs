//! ComfyUI's HTTP calls. Each has a time limit; answers are read as Python writes them.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{PromptId, history::History, json};
use crate::{job::apply::Prompt, text::one_line};

/// For calls that ComfyUI answers from memory. A busy interpreter may take seconds.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// `/prompt` validates, and waits as every call while a node holds Python's lock. The caller has a
/// limit of its own: a prompt whose post is given up may run all the same.
const POST_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// A client of one running ComfyUI.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

/// Why a call got no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ComfyUI: {call}: {reason}")]
pub struct RequestError {
    /// Which call.
    pub call: String,
    /// What happened.
    pub reason: String,
}

/// One of the devices that `/system_stats` lists.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Device {
    /// Such as `cuda:0 NVIDIA H100 80GB HBM3 : cudaMallocAsync`.
    pub name: String,
    /// Bytes in all.
    pub vram_total: u64,
    /// Bytes that are free.
    pub vram_free: u64,
}

/// What `/prompt` said to a prompt that it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Posted {
    /// Outputs that failed validation were dropped and the rest runs: their errors.
    pub node_errors: Option<Value>,
}

/// Why `/prompt` did not take a prompt.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PostError {
    /// 400: refused, in ComfyUI's words.
    #[error("{message}")]
    Refused {
        /// `error.message` and `error.details`, and each node's.
        message: String,
        /// `node_errors`.
        node_errors: Value,
    },
    /// 5xx: its handler broke, over this prompt or while it wrote the answer; the prompt may run or not.
    #[error("ComfyUI broke over the prompt: {0}")]
    Broke(RequestError),
    /// The answer was lost, or is none that ComfyUI gives: the prompt may run or not.
    #[error(transparent)]
    Lost(#[from] RequestError),
}

/// What is posted.
#[derive(Debug)]
pub struct PromptPost<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// Our id for it.
    pub prompt_id: PromptId,
    /// Whose websocket gets its events.
    pub client_id: &'a str,
    /// `extra_data`: the workflow for PNGs, keys for API nodes.
    pub extra_data: Value,
}

impl Client {
    /// A client of the ComfyUI at `base`, such as `http://127.0.0.1:8188/`.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: Url) -> Result<Self, RequestError> {
        // ComfyUI never redirects, and a proxy from the environment must not see its traffic.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| RequestError { call: "client".into(), reason: describe(&error) })?;
        Ok(Self { http, base })
    }

    /// Where ComfyUI is.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, RequestError> {
        let url = self.base.join(path).map_err(|error| failed(path, &error.to_string()))?;
        Ok(self.http.request(method, url).timeout(CALL_LIMIT))
    }

    async fn call(&self, path: &str, request: RequestBuilder) -> Result<(StatusCode, String), RequestError> {
        let answer = request.send().await.map_err(|error| failed(path, &describe(&error)))?;
        let status = answer.status();
        let text = answer.text().await.map_err(|error| failed(path, &describe(&error)))?;
        Ok((status, text))
    }

    async fn get(&self, path: &str) -> Result<Value, RequestError> {
        let (status, text) = self.call(path, self.request(Method::GET, path)?).await?;
        if !status.is_success() {
            return Err(failed(path, &format!("{status}: {}", one_line(&text, 200))));
        }
        json::parse(&text).map_err(|error| failed(path, &format!("no JSON: {error}")))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), RequestError> {
        let (status, text) = self.call(path, self.request(Method::POST, path)?.json(body)).await?;
        if status.is_success() {
            Ok(())
        } else {
            Err(failed(path, &format!("{status}: {}", one_line(&text, 200))))
        }
    }

    /// Versions and devices. The readiness probe: it answers only after the boot.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn system_stats(&self) -> Result<Value, RequestError> {
        self.get("system_stats").await
    }

    /// The devices that it runs on, and their memory.
    ///
    /// # Errors
    /// No usable answer.
    pub async fn devices(&self) -> Result<Vec<Device>, RequestError> {
        let stats = self.system_stats().await?;
        let devices = stats.get("devices").and_then(Value::as_array).into_iter().flatten();
        Ok(devices.filter_map(|device| Device::deserialize(device).ok()).collect())
    }

    /// Posts a prompt.
    ///
    /// # Errors
    /// [`PostError::Refused`] in ComfyUI's words; otherwise there is no usable answer: look for the id
    /// in queue and history before posting again, ids are not unique there.
    pub async fn post_prompt(&self, post: &PromptPost<'_>) -> Result<Posted, PostError> {
        let body = json!({
            "prompt": post.prompt,
            "prompt_id": post.prompt_id.to_string(),
            "client_id": post.client_id,
            "extra_data": post.extra_data,
        });
        let request = self.request(Method::POST, "prompt")?.timeout(POST_LIMIT).json(&body);
        let (status, text) = self.call("prompt", request).await?;
        let answer = json::parse(&text).unwrap_or(Value::Null);
        let node_errors = answer.get("node_errors").cloned().unwrap_or_else(|| json!({}));
        let has_errors = node_errors.as_object().is_some_and(|errors| !errors.is_empty());
        match status {
            StatusCode::OK if answer.get("prompt_id").is_some() => {
                Ok(Posted { node_errors: has_errors.then_some(node_errors) })
            }
            StatusCode::BAD_REQUEST if answer.get("error").is_some() => {
                Err(PostError::Refused { message: refusal(&answer, &node_errors), node_errors })
            }
            StatusCode::PAYLOAD_TOO_LARGE => Err(PostError::Refused {
                message: "the prompt is larger than ComfyUI's --max-upload-size".to_owned(),
                node_errors,
            }),
            _ if status.is_server_error() => {
                Err(PostError::Broke(failed("prompt", &format!("{status}: {}", one_line(&text, 300)))))
            }
            _ => Err(failed("prompt", &format!("{status}: {}", one_line(&text, 300))).into()),
        }
    }

    /// A prompt's history entry, once it is written.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn history(&self, prompt_id: PromptId) -> Result<Option<History>, RequestError> {
        let answer = self.get(&format!("history/{prompt_id}")).await?;
        Ok(History::find(&answer, &prompt_id.to_string()))
    }

    /// Where a prompt stands in the queue.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn queue_place(&self, prompt_id: PromptId) -> Result<Option<QueuePlace>, RequestError> {
        let queue = self.get("queue").await?;
        let prompt_id = prompt_id.to_string();
        let holds = |list: &str| {
            let entries = queue.get(list).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            entries.iter().any(|entry| entry.get(1).and_then(Value::as_str) == Some(&prompt_id))
        };
        let runs_any =
            queue.get("queue_running").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        Ok(if holds("queue_running") {
            Some(QueuePlace::Running)
        } else if holds("queue_pending") {
            Some(if runs_any { QueuePlace::Pending } else { QueuePlace::Next })
        } else {
            None
        })
    }

    /// Interrupts that prompt if it runs. 200 also when nothing matched.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn interrupt(&self, prompt_id: PromptId) -> Result<(), RequestError> {
        self.post("interrupt", &json!({"prompt_id": prompt_id.to_string()})).await
    }

    /// Takes a waiting prompt out of the queue; it gets no event and no history.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn delete_pending(&self, prompt_id: PromptId) -> Result<(), RequestError> {
        self.post("queue", &json!({"delete": [prompt_id.to_string()]})).await
    }

    /// Forgets a prompt's history: it is kept in memory.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn delete_history(&self, prompt_id: PromptId) -> Result<(), RequestError> {
        self.post("history", &json!({"delete": [prompt_id.to_string()]})).await
    }

    /// Unloads models and frees memory, after the prompt that runs.
    ///
    /// # Errors
    /// When there is no usable answer.
    pub async fn free(&self) -> Result<(), RequestError> {
        self.post("free", &json!({"unload_models": true, "free_memory": true})).await
    }
}

/// Where a prompt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePlace {
    /// It waits behind others.
    Pending,
    /// It waits and nothing runs.
    Next,
    /// It runs.
    Running,
}

fn failed(call: &str, reason: &str) -> RequestError {
    RequestError { call: format!("/{call}"), reason: reason.to_owned() }
}

/// The innermost cause: reqwest's own text says only "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// ComfyUI's words: the error itself, then each node's.
fn refusal(answer: &Value, node_errors: &Value) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let line = |error: &Value| {
        let (message, details) = (text(error.get("message")), text(error.get("details")));
        if details.is_empty() { message } else { format!("{message}: {details}") }
    };
    let mut lines = vec![answer.get("error").map(line).unwrap_or_default()];
    for (id, node) in node_errors.as_object().into_iter().flatten() {
        let class = text(node.get("class_type"));
        for error in node.get("errors").and_then(Value::as_array).into_iter().flatten() {
            lines.push(format!("node {id} ({class}): {}", line(error)));
        }
    }
    lines.join("; ")
}

/// The words of `node_errors`, for a warning or an error of a prompt that was partly refused.
#[must_use]
pub(super) fn describe_node_errors(node_errors: &Value) -> String {
    let answer = json!({"error": {"message": "ComfyUI dropped outputs that failed validation"}});
    refusal(&answer, node_errors)
}
