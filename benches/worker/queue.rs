//! The publisher: jobs in, answers out, and where the time between went.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use contract::result::{JobResult, Status};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::{Value, json};
use tokio::time::timeout;

/// Two gigabytes through a busy machine.
const ANSWER: Duration = Duration::from_secs(600);

pub(crate) struct Queue {
    jobs: String,
    replies: String,
    channel: Channel,
    consumer: Consumer,
    _connection: Connection,
}

/// An answer and when it came.
pub(crate) struct Reply {
    pub(crate) at: Instant,
    pub(crate) result: JobResult,
}

impl Queue {
    /// `jobs`: the queue that a worker has declared.
    pub(crate) async fn connect(url: &str, jobs: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let replies = format!("{jobs}.replies");
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        channel.queue_declare(replies.as_str().into(), options, FieldTable::default()).await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consumer =
            channel.basic_consume(replies.as_str().into(), "".into(), options, FieldTable::default()).await?;
        Ok(Self { jobs: jobs.to_owned(), replies, channel, consumer, _connection: connection })
    }

    pub(crate) async fn publish(&self, id: &str, prompt: &Value, inputs: &Value) -> Result<()> {
        let job = json!({"version": 1, "id": id, "workflow": prompt, "inputs": inputs});
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties =
            BasicProperties::default().with_delivery_mode(2).with_reply_to(self.replies.as_str().into());
        let body = serde_json::to_vec(&job)?;
        let sent = self
            .channel
            .basic_publish("".into(), self.jobs.as_str().into(), options, &body, properties)
            .await?;
        ensure!(sent.await?.is_ack(), "the broker did not take job {id}");
        Ok(())
    }

    /// The next so many answers, all of them good.
    pub(crate) async fn replies(&mut self, count: usize) -> Result<Vec<Reply>> {
        let mut replies = Vec::with_capacity(count);
        while replies.len() < count {
            let answer = timeout(ANSWER, self.consumer.next()).await;
            let answer = answer.with_context(|| format!("answer {} did not come", replies.len() + 1))?;
            let answer = answer.context("the broker closed the reply queue")??;
            let result: JobResult = serde_json::from_slice(&answer.data)?;
            ensure!(result.status == Status::Succeeded, "job {}: {:?}", result.id, result.error);
            replies.push(Reply { at: Instant::now(), result });
        }
        Ok(replies)
    }
}

/// A job's stages, on the average.
pub(crate) fn stages(replies: &[Reply]) -> String {
    let mean = |of: fn(&JobResult) -> u64| {
        replies.iter().map(|reply| of(&reply.result)).sum::<u64>() as f64 / replies.len().max(1) as f64
    };
    let staged = mean(|job| job.timings.staged_ms);
    let converted = mean(|job| job.timings.converted_ms);
    let waited = mean(|job| job.timings.waited_ms);
    let executed = mean(|job| job.timings.executed_ms);
    let uploaded = mean(|job| job.timings.uploaded_ms);
    format!(
        "a job's means: staged {staged:.0} ms, converted {converted:.0}, waited {waited:.0}, executed \
         {executed:.0}, uploaded {uploaded:.0}"
    )
}
