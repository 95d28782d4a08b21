//! A disk without room for a job's input.

use std::{
    fs::{self, File},
    io::Write as _,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::wait_for_value;

use super::{
    JOB,
    bed::{ACCEPTED, Bed},
    evidence,
    jobs::{self, Kind},
    journal::Expected,
    judge::judge,
    place::Place,
};

/// The job goes back, after a pause, and nothing of its input stays; it is done when there is room.
#[tokio::test]
async fn a_job_that_finds_the_disk_full_is_handed_back_and_done_when_there_is_room() -> Result<()> {
    let bed = Bed::new("disk").await?;
    let place = Place::new(&bed, "a", true).await?;
    let worker = place.site.boot().await?;
    bed.collect(ACCEPTED).await?;
    let input = place.input_of(&worker)?;
    ensure!(fs::read_dir(&input)?.count() == 0, "its input folder is not the small file system");

    // There is room for a part of it, so that something could be left half-written.
    fs::write(bed.s3.path("inputs", "large.bin"), vec![7; 12 << 20])?;
    let filler = input.join("filler");
    File::create(&filler)?.write_all(&[0; 10 << 20])?;
    let workflow = json!({
        "1": {"class_type": "StandinInputRead", "inputs": {"file": "none.bin", "seed": 1}},
        "2": {"class_type": "StandinText", "inputs": {"text": "@large@", "seed": 1}},
    });
    let inputs = json!({"1.file": "s3://inputs/large.bin"});
    let large = json!({"version": 1, "id": "large", "workflow": workflow, "inputs": inputs});
    let expected = Expected::Success { says: "@large@".into() };
    bed.publish("large", &serde_json::to_vec(&large)?, &expected).await?;
    let marker = bed.s3.path("results", "jobs/large/attempts/1.json");
    let closed = wait_for_value("the hand-back", JOB, || async {
        let marker: Value = serde_json::from_slice(&fs::read(&marker).ok()?).ok()?;
        marker["closed"].as_str().map(str::to_owned)
    });
    let closed = closed.await?;
    ensure!(closed.contains("full") || closed.contains("No space"), "{closed}");
    let left: Vec<_> = fs::read_dir(&input)?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["filler"], "left: {left:?}");
    ensure!(bed.journal.answers("large") == 0, "answered, and it is not the job's fault");

    fs::remove_file(&filler)?;
    let (body, expected) = jobs::body(Kind::Plain { seconds: 0.02 }, "next", &bed.s3)?;
    bed.publish("next", &body, &expected).await?;
    for id in ["large", "next"] {
        bed.wait_answers(id, 1).await?;
    }
    let attempts = fs::read_dir(bed.s3.path("results", "jobs/large/attempts"))?;
    ensure!(
        attempts.filter(|marker| marker.as_ref().is_ok_and(|file| is_marker(&file.file_name()))).count() <= 3,
        "handed back without a pause"
    );
    place.close(worker, &bed).await?;
    evidence::peers(&bed, 0).await?;
    evidence::manifests(&bed, &[&place], &["large".to_owned(), "next".to_owned()].into()).await?;
    let violations = judge(&bed.journal.records()).violations;
    ensure!(violations.is_empty(), "{violations:?}");
    bed.broker.stop().await
}

fn is_marker(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(".json"))
}
