//! One try at a job: from its inputs to its uploaded outputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use contract::{
    ObjectUri,
    event::EventKind,
    failure::Failure,
    prompt::Prompt,
    records::is_anothers,
    request::JobRequest,
    result::{NodeTiming, Output, Stage, Timings},
};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::timeout;

use super::{
    attempt::JSON,
    in_flight::Cancellation,
    observer::ExecutionObserver,
    preparation::Ready,
    report::Reporter,
    retries::{Holding, Retries},
    runner::{BOOT_PATIENCE, Runner, ms},
    scheduler::{JobPermit, PromptPermit},
    stage_failure::{AtStage, StageFailure},
};
use crate::{
    comfy::{ExecuteError, Executed, Execution, QueuedBehind, history::History},
    connector::{ConnectorError, Engine},
    deliver::{self, Destination, EagerUploads, Findings, OwnFolder},
    store::Content,
    telemetry::{JobSpan, StageName, StageSpan, redact_json},
    text::json_of,
};

/// One try.
pub(super) struct Executor<'a> {
    pub(super) runner: &'a Runner,
    pub(super) permit: &'a JobPermit,
    pub(super) job: &'a JobRequest,
    pub(super) attempt: u32,
    pub(super) reporter: &'a Reporter,
    /// Called when the job must end, whatever it is at.
    pub(super) end: &'a Cancellation,
    pub(super) retries: &'a Retries<'a>,
    pub(super) span: &'a JobSpan,
    /// Nodes that must run again although ComfyUI remembers their outputs: an earlier try found
    /// their files gone.
    pub(super) rerun: BTreeSet<String>,
    left: Mutex<Option<(Arc<Prompt>, Arc<History>)>>,
    pub(super) comfyui_version: OnceLock<String>,
}

/// A try that succeeded.
pub(super) struct Done {
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
    #[allow(clippy::too_many_arguments, reason = "what one delivery has in hand")]
    pub(super) fn new(
        runner: &'a Runner,
        permit: &'a JobPermit,
        job: &'a JobRequest,
        attempt: u32,
        reporter: &'a Reporter,
        end: &'a Cancellation,
        retries: &'a Retries<'a>,
        span: &'a JobSpan,
    ) -> Self {
        Self {
            runner,
            permit,
            job,
            attempt,
            reporter,
            end,
            retries,
            span,
            rerun: BTreeSet::new(),
            left: Mutex::default(),
            comfyui_version: OnceLock::new(),
        }
    }

    pub(super) async fn execute(&self, timings: &mut Timings) -> Result<Done, StageFailure> {
        let destination = self.destination().at_stage(Stage::Accept)?;
        let ready = Box::pin(self.ready(timings)).await?;
        self.try_place(&destination, &ready.prompt).await.at_stage(Stage::Stage)?;
        let mut early = self.early(&ready.own, &destination);
        let done = self.run_and_deliver(ready, &destination, &mut early, timings).await;
        if done.is_err() {
            self.discard(&mut early).await;
        }
        done
    }

    /// Removes early uploads that nobody wants. A store that is away must not hold up a drain for it.
    async fn discard(&self, early: &mut EagerUploads) {
        let discarded = async {
            early.discard().await;
            Ok(())
        };
        let _ = self.runner.shutdown.unless_aborted(discarded).await;
    }

