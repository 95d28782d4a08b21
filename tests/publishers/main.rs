//! The publishers of `examples/publishers`, each against a real worker, and the permissions of
//! docs/operating.md: worker and publishers have no others.

mod bed;
mod permissions;
mod program;

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use testbed::{Pixels, checkout, contract::must_be_result};

use self::{
    bed::Bed,
    program::{Language, Program},
};

/// Longest life of one job, on a slow machine with others.
const JOB: Duration = Duration::from_secs(120);

#[tokio::test]
async fn python() -> Result<()> {
    all(Language::Python).await
}

#[tokio::test]
async fn node() -> Result<()> {
    all(Language::Node).await
}

#[tokio::test]
async fn rust() -> Result<()> {
    all(Language::Rust).await
}

async fn all(language: Language) -> Result<()> {
    let bed = Bed::shared().await?;
    let program = Program::new(language, bed).await?;
    let _turn = bed.turns.read().await;
    a_picture_comes_back_inverted_and_only_once(bed, &program).await.context("a picture")?;
    a_failed_job_is_explained(bed, &program).await.context("a failed job")?;
    ctrl_c_cancels(bed, &program).await.context("Ctrl-C")?;
    a_cut_line_costs_nothing(bed, &program).await.context("a cut line")?;
    mistakes_have_their_exit_codes(bed, &program).await.context("mistakes")
}

async fn a_picture_comes_back_inverted_and_only_once(bed: &Bed, program: &Program) -> Result<()> {
    let workflow = checkout().join("tests/fixtures/workflows/invert-ui.json");
    let mut made = Vec::new();
    for time in ["first", "again"] {
        let out = program.dir.join(time);
        let out = out.to_str().context("no UTF-8")?;
        let ended = program.start(bed, &workflow, &["--out", out])?.end().await?;
        ensure!(ended.code == Some(0), "{ended:?}");
        let files: Vec<&str> = ended.out.lines().collect();
        ensure!(files == [format!("{out}/3-0-inverted_00001_.png")], "{ended:?}");
        made.push(fs::read(files[0])?);
        if time == "first" {
            for event in ["accepted", "staged", "converted", "progress", "executed"] {
                ensure!(ended.err.contains(&format!("  {event}")), "{event}: {ended:?}");
            }
        }
    }
    ensure!(made[0] == made[1], "another picture");
    ensure!(Pixels::read(&made[0])?.is_negative_of(&Pixels::read(&program.picture)?), "not inverted");
    // Pictures differ between the programs, which run side by side.
    let own = bed.jobs_that_made(&made[0]).await?;
    let [id] = own.iter().collect::<Vec<_>>()[..] else { bail!("one picture, and these jobs: {own:?}") };
    ensure!(bed.attempts(id).await? == 1, "{id} was run twice");
    must_be_result(&bed.result(id).await?)?;
    Ok(())
}

/// Loads the picture and does something to it.
fn prompt(class: &str, inputs: Value) -> Value {
    let mut inputs = inputs;
    inputs["image"] = json!(["1", 0]);
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "2": {"class_type": class, "inputs": inputs},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "x"}},
    })
}

async fn a_failed_job_is_explained(bed: &Bed, program: &Program) -> Result<()> {
    let workflow = program.write(
        "failing.json",
        &prompt("StandinFail", json!({"message": "no such luck", "exception_type": "ValueError"})),
    )?;
    let ended = program.start(bed, &workflow, &["--id", &program.id("failing")])?.end().await?;
    ensure!(ended.code == Some(1) && ended.out.is_empty(), "{ended:?}");
    ensure!(
        ended.err.contains("failed: execution_error in run: ") && ended.err.contains("no such luck"),
        "{ended:?}"
    );
    must_be_result(&bed.result(&program.id("failing")).await?)
}

async fn ctrl_c_cancels(bed: &Bed, program: &Program) -> Result<()> {
    let workflow = program.write("long.json", &prompt("StandinSleep", json!({"seconds": 600})))?;
    let mut running = program.start(bed, &workflow, &["--id", &program.id("long")])?;
    running.wait_says("  started").await?;
    running.interrupt()?;
    let ended = running.end().await?;
    ensure!(ended.code == Some(130), "{ended:?}");
    let result = bed.result(&program.id("long")).await?;
    ensure!(result["status"] == "cancelled", "{result:#}");
    must_be_result(&result)
}

async fn a_cut_line_costs_nothing(bed: &Bed, program: &Program) -> Result<()> {
    let workflow = program.write("cut.json", &prompt("StandinSleep", json!({"seconds": 4})))?;
    let out = program.dir.join("cut");
    let mut running = program.start(
        bed,
        &workflow,
        &["--id", &program.id("cut"), "--out", out.to_str().context("no UTF-8")?],
    )?;
    running.wait_says("  started").await?;
    program.gate.cut();
    let ended = running.end().await?;
    ensure!(ended.code == Some(0) && ended.err.contains("connecting again"), "{ended:?}");
    ensure!(fs::read_dir(&out)?.count() == 1, "{ended:?}");
    // It was not published a second time.
    ensure!(bed.attempts(&program.id("cut")).await? == 1, "it was run twice: {ended:?}");
    Ok(())
}

async fn mistakes_have_their_exit_codes(bed: &Bed, program: &Program) -> Result<()> {
    let workflow = checkout().join("tests/fixtures/workflows/invert-ui.json");
    let usage = program.call(bed, &["nothing-else"])?.end().await?;
    ensure!(usage.code == Some(2), "{usage:?}");
    let nowhere = program.start_at(bed, &bed.empty_vhost_url(&program.gate), &workflow, &[])?.end().await?;
    ensure!(nowhere.code == Some(3) && nowhere.err.contains("comfy.events"), "{nowhere:?}");
    Ok(())
}
