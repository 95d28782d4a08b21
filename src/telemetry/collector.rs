//! The way to the collector. One that is away, slow or full costs spans, and nothing else: they wait in a
//! bounded queue for a thread of the SDK's, and what does not fit there is lost.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use reqwest::redirect::Policy;
use tokio::runtime::Handle;
use url::Url;

/// Where traces go under `traces.endpoint`.
const PATH: &str = "/v1/traces";
/// How often it is told that spans are lost.
const TELL_EVERY: Duration = Duration::from_secs(300);
/// Longest export, where no variable says another.
const EXPORT_LIMIT: Duration = Duration::from_secs(10);

/// Sends what is traced to `endpoint`, on this runtime.
///
/// # Errors
/// What is wrong with the variables `OTEL_…`.
pub(super) fn connect(endpoint: &Url, worker: &str) -> Result<(SdkTracerProvider, Arc<Arrivals>), String> {
    let arrivals = Arc::new(Arrivals::new(endpoint));
    let limit = export_limit();
    let client = reqwest::Client::builder()
        .timeout(limit)
        // What may be in its headers goes to nobody else.
        .redirect(Policy::none())
        .user_agent(concat!("comfy-worker/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| error.to_string())?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(OnRuntime { client, runtime: Handle::current(), arrivals: Arc::clone(&arrivals) })
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(address(endpoint))
        .with_timeout(limit)
        .build()
        .map_err(|error| error.to_string())?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(Watched { exporter, arrivals: Arc::clone(&arrivals) })
        .with_resource(resource(worker))
        .build();
    Ok((provider, arrivals))
}

fn address(endpoint: &Url) -> String {
    let base = endpoint.as_str().trim_end_matches('/');
    if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }
}

fn export_limit() -> Duration {
    let variable = |name| std::env::var(name).ok()?.parse().ok().map(Duration::from_millis);
    variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
        .or_else(|| variable("OTEL_EXPORTER_OTLP_TIMEOUT"))
        .unwrap_or(EXPORT_LIMIT)
}

/// Who sends them; what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say stands.
fn resource(worker: &str) -> Resource {
    let said = Resource::builder().build();
    let host = sysinfo::System::host_name().unwrap_or_default();
    let ours = [
        ("service.name", "comfy-worker"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", worker),
        ("host.name", &host),
    ];
    let unsaid = |key: &str| {
        said.get(&Key::from(key.to_owned())).is_none_or(|value| value.as_str().starts_with("unknown_service"))
    };
    let unsaid = ours.into_iter().filter(|(key, value)| !value.is_empty() && unsaid(key));
    let unsaid: Vec<_> = unsaid.map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned())).collect();
    Resource::builder().with_attributes(unsaid).build()
}

/// Makes the requests on our runtime: the SDK's thread has none.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
    arrivals: Arc<Arrivals>,
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = self.runtime.spawn(async move { client.send_bytes(request).await }).await;
        let answer = answer.map_err(HttpError::from).flatten();
        // The SDK says "network error" only.
        self.arrivals.state().reason = answer.as_ref().err().map(|error| innermost(&**error));
        answer
    }
}

/// The cause of all: those above it repeat the address.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// An exporter that is watched.
#[derive(Debug)]
struct Watched {
    exporter: opentelemetry_otlp::SpanExporter,
    arrivals: Arc<Arrivals>,
}

impl SpanExporter for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        match &exported {
            Ok(()) => self.arrivals.came(spans),
            Err(error) => self.arrivals.lost(error.to_string()),
        }
        exported
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// What became of spans.
#[derive(Debug)]
pub(super) struct Arrivals {
    endpoint: String,
    /// Those to be exported.
    ended: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    arrived: u64,
    /// Since the last export that succeeded.
    failing: bool,
    told_at: Option<Instant>,
    /// Why the last request came to nothing, if it did.
    reason: Option<String>,
}

impl Arrivals {
    fn new(endpoint: &Url) -> Self {
        let endpoint = endpoint.origin().ascii_serialization();
        Self { endpoint, ended: AtomicU64::new(0), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A span is over.
    pub(super) fn ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn came(&self, spans: u64) {
        let recovered = {
            let mut state = self.state();
            state.arrived += spans;
            std::mem::take(&mut state.failing)
        };
        if recovered {
            tracing::info!(endpoint = self.endpoint, "the trace collector is reachable again");
        }
    }

    fn lost(&self, error: String) {
        let reason = {
            let mut state = self.state();
            state.failing = true;
            if state.told_at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
                return;
            }
            state.told_at = Some(Instant::now());
            state.reason.take().unwrap_or(error)
        };
        tracing::warn!(endpoint = self.endpoint, reason, "cannot reach the trace collector: spans are lost");
    }

    /// Tells how many were lost, after the last export.
    pub(super) fn sum_up(&self) {
        let (ended, arrived) = (self.ended.load(Ordering::Relaxed), self.state().arrived);
        let lost = ended.saturating_sub(arrived);
        if lost > 0 {
            tracing::warn!(
                endpoint = self.endpoint,
                lost,
                of = ended,
                "cannot send spans to the trace collector"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn traces_go_beneath_the_endpoint() {
        for (endpoint, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://host/otlp", "https://host/otlp/v1/traces"),
            ("https://host/otlp/v1/traces", "https://host/otlp/v1/traces"),
        ] {
            assert_eq!(address(&endpoint.parse().unwrap()), expected);
        }
    }

    #[test]
    fn a_sender_names_itself() {
        let resource = resource("gpu-7");
        let get = |key: &'static str| resource.get(&Key::from(key)).map(|value| value.to_string());
        assert_eq!(get("service.name").as_deref(), Some("comfy-worker"));
        assert_eq!(get("service.instance.id").as_deref(), Some("gpu-7"));
        assert_eq!(get("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
}
