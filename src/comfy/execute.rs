//! One prompt from POST to history. The websocket says how far it is; the history is the truth.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use backon::{ConstantBuilder, Retryable};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    PromptId, Server, Socket,
    client::{Client, PostError, Posted, PromptPost, RequestError, describe_node_errors},
    events::Image,
    history::History,
    socket::SocketEvent,
    tracker::{OutputImage, Progress, Step, Tracker},
};
use crate::job::{apply::Prompt, result::NodeTiming};

/// How often the history is read while the websocket is silent or down.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long ComfyUI is asked to let go of a prompt before its process is given up.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);
/// The same in a drain: ComfyUI is stopped in any case.
const ABORT_LIMIT: Duration = Duration::from_secs(2);
/// How often it is asked within that time: an interrupt sent too early is lost.
const CANCEL_EVERY: Duration = Duration::from_millis(250);
/// How long a connection may be missing before a prompt is posted without one.
const SOCKET_LIMIT: Duration = Duration::from_secs(2);
/// Pictures over the websocket are held in memory until the prompt is over: this much in all.
const SOCKET_OUTPUT_BYTES: usize = 512 << 20;

/// What is to be run.
#[derive(Debug)]
pub struct Execution<'a> {
    /// The prompt.
    pub prompt: &'a Prompt,
    /// `extra_data` of the post.
    pub extra_data: Value,
    /// Longest execution, from its start.
    pub limit: Duration,
    /// Whether outputs that ComfyUI drops may be missing; else the prompt is refused.
    pub allow_partial: bool,
    /// Ends the execution: the prompt is interrupted.
    pub abort: &'a CancellationToken,
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
}

