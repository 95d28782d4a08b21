//! What of the queue of jobs does not fit this worker's settings, and does not stop it: how long the broker
//! lets a worker hold a job, and how soon a returned one is delivered again.
//!
//! RabbitMQ takes a message back that is held longer than its consumer timeout, 30 minutes by default:
//! the job is in the queue again while it still runs. The queue is declared with one that no job
//! outlasts. Brokers since 3.12 know that argument; where a policy sets one too, the shorter counts. Where
//! neither is set, and on older brokers in any case, the server's own value counts, which no API shows.

use std::time::Duration;

use super::{
    error::QueueError,
    management::{self, Seen},
    session::{Role, Session},
    topology::{self, Argument, CONSUMER_TIMEOUT},
    version::version,
};

/// RabbitMQ's own value where nothing else is set.
const SERVER_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// The first version that goes by a queue's argument. Nothing shows it: others take the argument too.
const BY_QUEUE_SINCE: (u64, u64) = (3, 12);
/// The first version that is known to refuse a queue's declaration with another one.
const COMPARED_SINCE: (u64, u64) = (4, 3);
/// What delays a return that is none of the job's fault.
const SLOW_RETURNS: [&str; 2] = ["all", "returned"];

/// How the queue of jobs fits this worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCompatibility {
    /// Whether a job may be held as long as `job.timeout` allows.
    pub consumer_timeout: ConsumerTimeout,
    /// That, and why, a job which goes back in a drain is not delivered again at once.
    pub slow_returns: Option<String>,
}

/// Whether the broker lets a worker hold a job as long as `job.timeout` allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerTimeout {
    /// It is longer, as far as what sets it is seen.
    Fits,
    /// It is known to be shorter: what it is, and what to do.
    TooShort(String),
    /// Nobody says; where its default would be too short, why not, and what to do.
    Unknown(Option<String>),
}

/// What is known of it before it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Limit {
    Known {
        limit: Duration,
        /// What sets it.
        by: &'static str,
    },
    /// The worker asked for it, and a queue that was there before may go by something else.
    Asked,
    Unknown(String),
}

/// Asks the broker, and the management API where one is configured, which takes seconds at most.
pub(super) async fn find(session: &Session, job_timeout: Duration) -> QueueCompatibility {
    let (queue, seen) = (&session.config.queue, management::look(&session.config).await);
    let version = version(&session.config).await;
    let limit = limit(version, &declared(session).await, seen.as_ref());
    let kind = seen.ok().and_then(|seen| seen.delayed_retry);
    QueueCompatibility {
        consumer_timeout: compare(limit, job_timeout, queue),
        slow_returns: kind.filter(|kind| SLOW_RETURNS.contains(&kind.as_str())).map(|kind| {
            format!(
                "the queue {queue:?} has delayed-retry-type {kind:?}: a job that a draining worker gives back waits \
                 before another gets it; take it away, or use \"failed\""
            )
        }),
    }
}

async fn declared(session: &Session) -> Argument {
    let Some(link) = session.current_link(Role::Consume) else { return Argument::Unseen };
    topology::job_queue(&link, &session.config).await.unwrap_or_else(|error: QueueError| {
        tracing::debug!(%error, "the queue's arguments cannot be seen");
        Argument::Unseen
    })
}

fn limit(version: Option<(u64, u64)>, declared: &Argument, seen: Result<&Seen, &String>) -> Limit {
    let Some(version) = version else {
        return Limit::Unknown("the broker does not say which version of RabbitMQ it is".to_owned());
    };
    if version < BY_QUEUE_SINCE {
        let why = "this broker has one for the whole server only, which it does not show";
        return Limit::Unknown(why.to_owned());
    }
    let argument = "the queue's x-consumer-timeout";
    match (seen, declared) {
        (Ok(seen), _) => {
            let limits = [(seen.argument, argument), (seen.policy, "a policy's consumer-timeout")];
            let limits = limits.into_iter().filter_map(|(limit, by)| Some((limit?, by)));
            limits.min().map_or_else(
                || {
                    let why = "neither the queue nor a policy sets one, the server's is not shown";
                    Limit::Unknown(why.to_owned())
                },
                |(limit, by)| Limit::Known { limit, by },
            )
        }
        (Err(_), Argument::Is(limit)) if version >= COMPARED_SINCE => {
            Limit::Known { limit: *limit, by: argument }
        }
        (Err(_), Argument::Is(_)) => Limit::Asked,
        (Err(_), Argument::Absent) => {
            let why = "the queue was declared without one by an earlier version, and no policy is seen";
            Limit::Unknown(why.to_owned())
        }
        (Err(why), Argument::Unseen) => Limit::Unknown(why.clone()),
    }
}

