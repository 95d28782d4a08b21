//! What is counted and measured: the only place that writes metrics, one function for each thing that
//! happens. Labels take few values each, so that thousands of workers are no burden to a Prometheus.

mod meter;
mod names;

use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::encoding::text::encode;
use serde::Serialize;

use self::names::METERS;
pub use self::{
    meter::MetricKind,
    names::{METRICS, Metric, table},
};
use contract::{
    failure::Cause,
    result::{JobResult, Timings},
};

/// Media type of [`render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Tenants that are told apart; all others are `other`.
const MAX_TENANTS: usize = 100;

/// All metrics that have a value, as Prometheus reads them (OpenMetrics 1.0).
///
/// # Errors
/// Never, but for a lack of memory.
pub fn render() -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, &METERS.registry)?;
    Ok(text)
}

/// A job has its result. `tenant_key`: the key of its metadata that says whom it was for.
pub(crate) fn job_ended(result: &JobResult, tenant_key: Option<&str>) {
    let code = result.error.as_ref().map(|error| word(&error.code)).unwrap_or_default();
    METERS.jobs.add(&[("status", &word(&result.status)), ("code", &code)], 1.0);
    let Timings { staged_ms, converted_ms, waited_ms, executed_ms, uploaded_ms, total_ms, models, .. } =
        result.timings;
    for (stage, ms) in [
        ("staged", staged_ms),
        ("converted", converted_ms),
        ("waited", waited_ms),
        ("executed", executed_ms),
        ("uploaded", uploaded_ms),
        ("total", total_ms),
    ] {
        METERS.stages.record(&[("stage", stage)], Duration::from_millis(ms));
    }
    let tenant = tenant_key.and_then(|key| result.metadata.as_ref()?.get(key)?.as_str());
    let executed = Duration::from_millis(executed_ms);
    METERS.gpu.add(&[("tenant", &bounded(tenant.unwrap_or_default()))], executed.as_secs_f64());
    METERS
        .sent
        .add(&[], float(result.outputs.iter().filter_map(|output| Some(output.file.as_ref()?.size)).sum()));
    let models = models.unwrap_or_default();
    looked_up("model", models.models_warm.files, models.models_cold.files);
    let remembered = result.nodes.values().filter(|node| node.cached).count();
    looked_up("execution", remembered as u64, (result.nodes.len() - remembered) as u64);
}

fn looked_up(cache: &str, hits: u64, misses: u64) {
    for (outcome, count) in [("hit", hits), ("miss", misses)] {
        METERS.cache.add(&[("cache", cache), ("outcome", outcome)], float(count));
    }
}

/// Counts what the connector counts.
pub(crate) fn count_for_connector() {
    connector::metrics::record_to(&OfConnector);
}

struct OfConnector;

impl connector::metrics::Metrics for OfConnector {
    fn booted(&self, part: &'static str, after: Duration) {
        METERS.boot.set(&[("phase", part)], after.as_secs_f64());
    }

    fn restarted(&self, child: &'static str, cause: &'static str) {
        METERS.restarts.add(&[("child", child), ("cause", cause)], 1.0);
    }

    fn executed(&self, posted_at: Instant, started_at: Instant, ended_at: Instant) {
        static LAST_END: Mutex<Option<Instant>> = Mutex::new(None);
        METERS.busy.add(&[], ended_at.saturating_duration_since(started_at).as_secs_f64());
        let before = LAST_END.lock().unwrap_or_else(PoisonError::into_inner).replace(ended_at);
        if let Some(before) = before.filter(|before| posted_at < *before) {
            METERS.gap.record(&[], started_at.saturating_duration_since(before));
        }
    }

    fn converted(&self, known: bool) {
        looked_up("conversion", known.into(), (!known).into());
    }
}

/// A job was taken from the queue.
pub(crate) fn job_taken(redelivered: bool) {
    METERS.in_hand.add(1.0);
    METERS.redeliveries.add(&[], redelivered.into());
}

