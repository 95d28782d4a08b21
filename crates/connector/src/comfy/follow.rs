//! Follows a posted prompt to its history: by the websocket while it speaks, else by looking.

use std::{
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use contract::prompt::Prompt;
use futures_util::future::{Fuse, FusedFuture as _, FutureExt as _};
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout_at};

use super::{
    PromptId, Server,
    client::{Client, Posted},
    events::Event,
    execute::{ExecuteError, Executed, Observer, QueuedBehind},
    forecast::NodeTimes,
    history::History,
    inbox::{ByteReservation, Inbox, SocketEvent},
    liveness::Liveness,
    prompt_status::{POLL_EVERY, PromptStatus, look},
    tracker::{OutputImage, Step, Tracker},
};
use crate::metrics;

/// Where there is no limit yet.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long frames may be behind a history that was found by looking.
const LATE_FRAMES: Duration = Duration::from_secs(3);

/// What is known of a prompt under way.
pub(super) struct FollowedPrompt {
    tracker: Tracker,
    images: Vec<(OutputImage, ByteReservation)>,
    images_lost: bool,
    limit: Duration,
    posted_at: Instant,
    /// When nothing was before it any more.
    turn_at: Option<Instant>,
    started_at: Option<Instant>,
    heard_at: Instant,
}

/// The prompt's history, once it is over.
///
/// Looks run beside the reading of events: a slow answer must not let frames pile up.
pub(super) async fn follow(
    server: &Server,
    prompt_id: PromptId,
    events: &mut Inbox,
    run: &mut FollowedPrompt,
    observer: &mut dyn Observer,
    behind: Option<QueuedBehind<'_>>,
) -> Result<History, ExecuteError> {
    let client = server.client();
    let mut looking = pin!(Fuse::terminated());
    let mut beating = pin!(Fuse::terminated());
    let mut turn = pin!(turn(behind).fuse());
    let mut taking_back = pin!(take_back(client, prompt_id, behind).fuse());
    let [mut poll, mut watch] = [interval(POLL_EVERY), interval(POLL_EVERY)];
    for every in [&mut poll, &mut watch] {
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut liveness = Liveness::new();
    loop {
        if run.started_at.is_some() {
            crate::phases::reached("running").await;
        }
        tokio::select! {
            event = events.recv() => match event {
                Some(SocketEvent::Event(event, weight)) => {
                    liveness.heard();
                    // Its history was written before this was sent.
                    if run.take(event, weight, observer) {
                        looking.set(look(client, prompt_id).fuse());
                    }
                }
                Some(SocketEvent::Lost) => run.images_lost = true,
                None => return Err(ExecuteError::Died("the websocket was closed".to_owned())),
            },
            _ = poll.tick(), if looking.is_terminated() => if run.heard_at.elapsed() >= POLL_EVERY {
                looking.set(look(client, prompt_id).fuse());
            },
            found = &mut looking => match found {
                Ok(found) => {
                    liveness.found(&found, server.prompt_thread().state(run.heard_at))?;
                    match found {
                        PromptStatus::Over(history) => {
                            run.await_late_frames(events, observer).await;
                            run.images_lost |= events.has_lost();
                            return Ok(*history);
                        }
                        PromptStatus::Running => run.start(observer),
                        PromptStatus::Pending | PromptStatus::Next | PromptStatus::Nowhere | PromptStatus::Unreadable(_) => {}
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "ComfyUI gives no usable answer");
                    if error.answered {
                        liveness.answered();
                    }
                }
            },
            _ = watch.tick() => {
                liveness.tick(run.heard_at, server.processes().are_stopped())?;
                if beating.is_terminated() && liveness.wants_activity(run.heard_at) {
                    beating.set(server.processes().activity().fuse());
                }
            }
            activity = &mut beating => liveness.last_activity.take(activity),
            () = &mut turn => run.come_to_turn(),
            taken_back = &mut taking_back, if run.waits() => if taken_back {
                return Err(ExecuteError::Aborted { stuck: false });
            },
            () = sleep_until(run.deadline().into()) => {
                // ComfyUI would give it back, and leave the next one waiting as well.
                let never_began = liveness.at_the_limit().filter(|_| run.started_at.is_none());
                return Err(never_began.unwrap_or_else(|| run.timed_out()));
            }
        }
    }
}

async fn turn(behind: Option<QueuedBehind<'_>>) {
    match behind {
        Some(behind) => behind.ahead_done.cancelled().await,
        None => pending().await,
    }
}

/// Once told to stop: whether ComfyUI gave the prompt back before it began it.
async fn take_back(client: &Client, prompt_id: PromptId, behind: Option<QueuedBehind<'_>>) -> bool {
    let Some(behind) = behind else { return pending().await };
    behind.stop.cancelled().await;
    client.delete_pending(prompt_id).await.is_ok()
        && matches!(look(client, prompt_id).await, Ok(PromptStatus::Nowhere))
}

impl FollowedPrompt {
    /// From now on the time counts.
    pub(super) fn new(prompt: &Prompt, limit: Duration, images_lost: bool) -> Self {
        let now = Instant::now();
        Self {
            tracker: Tracker::new(prompt),
            images: Vec::new(),
            images_lost,
            limit,
            posted_at: now,
            turn_at: Some(now),
            started_at: None,
            heard_at: now,
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
    fn take(&mut self, event: Event, weight: ByteReservation, observer: &mut dyn Observer) -> bool {
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
            Step::Output(image) => self.images.push((image, weight.keep())),
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
    async fn await_late_frames(&mut self, events: &mut Inbox, observer: &mut dyn Observer) {
        let until = Instant::now() + LATE_FRAMES;
        while self.tracker.expects_socket_outputs() && !self.images_lost && !self.tracker.has_ended() {
            match timeout_at(until.into(), events.recv()).await {
                Ok(Some(SocketEvent::Event(event, weight))) => {
                    self.take(event, weight, observer);
                }
                Ok(Some(SocketEvent::Lost) | None) | Err(_) => self.images_lost = true,
            }
        }
    }

    /// Counts the engine's time, whatever came of the prompt; `over`: its end was heard of.
    pub(super) fn count(&self, over: bool) {
        if let Some(started_at) = self.started_at {
            let ended_at = if over { self.heard_at.max(started_at) } else { Instant::now() };
            metrics::executed(self.posted_at, started_at, ended_at);
        }
    }

    /// What is left of it.
    pub(super) fn finish(self, prompt_id: PromptId, history: History, posted: Posted) -> Executed {
        let started_at = self.started_at.unwrap_or(self.posted_at);
        let cached: Vec<_> = history.cached_nodes();
        let is_lost = |node: &&String| self.images_lost || cached.contains(node);
        let images_lost = self.tracker.socket_outputs().filter(is_lost).cloned().collect();
        let mut nodes = self.tracker.into_timings();
        for node in cached {
            nodes.entry(node).or_default().cached = true;
        }
        Executed {
            broken_device: false,
            prompt_id,
            node_errors: posted.node_errors,
            images: self.images.into_iter().map(|(image, _)| image).collect(),
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
