//! A failure together with the stage in which it occurred.

use contract::{
    failure::Failure,
    result::{Code, Stage},
};

use crate::telemetry::SpanError;

/// A failure and where it was met.
#[derive(Debug)]
pub(super) struct StageFailure {
    pub(super) stage: Stage,
    pub(super) failure: Failure,
}

impl SpanError for Failure {
    fn span_error(&self) -> Option<(Code, String)> {
        let is_no_error = matches!(
            self,
            Self::Draining | Self::HeldUp | Self::Disowned | Self::CopyRunning(_) | Self::Cancelled
        );
        (!is_no_error).then(|| (self.code(), self.to_string()))
    }
}

impl SpanError for StageFailure {
    fn span_error(&self) -> Option<(Code, String)> {
        self.failure.span_error()
    }
}

pub(super) trait AtStage<T> {
    /// Notes where a failure was met.
    fn at_stage(self, stage: Stage) -> Result<T, StageFailure>;
}

impl<T> AtStage<T> for Result<T, Failure> {
    fn at_stage(self, stage: Stage) -> Result<T, StageFailure> {
        self.map_err(|failure| StageFailure { stage, failure })
    }
}
