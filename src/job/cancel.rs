//! Cancels a job that is not in this process's hands: in the store, where every worker looks.

use std::time::Duration;

use bytes::Bytes;
use contract::{
    JobId, ObjectUri,
    failure::Failure,
    result::{JobResult, Stage, Status, Timings},
};
use tokio::time::{Instant, sleep};

use super::{
    answer::{encode, failed},
    attempt::Records,
    stage_failure::StageFailure,
};
use crate::store::ObjectStore;

/// What the worker that runs the job may take to end it and to tell: ComfyUI is asked for 10 s to let
/// go of the prompt, then killed.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What became of a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelling {
    /// The job is cancelled, by this call or another: its result.
    Cancelled(Bytes),
    /// It was over before, with this result.
    Over(Bytes),
}

/// Makes a job's result `cancelled`, unless it has one. Tell the workers first: one that runs the job
/// is given 15 s to end it and to say so itself, and looked for `look_every` meanwhile.
///
/// The job's message stays where it is: the worker that gets it answers from the result. `who` stands in the
/// result as its worker.
///
/// # Errors
/// When the store cannot be reached.
pub async fn cancel(
    store: &dyn ObjectStore,
    base: &ObjectUri,
    id: &JobId,
    who: &str,
    look_every: Duration,
) -> Result<Cancelling, Failure> {
    let records = Records::new(store, base, id.as_str())?;
    if let Some(result) = records.result().await? {
        return Ok(told(result));
    }
    if !records.create_cancel_marker(who).await? {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            sleep(look_every).await;
            if let Some(result) = records.result().await? {
                return Ok(told(result));
            }
        }
    }
    let met = StageFailure { stage: Stage::Accept, failure: Failure::Cancelled };
    let result = encode(&mut failed(who, id, 1, Timings::default(), None, &met)).await?;
    Ok(told(records.settle(result).await?))
}

fn told(result: Bytes) -> Cancelling {
    let status = serde_json::from_slice::<JobResult>(&result).map(|result| result.status);
    if matches!(status, Ok(Status::Cancelled)) {
        Cancelling::Cancelled(result)
    } else {
        Cancelling::Over(result)
    }
}
