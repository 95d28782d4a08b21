//! After how much work, or idle time, a worker ends by itself: `worker.idle_exit`, `worker.max_jobs`,
//! `worker.max_rss`.

use std::{
    future::pending,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::sleep;

use super::sampler::Sampler;
use crate::config::WorkerConfig;

/// Limits after which the worker drains.
#[derive(Debug)]
pub(super) struct WorkerQuota {
    idle_exit: Option<Duration>,
    max_jobs: Option<u32>,
    max_rss: Option<u64>,
    /// Jobs in hand, and those that were settled for good.
    jobs: AtomicU32,
    pub(super) sampler: Sampler,
}

impl WorkerQuota {
    pub(super) fn new(config: &WorkerConfig) -> Self {
        let WorkerConfig { idle_exit, max_jobs, max_rss, .. } = *config;
        Self { idle_exit, max_jobs, max_rss, jobs: AtomicU32::new(0), sampler: Sampler::default() }
    }

    /// A job was taken.
    pub(super) fn take(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    /// A job is settled, `returned` to the queue or for good: why it was the last one, if it was.
    pub(super) fn settle(&self, returned: bool) -> Option<String> {
        if returned {
            self.jobs.fetch_sub(1, Ordering::Relaxed);
        } else if let Some(most) = self.max_jobs.filter(|_| self.is_full()) {
            return Some(format!("it took {most} jobs (worker.max_jobs)"));
        }
        self.excess()
    }

    /// Whether those in hand may be all that it may take.
    pub(super) fn is_full(&self) -> bool {
        self.max_jobs.is_some_and(|most| self.jobs.load(Ordering::Relaxed) >= most)
    }

    /// Why worker and children are too large, if they were when they were looked at last.
    pub(super) fn excess(&self) -> Option<String> {
        let (most, bytes) = (self.max_rss?, self.sampler.rss());
        (bytes > most)
            .then(|| format!("it and its children hold {bytes} bytes, more than {most} (worker.max_rss)"))
    }

    /// Ends when a worker without a job should go, and says why.
    pub(super) async fn idle(&self) -> String {
        let bored = async {
            let Some(limit) = self.idle_exit else { return pending().await };
            sleep(limit).await;
            format!("no job for {} (worker.idle_exit)", humantime::format_duration(limit))
        };
        let large = async {
            loop {
                let looked = self.sampler.looked();
                if let Some(why) = self.excess() {
                    return why;
                }
                looked.await;
            }
        };
        tokio::select! {
            why = bored => why,
            why = large => why,
        }
    }
}
