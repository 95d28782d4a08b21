//! ComfyUI's process: started on a free port, watched, stopped.

use std::{
    process::Stdio,
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    process::Command,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    activity::ProcessActivity,
    client::Client,
    environment::inherit,
    port,
    prompt_thread::{Announced, PromptThread},
};
use crate::{
    child::{self, LogTail, ProcessGroup, ProcessTree},
    config::ComfyUiConfig,
    text::is_credential,
};

/// How long ComfyUI may take to end on TERM before its group is killed.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// How long one that is given up may take to write its stacks.
const STACKS_LIMIT: Duration = Duration::from_secs(1);
/// A boot that lost its port to somebody else moves on this often.
const PORT_TRIES: u32 = 10;
/// How often the boot looks whether ComfyUI answers.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// Lines of ComfyUI's log in an error.
const LINES_IN_ERROR: usize = 12;

/// A ComfyUI that answers, and is ours.
#[derive(Debug)]
pub struct Server {
    client: Client,
    pid: u32,
    version: String,
    exit: watch::Receiver<Option<String>>,
    stop: CancellationToken,
    ending: Arc<OnceLock<Ending>>,
    members: ProcessTree,
    processes: ProcessActivity,
    prompt_thread: PromptThread,
    supervisor: JoinHandle<()>,
}

/// How it is ended; the first word counts.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// TERM, then KILL.
    Stop,
    /// KILL.
    Kill,
    /// ABRT, for which Python writes its stacks, then KILL.
    Abort,
}

/// Why ComfyUI did not come up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootError {
    /// The command could not be started.
    #[error(
        "cannot start ComfyUI with `{command}` in {workdir}: {reason}; see comfyui.command and comfyui.workdir"
    )]
    Spawn {
        /// The command line, without keys.
        command: String,
        /// Its folder.
        workdir: String,
        /// What the operating system says.
        reason: String,
    },
    /// It ended before it answered.
    #[error("ComfyUI ended while starting (see comfyui.command and comfyui.workdir): {0}")]
    Exited(String),
    /// It did not answer within `comfyui.boot_timeout`.
    #[error("ComfyUI did not answer within {limit:?} (comfyui.boot_timeout); its last lines:\n{tail}")]
    TimedOut {
        /// The limit.
        limit: Duration,
        /// ComfyUI's last lines.
        tail: String,
    },
    /// No port from `comfyui.port` upwards is free.
    #[error("no free port from {0} upwards; see comfyui.port")]
    NoPort(u16),
}

impl Server {
    /// Starts ComfyUI on the first free port and waits until it answers: as long as its process
    /// lives, `boot_timeout` at most. `each_line` gets its log; `on_address` the address before ComfyUI
    /// answers there, again when it has to move to another port, and is dropped at the end.
    ///
    /// # Errors
    /// See [`BootError`].
    pub async fn boot(
        config: &ComfyUiConfig,
        each_line: impl Fn(&str) + Clone + Send + 'static,
        on_address: impl Fn(&Url),
    ) -> Result<Self, BootError> {
        let mut first = config.port;
        for _ in 0..PORT_TRIES {
            let port = port::find_free(&config.host, first).ok_or(BootError::NoPort(config.port))?;
            match Self::boot_at(config, port, each_line.clone(), &on_address).await {
                // ComfyUI ends at once when somebody took the port meanwhile.
                Err(BootError::Exited(_)) if port::find_free(&config.host, port) != Some(port) => {
                    tracing::info!(port, "the port was taken while ComfyUI started, trying the next");
                    first = port.saturating_add(1);
                }
                outcome => return outcome,
            }
        }
        Err(BootError::NoPort(config.port))
    }

