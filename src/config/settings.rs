//! Every setting: key, default, example and what it means. The table in docs/configuration.md, the environment
//! variables and the command line's flags are made from this list.

/// One setting of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `section.key`, as written in the file.
    pub key: &'static str,
    /// Its value when nobody gives one; empty means "none".
    pub default: &'static str,
    /// A value that shows the form.
    pub example: &'static str,
    /// What it does, with units.
    pub help: &'static str,
    /// What kind of value it takes.
    pub form: Form,
}

/// How a value is written in a variable or flag, and what a file may hold instead of such a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One value.
    Plain,
    /// Words as in a shell; in a file also a list.
    Words,
    /// Items divided by commas (`\,` is no divider); in a file also a list.
    List,
    /// `NAME=VALUE` items divided by commas; in a file also a table.
    Pairs,
}

impl Setting {
    const fn holding(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// The environment variable of this setting: `COMFY_WORKER_<SECTION>_<KEY>`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The long flag of this setting, without its dashes: `amqp-url`.
    #[must_use]
    pub fn flag(&self) -> String {
        self.key.replace(['.', '_'], "-")
    }
}

/// What every environment variable of ours starts with.
pub const PREFIX: &str = "COMFY_WORKER_";

/// The setting of that key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const fn setting(
    key: &'static str,
    default: &'static str,
    example: &'static str,
    help: &'static str,
) -> Setting {
    Setting { key, default, example, help, form: Form::Plain }
}

