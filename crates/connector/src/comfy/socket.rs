//! ComfyUI's websocket: one connection, read always, its events handed to anyone who follows a prompt.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::{interval, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};
use url::Url;
use uuid::Uuid;

use super::{
    client::RequestError,
    events::{Event, Frame, binary_frame, text_frame},
    inbox::{Inbox, InboxSender, inbox},
};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(10);
/// Nothing for this long, pongs included: the connection is dead. A node may hold Python's lock for
/// minutes, and with the connection its pictures would be lost; looks at the history notice a dead one.
const SILENCE_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The largest frame: an uncompressed picture that a node sends as its output. After a larger one the
/// connection is made again.
const LARGEST_FRAME: usize = 256 << 20;
/// A longer text is not read: parsed, it would take many times as much. The history says the same.
const LONGEST_TEXT: usize = 16 << 20;

/// A websocket that connects again by itself.
#[derive(Debug)]
pub struct Socket {
    shared: Arc<Shared>,
    client_id: watch::Receiver<Option<String>>,
    base: Url,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    followers: Mutex<HashMap<String, InboxSender>>,
}

/// One prompt's events; ends with its drop.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) events: Inbox,
    prompt_id: String,
    shared: Arc<Shared>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.followers().remove(&self.prompt_id);
    }
}

impl Socket {
    /// Connects to the ComfyUI at `base`.
    ///
    /// # Errors
    /// When the first connection fails; later ones are tried again forever.
    pub async fn connect(base: &Url) -> Result<Self, RequestError> {
        let client_id = Uuid::new_v4().to_string();
        let stream = open(&address(base, &client_id)).await?;
        let shared = Arc::new(Shared::default());
        let (report, watched) = watch::channel(Some(client_id));
        let task = tokio::spawn(keep_connected(base.clone(), stream, Arc::clone(&shared), report));
        Ok(Self { shared, client_id: watched, base: base.clone(), task })
    }

    /// The id that ComfyUI knows the present connection by; `None` while there is none. A new one
    /// with each connection: a second socket under an old id may never get its messages
    /// (COMFYUI, "a new socket with the same clientId races").
    #[must_use]
    pub fn client_id(&self) -> Option<String> {
        self.client_id.borrow().clone()
    }

    /// The address of the present connection.
    #[must_use]
    pub fn address(&self) -> String {
        address(&self.base, &self.client_id().unwrap_or_default())
    }

    /// Waits up to `limit` for a connection and answers its client id.
    pub async fn connected(&self, limit: Duration) -> Option<String> {
        let mut client_id = self.client_id.clone();
        let found = timeout(limit, client_id.wait_for(Option::is_some)).await.ok()?.ok()?;
        found.clone()
    }

    /// Ends the connection and the attempts at new ones.
    pub fn close(&self) {
        self.task.abort();
    }

    /// Follows a prompt. Subscribe before POST: a cached prompt can finish immediately.
    pub(super) fn follow(&self, prompt_id: &str) -> Subscription {
        let (outlet, events) = inbox();
        self.shared.followers().insert(prompt_id.to_owned(), outlet);
        Subscription { events, prompt_id: prompt_id.to_owned(), shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn followers(&self) -> MutexGuard<'_, HashMap<String, InboxSender>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To the prompt's follower; what names no prompt goes to all.
    fn hand_out(&self, Frame { prompt, event }: Frame, bytes: usize) {
        let followers = self.followers();
        match prompt {
            Some(prompt) => {
                if let Some(follower) = followers.get(&prompt) {
                    follower.put(event, bytes);
                }
            }
            // A node on reconnect, or an old-style preview.
            None if matches!(event, Event::Executing(Some(_)) | Event::Image(_)) => {
                for follower in followers.values() {
                    follower.put(event.clone(), bytes);
                }
            }
            None => {}
        }
    }
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

fn address(base: &Url, client_id: &str) -> String {
    let host = base.host_str().unwrap_or_default();
    format!("ws://{host}:{}/ws?clientId={client_id}", base.port_or_known_default().unwrap_or(80))
}

async fn open(address: &str) -> Result<Stream, RequestError> {
    let failed = |reason: String| RequestError { call: "/ws".into(), reason, answered: false };
    let config =
        WebSocketConfig::default().max_frame_size(Some(LARGEST_FRAME)).max_message_size(Some(LARGEST_FRAME));
    let connecting = connect_async_with_config(address, Some(config), true);
    let (mut stream, _) = timeout(CONNECT_LIMIT, connecting)
        .await
        .map_err(|_| failed(format!("no connection within {CONNECT_LIMIT:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    // Must be the very first message: previews then carry node and prompt ids.
    let features = r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#;
    stream.send(Message::text(features)).await.map_err(|error| failed(error.to_string()))?;
    Ok(stream)
}

async fn keep_connected(
    base: Url,
    mut stream: Stream,
    shared: Arc<Shared>,
    report: watch::Sender<Option<String>>,
) {
    loop {
        let reason = read(&mut stream, &shared).await;
        tracing::warn!(%reason, "websocket to ComfyUI lost, connecting again");
        report.send_replace(None);
        for follower in shared.followers().values() {
            follower.lose();
        }
        let delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(2))
            .without_max_times()
            .build();
        for delay in delays {
            tokio::time::sleep(delay).await;
            let client_id = Uuid::new_v4().to_string();
            if let Ok(connected) = open(&address(&base, &client_id)).await {
                stream = connected;
                report.send_replace(Some(client_id));
                break;
            }
        }
    }
}

/// Reads until the connection ends; why it did.
async fn read(stream: &mut Stream, shared: &Shared) -> String {
    let mut ping = interval(PING_EVERY);
    let mut last_heard = tokio::time::Instant::now();
    loop {
        let message = tokio::select! {
            message = stream.next() => message,
            _ = ping.tick() => {
                if last_heard.elapsed() > SILENCE_LIMIT {
                    return format!("silent for {SILENCE_LIMIT:?}");
                }
                // A peer that reads nothing lets the send block.
                match timeout(CONNECT_LIMIT, stream.send(Message::Ping(Vec::new().into()))).await {
                    Ok(Ok(())) => continue,
                    Ok(Err(error)) => return error.to_string(),
                    Err(_) => return "a ping could not be sent".to_owned(),
                }
            }
        };
        last_heard = tokio::time::Instant::now();
        let bytes = message.as_ref().map_or(0, |message| message.as_ref().map_or(0, Message::len));
        let frame = match message {
            Some(Ok(Message::Text(text))) if text.len() > LONGEST_TEXT => None,
            Some(Ok(Message::Text(text))) => text_frame(&text),
            Some(Ok(Message::Binary(bytes))) => binary_frame(&bytes),
            Some(Ok(Message::Close(_))) | None => return "closed by ComfyUI".to_owned(),
            Some(Ok(_)) => None,
            Some(Err(error)) => return error.to_string(),
        };
        if let Some(frame) = frame {
            shared.hand_out(frame, bytes);
        }
    }
}
