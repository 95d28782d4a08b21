//! Configuration: defaults < file < environment < flags, every mistake reported at once.
//!
//! [`settings::SETTINGS`] is the one list of keys; the environment variables, the command line's
//! flags and docs/configuration.md follow from it.

mod connector;
mod legacy;
mod parse;
mod reader;
mod sections;
pub mod settings;

use std::{collections::BTreeMap, path::Path};

pub use ::connector::config::{BrowserConfig, ComfyUiConfig, InstallConfig, OutputsConfig, Variables};
pub use reader::{Mistake, Mistakes};
pub use sections::{
    AdminConfig, AmqpConfig, InputsConfig, JobConfig, LogConfig, LogFormat, Lookahead, MetricsConfig,
    StoreConfig, TracesConfig, WorkerConfig,
};

use reader::Reader;

/// The whole configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// How ComfyUI is started and reached.
    pub comfyui: ComfyUiConfig,
    /// Which Chromium converts workflows, and for how long at most.
    pub browser: BrowserConfig,
    /// Broker, queue and exchanges.
    pub amqp: AmqpConfig,
    /// Where results go.
    pub store: StoreConfig,
    /// Where inputs may come from.
    pub inputs: InputsConfig,
    /// Where outputs may go beside the store.
    pub outputs: OutputsConfig,
    /// Limits of one job.
    pub job: JobConfig,
    /// This worker: identity, state, grace.
    pub worker: WorkerConfig,
    /// The health endpoint and the status page.
    pub admin: AdminConfig,
    /// How jobs are counted.
    pub metrics: MetricsConfig,
    /// Where traces go.
    pub traces: TracesConfig,
    /// Logs.
    pub log: LogConfig,
}

/// Where [`Config::load`] takes its values from. No `Debug`: the environment holds credentials.
#[derive(Clone, Default)]
pub struct Sources {
    /// Content of the configuration file and its name for messages.
    pub file: Option<(String, String)>,
    /// Environment variables (all of them; those of other programs are passed over).
    pub environment: BTreeMap<String, String>,
    /// `(key, value)` of the command line, such as `("amqp.queue", "jobs")`.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The process's environment, `file` and `flags`.
    ///
    /// # Errors
    /// When `file` cannot be read.
    pub fn of_process(file: Option<&Path>, flags: Vec<(String, String)>) -> Result<Self, Mistakes> {
        let Self { file, .. } = file.map(Self::of_file).transpose()?.unwrap_or_default();
        let environment = std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        Ok(Self { file, environment, flags })
    }

    /// `file` alone.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of_file(file: &Path) -> Result<Self, Mistakes> {
        let name = file.display().to_string();
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Self { file: Some((name, text)), ..Self::default() }),
            Err(error) => {
                Err(Mistakes::one(Mistake::new("--config", format!("cannot read {name}: {error}"))))
            }
        }
    }
}

impl Config {
    /// A configuration file alone, TOML or JSON, the Python ComfyConnector's too; the environment is not read.
    ///
    /// ```no_run
    /// let config = comfy_worker::Config::from_file("comfy_serverless.json".as_ref())?;
    /// println!("{} in {}", config.comfyui.command.join(" "), config.comfyui.workdir.display());
    /// # Ok::<_, comfy_worker::config::Mistakes>(())
    /// ```
    ///
    /// # Errors
    /// When it cannot be read, and as [`Config::load`].
    pub fn from_file(file: &Path) -> Result<Self, Mistakes> {
        Self::load(&Sources::of_file(file)?)
    }

    /// Reads and checks every value.
    ///
    /// # Errors
    /// *All* mistakes: unknown keys, values that do not parse, values out of range, each with its
    /// key, where it came from, and an example.
    pub fn load(sources: &Sources) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(sources);
        let worker = WorkerConfig::read(&mut reader);
        let config = Self {
            comfyui: connector::comfyui(&mut reader),
            browser: connector::browser(&mut reader, &worker.state_dir),
            amqp: AmqpConfig::read(&mut reader),
            store: StoreConfig::read(&mut reader),
            inputs: InputsConfig::read(&mut reader),
            outputs: connector::outputs(&mut reader),
            job: JobConfig::read(&mut reader),
            worker,
            admin: AdminConfig::read(&mut reader),
            metrics: MetricsConfig::read(&mut reader),
            traces: TracesConfig::read(&mut reader),
            log: LogConfig::read(&mut reader),
        };
        reader.finish().map(|()| config)
    }
}

#[cfg(test)]
mod tests;
