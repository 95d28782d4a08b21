//! Why a message is in the dead letters, and what a copy of it must not carry.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

use super::{
    message::{PERSISTENT, count, text},
    postpone::OF_A_RETURN,
    topology::later_queue,
};

/// Deaths in the broker's words, the newest first.
const DEATHS: &str = "x-death";
/// The same in ours, on a letter that was published again: brokers need not keep theirs then.
const KEPT: &str = "comfy-death";
/// What a delivery added, and what would send a copy to further queues.
const OF_A_DELIVERY: [&str; 4] = ["x-delivery-count", "x-acquired-count", "CC", "BCC"];

/// Why and when the broker moved a message to the dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeathRecord {
    /// `rejected`, `delivery_limit`, `expired`, `maxlen`.
    pub reason: String,
    /// The queue that it was moved from.
    pub queue: String,
    /// When.
    pub at: Option<SystemTime>,
    /// How often that happened, for this reason.
    pub count: u64,
}

impl DeathRecord {
    /// The latest entry of `x-death`, without those of the delay queue of `queue`: these are returns, not deaths.
    pub(super) fn read(headers: &FieldTable, queue: &str) -> Option<Self> {
        let later = later_queue(queue);
        let is_return = |death: &AMQPValue| match death {
            AMQPValue::FieldTable(death) => text(death, "queue").is_some_and(|queue| queue == later),
            _ => false,
        };
        // A publisher can write such a header itself: the broker puts its own entry first.
        let deaths = match headers.inner().get(DEATHS) {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice(),
            _ => &[],
        };
        match deaths.iter().find(|death| !is_return(death)).or_else(|| headers.inner().get(KEPT))? {
            AMQPValue::FieldTable(death) => Some(Self {
                reason: text(death, "reason")?,
                queue: text(death, "queue")?,
                at: match death.inner().get("time") {
                    Some(AMQPValue::Timestamp(seconds)) => {
                        UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
                    }
                    _ => None,
                },
                count: count(death, "count").unwrap_or(1),
            }),
            _ => None,
        }
    }

    fn write(&self) -> AMQPValue {
        let mut death = FieldTable::default();
        for (name, value) in [("reason", &self.reason), ("queue", &self.queue)] {
            death.insert(name.into(), AMQPValue::LongString(value.as_str().into()));
        }
        if let Some(since) = self.at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            death.insert("time".into(), AMQPValue::Timestamp(since.as_secs()));
        }
        let count = i64::try_from(self.count).unwrap_or(i64::MAX);
        death.insert("count".into(), AMQPValue::LongLongInt(count));
        AMQPValue::FieldTable(death)
    }
}

/// Properties of a letter that is published again among the dead letters, fresh but for its death.
pub(super) fn renewed(letter: &BasicProperties, death: Option<&DeathRecord>) -> BasicProperties {
    copy(letter, |name| !OF_A_DELIVERY.contains(&name), death)
}

/// Properties of a job that was never dead nor given back.
pub(super) fn revived(letter: &BasicProperties) -> BasicProperties {
    copy(letter, |name| !is_of_a_death(name) && !OF_A_RETURN.contains(&name), None)
}

/// Properties of a job that was never dead.
pub(super) fn carried(job: &BasicProperties) -> BasicProperties {
    copy(job, |name| !is_of_a_death(name), None)
}

