#![doc = include_str!("../README.md")]

pub mod browser;
mod builder;
pub mod checksum;
pub mod child;
pub mod comfy;
pub mod config;
pub mod deliver;
mod engine;
mod error;
pub mod files;
pub mod metrics;
mod outputs;
pub mod phases;
mod replacement;
mod restarts;
mod run;
mod selftest;
pub mod stage;
mod state;
pub mod store;
mod supervision;
pub mod text;

use std::{
    ops::Deref,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use tokio::{runtime, sync::watch, task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;

pub use builder::ConnectorBuilder;
pub use config::ConnectorConfig;
pub use contract;
pub use contract::request::FolderType;
pub use engine::Engine;
pub use error::{ConnectorError, HealthError, PromptError};
pub use outputs::LocalOutput;
pub use run::Payload;
pub use stage::{PlaceError, Subfolder, UploadOptions};
pub use state::State;

use restarts::Restarts;
use stage::{EphemeralPath, Folders, Journal, Stager};
use state::StateWatch;

/// ComfyUI and a browser under one roof. Cheap to clone; all clones are the same instance.
///
/// ```no_run
/// use comfy_connector::ComfyConnector;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let builder = ComfyConnector::builder().command(["python3", "main.py"]).workdir("/opt/ComfyUI");
/// let connector = builder.start().await?;
/// let workflow: serde_json::Value = serde_json::from_slice(&std::fs::read("portrait.json")?)?;
/// let history = connector.run_workflow(workflow.into()).await?;
/// println!("{} outputs", history.outputs().len());
/// connector.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// With the last clone it shuts down by itself, in the background; [`ComfyConnector::shutdown`] waits until all is gone.
/// ComfyUI and the browser end with this process, whatever it dies of. Ephemeral files go with the shutdown, else with
/// the next start that has the same `state_dir`.
#[derive(Clone)]
pub struct ComfyConnector(Arc<Handle>);

/// What the clones share. Its end is the connector's.
struct Handle(Arc<Inner>);

impl Deref for Handle {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.killed.is_cancelled() {
            return;
        }
        self.killed.cancel();
        let connector = ComfyConnector::of(&self.0);
        // A runtime that ends leaves the rest to the end of the process.
        self.runtime.spawn(async move { connector.shutdown().await });
    }
}

/// The instance of this process, which stays until its shutdown is over.
struct Live {
    inner: Arc<Inner>,
    handle: Weak<Handle>,
}

struct Inner {
    config: ConnectorConfig,
    standing: StateWatch,
    /// Held by anyone who starts or stops the engine.
    turn: tokio::sync::Mutex<()>,
    engine: Mutex<Option<Arc<Engine>>>,
    /// Cancelled by the shutdown: anyone who starts the engine gives up.
    killed: CancellationToken,
    /// Why the state is `error`.
    failure: OnceLock<String>,
    restarts: Mutex<Restarts>,
    stager: Stager,
    ephemeral: Mutex<Vec<EphemeralPath>>,
    on_boot_line: BootLine,
    runtime: runtime::Handle,
}

/// Gets each line that ComfyUI writes, from the task that reads them: must not block.
pub type BootLine = Arc<dyn Fn(&str) + Send + Sync>;

/// How long a shutdown waits for the removal of ephemeral files. A drain's grace may be short, and a process that
/// ends while its file system hangs leaves them to the next start.
const REMOVALS_LIMIT: Duration = Duration::from_secs(3);

/// The one live instance of this process.
static LIVE: Mutex<Option<Live>> = Mutex::new(None);

impl Live {
    fn connector(&self) -> ComfyConnector {
        self.handle.upgrade().map_or_else(|| ComfyConnector::of(&self.inner), ComfyConnector)
    }
}

impl ComfyConnector {
    /// Boots ComfyUI and a browser side by side and runs the self-test through conversion, execution
    /// and result. Waits as long as ComfyUI's process lives, `comfyui.boot_timeout` at most.
    ///
    /// There is one live instance a process: a second call gets the first one, until
    /// [`ComfyConnector::shutdown`], the end of its last clone, or an error of the start. When this future is
    /// dropped, what it had started ends; the next call starts again.
    ///
    /// # Errors
    /// What did not come up, after three boots with growing pauses, none of which begins later than
    /// `comfyui.boot_timeout` after the first; nothing is left running then. [`ConnectorError::Incomplete`] without a
    /// command or a folder, [`ConnectorError::OtherConfiguration`] when the live instance has another one.
    pub async fn create(config: ConnectorConfig) -> Result<Self, ConnectorError> {
        Self::create_watched(config, Arc::new(|_| {})).await
    }

    /// [`ComfyConnector::create`], with ComfyUI's log lines handed to `on_boot_line`.
    ///
    /// # Errors
    /// As there.
    pub async fn create_watched(
        config: ConnectorConfig,
        on_boot_line: BootLine,
    ) -> Result<Self, ConnectorError> {
        let connector = Self::instance(config, on_boot_line).await?;
        match connector.engine().await {
            Ok(_) => Ok(connector),
            Err(error) => {
                // A shutdown that is under way releases it itself, when all is gone.
                if !connector.0.killed.is_cancelled() {
                    connector.release();
                }
                Err(error)
            }
        }
    }

    /// The live instance, or a new one, whatever runs of it: [`ComfyConnector::engine`] boots it.
    ///
    /// # Errors
    /// When `worker.state_dir` cannot be used.
    pub async fn instance(
        mut config: ConnectorConfig,
        on_boot_line: BootLine,
    ) -> Result<Self, ConnectorError> {
        config.check()?;
        config.comfyui.path = config.comfyui.folder();
        // Its files and processes are gone before another instance makes its own.
        if let Some(killed) = Self::live().filter(|connector| connector.0.killed.is_cancelled()) {
            killed.shutdown().await;
        }
        let is_usable = |connector: &Self| connector.state() != State::Error;
        if let Some(connector) = Self::live().filter(is_usable) {
            return connector.asked_with(&config);
        }
        let (path, folders) = (config.state_dir.clone(), Folders::new(config.comfyui.path.clone()));
        // A dead worker may have left gigabytes.
        let journal = spawn_blocking(move || {
            Journal::open(&path, &folders).map_err(|source| ConnectorError::State { path, source })
        });
        let journal = journal.await.map_err(|error| ConnectorError::State {
            path: config.state_dir.clone(),
            source: std::io::Error::other(error),
        })??;
        let mut live = locked(&LIVE);
        // Another call may have been faster.
        if let Some(connector) = live.as_ref().map(Live::connector).filter(is_usable) {
            return connector.asked_with(&config);
        }
        let connector = Self::new(config, journal, on_boot_line);
        *live = Some(Live { inner: Arc::clone(&connector.0.0), handle: Arc::downgrade(&connector.0) });
        Ok(connector)
    }

    fn of(inner: &Arc<Inner>) -> Self {
        Self(Arc::new(Handle(Arc::clone(inner))))
    }

    fn new(config: ConnectorConfig, journal: Arc<Journal>, on_boot_line: BootLine) -> Self {
        let staging = &config.staging;
        let stager = Stager::new(
            Folders::new(config.comfyui.path.clone()),
            journal,
            Arc::clone(&config.store),
            staging.allow.clone(),
            staging.max_bytes,
        )
        .with_model_cache(staging.model_cache_bytes)
        .with_file_cache(staging.file_cache_bytes)
        .replacing_foreign(staging.replace_foreign)
        .with_results(staging.results.clone());
        let inner = Inner {
            config,
            standing: StateWatch::new(),
            turn: tokio::sync::Mutex::default(),
            engine: Mutex::default(),
            killed: CancellationToken::new(),
            failure: OnceLock::new(),
            restarts: Mutex::default(),
            stager,
            ephemeral: Mutex::default(),
            on_boot_line,
            runtime: runtime::Handle::current(),
        };
        inner.standing.enter(State::Initializing);
        Self::of(&Arc::new(inner))
    }

    /// The live instance, if there is one: also one that still starts, or that still ends.
    #[must_use]
    pub fn live() -> Option<Self> {
        locked(&LIVE).as_ref().map(Live::connector)
    }

    /// This instance for somebody who asks for `config`.
    fn asked_with(self, config: &ConnectorConfig) -> Result<Self, ConnectorError> {
        if self.0.config.is_as(config) { Ok(self) } else { Err(ConnectorError::OtherConfiguration) }
    }

    /// Forgets this instance as the live one.
    fn release(&self) {
        let mut live = locked(&LIVE);
        if live.as_ref().is_some_and(|live| Arc::ptr_eq(&live.inner, &self.0.0)) {
            *live = None;
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.standing.state()
    }

    /// Follows where it stands; of states in quick succession the last one is seen.
    ///
    /// ```no_run
    /// use comfy_connector::State;
    ///
    /// # async fn example(connector: comfy_connector::ComfyConnector) -> Result<(), Box<dyn std::error::Error>> {
    /// connector.watch_state().wait_for(|state| *state == State::Ready).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn watch_state(&self) -> watch::Receiver<State> {
        self.0.standing.watch()
    }

    /// Stages files into ComfyUI's folders.
    #[must_use]
    pub fn stager(&self) -> &Stager {
        &self.0.stager
    }

    /// Whether every part works: process, HTTP, websocket, browser, in this order. Takes 8 s at most.
    /// What is unhealthy is fixed by the next call that needs it; a websocket connects again by itself.
    ///
    /// ```no_run
    /// # async fn example(connector: comfy_connector::ComfyConnector) {
    /// match connector.validate_resources().await {
    ///     Ok(()) => println!("all is well"),
    ///     Err(unhealthy) => println!("{unhealthy}"), // http: no answer within 5s
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// The part that is unhealthy, and how.
    pub async fn validate_resources(&self) -> Result<(), HealthError> {
        let engine = self.running().ok_or(HealthError::NotRunning)?;
        engine.validate().await
    }

    /// Copies a local file into one of ComfyUI's folders, under its own name; its path there.
    /// Streamed within the kernel, or a reflink where the file system can; times and mode come along.
    /// An ephemeral one is removed at the shutdown, or by the next start if this process dies first.
    ///
    /// ```no_run
    /// use comfy_connector::{Subfolder, UploadOptions};
    ///
    /// # async fn example(connector: comfy_connector::ComfyConnector) -> Result<(), Box<dyn std::error::Error>> {
    /// let subfolder = Subfolder::parse("batch")?;
    /// let batch = UploadOptions { subfolder, ephemeral: true, ..UploadOptions::default() };
    /// let path = connector.upload_data("cat.png".as_ref(), &batch).await?;
    /// assert!(path.ends_with("input/batch/cat.png"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`PlaceError`]; nothing half-written is left.
    pub async fn upload_data(&self, source: &Path, options: &UploadOptions) -> Result<PathBuf, PlaceError> {
        if self.0.killed.is_cancelled() {
            return Err(PlaceError::ShutDown);
        }
        let (path, owned) = self.0.stager.upload(source, options).await?;
        let mut ephemeral = locked(&self.0.ephemeral);
        // What it replaced is no file any more.
        ephemeral.retain(|replaced| replaced.path() != path);
        let Some(owned) = owned else { return Ok(path) };
        ephemeral.push(owned);
        if self.0.killed.is_cancelled() {
            // The shutdown may have taken the list before.
            ephemeral.clear();
            return Err(PlaceError::ShutDown);
        }
        Ok(path)
    }

    /// Where ComfyUI is, `http://127.0.0.1:8188`; `None` while it is not running.
    #[must_use]
    pub fn server_address(&self) -> Option<String> {
        let engine = self.running()?;
        Some(engine.server().client().base().as_str().trim_end_matches('/').to_owned())
    }

    /// Where its websocket is, `ws://127.0.0.1:8188/ws?clientId=…`; `None` while it is not running.
    #[must_use]
    pub fn ws_address(&self) -> Option<String> {
        Some(self.running()?.socket().address())
    }

    /// The id that ComfyUI knows the websocket by, a UUID; a new one with each connection.
    #[must_use]
    pub fn client_id(&self) -> Option<String> {
        self.running()?.socket().client_id()
    }

    /// Stops ComfyUI (TERM, then after 3 s KILL, its whole group) and the browser, and removes
    /// ephemeral files; a start in progress, another task's too, is given up at once, and calls in
    /// progress end with [`ConnectorError::Killed`]. Idempotent; afterwards [`ComfyConnector::create`]
    /// starts afresh.
    pub async fn shutdown(&self) {
        self.0.killed.cancel();
        let _turn = self.0.turn.lock().await;
        self.0.standing.enter(State::Killed);
        if let Some(engine) = self.take_engine() {
            engine.stop().await;
        }
        locked(&self.0.ephemeral).clear();
        let removals = async { tokio::join!(self.0.stager.journal().settled(), deliver::settled()) };
        if timeout(REMOVALS_LIMIT, removals).await.is_err() {
            tracing::warn!("removing files takes too long: the next start removes the rest");
        }
        self.release();
    }

    /// [`ComfyConnector::shutdown`] of the live instance, if there is one: also of one whose
    /// [`ComfyConnector::create`] was cut short.
    pub async fn shutdown_live() {
        if let Some(connector) = Self::live() {
            connector.shutdown().await;
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
