//! The recorded exchanges, repeated: frames, answers and histories must be the same.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use testbed::{checkout, scratch_root};
use tokio::{process::Command, time::timeout};

use super::{
    bed::{Bed, LIMIT, on_comfyui},
    frames::Ears,
    prompts::saved,
};

async fn compare(bed: &Bed, folder: &Path) -> Result<Output> {
    let mut command = Command::new(&bed.python);
    command.arg(checkout().join("tests/standin/compare.py")).arg(bed.base().as_str()).arg(folder);
    command.kill_on_drop(true);
    let output = timeout(LIMIT * 2, command.output()).await.context("compare.py did not end")?;
    Ok(output?)
}

#[test]
fn it_answers_as_recorded() -> Result<()> {
    on_comfyui(async |bed| {
        empty_cache(bed).await?;
        let output = compare(bed, &bed.transcripts()).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.ends_with("18 of 18 agree\n"), "{said}");
        Ok(())
    })
}

#[test]
fn a_difference_is_found() -> Result<()> {
    on_comfyui(async |bed| {
        let recorded = bed.transcripts().join("success.jsonl");
        let recorded = fs::read_to_string(recorded)?;
        let without_a_frame = recorded.lines().filter(|line| !line.contains(r#""type": "executed""#));
        let without_a_frame = without_a_frame.map(|line| format!("{line}\n")).collect::<String>();
        let another_value = recorded.replacen(r#""state": "running""#, r#""state": "finished""#, 1);
        let another_outcome = recorded.replace(r#""completed": true"#, r#""completed": false"#);
        for (case, played, verdict) in [
            ("nothing", &recorded, "agrees  changed"),
            ("a frame less", &without_a_frame, "DIFFERS changed"),
            ("another value", &another_value, "DIFFERS changed"),
            ("another outcome", &another_outcome, "DIFFERS changed"),
        ] {
            assert_eq!(played == &recorded, case == "nothing");
            empty_cache(bed).await?;
            let folder = tempfile::tempdir_in(scratch_root()?)?;
            fs::write(folder.path().join("changed.jsonl"), played)?;
            let output = compare(bed, folder.path()).await?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.success(), case == "nothing", "{case}: {said}");
            assert!(said.contains(verdict), "{case}: {said}");
        }
        Ok(())
    })
}

/// The cache holds the latest prompt, which may be one of the recorded.
async fn empty_cache(bed: &Bed) -> Result<()> {
    let mut ears = Ears::open(bed).await?;
    let id = bed.prompt(&ears, &saved()).await?;
    ears.until_end(&id).await.map(drop)
}
