//! What is to be found after a run, noted for the judge.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use testbed::{Worker, wait_for};
use tokio::net::TcpStream;

use super::{
    bed::{Bed, count_executions, sha256},
    journal::{Journal, Left, Manifest, Record, StoredOutput},
    place::{DEATH, Place},
};

/// An idle worker holds about 40 descriptors and 50 MB in an optimized build.
const DESCRIPTORS: usize = 80;
const MEGABYTES: usize = 120;

/// Notes the manifests of these jobs, with their outputs, attempts and executions.
pub(super) async fn manifests(bed: &Bed, places: &[&Place], ids: &BTreeSet<String>) -> Result<()> {
    let ledgers: String = places.iter().map(|place| place.ledger()).collect();
    let executions = count_executions(&ledgers);
    for id in ids {
        // Read from the disk: thousands of requests would take a minute.
        let Ok(body) = fs::read(bed.s3.path("results", &format!("jobs/{id}/result.json"))) else { continue };
        secrets(&bed.journal, bed, &String::from_utf8_lossy(&body));
        let result: Value = serde_json::from_slice(&body).with_context(|| format!("{id}: result.json"))?;
        let mut manifest = Manifest {
            id: id.clone(),
            sha256: sha256(&body),
            status: result["status"].as_str().unwrap_or_default().to_owned(),
            code: result["error"]["code"].as_str().map(str::to_owned),
            by: result["worker"]["id"].as_str().unwrap_or_default().to_owned(),
            workers: attempts(bed, id),
            executions: executions.get(id.as_str()).copied().unwrap_or(0),
            ..Manifest::default()
        };
        for output in result["outputs"].as_array().into_iter().flatten() {
            if let Some(text) = output["text"].as_str() {
                manifest.texts.push(text.to_owned());
            }
            if let (Some(uri), Some(sum)) = (output["uri"].as_str(), output["sha256"].as_str()) {
                let stored = stored(bed, uri).map(|bytes| sha256(&bytes));
                manifest.outputs.push(StoredOutput { uri: uri.into(), sha256: sum.into(), found: stored });
            }
        }
        bed.journal.note(Record::Manifest(manifest));
    }
    Ok(())
}

fn stored(bed: &Bed, uri: &str) -> Option<Vec<u8>> {
    let (bucket, key) = uri.strip_prefix("s3://")?.split_once('/')?;
    fs::read(bed.s3.path(bucket, key)).ok()
}

/// The workers that began the job.
fn attempts(bed: &Bed, id: &str) -> BTreeSet<String> {
    let folder = bed.s3.path("results", &format!("jobs/{id}/attempts"));
    let markers = fs::read_dir(folder).into_iter().flatten().flatten();
    let worker = |bytes: Vec<u8>| {
        let marker: Value = serde_json::from_slice(&bytes).ok()?;
        marker["worker"].as_str().map(str::to_owned)
    };
    markers.filter_map(|marker| worker(fs::read(marker.path()).ok()?)).collect()
}

/// Notes what is left in the store and at the broker; so many workers are subscribed.
pub(super) async fn peers(bed: &Bed, consumers: usize) -> Result<()> {
    for upload in bed.s3.open_uploads()? {
        bed.journal.left(Left::Upload, upload);
    }
    // The broker's figures come a moment late.
    let empty = || async { bed.full_queues(consumers).await.is_ok_and(|full| full.is_empty()) };
    if wait_for("empty queues", super::SOON, empty).await.is_err() {
        for queue in bed.full_queues(consumers).await? {
            bed.journal.left(Left::Message, queue);
        }
    }
    Ok(())
}

/// Notes a secret that a log shows.
pub(super) fn secrets(journal: &Journal, bed: &Bed, log: &str) {
    for secret in [bed.s3.secret_key(), "guest:guest"] {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            journal.left(Left::Secret, line);
        }
    }
}

/// Notes a worker that holds more than an idle one may, whatever it has been through; says what it holds.
pub(super) fn resources(journal: &Journal, name: &str, worker: &Worker) -> Result<String> {
    let proc = PathBuf::from(format!("/proc/{}", worker.pid()));
    let descriptors = fs::read_dir(proc.join("fd"))?.count();
    let status = fs::read_to_string(proc.join("status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    let kilobytes: usize = resident.context("no VmRSS")?.parse()?;
    let held = format!("{name}: {descriptors} descriptors, {} MB", kilobytes / 1024);
    if descriptors > DESCRIPTORS || kilobytes / 1024 > MEGABYTES {
        journal.left(Left::Resource, held.as_str());
    }
    Ok(held)
}

/// What a worker, its ComfyUI and its Chromium take of the main memory together, in kB: what they share
/// with other processes is shared out among these.
pub(super) fn memory(worker: &Worker) -> u64 {
    let children = worker.descendants();
    let pids = children.iter().map(|child| child.pid).chain([worker.pid()]);
    let share = |pid: u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok())
    };
    pids.filter_map(share).sum()
}

/// The ports that a worker and its ComfyUI listen at.
pub(super) fn ports(worker: &Worker) -> Vec<u16> {
    let admin = worker.admin_url("/");
    let admin = admin.trim_end_matches('/').rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let children = worker.descendants();
    let comfyui = children.iter().filter_map(|child| {
        let (_, port) = child.command.rsplit_once("--port ")?;
        port.split(' ').next()?.parse().ok()
    });
    admin.into_iter().chain(comfyui).collect()
}

/// Notes each port that somebody goes on listening at. A child that the worker forked in the moment of
/// its death holds the worker's listeners until it execs or dies.
pub(super) async fn listeners(journal: &Journal, ports: &[u16]) {
    for port in ports {
        let free = || async { TcpStream::connect(("127.0.0.1", *port)).await.is_err() };
        if wait_for("a free port", DEATH, free).await.is_err() {
            journal.left(Left::Listener, format!("port {port}"));
        }
    }
}
