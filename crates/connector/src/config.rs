//! The connector's settings, as plain structures: [`ConnectorConfig::default`], with what differs changed.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use contract::ObjectUri;
use url::Url;

use crate::{
    ConnectorError,
    store::{LocalStore, ObjectStore},
};

/// All that a [`ComfyConnector`](crate::ComfyConnector) is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectorConfig {
    /// How ComfyUI is started and reached. Its command and folder have no default.
    pub comfyui: ComfyUiConfig,
    /// Which Chromium converts workflows, and for how long at most.
    pub browser: BrowserConfig,
    /// What may be staged from where.
    pub staging: StagingConfig,
    /// Longest execution of [`run_workflow`](crate::ComfyConnector::run_workflow).
    pub timeout: Duration,
    /// Most nodes of a workflow or prompt.
    pub max_nodes: u32,
    /// The journal of ephemeral files, with which the next start removes what a killed process left.
    pub state_dir: PathBuf,
    /// Where staged inputs are read: the local file system, or a store that you bring.
    pub store: Arc<dyn ObjectStore>,
}

/// What may be staged from where, and how much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StagingConfig {
    /// URI prefixes that inputs may come from.
    pub allow: Vec<String>,
    /// Largest input, and the sum of one job's.
    pub max_bytes: u64,
    /// Bytes of fetched models to keep; `None`: no limit.
    pub model_cache_bytes: Option<u64>,
    /// Bytes of the other files that jobs left, in each folder.
    pub file_cache_bytes: u64,
    /// Whether jobs may replace files that no job has brought.
    pub replace_foreign: bool,
    /// The place of results, which no input is read from; `None`: there is none.
    pub results: Option<ObjectUri>,
}

/// How ComfyUI is started and reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComfyUiConfig {
    /// Program and arguments; `--port N` is appended.
    pub command: Vec<String>,
    /// The folder that the command runs in.
    pub workdir: PathBuf,
    /// The folder that holds `input`, `output`, `temp` and `models`; empty: `workdir`.
    pub path: PathBuf,
    /// Host name or address at which the worker reaches ComfyUI.
    pub host: String,
    /// The first port to try.
    pub port: u16,
    /// Longest wait for the boot.
    pub boot_timeout: Duration,
    /// Losses while idle within 10 minutes after which it is started again; not after one more.
    pub max_restarts: u32,
    /// Jobs until it is started again; `None`: no limit.
    pub max_jobs: Option<u32>,
    /// Bytes of memory until it is started again; `None`: no limit.
    pub max_rss: Option<u64>,
    /// Self-test workflow; `None`: the built-in one.
    pub test_workflow: Option<PathBuf>,
    /// More variables for ComfyUI.
    pub env: Variables,
}

/// Variables by name. Their values may be credentials (`HF_TOKEN`): `Debug` shows the names only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Variables(pub BTreeMap<String, String>);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Which Chromium converts workflows, and for how long at most.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrowserConfig {
    /// Chromium, when it must not be looked for.
    pub executable: Option<PathBuf>,
    /// More flags for Chromium.
    pub args: Vec<String>,
    /// Longest conversion of one workflow.
    pub convert_timeout: Duration,
    /// What to do where no Chromium is found; `None`: say so.
    pub install: Option<InstallConfig>,
}

/// Where a missing Chromium comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallConfig {
    /// A zip archive, or Chrome for Testing's index of them.
    pub source: Url,
    /// Where it is kept for the next start.
    pub folder: PathBuf,
}

/// Where outputs may go, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputsConfig {
    /// URI prefixes for `output.uri`, beside the store's own.
    pub allow: Vec<String>,
    /// Most files of one job.
    pub max_files: u32,
    /// Bytes of one job's files, all together.
    pub max_bytes: u64,
}

impl Default for ConnectorConfig {
    fn default() -> Self {
        Self {
            comfyui: ComfyUiConfig::default(),
            browser: BrowserConfig::default(),
            staging: StagingConfig::default(),
            timeout: Duration::from_secs(30 * 60),
            max_nodes: 10_000,
            state_dir: default_state_dir("comfy-connector"),
            store: Arc::new(LocalStore),
        }
    }
}

impl Default for ComfyUiConfig {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            workdir: PathBuf::new(),
            path: PathBuf::new(),
            host: "127.0.0.1".to_owned(),
            port: 8188,
            boot_timeout: Duration::from_secs(600),
            max_restarts: 3,
            max_jobs: None,
            max_rss: None,
            test_workflow: None,
            env: Variables::default(),
        }
    }
}

impl Default for BrowserConfig {
    fn default() -> Self {
        Self { executable: None, args: Vec::new(), convert_timeout: Duration::from_secs(30), install: None }
    }
}

impl BrowserConfig {
    /// The same with another limit for a conversion.
    #[must_use]
    pub fn with_convert_timeout(self, limit: Duration) -> Self {
        Self { convert_timeout: limit, ..self }
    }
}

impl Default for StagingConfig {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            max_bytes: 2 << 30,
            model_cache_bytes: None,
            file_cache_bytes: 10 << 30,
            replace_foreign: false,
            results: None,
        }
    }
}

impl ConnectorConfig {
    /// What is missing.
    pub(crate) fn check(&self) -> Result<(), ConnectorError> {
        let missing = match &self.comfyui {
            comfyui if comfyui.command.is_empty() => "the command that starts ComfyUI (comfyui.command)",
            comfyui if comfyui.workdir.as_os_str().is_empty() => "ComfyUI's folder (comfyui.workdir)",
            _ => return Ok(()),
        };
        Err(ConnectorError::Incomplete(missing))
    }

    /// Whether a connector that has this one does what `other` asks for.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let told = |config: &Self| {
            let Self { comfyui, browser, staging, timeout, max_nodes, state_dir, store: _ } = config.clone();
            (comfyui, browser, staging, timeout, max_nodes, state_dir)
        };
        told(self) == told(other)
    }
}

impl ComfyUiConfig {
    /// The folder that holds `input`, `output`, `temp` and `models`.
    pub(crate) fn folder(&self) -> PathBuf {
        if self.path.as_os_str().is_empty() { self.workdir.clone() } else { self.path.clone() }
    }
}

/// Where a program of that name keeps its state: under `XDG_STATE_HOME`, else `~/.local/state`, else the folder of
/// temporary files.
#[must_use]
pub fn default_state_dir(program: &str) -> PathBuf {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join(program)
}
