//! The least that a client of ComfyUI can do: post, listen until it is over, ask for the history.

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

pub(crate) struct Bare {
    http: reqwest::Client,
    base: String,
    client_id: String,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Bare {
    /// `base`: `http://127.0.0.1:PORT`
    pub(crate) async fn connect(base: &str) -> Result<Self> {
        let client_id = uuid::Uuid::new_v4().to_string();
        let address = format!("{}/ws?clientId={client_id}", base.replacen("http", "ws", 1));
        let (socket, _) = connect_async(address).await?;
        Ok(Self { http: reqwest::Client::new(), base: base.to_owned(), client_id, socket })
    }

    pub(crate) async fn run(&mut self, prompt: &Value) -> Result<Value> {
        let body = json!({"prompt": prompt, "client_id": self.client_id});
        let posted = self.http.post(format!("{}/prompt", self.base)).json(&body).send().await?;
        let posted: Value = posted.error_for_status()?.json().await?;
        let id = posted["prompt_id"].as_str().context("no prompt_id")?;
        loop {
            let frame = self.socket.next().await.context("the websocket ended")??;
            let Message::Text(text) = frame else { continue };
            let event: Value = serde_json::from_str(&text)?;
            let data = &event["data"];
            if event["type"] == "executing" && data["node"].is_null() && data["prompt_id"] == id {
                break;
            }
        }
        let history = self.http.get(format!("{}/history/{id}", self.base)).send().await?;
        let mut history: Value = history.error_for_status()?.json().await?;
        let entry = history[id].take();
        ensure!(entry["status"]["status_str"] == "success", "{entry}");
        Ok(entry)
    }
}
