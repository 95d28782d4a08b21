//! [`ComfyConnector`]: ComfyUI and a browser, booted once, kept well, and asked to run workflows.
//! The library's face, and what `serve`, `run` and `convert` use.

mod engine;
mod error;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use engine::Engine;
pub use error::{ConnectorError, Ill};

use crate::{
    browser::Conversion,
    comfy::{BootError, Execution, Observer, PromptId, events::Image, history::History, tracker::Progress},
    config::Config,
    job::apply,
    stage::{Folders, Journal, Owned, PlaceError, Stager, UploadOptions},
    store::Stores,
};

/// Boots before giving up.
const BOOTS: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Where a connector stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet started.
    Uninit,
    /// Starting, or starting again after a part was lost.
    Initializing,
    /// Every part works.
    Ready,
    /// The start failed.
    Error,
    /// Shut down.
    Killed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uninit => "uninit",
            Self::Initializing => "initializing",
            Self::Ready => "ready",
            Self::Error => "error",
            Self::Killed => "killed",
        })
    }
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A UI workflow: converted first.
    Workflow(Value),
    /// A prompt in ComfyUI's API format.
    Prompt(Value),
}

/// ComfyUI and a browser under one roof. Cheap to clone; all clones are the same instance.
#[derive(Clone)]
pub struct ComfyConnector(Arc<Inner>);

struct Inner {
    config: Config,
    state: watch::Sender<State>,
    engine: tokio::sync::Mutex<Option<Arc<Engine>>>,
    stager: Stager,
    ephemeral: Mutex<Vec<Owned>>,
    on_boot_line: BootLine,
}

/// Gets each line that ComfyUI writes.
pub type BootLine = Arc<dyn Fn(&str) + Send + Sync>;

/// The one live instance of this process.
static LIVE: Mutex<Option<ComfyConnector>> = Mutex::new(None);

impl ComfyConnector {
    /// Boots ComfyUI and a browser and runs the self-test through conversion, execution and result.
    ///
    /// There is one live instance a process: a second call gets the first one, whatever its
    /// configuration, until [`ComfyConnector::shutdown`].
    ///
    /// # Errors
    /// What did not come up, after three boots with growing pauses; nothing is left running then.
    pub async fn create(config: &Config) -> Result<Self, ConnectorError> {
        Self::create_watched(config, Arc::new(|_| {})).await
    }

    /// [`ComfyConnector::create`], with ComfyUI's log lines handed to `on_boot_line`.
    ///
    /// # Errors
    /// As there.
    pub async fn create_watched(config: &Config, on_boot_line: BootLine) -> Result<Self, ConnectorError> {
        let stores = Stores::new(&config.store).await;
        let connector = {
            let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
            match &*live {
                Some(connector) => connector.clone(),
                None => live.insert(Self::new(config, stores, on_boot_line)?).clone(),
            }
        };
        match connector.engine().await {
            Ok(_) => Ok(connector),
            Err(error) => {
                connector.release();
                Err(error)
            }
        }
    }

    fn new(config: &Config, stores: Stores, on_boot_line: BootLine) -> Result<Self, ConnectorError> {
        crate::deliver::mark_start();
        let state_dir = &config.worker.state_dir;
        let journal = Journal::open(state_dir)
            .map_err(|source| ConnectorError::State { path: state_dir.clone(), source })?;
        let stager = Stager::new(
            Folders::new(config.comfyui.path.clone()),
            journal,
            Arc::new(stores),
            config.inputs.allow.clone(),
            config.inputs.max_bytes,
        )
        .with_submitted(config.store.uri.clone());
        let (state, _) = watch::channel(State::Uninit);
        Ok(Self(Arc::new(Inner {
            config: config.clone(),
            state,
            engine: tokio::sync::Mutex::default(),
            stager,
            ephemeral: Mutex::default(),
            on_boot_line,
        })))
    }

