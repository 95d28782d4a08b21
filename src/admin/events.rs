//! `/events`: server-sent events. A page gets everything once, then what has changed.
//!
//! There is no queue: a listener asks the board for what has changed since it was last told, when its
//! connection takes more. One that reads slowly misses steps and costs nothing.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
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
    sync::{OwnedSemaphorePermit, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Site,
    told::{News, WorkerView},
};

/// Pages that listen at a time.
pub(super) const MOST_LISTENERS: usize = 32;
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
    site: Arc<Site>,
    changes: watch::Receiver<u64>,
    seen: Option<(u64, WorkerView)>,
    told: Instant,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

/// One message.
#[derive(Serialize)]
struct Message<'a> {
    /// Whatever was told before is void.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reset: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<&'a WorkerView>,
    /// Whether a token opens the orders.
    orders: bool,
    #[serde(flatten)]
    news: &'a News,
}

pub(super) async fn events(State(site): State<Arc<Site>>) -> Response {
    let Ok(place) = Arc::clone(&site.listeners).try_acquire_owned() else {
        let told = format!("{MOST_LISTENERS} pages are open already\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], told).into_response();
    };
    let changes = site.board.changes();
    let listener = Listener {
        site,
        changes,
        seen: None,
        told: Instant::now(),
        until: Instant::now() + TERM,
        _place: place,
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
        let message = Message { reset, worker, orders: self.site.token.is_some(), news: &news };
        let event = Event::default().json_data(message);
        self.seen = Some((news.revision, news.worker));
        event.inspect_err(|error| tracing::error!(%error, "a message for the status page")).ok()
    }
}
