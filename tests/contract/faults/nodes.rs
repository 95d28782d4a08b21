//! Nodes that fail, report or list what others do not.

use anyhow::Result;
use contract::failure::Failure;

use connector::comfy::history::{ExecutionOutcome, OutputContent};
use serde_json::json;

use super::{Rig, alone};
use crate::ours::{Note, Try};

#[tokio::test]
async fn failures_are_told_apart() -> Result<()> {
    let rig = Rig::boot().await?;
    let fail = json!({"message": "no such thing", "exception_type": "my.pack.Oops"});
    let outcome = rig.run(alone("StandinFail", fail)).await?.history.outcome();
    let ExecutionOutcome::Failed(failure) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.exception_type, "my.pack.Oops");
    assert_eq!(failure.to_string(), "node 1 (StandinFail): my.pack.Oops: no such thing");
    assert!(!failure.traceback.is_empty());
    assert!(matches!(outcome.failure(), Some(Failure::NodeFailed(_))));

    let memory = rig.run(alone("StandinOutOfMemory", json!({"mode": "always"}))).await?;
    assert!(matches!(memory.history.outcome().failure(), Some(Failure::OutOfMemory(_))));

    // What others say in such words proves nothing.
    let said = rig
        .run(alone("StandinFail", json!({"message": "CUDA error: x", "exception_type": "KeyError"})))
        .await?;
    assert!(!said.history.outcome().blames_device());

    // What only a new process cures.
    let device = rig.run(alone("StandinCudaError", json!({"sticky": true}))).await?;
    assert!(device.history.outcome().blames_device());
    let after = rig.run(alone("StandinText", json!({"text": "x"}))).await?;
    assert!(after.history.outcome().blames_device());
    Ok(())
}

#[tokio::test]
async fn memory_comes_back_with_free() -> Result<()> {
    let rig = Rig::boot().await?;
    let prompt = || alone("StandinOutOfMemory", json!({"mode": "until_free"}));
    for _ in 0..2 {
        let outcome = rig.run(prompt()).await?.history.outcome();
        assert!(matches!(outcome.failure(), Some(Failure::OutOfMemory(_))));
    }
    rig.server.client().free().await?;
    testbed::wait_for("POST /free to be applied", crate::bed::LIMIT, || async {
        rig.stats().await.is_ok_and(|stats| stats["frees"] == 1)
    })
    .await?;
    assert_eq!(rig.run(prompt()).await?.history.outcome(), ExecutionOutcome::Succeeded);
    Ok(())
}

#[tokio::test]
async fn nan_and_blocked_nodes_end_nothing() -> Result<()> {
    let rig = Rig::boot().await?;
    for mode in ["progress", "event", "output"] {
        let executed = rig.run(alone("StandinNaN", json!({"mode": mode}))).await?;
        assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded, "{mode}");
        let texts = executed.history.outputs();
        assert_eq!(texts.len(), usize::from(mode == "output"), "{mode}: {texts:?}");
    }
    let executed = rig.run(alone("StandinBlocked", json!({"message": "later"}))).await?;
    assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded);
    Ok(())
}

#[tokio::test]
async fn progress_and_previews_arrive() -> Result<()> {
    let rig = Rig::boot().await?;
    let inputs = json!({"steps": 8, "seconds": 0.2, "previews": true, "text": "step"});
    let mut told = Vec::new();
    let task = Try::new(alone("StandinProgress", inputs))?;
    let executed = task.run_with(&rig.server, &rig.socket, async |notes| {
        while let Some(note) = notes.recv().await {
            let last = matches!(&note, Note::Progress(progress) if progress.value >= 8.0);
            told.push(note);
            if last {
                return;
            }
        }
    });
    let executed = executed.await?;
    let mut fraction = 0.0;
    for note in &told {
        if let Note::Progress(progress) = note {
            assert!(progress.fraction >= fraction && progress.node == "1", "{told:?}");
            fraction = progress.fraction;
        }
    }
    assert!(fraction >= 1.0, "{told:?}");
    let previews = told.iter().filter(|note| **note == Note::Preview(Some("1".into()))).count();
    assert!(previews >= 7, "the last may come after the last step: {told:?}");
    assert!(executed.images.is_empty(), "previews are no outputs");
    Ok(())
}

#[tokio::test]
async fn files_are_found_under_any_key() -> Result<()> {
    let rig = Rig::boot().await?;
    for (key, kind) in [("gifs", "output"), ("my_own", "temp"), ("3d", "input")] {
        let inputs =
            json!({"key": key, "filename_prefix": "sub/x", "extension": "bin", "count": 2, "type": kind});
        let executed = rig.run(alone("StandinCustomOutput", inputs)).await?;
        let outputs = executed.history.outputs();
        assert_eq!(outputs.len(), 2, "{outputs:?}");
        for (index, item) in outputs.iter().enumerate() {
            assert_eq!((item.node.as_str(), item.key.as_str(), item.index), ("1", key, index));
            let OutputContent::File { subfolder, folder, .. } = &item.content else { panic!("{item:?}") };
            assert_eq!((subfolder.as_str(), folder.as_str()), ("sub", kind));
        }
    }
    Ok(())
}
