//! Jobs that are given back until later: a copy waits in a queue of its own instead of at the head of
//! the queue of jobs, and the broker moves it back when its time has passed.
//!
//! The copy lies in `<queue>.later` with a time to live of its own, and dead-letters to the queue of
//! jobs. A quorum queue expires only the message at its head, so a copy also waits for those in front of it:
//! no delay is longer than [`LONGEST_DELAY`], which bounds the wait. RabbitMQ 4.0 alternates between
//! priorities, so that a copy can wait for two of a higher one too; from 4.3 on each priority has a head.
//!
//! Invariant: the caller settles the original only after the copy is confirmed. A worker that dies in
//! between leaves the job twice, never not at all: same id, same body, one job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::Instant;

use super::{
    death::carried,
    delivery::Delivery,
    error::PublishError,
    message::{count, short, text},
    publisher::{Envelope, RetryPolicy, publish},
    session::{Role, Session},
    topology::{self, later_queue},
};
use crate::requeue::RequeueHistory;

/// Longest delay of a postponement; a longer one is cut to it. Also how much later than asked for a job
/// may come back, since one that waits longer may lie before it.
pub const LONGEST_DELAY: Duration = Duration::from_secs(30);

const COUNT: &str = "comfy-returns";
const CAUSE: &str = "comfy-return-cause";
const SINCE: &str = "comfy-returned-since";
/// Milliseconds since 1970, as all times here: the broker takes `expiration` from what it moves back.
const EXPIRES_AT: &str = "comfy-expires-at";
/// What is taken from a job that begins again.
pub(super) const OF_A_RETURN: [&str; 4] = [COUNT, CAUSE, SINCE, EXPIRES_AT];

impl RequeueHistory {
    pub(super) fn read(headers: &FieldTable) -> Option<Self> {
        Some(Self {
            count: count(headers, COUNT)?.try_into().unwrap_or(u32::MAX),
            cause: text(headers, CAUSE)?,
            // A publisher can say anything: a moment to come would be no time at all, each time again.
            since: time(headers, SINCE)?.min(SystemTime::now()),
        })
    }

    fn write(&self, headers: &mut FieldTable) {
        headers.insert(COUNT.into(), AMQPValue::LongLongInt(self.count.into()));
        headers.insert(CAUSE.into(), AMQPValue::LongString(self.cause.as_str().into()));
        headers.insert(SINCE.into(), millis(self.since));
    }
}

/// How a job is to be given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postponement {
    /// How long it waits, up to [`LONGEST_DELAY`].
    pub delay: Duration,
    /// What it carries: this return counted.
    pub returns: RequeueHistory,
    /// When the job expires, by [`Message::expiry`](super::Message::expiry): then it comes
    /// back, however long the delay.
    pub expires_at: Option<SystemTime>,
}

/// When the job expires, as an earlier return has written it down.
pub(super) fn expires_at(headers: &FieldTable) -> Option<SystemTime> {
    time(headers, EXPIRES_AT)
}

/// Puts a copy of a job in hand into the queue of those that wait.
pub(super) async fn postpone(
    session: &Session,
    delivery: &Delivery,
    postponement: &Postponement,
    deadline: Instant,
) -> Result<(), PublishError> {
    let queue = later_queue(&session.config.queue);
    let properties = postponed(delivery.properties(), postponement, SystemTime::now())?;
    let envelope = envelope(delivery, &queue, properties)?;
    match send(session, delivery, &envelope, deadline).await {
        // Deleted while the worker runs: only a new connection would declare it again.
        Err(PublishError::Unroutable { .. }) if session.config.declare => {
            if let Some(link) = session.current_link(Role::Consume) {
                let declared = topology::ensure(&link, &session.config).await;
                declared.map_err(|error| PublishError::Refused(error.to_string()))?;
            }
            send(session, delivery, &envelope, deadline).await
        }
        settled => settled,
    }
}

/// Puts a copy of a job in hand at the end of the queue of jobs, where the broker counts its deliveries
/// from nothing.
pub(super) async fn renew(
    session: &Session,
    delivery: &Delivery,
    deadline: Instant,
) -> Result<(), PublishError> {
    let expires_at = delivery.message.expiry(delivery.received_at());
    let properties = renewed(delivery.properties(), expires_at, SystemTime::now())?;
    let envelope = envelope(delivery, &session.config.queue, properties)?;
    send(session, delivery, &envelope, deadline).await
}

fn envelope(delivery: &Delivery, queue: &str, properties: BasicProperties) -> Result<Envelope, PublishError> {
    let body = delivery.message.body.clone();
    Ok(Envelope { exchange: "".into(), routing_key: short(queue)?, properties, body })
}

