//! Keeps ComfyUI running: started when it is needed, started again when it is lost, stopped when it
//! hangs.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{ExponentialBuilder, Retryable};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::{
    ComfyConnector, ConnectorError, Engine, Inner, State, engine, locked,
    restarts::{RestartCause, RestartDecision},
};
use crate::metrics;

/// Boots before giving up.
const BOOTS: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

impl ComfyConnector {
    /// The running parts, started again when ComfyUI has died or, idle, neither answers nor does anything
    /// else for 10 s. It is asked only when its last answer is 5 s old or was none. A browser that died is
    /// replaced by the next conversion.
    ///
    /// # Errors
    /// As [`ComfyConnector::create`]; [`ConnectorError::Killed`] after a shutdown,
    /// [`ConnectorError::Unusable`] after a start that failed.
    pub async fn engine(&self) -> Result<Arc<Engine>, ConnectorError> {
        if let Some(running) = self.running().filter(|engine| engine.is_known_healthy()) {
            return Ok(running);
        }
        let connector = self.clone();
        // In a task of its own: a caller that holds this future and does not poll it would hold the
        // turn, and a shutdown would wait forever. Ends with the future.
        let starting = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = connector.0.killed.cancelled() => Err(ConnectorError::Killed),
                engine = connector.healthy_engine() => engine,
            }
        });
        AbortOnDropHandle::new(starting).await.unwrap_or(Err(ConnectorError::Killed))
    }

    async fn healthy_engine(&self) -> Result<Arc<Engine>, ConnectorError> {
        let _turn = self.0.turn.lock().await;
        if let Some(reason) = self.0.failure.get() {
            return Err(ConnectorError::Unusable(reason.clone()));
        }
        if let Some(running) = self.running() {
            if running.is_known_healthy() {
                return Ok(running);
            }
            if !running.is_given_up() {
                match running.check_health_patiently(self.0.config.comfyui.boot_timeout).await {
                    Ok(()) => return Ok(running),
                    Err(unhealthy) => tracing::warn!(%unhealthy, "ComfyUI is lost, starting it again"),
                }
            }
            running.kill();
        }
        self.0.standing.enter(State::Initializing);
        if let Some(old) = self.take_engine() {
            old.stop().await;
        }
        let most = self.0.config.comfyui.max_restarts;
        let start = locked(&self.0.restarts).start(Instant::now(), most);
        match start {
            RestartDecision::First => {}
            RestartDecision::No => return Err(self.fail(ConnectorError::Unstable { most })),
            RestartDecision::Again(cause, pause) => {
                metrics::restarted("comfyui", cause.label());
                tracing::info!(cause = cause.label(), ?pause, "starting ComfyUI again");
                sleep(pause).await;
            }
        }
        // Boxed: a future of its size on every caller's stack would be large for nothing.
        let Inner { config, stager, on_boot_line, .. } = &**self.0;
        let (begun_at, patience) = (Instant::now(), config.comfyui.boot_timeout);
        let boot = || Box::pin(Engine::boot(config, stager.journal(), Arc::clone(on_boot_line)));
        let pauses =
            ExponentialBuilder::new().with_min_delay(FIRST_PAUSE).with_max_times(BOOTS - 1).with_jitter();
        let booted = boot
            .retry(pauses)
            // All tries together are bounded, too.
            .when(|error| error.is_worth_another_boot() && begun_at.elapsed() < patience)
            .notify(|error, pause| tracing::warn!(%error, ?pause, "the start failed, trying again"))
            .await;
        match booted {
            Ok(booted) => {
                let folders = booted.server().client().model_folders().await;
                stager.model_folders().set(folders.unwrap_or_else(|error| {
                    tracing::warn!(%error, "ComfyUI does not say where its models are: jobs' models may stand in for those in extra_model_paths.yaml");
                    HashMap::new()
                }));
                let booted = Arc::new(booted);
                *locked(&self.0.engine) = Some(Arc::clone(&booted));
                self.0.standing.enter(State::Ready);
                Ok(booted)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Starts no more: `error` is why.
    fn fail(&self, error: ConnectorError) -> ConnectorError {
        self.0.failure.get_or_init(|| error.to_string());
        self.0.standing.enter(State::Error);
        error
    }

    /// The running parts, if there are any, healthy or not.
    #[must_use]
    pub fn running(&self) -> Option<Arc<Engine>> {
        locked(&self.0.engine).clone()
    }

    pub(super) fn take_engine(&self) -> Option<Arc<Engine>> {
        let engine = locked(&self.0.engine).take();
        if let Some(engine) = &engine {
            locked(&self.0.restarts).ended(engine.cause());
        }
        engine
    }

    /// Kills that ComfyUI, which did not let go of a prompt or hangs; the next call
    /// starts another. What its prompts have shown says whether that is a crash or our own doing; where
    /// they have shown nothing it is the latter.
    pub async fn kill_engine(&self, engine: &Arc<Engine>) {
        engine.ends_on_purpose(RestartCause::Killed);
        engine.kill();
        self.discard(engine).await;
    }

    /// Stops ComfyUI by SIGTERM; the next call starts it again, which is no loss.
    pub async fn recycle(&self) {
        if let Some(engine) = self.running() {
            engine.ends_on_purpose(RestartCause::Worn);
            self.discard(&engine).await;
        }
    }

    /// Waits until ComfyUI has ended, was stopped or, while it runs no prompt, neither answers nor does
    /// anything else for 10 s: why. The next call starts it again.
    pub async fn lost(&self) -> String {
        loop {
            let Some(engine) = self.running() else { return "it was stopped".to_owned() };
            tokio::select! {
                exit = engine.server().exited() => return exit,
                () = sleep(engine::HEALTH_LASTS) => {}
            }
            if !engine.is_known_healthy()
                && let Err(unhealthy) =
                    engine.check_health_patiently(self.0.config.comfyui.boot_timeout).await
            {
                return unhealthy.to_string();
            }
        }
    }

    /// Stops that ComfyUI and its browser, unless others run by now; the next call starts new ones.
    pub(super) async fn discard(&self, engine: &Arc<Engine>) {
        let (connector, engine) = (self.clone(), Arc::clone(engine));
        // In a task of its own, as the start is; one that has begun ends.
        let discarding = tokio::spawn(async move {
            let _turn = connector.0.turn.lock().await;
            if connector.running().is_some_and(|running| Arc::ptr_eq(&running, &engine)) {
                connector.0.standing.enter(State::Initializing);
                connector.take_engine();
                engine.stop().await;
            }
        });
        let _ = discarding.await;
    }
}
