//! The stages of a job, by the names that spans and logs call them.

use std::fmt;

use contract::result::Stage;

/// A stage of a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageName {
    /// From the message to the attempt that is to be made.
    Accept,
    /// Files come.
    Stage,
    /// The workflow becomes a prompt.
    Convert,
    /// From the ready prompt to the begin of its execution.
    Wait,
    /// ComfyUI runs it.
    Execute,
    /// What it made is looked for.
    Collect,
    /// That goes to the store.
    Upload,
    /// `result.json` is made.
    Record,
    /// The publisher is told.
    Publish,
}

impl StageName {
    /// As spans and logs have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Stage => "stage",
            Self::Convert => "convert",
            Self::Wait => "wait",
            Self::Execute => "execute",
            Self::Collect => "collect",
            Self::Upload => "upload",
            Self::Record => "record",
            Self::Publish => "publish",
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The contract's names of two stages are the older ones.
impl From<Stage> for StageName {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Accept => Self::Accept,
            Stage::Stage => Self::Stage,
            Stage::Convert => Self::Convert,
            Stage::Post => Self::Wait,
            Stage::Run => Self::Execute,
            Stage::Collect => Self::Collect,
            Stage::Upload => Self::Upload,
        }
    }
}
