//! The sections that the connector is told, read into its structures.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use connector::config::{
    BrowserConfig, ComfyUiConfig, ConnectorConfig, InstallConfig, OutputsConfig, StagingConfig,
};

use super::{Config, parse::*, reader::Reader};
use crate::store::Stores;

impl Config {
    /// What the connector is told. Its store is the one of `[store]`; nothing is contacted yet.
    pub async fn connector(&self) -> ConnectorConfig {
        let mut staging = StagingConfig::default();
        staging.allow.clone_from(&self.inputs.allow);
        staging.max_bytes = self.inputs.max_bytes;
        staging.model_cache_bytes = self.inputs.model_cache_bytes;
        staging.file_cache_bytes = self.inputs.file_cache_bytes;
        staging.replace_foreign = self.inputs.replace_foreign;
        staging.results.clone_from(&self.store.uri);
        let mut config = ConnectorConfig::default();
        config.comfyui = self.comfyui.clone();
        config.browser = self.browser.clone();
        config.staging = staging;
        config.timeout = self.job.timeout;
        config.max_nodes = self.job.max_nodes;
        config.state_dir.clone_from(&self.worker.state_dir);
        config.store = Arc::new(Stores::new(&self.store).await);
        config
    }
}

pub(super) fn comfyui(reader: &mut Reader) -> ComfyUiConfig {
    let workdir: PathBuf = reader.required("comfyui.workdir", path);
    let mut config = ComfyUiConfig::default();
    config.path = reader.optional("comfyui.path", path).unwrap_or_else(|| workdir.clone());
    config.command = reader.required("comfyui.command", |text| match shell_words::split(text) {
        Ok(words) if !words.is_empty() => Ok(words),
        Ok(_) => Err("must name a program".into()),
        Err(error) => Err(error.to_string()),
    });
    config.host = reader.required("comfyui.host", host);
    config.port = reader.required("comfyui.port", |text| match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port (1-65535)")),
        Ok(port) => Ok(port),
    });
    config.boot_timeout = reader.required("comfyui.boot_timeout", duration);
    config.max_restarts = reader.required("comfyui.max_restarts", at_least_one);
    config.max_jobs = reader.optional("comfyui.max_jobs", at_least_one);
    config.max_rss = reader.optional("comfyui.max_rss", bytes);
    config.test_workflow = reader.optional("comfyui.test_workflow", |text| Ok(workdir.join(text)));
    config.env = reader.required("comfyui.env", variables);
    config.workdir = workdir;
    config
}

/// `state_dir`: where a downloaded Chromium is kept.
pub(super) fn browser(reader: &mut Reader, state_dir: &Path) -> BrowserConfig {
    let source = reader.required("browser.download", |text| {
        let source = endpoint(text)?;
        // A program without a checksum is as good as the way that it comes by.
        let is_here = source.host_str().is_some_and(|host| {
            host == "localhost"
                || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
        });
        if source.scheme() != "https" && !is_here {
            return Err(format!("{text:?} is no https:// address: a program must not be changed on its way"));
        }
        Ok(Some(source))
    });
    let install = reader.required("browser.auto_install", boolean);
    let mut config = BrowserConfig::default();
    config.executable = reader.optional("browser.executable", existing_file);
    config.args =
        reader.required("browser.args", |text| shell_words::split(text).map_err(|error| error.to_string()));
    config.convert_timeout = reader.required("browser.convert_timeout", duration);
    config.install =
        source.filter(|_| install).map(|source| InstallConfig { source, folder: state_dir.join("chromium") });
    config
}

pub(super) fn outputs(reader: &mut Reader) -> OutputsConfig {
    OutputsConfig {
        allow: reader.required("outputs.allow", store_prefixes),
        max_files: reader.required("outputs.max_files", at_least_one),
        max_bytes: reader.required("outputs.max_bytes", bytes),
    }
}
