//! A connector's settings, one after the other.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{BootLine, ComfyConnector, ConnectorConfig, ConnectorError, store::ObjectStore};

/// What [`ComfyConnector::builder`] begins. All has defaults but the command and the folder; settings without a method
/// here are fields of [`ConnectorConfig`].
#[must_use]
pub struct ConnectorBuilder {
    config: ConnectorConfig,
    on_boot_line: BootLine,
}

impl ComfyConnector {
    /// A connector to be started.
    pub fn builder() -> ConnectorBuilder {
        ConnectorConfig::default().into()
    }
}

impl From<ConnectorConfig> for ConnectorBuilder {
    fn from(config: ConnectorConfig) -> Self {
        Self { config, on_boot_line: Arc::new(|_| {}) }
    }
}

impl ConnectorBuilder {
    /// The program that starts ComfyUI, and its arguments: `["python3", "main.py"]`. `--port N` is appended.
    pub fn command<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.config.comfyui.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// The folder that the command runs in, and that has `input`, `output`, `temp` and `models`.
    pub fn workdir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.config.comfyui.workdir = folder.into();
        self
    }

    /// The first port to try; 8188 without.
    pub fn port(mut self, port: u16) -> Self {
        self.config.comfyui.port = port;
        self
    }

    /// A variable more for ComfyUI, which gets none of this process's but harmless ones.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.comfyui.env.0.insert(name.into(), value.into());
        self
    }

    /// Longest wait for ComfyUI's boot; ten minutes without.
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.config.comfyui.boot_timeout = limit;
        self
    }

    /// Chromium, when it must not be looked for.
    pub fn chromium(mut self, executable: impl Into<PathBuf>) -> Self {
        self.config.browser.executable = Some(executable.into());
        self
    }

    /// Longest execution of one workflow; half an hour without.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.config.timeout = limit;
        self
    }

    /// The folder for what must be known after a crash.
    pub fn state_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.config.state_dir = folder.into();
        self
    }

    /// Where staged inputs are read; the local file system without.
    pub fn store(mut self, store: Arc<dyn ObjectStore>) -> Self {
        self.config.store = store;
        self
    }

    /// Gets each line that ComfyUI writes, from the task that reads them: must not block.
    pub fn on_boot_line(mut self, each: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_boot_line = Arc::new(each);
        self
    }

    /// Boots it, see [`ComfyConnector::create`].
    ///
    /// # Errors
    /// As there.
    pub async fn start(self) -> Result<ComfyConnector, ConnectorError> {
        ComfyConnector::create_watched(self.config, self.on_boot_line).await
    }
}
