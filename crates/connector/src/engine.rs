//! The running parts: ComfyUI's process, its websocket, the browser.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::DirBuilderExt,
    pin::pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use contract::prompt::prompt_from_value;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use url::Url;
use uuid::Uuid;

use super::{
    BootLine, ConnectorError, HealthError, Payload,
    replacement::ReplacementReason,
    restarts::RestartCause,
    run::NoopObserver,
    selftest::{self, SelfTest, self_test, without_titles},
};
use crate::{
    browser::{Browser, ConvertError},
    comfy::{
        ExecuteError, Executed, Execution, Observer, RequestError, Server, Socket,
        classes::{NodeClass, NodeClasses},
        execute, frontend,
    },
    config::{BrowserConfig, ComfyUiConfig, ConnectorConfig},
    deliver, metrics,
    stage::{EphemeralPath, Folders, Journal},
};

/// Longest self-test execution: the first prompt may import and compile.
const SELF_TEST_LIMIT: Duration = Duration::from_secs(300);
/// For the prompt that shows whether a device is broken: another one may run before it.
const DEVICE_LIMIT: Duration = Duration::from_secs(60);
/// Longest answer to a health question.
const HEALTH_LIMIT: Duration = Duration::from_secs(5);
/// How long an idle ComfyUI that does not answer may do nothing before it is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon one that refuses an answer is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long ComfyUI's last answer stands for its health. Asked again after that: a hung process is
/// not handed work, and calls in a row cost no question each.
pub(super) const HEALTH_LASTS: Duration = Duration::from_secs(5);

/// Where programs put temporary files.
const TMPDIR: &str = "TMPDIR";

/// ComfyUI and a browser, running.
#[derive(Debug)]
pub struct Engine {
    server: Server,
    socket: Socket,
    browser: Browser,
    classes: NodeClasses,
    executing: AtomicUsize,
    /// Prompts begun since the self-test.
    ran: AtomicU64,
    /// When ComfyUI last answered; `None` after it did not.
    healthy_at: Mutex<Option<Instant>>,
    /// Since when it has been asked without an answer: each job waits a minute for one, and the next goes on with that wait.
    silent_since: Mutex<Option<Instant>>,
    /// Why it must be replaced, once a prompt has shown that; the first reason is kept.
    replacement: OnceLock<ReplacementReason>,
    /// ComfyUI's folders.
    folders: Folders,
    /// After the server: what it writes there ends with it.
    scratch: Mutex<Option<EphemeralPath>>,
}

impl Engine {
    /// Boots ComfyUI and a browser side by side, connects, opens ComfyUI's page and runs the
    /// self-test. Nothing is left running after an error, or when the future is dropped.
    pub(super) async fn boot(
        config: &ConnectorConfig,
        journal: &Arc<Journal>,
        on_line: BootLine,
    ) -> Result<Self, ConnectorError> {
        let test = self_test(config)?;
        // Declared before the server, so that it is dropped after it.
        let scratch = scratch(&config.comfyui, journal).await?;
        let mut comfyui = config.comfyui.clone();
        if let Some(scratch) = &scratch {
            comfyui.env.0.insert(TMPDIR.to_owned(), scratch.path().display().to_string());
        }
        let begun_at = Instant::now();
        let own = deliver::OwnFolder::none(SystemTime::now());
        let (server, browser) = boot_both(&comfyui, &config.browser, on_line).await?;
        metrics::booted("comfyui", begun_at.elapsed());
        let socket = match Socket::connect(server.client().base()).await {
            Ok(socket) => socket,
            Err(error) => {
                tokio::join!(browser.shutdown(), server.stop());
                return Err(error.into());
            }
        };
        let engine = Self {
            server,
            socket,
            browser,
            classes: NodeClasses::default(),
            executing: AtomicUsize::new(0),
            ran: AtomicU64::new(0),
            healthy_at: Mutex::default(),
            silent_since: Mutex::default(),
            replacement: OnceLock::new(),
            folders: Folders::new(config.comfyui.path.clone()),
            scratch: Mutex::new(scratch),
        };
        match Box::pin(engine.open_and_test(&test, &own, begun_at)).await {
            Ok(()) => {
                metrics::booted("total", begun_at.elapsed());
                engine.ran.store(0, Ordering::Relaxed);
                Ok(engine)
            }
            Err(error) => {
                engine.stop().await;
                Err(error)
            }
        }
    }

