//! The session: one task that owns the connection and replaces it when it is lost.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use lapin::Event;
use tokio::{
    sync::watch,
    time::{interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{dial::dial, error::QueueError, link::Link, topology};
use crate::config::AmqpConfig;

/// lapin announces no event for every way in which a connection can end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is wrong between this worker and the broker, if anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    disconnected: Option<String>,
    blocked: Option<String>,
    unsubscribed: Option<String>,
}

impl Health {
    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.disconnected.is_none()
    }

    /// The first thing that keeps jobs from being taken or answered: no connection, a broker that
    /// takes no messages (memory or disk alarm), or a consumer that cannot subscribe.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        let troubles = [&self.disconnected, &self.blocked, &self.unsubscribed];
        troubles.into_iter().find_map(Option::as_deref)
    }
}

/// What the session's parts share.
pub(super) struct Session {
    pub(super) config: AmqpConfig,
    pub(super) name: String,
    pub(super) health: watch::Sender<Health>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    link: watch::Sender<Option<Arc<Link>>>,
}

impl Session {
    /// Connects and checks or declares the topology, once.
    pub(super) async fn open(config: &AmqpConfig, name: &str) -> Result<Arc<Self>, QueueError> {
        let link = establish(config, name, 1).await?;
        let session = Arc::new(Self {
            config: config.clone(),
            name: name.to_owned(),
            health: watch::Sender::new(Health::default()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            link: watch::Sender::new(Some(Arc::clone(&link))),
        });
        session.tasks.spawn(supervise(Arc::clone(&session), link));
        Ok(session)
    }

    /// The connection in use, if it is not known to be lost.
    pub(super) fn current_link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone().filter(|link| !link.is_lost())
    }

    /// Waits for a connection; `None` once the session is closed.
    pub(super) async fn link(&self) -> Option<Arc<Link>> {
        let mut links = self.link.subscribe();
        let mut look = interval(LOOK_EVERY);
        loop {
            if self.stop.is_cancelled() {
                return None;
            }
            let link = links.borrow_and_update().clone();
            match link {
                Some(link) if !link.is_lost() => return Some(link),
                _ => {}
            }
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = links.changed() => changed.ok()?,
                _ = look.tick() => {}
            }
        }
    }

    /// Notes whether jobs can be received.
    pub(super) fn set_unsubscribed(&self, why: Option<String>) {
        self.health.send_if_modified(|health| {
            let changed = health.unsubscribed != why;
            health.unsubscribed = why;
            changed
        });
    }
}

/// The pauses between tries: short at first, jittered because a whole fleet reconnects at once.
pub(super) fn pauses() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}

async fn establish(config: &AmqpConfig, name: &str, epoch: u64) -> Result<Arc<Link>, QueueError> {
    let (connection, socket) = dial(config, name).await?;
    let link = Link::new(epoch, connection, socket);
    match topology::ensure(&link, config).await {
        Ok(()) => Ok(link),
        Err(error) => {
            link.close().await;
            Err(error)
        }
    }
}

async fn supervise(session: Arc<Session>, mut link: Arc<Link>) {
    loop {
        let why = tokio::select! {
            () = session.stop.cancelled() => None,
            why = watch_link(&session, &link) => Some(why),
        };
        // Off before anything is awaited: nobody may start on a lost connection.
        session.link.send_replace(None);
        let reason = why.as_deref().unwrap_or("closed").to_owned();
        link.fail(&reason);
        session.health.send_modify(|health| {
            health.disconnected = Some(reason);
            health.blocked = None;
        });
        match why {
            None => return link.close().await,
            Some(why) => {
                tracing::warn!(epoch = link.epoch, reason = why, "lost the connection to the broker");
                let old = link.clone();
                session.tasks.spawn(async move { old.close().await });
            }
        }
        let Some(next) = reconnect(&session, link.epoch + 1).await else { return };
        tracing::info!(
            epoch = next.epoch,
            address = session.config.address(),
            "connected to the broker again"
        );
        crate::metrics::reconnected();
        session.health.send_modify(|health| health.disconnected = None);
        session.link.send_replace(Some(Arc::clone(&next)));
        link = next;
    }
}

/// Ends, with the reason, when the connection is lost.
async fn watch_link(session: &Session, link: &Link) -> String {
    let mut events = pin!(link.connection.events_listener());
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            why = link.failed() => return why,
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "the broker takes no messages for now");
                    session.health.send_modify(|health| health.blocked = Some(format!("blocked: {reason}")));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker takes messages again");
                    session.health.send_modify(|health| health.blocked = None);
                }
                // Channel errors come this way too: only the status tells which it was.
                Some(Event::Error(error)) if link.is_lost() => return error.to_string(),
                Some(_) => {}
                None => return "the connection ended".into(),
            },
            _ = look.tick() => if link.is_lost() {
                return "the connection ended".into();
            },
        }
    }
}

/// Tries until it succeeds or the session stops. A misconfiguration that appears while the worker
/// runs is retried as well: an operator may be mending it, and a job may be running.
async fn reconnect(session: &Session, epoch: u64) -> Option<Arc<Link>> {
    let mut pauses = pauses();
    loop {
        let pause = pauses.next().unwrap_or(Duration::from_secs(5));
        tokio::select! {
            () = session.stop.cancelled() => return None,
            () = sleep(pause) => {}
        }
        let error = tokio::select! {
            () = session.stop.cancelled() => return None,
            opened = establish(&session.config, &session.name, epoch) => match opened {
                Ok(link) => return Some(link),
                Err(error) => error,
            },
        };
        tracing::warn!(%error, "cannot connect to the broker yet");
        session.health.send_modify(|health| health.disconnected = Some(error.to_string()));
    }
}
