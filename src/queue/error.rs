//! What can go wrong with the broker, sorted by what to do next.

use std::time::Duration;

use lapin::ErrorKind;
use thiserror::Error;
use tokio::time::timeout;

/// Why there is no session with the broker.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum QueueError {
    /// Trying again cannot help: credentials, virtual host, permissions, or a queue or exchange
    /// that is missing or differs. The text names what to change.
    #[error("{0}")]
    Misconfigured(String),
    /// The broker cannot be reached or does not answer: worth another try.
    #[error("{0}")]
    Unavailable(String),
    /// The caller's stop token ended the wait.
    #[error("stopped while waiting for the broker")]
    Stopped,
}

/// Why a message is not known to be in a queue.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// No queue takes what is published there.
    #[error("no queue is bound for {routing_key:?} at {exchange:?}")]
    Unroutable {
        /// The exchange; empty for the default one.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker's `max_message_size`, or a property longer than AMQP's 255 bytes.
    #[error("the broker takes no message of this size: {0}")]
    TooLarge(String),
    /// The broker's refusal, such as missing write permission or exchange.
    #[error("the broker refuses the message: {0}")]
    Refused(String),
    /// The deadline passed without a confirm; the message may be in its queue or not.
    #[error("no confirm from the broker in time: {0}")]
    Unconfirmed(String),
}

/// Why a result did not reach its `reply_to` or the results exchange, which is no failure: `result.json`
/// stands.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReplyWarning {
    /// The queue is gone.
    #[error("the reply queue {0:?} does not exist (any more)")]
    Unroutable(String),
    /// `amqp.reply_to_allow` leaves it out, or it is the worker's own.
    #[error("amqp.reply_to_allow does not permit the reply queue {0:?}")]
    Forbidden(String),
    /// The result is larger than the broker takes.
    #[error("the result is too large for {0:?}, which got a short answer that says where it is: {1}")]
    TooLarge(String, String),
    /// The queue is full, or takes nothing from this user.
    #[error("{0:?} takes no result: {1}")]
    Refused(String, String),
    /// No queue is bound to the results exchange.
    #[error(
        "no queue is bound to amqp.results_exchange {0:?}, and what it got nobody gets later: bind one for `#`, or \
         unset amqp.results_exchange (said once, counted in comfy_worker_results_unsent_total)"
    )]
    Unheard(String),
}

impl ReplyWarning {
    /// For metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Unroutable(_) | Self::Unheard(_) => "unroutable",
            Self::Forbidden(_) => "forbidden",
            Self::TooLarge(..) => "too_large",
            Self::Refused(..) => "refused",
        }
    }
}

/// An operation of the broker's that did not succeed.
#[derive(Clone, Debug, Error)]
pub(super) enum BrokerError {
    #[error("{0} was not answered within {1:?}")]
    Silent(&'static str, Duration),
    #[error("{0}")]
    Broker(lapin::Error),
    #[error("{0}")]
    Unfit(String),
}

impl BrokerError {
    /// Code and text of a close that the broker sent: `(404, "NOT_FOUND - …")`.
    pub(super) fn refusal(&self) -> Option<(u16, String)> {
        match self {
            Self::Broker(error) => match error.kind() {
                ErrorKind::ProtocolError(error) => Some((error.get_id(), error.get_message().to_string())),
                _ => None,
            },
            Self::Silent(..) | Self::Unfit(_) => None,
        }
    }
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        Self::Broker(error)
    }
}

/// Waits for an answer of the broker's, `limit` at most: lapin itself waits forever.
pub(super) async fn within<T>(
    limit: Duration,
    what: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(BrokerError::Broker),
        Err(_) => Err(BrokerError::Silent(what, limit)),
    }
}
