//! Buffers what a prompt's follower has not read yet, and the pictures that it keeps, both bounded in bytes. The websocket
//! is read always, since a client that stops reading stalls ComfyUI for everybody: what is too much is dropped, events that
//! only show progress first.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::events::Event;

/// Frames that wait: beyond this, previews, progress and the like are dropped.
const WAITING_BYTES: usize = 32 << 20;
/// All that is held for a prompt, the pictures that exist only as frames among it: they are outputs.
const HELD_BYTES: usize = 512 << 20;
/// What an event takes at least.
const LEAST_BYTES: usize = 512;

/// What a follower gets.
#[derive(Debug)]
pub(super) enum SocketEvent {
    /// An event of its prompt.
    Event(Event, ByteReservation),
    /// The connection is gone. The prompt was posted under its client id: no event of it will come.
    Lost,
}

#[derive(Debug, Default)]
struct HeldBytes {
    waiting: AtomicUsize,
    kept: AtomicUsize,
    lost: AtomicBool,
}

/// The bytes of one event, held until this is dropped.
#[derive(Debug)]
pub(super) struct ByteReservation {
    bytes: usize,
    is_kept: bool,
    held: Arc<HeldBytes>,
}

impl ByteReservation {
    /// It was read, and stays in memory.
    pub(super) fn keep(mut self) -> Self {
        if !std::mem::replace(&mut self.is_kept, true) {
            self.held.kept.fetch_add(self.bytes, Ordering::Relaxed);
            self.held.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        }
        self
    }
}

impl Drop for ByteReservation {
    fn drop(&mut self) {
        let holds = if self.is_kept { &self.held.kept } else { &self.held.waiting };
        holds.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where the socket puts events.
#[derive(Debug)]
pub(super) struct InboxSender {
    events: mpsc::UnboundedSender<SocketEvent>,
    held: Arc<HeldBytes>,
}

/// Where a follower takes them.
#[derive(Debug)]
pub(super) struct Inbox {
    events: mpsc::UnboundedReceiver<SocketEvent>,
    held: Arc<HeldBytes>,
}

pub(super) fn inbox() -> (InboxSender, Inbox) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let held = Arc::new(HeldBytes::default());
    (InboxSender { events: sender, held: Arc::clone(&held) }, Inbox { events: receiver, held })
}

impl InboxSender {
    /// Puts an event that came in a frame of so many bytes, or drops it.
    pub(super) fn put(&self, event: Event, bytes: usize) {
        let bytes = bytes.max(LEAST_BYTES);
        let waiting = self.held.waiting.load(Ordering::Relaxed).saturating_add(bytes);
        let all = self.held.kept.load(Ordering::Relaxed).saturating_add(waiting);
        let fits = if only_shows(&event) { waiting <= WAITING_BYTES } else { all <= HELD_BYTES };
        if fits {
            // Only the socket adds: no other put comes in between.
            self.held.waiting.fetch_add(bytes, Ordering::Relaxed);
            let weight = ByteReservation { bytes, is_kept: false, held: Arc::clone(&self.held) };
            let _ = self.events.send(SocketEvent::Event(event, weight));
        } else if !only_shows(&event) {
            self.held.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Tells that the connection is gone.
    pub(super) fn lose(&self) {
        let _ = self.events.send(SocketEvent::Lost);
    }
}

impl Inbox {
    /// The next event; `None` once the socket is closed.
    pub(super) async fn recv(&mut self) -> Option<SocketEvent> {
        self.events.recv().await
    }

    /// Whether there was no room for a picture that may be an output.
    pub(super) fn has_lost(&self) -> bool {
        self.held.lost.load(Ordering::Relaxed)
    }
}

/// What the history says as well, or nobody misses.
fn only_shows(event: &Event) -> bool {
    match event {
        // A node's previews are JPEG; what it outputs comes as PNG.
        Event::Image(image) => image.content_type != "image/png",
        Event::Status { .. }
        | Event::Progress { .. }
        | Event::ProgressState(_)
        | Event::Executed { .. }
        | Event::Other(_) => true,
        Event::Started
        | Event::Cached(_)
        | Event::Executing(_)
        | Event::Succeeded
        | Event::Failed(_)
        | Event::Interrupted => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::comfy::events::Image;

    const MIB: usize = 1 << 20;

    fn image(content_type: &'static str) -> Event {
        Event::Image(Image { node: None, content_type, bytes: bytes::Bytes::new() })
    }

    fn waiting(inbox: &mut Inbox) -> Vec<(Event, ByteReservation)> {
        let mut found = Vec::new();
        while let Ok(SocketEvent::Event(event, weight)) = inbox.events.try_recv() {
            found.push((event, weight));
        }
        found
    }

    #[tokio::test]
    async fn previews_nobody_reads_are_dropped_and_outputs_stay_within_the_bound() {
        let (outlet, mut inbox) = inbox();
        for _ in 0..100 {
            outlet.put(image("image/jpeg"), MIB);
        }
        assert!(!inbox.has_lost());
        outlet.put(Event::Executing(None), 100);
        outlet.put(image("image/png"), 100 * MIB);
        let found = waiting(&mut inbox);
        let previews = found.iter().filter(|(event, _)| *event == image("image/jpeg")).count();
        assert_eq!((previews, found.len()), (32, 34));
        // Kept ones leave room for previews, and count for outputs.
        let mut kept: Vec<_> = found.into_iter().rev().take(1).map(|(_, weight)| weight.keep()).collect();
        for _ in 0..5 {
            outlet.put(image("image/png"), 100 * MIB);
            kept.extend(waiting(&mut inbox).into_iter().map(|(_, weight)| weight.keep()));
        }
        assert!(kept.len() == 5 && inbox.has_lost());
        outlet.put(image("image/jpeg"), MIB);
        assert_eq!(waiting(&mut inbox).len(), 1);
        drop(kept);
        outlet.put(image("image/png"), 500 * MIB);
        assert_eq!(waiting(&mut inbox).len(), 1);
        let HeldBytes { waiting, kept, .. } = &*outlet.held;
        assert_eq!((waiting.load(Ordering::Relaxed), kept.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn a_flood_of_small_events_is_bounded_and_the_end_comes_through() {
        let (outlet, mut inbox) = inbox();
        for _ in 0..1_000_000 {
            outlet.put(Event::Other("x".to_owned()), 10);
        }
        outlet.put(Event::Executing(None), 10);
        let found = waiting(&mut inbox);
        assert!(found.len() <= WAITING_BYTES / LEAST_BYTES + 1, "{}", found.len());
        assert_eq!(found.last().unwrap().0, Event::Executing(None));
        outlet.lose();
        assert!(matches!(inbox.recv().await, Some(SocketEvent::Lost)));
    }
}
