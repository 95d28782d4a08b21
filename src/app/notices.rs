//! Tells the publishers of jobs that the broker moved to the dead letters: beside the jobs, until the
//! worker stops.

use contract::failure::Failure;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    last_words,
    worker::{HAND_BACK_PAUSE, Worker},
};
use crate::{
    job::message::JobOutcome,
    queue::{Delivery, Message, Settlement},
};

/// Notices in hand: the copy of a job that runs has to wait for its end, which holds up no other one. Each can be as large
/// as a job.
const SIDE_BY_SIDE: u16 = 8;

/// Runs `jobs` and, as long as they may begin, answers notices. Neither waits for the other.
pub(super) async fn beside<T>(worker: &Worker, jobs: impl Future<Output = T>) -> T {
    let ended = worker.runner.shutdown.stop.child_token();
    let jobs = async {
        // Also when they end by themselves.
        let _end_notices = ended.clone().drop_guard();
        jobs.await
    };
    tokio::join!(jobs, worker.answer_notices(&ended)).0
}

impl Worker {
    async fn answer_notices(&self, ended: &CancellationToken) {
        let mut notices = self.broker.notices(SIDE_BY_SIDE);
        let mut answering = FuturesUnordered::new();
        loop {
            let notice = tokio::select! {
                biased;
                () = ended.cancelled() => break,
                Some(()) = answering.next() => continue,
                notice = notices.next() => notice,
            };
            let Some(notice) = notice else { break };
            answering.push(async move {
                let settlement = tokio::select! {
                    biased;
                    () = ended.cancelled() => Settlement::HandBack,
                    settlement = self.answer_notice(&notice) => settlement,
                };
                notice.settle(settlement).await;
            });
        }
        while answering.next().await.is_some() {}
        last_words(&self.runner.shutdown, notices.stop()).await;
    }

    /// Kept in hand while store or broker fail: a hand-back would use up a delivery each time.
    async fn answer_notice(&self, notice: &Delivery) -> Settlement {
        let Some(failure) = fault(&notice.message, &self.config.amqp.queue) else { return Settlement::Ack };
        let mut incoming = self.incoming(notice);
        while !notice.is_stale() {
            match self.runner.give_up(&incoming, failure.clone()).await {
                JobOutcome::Answered { id, body, stored } => {
                    tracing::warn!(job = %id, reason = %failure, "the job is dead-lettered: answering its publisher");
                    if self.publish(notice, id.to_string(), body, stored).await {
                        return Settlement::Ack;
                    }
                }
                JobOutcome::Reject { reason } => {
                    tracing::warn!(reason, "a dead-lettered message cannot be answered");
                    return Settlement::Ack;
                }
                JobOutcome::HandBack { reason, later, .. } => {
                    tracing::warn!(reason, "the publisher of a dead-lettered job is answered later");
                    let (pause, returned) = later.unzip();
                    incoming.returned = returned.or(incoming.returned);
                    self.pause(pause.unwrap_or(HAND_BACK_PAUSE)).await;
                }
            }
        }
        Settlement::HandBack
    }
}

/// What a notice says of the job; `None`: nothing that its publisher must be told.
fn fault(message: &Message, queue: &str) -> Option<Failure> {
    match &message.death {
        Some(death) if death.queue == queue => Failure::dead_lettered(&death.reason, queue),
        // Anyone who may publish to the exchange of the dead letters could speak for the broker.
        other => {
            tracing::warn!(?other, "ignoring a dead-letter notice that is not about this queue");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::queue::DeathRecord;

    #[test]
    fn only_what_the_broker_gave_up_itself_is_told() {
        let death = |reason: &str, queue: &str| Message {
            death: Some(DeathRecord { reason: reason.into(), queue: queue.into(), at: None, count: 1 }),
            ..Message::default()
        };
        let code = |message: &Message| {
            let failure = fault(message, "jobs")?;
            assert!(failure.to_string().ends_with("in the dead letters of jobs"), "{failure}");
            Some(serde_json::to_value(failure.code()).unwrap())
        };
        for (reason, expected) in [
            ("delivery_limit", "poison"),
            ("expired", "timeout"),
            ("maxlen", "internal"),
            ("new", "internal"),
        ] {
            assert_eq!(code(&death(reason, "jobs")).unwrap(), expected, "{reason}");
        }
        assert_eq!(code(&death("rejected", "jobs")), None);
        assert_eq!(code(&death("delivery_limit", "other")), None);
        assert_eq!(code(&Message::default()), None);
    }
}