    /// Forgets this instance as the live one.
    fn release(&self) {
        let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
        if live.as_ref().is_some_and(|connector| Arc::ptr_eq(&connector.0, &self.0)) {
            *live = None;
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        *self.0.state.borrow()
    }

    /// Follows where it stands.
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Stages files into ComfyUI's folders.
    #[must_use]
    pub fn stager(&self) -> &Stager {
        &self.0.stager
    }

    /// The running parts, started or started again when they have to be.
    ///
    /// # Errors
    /// As [`ComfyConnector::create`]; [`ConnectorError::Killed`] after a shutdown.
    pub async fn engine(&self) -> Result<Arc<Engine>, ConnectorError> {
        let mut engine = self.0.engine.lock().await;
        if self.state() == State::Killed {
            return Err(ConnectorError::Killed);
        }
        if let Some(running) = &*engine {
            match running.server().exit() {
                None => return Ok(Arc::clone(running)),
                Some(exit) => tracing::warn!(%exit, "ComfyUI is gone, starting it again"),
            }
        }
        self.0.state.send_replace(State::Initializing);
        if let Some(old) = engine.take() {
            old.stop().await;
        }
        // Boxed: a future of its size on every caller's stack would be large for nothing.
        let Inner { config, stager, on_boot_line, .. } = &*self.0;
        let boot = || Box::pin(Engine::boot(config, stager.journal(), Arc::clone(on_boot_line)));
        let pauses =
            ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_times(BOOTS - 1).with_jitter();
        let booted = boot
            .retry(pauses)
            .when(worth_another_boot)
            .notify(|error, pause| tracing::warn!(%error, ?pause, "the start failed, trying again"))
            .await;
        match booted {
            Ok(booted) => {
                let booted = Arc::new(booted);
                *engine = Some(Arc::clone(&booted));
                self.0.state.send_replace(State::Ready);
                Ok(booted)
            }
            Err(error) => {
                self.0.state.send_replace(State::Error);
                Err(error)
            }
        }
    }

    /// The running parts, if there are any that nobody is starting or stopping just now.
    #[must_use]
    pub fn running(&self) -> Option<Arc<Engine>> {
        self.0.engine.try_lock().ok()?.clone()
    }

    /// Kills ComfyUI, which did not let go of a prompt or is otherwise beyond words; the next call
    /// starts it again.
    pub async fn kill_engine(&self) {
        if let Some(engine) = self.0.engine.lock().await.take() {
            self.0.state.send_replace(State::Initializing);
            engine.stop().await;
        }
    }

    /// Whether every part works: process, HTTP, websocket, browser.
    ///
    /// # Errors
    /// The part that is ill, and how.
    pub async fn validate_resources(&self) -> Result<(), Ill> {
        let engine = self.0.engine.lock().await.clone().ok_or(Ill::NotRunning)?;
        engine.validate().await
    }

    /// Turns a UI workflow into a prompt.
    ///
    /// # Errors
    /// See [`ConvertError`](crate::browser::ConvertError).
    pub async fn prompt_from_workflow(&self, workflow: &Value) -> Result<Conversion, ConnectorError> {
        Ok(self.engine().await?.browser().convert(workflow).await?)
    }

    /// Runs a workflow or prompt to its end and answers its history entry.
    ///
    /// # Errors
    /// Never an empty answer: a refusal, a failed node, an interrupt are errors with ComfyUI's own
    /// words.
    pub async fn run_workflow(&self, payload: Payload) -> Result<History, ConnectorError> {
        let engine = self.engine().await?;
        engine.run(payload, self.0.config.job.timeout).await
    }

    /// Copies a local file into one of ComfyUI's folders; its path there. An ephemeral one is
    /// removed at the shutdown, or by the next start if this process dies first.
    ///
    /// # Errors
    /// See [`PlaceError`]; nothing half-written is left.
    pub async fn upload_data(&self, source: &Path, options: &UploadOptions) -> Result<PathBuf, PlaceError> {
        let (path, owned) = self.0.stager.upload(source, options).await?;
        self.0.ephemeral.lock().unwrap_or_else(PoisonError::into_inner).extend(owned);
        Ok(path)
    }

    /// Where ComfyUI is, `http://127.0.0.1:8188`; `None` while it is not running.
    pub async fn server_address(&self) -> Option<String> {
        let engine = self.0.engine.lock().await.clone()?;
        Some(engine.server().client().base().as_str().trim_end_matches('/').to_owned())
    }

    /// Where its websocket is, `ws://127.0.0.1:8188/ws?clientId=…`; `None` while it is not running.
    pub async fn ws_address(&self) -> Option<String> {
        Some(self.0.engine.lock().await.as_ref()?.socket().address())
    }

    /// The id that ComfyUI knows the websocket by; a new one with each connection.
    pub async fn client_id(&self) -> Option<String> {
        self.0.engine.lock().await.as_ref()?.socket().client_id()
    }

    /// Stops ComfyUI (TERM, then KILL, its whole group) and the browser, and removes ephemeral
    /// files. Idempotent; afterwards [`ComfyConnector::create`] starts afresh.
    pub async fn shutdown(&self) {
        let engine = {
            let mut engine = self.0.engine.lock().await;
            self.0.state.send_replace(State::Killed);
            engine.take()
        };
        if let Some(engine) = engine {
            engine.stop().await;
        }
        let ephemeral = std::mem::take(&mut *self.0.ephemeral.lock().unwrap_or_else(PoisonError::into_inner));
        // File systems may be slow: not on a thread that serves others.
        let _ = tokio::task::spawn_blocking(move || drop(ephemeral)).await;
        self.release();
    }
}

impl ComfyConnector {
    /// [`ComfyConnector::shutdown`] of the live instance, if there is one: also of one whose
    /// [`ComfyConnector::create`] was cut short.
    pub async fn shutdown_live() {
        let live = LIVE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(connector) = live {
            connector.shutdown().await;
        }
    }
}

/// Another boot cannot mend a command that does not exist.
fn worth_another_boot(error: &ConnectorError) -> bool {
    !matches!(
        error,
        ConnectorError::Boot(BootError::Spawn { .. } | BootError::NoPort(_)) | ConnectorError::Killed
    )
}

impl Engine {
    async fn run(&self, payload: Payload, limit: Duration) -> Result<History, ConnectorError> {
        let (prompt, extra_data) = match payload {
            Payload::Prompt(prompt) => {
                (apply::prompt_from_value(prompt).map_err(ConnectorError::Failed)?, json!({}))
            }
            Payload::Workflow(workflow) => {
                let Conversion { prompt, workflow, .. } = self.browser().convert(&workflow).await?;
                (prompt, json!({"extra_pnginfo": {"workflow": workflow}}))
            }
        };
        let execution = Execution {
            prompt: &prompt,
            extra_data,
            limit,
            allow_partial: false,
            abort: &CancellationToken::new(),
        };
        let executed = self.execute(execution, &mut Silent).await?;
        match executed.history.outcome().failure() {
            None => Ok(executed.history),
            Some(failure) => Err(ConnectorError::Failed(failure)),
        }
    }
}

/// Watches nothing.
struct Silent;

impl Observer for Silent {
    fn queued(&mut self, _: PromptId) {}
    fn started(&mut self) {}
    fn progress(&mut self, _: &Progress) {}
    fn preview(&mut self, _: &Image) {}
}
