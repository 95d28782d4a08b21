//! The session: a task for each of its two connections, which owns it and replaces it when it is lost.

use std::{pin::pin, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt;
use lapin::Event;
use tokio::{
    sync::watch,
    time::{interval, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{connection::BrokerConnection, dial::dial, error::QueueError, topology};
use crate::config::AmqpConfig;

/// lapin announces no event for every way in which a connection can end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a connection is for. The broker stops reading from one that has published while it is short of
/// memory or disk, for minutes: jobs, acks and heartbeats go by one that never publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Declarations, deliveries, acks, gets, private queues.
    Consume,
    /// Results, events, jobs, commands.
    Publish,
}

impl Role {
    /// As the broker's list of connections shows it behind the worker's id.
    fn word(self) -> &'static str {
        match self {
            Self::Consume => "consume",
            Self::Publish => "publish",
        }
    }
}

/// What is wrong between this worker and the broker, if anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    consuming: LineHealth,
    publishing: LineHealth,
    unsubscribed: Option<String>,
    unheard: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct LineHealth {
    disconnected: Option<String>,
    blocked: Option<String>,
}

impl Health {
    /// Whether both connections are there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.consuming.disconnected.is_none() && self.publishing.disconnected.is_none()
    }

    /// The first thing that keeps jobs from being taken or answered: no connection, a broker that
    /// takes no messages (memory or disk alarm), or a consumer that cannot subscribe.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        let Self { consuming, publishing, unsubscribed, unheard: _ } = self;
        let lost = [&consuming.disconnected, &publishing.disconnected];
        let troubles = lost.into_iter().chain([&consuming.blocked, &publishing.blocked, unsubscribed]);
        troubles.into_iter().find_map(Option::as_deref)
    }

    /// What somebody should change, though jobs are taken and answered: results that the results exchange
    /// does not pass on.
    #[must_use]
    pub fn warning(&self) -> Option<&str> {
        self.unheard.as_deref()
    }

    fn of(&mut self, role: Role) -> &mut LineHealth {
        match role {
            Role::Consume => &mut self.consuming,
            Role::Publish => &mut self.publishing,
        }
    }
}

/// What the session's parts share.
pub(super) struct Session {
    pub(super) config: AmqpConfig,
    pub(super) name: String,
    pub(super) health: watch::Sender<Health>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    consuming: watch::Sender<Option<Arc<BrokerConnection>>>,
    publishing: watch::Sender<Option<Arc<BrokerConnection>>>,
    /// Held by who publishes a direct reply.
    pub(super) direct_replies: tokio::sync::Mutex<()>,
}

impl Session {
    /// Connects and checks or declares the topology, once.
    pub(super) async fn open(config: &AmqpConfig, name: &str) -> Result<Arc<Self>, QueueError> {
        let opening = |role| establish(config, name, role, 1);
        let (consuming, publishing) = tokio::join!(opening(Role::Consume), opening(Role::Publish));
        let (consuming, publishing) = match (consuming, publishing) {
            (Ok(consuming), Ok(publishing)) => (consuming, publishing),
            (Ok(link), Err(error)) | (Err(error), Ok(link)) => {
                link.close().await;
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error),
        };
        let session = Arc::new(Self {
            config: config.clone(),
            name: name.to_owned(),
            health: watch::Sender::new(Health::default()),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            consuming: watch::Sender::new(Some(Arc::clone(&consuming))),
            publishing: watch::Sender::new(Some(Arc::clone(&publishing))),
            direct_replies: tokio::sync::Mutex::default(),
        });
        for (role, link) in [(Role::Consume, consuming), (Role::Publish, publishing)] {
            session.tasks.spawn(supervise(Arc::clone(&session), role, link));
        }
        Ok(session)
    }

    fn line(&self, role: Role) -> &watch::Sender<Option<Arc<BrokerConnection>>> {
        match role {
            Role::Consume => &self.consuming,
            Role::Publish => &self.publishing,
        }
    }

