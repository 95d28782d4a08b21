//! One, two and four workers on one queue, whose ComfyUIs sleep: what one more brings.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    bed::{Bed, On, drain},
    figure::Figure,
    prompts,
    queue::stages,
};

/// Long beside what a job costs the processor: four workers share it.
const SECONDS: f64 = 1.0;
const QUEUE: &str = "scale";

pub(crate) async fn measure(bed: &Bed) -> Result<Vec<Figure>> {
    let (mut workers, mut figures, mut alone) = (Vec::new(), Vec::new(), 0.0);
    let mut queue = None;
    for count in [1, 2, 4] {
        while workers.len() < count {
            let name = format!("scale-{}", workers.len() + 1);
            let engine = bed.engine(On::Standin, &name)?.with_small_frontend();
            let mut worker = bed.worker(&name, QUEUE, &engine).await?.start().await?;
            worker.wait_ready(crate::bed::BOOT).await?;
            workers.push(worker);
        }
        if queue.is_none() {
            queue = Some(crate::queue::Queue::connect(&bed.broker().await?.url(), QUEUE).await?);
        }
        let queue = queue.as_mut().context("no queue")?;
        // A first one each, so that all have begun.
        let jobs = count * (bed.sizes.scale_jobs + 1);
        for number in 0..jobs {
            let prompt = prompts::work(SECONDS, 0, number);
            queue.publish(&format!("scale-{count}-{number}"), &prompt, &json!({})).await?;
        }
        let replies = queue.replies(jobs).await?;
        let (first, last) = replies.get(count - 1).zip(replies.last()).context("no job ran")?;
        let rate = (jobs - count) as f64 / (last.at - first.at).as_secs_f64();
        if count == 1 {
            alone = rate;
            continue;
        }
        let share = rate / (alone * count as f64);
        let name = format!("{count} workers ÷ {count} × one worker");
        figures.push(
            Figure::new("scale", name, share, "")
                .at_least(0.95)
                .beside(format!("{rate:.2} jobs/s, one worker {alone:.2}/s"))
                .bound(format!("all share the processors of this machine; {}", stages(&replies))),
        );
    }
    for worker in workers {
        drain(worker).await?;
    }
    Ok(figures)
}
