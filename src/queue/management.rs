//! How long the broker lets a worker hold a job, which AMQP does not tell and the management API
//! tells in part.
//!
//! RabbitMQ closes the channel of a consumer that holds a message longer than its consumer timeout:
//! the job goes back to the queue while it still runs. Since 3.12 the shorter of the queue's argument
//! and its policy counts, else the server's own value; before, only the server's. The API shows
//! arguments and policies, but not the server's value.

use std::time::Duration;

use lapin::uri::AMQPUri;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use crate::config::AmqpConfig;

/// Longest wait for one answer of the management API.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// RabbitMQ's own value where nothing else is set.
const SERVER_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// The first version that knows a timeout by queue.
const BY_QUEUE_SINCE: (u64, u64) = (3, 12);
const MEND: &str = "raise the broker's consumer_timeout above the longest job";

/// What is known of the broker's consumer timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ConsumerTimeout {
    Known {
        limit: Duration,
        /// What sets it.
        by: &'static str,
    },
    /// Why it cannot be read.
    Unreadable(String),
}

/// What to warn of when the broker takes jobs back that run as long as `job.timeout` allows; `None`:
/// it does not. Asks the management API where one is configured, which takes seconds at most.
pub async fn consumer_timeout_warning(config: &AmqpConfig, job_timeout: Duration) -> Option<String> {
    warning(&ask(config).await, job_timeout)
}

fn warning(timeout: &ConsumerTimeout, job_timeout: Duration) -> Option<String> {
    let job = humantime::format_duration(job_timeout);
    match timeout {
        // The broker counts from the delivery: staging and uploading come on top of the execution.
        ConsumerTimeout::Known { limit, by } if *limit <= job_timeout => Some(format!(
            "the broker takes a job back after {} ({by}), but job.timeout is {job}, and a job may ask for more: \
             {MEND}",
            humantime::format_duration(*limit),
        )),
        ConsumerTimeout::Unreadable(why) if job_timeout >= SERVER_DEFAULT => Some(format!(
            "the broker's consumer timeout cannot be read ({why}); by default it takes a job back after 30m, but \
             job.timeout is {job}, and a job may ask for more: {MEND}"
        )),
        ConsumerTimeout::Known { .. } | ConsumerTimeout::Unreadable(_) => None,
    }
}

async fn ask(config: &AmqpConfig) -> ConsumerTimeout {
    let Some(url) = &config.management_url else {
        return ConsumerTimeout::Unreadable("set amqp.management_url to have it looked for".to_owned());
    };
    match Api::new(config, url.expose_secret()) {
        Ok(api) => api.consumer_timeout(&config.queue).await.unwrap_or_else(ConsumerTimeout::Unreadable),
        Err(reason) => ConsumerTimeout::Unreadable(reason),
    }
}

/// The management API. Its errors hold no address: that may hold a password.
struct Api {
    http: reqwest::Client,
    base: Url,
    vhost: String,
}

#[derive(Deserialize)]
struct Overview {
    rabbitmq_version: String,
}

#[derive(Deserialize)]
struct Queue {
    #[serde(default)]
    arguments: Map<String, Value>,
    /// A map, or an empty list where there is no policy.
    #[serde(default)]
    effective_policy_definition: Value,
}

impl Api {
    fn new(config: &AmqpConfig, base: &str) -> Result<Self, String> {
        let base = Url::parse(base).map_err(|_| "amqp.management_url is no URL".to_owned())?;
        let uri: AMQPUri =
            config.url.expose_secret().parse().map_err(|_| "amqp.url is no AMQP URL".to_owned())?;
        let mut http =
            reqwest::Client::builder().timeout(CALL_LIMIT).redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &config.ca_file {
            let cannot = |problem: &dyn std::fmt::Display| format!("amqp.ca_file: {problem}");
            let pem = std::fs::read(file).map_err(|error| cannot(&error))?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| cannot(&error))?;
            http = http.tls_certs_merge(authorities);
        }
        let http = http.build().map_err(|error| error.to_string())?;
        Ok(Self { http, base, vhost: uri.vhost })
    }

    async fn consumer_timeout(&self, queue: &str) -> Result<ConsumerTimeout, String> {
        let overview: Overview = self.get(&["overview"]).await?;
        let queue: Queue = self.get(&["queues", &self.vhost, queue]).await?;
        Ok(read(&overview.rabbitmq_version, &queue))
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, path: &[&str]) -> Result<T, String> {
        let failed = |error: reqwest::Error| format!("the management API: {}", chain(&error.without_url()));
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("api").extend(path);
        }
        let answer = self.http.get(url).send().await.and_then(reqwest::Response::error_for_status);
        answer.map_err(failed)?.json().await.map_err(failed)
    }
}

