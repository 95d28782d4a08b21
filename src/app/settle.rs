//! How a message is settled: its result published, a copy put into the delay queue, or handed back.
//!
//! Each of them waits for a broker that takes nothing for now (a memory or disk alarm, a restart): the job is done, and
//! stays ours.

use std::time::Duration;

use contract::failure::Cause;
use tokio::time::Instant;

use super::worker::{HAND_BACK_PAUSE, Worker};
use crate::{
    job::message::{JobMessage, JobOutcome},
    metrics,
    queue::{Delivery, Postponement, PublishError, ResultMessage, Settlement},
    requeue::RequeueHistory,
    telemetry::StageName,
};

/// Longest wait for a confirm until the broker is asked again, on another channel or connection.
const CONFIRM_LIMIT: Duration = Duration::from_secs(60);
/// The same for a message that must not stay in a drain.
const RENEW_LIMIT: Duration = Duration::from_secs(5);

/// How a message is let go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SettlementPlan {
    pub(super) settlement: Settlement,
    /// Whether the job itself has come back to the queue, or a copy of it.
    pub(super) returned: bool,
}

impl SettlementPlan {
    pub(super) const HANDED_BACK: Self = Self { settlement: Settlement::HandBack, returned: true };
    pub(super) const COPIED: Self = Self { settlement: Settlement::Ack, returned: true };

    pub(super) fn done(settlement: Settlement) -> Self {
        Self { settlement, returned: false }
    }
}

impl Worker {
    /// Publishes the result, or has the job back in a queue; how its message is then settled.
    pub(super) async fn settling(
        &self,
        outcome: JobOutcome,
        incoming: &JobMessage,
        delivery: &Delivery,
    ) -> SettlementPlan {
        let span = &incoming.span;
        match outcome {
            JobOutcome::Answered { id, body, stored } => {
                let publishing = self.publish(delivery, id.to_string(), body, stored);
                if span.stage(StageName::Publish).within(publishing).await {
                    return SettlementPlan::done(Settlement::Ack);
                }
                metrics::handed_back(Cause::Broker);
                span.goes_back("its result could not be published", true);
                self.hand_back(delivery).await
            }
            JobOutcome::Reject { reason } => {
                tracing::warn!(reason, "the message cannot be answered: dead-lettering it");
                SettlementPlan::done(Settlement::DeadLetter)
            }
            JobOutcome::HandBack { reason, cause, later } => {
                metrics::handed_back(cause);
                let Some((delay, returned)) = later else {
                    tracing::warn!(reason, "handing the job back to the queue");
                    return self.hand_back(delivery).await;
                };
                tracing::warn!(reason, ?delay, returns = returned.count, "giving the job back until later");
                self.postpone(delivery, incoming, delay, returned).await
            }
        }
    }

    /// Back to the head of the queue, at once. Before RabbitMQ 4.3 that counts to the delivery limit, where the broker
    /// would take the job for poison: then a copy takes its place, with a fresh count.
    pub(super) async fn hand_back(&self, delivery: &Delivery) -> SettlementPlan {
        let limit = u64::from(self.config.amqp.delivery_limit);
        if delivery.message.delivery_count + 1 < limit {
            return SettlementPlan::HANDED_BACK;
        }
        match self.broker.renew(delivery, Instant::now() + RENEW_LIMIT).await {
            Ok(()) => SettlementPlan::COPIED,
            Err(error) => {
                tracing::warn!(%error, "cannot publish the job again, which is close to its delivery limit");
                SettlementPlan::HANDED_BACK
            }
        }
    }

    /// Into the delay queue; a broker that takes nothing is waited for, until a drain.
    pub(super) async fn postpone(
        &self,
        delivery: &Delivery,
        incoming: &JobMessage,
        delay: Duration,
        returns: RequeueHistory,
    ) -> SettlementPlan {
        let postponement = Postponement { delay, returns, expires_at: incoming.expires_at };
        loop {
            let postponed = tokio::select! {
                biased;
                postponed = self.broker.postpone(delivery, &postponement, Instant::now() + CONFIRM_LIMIT) => postponed,
                () = self.runner.shutdown.stop.cancelled() => return self.hand_back(delivery).await,
            };
            match postponed {
                Ok(()) => return SettlementPlan::COPIED,
                Err(_) if delivery.is_stale() => return SettlementPlan::HANDED_BACK,
                Err(error @ PublishError::Unconfirmed(_)) => {
                    tracing::warn!(%error, "the job could not be put into the delay queue yet");
                }
                Err(error) => {
                    tracing::warn!(%error, "the job cannot be put into the delay queue: handing it back");
                    self.pause(HAND_BACK_PAUSE).await;
                    return self.hand_back(delivery).await;
                }
            }
        }
    }

    /// Order: the result is durable, then the confirm, then the ack. A broker that takes nothing is waited for as
    /// long as the job is ours, up to the drain's grace; whether it is published.
    pub(super) async fn publish(
        &self,
        delivery: &Delivery,
        job_id: String,
        body: bytes::Bytes,
        stored: bool,
    ) -> bool {
        let stored_at = self.runner.base.join(&format!("{job_id}/result.json")).ok().filter(|_| stored);
        let stored_at = stored_at.map(|uri| uri.to_string());
        let result = ResultMessage {
            job_id,
            body,
            stored_at,
            reply_to: delivery.message.reply_to.clone(),
            correlation_id: delivery.message.correlation_id.clone(),
            reply_only: !stored,
        };
        loop {
            let published = tokio::select! {
                biased;
                published = self.broker.publish_result(&result, Instant::now() + CONFIRM_LIMIT) => published,
                // The result stands: the worker that gets the job next answers from it.
                () = self.runner.shutdown.abort.cancelled() => {
                    tracing::warn!(job = result.job_id, "the shutdown grace ended before the result was published");
                    return false;
                }
                () = delivery.lost() => return false,
            };
            match published {
                Ok(warnings) => {
                    for warning in warnings {
                        tracing::warn!(job = result.job_id, %warning, "the result could not be sent there");
                    }
                    tracing::info!(job = result.job_id, "answered");
                    connector::phases::reached("published").await;
                    return true;
                }
                Err(error) => {
                    tracing::warn!(job = result.job_id, %error, "the result could not be published yet");
                    self.pause(HAND_BACK_PAUSE).await;
                    if !matches!(error, PublishError::Unconfirmed(_)) || delivery.is_stale() {
                        return false;
                    }
                }
            }
        }
    }
}
