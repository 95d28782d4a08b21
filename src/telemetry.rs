//! Logs: to standard error, as text or JSON.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::config::{LogConfig, LogFormat};

/// What dependencies say that nobody can act on. lapin calls the end of a connection that we close an
/// error; what matters of a connection the session tells itself.
const QUIET: &str = "chromiumoxide=error,chromiumoxide::handler=off,lapin=off,aws_config=error,hyper=warn,h2=warn,rustls=warn";

/// Sends logs to standard error; lines of a terminal display are put aside for each.
pub fn init(config: &LogConfig) {
    let filter =
        EnvFilter::try_new(format!("{QUIET},{}", config.level)).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match config.format {
        LogFormat::Auto => !io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(AsideOfBars);
    // A second call, by a program that embeds the library, keeps the first one's choice.
    let _ = if json {
        subscriber.json().flatten_event(true).try_init()
    } else {
        subscriber.with_ansi(io::stderr().is_terminal()).with_target(false).try_init()
    };
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

impl Write for AsideOfBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
