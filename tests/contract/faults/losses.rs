//! Frames, answers and histories that get lost.

use anyhow::{Context as _, Result};
use connector::comfy::{ExecuteError, history::ExecutionOutcome};
use serde_json::json;
use testbed::wait_for;

use super::{Rig, alone, before_a_socket_picture};
use crate::{
    bed::LIMIT,
    ours::{Try, running},
};

#[tokio::test]
async fn a_dropped_websocket_costs_only_its_pictures() -> Result<()> {
    let rig = Rig::boot().await?;
    let before = rig.socket.client_id().context("not connected")?;
    let prompt = before_a_socket_picture("StandinSleep", json!({"seconds": 0.5}));
    let task = Try::new(prompt)?;
    let executed = task.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        let _ = rig.fault(json!({"drop_ws": true})).await;
    });
    let executed = executed.await?;
    assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded);
    assert!(executed.images_lost.contains("3"), "and that is told");

    wait_for("a new connection", LIMIT, || async { rig.socket.client_id().is_some_and(|now| now != before) })
        .await?;
    let again = rig.run(before_a_socket_picture("StandinSleep", json!({"seconds": 0.0}))).await?;
    assert_eq!((again.images.len(), again.images_lost.len()), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_dropped_websocket_does_not_matter_to_files() -> Result<()> {
    let rig = Rig::boot().await?;
    let executed = Try::new(alone("StandinSleep", json!({"seconds": 0.5})))?;
    let executed = executed.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        let _ = rig.fault(json!({"drop_ws": true})).await;
    });
    let executed = executed.await?;
    assert_eq!((executed.history.outcome(), executed.images_lost.len()), (ExecutionOutcome::Succeeded, 0));
    Ok(())
}

#[tokio::test]
async fn a_silent_websocket_is_replaced_by_looking() -> Result<()> {
    let rig = Rig::boot().await?;
    for (prompt, lost) in [
        (alone("StandinSleep", json!({"seconds": 0.2})), false),
        (before_a_socket_picture("StandinSleep", json!({"seconds": 0.2})), true),
    ] {
        let task = Try::new(prompt)?;
        let executed = task.run_with(&rig.server, &rig.socket, async |notes| {
            running(notes).await;
            let _ = rig.fault(json!({"silence_ws": 600.0})).await;
        });
        let executed = executed.await?;
        assert_eq!(
            (executed.history.outcome(), !executed.images_lost.is_empty()),
            (ExecutionOutcome::Succeeded, lost)
        );
        rig.fault(json!({"silence_ws": 0.0})).await?;
    }
    // From the first frame on, the start included.
    rig.fault(json!({"silence_ws": 600.0})).await?;
    rig.assert_works().await
}

#[tokio::test]
async fn a_lost_answer_does_not_run_it_twice() -> Result<()> {
    let rig = Rig::boot().await?;
    // Found while it runs, and found when it is over.
    for seconds in [0.5, 0.0] {
        rig.fault(json!({"lose_next_prompt_response": true})).await?;
        let before = rig.stats().await?["prompts"].as_array().map(Vec::len);
        let executed = rig.run(alone("StandinSleep", json!({"seconds": seconds}))).await?;
        assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded);
        let prompts = rig.stats().await?["prompts"].as_array().cloned().context("no list")?;
        assert_eq!(Some(prompts.len()), before.map(|before| before + 1), "{prompts:?}");
        assert_eq!(prompts.last(), Some(&json!(executed.prompt_id.to_string())));
    }
    Ok(())
}

#[tokio::test]
async fn a_history_that_somebody_clears_is_noticed() -> Result<()> {
    let rig = Rig::boot().await?;
    rig.fault(json!({"discard_history": true})).await?;
    let outcome = rig.run(alone("StandinText", json!({"text": "x"}))).await;
    assert_eq!(outcome.err(), Some(ExecuteError::Vanished));
    rig.fault(json!({"discard_history": false})).await?;
    rig.assert_works().await
}

/// It answers all the same, and goes on: no reason to kill it.
#[tokio::test]
async fn a_history_that_cannot_be_read_ends_the_prompt_and_not_comfyui() -> Result<()> {
    let rig = Rig::boot().await?;
    rig.fault(json!({"break_history": true})).await?;
    let outcome = rig.run(alone("StandinText", json!({"text": "x"}))).await;
    let error = outcome.err().context("it was read")?;
    assert!(matches!(&error, ExecuteError::Unreadable(_)) && !error.needs_restart(), "{error}");
    rig.fault(json!({"break_history": false})).await?;
    rig.assert_works().await
}

#[tokio::test]
async fn a_busy_http_side_is_waited_for() -> Result<()> {
    let rig = Rig::boot().await?;
    let prompt = before_a_socket_picture("StandinSleep", json!({"seconds": 0.5}));
    let task = Try::new(prompt)?;
    let executed = task.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        let _ = rig.fault(json!({"block_http": 3.0})).await;
    });
    let executed = executed.await?;
    assert_eq!(executed.history.outcome(), ExecutionOutcome::Succeeded);
    assert_eq!((executed.images.len(), executed.images_lost.len()), (1, 0));
    Ok(())
}
