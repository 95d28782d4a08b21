//! The command line, as a person or a script uses it.

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Engine, Worker, WorkerBuilder};
use tokio::time::timeout;

use crate::{
    bench::files_beneath,
    picture::{Picture, decoded_pattern, pattern},
    prompts::{invert_workflow, invert_workflow_file, save},
    suite::{Suite, tail},
};

/// A boot of a real ComfyUI, and some.
const COMMAND: Duration = Duration::from_secs(400);

/// What a command left.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

async fn run(builder: &WorkerBuilder, folder: &Path, arguments: &[&str]) -> Result<Ended> {
    let mut command = builder.command(arguments)?;
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(COMMAND, command.output()).await.context("the command does not end")??;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    Ok(Ended { code: output.status.code(), out, err })
}

impl Ended {
    fn ensure_code(self, code: i32) -> Result<Self> {
        ensure!(self.code == Some(code), "exit code {:?}\n{}\n{}", self.code, self.out, tail(&self.err));
        Ok(self)
    }
}

/// The files of a folder with their names under it.
fn names(folder: &Path) -> Result<Vec<String>> {
    let files = files_beneath(folder, &[""])?;
    Ok(files
        .iter()
        .filter_map(|(path, _)| Some(path.strip_prefix(folder).ok()?.display().to_string()))
        .collect())
}

/// A worker's builder in a folder of its own, and that folder.
fn desk(root: &Path, name: &str) -> Result<(WorkerBuilder, Engine, std::path::PathBuf)> {
    let folder = root.join(name);
    let engine = Engine::from_env(&folder.join("comfyui"))?;
    let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), &folder)?.engine(&engine);
    let work = folder.join("work");
    fs::create_dir_all(&work)?;
    Ok((builder, engine, work))
}

fn ensure_clean(engine: &Engine, folder: &Path) -> Result<()> {
    let left = files_beneath(&engine.path, &["input", "output", "temp"])?;
    ensure!(left.is_empty(), "left in ComfyUI's folders: {left:?}");
    let state: Vec<_> = files_beneath(&folder.with_file_name("state"), &[""])?
        .into_iter()
        .filter(|(_, size)| *size > 0)
        .collect();
    ensure!(state.is_empty(), "left in the state folder: {state:?}");
    Ok(())
}

pub(crate) async fn submit_and_wait(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let folder = suite.site().await?.folder.join("submit");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("cat.png"), pattern(50))?;
    let input = bench.input("cat.png", &pattern(50)).await?;
    let workflow = invert_workflow_file();
    for (image, out) in [("cat.png", "first"), (input.as_str(), "second")] {
        let arguments = ["submit", &workflow, "--input", &format!("1.image={image}"), "--wait", "-o", out];
        let ended = run(&bench.builder(), &folder, &arguments).await?.ensure_code(0)?;
        let path = format!("{out}/inverted_00001_.png");
        ensure!(ended.out.trim() == path, "{}", ended.out);
        let made = Picture::read(&fs::read(folder.join(path))?)?;
        made.ensure_is(|value| 255 - value, &decoded_pattern(50)?, bench.tolerance())?;
    }
    // For programs: the whole result on one line; a name that is taken stays.
    let input = format!("1.image={input}");
    let arguments =
        ["submit", &workflow, "--input", &input, "--wait", "-o", "first", "--json", "--id", "by.hand-1"];
    let ended = run(&bench.builder(), &folder, &arguments).await?.ensure_code(0)?;
    let result: Value = serde_json::from_str(&ended.out)?;
    ensure!(
        result["id"] == "by.hand-1" && result["outputs"][0]["path"] == "first/inverted_00001_-2.png",
        "{result}"
    );
    ensure!(names(&folder.join("first"))? == ["inverted_00001_-2.png", "inverted_00001_.png"]);
    bench.folders_are_clean().await
}

pub(crate) async fn submit_a_job_that_fails(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let folder = suite.site().await?.folder.join("submit-failing");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("bad.json"), save(1, "x").to_string())?;
    let arguments = ["submit", "bad.json", "--input", "1.width=-64", "--wait", "-o", "out"];
    let ended = run(&bench.builder(), &folder, &arguments).await?.ensure_code(1)?;
    let line = ended.err.lines().last().unwrap_or_default();
    ensure!(
        line.starts_with("job failed: invalid_prompt: ") && line.contains("Value -64 smaller"),
        "{}",
        ended.err
    );
    ensure!(names(&folder)? == ["bad.json"], "{:?}", names(&folder)?);

    // Before anything is sent: a bad call is told at once.
    let cases = [
        (vec!["submit", "nothing.json"], "nothing.json"),
        (vec!["submit", "bad.json", "--input", "1width"], "NODE.NAME"),
        (vec!["submit", "bad.json", "--id", "../x"], "../x"),
    ];
    for (arguments, word) in cases {
        let ended = run(&bench.builder(), &folder, &arguments).await?.ensure_code(2)?;
        ensure!(ended.err.contains(word) && !ended.err.contains("panicked"), "{}", ended.err);
    }
    Ok(())
}

