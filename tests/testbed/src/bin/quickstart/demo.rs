//! The demonstration itself, from the first server to the fetched picture.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use connector::child::ProcessGroup;
use serde_json::Value;
use testbed::{Engine, Pixels, RabbitMq, S3Server, Worker, WorkerBuilder, checkout, landscape};

use crate::{
    parts::{Parts, started, tail},
    report,
};

const WORKFLOW: &str = "tests/fixtures/workflows/invert-ui.json";
const INPUT: &str = "landscape.png";
/// Long enough for a real ComfyUI with cold disk caches and a few custom nodes.
const BOOT: Duration = Duration::from_secs(300);

/// Runs one job; what it starts is in `parts` as soon as it runs.
pub(crate) async fn run(parts: &mut Parts) -> Result<()> {
    let begin = Instant::now();
    let folder = parts.folder.clone();
    let binary = worker_binary()?;
    let engine = Engine::from_env(&folder.join("comfyui"))?;
    println!("Starting, everything on free loopback ports, all data in {}", folder.display());
    println!("  ComfyUI: {}", engine.describe());

    let s3_folder = folder.join("s3");
    let s3 = report::step("S3 server", S3Server::start(&s3_folder), S3Server::endpoint).await?;
    let s3 = parts.s3.insert(s3);
    s3.create_bucket("inputs")?;
    s3.create_bucket("results")?;
    s3.put("inputs", INPUT, landscape()).await?;
    fs::write(folder.join(INPUT), landscape())?;

    let broker_folder = folder.join("rabbitmq");
    let broker = RabbitMq::start(&broker_folder);
    let broker = report::step("RabbitMQ", broker, |broker| broker.url().replace("guest:guest@", "")).await?;
    let broker = parts.broker.insert(broker);

    let builder =
        Worker::builder(binary, &folder)?.broker(broker).store(s3, "s3://results/jobs").engine(&engine);
    let boot = Instant::now();
    let worker = parts.worker.insert(builder.clone().start().await?);
    let ready = async {
        worker.wait_ready(BOOT).await?;
        Ok(worker.admin_url("/readyz"))
    };
    report::step("comfy-worker serve (boots ComfyUI and Chromium)", ready, String::clone).await?;
    println!("  Its status page, while it runs: {}", worker.admin_url("/"));
    parts.worker_was_ready = true;
    let boot = boot.elapsed();

    submit(parts, &builder, &folder.join("output")).await?;
    show(parts, &folder, boot, begin).await
}

/// `comfy-worker` lies beside this program.
fn worker_binary() -> Result<PathBuf> {
    let binary = env::current_exe()?.with_file_name("comfy-worker");
    ensure!(binary.is_file(), "{} is missing: start this with scripts/quickstart", binary.display());
    Ok(binary)
}

/// `comfy-worker submit` as a user would call it: its progress bar is on this terminal.
async fn submit(parts: &mut Parts, builder: &WorkerBuilder, output: &Path) -> Result<()> {
    let input = format!("1.image=s3://inputs/{INPUT}");
    let output = output.to_str().context("the folder's name is not UTF-8")?;
    println!("\nSubmitting a UI workflow (load image, invert, save) with an S3 picture");
    println!("  $ comfy-worker submit {WORKFLOW} --input {input} --wait -o {output}\n");
    let mut command = builder.command(&["submit", WORKFLOW, "--input", &input, "--wait", "-o", output])?;
    command.current_dir(checkout()).stdin(Stdio::null());
    let group = ProcessGroup::spawn(command, "comfy-worker submit")
        .await
        .context("cannot start comfy-worker submit")?;
    let submit = parts.submit.insert(group);
    let worker = parts.worker.as_mut().context("the worker is not running")?;
    let status = tokio::select! {
        status = submit.wait() => status?,
        ended = worker.wait_exit(Duration::MAX) =>
            bail!("the worker ended ({}); the end of its log:\n{}", ended?, tail(&worker.log())),
    };
    parts.submit = None;
    ensure!(
        status.success(),
        "comfy-worker submit: {status}; the end of the worker's log:\n{}",
        tail(&worker.log())
    );
    Ok(())
}

/// Where everything lies, and how long each stage took.
async fn show(parts: &Parts, folder: &Path, boot: Duration, begin: Instant) -> Result<()> {
    let s3 = started(&parts.s3, "the S3 server")?;
    let objects = s3.list("results", "").await?;
    let is_result = |(key, _): &&(String, u64)| key.ends_with("/result.json");
    let (key, _) = objects.iter().find(is_result).context("there is no result.json in the bucket")?;
    let result: Value = serde_json::from_slice(&s3.get("results", key).await?)?;
    ensure!(result["status"] == "succeeded", "the job did not succeed: {result:#}");

    let pictures = files_beneath(&folder.join("output"))?;
    let picture = pictures.iter().find(|file| file.extension().is_some_and(|extension| extension == "png"));
    let picture = picture.context("submit fetched no picture")?;
    check_same(s3, &result, picture).await?;

    let [before, after] = [&folder.join(INPUT), picture].map(|file| Pixels::read(&fs::read(file)?));
    ensure!(after?.is_negative_of(&before?), "{} is not the input's negative", picture.display());

    println!(
        "\nPicture (every pixel is checked to be its input's negative)\n  before  {}",
        folder.join(INPUT).display()
    );
    println!("  after   {}", picture.display());
    println!("\nS3 objects (as files below {})", s3.path("results", "").display());
    for (key, size) in &objects {
        println!("  {size:>8}  s3://results/{key}");
    }
    report::timings(&result["timings"], boot, begin.elapsed());
    Ok(())
}

/// What was fetched is the object that the result names, byte for byte.
async fn check_same(s3: &S3Server, result: &Value, picture: &Path) -> Result<()> {
    let uri = result["outputs"][0]["uri"].as_str().context("the result names no output object")?;
    let key =
        uri.strip_prefix("s3://results/").with_context(|| format!("{uri} is not below s3://results/"))?;
    let fetched = fs::read(picture).with_context(|| format!("cannot read {}", picture.display()))?;
    ensure!(s3.get("results", key).await? == fetched, "{} differs from {uri}", picture.display());
    Ok(())
}

fn files_beneath(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { folders.push(entry.path()) } else { files.push(entry.path()) }
        }
    }
    files.sort();
    Ok(files)
}
