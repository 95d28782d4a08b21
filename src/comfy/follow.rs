//! Follows a posted prompt to its history: by the websocket while it speaks, else by looking.

use std::{
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{Fuse, FusedFuture as _, FutureExt as _};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval, sleep_until, timeout_at},
};

use super::{
    PromptId,
    client::{Client, Posted},
    events::Event,
    execute::{Behind, ExecuteError, Executed, Observer},
    forecast::NodeTimes,
    history::History,
    socket::SocketEvent,
    threads::Threads,
    tracker::{OutputImage, Step, Tracker},
    whereabouts::{Look, POLL_EVERY, look},
};
use crate::{job::apply::Prompt, metrics};

/// Pictures over the websocket are held in memory until the prompt is over: this much in all.
const SOCKET_OUTPUT_BYTES: usize = 512 << 20;
/// A prompt is in queue or history at every moment: so often neither, and somebody removed it.
const MISSING_LOOKS: u32 = 3;
/// How long a living process may leave calls unanswered: one that loads a large model can hold
/// Python's lock for a minute.
const UNREACHABLE_LIMIT: Duration = Duration::from_secs(120);
/// How long a running prompt must have been silent before a thread that ended is taken for its own.
const SILENCE: Duration = Duration::from_secs(15);
/// How long a prompt may be next in an idle ComfyUI: between two it frees memory, which takes seconds.
const IDLENESS: Duration = Duration::from_secs(20);
/// How long a process may be stopped: whoever looks at it with a debugger has no jobs.
const STOPPED_LIMIT: Duration = Duration::from_secs(10);
/// Where there is no limit yet.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long frames may be behind a history that was found by looking.
const LATE_FRAMES: Duration = Duration::from_secs(3);

/// What is known of a prompt under way.
pub(super) struct Run {
    tracker: Tracker,
    images: Vec<OutputImage>,
    image_bytes: usize,
    images_lost: bool,
    limit: Duration,
    posted_at: Instant,
    /// When nothing was before it any more.
    turn_at: Option<Instant>,
    started_at: Option<Instant>,
    heard_at: Instant,
    threads: Threads,
}

/// The prompt's history, once it is over.
///
/// Looks run beside the reading of events: a slow answer must not let frames pile up.
pub(super) async fn follow(
    client: &Client,
    prompt_id: PromptId,
    events: &mut UnboundedReceiver<SocketEvent>,
    run: &mut Run,
    observer: &mut dyn Observer,
    behind: Option<Behind<'_>>,
) -> Result<History, ExecuteError> {
    let mut looking = pin!(Fuse::terminated());
    let mut turn = pin!(turn(behind).fuse());
    let mut taking_back = pin!(take_back(client, prompt_id, behind).fuse());
    let mut poll = interval(POLL_EVERY);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut missing, mut answered_at, mut next_since, mut stopped_since) = (0, Instant::now(), None, None);
    let mut watch = interval(POLL_EVERY);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if run.started_at.is_some() {
            crate::phases::reached("running").await;
        }
        tokio::select! {
            event = events.recv() => match event {
                // Its history was written before this was sent.
                Some(SocketEvent::Event(event)) => if run.take(event, observer) {
                    looking.set(look(client, prompt_id).fuse());
                },
                Some(SocketEvent::Lost) => run.images_lost = true,
                None => return Err(ExecuteError::Died("the websocket was closed".to_owned())),
            },
            _ = poll.tick(), if looking.is_terminated() => if run.heard_at.elapsed() >= POLL_EVERY {
                looking.set(look(client, prompt_id).fuse());
            },
            found = &mut looking => {
                match found {
                    Ok(found) => {
                        answered_at = Instant::now();
                        missing = if matches!(found, Look::Nowhere) { missing + 1 } else { 0 };
                        if !matches!(found, Look::Next) {
                            next_since = None;
                        }
                        match found {
                            Look::Over(history) => {
                                run.await_late_frames(events, observer).await;
                                return Ok(*history);
                            }
                            Look::Running => {
                                run.start(observer);
                                if run.heard_at.elapsed() > SILENCE && run.threads.ended() > 0 {
                                    return Err(ExecuteError::Stalled("a thread of its own ended".to_owned()));
                                }
                            }
                            Look::Next if next_since.get_or_insert_with(Instant::now).elapsed() > IDLENESS => {
                                return Err(ExecuteError::Stalled("a prompt waits and nothing runs".to_owned()));
                            }
                            Look::Nowhere if missing >= MISSING_LOOKS => return Err(ExecuteError::Vanished),
                            Look::Pending | Look::Next | Look::Nowhere => {}
                        }
                    }
                    Err(error) if answered_at.elapsed().min(run.heard_at.elapsed()) > UNREACHABLE_LIMIT => {
                        return Err(error.into());
                    }
                    Err(error) => tracing::debug!(%error, "ComfyUI does not answer"),
                }
            }
            // Beside the looks: each of those waits long for an answer.
            _ = watch.tick() => {
                if !run.threads.are_stopped() {
                    stopped_since = None;
                } else if stopped_since.get_or_insert_with(Instant::now).elapsed() > STOPPED_LIMIT {
                    return Err(ExecuteError::Stalled("its process is stopped".to_owned()));
                }
            }
            () = &mut turn => run.come_to_turn(),
            taken_back = &mut taking_back, if run.waits() => if taken_back {
                return Err(ExecuteError::Aborted { stuck: false });
            },
            () = sleep_until(run.deadline().into()) => return Err(run.timed_out()),
        }
    }
}

