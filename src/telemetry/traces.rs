//! Traces, where `traces.endpoint` is set: a span for each delivery of a job, in its publisher's trace.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use contract::text::one_line;
use opentelemetry::{
    Context, KeyValue,
    propagation::TextMapPropagator as _,
    trace::{
        SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};

use super::{
    collector::{self, Arrivals},
    secrets::redact,
    spans::JobSpan,
};
use crate::config::Config;

/// Longest flush at the end: traces are not worth more of a drain.
const FLUSH_LIMIT: Duration = Duration::from_millis(1500);
/// Longer headers are no trace context.
const LONGEST_HEADER: usize = 1024;
/// Longest text of an attribute or status, in characters.
const LONGEST_TEXT: usize = 300;

/// Where spans go. Clones share it. By default nowhere, at no cost.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Pipeline>>);

#[derive(Debug)]
struct Pipeline {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    arrivals: Arc<Arrivals>,
}

/// What is known of a job when its message comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received<'a> {
    /// The queue.
    pub queue: &'a str,
    /// W3C trace context of the publisher.
    pub traceparent: Option<&'a str>,
    /// The same, of vendors.
    pub tracestate: Option<&'a str>,
    /// AMQP `message_id`.
    pub message_id: Option<&'a str>,
    /// AMQP `correlation_id`.
    pub correlation_id: Option<&'a str>,
    /// Size of the body.
    pub body_bytes: usize,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// How often it came back to the queue.
    pub delivery_count: u64,
}

impl Traces {
    /// To the collector at `traces.endpoint`, as the variables `OTEL_…` say; in a runtime.
    ///
    /// # Errors
    /// What is wrong with those.
    pub fn start(config: &Config) -> Result<Self, String> {
        let disabled =
            std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.eq_ignore_ascii_case("true"));
        let Some(endpoint) = config.traces.endpoint.as_ref().filter(|_| !disabled) else {
            return Ok(Self::default());
        };
        let (provider, arrivals) = collector::connect(endpoint, &config.worker.id)
            .map_err(|error| format!("traces.endpoint or a variable OTEL_…: {error}"))?;
        let tracer = provider.tracer("comfy-worker");
        tracing::info!(endpoint = %endpoint.origin().ascii_serialization(), "traces");
        Ok(Self(Some(Arc::new(Pipeline { provider, tracer, arrivals }))))
    }

    /// A job's span, from now on, in its publisher's trace, if that names one.
    #[must_use]
    pub fn job(&self, received: &Received<'_>) -> JobSpan {
        let Some(pipeline) = &self.0 else { return JobSpan::local() };
        let mut attributes = messaging(received.queue, "process", "process");
        attributes.push(KeyValue::new("messaging.message.body.size", whole(received.body_bytes as u64)));
        attributes.push(KeyValue::new("messaging.rabbitmq.message.redelivered", received.redelivered));
        attributes
            .push(KeyValue::new("messaging.rabbitmq.message.delivery_count", whole(received.delivery_count)));
        let named = [
            ("messaging.message.id", received.message_id),
            ("messaging.message.conversation_id", received.correlation_id),
        ];
        attributes
            .extend(named.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, shown(value?)))));
        let builder = SpanBuilder::from_name(format!("process {}", received.queue))
            .with_kind(SpanKind::Consumer)
            .with_attributes(attributes);
        let parent = remote(received.traceparent, received.tracestate);
        JobSpan::traced(Trace::begin(pipeline, builder, &parent))
    }

    /// The span of a job's publishing, in the trace of the variable `TRACEPARENT`, if that is set.
    #[must_use]
    pub fn publishing(&self, queue: &str, job: &str, body_bytes: usize) -> Publishing {
        let variable = |name| std::env::var(name).ok();
        let parent = remote(variable("TRACEPARENT").as_deref(), variable("TRACESTATE").as_deref());
        let Some(pipeline) = &self.0 else { return Publishing { context: parent, trace: None } };
        let mut attributes = messaging(queue, "publish", "send");
        attributes.push(KeyValue::new("messaging.message.id", shown(job)));
        attributes.push(KeyValue::new("messaging.message.body.size", whole(body_bytes as u64)));
        attributes.push(KeyValue::new("comfy.job.id", shown(job)));
        let builder = SpanBuilder::from_name(format!("publish {queue}"))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes);
        let trace = Trace::begin(pipeline, builder, &parent);
        Publishing { context: trace.context.clone(), trace: Some(trace) }
    }

    /// Sends what is left, within a short limit; nothing is traced afterwards.
    pub async fn close(&self) {
        let Some(pipeline) = &self.0 else { return };
        let provider = pipeline.provider.clone();
        // It waits by blocking, for the limit at most.
        let _ = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_LIMIT)).await;
        pipeline.arrivals.sum_up();
    }
}

/// A job on its way to the queue.
#[derive(Debug)]
pub struct Publishing {
    context: Context,
    trace: Option<Trace>,
}

impl Publishing {
    /// For the message's headers.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        traceparent(self.context.span().span_context())
    }

    /// For the message's headers.
    #[must_use]
    pub fn tracestate(&self) -> Option<String> {
        let state = self.context.span().span_context().trace_state().header();
        Some(state).filter(|state| !state.is_empty())
    }

    /// The broker has it, or why not.
    pub fn ended<T, E: std::fmt::Display>(self, published: &Result<T, E>) {
        let Some(trace) = self.trace else { return };
        if let Err(error) = published {
            trace.context.span().set_status(Status::error(shown(&error.to_string())));
        }
        trace.end(&trace.context, Instant::now());
    }
}

