//! One try at a job: from its inputs to its uploaded outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use contract::{
    ObjectUri,
    failure::Failure,
    prompt::Prompt,
    records::is_anothers,
    request::JobRequest,
    result::{NodeTiming, Output, Stage},
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    attempt::JSON,
    job_run::JobContext,
    preparation::PreparedPrompt,
    progress::JobProgress,
    retries::CompletedWork,
    runner::{BOOT_PATIENCE, Runner},
    stage_failure::{AtStage, StageFailure},
};
use crate::{
    store::Content,
    telemetry::{StageName, redact_json},
};
use connector::{
    ConnectorError, Engine,
    comfy::{ExecuteError, Executed, Execution, QueuedBehind, history::History},
    deliver::{self, Destination, EagerUploads, FoundOutputs, OwnFolder},
    text::json_of,
};

/// Makes the tries of one attempt; [`Executor::execute`] is one.
pub(super) struct Executor<'a> {
    pub(super) context: JobContext<'a>,
    pub(super) job: &'a JobRequest,
    pub(super) attempt: u32,
    pub(super) progress: &'a JobProgress<'a>,
    /// Nodes that must run again although ComfyUI remembers their outputs: an earlier try found
    /// their files gone.
    pub(super) rerun: BTreeSet<String>,
    left: Mutex<Option<(Arc<Prompt>, Arc<History>)>>,
    pub(super) comfyui_version: OnceLock<String>,
}

/// A try that succeeded.
pub(super) struct ExecutedJob {
    pub(super) outputs: Vec<Output>,
    pub(super) records: RecordUris,
    pub(super) warnings: Vec<String>,
    pub(super) nodes: BTreeMap<String, NodeTiming>,
}

/// Where history and prompt are stored.
pub(super) struct RecordUris {
    pub(super) history: ObjectUri,
    pub(super) prompt: ObjectUri,
}

impl<'a> Executor<'a> {
    pub(super) fn new(
        context: JobContext<'a>,
        job: &'a JobRequest,
        attempt: u32,
        progress: &'a JobProgress<'a>,
    ) -> Self {
        Self {
            context,
            job,
            attempt,
            progress,
            rerun: BTreeSet::new(),
            left: Mutex::default(),
            comfyui_version: OnceLock::new(),
        }
    }

    pub(super) async fn execute(&self) -> Result<ExecutedJob, StageFailure> {
        let JobContext { runner, permit, cancellation, .. } = self.context;
        let destination = self.destination().at_stage(Stage::Accept)?;
        let ready = Box::pin(self.ready()).await?;
        self.try_place(&destination, &ready.prompt).await.at_stage(Stage::Stage)?;
        let mut early = self.early(&ready.own, &destination);
        let working = async {
            let PreparedPrompt { prompt, extra_data, own, mut warnings, _folder, _staged } = ready;
            let wait = self.progress.waits();
            let prompt_permit = self
                .context
                .unless_interrupted(permit.acquire_prompt_permit())
                .await
                .at_stage(Stage::Post)?;
            let about = wait.logs();
            let executing = async {
                // Another one, if that of the conversion was lost meanwhile.
                let engine = self.engine().await.inspect_err(|met| wait.fails(met))?;
                let back = runner.shutdown.stop.child_token();
                let execution = Execution {
                    prompt: &prompt,
                    extra_data: Value::Object(extra_data),
                    limit: self.job.timeout.unwrap_or(runner.limits.timeout),
                    allow_partial: self.job.allow_partial,
                    abort: &runner.shutdown.abort,
                    cancel: cancellation.token(),
                    behind: prompt_permit
                        .ahead
                        .as_ref()
                        .map(|ahead_done| QueuedBehind { ahead_done, stop: &back }),
                    known: runner.forecasts.of(&prompt),
                };
                let mut observer = self.progress.observe(&prompt_permit, &mut early, wait);
                let give_back = async {
                    prompt_permit.held_up().await;
                    back.cancel();
                    std::future::pending::<Infallible>().await
                };
                let outcome = tokio::select! {
                    outcome = engine.execute(execution, &mut observer) => outcome,
                    never = give_back => match never {},
                };
                let executed = match outcome {
                    Ok(executed) => executed,
                    Err(error) => {
                        let met = self.failure_of(error, &engine).await;
                        observer.failed(&prompt, &met);
                        return Err(met);
                    }
                };
                observer.ended(&prompt, &executed);
                if executed.broken_device {
                    // The process lives and is of no use.
                    runner.connector.kill_engine(&engine).await;
                }
                Ok(executed)
            };
            let executed = about.around(executing).await?;
            drop(prompt_permit);
            self.progress.executed(&executed).await;
            if let Some(node_errors) = &executed.node_errors {
                warnings.push(format!("ComfyUI dropped outputs that failed validation: {node_errors}"));
            }
            let done = self.deliver(executed, prompt, &own, &destination, &mut early).await?;
            Ok(ExecutedJob { warnings, ..done })
        };
        let done = working.await;
        if done.is_err() {
            self.discard(&mut early).await;
        }
        done
    }

