//! One job published and answered, with what every answer must hold.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{bench::Bench, contract, picture::Picture, publisher::Publisher};

/// A job's answer.
pub(crate) struct Answer {
    pub(crate) id: String,
    /// As published.
    pub(crate) body: Vec<u8>,
    /// The same, read.
    pub(crate) result: Value,
    /// All events but previews; none when it was answered without being run.
    pub(crate) events: Vec<Value>,
}

/// Publishes a job (an id is added where it has none), waits for its answer and checks it against
/// the contract.
pub(crate) async fn ask(bench: &Bench, job: Value) -> Result<Answer> {
    let answer = ask_untidy(bench, job).await?;
    bench.folders_are_clean().await.with_context(|| format!("{:#}", answer.result))?;
    Ok(answer)
}

/// [`ask`], but ComfyUI's folders may hold anything afterwards.
pub(crate) async fn ask_untidy(bench: &Bench, mut job: Value) -> Result<Answer> {
    let mut publisher = Publisher::connect(bench).await?;
    let fresh = || json!(format!("job-{}", Uuid::new_v4().simple()));
    // RunPod's form has a place of its own for everything: its id is the message's.
    if job.get("input").is_none() && job.get("id").is_none() {
        job["id"] = fresh();
    }
    let correlation_id = publisher.ask(&serde_json::to_vec(&job)?).await?;
    let reply = publisher.reply().await.with_context(|| format!("its log:\n{}", bench.log()))?;
    ensure!(reply.correlation_id == Some(correlation_id), "correlation_id: {:?}", reply.correlation_id);
    let mut answer = Answer::read(reply.body)?;
    if answer.was_accepted() {
        answer.events = publisher.events_of(&answer.id).await?;
    }
    contract::check(bench, &job, &answer)
        .await
        .with_context(|| format!("{:#}\nits log:\n{}", answer.result, bench.log()))?;
    Ok(answer)
}

impl Answer {
    pub(crate) fn read(body: Vec<u8>) -> Result<Self> {
        let result: Value = serde_json::from_slice(&body).context("the answer is no JSON")?;
        let id = result["id"].as_str().context("the answer has no id")?.to_owned();
        Ok(Self { id, body, result, events: Vec::new() })
    }

    /// Whether an attempt was begun: a body that is refused gets no events.
    pub(crate) fn was_accepted(&self) -> bool {
        self.result["error"]["stage"] != "accept"
    }

    /// The answer, if the job succeeded.
    pub(crate) fn succeeded(self) -> Result<Self> {
        ensure!(self.result["status"] == "succeeded", "the job failed: {:#}", self.result);
        Ok(self)
    }

    /// The error, if it has this code and was met in this stage.
    pub(crate) fn failed(&self, code: &str, stage: &str) -> Result<&Value> {
        let error = &self.result["error"];
        if (error["code"].as_str(), error["stage"].as_str()) == (Some(code), Some(stage)) {
            return Ok(error);
        }
        bail!("not {code} in {stage}: {:#}", self.result)
    }

    pub(crate) fn outputs(&self) -> Result<&Vec<Value>> {
        self.result["outputs"].as_array().context("no outputs")
    }

    /// The outputs of one node.
    pub(crate) fn outputs_of(&self, node: &str) -> Result<Vec<&Value>> {
        let of_node: Vec<&Value> = self.outputs()?.iter().filter(|output| output["node"] == node).collect();
        ensure!(!of_node.is_empty(), "node {node} has no outputs: {:#}", self.result);
        Ok(of_node)
    }

    /// The one output that there is.
    pub(crate) fn only_output(&self) -> Result<&Value> {
        match self.outputs()?.as_slice() {
            [output] => Ok(output),
            other => bail!("{} outputs, not one: {other:#?}", other.len()),
        }
    }

    /// The one output that there is, as a picture.
    pub(crate) async fn only_picture(&self, bench: &Bench) -> Result<Picture> {
        picture(bench, self.only_output()?).await
    }

    /// The events' names in their order.
    pub(crate) fn event_names(&self) -> Vec<&str> {
        self.events.iter().filter_map(|event| event["event"].as_str()).collect()
    }
}

/// An output's object.
pub(crate) async fn bytes(bench: &Bench, output: &Value) -> Result<Vec<u8>> {
    bench.object(output["uri"].as_str().with_context(|| format!("no file: {output}"))?).await
}

/// An output's object as a picture.
pub(crate) async fn picture(bench: &Bench, output: &Value) -> Result<Picture> {
    Picture::read(&bytes(bench, output).await?).with_context(|| format!("{output}"))
}