/// A span and what its children need.
#[derive(Debug)]
pub(super) struct Trace {
    tracer: SdkTracer,
    arrivals: Arc<Arrivals>,
    clock: Clock,
    /// Holds the span.
    pub(super) context: Context,
}

impl Trace {
    fn begin(pipeline: &Pipeline, builder: SpanBuilder, parent: &Context) -> Self {
        let clock = Clock::now();
        let builder = builder.with_start_time(clock.system);
        let span = pipeline.tracer.build_with_context(builder, parent);
        Self {
            tracer: pipeline.tracer.clone(),
            arrivals: Arc::clone(&pipeline.arrivals),
            clock,
            context: parent.with_span(span),
        }
    }

    /// A span under `parent`.
    pub(super) fn child(
        &self,
        name: impl Into<std::borrow::Cow<'static, str>>,
        begin: Instant,
        attributes: Vec<KeyValue>,
        parent: &Context,
    ) -> Context {
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(self.clock.at(begin))
            .with_attributes(attributes);
        parent.with_span(self.tracer.build_with_context(builder, parent))
    }

    /// Ends the span that `context` holds.
    pub(super) fn end(&self, context: &Context, end: Instant) {
        let span = context.span();
        if span.is_recording() {
            span.end_with_timestamp(self.clock.at(end));
            if span.span_context().is_sampled() {
                self.arrivals.ended();
            }
        }
    }
}

/// One pair of clocks for all spans of a job: those that were within another stay so when the
/// system's clock is set.
#[derive(Clone, Copy, Debug)]
struct Clock {
    instant: Instant,
    system: SystemTime,
}

impl Clock {
    fn now() -> Self {
        Self { instant: Instant::now(), system: SystemTime::now() }
    }

    fn at(&self, instant: Instant) -> SystemTime {
        let before = self.instant.saturating_duration_since(instant);
        self.system + instant.saturating_duration_since(self.instant) - before
    }
}

/// <https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>
fn messaging(queue: &str, operation: &'static str, kind: &'static str) -> Vec<KeyValue> {
    vec![
        KeyValue::new("messaging.system", "rabbitmq"),
        KeyValue::new("messaging.destination.name", queue.to_owned()),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", kind),
    ]
}

/// Whose span those headers name; nobody's, if they are none.
fn remote(traceparent: Option<&str>, tracestate: Option<&str>) -> Context {
    static PROPAGATOR: OnceLock<TraceContextPropagator> = OnceLock::new();
    let headers = [("traceparent", traceparent), ("tracestate", tracestate)];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let short = headers.filter(|(_, value)| value.len() <= LONGEST_HEADER);
    let carrier: HashMap<String, String> =
        short.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    PROPAGATOR.get_or_init(TraceContextPropagator::new).extract_with_context(&Context::new(), &carrier)
}

/// The span that an attempt's marker names.
pub(super) fn named(traceparent: &str) -> Option<SpanContext> {
    let context = remote(Some(traceparent), None);
    let span = context.span();
    span.span_context().is_valid().then(|| span.span_context().clone())
}

/// As a header has it; `None`: of no span.
pub(super) fn traceparent(span: &SpanContext) -> Option<String> {
    let flags = span.trace_flags().to_u8();
    span.is_valid().then(|| format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()))
}

/// Outside text in a span.
pub(super) fn shown(text: &str) -> String {
    one_line(&redact(text), LONGEST_TEXT)
}

pub(super) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_trace_context_is_read_or_ignored() {
        let read = |header: &str| traceparent(remote(Some(header), None).span().span_context());
        assert_eq!(read(PARENT).as_deref(), Some(PARENT));
        assert_eq!(read(&PARENT.replace("-01", "-00")).unwrap(), PARENT.replace("-01", "-00"));
        for invalid in [
            "",
            "so",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-ä-ö-ü",
            &format!("00-{}", "0".repeat(1 << 20)),
        ] {
            assert_eq!(read(invalid), None, "{invalid:.80}");
        }
        let with_state = remote(Some(PARENT), Some("vendor=1"));
        assert_eq!(with_state.span().span_context().trace_state().header(), "vendor=1");
        let spoilt = remote(Some(PARENT), Some("=;=,,"));
        assert!(spoilt.span().span_context().is_valid());
    }

    #[test]
    fn times_follow_one_clock() {
        let clock = Clock::now();
        let (before, after) =
            (clock.instant - Duration::from_secs(2), clock.instant + Duration::from_secs(3));
        assert_eq!(clock.at(after).duration_since(clock.at(before)).unwrap(), Duration::from_secs(5));
        assert_eq!(clock.at(clock.instant), clock.system);
    }

    #[tokio::test]
    async fn without_an_endpoint_nothing_is_traced() {
        let config = Config::load(&crate::config::Sources::default()).unwrap();
        let traces = Traces::start(&config).unwrap();
        assert!(traces.0.is_none());
        let job = traces.job(&Received { traceparent: Some(PARENT), ..Received::default() });
        assert_eq!(job.traceparent(), None);
        assert_eq!(traces.publishing("jobs", "j", 7).traceparent(), None);
        traces.close().await;
    }
}
