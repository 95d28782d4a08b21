//! ComfyUI or Chromium dies, boots slowly, or finds its port taken; the worker goes on.

use std::{fs, net::TcpListener};

use anyhow::{Context as _, Result, ensure};
use testbed::{Engine, Signal, alive, free_port, wait_for};

use super::{
    BOOT, SOON,
    bed::{Bed, slow_job, staged_job, ui_job},
    site::{Site, child, end, kill, wait_event, wait_running, wait_unready},
};

#[tokio::test]
async fn comfyui_and_chromium_are_killed_and_the_worker_goes_on() -> Result<()> {
    let bed = Bed::new("engine-killed").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;

    let chromium = child(&worker, "--user-data-dir")?;
    kill(chromium, Signal::KILL)?;
    bed.publish(&ui_job("chromium-idle")?).await?;
    let result = bed.answer("chromium-idle").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");
    ensure!(site.scratch() == 2, "the killed Chromium's profile is left");

    let comfyui = child(&worker, "main.py")?;
    kill(comfyui, Signal::KILL)?;
    wait_for("its end", SOON, || async { !alive(comfyui) }).await?;
    bed.publish(&ui_job("comfyui-idle")?).await?;
    let result = bed.answer("comfyui-idle").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");

    bed.publish(&slow_job("comfyui-running", 2.0)).await?;
    wait_running(&worker, "comfyui-running").await?;
    kill(child(&worker, "main.py")?, Signal::KILL)?;
    let result = bed.answer("comfyui-running").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    ensure!(bed.attempts("comfyui-running").await? == 1, "tried again here, not handed back");

    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// Its job goes back: another worker may run it.
#[tokio::test]
async fn a_comfyui_that_cannot_be_started_again_ends_the_worker() -> Result<()> {
    let bed = Bed::new("engine-lost").await?;
    let folder = bed.folder.path();
    let script = folder.join("start.sh");
    let engine = Engine::from_env(&folder.join("a/comfy"))?;
    fs::write(&script, format!("exec {} \"$@\"\n", engine.command_line()))?;
    let site = Site::new(&bed, "a")?.set("comfyui.command", format!("sh {}", script.display()));
    let mut worker = site.boot().await?;
    let seen = worker.descendants();
    fs::remove_file(&script)?;
    kill(child(&worker, "main.py")?, Signal::KILL)?;
    bed.publish(&slow_job("lost", 0.1)).await?;
    let (status, _) = end(&mut worker, BOOT).await?;
    ensure!(status.code() == Some(3), "{status}\n{}", worker.log());
    site.wait_no_process(&seen, SOON).await?;
    site.ensure_no_file(site.initial())?;
    bed.wait_queued(1).await
}

#[tokio::test]
async fn a_slow_boot_is_waited_for() -> Result<()> {
    let bed = Bed::new("slow-boot").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT_DELAY", "20");
    let mut worker = site.start().await?;
    wait_unready(&worker, "booting").await?;
    worker.wait_ready(BOOT).await?;
    site.finish(worker, site.initial()).await
}

/// Somebody else listens at ComfyUI's first port; and two workers that start together take it in turns.
#[tokio::test]
async fn a_taken_port_moves_on_to_the_next() -> Result<()> {
    let bed = Bed::new("port-taken").await?;
    let port = free_port()?;
    let taken = TcpListener::bind(("127.0.0.1", port)).context("the port was taken meanwhile")?;
    let sites = ["a", "b"]
        .map(|name| Ok::<_, anyhow::Error>(Site::new(&bed, name)?.set("comfyui.port", port.to_string())));
    let [first, second] = sites;
    let (first, second) = (first?, second?);
    let (one, two) = tokio::try_join!(first.boot(), second.boot())?;
    let ports: Vec<u16> = [&one, &two]
        .into_iter()
        .map(|worker| {
            let children = worker.descendants();
            let comfyui = children.iter().find(|child| child.command.contains("main.py"));
            let command = &comfyui.context("no ComfyUI")?.command;
            let (_, port) = command.rsplit_once("--port ").context("no --port")?;
            Ok(port.parse()?)
        })
        .collect::<Result<_>>()?;
    ensure!(ports[0] != ports[1] && ports.iter().all(|found| *found > port), "{ports:?} from {port}");
    drop(taken);
    tokio::try_join!(first.finish(one, first.initial()), second.finish(two, second.initial()))?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn the_first_job_is_staged_while_comfyui_boots() -> Result<()> {
    let bed = Bed::new("early-job").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT_DELAY", "20");
    let worker = site.start().await?;
    bed.wait_subscribed().await?;
    bed.publish(&staged_job("early", 0.1)).await?;
    wait_event(&worker, "early", &["staged"]).await?;
    wait_unready(&worker, "booting").await?;
    let result = bed.answer("early").await?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}");
    site.finish(worker, site.initial()).await
}

/// And the next start takes none before ComfyUI runs: each time would cost the job a delivery.
#[tokio::test]
async fn a_start_that_fails_hands_the_first_job_back() -> Result<()> {
    let bed = Bed::new("early-lost").await?;
    let site = Site::standin(&bed, "a")?;
    // Declares the queue.
    let worker = site.boot().await?;
    site.finish(worker, site.initial()).await?;
    bed.publish(&staged_job("first", 0.1)).await?;
    for start in ["clean", "after one that failed"] {
        let mut worker = site.builder().env("STANDIN_BOOT", "exit").start().await?;
        let (status, _) = end(&mut worker, BOOT).await?;
        ensure!(status.code() == Some(3), "{start}: {status}\n{}", worker.log());
        bed.wait_queued(1).await?;
        let attempts = bed.attempts("first").await?;
        ensure!(attempts == 1, "{start}: {attempts} attempts\n{}", worker.log());
        let marker = bed.marker("first", 1).await?;
        ensure!(!marker["closed"].is_null(), "{start}: the attempt counts as a crash: {marker:#}");
    }
    let worker = site.boot().await?;
    let result = bed.answer("first").await?;
    ensure!(result["status"] == "succeeded", "{result:#}");
    site.finish(worker, site.initial()).await
}

/// Nobody is waited for by a worker that has stopped waiting for jobs.
#[tokio::test]
async fn a_boot_that_takes_longer_than_a_minute_ends_in_a_worker_that_takes_jobs() -> Result<()> {
    let bed = Bed::new("engine-minute").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT_DELAY", "70");
    let worker = site.boot().await?;
    bed.publish(&staged_job("j", 0.1)).await?;
    ensure!(bed.answer("j").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}
