//! `execute` against the stand-in's test nodes and faults, each test with a server of its own.

mod endings;
mod losses;
mod nodes;

use std::time::Duration;

use anyhow::{Result, ensure};
use connector::comfy::{ExecuteError, Executed, Server, Socket};
use serde_json::{Value, json};
use tempfile::TempDir;
use testbed::{Engine, scratch_root};

use super::{bed::config, ours::Try, prompts::image};

/// How long a prompt may take after ComfyUI would not let go of it, waits for that included.
const STUCK: Duration = Duration::from_secs(30);

/// A stand-in and our socket to it.
struct Rig {
    server: Server,
    socket: Socket,
    http: reqwest::Client,
    _folder: TempDir,
}

impl Rig {
    async fn boot() -> Result<Self> {
        let folder = tempfile::tempdir_in(scratch_root()?)?;
        let server = Server::boot(&config(&Engine::standin(folder.path())?)?, |_| (), |_| ()).await?;
        let socket = Socket::connect(server.client().base()).await?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { server, socket, http, _folder: folder })
    }

    async fn run(&self, prompt: Value) -> Result<Executed, ExecuteError> {
        let task = Try::new(prompt).map_err(|error| ExecuteError::Died(error.to_string()))?;
        task.run(&self.server, &self.socket).await
    }

    async fn fault(&self, fault: Value) -> Result<()> {
        let url = self.server.client().base().join("standin/faults")?;
        let answer = self.http.post(url).json(&fault).send().await?;
        ensure!(answer.status().is_success(), "{fault}: {}", answer.status());
        Ok(())
    }

    async fn stats(&self) -> Result<Value> {
        let url = self.server.client().base().join("standin/stats")?;
        Ok(self.http.get(url).send().await?.json().await?)
    }

    /// A plain prompt still runs.
    async fn assert_works(&self) -> Result<()> {
        let executed = self.run(alone("StandinText", json!({"text": "still here"}))).await?;
        ensure!(executed.history.outcome().failure().is_none(), "{executed:?}");
        Ok(())
    }
}

/// A prompt of that one test node.
fn alone(class: &str, inputs: Value) -> Value {
    json!({"1": {"class_type": class, "inputs": inputs}})
}

/// That test node, then a picture over the websocket.
fn before_a_socket_picture(class: &str, inputs: Value) -> Value {
    let mut first = inputs;
    first["image"] = json!(["1", 0]);
    json!({"1": image(1), "2": {"class_type": class, "inputs": first},
           "3": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}})
}
