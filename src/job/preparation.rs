//! What a try needs before its prompt can be posted: files in place, the workflow converted, the job's
//! inputs applied.

use std::time::Instant;

use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    apply::{self, Prompt, is_ui_workflow},
    bounds,
    event::EventKind,
    execution::{Executor, timed},
    failure::Failure,
    met::{At, Met},
    request::{FolderType, WorkflowSource},
    result::{Stage, Timings},
    runner::ms,
};
use crate::{
    browser::{Conversion, ConvertError},
    connector::Engine,
    metrics,
    stage::{Owned, Staged, show},
    telemetry::StageName,
};

/// Largest workflow that is fetched from an address.
const LARGEST_WORKFLOW: u64 = 64 << 20;

/// What can be posted.
pub(super) struct Ready {
    pub(super) prompt: Prompt,
    pub(super) extra_data: Map<String, Value>,
    /// The job's own beneath `output`.
    pub(super) folder: Owned,
    pub(super) warnings: Vec<String>,
    /// Its files, which go when this does.
    _staged: Staged,
}

struct Prepared {
    prompt: Prompt,
    extra_data: Map<String, Value>,
    warnings: Vec<String>,
}

impl Executor<'_> {
    /// Stages, converts and applies. Until the prompt is posted nothing is lost by handing the job back
    /// at once.
    pub(super) async fn ready(&self, timings: &mut Timings) -> Result<Ready, Met> {
        self.turn.prepare();
        let begun = Instant::now();
        // Staging may fail before ComfyUI is asked for.
        self.runner.connector.running().iter().for_each(|engine| self.met(engine));
        let before_post = async {
            let preparing = async {
                let engine = self.engine().await?;
                self.met(&engine);
                self.span.stage(StageName::Convert).run(timed(self.prepare(&engine))).await
            };
            // Files come while ComfyUI still starts.
            let staging = self.span.stage(StageName::Stage).run(timed(self.stage()));
            tokio::try_join!(staging, preparing)
        };
        let ((staged, staged_in), (prepared, converted_in)) = tokio::select! {
            // First: what needs neither files nor conversion would be ready at once.
            biased;
            () = self.runner.stops.stop.cancelled() => return Err(Failure::Draining).at(Stage::Stage),
            why = self.end.called() => return Err(why).at(Stage::Stage),
            ready = before_post => ready?,
        };
        timings.staged_ms = ms(staged_in);
        timings.models = staged.models;
        timings.converted_ms = ms(converted_in);
        let Prepared { mut prompt, extra_data, warnings } = prepared;
        let folder = self.apply(&mut prompt, &staged).await.at(Stage::Convert)?;
        self.reporter.tell(EventKind::Converted { nodes: prompt.len() });
        crate::phases::reached("converted").await;
        self.turn.lane().prepared_in(begun.elapsed());
        self.runner.connector.stager().warm(apply::models_named(&prompt));
        Ok(Ready { prompt, extra_data, folder, warnings, _staged: staged })
    }

    fn met(&self, engine: &Engine) {
        self.comfyui_version.get_or_init(|| engine.server().version().to_owned());
    }

    async fn stage(&self) -> Result<Staged, Met> {
        crate::phases::reached("staging").await;
        let limit = self.runner.staging_limit;
        let staging = self.runner.connector.stager().stage_inputs(self.job);
        let staged = timeout(limit, staging).await.unwrap_or_else(|_| {
            let slow = format!("the inputs were not here within {limit:?} (inputs.timeout)");
            Err(Failure::InputUnavailable(slow))
        });
        let staged = staged.at(Stage::Stage)?;
        let models = staged.models.unwrap_or_default().models_cold.bytes;
        metrics::received(models, staged.bytes.saturating_sub(models));
        self.reporter.tell(EventKind::Staged { files: staged.files, bytes: staged.bytes });
        crate::phases::reached("staged").await;
        Ok(staged)
    }

    /// The prompt and what goes with it, before the job's inputs are applied.
    async fn prepare(&self, engine: &Engine) -> Result<Prepared, Met> {
        let workflow = match &self.job.workflow {
            WorkflowSource::Inline(workflow) => workflow.clone(),
            WorkflowSource::At(uri) => {
                let bytes =
                    self.runner.connector.stager().read(uri, LARGEST_WORKFLOW).await.at(Stage::Stage)?;
                serde_json::from_slice(&bytes)
                    .map_err(|error| {
                        Failure::Invalid(format!("workflow_uri: {}: no JSON: {error}", show(uri)))
                    })
                    .at(Stage::Stage)?
            }
        };
        let most = self.runner.limits.max_nodes;
        bounds::check_nodes(&workflow, most).at(Stage::Convert)?;
        let mut extra_data = Map::new();
        if let Some(key) = &self.job.api_key_comfy_org {
            extra_data.insert("api_key_comfy_org".into(), key.expose_secret().into());
        }
        if !is_ui_workflow(&workflow) {
            let prompt = apply::prompt_from_value(workflow).at(Stage::Convert)?;
            return Ok(Prepared { prompt, extra_data, warnings: Vec::new() });
        }
        crate::phases::reached("converting").await;
        let converted = engine.browser().convert(&workflow).await;
        let Conversion { prompt, workflow, warnings } =
            converted.map_err(conversion_failure).at(Stage::Convert)?;
        bounds::check_node_count(prompt.len(), most).at(Stage::Convert)?;
        extra_data.insert("extra_pnginfo".into(), serde_json::json!({"workflow": workflow}));
        Ok(Prepared { prompt, extra_data, warnings })
    }

    /// Puts the job's inputs into the prompt, and its outputs into a folder of its own.
    async fn apply(&self, prompt: &mut Prompt, staged: &Staged) -> Result<Owned, Failure> {
        apply::set_inputs(prompt, &staged.values)?;
        apply::rename_files(prompt, &staged.renamed);
        let stager = self.runner.connector.stager();
        let folder = format!("comfy-worker-{}", Uuid::new_v4().simple());
        apply::set_output_folder(prompt, &folder)?;
        apply::force_rerun(prompt, self.rerun.iter().map(String::as_str), &folder);
        let path = stager.folders().of(FolderType::Output).join(folder);
        let owned = stager.journal().own(path.clone()).await;
        owned.map_err(|error| Failure::local(path.display(), &error))
    }
}

fn conversion_failure(error: ConvertError) -> Failure {
    let message = error.to_string();
    match error {
        ConvertError::MissingNodes(types) => Failure::MissingNodes(types),
        ConvertError::Refused(_) => Failure::ConversionRefused(message),
        ConvertError::TimedOut(_) => Failure::ConversionTimedOut(message),
        ConvertError::Browser(_) => Failure::BrowserDown(message),
    }
}
