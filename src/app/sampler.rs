//! What the worker and its children use: looked at now and then, for metrics, the status, and
//! `worker.max_rss`.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    admin::{Resources, StatusBoard, Usage},
    metrics,
};
use connector::{ComfyConnector, child, comfy::Device};

/// How often it is looked at: reading the process table costs some milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// ComfyUI that loads a model may not answer for a while; then nobody waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// Main memory of worker and children, in bytes.
    rss: AtomicU64,
    looked: Notify,
}

impl Sampler {
    /// Looks forever: now and then, and as soon as ComfyUI has come or gone.
    pub(super) async fn watch(&self, connector: &ComfyConnector, board: &StatusBoard) -> Infallible {
        let mut state = connector.watch_state();
        loop {
            board.resources(self.look(connector).await);
            self.looked.notify_waiters();
            // The connector outlives this.
            _ = timeout(LOOK_EVERY, state.changed()).await;
        }
    }

    async fn look(&self, connector: &ComfyConnector) -> Resources {
        let mut seen = Resources::default();
        let engine = connector.running();
        let measured = spawn_blocking({
            let engine = engine.clone();
            move || {
                let children = engine.map(|engine| (engine.server().rss(), engine.browser().rss()));
                (child::own_rss(), children.unwrap_or_default())
            }
        });
        if let Ok((worker, (comfyui, browser))) = measured.await {
            for (process, name, used) in [
                ("worker", "worker", worker),
                ("comfyui", "ComfyUI", comfyui),
                ("browser", "Chromium", browser),
            ] {
                metrics::memory(process, used);
                seen.memory.push(Usage { name: name.to_owned(), used, total: None });
            }
            self.rss.store(worker + comfyui + browser, Ordering::Relaxed);
        }
        let Some(engine) = engine else { return seen };
        if let Ok(Ok(devices)) = timeout(ANSWER_LIMIT, engine.server().client().devices()).await {
            for device in devices {
                let Device { name, vram_total: total, vram_free: free } = device;
                metrics::device_memory(&name, total, free);
                seen.devices.push(Usage { name, used: total.saturating_sub(free), total: Some(total) });
            }
        }
        seen
    }

    /// Main memory of worker and children when it was looked at last, in bytes.
    pub(super) fn rss(&self) -> u64 {
        self.rss.load(Ordering::Relaxed)
    }

    /// Waits for the next look.
    pub(super) fn looked(&self) -> Notified<'_> {
        self.looked.notified()
    }
}
