//! A RabbitMQ of our own: own node name, ports, cookie, epmd and data folder.
//!
//! Invariant: two children of ours lead everything, each with the parent-death signal: `epmd` in
//! the foreground, and the Erlang machine itself (no shell is left above it). Erlang's helpers
//! (`erl_child_setup`, `inet_gethost`) end when their pipe to it closes.

mod extras;
mod install;
mod raw;

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use connector::child::ProcessGroup;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    sync::{Mutex, OnceCell},
    time::timeout,
};

use crate::{
    background, free_port,
    limits::{BROKER_BOOT, BROKER_STOP, DEATH},
    processes_with_env_or_cwd_beneath, scratch, wait_for,
};
pub use extras::Extras;
use install::Installation;
pub use raw::RawMessage;

/// Not `rabbit`, so that nobody takes it for a system's own node.
const NODE: &str = "comfy-testbed@localhost";

/// A private RabbitMQ server. Dropping it kills it; its data stays in its folder.
#[derive(Debug)]
pub struct RabbitMq {
    installation: Installation,
    dir: PathBuf,
    ports: Ports,
    /// `None`: stopped.
    running: Mutex<Option<Running>>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    amqp: u16,
    distribution: u16,
    epmd: u16,
}

#[derive(Debug)]
struct Running {
    broker: ProcessGroup,
    epmd: ProcessGroup,
}

