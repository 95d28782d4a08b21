//! A worker with a queue, buckets and a ComfyUI of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::{Engine, S3Server, Signal, Worker, WorkerBuilder, wait_for, wait_for_value};
use tokio::sync::{Mutex, MutexGuard};

use crate::{
    publisher::Topology,
    suite::{SOON, Site, tail},
};

/// A real ComfyUI with cold disk caches, on a loaded machine.
const BOOT: Duration = Duration::from_secs(300);
/// A drain's grace is 25 s, and nothing runs then.
const DRAIN: Duration = Duration::from_secs(60);
/// Largest input, and all of a job's: small, so that a larger one is quickly made.
pub(crate) const MAX_INPUT_BYTES: usize = 1 << 20;

/// A running worker and what belongs to it.
///
/// Its buckets: inputs may come from `s3://NAME-in/open/`, results go to `s3://NAME-results/jobs`,
/// outputs may go to `s3://NAME-renders/`.
pub(crate) struct Bench {
    name: &'static str,
    site: Arc<Site>,
    engine: Engine,
    builder: WorkerBuilder,
    worker: Mutex<Worker>,
    topology: Topology,
    turn: Mutex<()>,
    /// Readable while the worker is lent.
    log: PathBuf,
}

/// A bench for one test alone.
pub(crate) struct JobPermit<'a> {
    bench: &'a Bench,
    _turn: MutexGuard<'a, ()>,
}

impl std::ops::Deref for JobPermit<'_> {
    type Target = Bench;

    fn deref(&self) -> &Bench {
        self.bench
    }
}

impl Bench {
    pub(crate) async fn start(site: &Arc<Site>, name: &'static str, engine: Engine) -> Result<Self> {
        Self::start_with(site, name, engine, &[]).await
    }

