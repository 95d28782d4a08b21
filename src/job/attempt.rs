//! Attempts, counted in the store: `<store.uri>/<job id>/attempts/<n>.json`, created once each.
//!
//! A marker that is neither closed nor kept alive is an attempt that crashed. The broker's
//! own count cannot tell those from orderly hand-backs: RabbitMQ counts each nack, and each connection that is lost.
//!
//! Whether an open attempt lives is seen without comparing clocks. Its message tells: the broker delivers it again
//! only once the connection of the worker that had it is gone. A worker that merely lost its connection goes on and says so
//! in its marker within a moment. And a living attempt's marker changes every [`heartbeat`](super::heartbeat).

use std::time::Duration;

use bytes::Bytes;
use contract::{ObjectUri, bounds::LARGEST_RECORD, failure::Failure};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::message::JobMessage;
use crate::{
    dependency::Dependency,
    store::{Creation, ObjectStore, StoreError},
};

/// More hand-backs than any orderly life has.
const MAX_MARKERS: u32 = 1000;

/// What a worker that lost its connection may take to notice and to note it in its marker, before its job is run
/// by another, and before it is called poison.
const NOTE_LIMIT: Duration = Duration::from_secs(1);
const LAST_WORD: Duration = Duration::from_secs(5);
/// How often a marker is looked at within that time.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many returns for one unchanged marker, two minutes and more, and its attempt is dead.
const SILENT_RETURNS: u32 = 6;

/// The records of one job.
#[derive(Clone, Debug)]
pub(super) struct Records<'a> {
    store: &'a dyn ObjectStore,
    folder: ObjectUri,
    /// Tells markers of ours from others': a create whose answer was lost, which the store tried again.
    nonce: String,
    /// The span of the worker that opens an attempt.
    traceparent: Option<String>,
    /// What tells whether others could note nothing a moment ago.
    monitored: Option<Dependency>,
}

/// Where an accepted job stands.
#[derive(Debug)]
pub(super) enum Opened {
    /// Run it: this is attempt `n`.
    Attempt(OpenAttempt),
    /// It has a result already: the stored bytes; `former`: the span of an attempt at it.
    Finished { body: Bytes, former: Option<String> },
    /// The id belongs to another body.
    Conflict,
    /// Too many attempts crashed.
    Poison { attempt: OpenAttempt, crashes: u32 },
}

/// An attempt that has begun.
#[derive(Clone, Debug)]
pub(super) struct OpenAttempt {
    pub(super) number: u32,
    /// How many before it crashed.
    pub(super) crashes: u32,
    /// The span of the one before it, as a `traceparent`, where that was traced.
    pub(super) former: Option<String>,
    marker: Marker,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    attempt: u32,
    worker: String,
    /// Of the delivery.
    #[serde(default)]
    nonce: String,
    /// Empty in that of a cancel, which knows no body.
    body_sha256: String,
    /// Set when the attempt was handed back: it did not crash.
    closed: Option<String>,
    /// How often the attempt has said that it lives.
    #[serde(default)]
    beats: u32,
    /// Whether it goes on without its message, which the broker has taken back.
    #[serde(default)]
    disowned: bool,
    /// Earlier attempts that were found to have crashed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dead: Vec<u32>,
    /// The attempt's span, for those that come after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

impl Marker {
    fn new(number: u32, nonce: &str, worker: &str, digest: &str) -> Self {
        Self {
            version: 1,
            attempt: number,
            worker: worker.to_owned(),
            nonce: nonce.to_owned(),
            body_sha256: digest.to_owned(),
            closed: None,
            beats: 0,
            disowned: false,
            dead: Vec::new(),
            traceparent: None,
        }
    }

    fn is_of(&self, digest: &str) -> bool {
        self.body_sha256.is_empty() || self.body_sha256 == digest
    }
}

impl<'a> Records<'a> {
    /// # Errors
    /// Never for a checked job id.
    pub(super) fn new(store: &'a dyn ObjectStore, base: &ObjectUri, job: &str) -> Result<Self, Failure> {
        let folder = base.join(job).map_err(|error| Failure::Internal(error.to_string()))?;
        let nonce = Uuid::new_v4().simple().to_string();
        Ok(Self { store, folder, nonce, traceparent: None, monitored: None })
    }

    /// Attempts that are opened have this span.
    pub(super) fn traced(self, traceparent: Option<String>) -> Self {
        Self { traceparent, ..self }
    }

    /// The store is looked after: once it is back, others get longer to note what they could not before.
    pub(super) fn monitored(self, store: &Dependency) -> Self {
        Self { monitored: Some(store.clone()), ..self }
    }

