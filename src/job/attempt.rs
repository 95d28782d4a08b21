//! Attempts, counted in the store: `<store.uri>/<job id>/attempts/<n>.json`, created once each.
//!
//! A marker that was never closed is an attempt that ended without a word: a crash. The broker's
//! own count cannot tell those from orderly hand-backs (FAULTS, "measured on RabbitMQ 3.10.8").

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use uuid::Uuid;

use super::failure::Failure;
use crate::store::{Creation, ObjectStore, ObjectUri, StoreError};

/// Largest marker or manifest that is read back.
const LARGEST_RECORD: u64 = 64 << 20;
/// More hand-backs than any orderly life has.
const MOST_MARKERS: u32 = 1000;

/// What a worker that lost its connection may take to notice and to note it in its marker.
const LAST_WORD: Duration = Duration::from_secs(5);

/// The records of one job.
#[derive(Clone, Debug)]
pub(super) struct Records<'a> {
    store: &'a dyn ObjectStore,
    folder: ObjectUri,
    /// The span of whoever opens an attempt.
    traceparent: Option<String>,
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
    /// Too many attempts ended without a word.
    Poison { attempt: OpenAttempt, crashes: u32 },
}

/// An attempt that has begun.
#[derive(Clone, Debug)]
pub(super) struct OpenAttempt {
    pub(super) number: u32,
    /// How many before it ended without a word.
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
    /// Tells a marker of ours, whose answer was lost and which the store tried again, from others'.
    #[serde(default)]
    nonce: String,
    /// Empty in that of a cancel, which knows no body.
    body_sha256: String,
    /// Set when the attempt ended in good order: handed back, not crashed.
    closed: Option<String>,
    /// The attempt's span, for those that come after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

impl Marker {
    fn new(number: u32, worker: &str, digest: &str) -> Self {
        Self {
            version: 1,
            attempt: number,
            worker: worker.to_owned(),
            nonce: Uuid::new_v4().simple().to_string(),
            body_sha256: digest.to_owned(),
            closed: None,
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
        Ok(Self { store, folder, traceparent: None })
    }

    /// Attempts that are opened have this span.
    pub(super) fn traced(self, traceparent: Option<String>) -> Self {
        Self { traceparent, ..self }
    }

    fn at(&self, name: &str) -> Result<ObjectUri, Failure> {
        self.folder.join(name).map_err(|error| Failure::Internal(error.to_string()))
    }

    /// Begins an attempt, or finds that there is nothing to run.
    pub(super) async fn open(&self, digest: &str, worker: &str, max_crashes: u32) -> Result<Opened, Failure> {
        let opened = self.count_and_begin(digest, worker, max_crashes).await?;
        let Opened::Poison { attempt, crashes } = opened else { return Ok(opened) };
        // The last of them may live: a worker whose connection broke goes on, and says so in its marker.
        sleep(LAST_WORD).await;
        if let Some(body) = self.result().await? {
            return Ok(Opened::Finished { body, former: attempt.former });
        }
        let still_open = self.open_before(attempt.number).await?;
        if still_open < max_crashes {
            Ok(Opened::Attempt(attempt))
        } else {
            Ok(Opened::Poison { attempt, crashes })
        }
    }

    /// How many attempts before that one ended without a word, or have not ended.
    async fn open_before(&self, number: u32) -> Result<u32, Failure> {
        let mut open = 0;
        for earlier in 1..number {
            let marker = self.marker(&self.at(&format!("attempts/{earlier}.json"))?).await?;
            open += u32::from(marker.closed.is_none());
        }
        Ok(open)
    }

    async fn count_and_begin(&self, digest: &str, worker: &str, max_crashes: u32) -> Result<Opened, Failure> {
        let (mut crashes, mut former) = (0, None);
        for number in 1..=MOST_MARKERS {
            let traceparent = self.traceparent.clone();
            let marker = Marker { traceparent, ..Marker::new(number, worker, digest) };
            let Some(earlier) = self.begin(&marker).await? else {
                let attempt = OpenAttempt { number, crashes, former, marker };
                return Ok(if crashes >= max_crashes {
                    Opened::Poison { attempt, crashes }
                } else {
                    Opened::Attempt(attempt)
                });
            };
            if !earlier.is_of(digest) {
                return Ok(Opened::Conflict);
            }
            former = earlier.traceparent.or(former);
            if number == 1
                && let Some(body) = self.result().await?
            {
                return Ok(Opened::Finished { body, former });
            }
            crashes += u32::from(earlier.closed.is_none());
        }
        Err(Failure::Internal(format!("{MOST_MARKERS} attempts at one job")))
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
    pub(super) async fn forestall(&self, who: &str) -> Result<bool, Failure> {
        let marker = Marker { closed: Some("cancelled".to_owned()), ..Marker::new(1, who, "") };
        Ok(self.begin(&marker).await?.is_none())
    }

    async fn marker(&self, uri: &ObjectUri) -> Result<Marker, Failure> {
        let marker = self.store.read(uri, LARGEST_RECORD).await.map_err(unavailable)?;
        serde_json::from_slice(&marker)
            .map_err(|error| Failure::StoreUnavailable(format!("{uri}: not a marker: {error}")))
    }

    /// Says that an attempt ended in good order.
    pub(super) async fn close(&self, attempt: &OpenAttempt, reason: &str) -> Result<(), Failure> {
        let marker = Marker { closed: Some(reason.to_owned()), ..attempt.marker.clone() };
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
        for number in 1..=MOST_MARKERS {
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

/// The media type of every record.
pub(super) const JSON: &str = "application/json";

/// The store is ours: whatever it says, it is not the job's fault.
fn unavailable(error: StoreError) -> Failure {
    Failure::StoreUnavailable(error.to_string())
}