    async fn run_and_deliver(
        &self,
        ready: Ready,
        destination: &Destination<'_>,
        early: &mut EagerUploads,
        timings: &mut Timings,
    ) -> Result<Done, StageFailure> {
        let Ready { prompt, extra_data, own, mut warnings, _folder, _staged } = ready;
        let prompt = Arc::new(prompt);
        let wait = self.span.stage(StageName::Wait);
        let place = tokio::select! {
            biased;
            () = self.runner.shutdown.stop.cancelled() => return Err(Failure::Draining).at_stage(Stage::Post),
            why = self.end.called() => return Err(why).at_stage(Stage::Post),
            place = self.permit.post() => place,
        };
        let about = wait.logs();
        let running = self.run(&prompt, extra_data, &place, early, wait);
        let (engine, executed) = about.around(running).await?;
        drop(place);
        timings.waited_ms = ms(executed.waited);
        timings.executed_ms = ms(executed.executed);
        self.reporter.tell(EventKind::Executed);
        crate::phases::reached("executed").await;
        let history = Arc::new(executed.history);
        if let Some(failure) = history.outcome().failure() {
            if matches!(failure, Failure::EngineCrashed(_)) {
                // Its device is broken: the process lives and is of no use.
                self.runner.connector.kill_engine(&engine).await;
            }
            // Nodes that were done before it: the websocket may have told of none.
            deliver::discard(self.runner.connector.stager().folders(), &own, Arc::clone(&history)).await;
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some((prompt, history));
            return Err(failure).at_stage(Stage::Run);
        }
        self.runner.forecasts.learn(&prompt, &executed.nodes);
        if let Some(node_errors) = &executed.node_errors {
            warnings.push(format!("ComfyUI dropped outputs that failed validation: {node_errors}"));
        }
        let Executed { images, nodes, .. } = executed;
        let collecting = async {
            early.settle().await;
            self.find(&own, &history, images, executed.images_lost).await
        };
        let findings = self.span.stage(StageName::Collect).run(collecting).await.at_stage(Stage::Collect)?;
        let begun = &*early;
        let upload = || self.upload(destination, &findings, begun, &prompt, &history);
        // The GPU's time is spent: what it made is kept until it can be stored.
        let uploading = timed(self.retries.persist(Holding::Outputs, upload));
        let uploading = async { uploading.await.map_err(|stopped| stopped.failure) };
        let uploading = self.span.stage(StageName::Upload).run(uploading);
        let (outputs, uploaded_in) = tokio::select! {
            biased;
            uploaded = uploading => uploaded.at_stage(Stage::Upload)?,
            why = self.end.called() => return Err(why).at_stage(Stage::Upload),
        };
        self.discard(early).await;
        timings.uploaded_ms = ms(uploaded_in);
        crate::phases::reached("uploaded").await;
        let (outputs, records) = outputs;
        Ok(Done { outputs, records, warnings, nodes })
    }

    /// The version of the ComfyUI that this job met; empty when it met none.
    pub(super) fn comfyui_version(&self) -> String {
        self.comfyui_version.get().cloned().unwrap_or_default()
    }

