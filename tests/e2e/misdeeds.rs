//! Outputs that are not what they say: never uploaded, never touched, and the worker goes on.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    answer::{Answer, ask_untidy, bytes},
    bench::{Bench, files_beneath},
    prompts::alone,
    suite::Suite,
};

const SECRET: &[u8] = b"canary: nobody may read this\n";

/// Runs `StandinMisbehave`, then takes away what it left in `output`, which is nobody's job folder.
async fn misbehave(bench: &Bench, mode: &str, target: &Path) -> Result<Answer> {
    let workflow = alone("StandinMisbehave", json!({"mode": mode, "target": target}));
    let answer = ask_untidy(bench, json!({"workflow": workflow})).await.with_context(|| mode.to_owned());
    for folder in ["output/linked_folder", "output/directory.png"] {
        let path = bench.engine().path.join(folder);
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
    for (path, _) in files_beneath(&bench.engine().path, &["output"])? {
        fs::remove_file(&path).with_context(|| format!("{mode}: {}", path.display()))?;
    }
    answer
}

/// A canary beside ComfyUI's folders.
struct Canary {
    path: std::path::PathBuf,
    identity: (u64, i64, u64),
}

impl Canary {
    fn new(bench: &Bench) -> Result<Self> {
        let path = bench.engine().path.join("canary.txt");
        fs::write(&path, SECRET)?;
        Ok(Self { identity: identity(&path)?, path })
    }

    /// Content, inode and time are as before; its content is in no output and in no error.
    async fn ensure_untouched(&self, bench: &Bench, answer: &Answer) -> Result<()> {
        ensure!(
            fs::read(&self.path)? == SECRET && identity(&self.path)? == self.identity,
            "the canary was touched"
        );
        ensure!(!contains(&answer.body, SECRET), "the answer holds the canary");
        for output in answer.outputs()? {
            ensure!(!contains(&bytes(bench, output).await?, SECRET), "uploaded: {output}");
        }
        Ok(())
    }
}

fn identity(path: &Path) -> Result<(u64, i64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.ino(), metadata.mtime_nsec(), metadata.len()))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

pub(crate) async fn files_that_are_not_there(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    for mode in ["missing", "fifo", "directory", "long_300", "empty", "dot", "nul"] {
        let answer = misbehave(&bench, mode, Path::new("/")).await?;
        let error = answer.failed("output_missing", "collect").with_context(|| mode.to_owned())?;
        ensure!(
            error["message"].as_str().is_some_and(|text| text.contains("node 1 lists")),
            "{mode}: {error}"
        );
        // It was given a second chance.
        let queued = answer.event_names().iter().filter(|name| **name == "queued").count();
        ensure!(queued == 2, "{mode}: {:?}", answer.event_names());
    }
    Ok(())
}

pub(crate) async fn files_that_lead_out(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let canary = Canary::new(&bench)?;
    let modes = [
        "symlink",
        "symlink_folder",
        "hard_link",
        "parent",
        "parent_subfolder",
        "absolute",
        "absolute_subfolder",
    ];
    for mode in modes {
        let answer = misbehave(&bench, mode, &canary.path).await?;
        canary.ensure_untouched(&bench, &answer).await.with_context(|| mode.to_owned())?;
        answer.failed("output_missing", "collect").with_context(|| mode.to_owned())?;
    }
    Ok(())
}

/// A clear refusal or a contained success.
pub(crate) async fn strange_names(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let refused = ["newline", "ansi", "right_to_left", "backslash", "annotated", "lone_surrogate"];
    for mode in refused {
        let answer = misbehave(&bench, mode, Path::new("/")).await?;
        let error = answer.failed("output_missing", "collect").with_context(|| mode.to_owned())?;
        let message = error["message"].as_str().unwrap_or_default();
        ensure!(!message.chars().any(char::is_control), "{mode}: {message:?}");
    }
    let files = [
        ("dash", 1),
        ("percent", 1),
        ("composed_twins", 2),
        ("case_twins", 2),
        ("same_twice", 2),
        ("unknown_type", 0),
        ("wrong_types", 0),
        ("no_list", 0),
        ("half_item", 0),
    ];
    for (mode, count) in files {
        let answer = misbehave(&bench, mode, Path::new("/")).await?;
        if mode == "half_item" && answer.result["status"] == "failed" {
            continue;
        }
        let answer = answer.succeeded().with_context(|| mode.to_owned())?;
        let listed = answer.outputs()?.iter().filter(|output| output["kind"] != "text").count();
        ensure!(listed == count, "{mode}: {:#}", answer.result);
    }
    Ok(())
}