/// A job in hand was settled.
pub(crate) fn job_settled() {
    METERS.in_hand.add(-1.0);
}

/// A job was accepted, so long after it was published.
pub(crate) fn job_waited(queued: Duration) {
    METERS.queue_wait.record(&[], queued);
}

/// A job went back to the queue.
pub(crate) fn handed_back(cause: Cause) {
    METERS.hand_backs.add(&[("fault", cause.word())], 1.0);
}

/// Whether something that the worker needs is there.
pub(crate) fn dependency(name: &str, is_there: bool) {
    METERS.dependency.set(&[("dependency", name)], is_there.into());
}

/// The broker's connection was made again.
pub(crate) fn reconnected() {
    METERS.reconnects.add(&[], 1.0);
}

/// A result did not reach those who wait for it there.
pub(crate) fn result_unsent(to: &str, why: &str) {
    METERS.results_unsent.add(&[("to", to), ("why", why)], 1.0);
}

/// Whether the broker lets a job be held as long as `job.timeout` allows.
pub(crate) fn consumer_timeout_fits(fits: bool) {
    METERS.consumer_timeout.set(&[], fits.into());
}

/// So many bytes were fetched for a job.
pub(crate) fn received(models: u64, inputs: u64) {
    for (kind, bytes) in [("model", models), ("input", inputs)] {
        METERS.received.add(&[("kind", kind)], float(bytes));
    }
}

/// Whether jobs are taken.
pub(crate) fn ready(ready: bool) {
    METERS.ready.set(&[], ready.into());
}

/// Main memory of a process and its children.
pub(crate) fn memory(process: &str, bytes: u64) {
    METERS.memory.set(&[("process", process)], float(bytes));
}

/// Memory of one of ComfyUI's devices.
pub(crate) fn device_memory(device: &str, total: u64, free: u64) {
    for (state, bytes) in [("total", total), ("free", free)] {
        METERS.device_memory.set(&[("device", device), ("state", state)], float(bytes));
    }
}

/// Who this is.
pub(crate) fn identify(worker: &str, comfyui: &str) {
    let version = env!("CARGO_PKG_VERSION");
    METERS.info.set(&[("worker", worker), ("version", version), ("comfyui_version", comfyui)], 1.0);
}

/// The word that the result has for it.
fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Publishers make tenants up: past so many, all new ones are one.
fn bounded(tenant: &str) -> String {
    static SEEN: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = seen.get_or_insert_default();
    let known = tenant.is_empty() || seen.contains(tenant);
    if !known && (seen.len() >= MAX_TENANTS || tenant.len() > 128) {
        return "other".to_owned();
    }
    if !known {
        seen.insert(tenant.to_owned());
    }
    tenant.to_owned()
}

#[allow(clippy::cast_precision_loss, reason = "bytes and counts up to 2^53 are exact")]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_are_bounded() {
        for n in 0..2 * MAX_TENANTS {
            let tenant = format!("tenant-{n}");
            let shown = bounded(&tenant);
            assert!(shown == tenant || shown == "other" && n >= MAX_TENANTS, "{n}: {shown}");
        }
        assert_eq!([bounded(""), bounded("tenant-0"), bounded("one more")], ["", "tenant-0", "other"]);
    }

    #[test]
    fn names_are_prometheus_own_style() {
        for Metric { name, kind, .. } in METRICS {
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(plain && name.starts_with("comfy_worker_"), "{name}");
            assert_eq!(*kind == MetricKind::Counter, name.ends_with("_total"), "{name}");
        }
    }

    #[test]
    fn a_publishers_words_cannot_end_a_label() {
        connector::metrics::Metrics::restarted(&OfConnector, "a\"b\\c\nd", "lost");
        let text = render().unwrap_or_default();
        assert!(text.contains(r#"child="a\"b\\c\nd""#), "{text}");
    }
}