pub(crate) async fn run_without_services(suite: &Suite) -> Result<()> {
    let root = &suite.site().await?.folder;
    let (builder, engine, work) = desk(root, "run")?;
    // The workflow of the fixture, and beside it a picture whose color is a number.
    let mut workflow = invert_workflow()?;
    let nodes = workflow["nodes"].as_array_mut().context("no nodes")?;
    nodes.push(json!({"id": 4, "type": "EmptyImage", "pos": [0, 500], "size": [200, 100], "flags": {}, "order": 3, "mode": 0,
        "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [3]}], "properties": {},
        "widgets_values": [16, 16, 1, 0]}));
    nodes.push(json!({"id": 5, "type": "SaveImage", "pos": [300, 500], "size": [200, 100], "flags": {}, "order": 4, "mode": 0,
        "inputs": [{"name": "images", "type": "IMAGE", "link": 3}], "outputs": [], "properties": {},
        "widgets_values": ["color"]}));
    workflow["links"].as_array_mut().context("no links")?.push(json!([3, 4, 0, 5, 0, "IMAGE"]));
    fs::write(work.join("workflow.json"), workflow.to_string())?;
    fs::write(work.join("cat.png"), pattern(51))?;
    let arguments = [
        "run",
        "workflow.json",
        "--input",
        "1.image=cat.png",
        "--input",
        "4.color=255",
        "--input",
        "5.filename_prefix=sub/blue",
        "-o",
        "out",
    ];
    let ended = run(&builder, &work, &arguments).await?.ensure_code(0)?;
    let mut told: Vec<&str> = ended.out.lines().collect();
    told.sort_unstable();
    ensure!(told == ["out/blue_00001_.png", "out/inverted_00001_.png"], "{}", ended.out);
    let tolerance = u8::from(engine.is_real());
    let made = |name: &str| Picture::read(&fs::read(work.join("out").join(name))?);
    made("inverted_00001_.png")?.ensure_is(|value| 255 - value, &decoded_pattern(51)?, tolerance)?;
    made("blue_00001_.png")?.ensure_color(255, tolerance)?;
    ensure!(names(&work.join("out"))? == ["blue_00001_.png", "inverted_00001_.png"]);
    ensure_clean(&engine, &work)
}

/// A saved picture holds its workflow, which becomes the same prompt again.
pub(crate) async fn pictures_open_again(suite: &Suite) -> Result<()> {
    let root = &suite.site().await?.folder;
    let (builder, engine, work) = desk(root, "again")?;
    fs::write(work.join("workflow.json"), invert_workflow()?.to_string())?;
    fs::write(work.join("cat.png"), pattern(52))?;
    let arguments = ["run", "workflow.json", "--input", "1.image=cat.png", "-o", "out"];
    run(&builder, &work, &arguments).await?.ensure_code(0)?;
    let picture = Picture::read(&fs::read(work.join("out/inverted_00001_.png"))?)?;
    fs::write(work.join("again.json"), picture.texts.get("workflow").context("no workflow in the picture")?)?;
    let arguments = ["convert", "workflow.json", "again.json", "-o", "prompts"];
    run(&builder, &work, &arguments).await?.ensure_code(0)?;
    let prompt = |name: &str| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(work.join("prompts").join(name))?)?)
    };
    let (first, again) = (prompt("workflow.json")?, prompt("again.json")?);
    ensure!(first == again && first["2"]["class_type"] == "ImageInvert", "{first}\n{again}");
    ensure_clean(&engine, &work)
}

pub(crate) async fn convert_many(suite: &Suite) -> Result<()> {
    let root = &suite.site().await?.folder;
    let (builder, engine, work) = desk(root, "convert")?;
    let good = invert_workflow()?;
    let mut broken = good.clone();
    broken["nodes"][1]["type"] = json!("NoSuchNode");
    for (name, workflow) in [("one.json", &good), ("broken.json", &broken), ("two.json", &good)] {
        fs::write(work.join(name), workflow.to_string())?;
    }
    let arguments = ["convert", "one.json", "broken.json", "two.json", "-o", "prompts"];
    let ended = run(&builder, &work, &arguments).await?.ensure_code(1)?;
    ensure!(names(&work.join("prompts"))? == ["one.json", "two.json"], "{:?}", names(&work.join("prompts"))?);
    let line = ended
        .err
        .lines()
        .find(|line| line.starts_with("broken.json: "))
        .context("broken.json is not named")?;
    ensure!(line.contains("NoSuchNode"), "{line}");
    for name in ["one.json", "two.json"] {
        let prompt: Value = serde_json::from_slice(&fs::read(work.join("prompts").join(name))?)?;
        ensure!(prompt["2"]["inputs"]["image"] == json!(["1", 0]), "{prompt:#}");
        ensure!(prompt["3"]["inputs"]["filename_prefix"] == "inverted", "{prompt:#}");
    }
    ensure_clean(&engine, &work)
}

pub(crate) async fn check_all(suite: &Suite) -> Result<()> {
    let site = suite.site().await?;
    let (builder, engine, work) = desk(&site.folder, "check")?;
    site.s3.create_bucket("check-results")?;
    let builder = builder
        .broker(&site.broker)
        .store(&site.s3, "s3://check-results/jobs")
        .set("amqp.queue", "check.jobs")
        .set("amqp.events_exchange", "check.events")
        .set("amqp.control_exchange", "check.control");
    let ended = run(&builder, &work, &["check"]).await?.ensure_code(0)?;
    let parts: Vec<&str> =
        ended.out.lines().filter_map(|line| line.strip_prefix("ok   ")?.split(' ').next()).collect();
    ensure!(parts == ["configuration", "comfyui", "browser", "broker", "bucket"], "{}", ended.out);
    // job.timeout is longer than what the broker's consumer timeout is by default.
    let rest: Vec<&str> = ended.out.lines().filter(|line| !line.starts_with("ok   ")).collect();
    let warned =
        rest.len() == 1 && rest[0].starts_with("warn broker") && rest[0].contains("consumer_timeout");
    ensure!(warned, "{}", ended.out);
    ensure!(site.s3.list("check-results", "").await?.is_empty(), "the probe left something");
    ensure_clean(&engine, &work)
}