impl RabbitMq {
    /// Starts a server whose data lies in `dir` (made if missing; what an earlier one left there is
    /// used) and waits until it accepts connections.
    ///
    /// # Errors
    /// When RabbitMQ is not installed (says how to get it) or does not start (with its last words).
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_in(folder(dir)?, "", "").await
    }

    /// Like [`RabbitMq::start`], with these lines in its `rabbitmq.conf`.
    ///
    /// # Errors
    /// Those of [`RabbitMq::start`].
    pub async fn start_with_settings(dir: &Path, settings: &str) -> Result<Self> {
        Self::start_in(folder(dir)?, "", settings).await
    }

    /// Like [`RabbitMq::start`], with a TLS listener and the management API.
    ///
    /// # Errors
    /// Those of [`RabbitMq::start`], and when the extras' files cannot be written.
    pub async fn start_with_extras(dir: &Path) -> Result<(Self, Extras)> {
        let dir = folder(dir)?;
        let (extras, settings) = Extras::make(&dir)?;
        let broker = Self::start_in(dir, "rabbitmq_management", &settings).await?;
        // They open after the plain listener.
        for port in extras.ports() {
            let open = || async move { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() };
            wait_for("TLS and the management API", BROKER_BOOT, open).await?;
        }
        Ok((broker, extras))
    }

    async fn start_in(dir: PathBuf, plugins: &str, settings: &str) -> Result<Self> {
        let installation = Installation::find()?;
        write_settings(&dir, plugins, settings)?;
        let ports = Ports { amqp: free_port()?, distribution: free_port()?, epmd: free_port()? };
        let broker = Self { installation, dir, ports, running: Mutex::new(None) };
        *broker.running.lock().await = Some(broker.boot().await?);
        Ok(broker)
    }

    /// The server that all tests of this process share, started by the first one that asks.
    ///
    /// # Errors
    /// Those of [`RabbitMq::start`].
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<RabbitMq> = OnceCell::const_new();
        SHARED.get_or_try_init(|| async { Self::start(&scratch::folder_of_process("rabbitmq")?).await }).await
    }

    /// `amqp://…` of its default virtual host, with user and password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.ports.amqp)
    }

    /// The folder that holds its data and logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops it in order (connections are closed, data is flushed) and waits until no process is
    /// left. A stopped one stays stopped.
    ///
    /// # Errors
    /// When processes are left.
    pub async fn stop(&self) -> Result<()> {
        let Some(Running { mut broker, epmd }) = self.running.lock().await.take() else { return Ok(()) };
        // Only the leader: its helpers must live until it has shut down.
        if let Some(pid) = i32::try_from(broker.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = timeout(BROKER_STOP, broker.wait()).await;
        broker.stop(Duration::ZERO).await;
        epmd.stop(Duration::ZERO).await;
        self.wait_until_gone().await?;
        ended.map_or_else(
            |_| bail!("RabbitMQ did not end within {BROKER_STOP:?} of TERM; killed\n{}", self.last_words()),
            |status| status.context("RabbitMQ's end").map(drop),
        )
    }

    /// Kills it as a power cut would, and waits until no process is left.
    ///
    /// # Errors
    /// When processes are left.
    pub async fn kill(&self) -> Result<()> {
        let Some(Running { broker, epmd }) = self.running.lock().await.take() else { return Ok(()) };
        broker.stop(Duration::ZERO).await;
        epmd.stop(Duration::ZERO).await;
        self.wait_until_gone().await
    }

    /// Stops it (if it runs) and starts it on the same ports with the same data.
    ///
    /// # Errors
    /// Those of [`RabbitMq::stop`] and [`RabbitMq::start`].
    pub async fn restart(&self) -> Result<()> {
        self.stop().await?;
        let mut running = self.running.lock().await;
        *running = Some(self.boot().await?);
        Ok(())
    }

    /// Runs `rabbitmqctl` on it and gives what it printed.
    ///
    /// # Errors
    /// When it fails, with its own words.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(&self.installation.program("rabbitmqctl"));
        command.arg("--quiet").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let Output { status, stdout, stderr } = command.output().await.context("cannot run rabbitmqctl")?;
        let [stdout, stderr] =
            [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        if !status.success() {
            bail!("rabbitmqctl {}: {status}\n{stdout}\n{stderr}", arguments.join(" "));
        }
        Ok(stdout)
    }

    async fn boot(&self) -> Result<Running> {
        let mut epmd = self.command(Path::new("epmd"));
        // Without -daemon it stays in the foreground: our child, under our parent-death signal.
        epmd.args(["-address", "127.0.0.1", "-port", &self.ports.epmd.to_string()]);
        let epmd = self.spawn(epmd, "epmd").await?;
        let port = self.ports.epmd;
        wait_for(
            "epmd",
            DEATH,
            || async move { TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() },
        )
        .await?;

        let broker = self.command(&self.installation.program("rabbitmq-server"));
        let broker = self.spawn(broker, "rabbitmq").await?;
        let mut running = Running { broker, epmd };
        tokio::select! {
            ready = wait_for("RabbitMQ", BROKER_BOOT, || speaks_amqp(self.ports.amqp)) =>
                ready.with_context(|| self.last_words())?,
            ended = running.broker.wait() => bail!("RabbitMQ ended ({}) at start\n{}", ended?, self.last_words()),
        }
        Ok(running)
    }

    async fn spawn(&self, mut command: Command, name: &'static str) -> Result<ProcessGroup> {
        // A file, not a pipe: it must be able to write whatever becomes of the test that started it.
        let log = File::options().create(true).append(true).open(self.log_file())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        background::run(ProcessGroup::spawn(command, name))
            .await?
            .with_context(|| format!("cannot start {name}"))
    }

    /// A command in this instance's environment, and in nobody else's.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.environment()).current_dir(&self.dir);
        command
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        vec![
            ("PATH", self.installation.path()),
            ("LANG", "C.UTF-8".into()),
            ("HOME", file("")),
            ("ERL_EPMD_PORT", self.ports.epmd.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODENAME", NODE.into()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODE_PORT", self.ports.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", self.ports.distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_PID_FILE", file("pid")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", file("generated")),
            ("RABBITMQ_CONF_ENV_FILE", file("empty")),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", file("advanced.config")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            // With "input" the script replaces itself by Erlang instead of staying above it as a
            // proxy that a KILL would end alone; -noinput then takes the input away again.
            ("RABBITMQ_ALLOW_INPUT", "1".into()),
            ("RABBITMQ_SERVER_START_ARGS", "-noinput".into()),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
                    .into(),
            ),
            // rabbitmqctl is an Erlang machine too.
            ("RABBITMQ_CTL_ERL_ARGS", "+S 1:1 +sbwt none".into()),
        ]
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("rabbitmq.out")
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    async fn wait_until_gone(&self) -> Result<()> {
        let gone = || async { processes_with_env_or_cwd_beneath(&self.dir).is_empty() };
        wait_for("the end of RabbitMQ's processes", DEATH, gone)
            .await
            .with_context(|| format!("left: {:?}", processes_with_env_or_cwd_beneath(&self.dir)))
    }
}

/// A folder by its whole path, made if missing.
fn folder(dir: &Path) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    dir.canonicalize().with_context(|| format!("cannot read {}", dir.display()))
}

fn write_settings(dir: &Path, plugins: &str, settings: &str) -> Result<()> {
    // A full disk or a small container blocks publishers: tests then hang instead of failing.
    let limits = "disk_free_limit.absolute = 1MB\nvm_memory_high_watermark.relative = 0.8\n";
    let files = [
        ("empty", String::new()),
        ("enabled_plugins", format!("[{plugins}].\n")),
        ("advanced.config", "[].\n".to_owned()),
        ("rabbitmq.conf", format!("{limits}{settings}")),
    ];
    for (name, text) in files {
        fs::write(dir.join(name), text)
            .with_context(|| format!("cannot write {name} in {}", dir.display()))?;
    }
    Ok(())
}

/// Whether an AMQP server greets on that port: RabbitMQ opens it at the very end of its boot.
async fn speaks_amqp(port: u16) -> bool {
    let greet = async {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
        // A method frame: Connection.Start.
        socket.read_u8().await
    };
    matches!(greet.await, Ok(1))
}
