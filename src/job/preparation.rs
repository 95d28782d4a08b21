//! What a try needs before its prompt can be posted: files in place, the workflow converted, the job's
//! inputs applied.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{
    bounds,
    failure::Failure,
    prompt::{Prompt, is_ui_workflow, models_named, prompt_from_value},
    request::{FolderType, WorkflowSource},
    result::Stage,
};
use secrecy::ExposeSecret;
use serde_json::{Map, Value};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::{
    apply,
    execution::Executor,
    prompt_check,
    stage_failure::{AtStage, StageFailure},
};
use crate::telemetry::StageName;
use connector::{
    Engine,
    browser::{Conversion, ConvertError},
    comfy::classes::NodeClass,
    deliver::OwnFolder,
    stage::{EphemeralPath, Staged, show},
};

/// Largest workflow that is fetched from an address.
const LARGEST_WORKFLOW: u64 = 64 << 20;

/// So often an idle ComfyUI that answers other questions is asked what its nodes are.
const MAX_UNANSWERED: u32 = 3;
/// Between questions that ComfyUI does not answer.
const CLASSES_PAUSE: Duration = Duration::from_secs(1);

/// What can be posted.
pub(super) struct PreparedPrompt {
    pub(super) prompt: Prompt,
    pub(super) extra_data: Map<String, Value>,
    /// Where its nodes write.
    pub(super) own: OwnFolder,
    pub(super) warnings: Vec<String>,
    /// That folder and its inputs, which go when this does.
    pub(super) _folder: EphemeralPath,
    pub(super) _staged: Staged,
}

struct ConvertedPrompt {
    prompt: Prompt,
    extra_data: Map<String, Value>,
    warnings: Vec<String>,
}

