//! Where one worker lives: its ComfyUI, its folders, and what must not be left in them.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::{
    Engine, ProcessInfo, Signal, Worker, WorkerBuilder, alive, processes_with_env_or_cwd_beneath, wait_for,
    wait_for_value,
};

use super::{BOOT, ENDING, JOB, SOON, bed::Bed};

/// `StandinSleep` for a real ComfyUI.
const SLEEP_NODE: &str = r#"
import time
import comfy.model_management
class StandinSleep:
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "run"
    CATEGORY = "standin"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 86400.0})},
                "optional": {"image": ("IMAGE",), "seed": ("INT", {"default": 0})}}
    def run(self, seconds, image=None, seed=0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.01)
        return (image,)
NODE_CLASS_MAPPINGS = {"StandinSleep": StandinSleep}
"#;

/// A place with a worker's folders.
#[derive(Clone)]
pub(super) struct Site {
    dir: PathBuf,
    engine: Engine,
    builder: WorkerBuilder,
    initial: Snapshot,
}

/// A file as it was: content, time and inode.
pub(super) type Snapshot = BTreeMap<PathBuf, (Option<Vec<u8>>, SystemTime, u64)>;

impl Site {
    pub(super) fn new(bed: &Bed, name: &str) -> Result<Self> {
        let engine = Engine::from_env(&bed.folder.path().join(name).join("comfy"))?;
        Self::with(bed, name, engine)
    }

    /// Always on the stand-in, for what only it can do.
    pub(super) fn standin(bed: &Bed, name: &str) -> Result<Self> {
        let engine = Engine::standin(&bed.folder.path().join(name).join("comfy"))?;
        Self::with(bed, name, engine)
    }

    /// The stand-in with a small frontend.
    pub(super) fn light(bed: &Bed, name: &str) -> Result<Self> {
        let engine = Engine::standin(&bed.folder.path().join(name).join("comfy"))?;
        Self::with(bed, name, engine.with_small_frontend())
    }

    fn with(bed: &Bed, name: &str, engine: Engine) -> Result<Self> {
        let dir = bed.folder.path().join(name).canonicalize()?;
        fs::create_dir_all(dir.join("t"))?;
        if engine.is_real() {
            // It makes this one itself.
            fs::create_dir_all(engine.path.join("input/3d"))?;
            fs::write(engine.path.join("custom_nodes/standin_sleep.py"), SLEEP_NODE)?;
        }
        let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), &dir)?
            .broker(&bed.broker)
            .store(&bed.s3, "s3://results/jobs")
            .engine(&engine)
            .env("TMPDIR", dir.join("t").display().to_string())
            .set("worker.id", name)
            .set("worker.grace", "60s")
            .set("amqp.queue", bed.queue())
            .set("amqp.events_exchange", bed.events())
            .set("amqp.control_exchange", bed.control());
        let mut site = Self { dir, engine, builder, initial: Snapshot::new() };
        site.initial = site.snapshot()?;
        Ok(site)
    }

    pub(super) fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.builder = self.builder.set(key, value);
        self
    }

    /// Has ComfyUI started with more arguments.
    #[allow(dead_code, reason = "tests/faults, which includes this file, does not need it")]
    pub(super) fn arguments(self, more: &str) -> Self {
        let command = format!("{} {more}", self.engine.command_line());
        self.set("comfyui.command", command)
    }

    pub(super) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.builder = self.builder.env(name, value);
        self
    }

    #[allow(dead_code, reason = "only tests/faults, which includes this file, needs it")]
    pub(super) fn launcher(mut self, words: impl IntoIterator<Item = String>) -> Self {
        self.builder = self.builder.launcher(words);
        self
    }

    /// Gives a real ComfyUI nodes that the stand-in has.
    #[allow(dead_code, reason = "tests/faults, which includes this file, does not need it")]
    pub(super) fn with_nodes(self, file: &str, source: &str) -> Result<Self> {
        if self.engine.is_real() {
            fs::write(self.engine.path.join("custom_nodes").join(file), source)?;
        }
        Ok(self)
    }

    pub(super) fn builder(&self) -> WorkerBuilder {
        self.builder.clone()
    }

    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.engine.path.join(name)
    }

    pub(super) async fn start(&self) -> Result<Worker> {
        self.builder().start().await
    }

    pub(super) async fn boot(&self) -> Result<Worker> {
        let mut worker = self.start().await?;
        worker.wait_ready(BOOT).await?;
        Ok(worker)
    }

    /// Runs `comfy-worker ARGUMENTS` with this site's configuration: exit code, standard output, and
    /// standard error.
    pub(super) async fn command(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        let output = self.builder().command(arguments)?.output().await?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
        let code = output.status.code().context("killed by a signal")?;
        Ok((code, text(output.stdout), text(output.stderr)))
    }

    /// What was there from the beginning.
    pub(super) fn initial(&self) -> &Snapshot {
        &self.initial
    }

    /// Everything in the folders that a job may touch.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        let mut found = Snapshot::new();
        for name in ["input", "output"] {
            walk(&self.folder(name), &mut found)?;
        }
        Ok(found)
    }

    /// Every process that belongs here: ComfyUI, Chromium, and what they started.
    pub(super) fn processes(&self) -> Vec<ProcessInfo> {
        processes_with_env_or_cwd_beneath(&self.dir)
    }

    /// Waits until no process is left, `limit` at most: of those seen before, and of any that
    /// names this place.
    pub(super) async fn wait_no_process(&self, seen: &[ProcessInfo], limit: Duration) -> Result<()> {
        let left = || {
            let mut left = self.processes();
            left.extend(seen.iter().filter(|process| alive(process.pid)).cloned());
            left
        };
        wait_for("the end of all processes", limit, || async { left().is_empty() }).await.with_context(|| {
            format!("left: {:#?}", left().iter().map(ToString::to_string).collect::<Vec<_>>())
        })
    }

    /// Waits for an orderly end: exit code 0 within `limit`, no process and no file left, those of
    /// `before` as they were.
    pub(super) async fn wait_drained(
        &self,
        worker: &mut Worker,
        before: &Snapshot,
        limit: Duration,
    ) -> Result<Duration> {
        let seen = worker.descendants();
        ensure!(!seen.is_empty(), "the worker has no children to begin with");
        let (status, took) = end(worker, limit).await?;
        ensure!(status.code() == Some(0), "{status}\n{}", worker.log());
        // Orphans that were sent KILL just now.
        self.wait_no_process(&seen, Duration::from_secs(2)).await?;
        self.ensure_no_file(before)?;
        Ok(took)
    }

    /// Has an idle worker end in good order.
    pub(super) async fn finish(&self, mut worker: Worker, before: &Snapshot) -> Result<()> {
        worker.signal(Signal::TERM)?;
        self.wait_drained(&mut worker, before, Duration::ZERO).await.map(drop)
    }

    pub(super) fn ensure_no_file(&self, before: &Snapshot) -> Result<()> {
        self.ensure_no_job_file(before)?;
        for name in ["t", "state/journal"] {
            let folder = self.dir.join(name);
            if !folder.exists() {
                continue;
            }
            let left: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
            ensure!(left.is_empty(), "left in {name}: {left:?}");
        }
        Ok(())
    }

    /// Like [`Site::ensure_no_file`], but for what lies in the worker's own folders: a profile whose
    /// worker was killed seconds ago may be there until a later start.
    pub(super) fn ensure_no_job_file(&self, before: &Snapshot) -> Result<()> {
        let after = self.snapshot()?;
        ensure!(after == *before, "files before: {:?}\nafter: {:?}", before.keys(), after.keys());
        Ok(())
    }

    /// Where the job's inputs lie: a folder of its own, whose name cannot be guessed.
    #[allow(dead_code, reason = "tests/faults, which includes this file, does not need it")]
    pub(super) fn inputs_of(&self, id: &str) -> Option<PathBuf> {
        let entries = fs::read_dir(self.folder("input")).into_iter().flatten().flatten();
        let drawn =
            |name: &str| name.strip_prefix(id).is_some_and(|rest| rest.len() == 33 && rest.starts_with('-'));
        entries
            .map(|entry| entry.path())
            .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(drawn))
    }

    /// A folder of the worker's state.
    #[allow(dead_code, reason = "tests/faults, which includes this file, does not need it")]
    pub(super) fn state(&self, name: &str) -> PathBuf {
        self.dir.join("state").join(name)
    }

    /// What the worker's journal holds, as text.
    pub(super) fn journal(&self) -> Result<String> {
        let entries = fs::read_dir(self.dir.join("state/journal"))?;
        Ok(entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect())
    }

    /// Profiles of Chromium's and temporary folders of ComfyUI's: one each for a worker that runs.
    pub(super) fn scratch(&self) -> usize {
        fs::read_dir(self.dir.join("t")).map_or(0, Iterator::count)
    }
}

