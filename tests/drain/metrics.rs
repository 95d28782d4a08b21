//! What `/metrics` says after jobs of each kind, a lost child and a hand-back.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use comfy_worker::metrics::METRICS;
use serde_json::json;
use testbed::{Signal, Worker, wait_for, wait_for_value};

use super::{
    BOOT, SOON,
    bed::{Bed, slow_job, staged_job, ui_job},
    site::{Site, child, kill},
};

/// Each sample's value by its name and labels, as written.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    async fn of(worker: &Worker) -> Result<Self> {
        let answer = reqwest::get(worker.admin_url("/metrics")).await?.error_for_status()?;
        let kind = answer.headers()["content-type"].to_str()?.to_owned();
        ensure!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let text = answer.text().await?;
        ensure!(text.ends_with("# EOF\n"), "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse()?))
        };
        Ok(Self(lines.map(sample).collect::<Result<_>>()?))
    }

    /// The sum of those that hold each of `parts`; 0 where there is none.
    fn sum(&self, parts: &[&str]) -> f64 {
        let of = |name: &&String| parts.iter().all(|part| name.contains(part));
        self.0.keys().filter(of).map(|name| self.0[name]).sum()
    }

    fn ensure(&self, parts: &[&str], least: f64, most: f64) -> Result<()> {
        let sum = self.sum(parts);
        ensure!((least..=most).contains(&sum), "{parts:?}: {sum}, not {least} to {most}\n{:#?}", self.0);
        Ok(())
    }
}

#[tokio::test]
async fn jobs_times_bytes_and_restarts_are_counted() -> Result<()> {
    let bed = Bed::new("metrics").await?;
    let site = Site::standin(&bed, "a")?.set("metrics.tenant_key", "tenant").set("amqp.lookahead", "1");
    let mut worker = site.boot().await?;
    let samples = Samples::of(&worker).await?;
    samples.ensure(&["comfy_worker_ready"], 1.0, 1.0)?;
    samples.ensure(&["comfy_worker_info", "worker=\"a\"", "comfyui_version=\"0.3.64\""], 1.0, 1.0)?;
    for phase in ["comfyui", "page", "self_test", "total"] {
        samples.ensure(&["boot_seconds", &format!("\"{phase}\"")], 0.01, BOOT.as_secs_f64())?;
    }

    // Each beside its predecessor, which runs long enough for that.
    for (n, tenant) in ["acme", "acme", "<evil>\"\n"].iter().enumerate() {
        let mut job = staged_job(&format!("j{n}"), 2.0);
        job["workflow"]["2"]["inputs"]["seed"] = json!(n);
        job["metadata"] = json!({"tenant": tenant});
        bed.publish(&job).await?;
    }
    bed.answers(&["j0", "j1", "j2"]).await?;
    for id in ["u0", "u1"] {
        bed.publish(&ui_job(id)?).await?;
        ensure!(bed.answer(id).await?["status"] == "succeeded");
    }
    let mut wrong = slow_job("wrong", 0.1);
    wrong["workflow"]["1"]["class_type"] = json!("NoSuchNode");
    bed.publish(&wrong).await?;
    ensure!(bed.answer("wrong").await?["status"] == "failed");
    bed.publish(&json!({"id": "malformed", "typo": 1})).await?;
    ensure!(bed.answer("malformed").await?["error"]["code"] == "invalid_job");

    // Jobs are answered before their deliveries are acknowledged.
    let settled = || async {
        let samples = Samples::of(&worker).await.ok()?;
        (samples.sum(&["jobs_in_hand"]) == 0.0).then_some(samples)
    };
    let samples = wait_for_value("the last job's settlement", SOON, settled).await?;
    samples.ensure(&["jobs_total", "succeeded"], 5.0, 5.0)?;
    samples.ensure(&["jobs_total", "failed", "\"invalid_prompt\""], 1.0, 1.0)?;
    samples.ensure(&["jobs_total", "\"invalid_job\""], 1.0, 1.0)?;
    samples.ensure(&["job_stage_seconds_count", "executed"], 7.0, 7.0)?;
    samples.ensure(&["job_stage_seconds_sum", "executed"], 6.0, 30.0)?;
    samples.ensure(&["queue_wait_seconds_count"], 0.0, 7.0)?;
    samples.ensure(&["engine_busy_seconds_total"], 6.0, 30.0)?;
    samples.ensure(&["engine_gap_seconds_count"], 2.0, 6.0)?;
    samples.ensure(&["gpu_seconds_total", "acme"], 4.0, 20.0)?;
    samples.ensure(&["gpu_seconds_total", r#"<evil>\"\n"#], 2.0, 10.0)?;
    samples.ensure(&["received_bytes_total", "input"], 5.0 * 100.0, 1e7)?;
    samples.ensure(&["sent_bytes_total"], 5.0 * 100.0, 1e7)?;
    samples.ensure(&["cache_requests_total", "conversion", "miss"], 1.0, 2.0)?;
    samples.ensure(&["cache_requests_total", "conversion", "hit"], 1.0, 1.0)?;
    samples.ensure(&["cache_requests_total", "execution", "miss"], 5.0, 30.0)?;
    samples.ensure(&["child_restarts_total"], 0.0, 0.0)?;
    for process in ["worker", "comfyui", "browser"] {
        samples.ensure(&["resident_memory_bytes", process], 1e6, 1e11)?;
    }
    samples.ensure(&["device_memory_bytes", "total"], 1e6, 1e13)?;

    let known: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    for name in samples.0.keys() {
        let bare = name.split('{').next().unwrap_or_default();
        let bare = ["_bucket", "_sum", "_count"].iter().fold(bare, |bare, end| bare.trim_end_matches(end));
        ensure!(known.contains(&bare), "{name} is in no document");
    }

    kill(child(&worker, "main.py")?, Signal::KILL)?;
    let lost = || async {
        Samples::of(&worker).await.is_ok_and(|samples| samples.sum(&["child_restarts_total", "lost"]) == 1.0)
    };
    wait_for("the restart to be counted", SOON, lost).await?;
    worker.wait_ready(BOOT).await?;
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}