/// An execution that is over, whatever its outcome.
#[derive(Debug)]
pub struct Executed {
    /// The id it ran under.
    pub prompt_id: PromptId,
    /// The truth about it.
    pub history: History,
    /// Outputs that ComfyUI dropped before it ran the rest.
    pub node_errors: Option<Value>,
    /// Pictures that exist only as websocket frames.
    pub images: Vec<OutputImage>,
    /// Whether such pictures may have been lost with a connection.
    pub images_lost: bool,
    /// Each node's time.
    pub nodes: BTreeMap<String, NodeTiming>,
    /// From the post to the start.
    pub waited: Duration,
    /// From the start to the end.
    pub executed: Duration,
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
    /// Neither in the queue nor in the history: somebody removed it.
    #[error("ComfyUI forgot the prompt: somebody cleared its queue or history")]
    Vanished,
    /// ComfyUI's process lives and does not answer.
    #[error(transparent)]
    Unreachable(#[from] RequestError),
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
    let client_id = socket.connected(SOCKET_LIMIT).await;
    // Subscribe before POST: a cached prompt can finish immediately.
    let mut subscription = socket.follow(&prompt_id.to_string());
    let post = PromptPost {
        prompt: execution.prompt,
        prompt_id,
        client_id: client_id.as_deref().unwrap_or_default(),
        extra_data: execution.extra_data,
    };
    let posted_at = Instant::now();
    let posted = tokio::select! {
        posted = post_once(server.client(), &post) => posted?,
        exit = server.exited() => return Err(ExecuteError::Died(exit)),
        () = execution.abort.cancelled() => {
            let stuck = !cancel(server.client(), prompt_id, ABORT_LIMIT).await;
            return Err(ExecuteError::Aborted { stuck });
        }
    };
    if let Some(node_errors) = posted.node_errors.clone().filter(|_| !execution.allow_partial) {
        // It runs the rest already: GPU time for a job that fails in any case.
        cancel(server.client(), prompt_id, CANCEL_LIMIT).await;
        return Err(ExecuteError::Refused { message: describe_node_errors(&node_errors), node_errors });
    }
    observer.queued(prompt_id);

    let mut run = Run {
        tracker: Tracker::new(execution.prompt),
        images: Vec::new(),
        image_bytes: 0,
        images_lost: client_id.is_none(),
        posted_at,
        started_at: None,
        heard_at: posted_at,
    };
    let mut poll = interval(POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = 0;
    let history = loop {
        // Nothing else runs here: until its start is seen, the limit counts from the post.
        let deadline = run.started_at.unwrap_or(posted_at) + execution.limit;
        tokio::select! {
            event = subscription.events.recv() => match event {
                Some(SocketEvent::Event(event)) => {
                    if run.take(event, observer) {
                        // Written before this event was sent; read again should that ever change.
                        if let Some(history) = read_history(server.client(), prompt_id).await {
                            break history;
                        }
                    }
                }
                Some(SocketEvent::Lost) => run.images_lost = true,
                None => return Err(ExecuteError::Died("the websocket was closed".to_owned())),
            },
            _ = poll.tick() => {
                if run.heard_at.elapsed() < POLL_EVERY {
                    continue;
                }
                match look(server.client(), prompt_id).await? {
                    Look::Over(history) => break *history,
                    Look::Running => { missing = 0; run.start(observer); }
                    Look::Pending => missing = 0,
                    // A prompt is in neither list for a moment when it ends.
                    Look::Nowhere => missing += 1,
                }
                if missing >= 3 {
                    return Err(ExecuteError::Vanished);
                }
            }
            () = sleep_until(deadline.into()) => {
                let stuck = !cancel(server.client(), prompt_id, CANCEL_LIMIT).await;
                return Err(ExecuteError::TimedOut { limit: execution.limit, stuck });
            }
            () = execution.abort.cancelled() => {
                let stuck = !cancel(server.client(), prompt_id, ABORT_LIMIT).await;
                return Err(ExecuteError::Aborted { stuck });
            }
            exit = server.exited() => return Err(ExecuteError::Died(exit)),
        }
    };
    if let Err(error) = server.client().delete_history(prompt_id).await {
        tracing::debug!(%error, "history entry not deleted");
    }
    Ok(run.finish(prompt_id, history, posted))
}

struct Run {
    tracker: Tracker,
    images: Vec<OutputImage>,
    image_bytes: usize,
    images_lost: bool,
    posted_at: Instant,
    started_at: Option<Instant>,
    heard_at: Instant,
}

impl Run {
    /// Whether the prompt is over.
    fn take(&mut self, event: super::events::Event, observer: &mut dyn Observer) -> bool {
        self.heard_at = Instant::now();
        let step = self.tracker.step(event, self.posted_at.elapsed());
        if self.tracker.has_started() {
            self.start(observer);
        }
        match step {
            Step::Nothing | Step::Started => {}
            Step::Progress(progress) => observer.progress(&progress),
            Step::Preview(image) => observer.preview(&image),
            Step::Output(image) => {
                self.image_bytes += image.image.bytes.len();
                if self.image_bytes <= SOCKET_OUTPUT_BYTES {
                    self.images.push(image);
                } else {
                    self.images_lost = true;
                }
            }
            Step::Ended => return true,
        }
        false
    }

    fn start(&mut self, observer: &mut dyn Observer) {
        if self.started_at.is_none() {
            self.started_at = Some(Instant::now());
            observer.started();
        }
    }

    fn finish(self, prompt_id: PromptId, history: History, posted: Posted) -> Executed {
        let started_at = self.started_at.unwrap_or(self.posted_at);
        let images_lost = self.images_lost && self.tracker.expects_socket_outputs();
        let mut nodes = self.tracker.into_timings();
        for node in history.cached_nodes() {
            nodes.entry(node).or_default().cached = true;
        }
        Executed {
            prompt_id,
            node_errors: posted.node_errors,
            images: self.images,
            images_lost,
            nodes,
            waited: started_at - self.posted_at,
            // ComfyUI's own clock, where the websocket missed the start.
            executed: match history.executed_ms() {
                Some(ms) if self.started_at.is_none() => Duration::from_millis(ms),
                _ => started_at.elapsed(),
            },
            history,
        }
    }
}

/// Posts; when the answer is lost, looks for our id before posting again: ids are not unique there.
async fn post_once(client: &Client, post: &PromptPost<'_>) -> Result<Posted, ExecuteError> {
    let mut tries = 0;
    loop {
        let lost = match client.post_prompt(post).await {
            Ok(posted) => return Ok(posted),
            Err(PostError::Refused { message, node_errors }) => {
                return Err(ExecuteError::Refused { message, node_errors });
            }
            Err(PostError::Lost(error)) => error,
        };
        tracing::warn!(error = %lost, "no usable answer to a posted prompt, looking for it");
        match look(client, post.prompt_id).await? {
            Look::Nowhere if tries < 2 => tries += 1,
            Look::Nowhere => return Err(ExecuteError::Unreachable(lost)),
            Look::Over(_) | Look::Running | Look::Pending => return Ok(Posted { node_errors: None }),
        }
    }
}

enum Look {
    Over(Box<History>),
    Running,
    Pending,
    Nowhere,
}

/// Queue first, then history: a prompt moves that way.
async fn look(client: &Client, prompt_id: PromptId) -> Result<Look, RequestError> {
    use super::client::QueuePlace;
    let once = || async {
        match client.queue_place(prompt_id).await? {
            Some(QueuePlace::Running) => return Ok(Look::Running),
            Some(QueuePlace::Pending) => return Ok(Look::Pending),
            None => {}
        }
        let history = client.history(prompt_id).await?;
        Ok(history.map_or(Look::Nowhere, |history| Look::Over(Box::new(history))))
    };
    once.retry(ConstantBuilder::new().with_delay(POLL_EVERY).with_max_times(3)).await
}

async fn read_history(client: &Client, prompt_id: PromptId) -> Option<History> {
    let read = || async { client.history(prompt_id).await.ok().flatten().ok_or(()) };
    read.retry(ConstantBuilder::new().with_delay(CANCEL_EVERY).with_max_times(4)).await.ok()
}

/// Takes the prompt out of the queue or interrupts it, again and again: an interrupt that comes
/// before the prompt has begun is lost. Whether ComfyUI let go of it.
async fn cancel(client: &Client, prompt_id: PromptId, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    let mut nowhere = 0;
    while Instant::now() < until {
        let asked = async {
            client.delete_pending(prompt_id).await?;
            client.interrupt(prompt_id).await?;
            look(client, prompt_id).await
        };
        match tokio::time::timeout_at(until.into(), asked).await {
            Ok(Ok(Look::Over(_))) => return true,
            // Deleted while pending: no history. Seen twice, since it is in neither list for a moment.
            Ok(Ok(Look::Nowhere)) if nowhere == 1 => return true,
            Ok(Ok(Look::Nowhere)) => nowhere += 1,
            Ok(Ok(Look::Running | Look::Pending) | Err(_)) | Err(_) => nowhere = 0,
        }
        tokio::time::sleep(CANCEL_EVERY).await;
    }
    false
}
