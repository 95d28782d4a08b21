//! An OpenTelemetry collector: takes traces over OTLP/HTTP as protobuf, keeps them, and misbehaves on command.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value},
    trace::v1::{Span, status::StatusCode as SpanStatus},
};
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::{background, wait_for_value};

/// More than any batch of spans.
const LARGEST_BODY: usize = 64 << 20;

/// How it takes what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// As it should.
    Take,
    /// Answers this status, and keeps nothing.
    Refuse(u16),
    /// Answers so much later, and keeps nothing.
    Stall(Duration),
}

/// A span as it came.
#[derive(Clone, Debug)]
pub struct TracedSpan {
    /// In hexadecimal digits, as in a `traceparent`.
    pub trace: String,
    /// In hexadecimal digits.
    pub id: String,
    /// Its parent's id; empty without one.
    pub parent: String,
    /// What its publisher's vendor says.
    pub trace_state: String,
    /// Its name.
    pub name: String,
    /// `CONSUMER`, `PRODUCER`, `INTERNAL` …
    pub kind: String,
    /// Nanoseconds since 1970.
    pub begin: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// By name.
    pub attributes: BTreeMap<String, Value>,
    /// Of who sent it.
    pub resource: BTreeMap<String, Value>,
    /// Whether its status is an error, and what that says.
    pub error: Option<String>,
    /// Trace and span of each link.
    pub links: Vec<(String, String)>,
}

/// A running collector; it ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Kept {
    reception: Reception,
    requests: usize,
    headers: Vec<BTreeMap<String, String>>,
    bodies: Vec<Vec<u8>>,
    spans: Vec<TracedSpan>,
}

impl Collector {
    /// On a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start() -> Result<Self> {
        let listener = background::run(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .await?
            .context("no loopback port for the collector")?;
        let address = listener.local_addr()?;
        let kept = Kept {
            reception: Reception::Take,
            requests: 0,
            headers: Vec::new(),
            bodies: Vec::new(),
            spans: Vec::new(),
        };
        let kept = Arc::new(Mutex::new(kept));
        let routes = Router::new()
            .route("/v1/traces", post(take))
            .layer(DefaultBodyLimit::max(LARGEST_BODY))
            .with_state(Arc::clone(&kept));
        let server = background::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        })?;
        Ok(Self { address, kept, server })
    }

    /// A worker's `traces.endpoint`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn receive(&self, reception: Reception) {
        self.kept().reception = reception;
    }

    /// How many requests came, whatever became of them.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.kept().requests
    }

    /// The headers of each request that was taken.
    #[must_use]
    pub fn headers(&self) -> Vec<BTreeMap<String, String>> {
        self.kept().headers.clone()
    }

    /// Whether these bytes stand anywhere in what was taken.
    #[must_use]
    pub fn holds(&self, words: &str) -> bool {
        let words = words.as_bytes();
        self.kept().bodies.iter().any(|body| body.windows(words.len()).any(|window| window == words))
    }

    /// Everything that was taken.
    #[must_use]
    pub fn spans(&self) -> Vec<TracedSpan> {
        self.kept().spans.clone()
    }

    /// Waits for the first span that `wanted` likes: a batch can be seconds behind.
    ///
    /// # Errors
    /// When none comes within `limit`.
    pub async fn wait_for_span(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&TracedSpan) -> bool,
    ) -> Result<TracedSpan> {
        wait_for_value(what, limit, || async { self.spans().into_iter().find(&wanted) }).await
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(kept): State<Arc<Mutex<Kept>>>, headers: HeaderMap, body: Bytes) -> Response {
    let reception = {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.requests += 1;
        kept.reception
    };
    match reception {
        Reception::Take => {}
        Reception::Refuse(status) => {
            return StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR).into_response();
        }
        Reception::Stall(time) => {
            sleep(time).await;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    }
    let body = if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip") {
        let mut whole = Vec::new();
        if GzDecoder::new(&*body).read_to_end(&mut whole).is_err() {
            return StatusCode::BAD_REQUEST.into_response();
        }
        whole
    } else {
        body.to_vec()
    };
    let Ok(request) = ExportTraceServiceRequest::decode(&*body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    kept.headers.push(headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect());
    kept.bodies.push(body);
    for of_resource in request.resource_spans {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        let spans = of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans);
        kept.spans.extend(spans.map(|span| traced(span, resource.clone())));
    }
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    ([(header::CONTENT_TYPE, "application/x-protobuf")], answer).into_response()
}

fn traced(span: Span, resource: BTreeMap<String, Value>) -> TracedSpan {
    let kind = span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_owned();
    let status = span.status.unwrap_or_default();
    let failed = status.code() == SpanStatus::Error;
    TracedSpan {
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        trace_state: span.trace_state,
        name: span.name,
        kind,
        begin: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
        resource,
        error: failed.then_some(status.message),
        links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(attributes: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |attribute: KeyValue| match attribute.value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => json!(text),
        Some(any_value::Value::BoolValue(truth)) => json!(truth),
        Some(any_value::Value::IntValue(number)) => json!(number),
        Some(any_value::Value::DoubleValue(number)) => json!(number),
        other => json!(format!("{other:?}")),
    };
    attributes.into_iter().map(|attribute| (attribute.key.clone(), value(attribute))).collect()
}
