//! Reliable publishing: mandatory, confirmed, retried until a deadline.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use lapin::{BasicProperties, Confirmation, options::BasicPublishOptions, types::ShortString};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    connection::BrokerConnection,
    error::{BrokerError, PublishError, within},
    refusal,
    session::{Role, Session, pauses},
};

/// Longest wait for one confirm, plus a second for each [`BYTES_A_SECOND`] of the body.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);
const BYTES_A_SECOND: u64 = 1 << 20;
/// Unanswered publishes on one connection until it is given up. Not the first: that makes every
/// job in hand stale, and a queue that has lost its majority would not be helped.
const SILENCES: u32 = 2;

/// A message and where it goes.
pub(super) struct Envelope {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) body: Bytes,
}

/// How often a refusal is worth another try.
#[derive(Clone, Copy)]
pub(super) struct RetryPolicy {
    /// Try again while no queue is bound; else that is final.
    pub(super) unroutable: bool,
    /// Tries while the queue takes nothing (it is full); `None`: up to the deadline.
    pub(super) nacks: Option<u32>,
}

/// What the address of a client begins with that waits for a direct reply. RabbitMQ reads where that is from the rest of it,
/// and a name that is none ends the connection.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";
const INTERNAL_ERROR: u16 = 541;
/// Connections that the broker may end on one direct reply.
const BREAKS: u32 = 2;

enum PublishAttempt {
    Routed,
    /// The broker failed on it, and ended the connection.
    Broke(String),
    Unroutable,
    Nacked,
    Final(PublishError),
    Lost(String),
    Silent,
}

/// Publishes until the broker confirms it, or `deadline` passes. After an attempt without an answer
/// the message may be there twice.
pub(super) async fn publish(
    session: &Session,
    envelope: &Envelope,
    policy: RetryPolicy,
    deadline: Instant,
) -> Result<(), PublishError> {
    let unroutable = || PublishError::Unroutable {
        exchange: envelope.exchange.to_string(),
        routing_key: envelope.routing_key.to_string(),
    };
    let mut last = PublishError::Unconfirmed("there is no connection to the broker".into());
    let (mut nacks, mut silences, mut breaks, mut pauses) = (0, 0, 0, pauses());
    // Nothing else that is published makes a broker fail, so that with one at a time it is known which one does.
    let is_direct =
        envelope.exchange.as_str().is_empty() && envelope.routing_key.as_str().starts_with(DIRECT_REPLY);
    loop {
        let link = match timeout_at(deadline, session.link(Role::Publish)).await {
            Ok(Some(link)) => link,
            Ok(None) => return Err(PublishError::Unconfirmed("the session was closed".into())),
            Err(_) => return Err(last),
        };
        let one = async {
            let _alone = if is_direct { Some(session.direct_replies.lock().await) } else { None };
            // Another's reply may have ended it meanwhile, which says nothing about this one.
            if is_direct && !link.connection.status().connected() {
                return PublishAttempt::Lost("the connection is gone".into());
            }
            attempt(&link, envelope).await
        };
        last = match timeout_at(deadline, one).await {
            Err(_) => {
                return Err(match last {
                    PublishError::Unconfirmed(_) => PublishError::Unconfirmed("the deadline passed".into()),
                    definite => definite,
                });
            }
            Ok(PublishAttempt::Routed) => return Ok(()),
            Ok(PublishAttempt::Final(error)) => return Err(error),
            Ok(PublishAttempt::Unroutable) if policy.unroutable => unroutable(),
            Ok(PublishAttempt::Unroutable) => return Err(unroutable()),
            Ok(PublishAttempt::Nacked) => {
                nacks += 1;
                let error = PublishError::Refused("the queue takes no more (nack)".into());
                if policy.nacks.is_some_and(|limit| nacks >= limit) {
                    return Err(error);
                }
                error
            }
            Ok(PublishAttempt::Broke(reason)) => {
                breaks += 1;
                if is_direct && breaks >= BREAKS {
                    return Err(PublishError::Refused(format!(
                        "the broker fails on that reply_to: {reason}"
                    )));
                }
                PublishError::Unconfirmed(reason)
            }
            Ok(PublishAttempt::Lost(reason)) => PublishError::Unconfirmed(reason),
            Ok(PublishAttempt::Silent) => {
                silences += 1;
                if silences % SILENCES == 0 && !link.connection.status().blocked() {
                    link.fail("publishes are not confirmed");
                }
                PublishError::Unconfirmed("the broker does not confirm".into())
            }
        };
        tracing::debug!(error = %last, epoch = link.epoch, "publishing a message again");
        // No publish at the very deadline either.
        let again = Instant::now() + pauses.next().unwrap_or(Duration::from_secs(5));
        if again >= deadline {
            return Err(last);
        }
        sleep_until(again).await;
    }
}

/// One publish on a channel of its own. A channel that did not settle it is dropped, which closes it.
async fn attempt(link: &BrokerConnection, envelope: &Envelope) -> PublishAttempt {
    // The broker reads nothing there, not even a request for a channel.
    link.unblocked().await;
    let channel = match link.publisher().await {
        Ok(channel) => channel,
        Err(BrokerError::Silent(..)) => return PublishAttempt::Silent,
        Err(error) => return PublishAttempt::Lost(error.to_string()),
    };
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirmed = async {
        let publish = channel.basic_publish(
            envelope.exchange.clone(),
            envelope.routing_key.clone(),
            options,
            &envelope.body,
            envelope.properties.clone(),
        );
        publish.await?.await
    };
    let limit = CONFIRM_LIMIT + Duration::from_secs(envelope.body.len() as u64 / BYTES_A_SECOND);
    match unblocked_within(link, limit, confirmed).await {
        Ok(confirmation) => {
            link.keep_publisher(channel);
            match confirmation {
                Confirmation::Ack(None) => PublishAttempt::Routed,
                // Confirmed *and* returned: no queue took it.
                Confirmation::Ack(Some(_)) => PublishAttempt::Unroutable,
                Confirmation::Nack(_) => PublishAttempt::Nacked,
                Confirmation::NotRequested => PublishAttempt::Lost("the channel gives no confirms".into()),
            }
        }
        Err(BrokerError::Silent(..)) => PublishAttempt::Silent,
        Err(error) => match error.refusal() {
            Some((403, text)) => PublishAttempt::Final(PublishError::Refused(text)),
            Some((404, text)) if !refusal::is_passing(&text) => PublishAttempt::Unroutable,
            Some((INTERNAL_ERROR, text)) => PublishAttempt::Broke(text),
            Some((406, text)) if text.contains("larger than") => {
                PublishAttempt::Final(PublishError::TooLarge(text))
            }
            _ => PublishAttempt::Lost(error.to_string()),
        },
    }
}

/// Waits for a confirm, `limit` at most since the broker reads. A message that is on its way while the
/// broker takes none is taken afterwards: sent again meanwhile, it would be there twice.
async fn unblocked_within<T>(
    link: &BrokerConnection,
    limit: Duration,
    confirmed: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BrokerError> {
    let mut confirmed = pin!(confirmed);
    loop {
        let waited = within(limit, "a publish", &mut confirmed).await;
        if !matches!(waited, Err(BrokerError::Silent(..))) || !link.connection.status().blocked() {
            return waited;
        }
        tokio::select! {
            settled = &mut confirmed => return settled.map_err(BrokerError::Broker),
            () = link.unblocked() => {}
        }
    }
}
