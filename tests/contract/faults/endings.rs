//! ComfyUI dies, hangs, or does not let go.

use std::time::{Duration, Instant};

use anyhow::Result;
use connector::comfy::{ExecuteError, history::ExecutionOutcome};
use serde_json::{Value, json};
use testbed::wait_for;
use tokio::time::timeout;

use super::{Rig, STUCK, alone};
use crate::{
    bed::LIMIT,
    ours::{Try, running},
};

#[tokio::test]
async fn a_crash_is_told_with_its_last_lines() -> Result<()> {
    let crash = async |how: &str, status: &str| {
        let rig = Rig::boot().await?;
        let inputs = json!({"how": how, "exit_code": 7, "after_seconds": 0.0});
        let outcome = rig.run(alone("StandinCrash", inputs)).await;
        let Err(ExecuteError::Died(text)) = outcome else { panic!("{how}: {outcome:?}") };
        assert!(text.contains(status) && text.contains("got prompt"), "{how}: {text}");
        let outcome = rig.run(alone("StandinText", json!({"text": "x"}))).await;
        assert!(matches!(&outcome, Err(ExecuteError::Died(again)) if *again == text), "{outcome:?}");
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(
        crash("exit", "exit status: 7"),
        crash("kill", "signal: 9"),
        crash("abort", "signal: 6")
    )?;
    Ok(())
}

/// How an execution of the prompt ends that has so long.
async fn limited(rig: &Rig, prompt: Value, limit: Duration) -> Result<(ExecuteError, Duration)> {
    let mut task = Try::new(prompt)?;
    task.limit = limit;
    let begin = Instant::now();
    let outcome = task.run(&rig.server, &rig.socket).await;
    let error = outcome.err().ok_or_else(|| anyhow::anyhow!("it came to an end"))?;
    Ok((error, begin.elapsed()))
}

#[tokio::test]
async fn a_hang_ends_with_the_limit() -> Result<()> {
    let rig = Rig::boot().await?;
    let limit = Duration::from_millis(300);
    let (error, took) = limited(&rig, alone("StandinHang", json!({})), limit).await?;
    assert_eq!(error, ExecuteError::TimedOut { limit, stuck: false });
    assert!(took >= limit && took < Duration::from_secs(8), "{took:?}");
    rig.assert_works().await
}

#[tokio::test]
async fn what_does_not_let_go_is_stuck() -> Result<()> {
    let stuck = async |prompt: Value, block_http: bool| {
        let rig = Rig::boot().await?;
        if block_http {
            rig.fault(json!({"block_http": 600.0})).await?;
            let limit = Duration::from_millis(100);
            let silent = || async { timeout(limit, rig.stats()).await.is_err() };
            wait_for("the silence", LIMIT, silent).await?;
        }
        let limit = Duration::from_millis(500);
        let (error, took) = limited(&rig, prompt, limit).await?;
        assert_eq!(error, ExecuteError::TimedOut { limit, stuck: true });
        // The limit counts, and so does that of the attempts to get rid of it.
        assert!(took < STUCK, "{took:?}");
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(
        stuck(alone("StandinIgnoreInterrupt", json!({"seconds": 600.0})), false),
        stuck(alone("StandinKillPromptThread", json!({})), false),
        stuck(alone("StandinText", json!({"text": "x"})), true),
    )?;
    Ok(())
}

#[tokio::test]
async fn an_abort_interrupts() -> Result<()> {
    let rig = Rig::boot().await?;
    let task = Try::new(alone("StandinHang", json!({})))?;
    let outcome = task.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        task.abort.cancel();
    });
    assert_eq!(outcome.await.err(), Some(ExecuteError::Aborted { stuck: false }));

    let task = Try::new(alone("StandinHang", json!({})))?;
    task.abort.cancel();
    let outcome = task.run(&rig.server, &rig.socket).await;
    assert_eq!(outcome.err(), Some(ExecuteError::Aborted { stuck: false }), "also before the post");
    rig.assert_works().await
}

#[tokio::test]
async fn a_death_during_the_abort_is_no_wait() -> Result<()> {
    let rig = Rig::boot().await?;
    let task =
        Try::new(alone("StandinCrash", json!({"how": "exit", "exit_code": 1, "after_seconds": 600.0})))?;
    let begin = Instant::now();
    let outcome = task.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        tokio::join!(rig.server.stop(), async { task.abort.cancel() });
    });
    assert!(matches!(outcome.await, Err(ExecuteError::Died(_) | ExecuteError::Aborted { stuck: false })));
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_foreign_interrupt_is_an_outcome() -> Result<()> {
    let rig = Rig::boot().await?;
    let task = Try::new(alone("StandinHang", json!({})))?;
    let outcome = task.run_with(&rig.server, &rig.socket, async |notes| {
        running(notes).await;
        let _ = rig.fault(json!({"interrupt": true})).await;
    });
    assert_eq!(outcome.await?.history.outcome(), ExecutionOutcome::Interrupted);
    Ok(())
}