    /// [`Bench::start`] with other settings than those of all benches.
    pub(crate) async fn start_with(
        site: &Arc<Site>,
        name: &'static str,
        engine: Engine,
        settings: &[(&str, String)],
    ) -> Result<Self> {
        let dir = site.folder.join(format!("{name}-worker"));
        let topology = Topology::new(site.broker.url(), name);
        topology.declare().await?;
        for bucket in ["in", "private", "results", "renders"] {
            site.s3.create_bucket(&format!("{name}-{bucket}"))?;
        }
        let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), &dir)?
            .broker(&site.broker)
            .store(&site.s3, &format!("s3://{name}-results/jobs"))
            .engine(&engine)
            .set("amqp.queue", &topology.jobs)
            .set("amqp.events_exchange", &topology.events)
            .set("amqp.control_exchange", &topology.control)
            .set("amqp.reply_to_allow", "*")
            // Its jobs kill it one after the other.
            .set("comfyui.max_restarts", "1000")
            .set("inputs.allow", format!("s3://{name}-in/open/"))
            .set("inputs.max_bytes", MAX_INPUT_BYTES.to_string())
            .set("outputs.allow", format!("s3://{name}-renders/"))
            .set("worker.id", format!("worker-{name}"));
        let builder = match &topology.results {
            Some(exchange) => builder.set("amqp.results_exchange", exchange),
            None => builder,
        };
        let builder = settings.iter().fold(builder, |builder, (key, value)| builder.set(key, value));
        let mut worker = builder.clone().start().await?;
        worker.wait_ready(BOOT).await.with_context(|| format!("worker {name}, {}", engine.describe()))?;
        Ok(Self {
            name,
            site: Arc::clone(site),
            engine,
            builder,
            worker: Mutex::new(worker),
            topology,
            turn: Mutex::new(()),
            log: dir.join("worker.log"),
        })
    }

    pub(crate) async fn turn(&self) -> JobPermit<'_> {
        JobPermit { bench: self, _turn: self.turn.lock().await }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn s3(&self) -> &S3Server {
        &self.site.s3
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// For the command line: the same binary with the same configuration.
    pub(crate) fn builder(&self) -> WorkerBuilder {
        self.builder.clone()
    }

    /// What a pixel may differ by: a real ComfyUI cuts 254.99998 to a byte.
    pub(crate) fn tolerance(&self) -> u8 {
        u8::from(self.engine.is_real())
    }

    /// `NAME-purpose`
    pub(crate) fn bucket(&self, purpose: &str) -> String {
        format!("{}-{purpose}", self.name)
    }

    /// Stores a readable input; its address.
    pub(crate) async fn input(&self, key: &str, body: &[u8]) -> Result<String> {
        let (bucket, key) = (self.bucket("in"), format!("open/{key}"));
        self.s3().put(&bucket, &key, body).await?;
        Ok(format!("s3://{bucket}/{key}"))
    }

    /// The bytes of an object of this bench, by its address.
    pub(crate) async fn object(&self, uri: &str) -> Result<Vec<u8>> {
        let address = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        let (bucket, key) = address.with_context(|| format!("{uri} is no S3 address"))?;
        self.s3().get(bucket, key).await
    }

    pub(crate) async fn json(&self, uri: &str) -> Result<Value> {
        serde_json::from_slice(&self.object(uri).await?).with_context(|| format!("{uri}: no JSON"))
    }

    /// Keys with sizes under a job's folder in a bucket.
    pub(crate) async fn objects(&self, purpose: &str, prefix: &str) -> Result<Vec<(String, u64)>> {
        self.s3().list(&self.bucket(purpose), prefix).await
    }

    /// Waits until no file is left in ComfyUI's folders but those that its owner put there.
    pub(crate) async fn folders_are_clean(&self) -> Result<()> {
        let left = || {
            let mut left = files_beneath(&self.engine.path, &["input", "output", "temp"])?;
            // What the worker knows of files that jobs leave for good.
            left.retain(|(path, _)| !path.components().any(|part| part.as_os_str() == ".comfy-worker"));
            Ok::<_, anyhow::Error>(left)
        };
        wait_for("ComfyUI's folders to be empty", SOON, || async { left().is_ok_and(|left| left.is_empty()) })
            .await
            .with_context(|| format!("left: {:?}", left()))
    }

    /// What the stand-in counted.
    pub(crate) async fn stats(&self) -> Result<Value> {
        let worker = self.worker.lock().await;
        let address = || async {
            let processes = worker.descendants();
            let command = &processes.iter().find(|process| process.command.contains("main.py"))?.command;
            let port = command.split(" --port ").nth(1)?.split(' ').next()?;
            Some(format!("http://127.0.0.1:{port}/standin/stats"))
        };
        let address = wait_for_value("ComfyUI's process", SOON, address).await?;
        Ok(reqwest::get(address).await?.error_for_status()?.json().await?)
    }

    /// Waits until the worker takes jobs.
    pub(crate) async fn wait_ready(&self) -> Result<()> {
        self.worker.lock().await.wait_ready(SOON).await
    }

    /// The end of the worker's log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        tail(&String::from_utf8_lossy(&log))
    }

    /// All of the worker's log, since its first start.
    pub(crate) fn whole_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Drains the worker and starts another one in its place.
    pub(crate) async fn restart(&self) -> Result<()> {
        self.drain().await?;
        self.replace().await
    }

    /// Kills the worker and starts another one in its place.
    pub(crate) async fn kill(&self) -> Result<()> {
        let mut worker = self.worker.lock().await;
        worker.signal(Signal::KILL)?;
        worker.wait_exit(SOON).await?;
        drop(worker);
        self.replace().await
    }

    async fn replace(&self) -> Result<()> {
        let mut worker = self.worker.lock().await;
        *worker = self.builder.clone().start().await?;
        worker.wait_ready(BOOT).await
    }

    /// SIGTERM while idle: a good end, and nothing left.
    pub(crate) async fn drain(&self) -> Result<()> {
        let mut worker = self.worker.lock().await;
        worker.signal(Signal::TERM)?;
        let status = worker.wait_exit(DRAIN).await?;
        ensure!(status.success(), "it ended with {status}");
        self.folders_are_clean().await?;
        let left = files_beneath(&self.state_dir(), &[""])?;
        let journals: Vec<_> = left.iter().filter(|(_, size)| *size > 0).collect();
        ensure!(journals.is_empty(), "the state folder holds {journals:?}");
        Ok(())
    }

    fn state_dir(&self) -> PathBuf {
        self.log.with_file_name("state")
    }
}

/// Files with their sizes in these folders; a folder that is not there has none.
pub(crate) fn files_beneath(base: &Path, folders: &[&str]) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| base.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                files.push((entry.path(), metadata.len()));
            }
        }
    }
    files.sort();
    Ok(files)
}
