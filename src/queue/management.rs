//! What the management API shows of the queue of jobs, and AMQP does not.

use std::time::Duration;

use lapin::uri::AMQPUri;
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use crate::config::AmqpConfig;

/// Longest wait for one answer of the management API.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// What sets how the queue of jobs treats those who hold its messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The queue's `x-consumer-timeout`.
    pub(super) argument: Option<Duration>,
    /// The `consumer-timeout` of the policy that applies.
    pub(super) policy: Option<Duration>,
    /// The `delayed-retry-type` of either, of RabbitMQ 4.3 and later.
    pub(super) delayed_retry: Option<String>,
}

/// Asks the API.
///
/// # Errors
/// Why it does not say.
pub(super) async fn look(config: &AmqpConfig) -> Result<Seen, String> {
    let Some(url) = &config.management_url else {
        return Err("set amqp.management_url to have it looked for".to_owned());
    };
    let queue = Api::new(config, url.expose_secret())?.queue(&config.queue).await?;
    Ok(read(&queue))
}

/// The management API. Its errors hold no address: that may hold a password.
struct Api {
    http: reqwest::Client,
    base: Url,
    vhost: String,
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

    async fn queue(&self, queue: &str) -> Result<Queue, String> {
        self.get(&["queues", &self.vhost, queue]).await
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

fn read(queue: &Queue) -> Seen {
    let (arguments, policy) = (&queue.arguments, &queue.effective_policy_definition);
    let millis = |value: &Value| value.as_u64().map(Duration::from_millis);
    // The queue's own argument comes before a policy's.
    let delayed_retry = arguments.get("x-delayed-retry-type").or_else(|| policy.get("delayed-retry-type"));
    Seen {
        argument: arguments.get("x-consumer-timeout").and_then(millis),
        policy: policy.get("consumer-timeout").and_then(millis),
        delayed_retry: delayed_retry.and_then(Value::as_str).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    #[test]
    fn arguments_and_policies_are_read() {
        let seen = |arguments: Value, policy: Value| {
            let queue = json!({"arguments": arguments, "effective_policy_definition": policy});
            read(&serde_json::from_value(queue).unwrap())
        };
        let minute = Some(Duration::from_secs(60));
        assert_eq!(
            seen(json!({"x-consumer-timeout": 60_000}), json!([])),
            Seen { argument: minute, ..Seen::default() }
        );
        let policy = json!({"consumer-timeout": 60_000, "delayed-retry-type": "all"});
        let found = Seen { policy: minute, delayed_retry: Some("all".into()), ..Seen::default() };
        assert_eq!(seen(json!({}), policy.clone()), found);
        let argument = Seen { delayed_retry: Some("failed".into()), ..found };
        assert_eq!(seen(json!({"x-delayed-retry-type": "failed"}), policy), argument);
        assert_eq!(seen(json!({"x-consumer-timeout": "soon"}), json!(null)), Seen::default());
    }
}
