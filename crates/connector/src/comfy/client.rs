//! ComfyUI's HTTP calls. Each has a time limit; answers are read as Python writes them.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use contract::{prompt::Prompt, text::one_line};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

use super::{PromptId, history::History, json};

/// For calls that ComfyUI answers from memory. A busy interpreter may take seconds.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// `/prompt` validates, and waits as every call while a node holds Python's lock. The caller has a
/// limit of its own: a prompt whose post is given up may run all the same.
const POST_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// Of an answer, in bytes. ComfyUI takes prompts of 100 MB, two at a time; what nodes show, such as texts, has no limit
/// there.
const LARGEST_ANSWER: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// More of a refusal is not read: it names all outputs of a prompt for each of its errors.
const LARGEST_REFUSAL: usize = if cfg!(test) { 128 << 10 } else { 4 << 20 };

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
    /// Whether there was an answer, of whatever kind: who answers is neither dead nor out of reach.
    pub answered: bool,
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
            .map_err(|error| failed("client", &describe(&error)))?;
        Ok(Self { http, base })
    }

    /// Where ComfyUI is.
    #[must_use]
    pub fn base(&self) -> &Url {
        &self.base
    }

    fn request(&self, method: Method, path: &str) -> Result<RequestBuilder, RequestError> {
        let url = self.base.join(path).map_err(|error| failed(path, &error.to_string()))?;
        Ok(self.http.request(method, url).timeout(crate::phases::limit("call", CALL_LIMIT)))
    }

    async fn call(&self, path: &str, request: RequestBuilder) -> Result<(StatusCode, String), RequestError> {
        let mut answer = request.send().await.map_err(|error| failed(path, &describe(&error)))?;
        let status = answer.status();
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| failed(path, &describe(&error)))? {
            // How it begins says enough.
            if status.is_client_error() && text.len() > LARGEST_REFUSAL {
                break;
            }
            if text.len() + chunk.len() > LARGEST_ANSWER {
                return Err(unreadable(path, &format!("an answer of more than {LARGEST_ANSWER} bytes")));
            }
            text.extend_from_slice(&chunk);
        }
        Ok((status, String::from_utf8_lossy(&text).into_owned()))
    }

    async fn get(&self, path: &str) -> Result<Value, RequestError> {
        let (status, text) = self.call(path, self.request(Method::GET, path)?).await?;
        if !status.is_success() {
            return Err(unreadable(path, &format!("{status}: {}", one_line(&text, 200))));
        }
        json::parse(&text).map_err(|error| unreadable(path, &format!("no JSON: {error}")))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<(), RequestError> {
        let (status, text) = self.call(path, self.request(Method::POST, path)?.json(body)).await?;
        if status.is_success() {
            Ok(())
        } else {
            Err(unreadable(path, &format!("{status}: {}", one_line(&text, 200))))
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

    /// What it has under that name among its classes of nodes, by the name; an empty object for none.
    pub(super) async fn node_class(&self, name: &str) -> Result<Value, RequestError> {
        // A name is the publisher's: `..` or `/` in it must not lead to another call.
        let mut url = self.base.clone();
        let mut segments = url.path_segments_mut().map_err(|()| failed("object_info", "no base URL"))?;
        segments.pop_if_empty().push("object_info").push(name);
        drop(segments);
        self.get(url.path().trim_start_matches('/')).await
    }

    /// The folders that it looks for models of each kind in.
    pub(crate) async fn model_folders(&self) -> Result<HashMap<String, Vec<PathBuf>>, RequestError> {
        #[derive(Deserialize)]
        struct Kind {
            name: String,
            folders: Vec<PathBuf>,
        }
        let call = "experiment/models";
        let kinds = Vec::<Kind>::deserialize(self.get(call).await?);
        let kinds = kinds.map_err(|error| unreadable(call, &error.to_string()))?;
        Ok(kinds.into_iter().map(|kind| (kind.name, kind.folders)).collect())
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
        let text = without_folders(&text);
        let answer = json::parse(&text).unwrap_or(Value::Null);
        let node_errors = answer.get("node_errors").cloned().unwrap_or_else(|| json!({}));
        let has_errors = node_errors.as_object().is_some_and(|errors| !errors.is_empty());
        let node_errors = bounded(node_errors);
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
            // Cut off, or from something before ComfyUI. Not lost: the prompt is refused.
            _ if status.is_client_error() => Err(PostError::Refused {
                message: format!("{status}: {}", one_line(&text, 2000)),
                node_errors: json!({}),
            }),
            _ if status.is_server_error() => {
                Err(PostError::Broke(unreadable("prompt", &format!("{status}: {}", one_line(&text, 300)))))
            }
            _ => Err(unreadable("prompt", &format!("{status}: {}", one_line(&text, 300))).into()),
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
    RequestError { call: format!("/{call}"), reason: reason.to_owned(), answered: false }
}

/// For an answer that is of no use.
fn unreadable(call: &str, reason: &str) -> RequestError {
    RequestError { answered: true, ..failed(call, reason) }
}

/// The innermost cause: reqwest's own text says only "error sending request".
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What ComfyUI refuses it compares with what it would take, other jobs' input folders among that
/// (`LoadImageSetFromFolderNode`), whose names are theirs to know: without the part that is drawn at random.
fn without_folders(text: &str) -> String {
    const RANDOM: usize = 32;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, from) = rest.split_at(begin);
        let end = from.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(from.len());
        let (digits, after) = from.split_at(end);
        out.push_str(before);
        out.push_str(if digits.len() == RANDOM { "…" } else { digits });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Errors of nodes, as far as they are of use: a prompt of 500 kB can have 50 MB of them.
fn bounded(node_errors: Value) -> Value {
    const MOST: usize = 256 << 10;
    let Value::Object(entries) = node_errors else { return node_errors };
    let mut bytes = 0;
    let fits = entries.into_iter().take_while(|(id, entry)| {
        let before = bytes;
        bytes += id.len() + entry.to_string().len();
        // The first one in any case, unless it is all of that by itself.
        bytes <= MOST || before == 0 && bytes <= 4 * MOST
    });
    Value::Object(fits.collect())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::JoinHandle,
    };

    use super::*;

    #[test]
    fn a_refusal_does_not_name_the_folders_of_other_jobs() {
        let drawn = "0123456789abcdef0123456789abcdef";
        let told = format!(
            "folder: 'nope' not in ['a-job-{drawn}', 'b-{drawn}/{drawn}/x.png', '{drawn}', 'c-{drawn}0', 'd-é']"
        );
        let expected = format!("folder: 'nope' not in ['a-job-…', 'b-…/…/x.png', '…', 'c-{drawn}0', 'd-é']");
        assert_eq!(without_folders(&told), expected);
        assert_eq!((without_folders(""), without_folders("-")), (String::new(), "-".to_owned()));
    }

    /// A client of a server that answers its first call with this, and `x` as long as somebody reads.
    async fn endless(head: &'static str) -> (Client, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
        });
        (Client::new(base.parse().unwrap()).unwrap(), answering)
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_its_end() {
        let (client, answering) = endless("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n\"").await;
        let error = client.system_stats().await.unwrap_err();
        assert!(error.answered && error.reason.contains("more than 1048576 bytes"), "{error}");
        answering.await.unwrap();
    }

    /// ComfyUI names all outputs for each error: 265 kB of a prompt were answered with 3 GB.
    #[tokio::test]
    async fn a_refusal_without_end_is_a_refusal() {
        let head = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n{\"error\": \"too many ";
        let (client, answering) = endless(head).await;
        let (prompt, prompt_id) = (Prompt::new(), PromptId::random());
        let post = PromptPost { prompt: &prompt, prompt_id, client_id: "", extra_data: json!({}) };
        let error = client.post_prompt(&post).await.unwrap_err();
        let PostError::Refused { message, .. } = error else { panic!("{error}") };
        assert!(message.starts_with("400 Bad Request: {\"error\": \"too many xx"), "{message}");
        assert!(message.len() < 3000, "{}", message.len());
        answering.await.unwrap();
    }
}
