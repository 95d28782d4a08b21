//! What a publisher writes beside a job's body: headers that fill a frame, an address that the broker fails on. Neither keeps
//! other jobs from being done.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use testbed::{RawMessage, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job},
    site::Site,
};

/// The broker adds headers to them, and its frame is larger than both sides agreed on.
#[tokio::test]
async fn headers_that_fill_a_frame_stop_nobody() -> Result<()> {
    let bed = Bed::new("full-headers").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    // The largest that a publisher's own frame takes; less what x-delivery-count, and what a postponed copy, need.
    for (number, pad) in [130_980, 130_950, 130_850, 98_000].into_iter().enumerate() {
        let value = u32::try_from(pad)?.to_be_bytes();
        let headers = [&[3][..], b"padS", &value, &vec![b'x'; pad]].concat();
        let message = |body: Vec<u8>, reply_to: String| RawMessage {
            routing_key: bed.queue().into(),
            headers: headers.clone(),
            reply_to,
            body,
            ..RawMessage::default()
        };
        let id = format!("j{number}");
        let job = serde_json::to_vec(&slow_job(&id, 0.1))?;
        bed.broker.publish_raw(&message(job, bed.replies())).await?;
        ensure!(bed.answer(&id).await?["status"] == "succeeded");
        bed.broker.publish_raw(&message(b"x".to_vec(), String::new())).await?;
    }
    wait_for("the dead letters", SOON, || async { bed.ready(".dead").await == Some(4) }).await?;
    ensure!(!worker.log().contains("lost the connection to the broker"), "{}", worker.log());
    for arguments in [&["dead", "list"][..], &["dead", "drop", "--all"]] {
        let (code, out, error) = site.command(arguments).await?;
        ensure!(code == 0, "{out} {error}");
    }
    ensure!(bed.ready(".dead").await == Some(0));
    site.finish(worker, site.initial()).await
}

/// The broker fails on such an address, and ends the connection.
#[tokio::test]
async fn an_address_that_the_broker_fails_on_keeps_no_job() -> Result<()> {
    let bed = Bed::new("direct-reply").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let ids: Vec<String> = (0..5).map(|number| format!("nowhere-{number}")).collect();
    for id in &ids {
        let nowhere = BasicProperties::default().with_reply_to("amq.rabbitmq.reply-to.a.b".into());
        bed.publish_body(&serde_json::to_vec(&slow_job(id, 0.1))?, nowhere).await?;
    }
    bed.publish(&slow_job("honest", 0.1)).await?;
    ensure!(bed.answer("honest").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await?;
    for id in &ids {
        let result = bed.s3.get("results", &format!("jobs/{id}/result.json")).await?;
        ensure!(String::from_utf8(result)?.contains("succeeded"), "{id}");
        ensure!(bed.attempts(id).await? == 1, "{id} ran more than once");
    }
    Ok(())
}
