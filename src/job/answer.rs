//! The results that no execution gives, and any result's bytes.

use bytes::Bytes;
use serde_json::Value;

use super::{
    JobId,
    failure::Failure,
    result::{JobResult, Timings, WorkerInfo},
    runner::Met,
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
        error: Some(met.failure.to_error(met.stage)),
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

pub(super) fn encode(result: &JobResult) -> Result<Bytes, Failure> {
    let body = serde_json::to_vec_pretty(result).map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(body.into())
}
