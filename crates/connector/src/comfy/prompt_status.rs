//! Where a prompt is: posting it once, finding it again, making ComfyUI let go of it.

use std::time::{Duration, Instant};

use backon::{ConstantBuilder, Retryable};
use serde_json::json;
use tokio::time::{sleep, timeout_at};

use super::{
    PromptId,
    client::{Client, PostError, Posted, PromptPost, QueuePlace, RequestError},
    execute::ExecuteError,
    history::History,
};

/// How often a prompt is looked for while the websocket is silent or down.
pub(super) const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long ComfyUI is asked to let go of a prompt before its process is given up.
pub(super) const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// The same in a drain: ComfyUI is stopped in any case.
pub(super) const ABORT_LIMIT: Duration = Duration::from_secs(2);
/// How often it is asked within that time: an interrupt sent too early is lost.
const CANCEL_EVERY: Duration = Duration::from_millis(250);
/// How often a prompt is posted that ComfyUI never got.
const POSTS: u32 = 3;

/// Posts; when the answer is lost, looks for our id before posting again: ids are not unique there.
/// Has no limit of its own: another prompt may keep ComfyUI from answering for as long as it runs.
pub(super) async fn post_once(client: &Client, post: &PromptPost<'_>) -> Result<Posted, ExecuteError> {
    let mut posts = 1;
    loop {
        let error = match client.post_prompt(post).await {
            Ok(posted) => return Ok(posted),
            Err(PostError::Refused { message, node_errors }) => {
                return Err(ExecuteError::Refused { message, node_errors, stuck: false });
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "no usable answer to a posted prompt, looking for it");
        if arrived(client, post.prompt_id).await {
            return Ok(Posted { node_errors: None });
        }
        match error {
            _ if posts < POSTS => posts += 1,
            PostError::Lost(lost) => return Err(lost.into()),
            // Again and again, and nothing queued: it is this prompt that ComfyUI trips over.
            error => {
                return Err(ExecuteError::Refused {
                    message: error.to_string(),
                    node_errors: json!({}),
                    stuck: false,
                });
            }
        }
    }
}

/// Whether ComfyUI has a prompt whose answer was lost. Looked for twice: its handler may not have
/// come to the end of the body yet. One that does not answer is asked until the caller gives up.
async fn arrived(client: &Client, prompt_id: PromptId) -> bool {
    let mut nowhere = 0;
    while nowhere < 2 {
        match look(client, prompt_id).await {
            Ok(PromptStatus::Nowhere) => nowhere += 1,
            Ok(
                PromptStatus::Over(_)
                | PromptStatus::Unreadable(_)
                | PromptStatus::Running
                | PromptStatus::Pending
                | PromptStatus::Next,
            ) => {
                return true;
            }
            Err(error) => tracing::debug!(%error, "ComfyUI does not answer"),
        }
        sleep(CANCEL_EVERY).await;
    }
    false
}

/// Where a prompt is.
pub(super) enum PromptStatus {
    /// In the history.
    Over(Box<History>),
    /// It is over: it has left the queue, and ComfyUI fails to give its history.
    Unreadable(RequestError),
    /// It runs.
    Running,
    /// It waits behind others.
    Pending,
    /// It waits and nothing runs.
    Next,
    /// ComfyUI does not know it.
    Nowhere,
}

/// Queue first, then history: a prompt moves that way, each time within one lock of ComfyUI's.
pub(super) async fn look(client: &Client, prompt_id: PromptId) -> Result<PromptStatus, RequestError> {
    let again = ConstantBuilder::new().with_delay(POLL_EVERY).with_max_times(3);
    match (|| client.queue_place(prompt_id)).retry(again).await? {
        Some(QueuePlace::Running) => return Ok(PromptStatus::Running),
        Some(QueuePlace::Pending) => return Ok(PromptStatus::Pending),
        Some(QueuePlace::Next) => return Ok(PromptStatus::Next),
        None => {}
    }
    match (|| client.history(prompt_id)).retry(again).await {
        Ok(history) => {
            Ok(history.map_or(PromptStatus::Nowhere, |history| PromptStatus::Over(Box::new(history))))
        }
        Err(error) if error.answered => Ok(PromptStatus::Unreadable(error)),
        Err(error) => Err(error),
    }
}

/// Takes the prompt out of the queue or interrupts it, again and again: an interrupt that comes
/// before the prompt has begun is lost. Whether ComfyUI let go of it.
pub(super) async fn cancel(client: &Client, prompt_id: PromptId, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    let mut nowhere = 0;
    while Instant::now() < until {
        let asked = async {
            client.delete_pending(prompt_id).await?;
            client.interrupt(prompt_id).await?;
            look(client, prompt_id).await
        };
        match timeout_at(until.into(), asked).await {
            Ok(Ok(PromptStatus::Over(_) | PromptStatus::Unreadable(_))) => {
                // Best effort: it is kept in memory.
                let _ = timeout_at(until.into(), client.delete_history(prompt_id)).await;
                return true;
            }
            // Deleted while pending: no history. Seen twice: its POST may just be on its way.
            Ok(Ok(PromptStatus::Nowhere)) if nowhere == 1 => return true,
            Ok(Ok(PromptStatus::Nowhere)) => nowhere += 1,
            Ok(Ok(PromptStatus::Running | PromptStatus::Pending | PromptStatus::Next) | Err(_)) | Err(_) => {
                nowhere = 0
            }
        }
        sleep(CANCEL_EVERY).await;
    }
    false
}