    /// From the history to the uploaded outputs.
    async fn deliver(
        &self,
        executed: Executed,
        prompt: Prompt,
        own: &OwnFolder,
        destination: &Destination<'_>,
        early: &mut EagerUploads,
    ) -> Result<ExecutedJob, StageFailure> {
        let JobContext { runner, cancellation, retries, .. } = self.context;
        let failure = executed.failure();
        let Executed { history, images, images_lost, nodes, .. } = executed;
        let (prompt, history) = (Arc::new(prompt), Arc::new(history));
        if let Some(failure) = failure {
            // Nodes that were done before it: the websocket may have told of none.
            deliver::discard(runner.connector.stager().folders(), own, Arc::clone(&history)).await;
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some((prompt, history));
            return Err(failure).at_stage(Stage::Run);
        }
        runner.forecasts.learn(&prompt, &nodes);
        let collecting = async {
            early.settle().await;
            self.find(own, &history, images, images_lost).await
        };
        let findings = self.progress.stage(StageName::Collect, collecting).await.at_stage(Stage::Collect)?;
        let begun = &*early;
        let upload = || self.upload(destination, &findings, begun, &prompt, &history);
        // The GPU's time is spent: what it made is kept until it can be stored.
        let uploading = retries.persist(CompletedWork::Outputs, upload);
        let uploading = async { uploading.await.map_err(|stopped| stopped.failure) };
        let uploading = self.progress.stage(StageName::Upload, uploading);
        let (outputs, records) = tokio::select! {
            biased;
            uploaded = uploading => uploaded.at_stage(Stage::Upload)?,
            why = cancellation.called() => return Err(why).at_stage(Stage::Upload),
        };
        self.discard(early).await;
        connector::phases::reached("uploaded").await;
        Ok(ExecutedJob { outputs, records, warnings: Vec::new(), nodes })
    }

    /// What an execution that came to no history means for the job; a ComfyUI that must be started again is killed.
    async fn failure_of(&self, error: ExecuteError, engine: &Arc<Engine>) -> StageFailure {
        let JobContext { runner, cancellation, .. } = self.context;
        if error.needs_restart() {
            runner.connector.kill_engine(engine).await;
        }
        let message = error.to_string();
        let (stage, failure) = match error {
            ExecuteError::Refused { message, node_errors, .. } => {
                (Stage::Post, Failure::PromptRefused { message, node_errors: Some(node_errors) })
            }
            ExecuteError::TimedOut { limit, .. } => {
                (Stage::Run, Failure::TimedOut { seconds: limit.as_secs_f64() })
            }
            ExecuteError::Aborted { .. } if !runner.shutdown.stop.is_cancelled() => {
                (Stage::Run, Failure::HeldUp)
            }
            ExecuteError::Aborted { .. } => (Stage::Run, Failure::Draining),
            ExecuteError::Cancelled { .. } => (Stage::Run, cancellation.why()),
            ExecuteError::NotBegun(_) => (Stage::Run, Failure::EngineLost(message)),
            ExecuteError::Unreadable(_) => (Stage::Collect, Failure::Internal(message)),
            ExecuteError::Vanished => (Stage::Run, Failure::Interrupted),
            ExecuteError::Died(_) | ExecuteError::Stalled(_) | ExecuteError::Unreachable(_) => {
                (Stage::Run, Failure::EngineCrashed(message))
            }
        };
        StageFailure { stage, failure }
    }