    /// Opens ComfyUI's page and runs the self-test through conversion, execution and result. What the
    /// built-in workflow becomes is known, so that it runs while the page still loads.
    async fn open_and_test(
        &self,
        test: &SelfTest,
        own: &deliver::OwnFolder,
        begun_at: Instant,
    ) -> Result<(), ConnectorError> {
        let failed = |error| ConnectorError::SelfTest(Box::new(error));
        let run = async |payload: &Payload| {
            let ran = self
                .run(payload, SELF_TEST_LIMIT, &CancellationToken::new(), &mut NoopObserver::default())
                .await;
            metrics::booted("self_test", begun_at.elapsed());
            deliver::discard(&self.folders, own, Arc::new(ran.map_err(failed)?)).await;
            Ok(())
        };
        let opening = async {
            self.browser.attach().await?;
            metrics::booted("page", begun_at.elapsed());
            Ok::<_, ConnectorError>(())
        };
        let Some(expected) = &test.becomes else {
            opening.await?;
            return run(&test.workflow.clone().into()).await;
        };
        let converting = async {
            opening.await?;
            let converted = self.browser.convert(&test.workflow).await;
            Ok(converted.map_err(|error| failed(error.into()))?.prompt)
        };
        let expected = Payload::Prompt(expected.clone());
        let (converted, ()) = tokio::try_join!(converting, run(&expected))?;
        match Payload::Prompt(without_titles(converted)) {
            same if same == expected => Ok(()),
            // Another version's nodes may have other inputs.
            other => run(&other).await,
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

    /// Whether it runs no prompt.
    pub fn is_idle(&self) -> bool {
        self.executing.load(Ordering::Relaxed) == 0
    }

    /// What ComfyUI says of these classes of nodes, see [`NodeClasses::of`].
    pub async fn classes<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<HashMap<String, Arc<NodeClass>>>, RequestError> {
        let known = self.classes.of(self.server.client(), names).await;
        if known.is_err() {
            self.invalidate_health();
        }
        known
    }

    /// Whether nothing runs on the device any more: a prompt of our own fails there, too. One that is not over in time proves
    /// nothing.
    async fn has_broken_device(&self, abort: &CancellationToken, cancel: &CancellationToken) -> bool {
        let (begun_at, color) = (SystemTime::now(), Uuid::new_v4().as_u128() & 0xff_ffff);
        let mut prompt = selftest::on_device();
        // ComfyUI remembers one that it has run.
        prompt["1"]["inputs"]["color"] = json!(color);
        let Ok(prompt) = prompt_from_value(prompt) else { return false };
        let execution = Execution {
            prompt: &prompt,
            extra_data: json!({}),
            limit: DEVICE_LIMIT,
            allow_partial: false,
            abort,
            cancel,
            behind: None,
            known: Arc::default(),
        };
        let ran = execute(&self.server, &self.socket, execution, &mut NoopObserver::default()).await;
        let is_broken = match &ran {
            Ok(executed) => executed.history.outcome().failure().is_some(),
            Err(_) => false,
        };
        tracing::warn!(is_broken, "a node failed as on a broken device: a test prompt was run on it");
        if let Ok(executed) = ran {
            let own = deliver::OwnFolder::none(begun_at);
            deliver::discard(&self.folders, &own, Arc::new(executed.history)).await;
        }
        is_broken
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
        self.executing.fetch_add(1, Ordering::Relaxed);
        self.ran.fetch_add(1, Ordering::Relaxed);
        let _ended = Ended(&self.executing);
        let (abort, cancel) = (execution.abort, execution.cancel);
        let mut outcome = execute(&self.server, &self.socket, execution, observer).await;
        if let Ok(executed) = &mut outcome
            && executed.history.outcome().blames_device()
        {
            executed.broken_device = self.has_broken_device(abort, cancel).await;
        }
        if let Some(fate) = ReplacementReason::of(&outcome) {
            let _ = self.replacement.set(fate);
        }
        match &outcome {
            Err(error) if error.needs_restart() => self.invalidate_health(),
            _ => self.proven(),
        }
        outcome
    }

    /// Whether it is known to be of no use any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.replacement.get().is_some()
    }

    /// Why it is to be started again, if it is.
    pub(super) fn cause(&self) -> RestartCause {
        match self.replacement.get() {
            Some(fate) => fate.cause,
            None if self.executing.load(Ordering::Relaxed) > 0 => RestartCause::Crashed,
            None => RestartCause::Lost,
        }
    }

    /// It is ended on purpose, which is no loss.
    pub(super) fn ends_on_purpose(&self, cause: RestartCause) {
        if !self.server.has_ended() {
            let _ = self.replacement.set(ReplacementReason { cause, wants_stacks: false });
        }
    }

    /// Kills ComfyUI; one that is silent or stuck has to say before where it is.
    pub(super) fn kill(&self) {
        if self.replacement.get().is_some_and(|fate| fate.wants_stacks) && !self.server.has_ended() {
            tracing::warn!("ComfyUI is given up; its stacks follow");
            self.server.abort();
        } else {
            self.server.kill();
        }
    }

    /// Whether ComfyUI is known to be well without asking: it answered lately, or runs a prompt,
    /// which may keep it from answering for minutes and whose follower notices when it hangs.
    pub(super) fn is_known_healthy(&self) -> bool {
        let healthy_at = *self.healthy_at.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = healthy_at.is_some_and(|at| at.elapsed() < HEALTH_LASTS);
        !self.server.has_ended()
            && !self.is_given_up()
            && (lately || self.executing.load(Ordering::Relaxed) > 0)
    }

    fn proven(&self) {
        *self.healthy_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        *self.silent_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The next call asks ComfyUI whether it is well.
    pub(super) fn invalidate_health(&self) {
        *self.healthy_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Asks ComfyUI whether it is well.
    async fn check_health(&self, limit: Duration) -> Result<(), HealthError> {
        let answer = self.unless_ended(timeout(limit, self.server.client().system_stats())).await?;
        match answer {
            Ok(Ok(_)) => {
                self.proven();
                Ok(())
            }
            Ok(Err(error)) => Err(HealthError::Http(error.to_string())),
            Err(_) => Err(HealthError::Http(format!("no answer within {limit:?}"))),
        }
    }

    /// Asks an idle ComfyUI until it answers. One that neither answers nor does anything else is lost: what
    /// a custom node does in the background may hold Python's lock. `most` is the limit in any case.
    pub(super) async fn check_health_patiently(&self, most: Duration) -> Result<(), HealthError> {
        let since = *self
            .silent_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(Instant::now);
        // Perhaps nobody has asked for an hour: it may answer now.
        let left = most.saturating_sub(since.elapsed()).max(PATIENCE.min(most));
        let answers = async {
            while let Err(error) = self.server.client().system_stats().await {
                tracing::debug!(%error, "an idle ComfyUI does not answer");
                sleep(ASK_AGAIN).await;
            }
            self.proven();
            Ok(())
        };
        let is_dead = async {
            let silence = tokio::select! {
                () = self.server.standstill(PATIENCE) => format!("no answer, and nothing else for {PATIENCE:?}"),
                () = sleep(left) => format!("no answer within {most:?}"),
            };
            let _ = self.replacement.set(ReplacementReason { cause: RestartCause::Lost, wants_stacks: true });
            Err(HealthError::Http(silence))
        };
        let proof = async {
            tokio::select! {
                answers = answers => answers,
                is_dead = is_dead => is_dead,
            }
        };
        self.unless_ended(proof).await?
    }

    /// What comes of `question`, unless its process ends. Nothing is proven meanwhile.
    async fn unless_ended<T>(&self, question: impl Future<Output = T>) -> Result<T, HealthError> {
        self.invalidate_health();
        if let Some(exit) = self.server.exit() {
            return Err(HealthError::Process(exit));
        }
        tokio::select! {
            biased;
            exit = self.server.exited() => Err(HealthError::Process(exit)),
            answer = question => Ok(answer),
        }
    }

    /// Why ComfyUI should be started again before the next prompt, if `comfyui.max_jobs` or
    /// `comfyui.max_rss` says so.
    #[must_use]
    pub fn worn(&self, limits: &ComfyUiConfig) -> Option<String> {
        let ran = self.ran.load(Ordering::Relaxed);
        if limits.max_jobs.is_some_and(|most| ran >= most.into()) {
            return Some(format!("it ran {ran} jobs (comfyui.max_jobs)"));
        }
        let most = limits.max_rss?;
        let bytes = self.server.rss();
        (bytes > most)
            .then(|| format!("it holds {bytes} bytes of memory, more than {most} (comfyui.max_rss)"))
    }

    pub(super) async fn validate(&self) -> Result<(), HealthError> {
        self.check_health(HEALTH_LIMIT).await?;
        if self.socket.client_id().is_none() {
            return Err(HealthError::Websocket);
        }
        self.browser.validate().await.map_err(|error| HealthError::Browser(error.to_string()))
    }

    pub(super) async fn stop(&self) {
        self.socket.close();
        tokio::join!(self.browser.shutdown(), self.server.stop());
        // Others may still hold the engine: a drain waits for removals that are under way.
        drop(self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Counts an execution's end, also when its future is dropped.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// ComfyUI, answering, and beside it a Chromium that may reach it. The failure of either ends both.
async fn boot_both(
    comfyui: &ComfyUiConfig,
    browser: &BrowserConfig,
    on_line: BootLine,
) -> Result<(Server, Browser), ConnectorError> {
    let each_line = move |line: &str| {
        tracing::info!(target: "comfyui", "{line}");
        on_line(line);
    };
    let (address, chosen) = watch::channel(None);
    let on_address = move |url: &Url| {
        address.send_replace(Some(url.clone()));
    };
    let mut launching = pin!(launch(browser, comfyui, chosen));
    let server = tokio::select! {
        biased;
        server = Server::boot(comfyui, each_line, on_address) => server?,
        // It does not end well before ComfyUI is up.
        Err(error) = &mut launching => return Err(error.into()),
    };
    match launching.await {
        Ok(browser) => Ok((server, browser)),
        Err(error) => {
            server.stop().await;
            Err(error.into())
        }
    }
}

/// Starts Chromium for the address that ComfyUI boots at, and another one each time that moves,
/// until ComfyUI is up. Its first page opens meanwhile.
async fn launch(
    config: &BrowserConfig,
    comfyui: &ComfyUiConfig,
    mut chosen: watch::Receiver<Option<Url>>,
) -> Result<Browser, ConvertError> {
    let mut browser: Option<Browser> = None;
    while chosen.changed().await.is_ok() {
        let Some(url) = chosen.borrow_and_update().clone() else { continue };
        if let Some(misled) = browser.take() {
            misled.shutdown().await;
        }
        let (launched, root) = tokio::join!(Browser::launch(config.clone(), url), frontend::root(comfyui));
        let launched = browser.insert(launched?);
        if let Some(root) = root {
            launched.foresee(root).await;
        }
    }
    browser.ok_or_else(|| ConvertError::Browser("ComfyUI has no address".to_owned()))
}

/// A folder for temporary files of ComfyUI's own, journalled: Python and what nodes start leave
/// theirs behind when they are ended by a signal. `None` where `comfyui.env` names one.
async fn scratch(
    config: &ComfyUiConfig,
    journal: &Arc<Journal>,
) -> Result<Option<EphemeralPath>, ConnectorError> {
    if config.env.0.contains_key(TMPDIR) {
        return Ok(None);
    }
    let path = std::env::temp_dir().join(format!("comfy-worker-{}", Uuid::new_v4().simple()));
    let made = async {
        let owned = journal.own(path.clone()).await?;
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(owned)
    };
    made.await.map(Some).map_err(|source| ConnectorError::State { path: path.clone(), source })
}
