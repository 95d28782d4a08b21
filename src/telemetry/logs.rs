//! Logs: to standard error, as text or JSON, a line each.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal, Write},
    panic,
};

use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{self, MakeWriter, format::JsonFields},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{
    line::{Lines, is_ours},
    places, secrets,
};
use crate::config::{Config, LogFormat};

/// What dependencies say that nobody can act on, and whole requests with what signs them. lapin calls the
/// end of a connection that we close an error; what matters of a connection the session tells itself.
const QUIET: &[&str] = &[
    "chromiumoxide=error,chromiumoxide::handler=off,tokio_tungstenite=warn,tungstenite=warn",
    "lapin=off",
    "aws_config=error,aws_credential_types=warn,aws_runtime=warn,aws_sdk_s3=warn,aws_sdk_sts=warn,aws_sigv4=warn",
    "aws_smithy_checksums=warn,aws_smithy_http_client=warn,aws_smithy_runtime=warn",
    "h2=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn",
];

/// Sends logs to standard error; lines of a terminal display are put aside for each. The secrets of
/// `config` and of the environment are in none of them.
pub fn init(config: &Config) {
    secrets::keep_those_of(config);
    places::keep_those_of(config);
    let filter = EnvFilter::try_new(format!(
        "{},{}{}",
        QUIET.join(","),
        of_connector(&config.log.level),
        config.log.level
    ))
    .unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stderr().is_terminal();
    let json = match config.log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let layer = fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(Lines { json, colors: terminal && !json })
        .with_writer(AsideOfBars)
        .with_filter(filter);
    // A second call, by a program that embeds the library, keeps the first one's choice.
    if tracing_subscriber::registry().with(layer).try_init().is_ok() {
        panic::set_hook(Box::new(tell_panic));
    }
}

/// A panic is a line like the others, but for who silences even errors.
fn tell_panic(panic: &panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload_as_str().unwrap_or("no text");
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(place, backtrace, "panicked: {what}");
    } else {
        let _ = AsideOfBars.write_all(format!("comfy-worker panicked at {place}: {what}\n").as_bytes());
    }
}

/// The progress bars of this process: a log line must not be drawn into them.
pub(crate) static BARS: std::sync::LazyLock<indicatif::MultiProgress> =
    std::sync::LazyLock::new(indicatif::MultiProgress::new);

struct AsideOfBars;

impl<'a> MakeWriter<'a> for AsideOfBars {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

/// Gets whole lines.
impl Write for AsideOfBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = secrets::redact(&line);
        BARS.suspend(|| io::stderr().lock().write_all(line.as_bytes())).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What is said of the worker's own modules is meant for the connector's, too: they are a crate of their own.
fn of_connector(level: &str) -> String {
    let ours = level.split(',').filter(|directive| is_ours(directive.split('=').next().unwrap_or_default()));
    ours.map(|directive| directive.replacen("comfy_worker", "comfy_connector", 1) + ",").collect()
}