    /// Removes early uploads that nobody wants. A store that is away must not hold up a drain for it.
    async fn discard(&self, early: &mut EagerUploads) {
        let discarded = async {
            early.discard().await;
            Ok(())
        };
        let _ = self.context.runner.shutdown.unless_aborted(discarded).await;
    }

    /// The version of the ComfyUI that this job met; empty when it met none.
    pub(super) fn comfyui_version(&self) -> String {
        self.comfyui_version.get().cloned().unwrap_or_default()
    }

    /// `<output.uri, else store.uri>/<job id>/<attempt>`, if outputs may go there.
    fn destination(&self) -> Result<Destination<'a>, Failure> {
        let Runner { base, outputs, store, .. } = self.context.runner;
        let invalid = |problem: String| Failure::Invalid(format!("output.uri: {problem}"));
        let root = match &self.job.output.uri {
            None => base.clone(),
            Some(text) => {
                let uri: ObjectUri =
                    text.parse().map_err(|error: contract::UriError| invalid(error.to_string()))?;
                if !uri.is_beneath(&[format!("{base}/")]) && !uri.is_beneath(&outputs.allow) {
                    return Err(invalid(format!("outputs may not go to {uri} (outputs.allow)")));
                }
                uri
            }
        };
        let folder = root.join(self.job.id.as_str()).map_err(|error| invalid(error.to_string()))?;
        let covers = base.within(&folder).is_some();
        if covers || is_anothers(&folder, base, &self.job.id, &outputs.allow) {
            let job = if covers { "the worker's records" } else { "the folder of another job" };
            return Err(invalid(format!(
                "outputs would go to {folder}, which is {job}; choose a place that is not under store.uri, or one \
                 there whose name no job can have ({base}/_renders), or name it in outputs.allow"
            )));
        }
        let own = root == *base || root.is_beneath(&[format!("{base}/")]);
        let base = root.join(&format!("{}/{}", self.job.id, self.attempt));
        let base = base.map_err(|error| invalid(error.to_string()))?;
        let presign = self.job.output.presign_seconds.map(Duration::from_secs);
        Ok(Destination { store: &**store, root, base, own, presign })
    }

    /// Shows that outputs can go where the job wants them, before the GPU works for them: by the prompt, which is stored
    /// there in any case. Remembered for a while.
    async fn try_place(&self, destination: &Destination<'_>, prompt: &Prompt) -> Result<(), Failure> {
        let known = &self.context.runner.known_places;
        if destination.own || known.contains_key(&destination.root) {
            return Ok(());
        }
        let prompt = prompt.clone();
        let storing = self.store_record(destination, "prompt.json", move || prompt);
        self.context.unless_interrupted(storing).await??;
        known.insert(destination.root.clone(), ());
        Ok(())
    }

    /// ComfyUI, waited for while it starts, but not for longer than a job is held.
    pub(super) async fn engine(&self) -> Result<Arc<Engine>, StageFailure> {
        let starting = self.context.runner.connector.engine();
        let started = async { starting.await.map_err(engine_failure).at_stage(Stage::Run) };
        self.patiently(started, "has not started").await
    }

    /// What waits for ComfyUI: for no longer than a job is held when it can be given back.
    pub(super) async fn patiently<T>(
        &self,
        waiting: impl Future<Output = Result<T, StageFailure>>,
        what: &str,
    ) -> Result<T, StageFailure> {
        if !self.context.retries.may_give_back() {
            return waiting.await;
        }
        let late = |_| Err(Failure::EngineUnavailable(format!("ComfyUI {what} within {BOOT_PATIENCE:?}")));
        timeout(BOOT_PATIENCE, waiting).await.unwrap_or_else(|elapsed| late(elapsed).at_stage(Stage::Run))
    }

    fn early(&self, own: &OwnFolder, destination: &Destination<'_>) -> EagerUploads {
        let Runner { store, connector, outputs, .. } = self.context.runner;
        EagerUploads::new(
            Arc::clone(store),
            destination.base.clone(),
            connector.stager().folders().clone(),
            own.clone(),
            self.job.output.clone(),
            outputs.clone(),
        )
    }

    async fn find(
        &self,
        own: &OwnFolder,
        history: &Arc<History>,
        images: Vec<connector::comfy::tracker::OutputImage>,
        images_lost: BTreeSet<String>,
    ) -> Result<FoundOutputs, Failure> {
        if !images_lost.is_empty() {
            let message = "pictures that ComfyUI sends over the websocket only did not come".to_owned();
            return Err(Failure::OutputMissing { message, nodes: images_lost });
        }
        let folders = self.context.runner.connector.stager().folders().clone();
        let own = own.clone();
        let (request, history) = (self.job.output.clone(), Arc::clone(history));
        let most = self.context.runner.outputs.max_files;
        let find = move || deliver::find(&folders, &own, &request, &history, images, most);
        tokio::task::spawn_blocking(find)
            .await
            .map_err(|error| Failure::Internal(error.to_string()))?
            .map_err(|missing| Failure::OutputMissing { message: missing.message, nodes: missing.nodes })?
            .within(&self.context.runner.outputs)
    }

    async fn upload(
        &self,
        destination: &Destination<'_>,
        findings: &FoundOutputs,
        early: &EagerUploads,
        prompt: &Arc<Prompt>,
        history: &Arc<History>,
    ) -> Result<(Vec<Output>, RecordUris), Failure> {
        let each = |name: &str, bytes, done, of| self.progress.uploaded(name, bytes, done, of);
        connector::phases::reached("uploading").await;
        let outputs = findings.upload(destination, early, each);
        tokio::try_join!(outputs, self.store_records(destination, prompt, history))
    }

    async fn store_records(
        &self,
        destination: &Destination<'_>,
        prompt: &Arc<Prompt>,
        history: &Arc<History>,
    ) -> Result<RecordUris, Failure> {
        let (history, prompt) = (Arc::clone(history), Arc::clone(prompt));
        let history = move || {
            let mut history = history.without_secrets();
            // Of a node that failed it shows the inputs, hidden ones like the API key among them.
            history.get_mut("status").into_iter().for_each(redact_json);
            history
        };
        let (history, prompt) = tokio::try_join!(
            self.store_record(destination, "history.json", history),
            self.store_record(destination, "prompt.json", move || Prompt::clone(&prompt))
        )?;
        Ok(RecordUris { history, prompt })
    }

    async fn store_record<T: Serialize>(
        &self,
        destination: &Destination<'_>,
        name: &str,
        record: impl FnOnce() -> T + Send + 'static,
    ) -> Result<ObjectUri, Failure> {
        let uri = destination.base.join(name).map_err(|error| Failure::Internal(error.to_string()))?;
        let body = json_of(record).await.map_err(|error| Failure::Internal(error.to_string()))?;
        let put = destination.store.put(&uri, Content::Bytes(body), JSON).await;
        put.map(|_| uri).map_err(|error| destination.failure(error))
    }

    /// Stores what ComfyUI said of an execution that failed; for the result, as far as it goes.
    pub(super) async fn store_failed_records(&self) -> Option<RecordUris> {
        let (prompt, history) = self.left.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let destination = self.destination().ok()?;
        let store = || self.store_records(&destination, &prompt, &history);
        let stored = self.context.retries.persist(CompletedWork::Result, store).await;
        stored
            .inspect_err(|stopped| tracing::warn!(error = %stopped.failure, "cannot store the history"))
            .ok()
    }
}

fn engine_failure(error: ConnectorError) -> Failure {
    match error {
        ConnectorError::Killed => Failure::Draining,
        error => Failure::EngineUnavailable(error.to_string()),
    }
}
