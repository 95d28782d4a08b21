//! A job and its stages, for logs and, if there are traces, for those.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{
    JobId,
    result::{Code, JobResult, Status as JobStatus},
};
use opentelemetry::{
    Context, KeyValue,
    trace::{Status, TraceContextExt as _},
};
use serde::{Deserialize, Serialize};
use tracing::{Instrument as _, field::Empty};

use super::{
    StageName,
    traces::{Trace, named, shown, traceparent, whole},
};

/// More nodes than these of one execution are counted and not shown: the queue of spans has its limit.
const MAX_NODES: usize = 500;

/// One delivery of a job. Clones are the same one.
///
/// For logs it is a span of error level: whatever is logged within it, it lends its fields to.
#[derive(Clone, Debug)]
pub struct JobSpan {
    log: tracing::Span,
    trace: Option<Arc<Trace>>,
}

/// What a stage that failed tells of that.
pub(crate) trait SpanError {
    /// The contract's code and words for people; `None`: it is nobody's failure.
    fn span_error(&self) -> Option<(Code, String)>;
}

impl JobSpan {
    /// A job that is not traced.
    #[must_use]
    pub fn local() -> Self {
        Self { log: log_span(None), trace: None }
    }

    pub(super) fn traced(trace: Trace) -> Self {
        let context = trace.context.span().span_context().clone();
        let trace_id = context.is_valid().then(|| context.trace_id().to_string());
        Self { log: log_span(trace_id), trace: Some(Arc::new(trace)) }
    }

    /// `work`, whose logs are about this job.
    pub fn around<W: Future>(&self, work: W) -> impl Future<Output = W::Output> + use<W> {
        work.instrument(self.log.clone())
    }

    /// The job is known.
    pub fn is_of(&self, id: &JobId) {
        self.log.record("job", tracing::field::display(id));
        self.set("comfy.job.id", || id.to_string());
    }

    /// It is this attempt; `former`: the `traceparent` of the one before.
    pub fn tries(&self, attempt: u32, former: Option<&str>) {
        self.log.record("attempt", attempt);
        self.set("comfy.job.attempt", || i64::from(attempt));
        self.follows(former);
    }

    /// Links an earlier attempt's span.
    pub fn follows(&self, former: Option<&str>) {
        if let Some(trace) = &self.trace
            && let Some(former) = former.and_then(named)
        {
            trace.context.span().add_link(former, vec![KeyValue::new("comfy.link", "former attempt")]);
        }
    }

    /// For those who link it.
    #[must_use]
    pub fn traceparent(&self) -> Option<String> {
        traceparent(self.trace.as_ref()?.context.span().span_context())
    }

    /// Begins a stage.
    #[must_use]
    pub fn stage(&self, name: StageName) -> StageSpan {
        let log = tracing::error_span!(target: "comfy_worker::job", parent: &self.log, "stage", stage = name.as_str());
        let begun = self.trace.as_ref().map(|trace| Begun::new(trace, name));
        StageSpan { log, begun, running: false }
    }

    /// The job has this result.
    pub fn ended(&self, result: &JobResult) {
        let error = result.error.as_ref();
        let span_error = error.filter(|_| result.status == JobStatus::Failed);
        self.outcome(
            result.status,
            error.map(|error| error.code),
            span_error.map(|error| error.message.as_str()),
        );
    }

    /// It had its result already: these bytes.
    pub fn had_ended(&self, result: &[u8]) {
        if self.trace.is_none() {
            return;
        }
        #[derive(Deserialize)]
        struct Ended {
            status: JobStatus,
            error: Option<Coded>,
        }
        #[derive(Deserialize)]
        struct Coded {
            code: Code,
        }
        self.set("comfy.job.repeated", || true);
        if let Ok(Ended { status, error }) = serde_json::from_slice(result) {
            let code = error.map(|error| error.code);
            let span_error = (status == JobStatus::Failed).then_some("as it ended before");
            self.outcome(status, code, span_error);
        }
    }

    fn outcome(&self, status: JobStatus, code: Option<Code>, span_error: Option<&str>) {
        self.set("comfy.job.status", || name_of(&status));
        if let Some(code) = code {
            self.set("error.type", || name_of(&code));
        }
        self.fail(span_error);
    }

    /// It goes back to the queue; `fault`: something here is not well.
    pub fn goes_back(&self, reason: &str, fault: bool) {
        self.set("comfy.job.handed_back", || shown(reason));
        self.fail(Some(reason).filter(|_| fault));
    }

    /// It is no job that could be run.
    pub(crate) fn is_refused(&self, why: &impl SpanError) {
        if self.trace.is_some()
            && let Some((code, message)) = why.span_error()
        {
            self.outcome(JobStatus::Failed, Some(code), Some(&message));
        }
    }

    /// It is settled: this span is over.
    pub fn end(&self) {
        if let Some(trace) = &self.trace {
            trace.end(&trace.context, Instant::now());
        }
    }

    fn set<V: Into<opentelemetry::Value>>(&self, name: &'static str, value: impl FnOnce() -> V) {
        if let Some(trace) = &self.trace {
            trace.context.span().set_attribute(KeyValue::new(name, value()));
        }
    }

