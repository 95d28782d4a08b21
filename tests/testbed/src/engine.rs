//! ComfyUI for a test: the real one at `COMFYUI_DIR`, else the stand-in of `tests/standin`.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use connector::child::ProcessGroup;
use tokio::{process::Command, sync::OnceCell};

use crate::{
    background, free_port,
    limits::{COMFYUI_BOOT, DEATH, STANDIN_BOOT},
    processes_with_env_or_cwd_beneath,
    scratch::{self, checkout},
    wait_for,
};

/// How to start a ComfyUI whose files all lie in a folder of the caller's.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Program and arguments, without `--port`: the worker's `comfyui.command`. Arguments may be added.
    pub command: Vec<String>,
    /// The folder that it is started in: the worker's `comfyui.workdir`.
    pub workdir: PathBuf,
    /// Its folder with `input`, `output`, `temp` and `models`: the worker's `comfyui.path`.
    pub path: PathBuf,
    real: bool,
}

impl Engine {
    /// The real ComfyUI when `COMFYUI_DIR` is set (run by `COMFYUI_PYTHON`, else `python3`), else
    /// the stand-in (run by `STANDIN_PYTHON`, else the checkout's `.cache/venv`). `dir` becomes its
    /// base folder; the folder of the ComfyUI itself stays clean.
    ///
    /// # Errors
    /// When a part is missing: says which and how to get it.
    pub fn from_env(dir: &Path) -> Result<Self> {
        match variable("COMFYUI_DIR") {
            Some(folder) => Self::real(Path::new(&folder), dir),
            None => Self::standin(dir),
        }
    }

    /// The stand-in, whatever the environment says: for tests that need its misbehaviour.
    ///
    /// # Errors
    /// When its Python is missing: says how to get it.
    pub fn standin(dir: &Path) -> Result<Self> {
        let path = base_folder(dir)?;
        let main = checkout().join("tests/standin/main.py");
        ensure!(main.is_file(), "the stand-in ComfyUI is missing: {}", main.display());
        let python = match variable("STANDIN_PYTHON") {
            Some(python) => absolute_program(&python)?,
            None => {
                let python = checkout().join(".cache/venv/bin/python");
                ensure!(
                    python.exists(),
                    "the stand-in ComfyUI needs a Python environment and {} is missing: run scripts/setup (or \
                     scripts/test), or set STANDIN_PYTHON to a Python that has the packages of \
                     tests/standin/requirements.txt",
                    python.display()
                );
                text(&python)?
            }
        };
        let command = vec![python, text(&main)?, "--base-directory".into(), text(&path)?, "--cpu".into()];
        Ok(Self { command, workdir: path.clone(), path, real: false })
    }

    /// The stand-in serves a page that converts simple workflows and loads in no time, in place of
    /// ComfyUI's own.
    #[must_use]
    pub fn with_small_frontend(mut self) -> Self {
        let folder = checkout().join("tests/standin/small-frontend");
        self.command.extend(["--front-end-root".to_owned(), folder.display().to_string()]);
        self
    }

    fn real(folder: &Path, dir: &Path) -> Result<Self> {
        let path = base_folder(dir)?;
        let workdir = folder
            .canonicalize()
            .with_context(|| format!("COMFYUI_DIR: there is no folder {}", folder.display()))?;
        ensure!(
            workdir.join("main.py").is_file(),
            "COMFYUI_DIR: there is no main.py in {}",
            folder.display()
        );
        let python = variable("COMFYUI_PYTHON").unwrap_or_else(|| "python3".into());
        let mut command = vec![
            absolute_program(&python)?,
            "main.py".into(),
            "--cpu".into(),
            "--base-directory".into(),
            text(&path)?,
        ];
        // A base folder has custom nodes of its own, and this one comes with ComfyUI.
        let websocket = "custom_nodes/websocket_image_save.py";
        fs::copy(workdir.join(websocket), path.join(websocket))
            .with_context(|| format!("COMFYUI_DIR: cannot copy {websocket}"))?;
        // Its database does not follow the base folder.
        let arguments = fs::read_to_string(workdir.join("comfy/cli_args.py")).unwrap_or_default();
        if arguments.contains("--database-url") {
            command.extend(["--database-url".into(), "sqlite:///:memory:".into()]);
        }
        Ok(Self { command, workdir, path, real: true })
    }

