//! One prompt from POST to history. The websocket says how far it is; the history is the truth.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{failure::Failure, prompt::Prompt, result::NodeTiming};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{
    PromptId, Server, Socket,
    client::{Posted, PromptPost, RequestError, describe_node_errors},
    events::Image,
    follow::{FollowedPrompt, follow},
    forecast::NodeTimes,
    history::{ExecutionOutcome, History},
    prompt_status::{ABORT_LIMIT, CANCEL_LIMIT, cancel, post_once},
    prompt_thread::Switches,
    socket::Subscription,
    tracker::{NodeRun, OutputImage, Progress},
};
use crate::phases::limit;

/// How long a connection may be missing before a prompt is posted without one.
const SOCKET_LIMIT: Duration = Duration::from_secs(2);
/// How long a post may stay without an answer from processes that do nothing.
const POST_STANDSTILL: Duration = Duration::from_secs(60);
/// How long a prompt that was given up behind another one is tried to be taken out.
const LEFT_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// A limit beyond the clock's range is as good as this one.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What is to be run.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// `extra_data` of the post.
    pub extra_data: Value,
    /// Longest execution, from its start; as long as that is not seen, from the post.
    pub limit: Duration,
    /// Whether outputs that ComfyUI drops may be missing; else the prompt is refused.
    pub allow_partial: bool,
    /// Ends the execution before ComfyUI is stopped: it is asked for 2 s to let go of the prompt.
    pub abort: &'a CancellationToken,
    /// Ends the execution alone: ComfyUI is asked for 10 s, as when the limit has passed.
    pub cancel: &'a CancellationToken,
    /// Set when another prompt is in ComfyUI still.
    pub behind: Option<QueuedBehind<'a>>,
    /// What such nodes took.
    pub known: Arc<NodeTimes>,
}

/// What a prompt that waits behind another one waits for.
#[derive(Clone, Copy, Debug)]
pub struct QueuedBehind<'a> {
    /// Cancelled once the other is out of ComfyUI: from then on the limit counts.
    pub ahead_done: &'a CancellationToken,
    /// Takes the prompt back, if ComfyUI has not begun it.
    pub stop: &'a CancellationToken,
}

/// Told how an execution goes, from the task that tracks it: must not block.
pub trait Observer: Send {
    /// ComfyUI has taken the prompt.
    fn queued(&mut self, prompt_id: PromptId);
    /// It runs.
    fn started(&mut self);
    /// It makes progress.
    fn progress(&mut self, progress: &Progress);
    /// A preview picture.
    fn preview(&mut self, image: &Image);
    /// A node is done; `outputs`: its entry of the history's `outputs`.
    fn executed(&mut self, node: &str, outputs: &Value);
    /// The execution is over, however it ended: when nodes ran, since `origin`.
    fn ran(&mut self, origin: Instant, runs: Vec<NodeRun>) {
        let _ = (origin, runs);
    }
}

/// An execution that is over, whatever its outcome.
#[derive(Debug)]
pub struct Executed {
    /// The id it ran under.
    pub prompt_id: PromptId,
    /// The truth about it.
    pub history: History,
    /// Whether it failed for a device that was shown to be broken.
    pub broken_device: bool,
    /// Outputs that ComfyUI dropped before it ran the rest.
    pub node_errors: Option<Value>,
    /// Pictures that exist only as websocket frames.
    pub images: Vec<OutputImage>,
    /// The nodes whose pictures are missing: lost with a connection, or not sent again by a node that ComfyUI
    /// remembers.
    pub images_lost: BTreeSet<String>,
    /// Each node's time.
    pub nodes: BTreeMap<String, NodeTiming>,
    /// From the post to the start.
    pub waited: Duration,
    /// From the start to the end.
    pub executed: Duration,
}

impl Executed {
    /// How it failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        match self.history.outcome() {
            ExecutionOutcome::Failed(node) if self.broken_device => {
                Some(Failure::EngineCrashed(node.to_string()))
            }
            outcome => outcome.failure(),
        }
    }
}

