//! What comes to a runner, and what becomes of it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{JobId, failure::Failure};
use crate::telemetry::{JobSpan, redact};

/// A message to be run.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The body.
    pub body: Bytes,
    /// AMQP `message_id`.
    pub message_id: Option<String>,
    /// When it was published.
    pub published_at: Option<SystemTime>,
    /// How long after that its answer is worth anything.
    pub expiration: Option<Duration>,
    /// Cancelled when the broker has taken the message back, and may give it to others.
    pub lost: CancellationToken,
    /// Whether somebody gets the answer.
    pub answerable: bool,
    /// Its delivery's.
    pub span: JobSpan,
}

impl Incoming {
    /// A job of this machine's own: nothing but its body and a name.
    #[must_use]
    pub fn local(body: Bytes, id: String) -> Self {
        Self {
            body,
            message_id: Some(id),
            published_at: None,
            expiration: None,
            lost: CancellationToken::new(),
            answerable: true,
            span: JobSpan::local(),
        }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Ending {
    /// Publish this result, then ack.
    Answered {
        /// The job.
        id: JobId,
        /// The result, byte for byte.
        body: Bytes,
    },
    /// Give it back to the queue.
    HandBack {
        /// Why.
        reason: String,
        /// Whether the fault may last.
        fault: Fault,
    },
    /// No job, and nobody to tell: to the dead letters.
    Reject {
        /// Why.
        reason: String,
    },
}

impl Ending {
    pub(super) fn hand_back(failure: &Failure) -> Self {
        let fault = match failure {
            Failure::Draining | Failure::HeldUp => Fault::None,
            Failure::DiskFull(_) => Fault::DiskFull,
            _ => Fault::Passing,
        };
        Self::HandBack { reason: redact(&failure.to_string()).into_owned(), fault }
    }
}

/// What a hand-back says of this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing bad: it is told to end, or another can have the job earlier.
    None,
    /// Something is away: not at once again, or the job would come back in a hot loop.
    Passing,
    /// Its disk is full: other jobs are better off elsewhere, too.
    DiskFull,
}