    /// `<output.uri, else store.uri>/<job id>/<attempt>`, if outputs may go there.
    fn destination(&self) -> Result<Destination<'a>, Failure> {
        let Runner { base, outputs, store, .. } = self.runner;
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
        let known = &self.runner.known_places;
        if destination.own || known.contains_key(&destination.root) {
            return Ok(());
        }
        let prompt = prompt.clone();
        let storing = self.store_record(destination, "prompt.json", move || prompt);
        tokio::select! {
            biased;
            () = self.runner.shutdown.stop.cancelled() => return Err(Failure::Draining),
            why = self.end.called() => return Err(why),
            stored = storing => stored?,
        };
        known.insert(destination.root.clone(), ());
        Ok(())
    }

    async fn run(
        &self,
        prompt: &Prompt,
        extra_data: Map<String, Value>,
        place: &PromptPermit<'_>,
        early: &mut EagerUploads,
        stage: StageSpan,
    ) -> Result<(Arc<Engine>, Executed), StageFailure> {
        // Another one, if that of the conversion was lost meanwhile.
        let engine = self.engine().await.inspect_err(|met| stage.fails(met))?;
        let limit = self.job.timeout.unwrap_or(self.runner.limits.timeout);
        let back = self.runner.shutdown.stop.child_token();
        let execution = Execution {
            prompt,
            extra_data: Value::Object(extra_data),
            limit,
            allow_partial: self.job.allow_partial,
            abort: &self.runner.shutdown.abort,
            cancel: self.end.token(),
            behind: place.ahead.as_ref().map(|ahead_done| QueuedBehind { ahead_done, stop: &back }),
            known: self.runner.forecasts.of(prompt),
        };
        let mut observer = ExecutionObserver::new(self.reporter.clone(), place, early, stage);
        let give_back = async {
            place.is_held_up().await;
            back.cancel();
            std::future::pending::<Infallible>().await
        };
        let outcome = tokio::select! {
            outcome = engine.execute(execution, &mut observer) => outcome,
            never = give_back => match never {},
        };
        let error = match outcome {
            Ok(executed) => {
                observer.ended(prompt, &executed);
                return Ok((engine, executed));
            }
            Err(error) => error,
        };
        if error.needs_restart() {
            self.runner.connector.kill_engine(&engine).await;
        }
        let message = error.to_string();
        let met = match error {
            ExecuteError::Refused { message, node_errors } => StageFailure {
                stage: Stage::Post,
                failure: Failure::PromptRefused { message, node_errors: Some(node_errors) },
            },
            ExecuteError::TimedOut { limit, .. } => StageFailure {
                stage: Stage::Run,
                failure: Failure::TimedOut { seconds: limit.as_secs_f64() },
            },
            ExecuteError::Aborted { .. } if !self.runner.shutdown.stop.is_cancelled() => {
                StageFailure { stage: Stage::Run, failure: Failure::HeldUp }
            }
            ExecuteError::Aborted { .. } => StageFailure { stage: Stage::Run, failure: Failure::Draining },
            ExecuteError::Cancelled { .. } => StageFailure { stage: Stage::Run, failure: self.end.why() },
            ExecuteError::NotBegun(_) => {
                StageFailure { stage: Stage::Run, failure: Failure::EngineLost(message) }
            }
            ExecuteError::Unreadable(_) => {
                StageFailure { stage: Stage::Collect, failure: Failure::Internal(message) }
            }
            ExecuteError::Vanished => StageFailure { stage: Stage::Run, failure: Failure::Interrupted },
            ExecuteError::Died(_) | ExecuteError::Stalled(_) | ExecuteError::Unreachable(_) => {
                StageFailure { stage: Stage::Run, failure: Failure::EngineCrashed(message) }
            }
        };
        observer.failed(prompt, &met);
        Err(met)
    }

    /// ComfyUI, waited for while it starts, but not for longer than a job is held.
    pub(super) async fn engine(&self) -> Result<Arc<Engine>, StageFailure> {
        let starting = self.runner.connector.engine();
        let started = async { starting.await.map_err(engine_failure).at_stage(Stage::Run) };
        self.patiently(started, "has not started").await
    }

    /// What waits for ComfyUI: for no longer than a job is held when it can be given back.
    pub(super) async fn patiently<T>(
        &self,
        waiting: impl Future<Output = Result<T, StageFailure>>,
        what: &str,
    ) -> Result<T, StageFailure> {
        if !self.retries.may_give_back() {
            return waiting.await;
        }
        let late = |_| Err(Failure::EngineUnavailable(format!("ComfyUI {what} within {BOOT_PATIENCE:?}")));
        timeout(BOOT_PATIENCE, waiting).await.unwrap_or_else(|elapsed| late(elapsed).at_stage(Stage::Run))
    }

    fn early(&self, own: &OwnFolder, destination: &Destination<'_>) -> EagerUploads {
        let Runner { store, connector, outputs, .. } = self.runner;
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
        images: Vec<crate::comfy::tracker::OutputImage>,
        images_lost: BTreeSet<String>,
    ) -> Result<Findings, Failure> {
        if !images_lost.is_empty() {
            let message = "pictures that ComfyUI sends over the websocket only did not come".to_owned();
            return Err(Failure::OutputMissing { message, nodes: images_lost });
        }
        let folders = self.runner.connector.stager().folders().clone();
        let own = own.clone();
        let (request, history) = (self.job.output.clone(), Arc::clone(history));
        let most = self.runner.outputs.max_files;
        let find = move || deliver::find(&folders, &own, &request, &history, images, most);
        tokio::task::spawn_blocking(find)
            .await
            .map_err(|error| Failure::Internal(error.to_string()))?
            .map_err(|missing| Failure::OutputMissing { message: missing.message, nodes: missing.nodes })?
            .within(&self.runner.outputs)
    }

    async fn upload(
        &self,
        destination: &Destination<'_>,
        findings: &Findings,
        early: &EagerUploads,
        prompt: &Arc<Prompt>,
        history: &Arc<History>,
    ) -> Result<(Vec<Output>, RecordUris), Failure> {
        let each = |name: &str, bytes, done, of| {
            self.reporter.tell(EventKind::Uploaded { filename: name.to_owned(), bytes, done, of });
        };
        crate::phases::reached("uploading").await;
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
    pub(super) async fn left_records(&self) -> Option<RecordUris> {
        let (prompt, history) = self.left.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let destination = self.destination().ok()?;
        let store = || self.store_records(&destination, &prompt, &history);
        let stored = self.retries.persist(Holding::Result, store).await;
        stored
            .inspect_err(|stopped| tracing::warn!(error = %stopped.failure, "cannot store the history"))
            .ok()
    }
}

pub(super) async fn timed<T, E>(work: impl Future<Output = Result<T, E>>) -> Result<(T, Duration), E> {
    let since = Instant::now();
    Ok((work.await?, since.elapsed()))
}

fn engine_failure(error: ConnectorError) -> Failure {
    match error {
        ConnectorError::Killed => Failure::Draining,
        error => Failure::EngineUnavailable(error.to_string()),
    }
}