/// Waits for the worker's end.
pub(super) async fn end(worker: &mut Worker, limit: Duration) -> Result<(ExitStatus, Duration)> {
    let begin = Instant::now();
    let status = worker.wait_exit(limit + ENDING).await?;
    let took = begin.elapsed();
    println!("ended after {took:?}");
    Ok((status, took))
}

/// Waits until this worker runs that job.
pub(super) async fn wait_running(worker: &Worker, id: &str) -> Result<()> {
    wait_event(worker, id, &["started", "progress"]).await
}

pub(super) async fn wait_event(worker: &Worker, id: &str, events: &[&str]) -> Result<()> {
    let arrived = || async {
        let job = status(worker).await.ok()?["job"].take();
        (job["id"] == id && events.iter().any(|event| job["event"] == *event)).then_some(())
    };
    let what = format!("job {id} to be {events:?}");
    wait_for_value(&what, JOB, arrived).await.with_context(|| worker.log())
}

pub(super) async fn status(worker: &Worker) -> Result<Value> {
    Ok(reqwest::get(worker.admin_url("/status")).await?.json().await?)
}

/// Waits until `/readyz` says no, for this reason.
pub(super) async fn wait_unready(worker: &Worker, reason: &str) -> Result<()> {
    wait_for(&format!("the worker to be {reason}"), SOON, || async {
        status(worker).await.is_ok_and(|status| status["unready"].as_str() == Some(reason))
    })
    .await
}

/// Sends a signal to a process that is not the worker itself.
pub(super) fn kill(pid: u32, signal: Signal) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

/// The worker's child whose command line holds `part`.
pub(super) fn child(worker: &Worker, part: &str) -> Result<u32> {
    let children = worker.descendants();
    let found = children.iter().find(|child| child.parent == worker.pid() && child.command.contains(part));
    Ok(found.with_context(|| format!("no child {part} among {children:?}"))?.pid)
}

fn walk(folder: &Path, found: &mut Snapshot) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let content = if metadata.is_dir() {
            walk(&path, found)?;
            None
        } else {
            Some(fs::read(&path)?)
        };
        found.insert(path, (content, metadata.modified()?, metadata.ino()));
    }
    Ok(())
}
