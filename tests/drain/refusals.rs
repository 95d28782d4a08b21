//! A configuration that cannot work: one line that says what to change, and exit code 2. What may pass by itself: 3.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use testbed::{Front, Spoil, WorkerBuilder, wait_for};

use super::{SOON, bed::Bed, site::Site};

/// The last line and the exit code of `serve`, and how long it took.
async fn refusal(site: &Site, builder: WorkerBuilder) -> Result<(String, Option<i32>, Duration)> {
    refusal_with(builder, site, "off").await
}

async fn refusal_with(
    builder: WorkerBuilder,
    site: &Site,
    admin: &str,
) -> Result<(String, Option<i32>, Duration)> {
    let mut command = builder.command(&["serve", "--admin-listen", admin])?;
    let begin = Instant::now();
    let output = command.kill_on_drop(true).output().await?;
    let took = begin.elapsed();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<_> = text.lines().filter(|line| line.starts_with("comfy-worker: ")).collect();
    ensure!(ours.len() == 1 && text.trim_end().ends_with(ours[0]), "not one line at the end:\n{text}");
    ensure!(!text.contains("panicked"), "{text}");
    wait_for("the end of all processes", SOON, || async { site.processes().is_empty() }).await?;
    Ok((ours[0].to_owned(), output.status.code(), took))
}

#[tokio::test]
async fn a_wrong_password_ends_within_5_s() -> Result<()> {
    let bed = Bed::new("password").await?;
    let site = Site::new(&bed, "a")?;
    let before = site.snapshot()?;
    let url = bed.broker.url().replace("guest:guest", "guest:hunter2");
    let (line, code, took) = refusal(&site, site.builder().set("amqp.url", url)).await?;
    ensure!(code == Some(2), "{code:?} {line}");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    ensure!(line.contains("amqp.url") && !line.contains("hunter2"), "{line}");
    site.ensure_no_file(&before)
}

#[tokio::test]
async fn a_missing_store_is_named() -> Result<()> {
    let bed = Bed::new("no-store").await?;
    let site = Site::new(&bed, "a")?;
    let (line, code, took) = refusal(&site, site.builder().set("store.uri", "")).await?;
    ensure!(code == Some(2) && line.contains("store.uri"), "{code:?} {line}");
    ensure!(took < Duration::from_secs(5), "{took:?}");
    Ok(())
}

/// Keys that are being exchanged are refused like wrong ones: nobody must change a setting for that.
#[tokio::test]
async fn a_store_that_refuses_the_credentials_is_no_misconfiguration() -> Result<()> {
    let bed = Bed::new("refused-keys").await?;
    let front = Front::start(bed.s3.address()).await?;
    front.spoil("", Spoil::Refuse(403), usize::MAX);
    let site = Site::standin(&bed, "a")?;
    let endpoint = format!("http://{}", front.address());
    let (line, code, _) = refusal(&site, site.builder().set("store.endpoint", endpoint)).await?;
    ensure!(code == Some(3) && line.contains("store.uri") && line.contains("403"), "{code:?} {line}");
    Ok(())
}

#[tokio::test]
async fn a_port_that_is_taken_is_no_misconfiguration() -> Result<()> {
    let bed = Bed::new("taken-port").await?;
    let site = Site::standin(&bed, "a")?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let (line, code, _) = refusal_with(site.builder(), &site, &address).await?;
    ensure!(code == Some(3) && line.contains("admin.listen"), "{code:?} {line}");
    Ok(())
}

/// Three tries, then the end, with ComfyUI's own last words.
#[tokio::test]
async fn a_comfyui_that_ends_at_boot_is_quoted() -> Result<()> {
    let bed = Bed::new("boot-exit").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT", "exit");
    let before = site.snapshot()?;
    let builder = site.builder();
    let mut command = builder.command(&["serve", "--admin-listen", "off"])?;
    let output = command.kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stderr);
    let log = text.clone() + String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(3), "{}\n{log}", output.status);
    let words = text.rsplit_once("comfy-worker: ").map_or("", |(_, words)| words);
    ensure!(words.contains("ComfyUI ended while starting") && words.contains("its last lines"), "{log}");
    ensure!(log.matches("the start failed, trying again").count() == 2, "{log}");
    wait_for("the end of all processes", SOON, || async { site.processes().is_empty() }).await?;
    site.ensure_no_file(&before)
}