/// Why there is no history.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExecuteError {
    /// Refused, in ComfyUI's words.
    #[error("{message}")]
    Refused {
        /// ComfyUI's words.
        message: String,
        /// ComfyUI's `node_errors`.
        node_errors: Value,
        /// Whether it runs the rest of the prompt, did not let go of it, and must be killed.
        stuck: bool,
    },
    /// ComfyUI died.
    #[error("ComfyUI ended while it ran the prompt: {0}")]
    Died(String),
    /// The limit passed. `stuck`: ComfyUI did not let go of it and must be killed.
    #[error("not finished within {limit:?}")]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// Whether ComfyUI still runs it.
        stuck: bool,
    },
    /// Aborted by the caller. `stuck`: ComfyUI did not let go of it and must be killed.
    #[error("aborted")]
    Aborted {
        /// Whether ComfyUI still runs it.
        stuck: bool,
    },
    /// Cancelled by the caller. `stuck`: ComfyUI did not let go of it and must be killed.
    #[error("cancelled")]
    Cancelled {
        /// Whether ComfyUI still runs it.
        stuck: bool,
    },
    /// Nothing runs: the thread that runs prompts is gone, or the process is stopped.
    #[error("ComfyUI runs no prompts any more: {0}")]
    Stalled(String),
    /// ComfyUI was lost before it came to this prompt, which waited behind another one.
    #[error("ComfyUI was lost before it began the prompt: {0}")]
    NotBegun(String),
    /// Neither in the queue nor in the history: somebody removed it.
    #[error("ComfyUI forgot the prompt: somebody cleared its queue or history")]
    Vanished,
    /// It is over, and ComfyUI cannot say how: a node's output that is no JSON, for one.
    #[error("the prompt is over, and its history cannot be read: {0}")]
    Unreadable(RequestError),
    /// ComfyUI's process lives and does not answer.
    #[error(transparent)]
    Unreachable(#[from] RequestError),
}

impl ExecuteError {
    /// Whether ComfyUI is dead or hangs: only a new process runs prompts again.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        matches!(
            self,
            Self::Died(_)
                | Self::Stalled(_)
                | Self::NotBegun(_)
                | Self::Unreachable(_)
                | Self::Refused { stuck: true, .. }
                | Self::TimedOut { stuck: true, .. }
                | Self::Aborted { stuck: true }
                | Self::Cancelled { stuck: true }
        )
    }
}

