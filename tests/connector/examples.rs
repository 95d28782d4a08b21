//! The programs of `examples/`, each as a process of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::checkout;
use tokio::{process::Command, sync::OnceCell, time::timeout};

use super::bed::{Bed, LIMIT, invert_file};

/// Cargo builds examples only for a run of all tests.
async fn built() -> Result<&'static Path> {
    static FOLDER: OnceCell<PathBuf> = OnceCell::const_new();
    let build = || async {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--workspace", "--examples", "--locked"]).current_dir(checkout());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        ensure!(cargo.status().await?.success(), "the examples cannot be built");
        let program = env::current_exe()?;
        let profile = program.ancestors().nth(2).context("this program does not lie in a build folder")?;
        Ok(profile.join("examples"))
    };
    FOLDER.get_or_try_init(build).await.map(PathBuf::as_path)
}

async fn run(bed: &Bed, name: &str, arguments: &[&Path]) -> Result<Output> {
    let example = Command::new(built().await?.join(name))
        .args(arguments)
        .current_dir(&bed.dir)
        .env("TMPDIR", bed.dir.join("t"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, example).await??;
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(output)
}

/// Lines that it printed, once it succeeded and left nothing.
async fn lines(bed: &Bed, name: &str, arguments: &[&Path]) -> Result<Vec<String>> {
    let output = run(bed, name, arguments).await?;
    ensure!(output.status.success(), "{}", output.status);
    bed.wait_nothing_runs().await?;
    for folder in ["t", "state/journal"] {
        let left: Vec<_> = fs::read_dir(bed.dir.join(folder))?.flatten().map(|entry| entry.path()).collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn run_workflow_lists_what_it_made() -> Result<()> {
    let bed = Bed::new()?;
    fs::copy(bed.picture("example.png")?, bed.folder("input/example.png"))?;
    let lines = lines(&bed, "run_workflow", &[&bed.config_file(&[])?, &invert_file()]).await?;
    ensure!(lines == ["node 3, images: output/inverted_00001_.png"], "{lines:?}");
    ensure!(bed.folder("output/inverted_00001_.png").is_file());
    ensure!(bed.names("input")? == ["example.png"]);
    Ok(())
}

#[tokio::test]
async fn batch_runs_each_picture() -> Result<()> {
    let bed = Bed::new()?;
    fs::copy(bed.picture("example.png")?, bed.folder("input/example.png"))?;
    let (cat, dog) = (bed.picture("cat.png")?, bed.source("dog.png", testbed::png(8, 8, |_, _| [9, 8, 7]))?);
    let config = bed.config_file(&[])?;
    let arguments = [&config, &invert_file(), Path::new("1.image"), &cat, &dog];
    let lines = lines(&bed, "batch", &arguments).await?;
    ensure!(lines.len() == 5 && lines[0] == "the prompt has 3 nodes", "{lines:?}");
    for (line, (picture, number)) in lines[1..].iter().zip([(&cat, 1), (&dog, 2)]) {
        ensure!(*line == format!("{}: output/inverted_0000{number}_.png", picture.display()), "{line}");
    }
    ensure!(lines[3..] == ["2 of 2 pictures done", "all resources are well"], "{lines:?}");
    ensure!(bed.names("output")? == ["inverted_00001_.png", "inverted_00002_.png"]);
    ensure!(!bed.folder("input/batch").exists(), "it goes with its last picture");
    Ok(())
}

#[tokio::test]
async fn convert_prints_prompts() -> Result<()> {
    let bed = Bed::new()?;
    let config = bed.config_file(&[])?;
    let lines = lines(&bed, "convert", &[&config, &invert_file(), &invert_file()]).await?;
    ensure!(lines.len() == 2 && lines[0] == lines[1], "{lines:?}");
    let prompt: Value = serde_json::from_str(&lines[0])?;
    ensure!(prompt["3"]["class_type"] == "SaveImage" && prompt["1"]["inputs"]["image"] == "example.png");
    ensure!(bed.names("output")?.is_empty());
    Ok(())
}

#[tokio::test]
async fn without_arguments_they_say_how_they_are_used() -> Result<()> {
    let bed = Bed::standin()?;
    for name in ["run_workflow", "batch", "convert"] {
        let output = run(&bed, name, &[]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && said.contains(&format!("usage: {name} CONFIG")), "{said}");
    }
    Ok(())
}