    /// The connection in use, if it is not known to be lost.
    pub(super) fn current_link(&self, role: Role) -> Option<Arc<BrokerConnection>> {
        self.line(role).borrow().clone().filter(|link| !link.is_lost())
    }

    /// Waits for a connection; `None` once the session is closed.
    pub(super) async fn link(&self, role: Role) -> Option<Arc<BrokerConnection>> {
        let mut links = self.line(role).subscribe();
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

    /// Notes why the results exchange passes a result on to nobody, if so; whether that is news.
    pub(super) fn results_unheard(&self, why: Option<String>) -> bool {
        self.health.send_if_modified(|health| {
            let changed = health.unheard != why;
            health.unheard = why;
            changed
        })
    }

    fn set_health(&self, role: Role, change: impl FnOnce(&mut LineHealth)) {
        self.health.send_modify(|health| change(health.of(role)));
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

async fn establish(
    config: &AmqpConfig,
    name: &str,
    role: Role,
    epoch: u64,
) -> Result<Arc<BrokerConnection>, QueueError> {
    let (connection, socket) = dial(config, &format!("{name} {}", role.word())).await?;
    let link = BrokerConnection::new(epoch, connection, socket);
    if role == Role::Publish {
        return Ok(link);
    }
    match topology::ensure(&link, config).await {
        Ok(()) => Ok(link),
        Err(error) => {
            link.close().await;
            Err(error)
        }
    }
}

async fn supervise(session: Arc<Session>, role: Role, mut link: Arc<BrokerConnection>) {
    let line = session.line(role);
    loop {
        let why = tokio::select! {
            () = session.stop.cancelled() => None,
            why = watch_link(&session, role, &link) => Some(why),
        };
        // Off before anything is awaited: nobody may start on a lost connection.
        line.send_replace(None);
        let reason = why.as_deref().unwrap_or("closed").to_owned();
        link.fail(&reason);
        session.set_health(role, |line| *line = LineHealth { disconnected: Some(reason), blocked: None });
        match why {
            None => return link.close().await,
            Some(why) => {
                tracing::warn!(
                    epoch = link.epoch,
                    connection = role.word(),
                    reason = why,
                    "lost the connection to the broker"
                );
                let old = link.clone();
                session.tasks.spawn(async move { old.close().await });
            }
        }
        let Some(next) = reconnect(&session, role, link.epoch + 1).await else { return };
        tracing::info!(
            epoch = next.epoch,
            connection = role.word(),
            address = session.config.address(),
            "connected to the broker again"
        );
        crate::metrics::reconnected();
        session.set_health(role, |line| line.disconnected = None);
        line.send_replace(Some(Arc::clone(&next)));
        link = next;
    }
}

/// Ends, with the reason, when the connection is lost.
async fn watch_link(session: &Session, role: Role, link: &BrokerConnection) -> String {
    let mut events = pin!(link.connection.events_listener());
    let mut look = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            why = link.failed() => return why,
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(reason, "the broker takes no messages for now");
                    session.set_health(role, |line| line.blocked = Some(format!("blocked: {reason}")));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!("the broker takes messages again");
                    session.set_health(role, |line| line.blocked = None);
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
async fn reconnect(session: &Session, role: Role, epoch: u64) -> Option<Arc<BrokerConnection>> {
    let mut pauses = pauses();
    loop {
        let pause = pauses.next().unwrap_or(Duration::from_secs(5));
        tokio::select! {
            () = session.stop.cancelled() => return None,
            () = sleep(pause) => {}
        }
        let error = tokio::select! {
            () = session.stop.cancelled() => return None,
            opened = establish(&session.config, &session.name, role, epoch) => match opened {
                Ok(link) => return Some(link),
                Err(error) => error,
            },
        };
        tracing::warn!(%error, connection = role.word(), "cannot connect to the broker yet");
        session.set_health(role, |line| line.disconnected = Some(error.to_string()));
    }
}
