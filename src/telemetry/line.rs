//! One event as one line: flat JSON, or `TIME LEVEL message key=value …`.
//!
//! Invariant: whatever a value holds, an event is one line, says who speaks, and is of bounded length.

use std::fmt::{self, Write as _};

use contract::text::is_treacherous;
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// What a value may be long, in bytes; more is cut.
const LONGEST: usize = 16 << 10;
/// The targets of this program's own events and spans, which need no name.
const OURS: [&str; 2] = ["comfy_worker", "comfy_connector"];
/// What every JSON line has; a field cannot pass for one of them.
const RESERVED: [&str; 4] = ["timestamp", "level", "message", "target"];

/// The fields of a job, which come before all others, in this order.
const FIRST: [&str; 4] = ["job", "attempt", "stage", "trace_id"];

/// How lines are laid out.
pub(super) struct Lines {
    pub(super) json: bool,
    pub(super) colors: bool,
}

impl<S> FormatEvent<S, JsonFields> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut of_spans = Map::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            // A dependency's are its own business.
            if !is_ours(span.metadata().target()) {
                continue;
            }
            if let Some(formatted) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Ok(Value::Object(of_span)) = serde_json::from_str(formatted)
            {
                of_spans.extend(of_span);
            }
        }
        let mut fields = Map::new();
        for name in FIRST {
            fields.extend(of_spans.remove_entry(name));
        }
        fields.extend(of_spans);
        let mut told = LogLine { message: String::new(), target: None, fields };
        event.record(&mut told);
        let LogLine { message, target, fields } = told;
        let target = target.as_deref().unwrap_or_else(|| event.metadata().target());
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = *event.metadata().level();
        let line = match self.json {
            true => json_line(&time, level, target, message, fields),
            false => text_line(&time, level, target, &message, &fields, self.colors),
        };
        writeln!(writer, "{line}")
    }
}

pub(super) fn is_ours(target: &str) -> bool {
    let rest = OURS.iter().find_map(|ours| target.strip_prefix(ours));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn json_line(time: &str, level: Level, target: &str, message: String, fields: Map<String, Value>) -> String {
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), time.into());
    line.insert("level".to_owned(), level.as_str().into());
    line.insert("message".to_owned(), message.into());
    line.insert("target".to_owned(), target.into());
    line.extend(fields.into_iter().filter(|(name, _)| !RESERVED.contains(&name.as_str())));
    let line = Value::Object(line).to_string();
    if !line.contains(is_treacherous) {
        return line;
    }
    // JSON lets them stand: a terminal that the line is shown on does not.
    let mut shown = String::with_capacity(line.len());
    for c in line.chars() {
        if is_treacherous(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

fn text_line(
    time: &str,
    level: Level,
    target: &str,
    message: &str,
    fields: &Map<String, Value>,
    colors: bool,
) -> String {
    let mut line = String::new();
    if colors {
        let color = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        let _ = write!(line, "\x1b[2m{time}\x1b[0m \x1b[{color}m{level:>5}\x1b[0m");
    } else {
        let _ = write!(line, "{time} {level:>5}");
    }
    if !is_ours(target) {
        let _ = write!(line, " {target}:");
    }
    if !message.is_empty() {
        line.push(' ');
        push_escaped(&mut line, message);
    }
    for (name, value) in fields {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) if is_word(text) => line.push_str(text),
            other => push_escaped(&mut line, &other.to_string()),
        }
    }
    line
}

/// Whether it needs no quotes to be told from the fields about it.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.contains(|c: char| c.is_whitespace() || c == '"' || c == '=' || is_treacherous(c))
}

fn push_escaped(line: &mut String, text: &str) {
    for c in text.chars() {
        if is_treacherous(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// What an event says.
struct LogLine {
    message: String,
    /// Of an event by way of the crate `log`, whose own target is always `log`.
    target: Option<String>,
    fields: Map<String, Value>,
}

impl LogLine {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            ("log.target", Value::String(target)) => self.target = Some(target),
            (name, _) if name.starts_with("log.") => {}
            (name, value) => {
                self.fields.insert(name.strip_prefix("r#").unwrap_or(name).to_owned(), value);
            }
        }
    }
}

impl Visit for LogLine {
    fn record_str(&mut self, field: &Field, value: &str) {
        let mut text = Bounded::default();
        let _ = text.write_str(value);
        self.put(field, text.0.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded::default();
        let _ = write!(text, "{value:?}");
        self.put(field, text.0.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// A text up to its limit. What comes after that is not even formatted.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = LONGEST.saturating_sub(self.0.len());
        if text.len() <= left {
            self.0.push_str(text);
            return Ok(());
        }
        let end = (0..=left).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        self.0.push_str(&text[..end]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
