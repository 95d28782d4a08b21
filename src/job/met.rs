//! A failure where it was met, as a job's life hands it on.

use contract::{
    failure::Failure,
    result::{Code, Stage},
};

use crate::telemetry::Trouble;

/// A failure and where it was met.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) stage: Stage,
    pub(super) failure: Failure,
}

impl Trouble for Failure {
    fn trouble(&self) -> Option<(Code, String)> {
        let nobodys = matches!(
            self,
            Self::Draining | Self::HeldUp | Self::Disowned | Self::CopyRunning(_) | Self::Cancelled
        );
        (!nobodys).then(|| (self.code(), self.to_string()))
    }
}

impl Trouble for Met {
    fn trouble(&self) -> Option<(Code, String)> {
        self.failure.trouble()
    }
}

pub(super) trait At<T> {
    /// Notes where a failure was met.
    fn at(self, stage: Stage) -> Result<T, Met>;
}

impl<T> At<T> for Result<T, Failure> {
    fn at(self, stage: Stage) -> Result<T, Met> {
        self.map_err(|failure| Met { stage, failure })
    }
}