    /// Whether this is a real ComfyUI.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.real
    }

    /// What it is, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        if self.real {
            format!("ComfyUI at {}", self.workdir.display())
        } else {
            "the stand-in ComfyUI (set COMFYUI_DIR for a real one)".into()
        }
    }

    /// The command as a shell would read it.
    #[must_use]
    pub fn command_line(&self) -> String {
        let quote = |word: &String| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
            if !word.is_empty() && word.chars().all(plain) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        };
        self.command.iter().map(quote).collect::<Vec<_>>().join(" ")
    }

    /// Starts it on a free loopback port and waits until it answers.
    ///
    /// # Errors
    /// When it ends or stays silent, with its last words.
    pub async fn start(&self) -> Result<RunningEngine> {
        let mut running = self.spawn().await?;
        let limit = if self.real { COMFYUI_BOOT } else { STANDIN_BOOT };
        let url = format!("{}/system_stats", running.url());
        tokio::select! {
            ready = wait_for("ComfyUI's boot", limit, || answers(&url)) => ready.with_context(|| running.log())?,
            ended = running.group.wait() => bail!("ComfyUI ended ({}) at start\n{}", ended?, running.log()),
        }
        Ok(running)
    }

    /// Starts it on a free loopback port; it answers after its boot.
    ///
    /// # Errors
    /// When its program cannot be started.
    pub async fn spawn(&self) -> Result<RunningEngine> {
        let port = free_port()?;
        let (program, arguments) = self.command.split_first().context("the command is empty")?;
        let log_file = self.path.join("comfyui.log");
        let log = File::options().create(true).append(true).open(&log_file)?;
        let mut command = Command::new(program);
        command.args(arguments).args(["--port", &port.to_string()]).current_dir(&self.workdir);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let group = background::run(ProcessGroup::spawn(command, "comfyui"))
            .await?
            .with_context(|| format!("cannot start {program}"))?;
        Ok(RunningEngine { group, port, log_file, path: self.path.clone(), real: self.real })
    }
}

/// A ComfyUI that was started. Dropping it kills it.
#[derive(Debug)]
pub struct RunningEngine {
    group: ProcessGroup,
    port: u16,
    log_file: PathBuf,
    path: PathBuf,
    real: bool,
}

impl RunningEngine {
    /// The ComfyUI that all tests of this process share ([`Engine::from_env`]), started by the first
    /// one that asks.
    ///
    /// # Errors
    /// Those of [`Engine::from_env`] and [`Engine::start`].
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<RunningEngine> = OnceCell::const_new();
        let start = || async { Engine::from_env(&scratch::folder_of_process("comfyui")?)?.start().await };
        SHARED.get_or_try_init(start).await
    }

    /// Whether this is a real ComfyUI.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.real
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// Everything that it printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log_file).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Stops it and waits until none of its processes is left.
    ///
    /// # Errors
    /// When one is.
    pub async fn stop(self) -> Result<()> {
        let Self { group, path, .. } = self;
        group.stop(Duration::from_secs(5)).await;
        wait_for("the end of ComfyUI's processes", DEATH, || async {
            processes_with_env_or_cwd_beneath(&path).is_empty()
        })
        .await
    }
}

async fn answers(url: &str) -> bool {
    reqwest::get(url).await.is_ok_and(|answer| answer.status().is_success())
}

/// Makes what ComfyUI expects in a base folder, and gives its path without links.
fn base_folder(dir: &Path) -> Result<PathBuf> {
    for folder in ["input", "output", "temp", "models", "custom_nodes", "user"] {
        let folder = dir.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).with_context(|| format!("{}: not UTF-8", path.display()))
}

/// The program's absolute path, not resolving links: a virtual environment's Python is one.
fn absolute_program(program: &str) -> Result<String> {
    if program.contains('/') {
        let path = std::path::absolute(program)?;
        ensure!(path.is_file(), "there is no Python at {program}");
        return text(&path);
    }
    let found = env::split_paths(env::var_os("PATH").as_deref().unwrap_or(OsStr::new("")))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file());
    text(&found.with_context(|| format!("{program} is not in PATH"))?)
}
