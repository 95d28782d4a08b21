//! What holds for every answer, whatever the job.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{answer::Answer, bench::Bench};

const FIELDS: [&str; 13] = [
    "version", "id", "status", "outputs", "history", "prompt", "error", "warnings", "timings", "nodes",
    "attempt", "worker", "metadata",
];
const TIMINGS: [&str; 7] =
    ["queued_ms", "staged_ms", "converted_ms", "waited_ms", "executed_ms", "uploaded_ms", "total_ms"];
/// `models_ms`, `models_cold`, `models_warm`.
const MODELS: usize = 3;
const KINDS: [&str; 7] = ["image", "video", "audio", "model", "text", "latent", "file"];

/// Checks an answer's form, the objects it names and those that it does not.
pub(crate) async fn check(bench: &Bench, job: &Value, answer: &Answer) -> Result<()> {
    let result = &answer.result;
    testbed::contract::must_be_result(result)?;
    let keys: BTreeSet<&str> = result.as_object().context("no object")?.keys().map(String::as_str).collect();
    ensure!(keys == FIELDS.into(), "the fields are {keys:?}");
    ensure!(result["version"] == 1, "version");
    ensure!(job.get("id").is_none_or(|id| *id == result["id"]), "another id: {}", result["id"]);
    ensure!(result["metadata"] == job["metadata"], "metadata: {}", result["metadata"]);
    ensure!(result["worker"]["id"] == format!("worker-{}", bench.name()), "worker.id");
    ensure!(result["worker"]["version"] == env!("CARGO_PKG_VERSION"), "worker.version");
    ensure!(result["warnings"].is_array() && result["nodes"].is_object(), "warnings or nodes");
    let models = job["files"].as_array().into_iter().flatten();
    timings(&result["timings"], models.filter(|file| file["folder"] == "models").count() > 0)?;
    match result["status"].as_str() {
        Some("succeeded") => ensure!(result["error"].is_null(), "succeeded with an error"),
        Some("failed") => {
            let error = &result["error"];
            let text = |key: &str| error[key].as_str().is_some_and(|text| !text.is_empty());
            ensure!(text("code") && text("stage") && text("message"), "error: {error}");
            ensure!(answer.outputs()?.is_empty(), "failed with outputs");
        }
        other => anyhow::bail!("status: {other:?}"),
    }
    for output in answer.outputs()? {
        check_output(bench, output).await.with_context(|| format!("{output:#}"))?;
    }
    if answer.was_accepted() {
        ensure!(result["attempt"] == 1, "attempt: {}", result["attempt"]);
        let version = result["worker"]["comfyui_version"].as_str();
        ensure!(version.is_some_and(|version| !version.is_empty()), "comfyui_version: {version:?}");
        objects(bench, answer).await?;
        events(answer)?;
    }
    Ok(())
}

/// `models`: the job names some, and its result may tell what they took.
fn timings(timings: &Value, models: bool) -> Result<()> {
    let ms = |key: &str| timings[key].as_u64().with_context(|| format!("timings.{key}: {}", timings[key]));
    let all = TIMINGS.into_iter().map(ms).collect::<Result<Vec<u64>>>()?;
    let told = models && timings["models_ms"].is_u64();
    let size = TIMINGS.len() + if told { MODELS } else { 0 };
    ensure!(timings.as_object().is_some_and(|map| map.len() == size), "timings: {timings}");
    let [queued, staged, converted, waited, executed, uploaded, total] = all[..] else {
        anyhow::bail!("timings: {timings}")
    };
    // Staging and conversion are side by side; each figure is cut to whole milliseconds.
    let longest = queued + staged.max(converted) + waited + executed + uploaded;
    ensure!(total + 1 >= longest, "the parts are longer than the whole: {timings}");
    Ok(())
}

async fn check_output(bench: &Bench, output: &Value) -> Result<()> {
    let kind = output["kind"].as_str().unwrap_or_default();
    ensure!(KINDS.contains(&kind), "kind: {kind:?}");
    ensure!(output["node"].is_string() && output["key"].is_string() && output["index"].is_u64());
    if kind == "text" {
        ensure!(output["text"].is_string() && output.get("uri").is_none(), "a text with a file");
        return Ok(());
    }
    ensure!(output.get("text").is_none() && output["temp"].is_boolean(), "a file with a text");
    let uri = output["uri"].as_str().context("no uri")?;
    let filename = output["filename"].as_str().context("no filename")?;
    ensure!(uri.ends_with(filename) && !filename.contains('/'), "filename");
    ensure!(output["content_type"].as_str().is_some_and(|kind| kind.contains('/')), "content_type");
    let bytes = bench.object(uri).await?;
    ensure!(output["size"] == bytes.len(), "size: the object has {}", bytes.len());
    let sum = sha256(&bytes);
    ensure!(output["sha256"] == sum, "sha256: the object's is {sum}");
    Ok(())
}

/// `result.json` is the published result; nothing is stored that the layout does not name.
async fn objects(bench: &Bench, answer: &Answer) -> Result<()> {
    let Answer { id, result, .. } = answer;
    let home = format!("jobs/{id}/");
    let results = bench.bucket("results");
    let stored = bench.s3().get(&results, &format!("{home}result.json")).await?;
    ensure!(stored == answer.body, "the published result is not the stored one");

    let mut wanted = BTreeSet::from(["result.json".to_owned(), "attempts/1.json".to_owned()]);
    let here = format!("s3://{results}/{home}");
    let outputs = answer.outputs()?.iter().map(|output| &output["uri"]);
    for uri in outputs.chain([&result["history"], &result["prompt"]]).filter_map(Value::as_str) {
        if let Some(place) = uri.strip_prefix(&here) {
            wanted.insert(place.to_owned());
        }
    }
    let found: BTreeSet<String> = bench
        .objects("results", &home)
        .await?
        .into_iter()
        .filter_map(|(key, _)| key.strip_prefix(&home).map(str::to_owned))
        .filter(|key| !key.starts_with("inputs/"))
        .collect();
    ensure!(found == wanted, "stored: {found:?}, wanted: {wanted:?}");
    Ok(())
}

/// Their numbers rise; they name the job, the attempt and the worker; the last one says how it ended.
fn events(answer: &Answer) -> Result<()> {
    let mut last = None;
    for event in &answer.events {
        testbed::contract::must_be_event(event)?;
        let seq = event["seq"].as_u64().context("no seq")?;
        ensure!(last.is_none_or(|last| seq > last), "seq {seq} after {last:?}");
        last = Some(seq);
        ensure!(event["version"] == 1 && event["id"] == *answer.id && event["attempt"] == 1, "{event}");
        ensure!(event["worker"] == answer.result["worker"]["id"] && event["at"].is_u64(), "{event}");
    }
    ensure!(answer.event_names().first() == Some(&"accepted"), "{:?}", answer.event_names());
    let finished = answer.events.last().context("no events")?;
    ensure!(finished["status"] == answer.result["status"], "{finished}");
    Ok(())
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