/// Of deliveries, too.
fn is_of_a_death(name: &str) -> bool {
    OF_A_DELIVERY.contains(&name)
        || name == DEATHS
        || name == KEPT
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// All but `user_id`, which the broker would compare with ours, and the headers that are not kept.
fn copy(
    letter: &BasicProperties,
    keeps: impl Fn(&str) -> bool,
    death: Option<&DeathRecord>,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in letter.headers().iter().flat_map(|headers| headers.inner()) {
        if keeps(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(death) = death {
        headers.insert(KEPT.into(), death.write());
    }
    let mut copy = BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers);
    macro_rules! keep {
        ($($property:ident: $with:ident),*) => {
            $(if let Some(value) = letter.$property() { copy = copy.$with(value.clone()); })*
        };
    }
    keep!(
        content_type: with_content_type, content_encoding: with_content_encoding, priority: with_priority,
        correlation_id: with_correlation_id, reply_to: with_reply_to, message_id: with_message_id,
        timestamp: with_timestamp, kind: with_type, app_id: with_app_id
    );
    copy
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn words(text: &str) -> AMQPValue {
        AMQPValue::LongString(text.into())
    }

    fn death(reason: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("reason", words(reason)),
            ("queue", words("jobs")),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
            ("count", AMQPValue::LongLongInt(3)),
        ]))
    }

    fn letter() -> BasicProperties {
        let deaths = FieldArray::from(vec![death("delivery_limit"), death("forged")]);
        let headers = table(&[
            ("x-death", AMQPValue::FieldArray(deaths)),
            ("x-first-death-reason", words("delivery_limit")),
            ("x-delivery-count", AMQPValue::LongLongInt(7)),
            ("CC", AMQPValue::FieldArray(FieldArray::default())),
            ("traceparent", words("00-ab-cd-01")),
        ]);
        BasicProperties::default()
            .with_headers(headers)
            .with_user_id("somebody".into())
            .with_reply_to("replies".into())
            .with_timestamp(7)
            .with_delivery_mode(1)
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        properties
            .headers()
            .iter()
            .flat_map(|headers| headers.inner().keys())
            .map(|name| name.as_str())
            .collect()
    }

    #[test]
    fn the_brokers_own_entry_counts_and_outlives_a_renewal() {
        let expected = DeathRecord {
            reason: "delivery_limit".into(),
            queue: "jobs".into(),
            at: Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
            count: 3,
        };
        let letter = letter();
        let read = |properties: &BasicProperties| {
            properties.headers().as_ref().and_then(|headers| DeathRecord::read(headers, "jobs"))
        };
        assert_eq!(read(&letter), Some(expected.clone()));
        let renewed = renewed(&letter, Some(&expected));
        assert_eq!(names(&renewed), ["comfy-death", "traceparent", "x-death", "x-first-death-reason"]);
        // A broker that drops what clients write about deaths leaves ours.
        let kept = table(&[("comfy-death", expected.write())]);
        assert_eq!(DeathRecord::read(&kept, "jobs"), Some(expected));
        // A return before it, and nothing but a return.
        let with_queue = |queue| match death("expired") {
            AMQPValue::FieldTable(mut death) => {
                death.insert("queue".into(), words(queue));
                AMQPValue::FieldTable(death)
            }
            other => other,
        };
        for (deaths, reason) in [
            (vec![with_queue("jobs.later"), death("delivery_limit")], Some("delivery_limit")),
            (vec![death("delivery_limit"), with_queue("jobs.later")], Some("delivery_limit")),
            (vec![with_queue("jobs.later")], None),
            (vec![with_queue("others.later")], Some("expired")),
        ] {
            let headers = table(&[("x-death", AMQPValue::FieldArray(FieldArray::from(deaths)))]);
            assert_eq!(DeathRecord::read(&headers, "jobs").map(|death| death.reason).as_deref(), reason);
        }
        for odd in [
            table(&[]),
            table(&[("x-death", words("rejected"))]),
            table(&[("x-death", AMQPValue::FieldArray(FieldArray::from(vec![words("x")])))]),
        ] {
            assert_eq!(DeathRecord::read(&odd, "jobs"), None, "{odd:?}");
        }
    }

    #[test]
    fn a_revived_job_is_as_it_was_published() {
        let revived = revived(&letter());
        assert_eq!(names(&revived), ["traceparent"]);
        assert_eq!(revived.reply_to().as_ref().map(|queue| queue.as_str()), Some("replies"));
        assert_eq!((*revived.timestamp(), *revived.delivery_mode()), (Some(7), Some(2)));
        assert_eq!(*revived.user_id(), None, "the broker refuses another user's");
    }
}
