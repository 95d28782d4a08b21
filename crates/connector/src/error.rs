//! What can go wrong with the connector, by the part that failed.

use std::path::PathBuf;

use contract::failure::{Failure, NodeFailure};

use super::restarts;
use crate::{
    browser::ConvertError,
    comfy::{BootError, ExecuteError, RequestError},
};

/// Why the connector could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectorError {
    /// ComfyUI did not come up.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// ComfyUI's process lives and does not answer.
    #[error(transparent)]
    Unreachable(#[from] RequestError),
    /// The browser is missing or unhealthy, or a workflow could not be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A setting without which there is no ComfyUI is missing.
    #[error("{0} is not given")]
    Incomplete(&'static str),
    /// This process has a connector already, with other settings.
    #[error("this process runs a connector with another configuration; shut it down first")]
    OtherConfiguration,
    /// The self-test's workflow cannot be read.
    #[error("{0}; see comfyui.test_workflow")]
    TestWorkflow(String),
    /// The self-test did not succeed.
    #[error("self-test: {0}")]
    SelfTest(Box<ConnectorError>),
    /// The prompt could not be run to its end.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    /// The prompt ran and failed, or is none.
    #[error(transparent)]
    Failed(PromptError),
    /// The folder for state cannot be written.
    #[error("{path}: {source}; see worker.state_dir")]
    State {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// It was lost and started again too often.
    #[error(
        "ComfyUI was lost while it ran no job more than {most} times within {} minutes and is not started again (comfyui.max_restarts)",
        restarts::WINDOW.as_secs() / 60
    )]
    Unstable {
        /// The limit.
        most: u32,
    },
    /// An earlier start of this instance failed, for this reason.
    #[error("the connector's start failed, create a new one: {0}")]
    Unusable(String),
    /// [`ComfyConnector::shutdown`](super::ComfyConnector::shutdown) was called.
    #[error("the connector is shut down; create a new one")]
    Killed,
}

impl ConnectorError {
    /// Whether the configuration must be changed.
    pub fn is_misconfiguration(&self) -> bool {
        matches!(self, Self::State { .. } | Self::TestWorkflow(_) | Self::Incomplete(_))
    }

    /// Whether another boot may fix it. It does not fix a command that is missing, nor a workflow
    /// that this ComfyUI cannot run.
    pub(super) fn is_worth_another_boot(&self) -> bool {
        match self {
            Self::Boot(error) => !matches!(error, BootError::Spawn { .. } | BootError::NoPort(_)),
            Self::Convert(error) => {
                !matches!(error, ConvertError::MissingNodes(_) | ConvertError::Refused(_))
            }
            Self::Execute(error) => !matches!(error, ExecuteError::Refused { .. }),
            Self::Failed(failure) => !matches!(failure, PromptError::Invalid(_) | PromptError::NodeFailed(_)),
            Self::SelfTest(error) => error.is_worth_another_boot(),
            Self::Unreachable(_) => true,
            Self::TestWorkflow(_)
            | Self::State { .. }
            | Self::Unstable { .. }
            | Self::Unusable(_)
            | Self::Killed
            | Self::Incomplete(_)
            | Self::OtherConfiguration => false,
        }
    }
}

/// How a prompt failed, or that it is none.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// It is no prompt, or a workflow that is too large or nested too deep.
    #[error("{0}")]
    Invalid(String),
    /// A node failed.
    #[error("{0}")]
    NodeFailed(Box<NodeFailure>),
    /// A node needed more memory than there is.
    #[error("{0}")]
    OutOfMemory(Box<NodeFailure>),
    /// The device is lost: the next call starts ComfyUI again.
    #[error("{0}")]
    DeviceLost(String),
    /// Somebody else interrupted it.
    #[error("interrupted by somebody else at ComfyUI")]
    Interrupted,
    /// ComfyUI says that it failed, and not why.
    #[error("{0}")]
    Unexplained(String),
}

impl From<Failure> for PromptError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Invalid(text) => Self::Invalid(text),
            Failure::NodeFailed(node) => Self::NodeFailed(node),
            Failure::OutOfMemory(node) => Self::OutOfMemory(node),
            Failure::EngineCrashed(text) => Self::DeviceLost(text),
            Failure::Interrupted => Self::Interrupted,
            // The others are verdicts on a worker's jobs.
            other => Self::Unexplained(other.to_string()),
        }
    }
}

/// A part of the connector that is unhealthy, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HealthError {
    /// Nothing has been started.
    #[error("nothing is running")]
    NotRunning,
    /// ComfyUI's process ended: how, and its last lines. The next call starts it again.
    #[error("process: {0}")]
    Process(String),
    /// ComfyUI's process lives and does not answer. If it still does not, the next call starts it again.
    #[error("http: {0}")]
    Http(String),
    /// There is no websocket; it is being connected again. Prompts run without it, too.
    #[error("websocket: not connected")]
    Websocket,
    /// Chromium or its page does not answer. The next conversion replaces it.
    #[error("browser: {0}")]
    Browser(String),
}
