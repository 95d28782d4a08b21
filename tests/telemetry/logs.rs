//! Logs: a line an event, with its job's fields; children's output in the same stream, marked, whatever it holds.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use testbed::{Worker, wait_for};

use super::{
    SOON,
    bed::{Bed, staged_job, ui_job},
    site::{Site, end},
};

/// What a worker may hold at most after its ComfyUI has written so much.
const MEGABYTES: u64 = 300;
/// What a line may be long: a piece of a child's line, every byte of it escaped, and its fields.
const LONGEST_LINE: usize = 120 << 10;

/// Each line of a JSON log, in order.
fn lines(worker: &Worker) -> Result<Vec<Value>> {
    let log = worker.log();
    log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line:?}"))).collect()
}

#[tokio::test]
async fn every_line_of_a_jobs_life_says_which_job_attempt_and_stage() -> Result<()> {
    let bed = Bed::new("lines").await?;
    let site = Site::light(&bed, "a")?
        .set("log.format", "json")
        .set("log.level", "comfy_worker=trace,comfyui=info,chromium=trace,info")
        .set("browser.args", "--enable-logging=stderr --v=1");
    let worker = site.boot().await?;
    let mut fails = staged_job("fails", 0.0);
    fails["workflow"]["2"] = json!({"class_type": "StandinFail", "inputs": {
        "message": "no\nluck", "exception_type": "ValueError", "image": ["1", 0]}});
    for job in [ui_job("succeeds")?, fails] {
        bed.publish(&job).await?;
        bed.answer(job["id"].as_str().context("no id")?).await?;
    }
    wait_for("the last line", SOON, || async { worker.log().matches("\"answered\"").count() == 2 }).await?;
    let lines = lines(&worker)?;
    for line in &lines {
        let fields = line.as_object().context("no object")?;
        let first: Vec<&str> = fields.keys().take(4).map(String::as_str).collect();
        ensure!(first == ["timestamp", "level", "message", "target"], "{line}");
        ensure!(fields.values().all(|value| !value.is_object() && !value.is_array()), "not flat: {line}");
    }
    let said = |message: &str, job: &str| {
        let said = lines.iter().find(|line| line["message"] == message && line["job"] == job);
        said.with_context(|| format!("nobody said {message:?} of {job}\n{}", worker.log()))
    };
    for job in ["succeeds", "fails"] {
        let line = said("answered", job)?;
        ensure!(line["attempt"] == 1 && line["stage"] == "publish" && line["level"] == "INFO", "{line}");
    }
    let failed = said("job failed", "fails")?;
    ensure!(failed["attempt"] == 1 && failed["stage"] == "execute", "{failed}");
    ensure!(failed["error"] == "node 2 (StandinFail): ValueError: no\nluck", "{failed}");
    // A job's fields are on what is said of it alone.
    let ready = lines.iter().find(|line| line["message"] == "ready").context("never ready")?;
    ensure!(ready.get("job").is_none() && ready["worker"] == "a", "{ready}");

    // Marked by who speaks, in the same stream.
    for target in ["comfyui", "chromium"] {
        ensure!(lines.iter().any(|line| line["target"] == target), "no line of {target}'s");
    }
    site.finish(worker, site.initial()).await
}

/// Even the last word is one line, and says which job it was.
#[tokio::test]
async fn a_panic_is_a_line_like_the_others() -> Result<()> {
    let bed = Bed::new("panic").await?;
    let phases = bed.folder.path().join("phases");
    fs::create_dir(&phases)?;
    let site = Site::light(&bed, "a")?
        .set("log.format", "json")
        .env("COMFY_PHASES", phases.display().to_string())
        .env("RUST_BACKTRACE", "1");
    let mut worker = site.boot().await?;
    fs::write(phases.join("staged"), "panic")?;
    bed.publish(&staged_job("j", 0.0)).await?;
    let (status, _) = end(&mut worker, SOON).await?;
    ensure!(!status.success(), "{status}");
    let lines = lines(&worker)?;
    let last = lines.iter().find(|line| line["level"] == "ERROR").with_context(|| worker.log())?;
    ensure!(last["message"] == "panicked: told to panic at the phase staged", "{last}");
    ensure!(last["job"] == "j" && last["attempt"] == 1 && last["stage"] == "stage", "{last}");
    ensure!(
        last["place"].as_str().is_some_and(|place| place.starts_with("crates/connector/src/phases.rs:")),
        "{last}"
    );
    ensure!(last["backtrace"].as_str().is_some_and(|backtrace| backtrace.contains("phases")), "{last}");
    Ok(())
}