/// Runs a prompt to its end.
///
/// # Errors
/// See [`ExecuteError`]. A prompt whose nodes failed is no error here: its history says so.
pub async fn execute(
    server: &Server,
    socket: &Socket,
    execution: Execution<'_>,
    observer: &mut dyn Observer,
) -> Result<Executed, ExecuteError> {
    let prompt_id = PromptId::random();
    let (client_id, mut subscription) = subscribe(socket, prompt_id).await;
    let post = PromptPost {
        prompt: execution.prompt,
        prompt_id,
        client_id: client_id.as_deref().unwrap_or_default(),
        extra_data: execution.extra_data,
    };
    let mut run = FollowedPrompt::new(execution.prompt, execution.limit.min(LONGEST), client_id.is_none())
        .knowing(execution.known)
        .behind(execution.behind.is_some());
    let before = server.prompt_thread().switches();
    // On the heap: callers hold this future inside theirs.
    let work = Box::pin(async {
        let posted = run.within_limit(post_while_alive(server, &post)).await??;
        if let Some(node_errors) = posted.node_errors.clone().filter(|_| !execution.allow_partial) {
            // It runs the rest already: GPU time for a job that fails in any case.
            let message = describe_node_errors(&node_errors);
            return Err(ExecuteError::Refused { message, node_errors, stuck: true });
        }
        observer.queued(prompt_id);
        crate::phases::reached("posted").await;
        let events = &mut subscription.events;
        let history = follow(server, prompt_id, events, &mut run, observer, execution.behind).await?;
        Ok((posted, history))
    });
    let outcome = tokio::select! {
        // How ComfyUI ended says more than the refused connection that follows from it.
        biased;
        exit = server.exited() => Err(ExecuteError::Died(exit)),
        () = execution.abort.cancelled() => Err(ExecuteError::Aborted { stuck: true }),
        () = execution.cancel.cancelled() => Err(ExecuteError::Cancelled { stuck: true }),
        outcome = work => outcome,
    };
    run.count(outcome.is_ok());
    let outcome =
        match outcome {
            Err(
                error @ (ExecuteError::Died(_) | ExecuteError::Stalled(_) | ExecuteError::Unreachable(_)),
            ) if run.waits() => Err(ExecuteError::NotBegun(error.to_string())),
            outcome => outcome,
        };
    // Its events would pile up while nobody reads them.
    drop(subscription);
    run.tell_nodes(observer);
    let (waits, patience) = (run.waits(), limit("cancel", CANCEL_LIMIT));
    let let_go = async |limit| {
        tokio::select! {
            let_go = cancel(server.client(), prompt_id, limit) => let_go || waits && is_left(server, prompt_id),
            _ = server.exited() => true,
        }
    };
    match outcome {
        Ok((posted, history)) => {
            forget(server, prompt_id, before);
            Ok(run.finish(prompt_id, history, posted))
        }
        Err(ExecuteError::TimedOut { limit, .. }) => {
            Err(ExecuteError::TimedOut { limit, stuck: !let_go(patience).await })
        }
        Err(ExecuteError::Refused { message, node_errors, stuck: true }) => {
            let stuck = !let_go(patience).await;
            Err(ExecuteError::Refused { message, node_errors, stuck })
        }
        Err(ExecuteError::Cancelled { .. }) => {
            // A drain does not wait for it either.
            tokio::select! {
                let_go = let_go(patience) => Err(ExecuteError::Cancelled { stuck: !let_go }),
                () = execution.abort.cancelled() => Err(ExecuteError::Cancelled { stuck: true }),
            }
        }
        Err(error @ ExecuteError::Unreadable(_)) => {
            // What cannot be read may be large, and ComfyUI would keep it.
            forget(server, prompt_id, before);
            Err(error)
        }
        Err(ExecuteError::Aborted { .. }) => Err(ExecuteError::Aborted { stuck: !let_go(ABORT_LIMIT).await }),
        Err(error) => Err(error),
    }
}

async fn post_while_alive(server: &Server, post: &PromptPost<'_>) -> Result<Posted, ExecuteError> {
    let most = limit("post", POST_STANDSTILL);
    tokio::select! {
        posted = post_once(server.client(), post) => posted,
        () = server.processes().standstill(most) => {
            let reason = format!("no answer for {most:?}, and its processes do nothing");
            Err(RequestError { call: "/prompt".to_owned(), reason, answered: false }.into())
        }
    }
}

/// Has ComfyUI drop the history entry, which it would keep among its last 10,000. Nobody waits for that.
/// By then the thread that ran the prompt rests, or runs another one.
fn forget(server: &Server, prompt_id: PromptId, before: Switches) {
    let (client, thread) = (server.client().clone(), server.prompt_thread().clone());
    tokio::spawn(async move {
        match client.delete_history(prompt_id).await {
            Ok(()) => thread.has_run(&before),
            Err(error) => tracing::debug!(%error, "cannot delete the history entry"),
        }
    });
}

/// A prompt that waits behind another one is no reason to kill that one's ComfyUI, which may answer nobody
/// for minutes: it is taken out as soon as that is possible.
fn is_left(server: &Server, prompt_id: PromptId) -> bool {
    let (client, exited) = (server.client().clone(), server.on_exit());
    tokio::spawn(async move {
        tokio::select! {
            _ = cancel(&client, prompt_id, LEFT_LIMIT) => {}
            () = exited => {}
        }
    });
    true
}

/// Follows the prompt on a connection that stands. Before the POST: a cached prompt can finish
/// immediately.
async fn subscribe(socket: &Socket, prompt_id: PromptId) -> (Option<String>, Subscription) {
    loop {
        let client_id = socket.connected(SOCKET_LIMIT).await;
        let subscription = socket.follow(&prompt_id.to_string());
        // Lost in between, nobody would tell this subscription.
        if client_id.is_none() || socket.client_id() == client_id {
            return (client_id, subscription);
        }
    }
}
