//! Everything that can go wrong with a job. A variant says what happened; whose fault that is and
//! what follows is the worker's to decide, the contract's code and stage stand here.

use serde::Serialize;
use serde_json::Value;

use crate::{
    bounds,
    result::{Code, JobError, Stage, Status},
    text::one_line,
};

/// What ended an attempt.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The body is no JSON object.
    #[error("{0}")]
    Malformed(String),
    /// The body breaks the contract.
    #[error("{0}")]
    Invalid(String),
    /// It is no job, and there is nobody to tell.
    #[error("{0}")]
    Unanswerable(String),
    /// The id was used before, with another body.
    #[error("the job id {0} was used before with another body; choose another id")]
    IdConflict(String),
    /// An input does not exist.
    #[error("{0}")]
    InputNotFound(String),
    /// An input lies where jobs may not read, or the credentials do not open it.
    #[error("{0}")]
    InputForbidden(String),
    /// The place of an input does not answer, is too slow, or is in another region.
    #[error("{0}")]
    InputUnavailable(String),
    /// An input, or all of them, are larger than allowed.
    #[error("{0}")]
    InputTooLarge(String),
    /// An input is not what its checksum says.
    #[error("{0}")]
    ChecksumMismatch(String),
    /// A URI of a kind that is not read here.
    #[error("{0}")]
    UnsupportedUri(String),
    /// The workflow needs nodes that this server lacks.
    #[error("this server lacks the node types {}", .0.join(", "))]
    MissingNodes(Vec<String>),
    /// The frontend refused the workflow.
    #[error("{0}")]
    ConversionRefused(String),
    /// The conversion did not end in time, in fresh pages neither.
    #[error("{0}")]
    ConversionTimedOut(String),
    /// Chromium is gone and did not come back.
    #[error("{0}")]
    BrowserDown(String),
    /// ComfyUI refused the prompt (400), or dropped outputs while running the rest.
    #[error("{message}")]
    PromptRefused {
        /// ComfyUI's words.
        message: String,
        /// ComfyUI's `node_errors`, as they came.
        node_errors: Option<Value>,
    },
    /// A node raised an exception.
    #[error("{0}")]
    NodeFailed(Box<NodeFailure>),
    /// A node ran out of the GPU's memory.
    #[error("{0}")]
    OutOfMemory(Box<NodeFailure>),
    /// The execution outlasted its limit.
    #[error("not finished within {seconds} s")]
    TimedOut {
        /// The limit.
        seconds: f64,
    },
    /// The message's `expiration` passed before the job was over.
    #[error("not finished within {seconds} s of its publishing (the message's expiration)")]
    Expired {
        /// The expiration.
        seconds: f64,
    },
    /// Its publisher cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// Somebody else interrupted it.
    #[error("interrupted by somebody else at ComfyUI")]
    Interrupted,
    /// ComfyUI lists an output that is not there, or must not be read.
    #[error("{message}")]
    OutputMissing {
        /// Which, and what is wrong with it.
        message: String,
        /// The nodes that listed such files.
        nodes: std::collections::BTreeSet<String>,
    },
    /// It made more than it may.
    #[error("{0}")]
    OutputTooLarge(String),
    /// The place for its outputs does not open to these credentials, or refuses what is written.
    #[error("{0}")]
    OutputForbidden(String),
    /// There is no such place for its outputs, or it is in another region.
    #[error("{0}")]
    OutputNotFound(String),
    /// The place for its outputs does not answer.
    #[error("{0}")]
    OutputUnavailable(String),
    /// ComfyUI died while it ran.
    #[error("{0}")]
    EngineCrashed(String),
    /// ComfyUI was lost with another job's prompt, before it came to this one's.
    #[error("{0}")]
    EngineLost(String),
    /// ComfyUI cannot be reached or started, or starts for too long.
    #[error("{0}")]
    EngineUnavailable(String),
    /// The store cannot be reached.
    #[error("{0}")]
    StoreUnavailable(String),
    /// The disk is full.
    #[error("{0}")]
    DiskFull(String),
    /// The disk or another local resource failed.
    #[error("{0}")]
    Local(String),
    /// The job crashed as many workers as it may.
    #[error("given up after {crashes} attempts that crashed: it kills its worker")]
    Poison {
        /// Attempts that crashed.
        crashes: u32,
    },
    /// The broker moved the job to the dead letters.
    #[error("{message}")]
    DeadLettered {
        /// By the broker's reason.
        code: Code,
        /// The reason, in words.
        message: String,
    },
    /// Another delivery of the same job is being run. The text tells one moment of that attempt from the next.
    #[error("another delivery of this job is being run ({0})")]
    CopyRunning(String),
    /// The broker has taken the message back.
    #[error("the connection that brought the job is gone")]
    Disowned,
    /// The worker is draining: nobody's fault.
    #[error("the worker is shutting down")]
    Draining,
    /// Behind another job, which takes longer than such jobs took: an idle worker may have it.
    #[error("the job before it takes longer than such jobs took")]
    HeldUp,
    /// A bug of ours.
    #[error("{0}")]
    Internal(String),
}

/// What was away when a job was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing: a drain, or another worker can have it earlier.
    None,
    /// The store, or the place for outputs.
    Store,
    /// Room on this worker's disk.
    Disk,
    /// An input's place.
    Input,
    /// ComfyUI.
    Engine,
    /// Nothing; another delivery of the job is being run.
    Copy,
    /// The broker, for the job's result.
    Broker,
    /// Something else of this machine.
    Local,
}

