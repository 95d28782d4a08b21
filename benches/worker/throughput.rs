//! Tiny jobs a second through AMQP and S3, beside what ComfyUI does when its own queue is kept full.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{RunningEngine, wait_for};

use crate::{
    bed::{Bed, On, drain},
    figure::Figure,
    prompts,
    queue::stages,
};

const SOON: Duration = Duration::from_secs(120);

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let name = format!("throughput-{}", on.name().to_lowercase());
    let direct = bed.engine(on, &format!("{name}-direct"))?.start().await?;
    let before = executions_a_second(bed, &direct, 0).await?;
    let engine = bed.engine(on, &name)?;
    let (worker, mut queue) = bed.boot(&name, bed.worker(&name, &name, &engine).await?).await?;
    let jobs = bed.sizes.tiny_jobs;
    for number in 0..jobs {
        queue.publish(&format!("{name}-{number}"), &prompts::tiny(number + 1), &json!({})).await?;
    }
    let replies = queue.replies(usize::try_from(jobs)?).await?;
    drain(worker).await?;
    // The mean of before and after: this machine may do other things meanwhile.
    let after = executions_a_second(bed, &direct, jobs).await?;
    direct.stop().await?;
    let full = f64::midpoint(before, after);
    let (first, last) = replies.first().zip(replies.last()).context("no job ran")?;
    let ours = f64::from(jobs - 1) / (last.at - first.at).as_secs_f64();
    let bound = format!(
        "{:.1} ms a job: its objects and markers in S3, the answer's confirm and the ack come one after the \
         other; {}",
        1000.0 / ours,
        stages(&replies)
    );
    let figure = Figure::new("throughput", "tiny jobs ÷ ComfyUI's own full queue", ours / full, "")
        .on(on.name())
        .at_least(0.5)
        .beside(format!("{ours:.1} jobs/s, ComfyUI alone {full:.1}/s"))
        .bound(bound);
    Ok(vec![figure])
}

/// From the end of the first execution to that of the last one, while more were always queued.
async fn executions_a_second(bed: &Bed, engine: &RunningEngine, from: u32) -> Result<f64> {
    let (client, url) = (reqwest::Client::new(), engine.url());
    let post = async |prompt: &Value| -> Result<String> {
        let body = json!({"prompt": prompt});
        let posted = client.post(format!("{url}/prompt")).json(&body).send().await?;
        let posted: Value = posted.error_for_status()?.json().await?;
        Ok(posted["prompt_id"].as_str().context("no prompt_id")?.to_owned())
    };
    // Until the queue is full.
    post(&prompts::work(4.0, 0, usize::try_from(from)?)).await?;
    let mut ids = Vec::new();
    for number in from..from + bed.sizes.tiny_jobs {
        ids.push(post(&prompts::tiny(number + 1)).await?);
    }
    wait_for("ComfyUI's queue to be empty", SOON, || async {
        let Ok(answer) = client.get(format!("{url}/prompt")).send().await else { return false };
        answer.json::<Value>().await.is_ok_and(|state| state["exec_info"]["queue_remaining"] == 0)
    })
    .await?;
    let history: Value = client.get(format!("{url}/history")).send().await?.json().await?;
    let end = |id: &String| -> Result<f64> {
        let messages = history[id]["status"]["messages"].as_array().context("no history")?;
        let success = messages.iter().find(|message| message[0] == "execution_success");
        success.context("a prompt failed")?[1]["timestamp"].as_f64().context("no time")
    };
    let ends = ids.iter().map(end).collect::<Result<Vec<_>>>()?;
    let (first, last) = ends.first().zip(ends.last()).context("nothing ran")?;
    ensure!(last > first, "all at once");
    Ok((ends.len() - 1) as f64 * 1000.0 / (last - first))
}