    async fn boot_at(
        config: &ComfyUiConfig,
        port: u16,
        each_line: impl Fn(&str) + Clone + Send + 'static,
        on_address: impl Fn(&Url),
    ) -> Result<Self, BootError> {
        let spawn_error = |reason: String| BootError::Spawn {
            command: shown(&config.command),
            workdir: config.workdir.display().to_string(),
            reason,
        };
        let base = Url::parse(&format!("http://{}:{port}/", config.host));
        let base = base.map_err(|error| spawn_error(error.to_string()))?;
        let client = Client::new(base).map_err(|error| spawn_error(error.to_string()))?;
        let command = command(config, port).ok_or_else(|| spawn_error("the command is empty".into()))?;
        let group =
            ProcessGroup::spawn(command, "comfyui").await.map_err(|error| spawn_error(error.to_string()))?;
        let mut group = group.with_strays();
        tracing::debug!(pid = group.pid(), port, "ComfyUI started");
        on_address(client.base());

        let (tail, announced) = (LogTail::default(), Announced::default());
        let each_line = {
            let announced = announced.clone();
            move |line: &str| {
                announced.hear(line);
                each_line(line);
            }
        };
        let (stdout, stderr) = group.take_output();
        if let (Some(stdout), Some(stderr)) = (stdout, stderr) {
            // Both end with the child's pipes.
            tokio::spawn(tail.clone().follow(stdout, each_line.clone()));
            tokio::spawn(tail.clone().follow(stderr, each_line));
        }

        let members = group.members();
        let ours = async {
            loop {
                // Another's answer: ours will find its port taken and end.
                if let Ok(stats) = client.system_stats().await
                    && !port::is_foreign(port, |pid| members.has(pid))
                {
                    break stats;
                }
                sleep(PROBE_EVERY).await;
            }
        };
        let stats = tokio::select! {
            stats = ours => stats,
            status = group.wait() => {
                // What it wrote last may still be in the pipe.
                sleep(Duration::from_millis(50)).await;
                return Err(BootError::Exited(ending(status, &tail)));
            }
            () = sleep(config.boot_timeout) => {
                let (limit, tail) = (config.boot_timeout, tail.last(LINES_IN_ERROR));
                tracing::warn!(?limit, "ComfyUI does not come up; its stacks follow");
                group.abort(STACKS_LIMIT).await;
                return Err(BootError::TimedOut { limit, tail });
            }
        };
        let listener = port::owners(port).find(|pid| members.has(*pid)).unwrap_or_else(|| group.pid());
        let version = stats.pointer("/system/comfyui_version").and_then(Value::as_str).unwrap_or("unknown");
        let thread = PromptThread::of(listener, announced);
        let processes = ProcessActivity::of(listener, members);
        Ok(Self::supervise(client, group, version.to_owned(), tail, processes, thread))
    }

    fn supervise(
        client: Client,
        mut group: ProcessGroup,
        version: String,
        tail: LogTail,
        processes: ProcessActivity,
        prompt_thread: PromptThread,
    ) -> Self {
        let (pid, members) = (group.pid(), group.members());
        let (stop, ending_as) = (CancellationToken::new(), Arc::new(OnceLock::new()));
        let (stopping, how) = (stop.clone(), Arc::clone(&ending_as));
        let thread = prompt_thread.clone();
        let (report, exit) = watch::channel(None);
        let supervisor = tokio::spawn(async move {
            tokio::select! {
                status = group.wait() => {
                    sleep(Duration::from_millis(50)).await;
                    report.send_replace(Some(ending(status, &tail)));
                }
                () = stopping.cancelled() => {}
            }
            match how.get() {
                Some(Ending::Abort) => {
                    // A second signal would cut short what the first one has written.
                    if thread.abort() {
                        let _ = timeout(STACKS_LIMIT, group.wait()).await;
                    }
                    group.abort(STACKS_LIMIT).await;
                }
                Some(Ending::Kill) => group.stop(Duration::ZERO).await,
                Some(Ending::Stop) | None => group.stop(STOP_GRACE).await,
            }
            report.send_if_modified(|exit| {
                let first = exit.is_none();
                exit.get_or_insert_with(|| "stopped".to_owned());
                first
            });
        });
        Self {
            client,
            pid,
            version,
            exit,
            stop,
            ending: ending_as,
            members,
            processes,
            prompt_thread,
            supervisor,
        }
    }

