//! The recorded exchanges, repeated: frames, answers and histories must be the same.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use testbed::{checkout, scratch_root};
use tokio::{process::Command, time::timeout};

use super::bed::{Bed, LIMIT, on_comfyui};

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
        let output = compare(bed, &checkout().join("tests/fixtures/transcripts")).await?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.ends_with("18 of 18 agree\n"), "{said}");
        Ok(())
    })
}

#[test]
fn a_difference_is_found() -> Result<()> {
    on_comfyui(async |bed| {
        let recorded = checkout().join("tests/fixtures/transcripts/success.jsonl");
        let recorded = fs::read_to_string(recorded)?;
        let without_a_frame = recorded.lines().filter(|line| !line.contains(r#""type": "executed""#));
        let swapped = recorded.replacen(r#""state": "running""#, r#""state": "finished""#, 1);
        for (case, changed) in [
            ("a frame less", without_a_frame.map(|line| format!("{line}\n")).collect::<String>()),
            ("another value", swapped),
            ("another outcome", recorded.replace(r#""completed": true"#, r#""completed": false"#)),
        ] {
            assert_ne!(changed, recorded, "{case}");
            let folder = tempfile::tempdir_in(scratch_root()?)?;
            fs::write(folder.path().join("changed.jsonl"), changed)?;
            let output = compare(bed, folder.path()).await?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(1), "{case}: {said}");
            assert!(said.contains("DIFFERS changed"), "{case}: {said}");
        }
        Ok(())
    })
}
