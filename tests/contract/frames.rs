//! A plain websocket client, and frames as short labels that tests can compare.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};
use url::Url;
use uuid::Uuid;

use super::bed::{Bed, LIMIT};

const FEATURES: &str = r#"{"type":"feature_flags","data":{"supports_preview_metadata":true}}"#;

/// A websocket that says nothing of its own.
pub(crate) struct Ears {
    pub(crate) client_id: String,
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// A frame.
#[derive(Clone, Debug)]
pub(crate) enum Heard {
    Text(Value),
    Binary(Bytes),
}

impl Ears {
    /// Connects, negotiates previews with metadata and hears the greeting out.
    pub(crate) async fn open(bed: &Bed) -> Result<Self> {
        let mut ears = Self::connect(bed, &Uuid::new_v4().to_string(), "ws").await?;
        ears.negotiate().await?;
        Ok(ears)
    }

    /// Connects without a word.
    pub(crate) async fn connect(bed: &Bed, client_id: &str, path: &str) -> Result<Self> {
        let mut url: Url = bed.base().join(path)?;
        url.set_scheme("ws").ok().context("no websocket address")?;
        if !client_id.is_empty() {
            url.set_query(Some(&format!("clientId={client_id}")));
        }
        let (stream, _) = timeout(LIMIT, connect_async(url.as_str())).await??;
        Ok(Self { client_id: client_id.to_owned(), stream })
    }

    pub(crate) async fn negotiate(&mut self) -> Result<()> {
        self.say(FEATURES).await?;
        while self.next().await?.kind() != "feature_flags" {}
        Ok(())
    }

    pub(crate) async fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.send(Message::text(text)).await?)
    }

    pub(crate) async fn next(&mut self) -> Result<Heard> {
        loop {
            let message = timeout(LIMIT, self.stream.next()).await.context("no frame came")?;
            match message.context("the websocket ended")?? {
                Message::Text(text) => return Ok(Heard::Text(serde_json::from_str(&text)?)),
                Message::Binary(bytes) => return Ok(Heard::Binary(bytes)),
                Message::Close(_) => bail!("the websocket was closed"),
                _ => {}
            }
        }
    }

    /// What has been sent so far: a pong cannot overtake it.
    pub(crate) async fn so_far(&mut self) -> Result<Vec<Heard>> {
        let mut all = Vec::new();
        self.stream.send(Message::Ping(Bytes::from_static(b"so far"))).await?;
        loop {
            let message = timeout(LIMIT, self.stream.next()).await.context("no pong came")?;
            match message.context("the websocket ended")?? {
                Message::Text(text) => all.push(Heard::Text(serde_json::from_str(&text)?)),
                Message::Binary(bytes) => all.push(Heard::Binary(bytes)),
                Message::Pong(_) => return Ok(all),
                _ => {}
            }
        }
    }

    /// Closes with the handshake.
    pub(crate) async fn close(mut self) -> Result<()> {
        self.stream.close(None).await?;
        while let Some(Ok(_)) = timeout(LIMIT, self.stream.next()).await? {}
        Ok(())
    }

    /// Up to and with the end of that prompt.
    pub(crate) async fn until_end(&mut self, prompt_id: &str) -> Result<Vec<Heard>> {
        self.until(|heard| heard.ends(prompt_id)).await
    }

    /// Up to and with the first frame that is `wanted`.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Heard) -> bool) -> Result<Vec<Heard>> {
        let mut all = Vec::new();
        loop {
            let heard = self.next().await.with_context(|| format!("after {:?}", labels(&all)))?;
            all.push(heard);
            if all.last().is_some_and(&wanted) {
                return Ok(all);
            }
        }
    }
}

impl Heard {
    pub(crate) fn kind(&self) -> &str {
        match self {
            Self::Text(message) => message["type"].as_str().unwrap_or_default(),
            Self::Binary(_) => "binary",
        }
    }

    /// `data` of a text frame.
    pub(crate) fn data(&self) -> &Value {
        match self {
            Self::Text(message) => &message["data"],
            Self::Binary(_) => &Value::Null,
        }
    }

    pub(crate) fn ends(&self, prompt_id: &str) -> bool {
        let data = self.data();
        self.kind() == "executing" && data["node"].is_null() && data["prompt_id"] == prompt_id
    }

    pub(crate) fn label(&self) -> String {
        let data = self.data();
        match self.kind() {
            "status" => format!("status {}", data["status"]["exec_info"]["queue_remaining"]),
            "execution_cached" => {
                let mut nodes = data["nodes"].as_array().cloned().unwrap_or_default();
                nodes.sort_by_key(ToString::to_string);
                format!("execution_cached {}", Value::Array(nodes))
            }
            kind @ ("executing" | "executed") => format!("{kind} {}", data["node"]),
            "progress" => format!("progress {} {}/{}", data["node"], data["value"], data["max"]),
            "progress_state" => {
                let nodes = data["nodes"].as_object().into_iter().flatten();
                let states =
                    nodes.map(|(id, node)| format!("{id}={}", node["state"].as_str().unwrap_or("?")));
                format!("progress_state {}", states.collect::<Vec<_>>().join(" "))
            }
            "binary" => match self {
                Self::Binary(bytes) => format!("binary {}", bytes.get(3).copied().unwrap_or_default()),
                Self::Text(_) => String::new(),
            },
            kind => kind.to_owned(),
        }
    }
}

pub(crate) fn labels(heard: &[Heard]) -> Vec<String> {
    heard.iter().map(Heard::label).collect()
}

/// Without `status`, whose number depends on how fast the prompt thread is.
pub(crate) fn story(heard: &[Heard]) -> Vec<String> {
    labels(heard).into_iter().filter(|label| !label.starts_with("status")).collect()
}