/// What looks like a line of the worker's, and worse.
fn hostile() -> Vec<u8> {
    let forged = "1999-01-01T00:00:00.000000Z  INFO answered job=forged attempt=1 stage=publish";
    let json = r#"{"timestamp":"1999-01-01T00:00:00Z","level":"INFO","message":"answered","target":"comfy_worker","job":"forged"}"#;
    let mut bytes = Vec::new();
    for line in [
        forged,
        json,
        &format!("\r{forged}"),
        &format!("before\u{2028}{forged}\u{85}{forged}"),
        "\u{1b}[2J\u{1b}[31mscarlet\u{1b}[0m \u{1b}]0;title\u{7} \u{9b}31m \u{8}\u{8}\u{8} \u{202e}backwards \u{0}",
        "\u{1b}[1A\u{1b}[2K\u{1b}P+q544e\u{1b}\\",
    ] {
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(b"\xff\xfe\xc3\x28 \xed\xa0\x80 invalid\n");
    // Each piece of it begins where its writer likes.
    bytes.extend(std::iter::repeat_n(format!("{forged}\u{1b}[31m").into_bytes(), 1 << 14).flatten());
    bytes.push(b'\n');
    bytes.extend(std::iter::repeat_n(b'\r', 1 << 20));
    bytes.extend_from_slice(b"\nthe end of it\n");
    bytes
}

async fn prints(bed: &Bed, worker: &Worker, id: &str) -> Result<String> {
    bed.publish(&json!({"version": 1, "id": id, "workflow": {
        "1": {"class_type": "StandinPrint", "inputs": {"base64": STANDARD.encode(hostile())}}}}))
        .await?;
    ensure!(bed.answer(id).await?["status"] == "succeeded");
    wait_for("all of it", SOON, || async { worker.log().contains("the end of it") }).await?;
    let resident = fs::read_to_string(format!("/proc/{}/status", worker.pid()))?;
    let resident = resident.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    ensure!(kilobytes / 1024 < MEGABYTES, "{kilobytes} kB");
    let log = worker.log();
    let longest = log.lines().map(str::len).max().unwrap_or_default();
    ensure!(longest < LONGEST_LINE, "a line of {longest} bytes");
    Ok(log)
}

/// Nothing that a reader's terminal would obey, and no line end that is none of ours.
fn is_tame(line: &str) -> bool {
    !line.chars().any(|c| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

#[tokio::test]
async fn hostile_output_forges_no_line_in_json() -> Result<()> {
    let bed = Bed::new("hostile-json").await?;
    let site = Site::light(&bed, "a")?.set("log.format", "json");
    let worker = site.boot().await?;
    let log = prints(&bed, &worker, "j").await?;
    ensure!(log.lines().all(is_tame), "{log}");
    let lines = lines(&worker)?;
    let forged: Vec<_> = lines
        .iter()
        .filter(|line| {
            line["job"] == "forged" || line["target"] != "comfyui" && line.to_string().contains("forged")
        })
        .collect();
    ensure!(forged.is_empty(), "{forged:#?}");
    ensure!(lines.iter().any(|line| line["target"] == "comfyui"
        && line["message"].as_str().is_some_and(|text| text.contains("job=forged"))));
    let colored =
        lines.iter().find_map(|line| line["message"].as_str().filter(|text| text.contains("scarlet")));
    ensure!(colored.is_some_and(|text| text.starts_with("scarlet ")), "colours: {colored:?}");
    ensure!(lines.iter().any(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("\u{fffd}") && text.ends_with("invalid"))
    }));
    site.finish(worker, site.initial()).await
}

#[tokio::test]
async fn hostile_output_forges_no_line_in_text() -> Result<()> {
    let bed = Bed::new("hostile-text").await?;
    let site = Site::light(&bed, "a")?;
    let worker = site.boot().await?;
    let log = prints(&bed, &worker, "j").await?;
    for line in log.lines() {
        ensure!(is_tame(line), "{line:?}");
        let (time, rest) = line.split_once(' ').context("no time")?;
        ensure!(time.len() == 27 && time.ends_with('Z') && !time.starts_with("1999-01-01"), "{line}");
        let (level, rest) = rest.trim_start().split_once(' ').context("no level")?;
        ensure!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level), "{line}");
        ensure!(!rest.contains("forged") || rest.starts_with("comfyui: "), "{line}");
    }
    ensure!(log.contains(" INFO comfyui: the end of it"), "{log}");
    let answered =
        log.lines().filter(|line| line.contains(" INFO answered job=j attempt=1 stage=publish")).count();
    ensure!(answered == 1, "{log}");
    site.finish(worker, site.initial()).await
}
