//! `comfy-worker serve` as a child, with a configuration file of its own.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use connector::child::ProcessGroup;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};

use crate::{Engine, ProcessInfo, RabbitMq, S3Server, background, descendants, free_port, wait_for};

/// What a worker is started with: settings by key (`amqp.url`), and variables.
#[derive(Clone, Debug)]
pub struct WorkerBuilder {
    /// Words before the binary.
    launcher: Vec<String>,
    binary: PathBuf,
    dir: PathBuf,
    settings: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
}

impl WorkerBuilder {
    /// Sets one setting; the last one wins.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Sets one variable of its environment, or, of those that are meant for the stand-in, of ComfyUI's.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        let value = value.into();
        if name.starts_with("STANDIN_") {
            let pairs = self.settings.entry("comfyui.env".to_owned()).or_default();
            let comma = if pairs.is_empty() { "" } else { "," };
            pairs.push_str(&format!("{comma}{name}={}", value.replace(',', "\\,")));
        } else {
            self.env.insert(name.to_owned(), value);
        }
        self
    }

    /// It is started by this command, which must become it (`exec "$@"`): the process id is the worker's.
    #[must_use]
    pub fn launcher(mut self, words: impl IntoIterator<Item = String>) -> Self {
        self.launcher = words.into_iter().collect();
        self
    }

    /// Its jobs come from there.
    #[must_use]
    pub fn broker(self, broker: &RabbitMq) -> Self {
        self.set("amqp.url", broker.url())
    }

    /// Its objects lie there; results go to `uri` (`s3://bucket/prefix`).
    #[must_use]
    pub fn store(mut self, s3: &S3Server, uri: &str) -> Self {
        self.env.extend(s3.env());
        self.set("store.uri", uri).set("store.endpoint", s3.endpoint())
    }

    /// It runs that ComfyUI.
    #[must_use]
    pub fn engine(self, engine: &Engine) -> Self {
        self.set("comfyui.command", engine.command_line())
            .set("comfyui.workdir", engine.workdir.display().to_string())
            .set("comfyui.path", engine.path.display().to_string())
    }

    /// Writes the configuration file and gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self) -> Result<PathBuf> {
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in &self.settings {
            let (section, key) = key.split_once('.').with_context(|| format!("{key}: no section.key"))?;
            // A JSON string is a TOML string, for what a setting can hold.
            writeln!(sections.entry(section).or_default(), "{key} = {}", serde_json::to_string(value)?)?;
        }
        let mut text = String::new();
        for (section, keys) in sections {
            writeln!(text, "[{section}]\n{keys}")?;
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let file = self.dir.join("comfy-worker.toml");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// A command of the same binary in the same environment, with the same configuration file
    /// (by the variable `COMFY_WORKER_CONFIG`): `comfy-worker ARGUMENTS`.
    ///
    /// # Errors
    /// Those of [`WorkerBuilder::write_config`].
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let config = self.write_config()?;
        let mut command = match self.launcher.split_first() {
            None => Command::new(&self.binary),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.binary);
                command
            }
        };
        // Neither the settings nor the AWS identity of anyone who runs the tests.
        for (name, _) in env::vars_os() {
            let named = |prefix: &str| name.to_str().is_some_and(|name| name.starts_with(prefix));
            if named("COMFY_WORKER_") || named("AWS_") || named("OTEL_") || named("TRACE") {
                command.env_remove(&name);
            }
        }
        command.args(arguments).env("COMFY_WORKER_CONFIG", config).envs(&self.env);
        Ok(command)
    }

    /// Starts `comfy-worker serve`; [`Worker::wait_ready`] waits for its boot.
    ///
    /// # Errors
    /// When the binary cannot be started.
    pub async fn start(mut self) -> Result<Worker> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        let admin = self.settings.entry("admin.listen".into()).or_insert(admin).clone();
        let mut command = self.command(&["serve"])?;
        let log_file = self.dir.join("worker.log");
        let log = File::options().create(true).append(true).open(&log_file)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let group = background::run(ProcessGroup::spawn(command, "comfy-worker"))
            .await?
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(Worker { group, admin, log_file })
    }
}

/// A running `comfy-worker serve`. Dropping it kills it, and with it its children.
#[derive(Debug)]
pub struct Worker {
    group: ProcessGroup,
    admin: String,
    log_file: PathBuf,
}

impl Worker {
    /// Prepares `binary` (`env!("CARGO_BIN_EXE_comfy-worker")` in a test) with its configuration,
    /// state and log in `dir`. ComfyUI's first port is a free one.
    ///
    /// # Errors
    /// When `dir` cannot be made or no port is free.
    pub fn builder(binary: impl Into<PathBuf>, dir: &Path) -> Result<WorkerBuilder> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))?;
        let state = dir.join("state").display().to_string();
        let builder = WorkerBuilder {
            launcher: Vec::new(),
            binary: binary.into(),
            dir,
            settings: BTreeMap::new(),
            env: BTreeMap::new(),
        };
        Ok(builder
            .set("worker.state_dir", state)
            .set("comfyui.port", free_port()?.to_string())
            .set("log.format", "text"))
    }

    /// Waits until `/readyz` says yes.
    ///
    /// # Errors
    /// When it ends before that, or `limit` has passed: with its log.
    pub async fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let url = self.admin_url("/readyz");
        let ready = wait_for("the worker's /readyz", limit, || async {
            reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success())
        });
        tokio::select! {
            ready = ready => ready.with_context(|| format!("its log:\n{}", log(&self.log_file))),
            ended = self.group.wait() => bail!("the worker ended ({}); its log:\n{}", ended?, log(&self.log_file)),
        }
    }

    /// `http://ADMIN/path`
    #[must_use]
    pub fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// What it has started, and what those have.
    #[must_use]
    pub fn descendants(&self) -> Vec<ProcessInfo> {
        descendants(self.pid())
    }

    /// Sends a signal to the worker alone, as a container runtime does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // An ended child that was waited for has given its id back.
        ensure!(self.group.exit_status().is_none(), "the worker has ended already\n{}", self.log());
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("no process id")?;
        kill_process(pid, signal).context("the worker cannot be signalled")
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.group.exit_status()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When `limit` passes first: with its log.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        match timeout(limit, self.group.wait()).await {
            Ok(status) => status.context("the worker's end"),
            Err(_) => bail!("the worker did not end within {limit:?}; its log:\n{}", self.log()),
        }
    }

    /// Everything that it logged.
    #[must_use]
    pub fn log(&self) -> String {
        log(&self.log_file)
    }
}

fn log(file: &Path) -> String {
    fs::read(file).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
}