async fn send(
    session: &Session,
    delivery: &Delivery,
    envelope: &Envelope,
    deadline: Instant,
) -> Result<(), PublishError> {
    if delivery.is_stale() {
        // A copy would be one too many.
        return Err(PublishError::Unconfirmed(
            "the job comes again by itself: its connection is gone".into(),
        ));
    }
    let policy = RetryPolicy { unroutable: false, nacks: None };
    publish(session, envelope, policy, deadline).await
}

fn postponed(
    job: &BasicProperties,
    postponement: &Postponement,
    now: SystemTime,
) -> Result<BasicProperties, PublishError> {
    let mut delay = postponement.delay.min(LONGEST_DELAY);
    let mut properties = carried(job);
    let mut headers = properties.headers().clone().unwrap_or_default();
    postponement.returns.write(&mut headers);
    if let Some(expires_at) = postponement.expires_at {
        headers.insert(EXPIRES_AT.into(), millis(expires_at));
        delay = delay.min(expires_at.duration_since(now).unwrap_or_default());
    }
    properties = properties.with_headers(headers);
    Ok(properties.with_expiration(ttl(delay)?))
}

fn renewed(
    job: &BasicProperties,
    expires_at: Option<SystemTime>,
    now: SystemTime,
) -> Result<BasicProperties, PublishError> {
    let properties = carried(job);
    let Some(expires_at) = expires_at else { return Ok(properties) };
    let mut headers = properties.headers().clone().unwrap_or_default();
    headers.insert(EXPIRES_AT.into(), millis(expires_at));
    let left = expires_at.duration_since(now).unwrap_or_default();
    Ok(properties.with_headers(headers).with_expiration(ttl(left)?))
}

fn ttl(duration: Duration) -> Result<ShortString, PublishError> {
    short(&duration.as_millis().to_string())
}

fn millis(time: SystemTime) -> AMQPValue {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    AMQPValue::LongLongInt(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn time(headers: &FieldTable, name: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(count(headers, name)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::queue::Message;

    const NOW: u64 = 1_700_000_000_000;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(NOW + millis)
    }

    fn postponement(delay: u64, expires_at: Option<u64>) -> Postponement {
        let returns = RequeueHistory { count: 3, cause: "input_unavailable".into(), since: at(0) };
        Postponement { delay: Duration::from_millis(delay), returns, expires_at: expires_at.map(at) }
    }

    fn ttl_of(properties: &BasicProperties) -> Option<&str> {
        properties.expiration().as_ref().map(|ttl| ttl.as_str())
    }

    #[test]
    fn a_copy_waits_as_long_as_it_may() {
        for (delay, expires_at, expected) in [
            (5_000, None, "5000"),
            (90_000, None, "30000"),
            (5_000, Some(60_000), "5000"),
            (5_000, Some(1_200), "1200"),
            (0, Some(1_200), "0"),
        ] {
            let copy =
                postponed(&BasicProperties::default(), &postponement(delay, expires_at), at(0)).unwrap();
            assert_eq!(ttl_of(&copy), Some(expected), "{delay} {expires_at:?}");
        }
        let late = postponed(&BasicProperties::default(), &postponement(5_000, Some(0)), at(1_000)).unwrap();
        assert_eq!(ttl_of(&late), Some("0"));
    }

    #[test]
    fn what_a_copy_says_is_read_again_and_outlives_a_renewal() {
        let sent = postponement(5_000, Some(60_000));
        let copy = postponed(&BasicProperties::default(), &sent, at(0)).unwrap();
        let read = |properties: &BasicProperties| Message::read(Vec::new(), false, properties, "jobs");
        let message = read(&copy);
        assert_eq!((message.returns.as_ref(), message.expires_at), (Some(&sent.returns), Some(at(60_000))));
        assert_eq!(message.expiration, None, "the copy's time to live is none of the publisher's");

        let again = renewed(&copy, message.expiry(at(10_000)), at(10_000)).unwrap();
        assert_eq!(ttl_of(&again), Some("50000"));
        assert_eq!((read(&again).returns, read(&again).expires_at), (Some(sent.returns), Some(at(60_000))));
        assert_eq!(ttl_of(&renewed(&BasicProperties::default(), None, at(0)).unwrap()), None);
    }

    /// A publisher that says so would have a job tried without end.
    #[test]
    fn nothing_was_given_back_in_the_future() {
        let returns = RequeueHistory {
            since: SystemTime::now() + Duration::from_secs(1 << 30),
            ..postponement(0, None).returns
        };
        let forged = Postponement { returns, ..postponement(0, None) };
        let copy = postponed(&BasicProperties::default(), &forged, at(0)).unwrap();
        let read = Message::read(Vec::new(), false, &copy, "jobs").returns.unwrap();
        assert!(read.since <= SystemTime::now() && read.count == 3);
    }
}
