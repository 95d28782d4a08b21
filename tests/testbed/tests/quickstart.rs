//! The quick start as `scripts/quickstart` runs it: RabbitMQ, S3, ComfyUI (or its stand-in),
//! Chromium and the worker, from the UI workflow to the fetched picture.
//!
//! The worker's binary lies beside the quick start's, where `cargo test --workspace` puts it.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use testbed::{
    Pixels, Signal, alive, descendants, processes_with_env_or_cwd_beneath, scratch_root, wait_for,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(400);

fn scratch() -> Result<tempfile::TempDir> {
    let root = scratch_root()?;
    std::fs::create_dir_all(&root)?;
    Ok(tempfile::tempdir_in(root)?)
}

fn quickstart(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.arg(folder).stdin(Stdio::null()).kill_on_drop(true);
    command
}

#[tokio::test]
async fn its_picture_is_the_input_inverted_and_nothing_is_left() -> Result<()> {
    let dir = scratch()?;
    let folder = dir.path().join("quickstart");
    let output = timeout(LIMIT, quickstart(&folder).output()).await??;
    let [printed, errors] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    ensure!(output.status.success(), "{}\n{printed}\n{errors}", output.status);

    let after = folder.join("output/inverted_00001_.png");
    ensure!(printed.contains(&after.display().to_string()), "the picture's place is not printed:\n{printed}");
    let before = Pixels::read(&std::fs::read(folder.join("landscape.png"))?)?;
    ensure!(before == Pixels::read(&testbed::landscape())?);
    ensure!(Pixels::read(&std::fs::read(after)?)?.is_negative_of(&before), "not the input's negative");

    ensure!(printed.contains("Its status page, while it runs: http://127.0.0.1:"), "{printed}");
    ensure!(printed.contains("no process is left"), "{printed}");
    let left = processes_with_env_or_cwd_beneath(&folder);
    ensure!(left.is_empty(), "left: {left:#?}");
    let staged: Vec<_> = std::fs::read_dir(folder.join("comfyui/input"))?.collect();
    ensure!(staged.is_empty(), "staged files are left: {staged:?}");
    Ok(())
}

#[tokio::test]
async fn an_interrupt_in_the_middle_stops_everything() -> Result<()> {
    let dir = scratch()?;
    let folder = dir.path().join("quickstart");
    let mut child = quickstart(&folder).stdout(Stdio::piped()).spawn()?;
    let pid = child.id().context("it ended at once")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let broker_runs = async {
        while let Some(line) = lines.next_line().await? {
            if line.contains("amqp://") {
                return Ok(());
            }
        }
        anyhow::bail!("it ended before RabbitMQ ran")
    };
    timeout(LIMIT, broker_runs).await??;
    // The worker is booting now.
    let running = descendants(pid);
    ensure!(running.iter().any(|process| process.command.contains("beam")), "no RabbitMQ: {running:#?}");
    let child_pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("no process id")?;
    rustix::process::kill_process(child_pid, Signal::INT)?;

    // What it says must have somewhere to go until its end.
    let rest = async { while let Ok(Some(_)) = lines.next_line().await {} };
    let (status, ()) = timeout(LIMIT, async { tokio::join!(child.wait(), rest) }).await?;
    ensure!(status?.code() == Some(130), "an interrupted one must exit with 130");
    wait_for("the end of what it had started", Duration::from_secs(10), || async {
        running.iter().all(|process| !alive(process.pid))
            && processes_with_env_or_cwd_beneath(&folder).is_empty()
    })
    .await
}