impl Executor<'_> {
    /// Stages, converts and applies. Until the prompt is posted nothing is lost by handing the job back
    /// at once.
    pub(super) async fn ready(&self) -> Result<PreparedPrompt, StageFailure> {
        self.progress.prepares();
        let begun = Instant::now();
        // Staging may fail before ComfyUI is asked for.
        self.context.runner.connector.running().iter().for_each(|engine| self.met(engine));
        let before_post = async {
            let preparing = async {
                let engine = self.engine().await?;
                self.met(&engine);
                self.progress.stage(StageName::Convert, self.prepare(&engine)).await
            };
            // Files come while ComfyUI still starts.
            let staging = self.progress.stage(StageName::Stage, self.stage());
            tokio::try_join!(staging, preparing)
        };
        let (staged, prepared) =
            self.context.unless_interrupted(Box::pin(before_post)).await.at_stage(Stage::Stage)??;
        let ConvertedPrompt { mut prompt, extra_data, mut warnings } = prepared;
        let (folder, own) = self.apply(&mut prompt, &staged).await.at_stage(Stage::Convert)?;
        // Not before: an input can be set to a link.
        prompt_check::check(&mut prompt).at_stage(Stage::Post)?;
        let known = self.context.unless_interrupted(self.classes(&prompt)).await.at_stage(Stage::Post)??;
        // A class that ComfyUI lacks it refuses by name.
        if let Some(known) = known {
            warnings.extend(prompt_check::check_by_class(&mut prompt, &known).at_stage(Stage::Post)?);
        }
        self.progress.prepared(prompt.len(), begun.elapsed()).await;
        self.context.runner.connector.stager().prefetch_models(models_named(&prompt));
        Ok(PreparedPrompt { prompt, extra_data, own, warnings, _folder: folder, _staged: staged })
    }

    /// What ComfyUI says of the classes of a prompt's nodes, asked until it answers: a node of another job can hold up
    /// every answer. A prompt is posted unchecked only where ComfyUI answers everything else.
    async fn classes(
        &self,
        prompt: &Prompt,
    ) -> Result<Option<HashMap<String, Arc<NodeClass>>>, StageFailure> {
        let asking = async {
            let mut unanswered = 0;
            loop {
                let engine = self.engine().await?;
                match engine.classes(prompt_check::classes(prompt)).await {
                    Ok(known) => return Ok(known),
                    Err(error) => {
                        // An idle ComfyUI has answered another question just before: it is a node's description that takes
                        // too long, one that looks through a share, say.
                        unanswered += u32::from(engine.is_idle());
                        if unanswered == MAX_UNANSWERED {
                            tracing::warn!(%error, "ComfyUI does not describe its nodes in time: the prompt is posted unchecked");
                            return Ok(None);
                        }
                        tracing::debug!(%error, "waiting for what ComfyUI says of its nodes");
                    }
                }
                sleep(CLASSES_PAUSE).await;
            }
        };
        self.patiently(asking, "has not said what its nodes are").await
    }

    fn met(&self, engine: &Engine) {
        self.comfyui_version.get_or_init(|| engine.server().version().to_owned());
    }

    async fn stage(&self) -> Result<Staged, StageFailure> {
        connector::phases::reached("staging").await;
        let staging = self.context.runner.connector.stager().stage_inputs(self.job);
        let staged = self.in_time("the inputs were", staging).await.at_stage(Stage::Stage)?;
        self.progress.staged(&staged).await;
        Ok(staged)
    }

    /// What a job fetches, within `inputs.timeout`.
    async fn in_time<T>(
        &self,
        what: &str,
        fetching: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = self.context.runner.staging_limit;
        let slow = || Failure::InputUnavailable(format!("{what} not here within {limit:?} (inputs.timeout)"));
        timeout(limit, fetching).await.unwrap_or_else(|_| Err(slow()))
    }

    /// The prompt and what goes with it, before the job's inputs are applied.
    async fn prepare(&self, engine: &Engine) -> Result<ConvertedPrompt, StageFailure> {
        let workflow = match &self.job.workflow {
            WorkflowSource::Inline(workflow) => workflow.clone(),
            WorkflowSource::At(uri) => {
                let reading =
                    self.context.runner.connector.stager().read(&self.job.id, uri, LARGEST_WORKFLOW);
                let bytes = self.in_time("workflow_uri was", reading).await.at_stage(Stage::Stage)?;
                let invalid = |problem| Failure::Invalid(format!("workflow_uri: {}: {problem}", show(uri)));
                bounds::check_values(&bytes).map_err(invalid).at_stage(Stage::Stage)?;
                serde_json::from_slice(&bytes)
                    .map_err(|error| invalid(format!("no JSON: {error}")))
                    .at_stage(Stage::Stage)?
            }
        };
        let most = self.context.runner.limits.max_nodes;
        bounds::check_workflow(&workflow, most).at_stage(Stage::Convert)?;
        let mut extra_data = Map::new();
        if let Some(key) = &self.job.api_key_comfy_org {
            extra_data.insert("api_key_comfy_org".into(), key.expose_secret().into());
        }
        if !is_ui_workflow(&workflow) {
            let prompt = prompt_from_value(workflow).at_stage(Stage::Convert)?;
            return Ok(ConvertedPrompt { prompt, extra_data, warnings: Vec::new() });
        }
        connector::phases::reached("converting").await;
        let converted = engine.browser().convert(&workflow).await;
        let Conversion { prompt, workflow, warnings } =
            converted.map_err(conversion_failure).at_stage(Stage::Convert)?;
        bounds::check_node_count(prompt.len() as u64, most).at_stage(Stage::Convert)?;
        let depth = prompt.values().try_for_each(|node| bounds::check_depth("workflow: its prompt", node));
        depth.map_err(Failure::ConversionRefused).at_stage(Stage::Convert)?;
        extra_data.insert("extra_pnginfo".into(), serde_json::json!({"workflow": workflow}));
        Ok(ConvertedPrompt { prompt, extra_data, warnings })
    }

    /// Puts the job's inputs into the prompt, and its outputs into a folder of its own.
    async fn apply(
        &self,
        prompt: &mut Prompt,
        staged: &Staged,
    ) -> Result<(EphemeralPath, OwnFolder), Failure> {
        apply::set_inputs(prompt, &staged.values)?;
        apply::rename_files(prompt, &staged.renamed);
        let stager = self.context.runner.connector.stager();
        let folder = format!("comfy-worker-{}", Uuid::new_v4().simple());
        apply::set_output_folder(prompt, &folder)?;
        apply::force_rerun(prompt, self.rerun.iter().map(String::as_str), &folder);
        let path = stager.folders().of(FolderType::Output).join(folder);
        let failed = |error: std::io::Error| Failure::local(path.display(), &error);
        let owned = stager.journal().own(path.clone()).await.map_err(failed)?;
        let place = path.clone();
        let own = spawn_blocking(move || OwnFolder::create(&place)).await;
        let own = own.map_err(|error| Failure::Internal(error.to_string()))?.map_err(failed)?;
        Ok((owned, own))
    }
}

fn conversion_failure(error: ConvertError) -> Failure {
    let message = error.to_string();
    match error {
        ConvertError::MissingNodes(types) => Failure::MissingNodes(types),
        ConvertError::Refused(_) => Failure::ConversionRefused(message),
        ConvertError::TimedOut(_) => Failure::ConversionTimedOut(message),
        ConvertError::Browser(_) | ConvertError::PageCrashed => Failure::BrowserDown(message),
        // Another job's prompt was the end of ComfyUI.
        ConvertError::Stopped => Failure::EngineLost(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another job's prompt was the end of ComfyUI, and so of its page: that says nothing about this job.
    #[test]
    fn a_conversion_that_is_stopped_is_a_comfyui_that_is_lost() {
        assert!(matches!(conversion_failure(ConvertError::Stopped), Failure::EngineLost(_)));
        let of_the_job = conversion_failure(ConvertError::Refused("x".to_owned()));
        assert!(matches!(of_the_job, Failure::ConversionRefused(_)));
    }
}