    fn is_patient(&self) -> bool {
        self.monitored.as_ref().is_some_and(Dependency::came_lately)
    }

    fn at(&self, name: &str) -> Result<ObjectUri, Failure> {
        self.folder.join(name).map_err(|error| Failure::Internal(error.to_string()))
    }

    /// Whether another body has had this id first. What is no marker says nothing.
    pub(super) async fn has_other_body(&self, digest: &str) -> Result<bool, Failure> {
        match self.store.read(&self.at("attempts/1.json")?, LARGEST_RECORD).await {
            Ok(first) => Ok(serde_json::from_slice(&first).is_ok_and(|first: Marker| !first.is_of(digest))),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Begins an attempt at the job of that body, or finds that there is nothing to run.
    ///
    /// # Errors
    /// [`Failure::CopyRunning`] while another delivery of it is being run.
    pub(super) async fn open(
        &self,
        digest: &str,
        worker: &str,
        max_crashes: u32,
        delivery: &JobMessage,
    ) -> Result<Opened, Failure> {
        let mut earlier: Vec<Marker> = Vec::new();
        for number in 1..=MAX_MARKERS {
            // The first is created unseen: most jobs come once. The others are looked at before, since a copy of a
            // job that is being run must leave no marker.
            if number > 1 {
                match self.find_marker(number).await? {
                    // An earlier try to open it got as far as this.
                    Some(ours) if ours.nonce == self.nonce => {
                        return self.judge(ours, &earlier, max_crashes).await;
                    }
                    Some(marker) => {
                        earlier.push(marker);
                        continue;
                    }
                    None => self.await_others(&mut earlier, delivery).await?,
                }
            }
            let traceparent = self.traceparent.clone();
            let dead = earlier.iter().filter(|marker| marker.closed.is_none()).map(|marker| marker.attempt);
            let dead = dead.collect();
            let marker = Marker { traceparent, dead, ..Marker::new(number, &self.nonce, worker, digest) };
            let Some(other) = self.begin(&marker).await? else {
                return self.judge(marker, &earlier, max_crashes).await;
            };
            if !other.is_of(digest) {
                return Ok(Opened::Conflict);
            }
            if number == 1
                && let Some(body) = self.result().await?
            {
                return Ok(Opened::Finished { body, former: other.traceparent });
            }
            earlier.push(other);
        }
        Err(Failure::Internal(format!("{MAX_MARKERS} attempts at one job")))
    }

    /// Returns once every earlier attempt has ended, handed back or crashed.
    async fn await_others(&self, earlier: &mut [Marker], delivery: &JobMessage) -> Result<(), Failure> {
        let until = Instant::now() + if self.is_patient() { LAST_WORD } else { NOTE_LIMIT };
        loop {
            let dead: Vec<u32> = earlier.iter().flat_map(|marker| marker.dead.iter().copied()).collect();
            let may_live = |marker: &&mut Marker| marker.closed.is_none() && !dead.contains(&marker.attempt);
            let Some(last) = earlier.iter_mut().rev().find(may_live) else { return Ok(()) };
            // Had it been delivered again, the broker had taken it back from the worker that runs it.
            if last.disowned || !delivery.redelivered {
                let copy = Failure::CopyRunning(format!("{}.{}", last.nonce, last.beats));
                let returned = delivery.returned_for(&copy).count;
                return if returned > SILENT_RETURNS { Ok(()) } else { Err(copy) };
            }
            if Instant::now() >= until {
                return Ok(());
            }
            sleep(LOOK_EVERY).await;
            if let Some(now) = self.find_marker(last.attempt).await? {
                *last = now;
            }
        }
    }

    /// What `marker`, just created, begins.
    async fn judge(&self, marker: Marker, earlier: &[Marker], max_crashes: u32) -> Result<Opened, Failure> {
        let open = |markers: &[Marker]| {
            u32::try_from(markers.iter().filter(|marker| marker.closed.is_none()).count()).unwrap_or(u32::MAX)
        };
        let (number, crashes) = (marker.attempt, open(earlier));
        let former = earlier.iter().rev().find_map(|marker| marker.traceparent.clone());
        let attempt = OpenAttempt { number, crashes, former, marker };
        if crashes < max_crashes {
            return Ok(Opened::Attempt(attempt));
        }
        // The last of them may live: a worker whose connection broke goes on, and says so in its marker.
        sleep(LAST_WORD).await;
        if let Some(body) = self.result().await? {
            return Ok(Opened::Finished { body, former: attempt.former });
        }
        let mut now = Vec::new();
        for earlier in 1..number {
            now.extend(self.find_marker(earlier).await?);
        }
        if open(&now) < max_crashes {
            Ok(Opened::Attempt(attempt))
        } else {
            Ok(Opened::Poison { attempt, crashes })
        }
    }

    /// Creates a marker; the one that is there instead, if another's is.
    async fn begin(&self, marker: &Marker) -> Result<Option<Marker>, Failure> {
        let uri = self.at(&format!("attempts/{}.json", marker.attempt))?;
        let body = serde_json::to_vec(marker).map_err(|error| Failure::Internal(error.to_string()))?;
        match self.store.create(&uri, body.into(), JSON).await.map_err(unavailable)? {
            Creation::Created => Ok(None),
            Creation::Exists => {
                Ok(Some(self.marker(&uri).await?).filter(|found| found.nonce != marker.nonce))
            }
        }
    }

    /// Marks a job as had before any worker has it, so that the first one looks for a result; whether
    /// none has had it.
    pub(super) async fn create_cancel_marker(&self, who: &str) -> Result<bool, Failure> {
        let marker = Marker { closed: Some("cancelled".to_owned()), ..Marker::new(1, &self.nonce, who, "") };
        Ok(self.begin(&marker).await?.is_none())
    }

    async fn marker(&self, uri: &ObjectUri) -> Result<Marker, Failure> {
        read_marker(uri, self.store.read(uri, LARGEST_RECORD).await.map_err(unavailable)?)
    }

    async fn find_marker(&self, number: u32) -> Result<Option<Marker>, Failure> {
        let uri = self.at(&format!("attempts/{number}.json"))?;
        match self.store.read(&uri, LARGEST_RECORD).await {
            Ok(marker) => read_marker(&uri, marker).map(Some),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Says that an attempt ended and did not crash.
    pub(super) async fn close(&self, attempt: &OpenAttempt, reason: &str) -> Result<(), Failure> {
        let closed = Some(reason.to_owned());
        self.write(attempt, Marker { closed, ..attempt.marker.clone() }).await
    }

    /// Says that an attempt lives, for the `beats`th time, and whether it has lost its message.
    pub(super) async fn note(
        &self,
        attempt: &OpenAttempt,
        beats: u32,
        disowned: bool,
    ) -> Result<(), Failure> {
        self.write(attempt, Marker { beats, disowned, ..attempt.marker.clone() }).await
    }

    async fn write(&self, attempt: &OpenAttempt, marker: Marker) -> Result<(), Failure> {
        let body = serde_json::to_vec(&marker).map_err(|error| Failure::Internal(error.to_string()))?;
        let uri = self.at(&format!("attempts/{}.json", attempt.number))?;
        let content = crate::store::Content::Bytes(body.into());
        self.store.put(&uri, content, JSON).await.map(drop).map_err(unavailable)
    }

    /// The stored result, if there is one.
    pub(super) async fn result(&self) -> Result<Option<Bytes>, Failure> {
        match self.store.read(&self.at("result.json")?, LARGEST_RECORD).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(unavailable(error)),
        }
    }

    /// Removes the result, then the markers from the last to the first: cut short, what is left is
    /// found by another call.
    pub(super) async fn remove(&self) -> Result<(), Failure> {
        self.store.delete(&self.at("result.json")?).await.map_err(unavailable)?;
        let mut markers = Vec::new();
        for number in 1..=MAX_MARKERS {
            let uri = self.at(&format!("attempts/{number}.json"))?;
            match self.store.open(&uri).await {
                Ok(_) => markers.push(uri),
                Err(StoreError::NotFound { .. }) => break,
                Err(error) => return Err(unavailable(error)),
            }
        }
        for uri in markers.iter().rev() {
            self.store.delete(uri).await.map_err(unavailable)?;
        }
        Ok(())
    }

    /// Makes `result` the truth about the job, unless there is one already: the bytes that are.
    pub(super) async fn settle(&self, result: Bytes) -> Result<Bytes, Failure> {
        match self.store.create(&self.at("result.json")?, result.clone(), JSON).await.map_err(unavailable)? {
            Creation::Created => Ok(result),
            Creation::Exists => self
                .result()
                .await?
                .ok_or_else(|| Failure::StoreUnavailable("result.json exists and cannot be read".to_owned())),
        }
    }
}

fn read_marker(uri: &ObjectUri, marker: Bytes) -> Result<Marker, Failure> {
    serde_json::from_slice(&marker)
        .map_err(|error| Failure::StoreUnavailable(format!("{uri}: not a marker: {error}")))
}

/// The media type of every record.
pub(super) const JSON: &str = "application/json";

/// The store is ours: whatever it says, it is not the job's fault.
fn unavailable(error: StoreError) -> Failure {
    Failure::StoreUnavailable(error.to_string())
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
