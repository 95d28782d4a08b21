//! `comfy-worker cancel`: end a job, wherever it is.

use contract::{JobId, result::JobResult};
use serde_json::json;
use tokio::time::{Duration, Instant};

use super::{Context, Failed, print};
use crate::{
    app::store_uri,
    job::cancel::{self, Cancelling},
    queue::{Broker, ControlCommand},
    store::Stores,
};

/// Longest telling of the workers.
const TELL_LIMIT: Duration = Duration::from_secs(10);
/// How often the result is looked for while a worker ends the job.
const LOOK_EVERY: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The job's id.
    job: JobId,
}

/// Tells the workers, and makes the result `cancelled` unless there is one: then a job that waits in
/// the queue is answered with it and not run.
pub(super) async fn cancel(context: Context, args: Args) -> Result<(), Failed> {
    let Context { config, json } = context;
    let (base, id) = (store_uri(&config)?, args.job);
    let stores = Stores::new(&config.store).await;
    let broker = Broker::connect(&config.amqp, &config.worker.id).await?;
    let told =
        broker.send_command(&ControlCommand::Cancel(id.to_string()), Instant::now() + TELL_LIMIT).await;
    broker.close().await;
    told.map_err(|error| Failed::Environment(format!("the workers could not be told: {error}")))?;
    let cancelled = tokio::select! {
        cancelled = cancel::cancel(&stores, &base, &id, &config.worker.id, LOOK_EVERY) => cancelled,
        _ = tokio::signal::ctrl_c() => {
            let left = format!("no longer waiting; the workers were told to end {id}, and a worker that has it will");
            return Err(Failed::Environment(left));
        }
    };
    match cancelled.map_err(|error| Failed::Environment(error.to_string()))? {
        Cancelling::Cancelled(_) if json => print::result(json!({"id": id, "status": "cancelled"})),
        Cancelling::Cancelled(_) => print::result(format!("{id}: cancelled")),
        Cancelling::Over(result) => {
            let result: Result<JobResult, _> = serde_json::from_slice(&result);
            let status = result.map_or_else(|_| json!("unknown"), |result| json!(result.status));
            if json {
                print::result(json!({"id": id, "status": status}));
            } else {
                print::note(format!(
                    "{id}: finished before it was cancelled ({})",
                    status.as_str().unwrap_or_default()
                ));
            }
            return Err(Failed::Job);
        }
    }
    Ok(())
}