async fn turn(behind: Option<Behind<'_>>) {
    match behind {
        Some(behind) => behind.turn.cancelled().await,
        None => pending().await,
    }
}

/// Once told to stop: whether ComfyUI gave the prompt back before it began it.
async fn take_back(client: &Client, prompt_id: PromptId, behind: Option<Behind<'_>>) -> bool {
    let Some(behind) = behind else { return pending().await };
    behind.stop.cancelled().await;
    client.delete_pending(prompt_id).await.is_ok()
        && matches!(look(client, prompt_id).await, Ok(Look::Nowhere))
}

impl Run {
    /// From now on the time counts. `threads`: those that live before the post, which may end any.
    pub(super) fn new(prompt: &Prompt, limit: Duration, images_lost: bool, threads: Threads) -> Self {
        let now = Instant::now();
        Self {
            tracker: Tracker::new(prompt),
            images: Vec::new(),
            image_bytes: 0,
            images_lost,
            limit,
            posted_at: now,
            turn_at: Some(now),
            started_at: None,
            heard_at: now,
            threads,
        }
    }

    /// Tells what is left by what such nodes took.
    pub(super) fn knowing(self, known: Arc<NodeTimes>) -> Self {
        Self { tracker: self.tracker.knowing(known), ..self }
    }

    /// Posted while another prompt is there still, if `behind`.
    pub(super) fn behind(self, behind: bool) -> Self {
        Self { turn_at: self.turn_at.filter(|_| !behind), ..self }
    }

    /// Whether another prompt is known to be before it.
    pub(super) fn waits(&self) -> bool {
        self.turn_at.is_none() && self.started_at.is_none()
    }

    fn come_to_turn(&mut self) {
        if self.turn_at.is_none() {
            self.turn_at = Some(Instant::now());
            // The one before may have ended some.
            self.threads = self.threads.living();
        }
    }

    fn deadline(&self) -> Instant {
        // Until its start is seen, the limit counts from the moment when nothing else ran here.
        self.started_at.or(self.turn_at).map_or(self.posted_at + FAR, |since| since + self.limit)
    }

    fn timed_out(&self) -> ExecuteError {
        ExecuteError::TimedOut { limit: self.limit, stuck: true }
    }

    /// Gives `work` until the limit.
    pub(super) async fn within_limit<T>(&self, work: impl Future<Output = T>) -> Result<T, ExecuteError> {
        timeout_at(self.deadline().into(), work).await.map_err(|_| self.timed_out())
    }

    /// Tells when its nodes ran, the last of them until now.
    pub(super) fn tell_nodes(&mut self, observer: &mut dyn Observer) {
        let runs = self.tracker.take_runs(self.posted_at.elapsed());
        observer.ran(self.posted_at, runs);
    }

    /// Whether the prompt is over.
    fn take(&mut self, event: Event, observer: &mut dyn Observer) -> bool {
        self.heard_at = Instant::now();
        let step = self.tracker.step(event, self.posted_at.elapsed());
        if self.tracker.has_started() {
            self.start(observer);
        }
        match step {
            Step::Nothing | Step::Started => {}
            Step::Progress(progress) => observer.progress(&progress),
            Step::Preview(image) => observer.preview(&image),
            Step::Executed { node, outputs } => observer.executed(&node, &outputs),
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
            self.come_to_turn();
            self.started_at = Some(Instant::now());
            observer.started();
        }
    }

    /// A look can find the history while pictures sent before it are still on their way: they are
    /// outputs. Without an end on the websocket some may be missing.
    async fn await_late_frames(
        &mut self,
        events: &mut UnboundedReceiver<SocketEvent>,
        observer: &mut dyn Observer,
    ) {
        let until = Instant::now() + LATE_FRAMES;
        while self.tracker.expects_socket_outputs() && !self.images_lost && !self.tracker.has_ended() {
            match timeout_at(until.into(), events.recv()).await {
                Ok(Some(SocketEvent::Event(event))) => {
                    self.take(event, observer);
                }
                Ok(Some(SocketEvent::Lost) | None) | Err(_) => self.images_lost = true,
            }
        }
    }

    /// What is left of it.
    /// Counts the engine's time, whatever came of the prompt; `over`: its end was heard of.
    pub(super) fn count(&self, over: bool) {
        if let Some(started_at) = self.started_at {
            let ended_at = if over { self.heard_at.max(started_at) } else { Instant::now() };
            metrics::executed(self.posted_at, started_at, ended_at);
        }
    }

    pub(super) fn finish(self, prompt_id: PromptId, history: History, posted: Posted) -> Executed {
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
