//! What comes to a runner, and what becomes of it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use contract::{
    JobId,
    failure::{Cause, Failure},
};
use tokio_util::sync::CancellationToken;

use super::decision::{GiveBack, delay};
use crate::{
    requeue::RequeueHistory,
    telemetry::{JobSpan, redact},
};

/// A message to be run.
#[derive(Clone, Debug)]
pub struct JobMessage {
    /// The body.
    pub body: Bytes,
    /// AMQP `message_id`.
    pub message_id: Option<String>,
    /// When it was published.
    pub published_at: Option<SystemTime>,
    /// When the job expires.
    pub expires_at: Option<SystemTime>,
    /// Whether this very message was delivered before, to anybody.
    pub redelivered: bool,
    /// Why and how often it was given back until now.
    pub returned: Option<RequeueHistory>,
    /// Cancelled when the broker has taken the message back, and may give it to others.
    pub lost: CancellationToken,
    /// Whether somebody gets the answer.
    pub answerable: bool,
    /// Whether it came from a queue, to which it can be given back.
    pub queued: bool,
    /// Its delivery's.
    pub span: JobSpan,
}

impl JobMessage {
    /// A job of this machine's own: nothing but its body and a name.
    #[must_use]
    pub fn local(body: Bytes, id: String) -> Self {
        Self {
            body,
            message_id: Some(id),
            published_at: None,
            expires_at: None,
            redelivered: false,
            returned: None,
            lost: CancellationToken::new(),
            answerable: true,
            queued: false,
            span: JobSpan::local(),
        }
    }

    /// For how long it has been given back for the cause of `failure`.
    pub(super) fn waited(&self, failure: &Failure) -> Duration {
        let same = self.returned.as_ref().filter(|returned| returned.cause == failure.return_cause());
        // Clocks of workers that disagree give zero; the count of returns grows all the same.
        same.and_then(|returned| returned.since.elapsed().ok()).unwrap_or_default()
    }

    /// What the message carries when it is given back for `failure` once more.
    pub(super) fn returned_for(&self, failure: &Failure) -> RequeueHistory {
        let cause = failure.return_cause();
        match &self.returned {
            Some(before) if before.cause == cause => {
                RequeueHistory { count: before.count.saturating_add(1), ..before.clone() }
            }
            _ => RequeueHistory { cause, count: 1, since: SystemTime::now() },
        }
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum JobOutcome {
    /// Publish this result, then ack.
    Answered {
        /// The job.
        id: JobId,
        /// The result, byte for byte.
        body: Bytes,
        /// Whether it is the stored one; one that is not goes to the message's own `reply_to` only.
        stored: bool,
    },
    /// Give it back to the queue.
    HandBack {
        /// Why.
        reason: String,
        /// What was away.
        cause: Cause,
        /// By way of the delay queue, after so long; `None`: at once.
        later: Option<(Duration, RequeueHistory)>,
    },
    /// Nobody can be answered: to the dead letters.
    Reject {
        /// Why.
        reason: String,
    },
}

impl JobOutcome {
    /// `incoming` goes back for `failure`.
    pub(super) fn hand_back(incoming: &JobMessage, failure: &Failure, give_back: GiveBack) -> Self {
        let later = (give_back == GiveBack::Later).then(|| {
            let returned = incoming.returned_for(failure);
            (delay(returned.count), returned)
        });
        let (reason, cause) = (redact(&failure.to_string()).into_owned(), failure.cause());
        incoming.span.goes_back(&reason, cause != Cause::None);
        Self::HandBack { reason, cause, later }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_count_in_a_row_for_one_cause() {
        let mut incoming = JobMessage::local(Bytes::new(), "j".to_owned());
        let input = Failure::InputUnavailable(String::new());
        let mut delays = Vec::new();
        for count in 1..=3 {
            let JobOutcome::HandBack { later: Some((delay, returned)), cause: Cause::Input, .. } =
                JobOutcome::hand_back(&incoming, &input, GiveBack::Later)
            else {
                panic!("not given back later")
            };
            assert_eq!((returned.count, returned.cause.as_str()), (count, "input"));
            delays.push(delay);
            incoming.returned = Some(returned);
        }
        assert!(delays.is_sorted() && delays.first() < delays.last());
        let moment = |moment: &str| Failure::CopyRunning(moment.to_owned());
        assert_eq!(incoming.returned_for(&moment("a.1")).count, 1, "another cause");
        incoming.returned = Some(incoming.returned_for(&moment("a.1")));
        assert_eq!(incoming.returned_for(&moment("a.1")).count, 2);
        assert_eq!(incoming.returned_for(&moment("a.2")).count, 1, "the attempt lives");

        let since = SystemTime::now() - Duration::from_secs(60);
        incoming.returned = Some(RequeueHistory { since, ..incoming.returned_for(&input) });
        assert!(incoming.waited(&input) >= Duration::from_secs(60));
        assert_eq!(incoming.waited(&moment("a.1")), Duration::ZERO);
    }
}
