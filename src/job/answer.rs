//! The results that no execution gives, and any result's bytes.

use bytes::Bytes;
use contract::{
    JobId,
    bounds::LARGEST_RECORD,
    failure::Failure,
    result::{JobError, JobResult, Stage, Timings, WorkerInfo},
};
use serde_json::Value;

use super::stage_failure::StageFailure;
use crate::telemetry::{name_places, redact_in_place, redact_json};
use connector::text::json_of;

/// The result of a job that ended with `met`; `who` says so.
pub(super) fn failed(
    who: &str,
    id: &JobId,
    attempt: u32,
    timings: Timings,
    metadata: Option<Value>,
    met: &StageFailure,
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

/// What nodes and libraries say of a failure may hold what they failed with, and where.
fn without_secrets(mut error: JobError) -> JobError {
    for text in [&mut error.message].into_iter().chain(error.traceback.iter_mut().flatten()) {
        redact_in_place(text);
        name_places(text);
    }
    error.node_errors.iter_mut().for_each(redact_json);
    error
}

/// A result's bytes. One that would be too large to be read again loses what makes it so, and its job fails by that.
pub(super) async fn encode(result: &mut JobResult) -> Result<Bytes, Failure> {
    let write = async |result: &JobResult| {
        let result = result.clone();
        json_of(move || result).await.map_err(|error| Failure::Internal(error.to_string()))
    };
    let bytes = write(result).await?;
    let size = bytes.len() as u64;
    if size <= LARGEST_RECORD {
        return Ok(bytes);
    }
    let too_large =
        Failure::OutputTooLarge(format!("the result has {size} bytes, more than {LARGEST_RECORD}"));
    result.status = too_large.status();
    result.error = Some(too_large.to_error(Stage::Upload));
    (result.outputs, result.warnings, result.nodes) = Default::default();
    write(result).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use contract::result::Code;

    use super::*;

    #[tokio::test]
    async fn a_result_that_could_not_be_read_again_says_so_instead() {
        let met = StageFailure { stage: Stage::Run, failure: Failure::Cancelled };
        let id = "job".parse().unwrap();
        let mut result = failed("w", &id, 1, Timings::default(), None, &met);
        let small = encode(&mut result).await.unwrap();
        assert!(!small.contains(&b'\n'));
        result.warnings = vec!["x".repeat(usize::try_from(LARGEST_RECORD).unwrap())];
        let bytes = encode(&mut result).await.unwrap();
        let stored: JobResult = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(stored, result);
        assert_eq!(stored.error.map(|error| error.code), Some(Code::ExecutionError));
        assert!(bytes.len() < 1000);
    }
}
