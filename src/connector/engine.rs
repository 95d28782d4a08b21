//! The running parts: ComfyUI's process, its websocket, the browser.

use std::{fs, os::unix::fs::DirBuilderExt, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;
use uuid::Uuid;

use super::{BootLine, ConnectorError, Ill, Payload};
use crate::{
    browser::Browser,
    comfy::{ExecuteError, Executed, Execution, Observer, Server, Socket, execute},
    config::{ComfyUiConfig, Config},
    deliver,
    job::apply::is_ui_workflow,
    stage::Folders,
    stage::{Journal, Owned},
};

/// Longest self-test execution: the first prompt may import and compile.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(300);
/// Longest answer to a health question.
const HEALTH_LIMIT: Duration = Duration::from_secs(5);

/// Where programs put temporary files.
const TMPDIR: &str = "TMPDIR";

/// The workflow that must run before anybody is served.
const SELF_TEST: &str = include_str!("selftest.json");

/// ComfyUI and a browser, running.
#[derive(Debug)]
pub struct Engine {
    server: Server,
    socket: Socket,
    browser: Browser,
    /// After the server: what it writes there ends with it.
    _scratch: Option<Owned>,
}

impl Engine {
    /// Boots ComfyUI, connects, warms the browser and runs the self-test. Nothing is left running
    /// after an error.
    pub(super) async fn boot(
        config: &Config,
        journal: &Arc<Journal>,
        on_line: BootLine,
    ) -> Result<Self, ConnectorError> {
        let test = self_test(config)?;
        // Declared before the server, so that it is dropped after it.
        let scratch = scratch(&config.comfyui, journal)?;
        let mut comfyui = config.comfyui.clone();
        if let Some(scratch) = &scratch {
            comfyui.env.0.insert(TMPDIR.to_owned(), scratch.path().display().to_string());
        }
        let each_line = move |line: &str| {
            tracing::info!(target: "comfyui", "{line}");
            on_line(line);
        };
        let server = Server::boot(&comfyui, each_line).await?;
        let address = server.client().base().clone();
        let parts = tokio::try_join!(async { Ok(Socket::connect(&address).await?) }, async {
            Ok::<_, ConnectorError>(Browser::start(config.browser.clone(), address.clone()).await?)
        },);
        let (socket, browser) = match parts {
            Ok(parts) => parts,
            Err(error) => {
                server.stop().await;
                return Err(error);
            }
        };
        let engine = Self { server, socket, browser, _scratch: scratch };
        match engine.run(test, SELF_TEST_LIMIT).await {
            Ok(history) => {
                deliver::discard(&Folders::new(config.comfyui.path.clone()), &history);
                Ok(engine)
            }
            Err(error) => {
                engine.stop().await;
                Err(ConnectorError::SelfTest(error.to_string()))
            }
        }
    }

    /// ComfyUI's process and HTTP calls.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// ComfyUI's websocket.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The browser that converts workflows.
    #[must_use]
    pub fn browser(&self) -> &Browser {
        &self.browser
    }

    /// Runs a prompt.
    ///
    /// # Errors
    /// See [`ExecuteError`].
    pub async fn execute(
        &self,
        execution: Execution<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Executed, ExecuteError> {
        execute(&self.server, &self.socket, execution, observer).await
    }

    pub(super) async fn validate(&self) -> Result<(), Ill> {
        if let Some(exit) = self.server.exit() {
            return Err(Ill::Process(exit));
        }
        match timeout(HEALTH_LIMIT, self.server.client().system_stats()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(Ill::Http(error.to_string())),
            Err(_) => return Err(Ill::Http(format!("no answer within {HEALTH_LIMIT:?}"))),
        }
        if self.socket.client_id().is_none() {
            return Err(Ill::Websocket);
        }
        self.browser.validate().await.map_err(|error| Ill::Browser(error.to_string()))
    }

    pub(super) async fn stop(&self) {
        self.socket.close();
        tokio::join!(self.browser.shutdown(), self.server.stop());
    }
}

/// A folder for temporary files of ComfyUI's own, journalled: Python and what nodes start leave
/// theirs behind when they are ended by a signal. `None` where `comfyui.env` names one.
fn scratch(config: &ComfyUiConfig, journal: &Arc<Journal>) -> Result<Option<Owned>, ConnectorError> {
    if config.env.0.contains_key(TMPDIR) {
        return Ok(None);
    }
    let path = std::env::temp_dir().join(format!("comfy-worker-{}", Uuid::new_v4().simple()));
    let owned = journal.own_random(path.clone());
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(Some(owned)),
        Err(source) => Err(ConnectorError::State { path, source }),
    }
}

fn self_test(config: &Config) -> Result<Payload, ConnectorError> {
    let problem = |reason: String| ConnectorError::SelfTest(format!("{reason}; see comfyui.test_workflow"));
    // The original's file names a test workflow by default; without that file ours is as good.
    let text = match &config.comfyui.test_workflow {
        Some(path) if path.exists() => {
            fs::read_to_string(path).map_err(|error| problem(format!("{}: {error}", path.display())))?
        }
        Some(path) => {
            tracing::warn!(path = %path.display(), "no such test workflow, using the built-in one");
            SELF_TEST.to_owned()
        }
        None => SELF_TEST.to_owned(),
    };
    let workflow: Value =
        serde_json::from_str(&text).map_err(|error| problem(format!("no JSON: {error}")))?;
    Ok(if is_ui_workflow(&workflow) { Payload::Workflow(workflow) } else { Payload::Prompt(workflow) })
}