/// An error with its causes: reqwest keeps what happened in them.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn read(version: &str, queue: &Queue) -> ConsumerTimeout {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u64>().ok());
    let numbers = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if numbers < BY_QUEUE_SINCE {
        return ConsumerTimeout::Unreadable(format!(
            "RabbitMQ {version} has one for the whole server only, which its API does not show"
        ));
    }
    let argument = ("the queue's x-consumer-timeout", queue.arguments.get("x-consumer-timeout"));
    let policy = ("a policy's consumer-timeout", queue.effective_policy_definition.get("consumer-timeout"));
    let limits = [argument, policy].into_iter().filter_map(|(by, value)| Some((value?.as_u64()?, by)));
    limits.min().map_or_else(
        || {
            let why = "neither the queue nor a policy sets one, and the API does not show the server's";
            ConsumerTimeout::Unreadable(why.to_owned())
        },
        |(millis, by)| ConsumerTimeout::Known { limit: Duration::from_millis(millis), by },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    fn queue(arguments: Value, policy: Value) -> Queue {
        serde_json::from_value(json!({"arguments": arguments, "effective_policy_definition": policy}))
            .unwrap()
    }

    #[test]
    fn the_shorter_of_argument_and_policy_counts_where_the_version_knows_them() {
        let known =
            |minutes: u64, by| ConsumerTimeout::Known { limit: Duration::from_secs(60 * minutes), by };
        let (argument, policy) = ("the queue's x-consumer-timeout", "a policy's consumer-timeout");
        let both = |a: u64, p: u64| {
            queue(json!({"x-consumer-timeout": a * 60_000}), json!({"consumer-timeout": p * 60_000}))
        };
        assert_eq!(read("3.12.0", &both(10, 20)), known(10, argument));
        assert_eq!(read("4.1.2", &both(20, 10)), known(10, policy));
        assert_eq!(
            read("3.13.7", &queue(json!({"x-consumer-timeout": 60_000}), json!([]))),
            known(1, argument)
        );
        for version in ["3.12.0", "4.2.0-beta.1"] {
            let unset = read(version, &queue(json!({}), json!([])));
            assert!(
                matches!(&unset, ConsumerTimeout::Unreadable(why) if why.contains("policy")),
                "{unset:?}"
            );
        }
        for version in ["3.11.28", "3.10.8", "2.8", "unknown"] {
            let old = read(version, &both(10, 20));
            assert!(matches!(&old, ConsumerTimeout::Unreadable(why) if why.contains(version)), "{old:?}");
        }
    }

    #[test]
    fn a_timeout_that_a_job_can_outlast_is_warned_of() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let known = |limit| ConsumerTimeout::Known { limit: minutes(limit), by: "a policy" };
        let text = warning(&known(30), minutes(60)).unwrap();
        for part in ["after 30m (a policy)", "job.timeout is 1h", "may ask for more", "consumer_timeout"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        // A job that runs for just as long is held longer.
        assert!(warning(&known(60), minutes(60)).is_some());
        assert_eq!(warning(&known(61), minutes(60)), None);
        let unreadable = ConsumerTimeout::Unreadable("that is why".to_owned());
        let text = warning(&unreadable, minutes(30)).unwrap();
        assert!(text.contains("that is why") && text.contains("after 30m"), "{text}");
        assert_eq!(warning(&unreadable, minutes(29)), None);
    }
}
