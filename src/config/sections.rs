//! The sections of the configuration, typed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use contract::ObjectUri;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use connector::config::default_state_dir;

use super::{parse::*, reader::Reader};

/// `[amqp]`
#[derive(Clone, Debug)]
pub struct AmqpConfig {
    /// `amqp://` or `amqps://`, checked; holds a password.
    pub url: SecretString,
    /// Certificates (PEM) of the authority behind an `amqps://` broker, beside the system's own.
    pub ca_file: Option<PathBuf>,
    /// The broker's management API; holds a password.
    pub management_url: Option<SecretString>,
    /// The queue of jobs; its dead letters go to `<queue>.dead`.
    pub queue: String,
    /// Declare what is missing, or only check.
    pub declare: bool,
    /// The quorum queue's `x-delivery-limit`.
    pub delivery_limit: u32,
    /// Whether the next job is taken while one runs.
    pub lookahead: Lookahead,
    /// Exchange for results, beside `reply_to`.
    pub results_exchange: Option<String>,
    /// Topic exchange for events.
    pub events_exchange: String,
    /// Fanout exchange for commands to all workers.
    pub control_exchange: String,
    /// Patterns (with `*`) of the queues that `reply_to` may name.
    pub reply_to_allow: Vec<String>,
}

/// Whether the next job is taken while one runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookahead {
    /// Near the end of the one that runs.
    #[default]
    Auto,
    /// Not before the one in hand is settled.
    Never,
    /// At once.
    Always,
}

impl AmqpConfig {
    /// Host, port and virtual host: what a log may show of the URL.
    #[must_use]
    pub fn address(&self) -> String {
        Url::parse(self.url.expose_secret()).map_or_else(
            |_| "?".to_owned(),
            |url| {
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or("?"), url.path())
            },
        )
    }
}

/// `[store]`
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where results go; commands that need no store leave it out.
    pub uri: Option<ObjectUri>,
    /// S3 endpoint.
    pub endpoint: Option<Url>,
    /// S3 region.
    pub region: Option<String>,
    /// Bucket in the path instead of the host name.
    pub path_style: bool,
}

/// `[inputs]`
#[derive(Clone, Debug)]
pub struct InputsConfig {
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
    /// Longest staging of one job.
    pub timeout: Duration,
    /// How long inputs that are away are tried, from worker to worker.
    pub retry_for: Duration,
}

/// `[job]`
#[derive(Clone, Debug)]
pub struct JobConfig {
    /// Longest execution when the job names none.
    pub timeout: Duration,
    /// Crashes until a job counts as poison.
    pub max_attempts: u32,
    /// Most nodes of a workflow or prompt.
    pub max_nodes: u32,
    /// Largest message.
    pub max_message_bytes: u64,
}

/// `[worker]`
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Name in results and events.
    pub id: String,
    /// Journal of ephemeral files.
    pub state_dir: PathBuf,
    /// Until the running job is interrupted in a drain.
    pub grace: Duration,
    /// Idle time after which it drains and ends; `None`: never.
    pub idle_exit: Option<Duration>,
    /// Jobs after which it drains and ends; `None`: no limit.
    pub max_jobs: Option<u32>,
    /// Bytes of memory, its children's too, above which it drains and ends; `None`: no limit.
    pub max_rss: Option<u64>,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// Where to listen; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// What opens the page's commands; `None`: nobody gives any.
    pub token: Option<SecretString>,
}

/// `[metrics]`
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Key of a job's metadata by which GPU seconds are counted.
    pub tenant_key: Option<String>,
}

/// `[traces]`
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// The collector; `None`: no traces.
    pub endpoint: Option<Url>,
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A level or a tracing filter.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

