//! Every metric: name with its unit, labels, help. `docs/metrics.md` holds [`table`].

use std::{fmt::Write as _, sync::LazyLock};

use prometheus_client::registry::Registry;

use super::meter::{Counter, Gauge, Histogram, Meter, MetricKind};

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// As Prometheus sees it; the unit is part of it.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// Its labels and the values that they take.
    pub labels: &'static [(&'static str, &'static str)],
    /// What it says.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($field:ident: $kind:ident $name:literal [$($label:literal: $values:literal),*] $help:literal;)*) => {
        pub(super) struct Meters {
            pub(super) registry: Registry,
            $(pub(super) $field: $kind,)*
        }

        /// The metrics of this process.
        pub(super) static METERS: LazyLock<Meters> = LazyLock::new(|| {
            let mut registry = Registry::with_prefix(PREFIX);
            $(let $field = $kind::registered(&mut registry, $name, $help);)*
            Meters { registry, $($field),* }
        });

        /// All metrics, in the order of the documents.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: concat!("comfy_worker_", $name),
            kind: $kind::KIND,
            labels: &[$(($label, $values)),*],
            help: $help,
        }),*];
    };
}

const PREFIX: &str = "comfy_worker";

metrics! {
    jobs: Counter "jobs_total"
        ["status": "succeeded, failed, cancelled", "code": "the result's error code, empty without one"]
        "jobs that got their result here";
    stages: Histogram "job_stage_seconds"
        ["stage": "staged, converted, waited, executed, uploaded, total"]
        "time of answered jobs by stage, as in their timings; total counts from the publishing";
    queue_wait: Histogram "queue_wait_seconds" []
        "from a job's publishing to its acceptance here, by the publisher's or the broker's clock";
    in_hand: Gauge "jobs_in_hand" []
        "jobs taken and not settled: two or three while jobs overlap";
    hand_backs: Counter "hand_backs_total"
        ["fault": "none, store, disk, input, engine, copy, broker, local"]
        "jobs given back to the queue, by what was away; none: a drain, or another worker is earlier; copy: another worker runs the same job";
    dependency: Gauge "dependency_up"
        ["dependency": "store, disk"]
        "0 while it is away: no job is taken then";
    redeliveries: Counter "redeliveries_total" []
        "jobs that came and had been delivered before, to anybody";
    reconnects: Counter "broker_reconnects_total" []
        "connections to the broker that were lost and made again";
    results_unsent: Counter "results_unsent_total"
        ["to": "reply, exchange", "why": "unroutable, forbidden, refused, too_large"]
        "results that a reply queue or the results exchange did not get; of one that is too large a short answer is sent, the others are in the store only";
    consumer_timeout: Gauge "consumer_timeout_fits" []
        "1 when the broker lets a job be held as long as job.timeout allows, 0 when it is known not to, as far as was seen at the start; absent when that is not known";
    busy: Counter "engine_busy_seconds_total" []
        "time in which ComfyUI ran jobs; its rate() is the share of the time that the GPU is used";
    gap: Histogram "engine_gap_seconds" []
        "from the end of an execution to the begin of one that was in ComfyUI's queue by then";
    gpu: Counter "gpu_seconds_total"
        ["tenant": "the text in the job's metadata at metrics.tenant_key, empty without, `other` past 100 of them"]
        "execution time of answered jobs by whom it was for";
    boot: Gauge "boot_seconds"
        ["phase": "comfyui, page, self_test, total"]
        "the last start, each phase from the begin of it all: ComfyUI answered, the page could convert, the self-test was through, all was ready";
    ready: Gauge "ready" []
        "1 while jobs are taken, as /readyz says";
    received: Counter "received_bytes_total"
        ["kind": "input, model"]
        "bytes fetched for jobs";
    sent: Counter "sent_bytes_total" []
        "bytes of the outputs of answered jobs";
    cache: Counter "cache_requests_total"
        ["cache": "conversion, model, execution", "outcome": "hit, miss"]
        "workflows known or converted, models there or fetched, nodes whose outputs ComfyUI remembered or made";
    restarts: Counter "child_restarts_total"
        ["child": "comfyui, browser", "cause": "lost, crashed, killed, worn"]
        "children started again: lost (ended or dead while idle), crashed (the same while it ran a job), killed (it would not let go of a cancelled or timed out job), worn (comfyui.max_jobs, comfyui.max_rss)";
    memory: Gauge "resident_memory_bytes"
        ["process": "worker, comfyui, browser"]
        "main memory, of children with what they started; looked at every 15 s and when ComfyUI comes or goes";
    device_memory: Gauge "device_memory_bytes"
        ["device": "ComfyUI's name for it", "state": "total, free"]
        "memory of ComfyUI's devices as it says itself; looked at every 15 s between jobs and during them, and when ComfyUI comes or goes";
    info: Gauge "info"
        ["worker": "worker.id", "version": "comfy-worker's", "comfyui_version": "ComfyUI's"]
        "always 1";
}

/// The table of the documents.
#[must_use]
pub fn table() -> String {
    let mut table = "| metric | kind | labels | what it says |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, labels, help } in METRICS {
        let labels: Vec<_> = labels.iter().map(|(label, values)| format!("`{label}`: {values}")).collect();
        let kind = format!("{kind:?}").to_lowercase();
        let _ = writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join("; "));
    }
    table
}