fn compare(limit: Limit, job_timeout: Duration, queue: &str) -> ConsumerTimeout {
    let job = humantime::format_duration(job_timeout);
    let pattern = format!("^{}$", regex_of(queue));
    let cure = format!(
        "set a policy, `rabbitmqctl set_policy comfy-jobs '{pattern}' '{{\"consumer-timeout\": {}}}' --apply-to queues`, \
         or delete the queue once it is empty and let the worker declare it; before RabbitMQ 3.12 raise \
         consumer_timeout in rabbitmq.conf",
        CONSUMER_TIMEOUT.as_millis(),
    );
    match limit {
        // The broker counts from the delivery: staging and uploading come on top of the execution.
        Limit::Known { limit, by } if limit <= job_timeout => ConsumerTimeout::TooShort(format!(
            "the broker takes a job back after {} ({by}), but job.timeout is {job}, and a job may ask for more: {cure}",
            humantime::format_duration(limit),
        )),
        Limit::Known { .. } => ConsumerTimeout::Fits,
        Limit::Asked => ConsumerTimeout::Unknown(None),
        Limit::Unknown(why) => ConsumerTimeout::Unknown((job_timeout >= SERVER_DEFAULT).then(|| {
            format!(
                "the broker's consumer timeout is not known ({why}); by default it takes a job back after 30m, but \
                 job.timeout is {job}, and a job may ask for more: {cure}"
            )
        })),
    }
}

/// A queue's name as a pattern: dots are frequent, other signs are left to the reader.
fn regex_of(queue: &str) -> String {
    queue.replace('.', "\\.")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seen(argument: Option<u32>, policy: Option<u32>) -> Seen {
        let minutes = |minutes: Option<u32>| minutes.map(|minutes| minutes * MINUTE);
        Seen { argument: minutes(argument), policy: minutes(policy), delayed_retry: None }
    }

    #[test]
    fn the_shorter_of_argument_and_policy_counts_where_the_broker_knows_them() {
        let known = |minutes: u32, by| Limit::Known { limit: minutes * MINUTE, by };
        let (argument, policy) = ("the queue's x-consumer-timeout", "a policy's consumer-timeout");
        let unseen = "no API".to_owned();
        let declared = Argument::Is(30 * MINUTE);
        for (seen, expected) in [
            (seen(Some(10), Some(20)), known(10, argument)),
            (seen(Some(20), Some(10)), known(10, policy)),
            (seen(Some(1), None), known(1, argument)),
        ] {
            for version in [(3, 12), (4, 0), (5, 0)] {
                assert_eq!(limit(Some(version), &declared, Ok(&seen)), expected);
            }
            for (version, why) in [(Some((3, 11)), "whole server"), (None, "which version")] {
                let old = limit(version, &declared, Ok(&seen));
                assert!(matches!(&old, Limit::Unknown(text) if text.contains(why)), "{old:?}");
            }
        }
        assert_eq!(limit(Some((4, 3)), &declared, Err(&unseen)), known(30, argument));
        assert_eq!(limit(Some((4, 2)), &declared, Err(&unseen)), Limit::Asked);
        for (declared, seen, why) in [
            (Argument::Absent, Err(&unseen), "earlier version"),
            (Argument::Unseen, Err(&unseen), "no API"),
            (Argument::Absent, Ok(&seen(None, None)), "neither the queue nor a policy"),
        ] {
            let unset = limit(Some((4, 3)), &declared, seen);
            assert!(matches!(&unset, Limit::Unknown(text) if text.contains(why)), "{unset:?}");
        }
    }

    #[test]
    fn a_timeout_that_a_job_can_outlast_is_found() {
        let known = |minutes: u32| Limit::Known { limit: minutes * MINUTE, by: "a policy" };
        let ConsumerTimeout::TooShort(text) = compare(known(30), 60 * MINUTE, "a.jobs") else {
            panic!("half of what a job may take fits");
        };
        for part in [
            "after 30m (a policy)",
            "job.timeout is 1h",
            "may ask for more",
            "'^a\\.jobs$' '{\"consumer-timeout\": 86400000}'",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        // A job that runs for just as long is held longer.
        assert!(matches!(compare(known(60), 60 * MINUTE, "jobs"), ConsumerTimeout::TooShort(_)));
        assert_eq!(compare(known(61), 60 * MINUTE, "jobs"), ConsumerTimeout::Fits);
        let unknown = || Limit::Unknown("that is why".to_owned());
        let text = match compare(unknown(), 30 * MINUTE, "jobs") {
            ConsumerTimeout::Unknown(Some(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text.contains("that is why") && text.contains("after 30m"), "{text}");
        assert_eq!(compare(unknown(), 29 * MINUTE, "jobs"), ConsumerTimeout::Unknown(None));
    }
}