impl AmqpConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self {
            url: reader.required("amqp.url", amqp_url),
            ca_file: reader.optional("amqp.ca_file", certificate_file),
            management_url: reader.optional("amqp.management_url", management_url),
            queue: reader.required("amqp.queue", broker_name),
            declare: reader.required("amqp.declare", boolean),
            delivery_limit: reader.required("amqp.delivery_limit", at_least_one),
            lookahead: reader.required("amqp.lookahead", |text| match text {
                "auto" => Ok(Lookahead::Auto),
                "0" => Ok(Lookahead::Never),
                "1" => Ok(Lookahead::Always),
                other => Err(format!("{other:?} is none of auto, 0, 1")),
            }),
            results_exchange: reader.optional("amqp.results_exchange", broker_name),
            events_exchange: reader.required("amqp.events_exchange", broker_name),
            control_exchange: reader.required("amqp.control_exchange", broker_name),
            reply_to_allow: reader.required("amqp.reply_to_allow", |text| Ok(list(text))),
        }
    }
}

impl StoreConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let endpoint = reader.optional("store.endpoint", endpoint);
        Self {
            uri: reader
                .optional("store.uri", |text| text.parse::<ObjectUri>().map_err(|error| error.to_string())),
            region: reader.optional("store.region", |text| Ok(text.to_owned())),
            path_style: reader.optional("store.path_style", boolean).unwrap_or(endpoint.is_some()),
            endpoint,
        }
    }
}

impl InputsConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self {
            allow: reader.required("inputs.allow", input_prefixes),
            max_bytes: reader.required("inputs.max_bytes", bytes),
            model_cache_bytes: reader.optional("inputs.model_cache_bytes", bytes),
            file_cache_bytes: reader.required("inputs.file_cache_bytes", bytes),
            replace_foreign: reader.required("inputs.replace_foreign", boolean),
            timeout: reader.required("inputs.timeout", duration),
            retry_for: reader.required("inputs.retry_for", duration),
        }
    }
}

impl JobConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self {
            timeout: reader.required("job.timeout", duration),
            max_attempts: reader.required("job.max_attempts", at_least_one),
            max_nodes: reader.required("job.max_nodes", at_least_one),
            max_message_bytes: reader.required("job.max_message_bytes", bytes),
        }
    }
}

impl WorkerConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self {
            id: reader.optional("worker.id", worker_id).unwrap_or_else(default_worker_id),
            state_dir: reader
                .optional("worker.state_dir", path)
                .unwrap_or_else(|| default_state_dir("comfy-worker")),
            grace: reader.required("worker.grace", duration),
            idle_exit: reader.optional("worker.idle_exit", duration),
            max_jobs: reader.optional("worker.max_jobs", at_least_one),
            max_rss: reader.optional("worker.max_rss", bytes),
        }
    }
}

const SHORTEST_TOKEN: usize = 16;

impl AdminConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        let listen = reader.required("admin.listen", |text| match text {
            "off" => Ok(None),
            address => address.parse().map(Some).map_err(|_| format!("{address:?} is no ADDRESS:PORT")),
        });
        let token = reader.optional("admin.token", |text| {
            if text.chars().count() < SHORTEST_TOKEN {
                return Err(format!(
                    "it has less than {SHORTEST_TOKEN} characters and could be guessed; make one by `openssl rand -hex 16`"
                ));
            }
            Ok(SecretString::from(text))
        });
        Self { listen, token }
    }
}

impl MetricsConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self { tenant_key: reader.optional("metrics.tenant_key", |text| Ok(text.to_owned())) }
    }
}

impl TracesConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self { endpoint: reader.optional("traces.endpoint", collector) }
    }
}

impl LogConfig {
    pub(super) fn read(reader: &mut Reader) -> Self {
        Self {
            level: reader.optional("log.level", log_level).unwrap_or_default(),
            format: reader.required("log.format", |text| match text {
                "auto" => Ok(LogFormat::Auto),
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                other => Err(format!("{other:?} is none of auto, text, json")),
            }),
        }
    }
}

fn default_worker_id() -> String {
    let host = sysinfo::System::host_name().unwrap_or_else(|_| "worker".to_owned());
    let host: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '-' })
        .take(63)
        .collect();
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{host}-{}", random.get(..8).unwrap_or_default())
}
