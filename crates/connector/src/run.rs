//! What is run, and how: conversion, execution, history.

use std::{sync::Arc, time::Duration};

use contract::{
    bounds,
    prompt::{is_ui_workflow, prompt_from_value},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{ComfyConnector, ConnectorError, Engine, PromptError, State};
use crate::{
    browser::{Conversion, ConvertError},
    comfy::{Execution, Observer, PromptId, events::Image, history::History, tracker::Progress},
};

/// What is to be run.
///
/// ```
/// use comfy_connector::Payload;
/// use serde_json::json;
///
/// let prompt = json!({"1": {"class_type": "EmptyImage", "inputs": {}}});
/// assert!(matches!(Payload::from(prompt), Payload::Prompt(_)));
/// assert!(matches!(Payload::from(json!({"nodes": [], "links": []})), Payload::Workflow(_)));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A UI workflow: converted first, and put into the PNGs that it saves.
    Workflow(Value),
    /// A prompt in ComfyUI's API format.
    Prompt(Value),
}

/// Told apart by their shape: a UI workflow has a list `nodes`.
impl From<Value> for Payload {
    fn from(json: Value) -> Self {
        if is_ui_workflow(&json) { Self::Workflow(json) } else { Self::Prompt(json) }
    }
}

impl ComfyConnector {
    /// Turns a UI workflow into a prompt, with ComfyUI's own frontend: up to three attempts, each
    /// limited by `browser.convert_timeout` and in a fresh page after a failure.
    ///
    /// ```no_run
    /// # async fn example(connector: comfy_connector::ComfyConnector) -> Result<(), Box<dyn std::error::Error>> {
    /// let workflow = serde_json::from_slice(&std::fs::read("portrait.json")?)?;
    /// let conversion = connector.prompt_from_workflow(&workflow).await?;
    /// println!("{} nodes", conversion.prompt.len());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ConnectorError::Failed`]: more than `job.max_nodes`, or nested too deep. [`ConnectorError::Convert`]: node types
    /// that this server lacks, what the frontend said of the workflow, or the browser. As [`ComfyConnector::engine`] when ComfyUI had to be started again.
    pub async fn prompt_from_workflow(&self, workflow: &Value) -> Result<Conversion, ConnectorError> {
        self.check(workflow)?;
        let engine = self.engine().await?;
        match engine.browser().convert(workflow).await {
            Ok(conversion) => Ok(conversion),
            Err(_) if self.state() == State::Killed => Err(ConnectorError::Killed),
            Err(error) => {
                if matches!(
                    error,
                    ConvertError::Browser(_) | ConvertError::PageCrashed | ConvertError::TimedOut(_)
                ) {
                    // A page waits for a ComfyUI that hangs.
                    engine.invalidate_health();
                }
                Err(error.into())
            }
        }
    }

    /// Runs a workflow or prompt to its end, [`ConnectorConfig::timeout`](crate::ConnectorConfig::timeout) at most, and
    /// answers its history entry.
    ///
    /// A ComfyUI that was lost since the last call is started again first. So is one that is lost before
    /// it acknowledged the prompt, which is then posted once more: it may have begun to run. One that is
    /// lost later is an error, and started again by the next call: the prompt may be what killed it.
    /// Dropping the future takes the prompt back: one that runs is interrupted, one that waits leaves ComfyUI's queue.
    ///
    /// ```no_run
    /// # async fn example(connector: comfy_connector::ComfyConnector) -> Result<(), Box<dyn std::error::Error>> {
    /// let workflow: serde_json::Value = serde_json::from_slice(&std::fs::read("portrait.json")?)?;
    /// let history = connector.run_workflow(workflow.into()).await?;
    /// for file in connector.output_files(&history) {
    ///     println!("node {}: {}", file.node, file.path.display());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Never an empty answer: a refusal ([`ConnectorError::Execute`]), a failed node and an interrupt
    /// ([`ConnectorError::Failed`]) are errors with ComfyUI's own words; so is a conversion's failure
    /// ([`ConnectorError::Convert`]).
    pub async fn run_workflow(&self, payload: Payload) -> Result<History, ConnectorError> {
        let (Payload::Workflow(workflow) | Payload::Prompt(workflow)) = &payload;
        self.check(workflow)?;
        let payload = Arc::new(payload);
        let mut again = true;
        loop {
            let engine = self.engine().await?;
            let (payload, limit) = (Arc::clone(&payload), self.0.config.timeout);
            let cancel = CancellationToken::new();
            let _taken_back_when_dropped = cancel.clone().drop_guard();
            // In a task of its own, which outlives this future until ComfyUI has let go of the prompt.
            let running = tokio::spawn({
                let engine = Arc::clone(&engine);
                async move {
                    let mut observer = NoopObserver::default();
                    let outcome = engine.run(&payload, limit, &cancel, &mut observer).await;
                    (outcome, observer.acknowledged)
                }
            });
            let (outcome, acknowledged) = match running.await {
                Ok(ran) => ran,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => return Err(ConnectorError::Killed),
            };
            if outcome.is_err() && self.state() == State::Killed {
                return Err(ConnectorError::Killed);
            }
            if outcome.as_ref().is_err_and(needs_restart) {
                self.discard(&engine).await;
                if !acknowledged && std::mem::take(&mut again) {
                    continue;
                }
            }
            return outcome;
        }
    }

    /// Before a page or ComfyUI works on it.
    fn check(&self, workflow: &Value) -> Result<(), ConnectorError> {
        bounds::check_workflow(workflow, self.0.config.max_nodes)
            .map_err(|failure| ConnectorError::Failed(failure.into()))
    }
}

fn needs_restart(error: &ConnectorError) -> bool {
    match error {
        ConnectorError::Execute(error) => error.needs_restart(),
        // Its device is lost: every later prompt would fail.
        ConnectorError::Failed(failure) => matches!(failure, PromptError::DeviceLost(_)),
        _ => false,
    }
}

impl Engine {
    pub(super) async fn run(
        &self,
        payload: &Payload,
        limit: Duration,
        cancel: &CancellationToken,
        observer: &mut dyn Observer,
    ) -> Result<History, ConnectorError> {
        let (prompt, extra_data) = match payload {
            Payload::Prompt(prompt) => (
                prompt_from_value(prompt.clone())
                    .map_err(|failure| ConnectorError::Failed(failure.into()))?,
                json!({}),
            ),
            Payload::Workflow(workflow) => {
                let Conversion { prompt, workflow, .. } = self.browser().convert(workflow).await?;
                (prompt, json!({"extra_pnginfo": {"workflow": workflow}}))
            }
        };
        let execution = Execution {
            prompt: &prompt,
            extra_data,
            limit,
            allow_partial: false,
            abort: &CancellationToken::new(),
            cancel,
            behind: None,
            known: Arc::default(),
        };
        let executed = self.execute(execution, observer).await?;
        match executed.failure() {
            None => Ok(executed.history),
            Some(failure) => Err(ConnectorError::Failed(failure.into())),
        }
    }
}

/// Watches nothing but whether ComfyUI acknowledged the prompt.
#[derive(Default)]
pub(super) struct NoopObserver {
    acknowledged: bool,
}

impl Observer for NoopObserver {
    fn queued(&mut self, _: PromptId) {
        self.acknowledged = true;
    }
    fn started(&mut self) {}
    fn progress(&mut self, _: &Progress) {}
    fn preview(&mut self, _: &Image) {}
    fn executed(&mut self, _: &str, _: &Value) {}
}
