//! The results that no execution gives, and any result's bytes.

use bytes::Bytes;
use serde_json::Value;

use super::{
    JobId,
    failure::Failure,
    met::Met,
    result::{JobError, JobResult, Timings, WorkerInfo},
};
use crate::{
    telemetry::{redact_in_place, redact_json},
    text::json_of,
};

/// The result of a job that ended with `met`; `who` says so.
pub(super) fn failed(
    who: &str,
    id: &JobId,
    attempt: u32,
    timings: Timings,
    metadata: Option<Value>,
    met: &Met,
) -> JobResult {
    JobResult {
        version: 1,
        id: id.clone(),
        status: met.failure.status(),
        outputs: Vec::new(),
        history: None,
        prompt: None,
        error: Some(without_secrets(met.failure.to_error(met.stage))),
        warnings: Vec::new(),
        timings,
        nodes: Default::default(),
        attempt,
        worker: WorkerInfo {
            id: who.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            comfyui_version: String::new(),
        },
        metadata,
    }
}

/// What nodes and libraries say of a failure may hold what they failed with.
fn without_secrets(mut error: JobError) -> JobError {
    redact_in_place(&mut error.message);
    error.traceback.iter_mut().flatten().for_each(redact_in_place);
    error.node_errors.iter_mut().for_each(redact_json);
    error
}

pub(super) async fn encode(result: &JobResult) -> Result<Bytes, Failure> {
    let result = result.clone();
    json_of(true, move || result).await.map_err(|error| Failure::Internal(error.to_string()))
}