/// All settings, in the order of that table.
pub const SETTINGS: &[Setting] = &[
    setting(
        "comfyui.command",
        "python3 main.py",
        "python3 main.py --cpu",
        "how ComfyUI is started, split as a shell would; `--port N` is appended",
    ).holding(Form::Words),
    setting("comfyui.workdir", "./", "/opt/ComfyUI", "the folder that the command runs in"),
    setting(
        "comfyui.path",
        "",
        "/opt/ComfyUI",
        "ComfyUI's folder, with `input`, `output`, `temp` and `models`; default: the workdir",
    ),
    setting("comfyui.host", "127.0.0.1", "127.0.0.1", "the address at which the worker reaches ComfyUI"),
    setting("comfyui.port", "8188", "8188", "the first port to try; a port in use moves on to the next"),
    setting(
        "comfyui.boot_timeout",
        "15m",
        "10m",
        "longest wait for ComfyUI's boot; after it no other try begins, and the worker ends (exit code 3)",
    ),
    setting(
        "comfyui.max_restarts",
        "3",
        "3",
        "how often within 10 minutes a ComfyUI that was lost while it ran no job is started again; then the worker ends (exit code 3). Jobs that crash it, cancels and recycling do not count",
    ),
    setting(
        "comfyui.max_jobs",
        "",
        "500",
        "jobs after which ComfyUI is started again, between two jobs; default: never",
    ),
    setting(
        "comfyui.max_rss",
        "",
        "48GiB",
        "main memory of ComfyUI's processes above which it is started again, between two jobs; default: never",
    ),
    setting(
        "comfyui.test_workflow",
        "",
        "test_server.json",
        "workflow that must convert and run before the worker is ready; default: a built-in one",
    ),
    setting(
        "comfyui.env",
        "",
        "HF_HUB_OFFLINE=1,CUDA_VISIBLE_DEVICES=0\\,1",
        "variables for ComfyUI beside the harmless ones it inherits (a comma in a value: `\\,`); the worker's other variables never pass",
    ).holding(Form::Pairs),
    setting(
        "browser.executable",
        "",
        "/usr/bin/chromium",
        "Chromium; default: the variable `CHROME`, then `PATH`, then Playwright's folder",
    ),
    setting("browser.args", "", "--proxy-server=direct://", "more flags for Chromium").holding(Form::Words),
    setting(
        "browser.auto_install",
        "false",
        "true",
        "where no Chromium is found, download one into `chromium` in worker.state_dir, once",
    ),
    setting(
        "browser.download",
        "https://googlechromelabs.github.io/chrome-for-testing/last-known-good-versions-with-downloads.json",
        "https://mirror.example/chrome-headless-shell-linux64.zip",
        "what is downloaded: a zip archive, or an index like that of Chrome for Testing (its stable headless shell, x86-64 only)",
    ),
    setting("browser.convert_timeout", "30s", "30s", "longest conversion of one workflow"),
    setting("amqp.url", "amqp://127.0.0.1:5672/%2f", "amqps://user:password@broker/vhost", "the broker"),
    setting(
        "amqp.ca_file",
        "",
        "/etc/ssl/broker-ca.pem",
        "certificates (PEM) of the authority behind an `amqps://` broker, trusted beside the system's",
    ),
    setting(
        "amqp.management_url",
        "",
        "http://monitor:password@broker:15672",
        "the broker's management API: `check` and `serve` ask it whether the queue's consumer timeout is longer than job.timeout",
    ),
    setting("amqp.queue", "comfy.jobs", "comfy.jobs", "the queue of jobs"),
    setting("amqp.declare", "true", "false", "declare queue and exchanges; `false` only checks them"),
    setting(
        "amqp.delivery_limit",
        "20",
        "20",
        "deliveries after which the broker dead-letters a job (backstop; see job.max_attempts)",
    ),
    setting(
        "amqp.lookahead",
        "auto",
        "auto",
        "whether the next job is taken, staged and posted while one runs: `auto` near the end of that one, `0` not before it is settled, `1` at once",
    ),
    setting(
        "amqp.results_exchange",
        "",
        "comfy.results",
        "exchange that gets every result, with the job id as routing key",
    ),
    setting("amqp.events_exchange", "comfy.events", "comfy.events", "topic exchange for progress events"),
    setting(
        "amqp.control_exchange",
        "comfy.control",
        "comfy.control",
        "fanout exchange for commands to all workers: `{\"cancel\": \"<job id>\"}`, `{\"drain\": \"<worker id>\"}` or `true` for all",
    ),
    setting(
        "amqp.reply_to_allow",
        "*",
        "replies.*,amq.rabbitmq.reply-to*",
        "patterns of queue names that a job may name in reply_to; never the worker's own queues",
    ).holding(Form::List),
    setting(
        "store.uri",
        "",
        "s3://bucket/prefix",
        "where results go: `s3://bucket/prefix` or `file:///folder`",
    ),
    setting("store.endpoint", "", "http://127.0.0.1:9000", "S3 endpoint; default: the AWS chain's"),
    setting("store.region", "", "eu-central-1", "S3 region; default: the AWS chain's, else us-east-1"),
    setting(
        "store.path_style",
        "",
        "true",
        "bucket in the path instead of the host name; default: true when store.endpoint is set",
    ),
    setting(
        "inputs.allow",
        "s3://",
        "s3://inputs/,https://host/models/",
        "URI prefixes that inputs may come from; other jobs' folders under store.uri only where a prefix lies there; default: every bucket that the credentials can read, and no web host",
    ).holding(Form::List),
    setting("inputs.max_bytes", "2GiB", "512MiB", "largest single input, and all inputs of one job together, with the models that it has to fetch"),
    setting(
        "inputs.model_cache_bytes",
        "",
        "200GiB",
        "models that jobs brought and the worker keeps; more of them, and the least recently used go; default: no limit",
    ),
    setting(
        "inputs.file_cache_bytes",
        "10GiB",
        "100GiB",
        "other files that jobs left in `input`, `output` and `temp` for good, in each; more of them, and the least recently used go",
    ),
    setting(
        "inputs.replace_foreign",
        "false",
        "true",
        "whether `files` with `overwrite` may replace what no job has brought, such as your own models and inputs",
    ),
    setting(
        "inputs.timeout",
        "30m",
        "5m",
        "longest staging of a job's inputs; inputs that take longer count as away",
    ),
    setting(
        "inputs.retry_for",
        "5m",
        "30m",
        "how long inputs that are away are tried, by one worker after another with pauses; then the job is answered `input_unavailable`",
    ),
    setting("outputs.allow", "", "s3://renders/", "URI prefixes for `output.uri` beside store.uri itself").holding(Form::List),
    setting("outputs.max_files", "10000", "100", "most files of one job; more make it fail"),
    setting("outputs.max_bytes", "64GiB", "4GiB", "largest sum of one job's files; more make it fail"),
    setting("job.timeout", "1h", "15m", "longest execution of a job that names no timeout_seconds"),
    setting("job.max_attempts", "3", "3", "crashes after which a job is answered `poison`"),
    setting("job.max_nodes", "10000", "1000", "most nodes of a workflow, and of its prompt"),
    setting("job.max_message_bytes", "16MiB", "4MiB", "largest job message"),
    setting(
        "worker.id",
        "",
        "gpu-7",
        "this worker's name in results and events; default: host name and a random part",
    ),
    setting(
        "worker.state_dir",
        "",
        "/var/lib/comfy-worker",
        "journal of ephemeral files, downloaded Chromium; default: a folder `comfy-worker` in `$XDG_STATE_HOME` or `~/.local/state`",
    ),
    setting(
        "worker.grace",
        "25s",
        "110s",
        "what a drain may take until the running job is interrupted and handed back",
    ),
    setting(
        "worker.idle_exit",
        "",
        "10m",
        "so long without a job, and the worker drains and ends (exit code 0); default: never",
    ),
    setting(
        "worker.max_jobs",
        "",
        "1",
        "jobs after which the worker drains and ends (exit code 0); one that goes back to the queue does not count; default: no limit",
    ),
    setting(
        "worker.max_rss",
        "",
        "100GiB",
        "main memory of worker, ComfyUI and Chromium together above which the worker drains after its job and ends (exit code 0); default: no limit",
    ),
    setting(
        "admin.listen",
        "127.0.0.1:9188",
        "0.0.0.0:9188",
        "address of the status page, /livez, /readyz, /metrics and /status; `off` for none",
    ),
    setting(
        "admin.token",
        "",
        "a-long-random-text",
        "16 characters or more; who gives it may cancel jobs and drain the worker on the status page; default: the page is read-only",
    ),
    setting(
        "metrics.tenant_key",
        "",
        "tenant",
        "key of a job's `metadata` by whose text GPU seconds are counted; at most 100 texts are told apart; default: all are one",
    ),
    setting(
        "traces.endpoint",
        "",
        "http://collector:4318",
        "OpenTelemetry collector that gets a trace of each job (OTLP over HTTP); the usual OTEL_* variables apply too; default: no traces",
    ),
    setting(
        "log.level",
        "",
        "comfy_worker=debug,warn",
        "what is logged: a level, or a tracing filter; default: info in `serve`, else warn",
    ),
    setting(
        "log.format",
        "auto",
        "json",
        "`text`, `json`, or `auto`: json in `serve` without a terminal, else text",
    ),
];