    fn fail(&self, span_error: Option<&str>) {
        if let (Some(trace), Some(span_error)) = (&self.trace, span_error) {
            trace.context.span().set_status(Status::error(shown(span_error)));
        }
    }
}

fn log_span(trace_id: Option<String>) -> tracing::Span {
    // Of error level: a filter that shows any line shows what it is about.
    tracing::error_span!(target: "comfy_worker::job", "job", job = Empty, attempt = Empty, trace_id)
}

/// As the contract writes it.
fn name_of(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// One stage of a job; over when it is dropped.
#[derive(Debug)]
pub struct StageSpan {
    log: tracing::Span,
    begun: Option<Begun>,
    /// Whether work goes on in it: dropped then, it was cut short.
    running: bool,
}

#[derive(Debug)]
struct Begun {
    trace: Arc<Trace>,
    at: Instant,
    context: Context,
}

impl Begun {
    fn new(trace: &Arc<Trace>, name: StageName) -> Self {
        let at = Instant::now();
        let context = trace.child(name.as_str(), at, Vec::new(), &trace.context);
        Self { trace: Arc::clone(trace), at, context }
    }
}

/// What logs are about.
#[derive(Debug)]
pub struct Topic(tracing::Span);

impl Topic {
    /// `work`, whose logs are about that.
    pub fn around<W: Future>(self, work: W) -> impl Future<Output = W::Output> + use<W> {
        work.instrument(self.0)
    }
}

/// When a node ran.
#[derive(Clone, Debug)]
pub struct NodeTime<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its class, where that is known.
    pub class: Option<&'a str>,
    /// Its title.
    pub title: Option<String>,
    /// Since when.
    pub begin: Instant,
    /// For how long; zero if ComfyUI remembered its outputs.
    pub took: Duration,
    /// Whether ComfyUI remembered its outputs.
    pub cached: bool,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl StageSpan {
    /// `work`, which is a part of it.
    pub fn within<W: Future>(&self, work: W) -> impl Future<Output = W::Output> + use<W> {
        work.instrument(self.log.clone())
    }

    /// What its logs are about, for work that ends the stage itself.
    #[must_use]
    pub fn logs(&self) -> Topic {
        Topic(self.log.clone())
    }

    /// `work`, which is all of it.
    pub(crate) async fn run<T, E: SpanError>(
        mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        self.running = true;
        // On the heap: callers hold this future inside theirs.
        let done = self.within(Box::pin(work)).await;
        self.running = false;
        if let Err(error) = &done {
            self.fails(error);
        }
        done
    }

    /// Notes why it failed.
    pub(crate) fn fails(&self, error: &impl SpanError) {
        if let Some(begun) = &self.begun
            && let Some((code, message)) = error.span_error()
        {
            let span = begun.context.span();
            span.set_attribute(KeyValue::new("error.type", name_of(&code)));
            span.set_status(Status::error(shown(&message)));
        }
    }

    /// Another stage begins where this one ends.
    pub fn becomes(&mut self, next: StageName) {
        self.log.record("stage", next.as_str());
        if let Some(begun) = self.begun.take() {
            begun.trace.end(&begun.context, Instant::now());
            self.begun = Some(Begun::new(&begun.trace, next));
        }
    }

    /// Whether anybody wants to know more of it.
    #[must_use]
    pub fn is_traced(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.context.span().is_recording())
    }

    /// Spans for its nodes, those that took longest if they are too many.
    pub fn nodes(&self, mut nodes: Vec<NodeTime<'_>>) {
        let Some(begun) = &self.begun else { return };
        let (all, cached) = (nodes.len(), nodes.iter().filter(|node| node.cached).count());
        let span = begun.context.span();
        span.set_attribute(KeyValue::new("comfy.nodes", whole(all as u64)));
        span.set_attribute(KeyValue::new("comfy.nodes.cached", whole(cached as u64)));
        nodes.sort_by_key(|node| (node.cached, std::cmp::Reverse(node.took)));
        nodes.truncate(MAX_NODES);
        let now = Instant::now();
        for node in nodes {
            let title = node.title.as_deref().or(node.class).unwrap_or(node.id);
            let mut attributes = vec![
                KeyValue::new("comfy.node.id", shown(node.id)),
                KeyValue::new("comfy.node.cached", node.cached),
            ];
            attributes.extend(node.class.map(|class| KeyValue::new("comfy.node.class", shown(class))));
            attributes
                .extend(node.title.as_deref().map(|title| KeyValue::new("comfy.node.title", shown(title))));
            // Read off another clock, a moment before this stage was begun.
            let begin = node.begin.clamp(begun.at, now);
            let end = begin.checked_add(node.took).unwrap_or(now).clamp(begin, now);
            let context =
                begun.trace.child(format!("node {}", shown(title)), begin, attributes, &begun.context);
            if let Some(failure) = &node.failure {
                context.span().set_status(Status::error(shown(failure)));
            }
            begun.trace.end(&context, end);
        }
    }
}

impl Drop for StageSpan {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take() else { return };
        if self.running {
            begun.context.span().set_attribute(KeyValue::new("comfy.cut_short", true));
        }
        begun.trace.end(&begun.context, Instant::now());
    }
}
