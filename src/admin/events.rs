//! `/events`: server-sent events. A page gets everything once, then what has changed.
//!
//! There is no queue: a listener asks the board for what has changed since it was last told, when its
//! connection takes more. One that reads slowly misses steps and costs nothing.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    extract::State,
    http::{HeaderName, StatusCode, header::RETRY_AFTER},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures_util::stream;
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    AdminState,
    listener::Peer,
    views::{StatusDelta, WorkerView},
};

/// Pages that listen at a time.
const MAX_LISTENERS: usize = 32;
/// Of one address: nobody alone keeps all others out.
pub(super) const MAX_OF_ONE: usize = MAX_LISTENERS / 2;
/// What happens within this is told together.
const PAUSE: Duration = Duration::from_millis(150);
/// How often the broker's health is looked at: it changes beside the board.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Then a page's place is given up, and it asks for another: pages of others wait for one.
const TERM: Duration = Duration::from_secs(10 * 60);
/// A page that hears nothing cannot tell silence from a dead line: so often it is told something.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// One page.
struct Listener {
    site: Arc<AdminState>,
    changes: watch::Receiver<u64>,
    seen: Option<(u64, WorkerView)>,
    told: Instant,
    until: Instant,
    _permit: Permit,
}

/// One message.
#[derive(Serialize)]
struct PageMessage<'a> {
    /// Whatever was told before is void.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reset: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a WorkerView>,
    /// Whether a token opens the commands.
    commands: bool,
    #[serde(flatten)]
    news: &'a StatusDelta,
}

/// How many pages listen, by their addresses.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<HashMap<IpAddr, usize>>);

/// The right of a page to listen.
struct Permit {
    listeners: Arc<Listeners>,
    peer: IpAddr,
}

impl Listeners {
    fn by_peer(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.by_peer().values().sum()
    }

    fn permit(self: &Arc<Self>, peer: IpAddr) -> Option<Permit> {
        let mut by_peer = self.by_peer();
        if by_peer.values().sum::<usize>() >= MAX_LISTENERS
            || by_peer.get(&peer).is_some_and(|its| *its >= MAX_OF_ONE)
        {
            return None;
        }
        *by_peer.entry(peer).or_default() += 1;
        Some(Permit { listeners: Arc::clone(self), peer })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_peer = self.listeners.by_peer();
        let left = by_peer.remove(&self.peer).unwrap_or_default().saturating_sub(1);
        if left > 0 {
            by_peer.insert(self.peer, left);
        }
    }
}

pub(super) async fn events(
    State(site): State<Arc<AdminState>>,
    Extension(peer): Extension<Peer>,
) -> Response {
    let Some(permit) = site.listeners.permit(peer.0.ip()) else {
        let told = format!(
            "too many pages listen already: at most {MAX_OF_ONE} of an address, {MAX_LISTENERS} in all\n"
        );
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], told).into_response();
    };
    let changes = site.board.changes();
    let listener = Listener {
        site,
        changes,
        seen: None,
        told: Instant::now(),
        until: Instant::now() + TERM,
        _permit: permit,
    };
    let messages = stream::unfold(listener, |mut listener| async {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    // nginx would hold small messages back.
    ([(HeaderName::from_static("x-accel-buffering"), "no")], Sse::new(messages)).into_response()
}

impl Listener {
    /// The next message; `None`: the endpoint ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.changes.mark_unchanged();
            if let Some(event) = self.news() {
                self.told = Instant::now();
                return Some(event);
            }
            tokio::select! {
                () = self.site.closed.cancelled() => return None,
                () = sleep_until(self.until) => return None,
                changed = self.changes.changed() => {
                    changed.ok()?;
                    sleep(PAUSE).await;
                }
                () = sleep(LOOK_EVERY) => {}
            }
            if self.told.elapsed() >= SIGN_OF_LIFE {
                self.told = Instant::now();
                // One without data would reach no page.
                return Some(Event::default().event("alive").data("."));
            }
        }
    }

    /// What this page has not been told, if anything.
    fn news(&mut self) -> Option<Event> {
        let reset = self.seen.is_none();
        let news = self.site.board.news(self.seen.as_ref().map_or(0, |(revision, _)| *revision));
        let (changed, worker) = match &self.seen {
            None => (true, true),
            Some((revision, worker)) => (*revision != news.revision, *worker != news.worker),
        };
        if !changed && !worker {
            return None;
        }
        let worker = worker.then_some(&news.worker);
        let message = PageMessage { reset, worker, commands: self.site.token.is_some(), news: &news };
        let event = serde_json::to_string(&message);
        self.seen = Some((news.revision, news.worker));
        event
            .map(|json| Event::default().data(json))
            .inspect_err(|error| tracing::error!(%error, "cannot serialize an event for the status page"))
            .ok()
    }
}
