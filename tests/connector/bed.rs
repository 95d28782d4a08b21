//! A ComfyUI's folders, configurations for it, and what runs there.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use anyhow::{Context as _, Result};
use comfy_worker::Config;
use connector::ComfyConnector;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{
    Engine, ProcessInfo, Worker, checkout, landscape, processes_with_env_or_cwd_beneath, wait_for,
};
use tokio::sync::{Mutex, MutexGuard};

/// Longest wait for anything; nothing is waited out in the good case.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// What was killed or stopped is gone by then.
const DEATH: Duration = Duration::from_secs(10);

/// A process has one live connector.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub(crate) async fn my_turn() -> MutexGuard<'static, ()> {
    let turn = ONE_AT_A_TIME.lock().await;
    // A test that failed halfway leaves it.
    ComfyConnector::shutdown_live().await;
    turn
}

pub(crate) struct Bed {
    pub(crate) dir: PathBuf,
    pub(crate) engine: Engine,
    _folder: TempDir,
}

impl Bed {
    pub(crate) fn new() -> Result<Self> {
        Self::with(|dir| Engine::from_env(&dir.join("comfy")))
    }

    /// Always on the stand-in, for what only it can do.
    pub(crate) fn standin() -> Result<Self> {
        Self::with(|dir| Engine::standin(&dir.join("comfy")))
    }

    pub(crate) fn with(engine: impl FnOnce(&Path) -> Result<Engine>) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let dir = folder.path().canonicalize()?;
        for name in ["sources", "t"] {
            fs::create_dir(dir.join(name))?;
        }
        Ok(Self { engine: engine(&dir)?, dir, _folder: folder })
    }

    /// A configuration file: this bed's, and these settings.
    pub(crate) fn config_file(&self, settings: &[(&str, &str)]) -> Result<PathBuf> {
        let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), &self.dir)?
            .engine(&self.engine)
            .set("browser.args", self.mark());
        settings.iter().fold(builder, |builder, (key, value)| builder.set(key, *value)).write_config()
    }

    pub(crate) fn config(&self, settings: &[(&str, &str)]) -> Result<Config> {
        Ok(Config::from_file(&self.config_file(settings)?)?)
    }

    /// A flag by which this bed's Chromium is known.
    pub(crate) fn mark(&self) -> String {
        format!("--test-of-connector={}", self.dir.display())
    }

    pub(crate) fn source(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.dir.join("sources").join(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    pub(crate) fn picture(&self, name: &str) -> Result<PathBuf> {
        self.source(name, landscape())
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        self.engine.path.join(name)
    }

    /// Names under one of ComfyUI's folders that were not there at first.
    pub(crate) fn names(&self, folder: &str) -> Result<Vec<String>> {
        let mut names: Vec<_> = fs::read_dir(self.folder(folder))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        // A real ComfyUI makes this one itself.
        names.retain(|name| name != "3d");
        names.sort();
        Ok(names)
    }

    pub(crate) fn processes(&self) -> Vec<ProcessInfo> {
        processes_with_env_or_cwd_beneath(&self.dir)
    }

    /// This test process's Chromium.
    pub(crate) fn chromium(&self) -> Option<u32> {
        self.child("--user-data-dir")
    }

    /// This test process's ComfyUI.
    pub(crate) fn comfyui(&self) -> Option<u32> {
        self.child("main.py")
    }

    fn child(&self, part: &str) -> Option<u32> {
        let of_mine =
            |process: &ProcessInfo| process.parent == process::id() && process.command.contains(part);
        self.processes().into_iter().find(of_mine).map(|process| process.pid)
    }

    pub(crate) async fn wait_nothing_runs(&self) -> Result<()> {
        wait_for("the end of all processes", DEATH, || async { self.processes().is_empty() })
            .await
            .with_context(|| format!("left: {:#?}", self.processes()))
    }
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// 1 loads `example.png`, 2 inverts it, 3 saves it.
pub(crate) fn invert_file() -> PathBuf {
    checkout().join("tests/fixtures/workflows/invert-ui.json")
}

pub(crate) fn invert() -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(invert_file())?)?)
}

/// A picture of one color, saved. A color of its own each time: nothing is cached.
pub(crate) fn color(color: u32) -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "color"}},
    })
}
