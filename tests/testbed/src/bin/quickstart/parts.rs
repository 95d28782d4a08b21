//! What the quick start has running, and how it is stopped.

use std::{os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use connector::child::ProcessGroup;
use testbed::{
    ProcessInfo, RabbitMq, S3Server, Signal, Worker, alive, descendants, processes_with_env_or_cwd_beneath,
    wait_for,
};

use crate::report;

/// A drain's grace is 25 s by default; ComfyUI and the browser get a few more.
const DRAIN: Duration = Duration::from_secs(60);

/// The running parts; those not started yet are `None`.
pub(crate) struct Parts {
    /// Everything lies in here.
    pub(crate) folder: PathBuf,
    pub(crate) s3: Option<S3Server>,
    pub(crate) broker: Option<RabbitMq>,
    pub(crate) worker: Option<Worker>,
    /// It has been ready: from then on TERM must end it with exit code 0.
    pub(crate) worker_was_ready: bool,
    pub(crate) submit: Option<ProcessGroup>,
}

impl Parts {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, s3: None, broker: None, worker: None, worker_was_ready: false, submit: None }
    }

    /// Stops everything in order and checks that no process is left.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        // Nothing to stop and nothing to say: the first part could not be started.
        if self.s3.is_none() && self.broker.is_none() {
            return Ok(());
        }
        println!("\nStopping");
        let started: Vec<ProcessInfo> = descendants(std::process::id());
        if let Some(submit) = self.submit.take() {
            submit.stop(Duration::from_secs(2)).await;
        }
        let worker = self.stop_worker().await;
        let broker = match self.broker.take() {
            Some(broker) => report::step("RabbitMQ stopped", broker.stop(), |()| String::new()).await,
            None => Ok(()),
        };
        self.s3 = None;
        worker.and(broker)?;
        self.check_nothing_left(&started).await
    }

    async fn stop_worker(&mut self) -> Result<()> {
        let Some(mut worker) = self.worker.take() else { return Ok(()) };
        // One that ended by itself has been reported by anyone who noticed.
        if worker.exit_status().is_some() {
            return Ok(());
        }
        let ready = self.worker_was_ready;
        let drain = async {
            worker.signal(Signal::TERM)?;
            let status = worker.wait_exit(DRAIN).await?;
            // In its first moments a process does not listen for signals yet.
            let never_listened = !ready && status.signal() == Some(Signal::TERM.as_raw());
            ensure!(
                status.success() || never_listened,
                "the worker ended with {status}; the end of its log:\n{}",
                tail(&worker.log())
            );
            Ok(status)
        };
        report::step("worker drained (SIGTERM)", drain, ToString::to_string).await.map(drop)
    }

    async fn check_nothing_left(&self, started: &[ProcessInfo]) -> Result<()> {
        let left = || {
            let mut left = processes_with_env_or_cwd_beneath(&self.folder);
            // Our own guard (`crates/connector/src/child/guard.rs`) waits for our end and goes with us.
            let is_own_guard = |process: &&ProcessInfo| {
                process.parent == std::process::id() && process.command.contains("comfy-worker-guard")
            };
            let started = started.iter().filter(|process| !is_own_guard(process));
            left.extend(started.filter(|process| alive(process.pid)).cloned());
            left
        };
        let gone =
            wait_for("the end of every process", Duration::from_secs(10), || async { left().is_empty() });
        if gone.await.is_err() {
            let left: Vec<String> = left().iter().map(|process| format!("  {process}")).collect();
            bail!("processes are left:\n{}", left.join("\n"));
        }
        let counted = if started.is_empty() {
            String::new()
        } else {
            format!(" (of {} that were running)", started.len())
        };
        println!("  no process is left{counted}");
        Ok(())
    }
}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// The part, which an earlier step has started.
pub(crate) fn started<'a, T>(part: &'a Option<T>, name: &str) -> Result<&'a T> {
    part.as_ref().with_context(|| format!("{name} is not running"))
}