impl Cause {
    /// Its word in metrics and in the messages that are given back.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Store => "store",
            Self::Disk => "disk",
            Self::Input => "input",
            Self::Engine => "engine",
            Self::Copy => "copy",
            Self::Broker => "broker",
            Self::Local => "local",
        }
    }
}

/// A node's exception, in ComfyUI's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeFailure {
    /// The node's id.
    pub node_id: String,
    /// Its class.
    pub node_type: String,
    /// The exception's class.
    pub exception_type: String,
    /// The exception's text.
    pub exception_message: String,
    /// Python's traceback, a line or frame each.
    pub traceback: Vec<String>,
}

impl std::fmt::Display for NodeFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = self.exception_message.trim_end();
        write!(f, "node {} ({}): {}: {message}", self.node_id, self.node_type, self.exception_type)
    }
}

impl Failure {
    /// What the broker's reason for a dead letter of `queue` means for the job; `None`: a worker rejected
    /// it, because nobody could be told.
    #[must_use]
    pub fn dead_lettered(reason: &str, queue: &str) -> Option<Self> {
        let (code, what) = match reason {
            "rejected" => return None,
            "delivery_limit" => (
                Code::Poison,
                "given up at the delivery limit: it came back to the queue again and again".into(),
            ),
            "expired" => (Code::Timeout, "expired in the queue before a worker could run it".into()),
            "maxlen" => (Code::Internal, "pushed out of the queue, which is full".into()),
            other => (Code::Internal, format!("given up by the broker ({})", one_line(other, 100))),
        };
        let message = format!("{what}; the job is in the dead letters of {queue}");
        Some(Self::DeadLettered { code, message })
    }

    /// The contract's code.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) | Self::Unanswerable(_) => Code::MalformedJob,
            Self::Invalid(_) => Code::InvalidJob,
            Self::IdConflict(_) => Code::IdConflict,
            Self::InputNotFound(_) => Code::InputNotFound,
            Self::InputForbidden(_) => Code::InputForbidden,
            Self::InputUnavailable(_) => Code::InputUnavailable,
            Self::InputTooLarge(_) => Code::InputTooLarge,
            Self::ChecksumMismatch(_) => Code::ChecksumMismatch,
            Self::UnsupportedUri(_) => Code::UnsupportedUri,
            Self::MissingNodes(_) => Code::MissingNodes,
            Self::ConversionRefused(_) | Self::ConversionTimedOut(_) | Self::BrowserDown(_) => {
                Code::ConversionFailed
            }
            Self::PromptRefused { .. } => Code::InvalidPrompt,
            Self::NodeFailed(_) | Self::OutputTooLarge(_) => Code::ExecutionError,
            Self::OutOfMemory(_) => Code::OutOfMemory,
            Self::TimedOut { .. } | Self::Expired { .. } => Code::Timeout,
            Self::Cancelled => Code::Cancelled,
            Self::Interrupted | Self::Draining | Self::HeldUp | Self::Disowned => Code::Interrupted,
            Self::OutputMissing { .. } => Code::OutputMissing,
            Self::OutputForbidden(_) => Code::OutputForbidden,
            Self::OutputNotFound(_) => Code::OutputNotFound,
            Self::EngineCrashed(_) | Self::EngineLost(_) => Code::EngineCrashed,
            Self::Poison { .. } => Code::Poison,
            Self::DeadLettered { code, .. } => *code,
            Self::EngineUnavailable(_)
            | Self::OutputUnavailable(_)
            | Self::CopyRunning(_)
            | Self::StoreUnavailable(_)
            | Self::DiskFull(_)
            | Self::Local(_)
            | Self::Internal(_) => Code::Internal,
        }
    }

    /// A failure of a file of ours: whose fault it is says the operating system.
    #[must_use]
    pub fn local(what: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let text = format!("{what}: {error}");
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::DiskFull(text),
            _ => Self::Local(text),
        }
    }

    /// What was away, when a job is given back for this.
    #[must_use]
    pub fn cause(&self) -> Cause {
        match self {
            Self::StoreUnavailable(_) | Self::OutputUnavailable(_) => Cause::Store,
            Self::InputUnavailable(_) => Cause::Input,
            Self::DiskFull(_) => Cause::Disk,
            Self::Local(_) => Cause::Local,
            Self::EngineUnavailable(_) | Self::EngineLost(_) => Cause::Engine,
            Self::CopyRunning(_) => Cause::Copy,
            _ => Cause::None,
        }
    }

    /// What tells returns of a job for this from returns for something else. Of a copy that runs: one moment of
    /// its attempt, so that returns count only while nothing is heard of it.
    #[must_use]
    pub fn return_cause(&self) -> String {
        match self {
            Self::CopyRunning(moment) => format!("{} {moment}", self.cause().word()),
            _ => self.cause().word().to_owned(),
        }
    }

    /// The `status` of a job that ends with this.
    #[must_use]
    pub fn status(&self) -> Status {
        if matches!(self, Self::Cancelled) { Status::Cancelled } else { Status::Failed }
    }

    /// The `error` of a result: this failure, met in `stage`.
    #[must_use]
    pub fn to_error(&self, stage: Stage) -> JobError {
        let mut error = JobError {
            code: self.code(),
            stage,
            message: self.to_string(),
            node_errors: None,
            node: None,
            traceback: None,
        };
        match self {
            Self::PromptRefused { node_errors, .. } => error.node_errors.clone_from(node_errors),
            Self::NodeFailed(failure) | Self::OutOfMemory(failure) => {
                error.node = Some(failure.node_id.clone());
                error.traceback = Some(failure.traceback.clone());
            }
            _ => {}
        }
        bounds::cut(&mut error);
        error
    }
}
