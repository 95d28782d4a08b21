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
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    admin::{self, Board, Usage},
    child,
    connector::ComfyConnector,
    metrics,
};

/// How often it is looked at: reading the process table costs some milliseconds.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// ComfyUI that loads a model may not answer for a while; then nobody waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Resources {
    /// Main memory of worker and children, in bytes.
    rss: AtomicU64,
    looked: Notify,
}

impl Resources {
    /// Looks for ever.
    pub(super) async fn watch(&self, connector: &ComfyConnector, board: &Board) -> Infallible {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            board.resources(self.look(connector).await);
            self.looked.notify_waiters();
        }
    }

    async fn look(&self, connector: &ComfyConnector) -> admin::Resources {
        let mut seen = admin::Resources::default();
        let engine = connector.running();
        let measured = spawn_blocking({
            let engine = engine.clone();
            move || {
                let children = engine.map(|engine| (engine.server().rss(), engine.browser().rss()));
                (child::own_rss(), children.unwrap_or_default())
            }
        });
        if let Ok((worker, (comfyui, browser))) = measured.await {
            for (process, name, bytes) in [
                ("worker", "worker", worker),
                ("comfyui", "ComfyUI", comfyui),
                ("browser", "Chromium", browser),
            ] {
                metrics::memory(process, bytes);
                seen.memory.push(Usage { name: name.to_owned(), used: bytes, total: None });
            }
            self.rss.store(worker + comfyui + browser, Ordering::Relaxed);
        }
        let Some(engine) = engine else { return seen };
        if let Ok(Ok(devices)) = timeout(ANSWER_LIMIT, engine.server().client().devices()).await {
            for device in devices {
                metrics::device_memory(&device.name, device.vram_total, device.vram_free);
                seen.devices.push(Usage {
                    used: device.vram_total.saturating_sub(device.vram_free),
                    total: Some(device.vram_total),
                    name: device.name,
                });
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