    /// Its HTTP calls.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The version it says it is.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How it ended, when it has.
    #[must_use]
    pub fn exit(&self) -> Option<String> {
        self.exit.borrow().clone()
    }

    /// Whether its process has ended: known at once, before [`Server::exit`] can say how.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some() || child::has_ended(self.pid)
    }

    /// Waits for its end; how it ended and its last lines.
    pub async fn exited(&self) -> String {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_default(),
            Err(_) => "no longer watched".to_owned(),
        }
    }

    /// Its end, for a task that outlives the caller.
    pub(super) fn on_exit(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            let _ = exit.wait_for(Option::is_some).await;
        }
    }

    /// What its processes do.
    pub(super) fn processes(&self) -> &ProcessActivity {
        &self.processes
    }

    /// The thread that runs its prompts.
    pub(super) fn prompt_thread(&self) -> &PromptThread {
        &self.prompt_thread
    }

    /// Waits until its processes have done nothing for `limit`: neither used the CPU nor read anything.
    pub async fn standstill(&self, limit: Duration) {
        self.processes.standstill(limit).await;
    }

    /// Resident memory of all its processes, in bytes. Reads the process table.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.members.rss()
    }

    /// Kills its whole group; [`Server::stop`] waits for the end.
    pub fn kill(&self) {
        self.end_as(Ending::Kill);
    }

    /// [`Server::kill`], after Python has written into the log where each of its threads is.
    pub fn abort(&self) {
        self.end_as(Ending::Abort);
    }

    /// TERM, then KILL, to its whole group; returns when it is gone. Idempotent.
    pub async fn stop(&self) {
        self.end_as(Ending::Stop);
        self.exited().await;
    }

    fn end_as(&self, ending: Ending) {
        let _ = self.ending.set(ending);
        self.stop.cancel();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Dropping the supervisor's future drops the group, which kills it.
        self.supervisor.abort();
    }
}

fn command(config: &ComfyUiConfig, port: u16) -> Option<Command> {
    let (program, args) = config.command.split_first()?;
    let mut command = Command::new(program);
    command.args(args).args(["--port", &port.to_string()]).current_dir(&config.workdir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    inherit(&mut command);
    // A node's print would otherwise arrive when its buffer is full. The fault handler has it say where it
    // is when it crashes or is given up.
    command.env("PYTHONUNBUFFERED", "1").env("PYTHONFAULTHANDLER", "1").envs(&config.env.0);
    Some(command)
}

fn ending(status: std::io::Result<std::process::ExitStatus>, tail: &LogTail) -> String {
    let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    let lines = tail.last(LINES_IN_ERROR);
    if lines.is_empty() { status } else { format!("{status}; its last lines:\n{lines}") }
}

/// A command line without what its arguments open: `--api-key X`, `--token=X`.
fn shown(command: &[String]) -> String {
    let opens = |flag: &str| is_credential(&flag.replace('-', "_"));
    let mut hidden = false;
    let words = command.iter().map(|word| {
        if std::mem::replace(&mut hidden, opens(word) && !word.contains('=')) {
            return "***".to_owned();
        }
        match word.split_once('=') {
            Some((flag, _)) if opens(flag) => format!("{flag}=***"),
            _ => word.clone(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_command_line_is_shown_without_its_keys() {
        let command =
            ["python3", "main.py", "--api-key", "hunter2", "--token=hunter2", "--listen=x", "--cpu"];
        let shown = super::shown(&command.map(str::to_owned));
        assert_eq!(shown, "python3 main.py --api-key *** --token=*** --listen=x --cpu");
    }
}
