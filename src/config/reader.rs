//! Values out of file, environment and flags, collecting every mistake instead of the first.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value};

use super::{
    Sources, legacy,
    settings::{self, Form, PREFIX, SETTINGS, Setting},
};

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key, variable or flag to change.
    pub at: String,
    /// What is wrong with it and how it should look.
    pub problem: String,
}

impl Mistake {
    pub(crate) fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

/// Everything that is wrong with the configuration, one line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    pub(crate) fn one(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Mistake { at, problem }) in self.0.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(f, "{line_break}configuration: {at}: {problem}")?;
        }
        Ok(())
    }
}

/// A raw value, which may be a secret, and where it came from, for messages.
struct Given {
    text: String,
    origin: String,
}

/// Hands out typed values by key and remembers what was wrong.
pub(super) struct Reader {
    given: BTreeMap<&'static str, Given>,
    mistakes: Vec<Mistake>,
}

impl Reader {
    pub(super) fn new(sources: &Sources) -> Self {
        let mut reader = Self { given: BTreeMap::new(), mistakes: Vec::new() };
        if let Some((name, text)) = &sources.file {
            reader.read_file(name, text);
        }
        for (variable, value) in &sources.environment {
            // `COMFY_WORKER_CONFIG` is read by the command line itself.
            if !variable.starts_with(PREFIX) || *variable == format!("{PREFIX}CONFIG") {
                continue;
            }
            match SETTINGS.iter().find(|setting| setting.variable() == *variable) {
                Some(setting) => reader.give(setting.key, value.clone(), format!("variable {variable}")),
                None if is_service_link(variable, value) => {}
                None => reader.unknown(variable, "variable", SETTINGS.iter().map(Setting::variable)),
            }
        }
        for (key, value) in &sources.flags {
            match settings::find(key) {
                Some(setting) => {
                    reader.give(setting.key, value.clone(), format!("flag --{}", setting.flag()));
                }
                None => reader.unknown(key, "flag", keys()),
            }
        }
        reader
    }

    fn give(&mut self, key: &'static str, text: String, origin: String) {
        self.given.insert(key, Given { text, origin });
    }

    fn unknown(&mut self, name: &str, origin: &str, known: impl Iterator<Item = String>) {
        let near = contract::text::nearest(name, known);
        self.mistakes.push(Mistake::new(name, format!("no such setting ({origin}){near}")));
    }

    fn read_file(&mut self, name: &str, text: &str) {
        let sections = match parse_file(name, text) {
            Ok(sections) => sections,
            Err(problem) => return self.mistakes.push(Mistake::new(name, problem)),
        };
        if legacy::is_legacy(&sections) {
            let (values, mistakes) = legacy::translate(&sections, name);
            self.mistakes.extend(mistakes);
            for (key, text, original) in values {
                self.give(key, text, format!("{original} in {name}"));
            }
            return;
        }
        for (section, keys_of_section) in sections {
            let Value::Object(values) = keys_of_section else {
                let problem = format!("must be a section, such as amqp with its key queue (in {name})");
                self.mistakes.push(Mistake::new(section, problem));
                continue;
            };
            for (key, value) in values.into_iter().filter(|(_, value)| !value.is_null()) {
                let full = format!("{section}.{key}");
                match settings::find(&full) {
                    Some(setting) => match as_text(&value, setting.form) {
                        Ok(text) => self.give(setting.key, text, name.to_owned()),
                        Err(problem) => {
                            let problem = format!("{problem} ({name}); for example: {}", setting.example);
                            self.mistakes.push(Mistake::new(full, problem));
                        }
                    },
                    None => self.unknown(&full, name, keys()),
                }
            }
        }
    }

    /// A setting that may be absent; empty means absent too.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.given.get(key).map(|given| given.text.trim()).filter(|text| !text.is_empty())?;
        parse(text).map_err(|problem| self.refuse(key, &problem)).ok()
    }

    /// A setting that always has a value. A mistaken one is remembered and stands as `T`'s default
    /// until [`Reader::finish`] reports it.
    pub(super) fn required<T: Default>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let setting = settings::find(key);
        let default = setting.map(|setting| setting.default).unwrap_or_default();
        let text = self.given.get(key).map_or(default, |given| given.text.trim());
        // An empty list is a list; an empty name or number would be a surprise later.
        let value = if text.is_empty() && setting.is_none_or(|setting| setting.form == Form::Plain) {
            Err("must not be empty".to_owned())
        } else {
            parse(text)
        };
        value.map_err(|problem| self.refuse(key, &problem)).unwrap_or_default()
    }

    /// Remembers that the value given for `key` cannot be used.
    fn refuse(&mut self, key: &'static str, problem: &str) {
        let origin = self.given.get(key).map_or("default", |given| given.origin.as_str());
        let example = settings::find(key).map(|setting| setting.example).unwrap_or_default();
        self.mistakes.push(Mistake::new(key, format!("{problem} ({origin}); for example: {example}")));
    }

    pub(super) fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }
}

fn keys() -> impl Iterator<Item = String> {
    SETTINGS.iter().map(|setting| setting.key.to_owned())
}

/// Kubernetes tells every pod of every service in its namespace: beside one that is called
/// `comfy-worker…` stand `COMFY_WORKER_SERVICE_HOST`, `COMFY_WORKER_PORT=tcp://…` and their like.
fn is_service_link(variable: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    variable.ends_with("_SERVICE_HOST")
        || variable.contains("_SERVICE_PORT")
        || (variable.ends_with("_PORT") && is_address)
        || ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| {
            let port = variable.rsplit_once(protocol).map(|(rest, _)| rest.rsplit_once("_PORT_"));
            port.flatten().is_some_and(|(_, port)| port.parse::<u16>().is_ok())
        })
}

/// A file's sections. What is wrong is told by its line: the text itself may hold a password.
fn parse_file(name: &str, text: &str) -> Result<Map<String, Value>, String> {
    let root = if name.ends_with(".toml") {
        toml::from_str::<Value>(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            format!("no TOML: {} at line {}", error.message(), before.matches('\n').count() + 1)
        })
    } else {
        serde_json::from_str(text).map_err(|error| format!("no JSON: {error} (TOML files end in .toml)"))
    };
    match root? {
        Value::Object(sections) => Ok(sections),
        _ => Err("must be a table of sections".to_owned()),
    }
}

/// A file's value as it would stand in a variable.
fn as_text(value: &Value, form: Form) -> Result<String, &'static str> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    let list = |items: &[Value]| items.iter().map(plain).collect::<Option<Vec<_>>>();
    let escaped = |items: Vec<String>| {
        items.iter().map(|item| item.replace('\\', r"\\").replace(',', r"\,")).collect::<Vec<_>>().join(",")
    };
    let (text, expected) = match (form, value) {
        (Form::Plain, value) => (plain(value), "must be a single value"),
        (Form::Words, Value::Array(items)) => (list(items).map(shell_words::join), "must hold words only"),
        (Form::List, Value::Array(items)) => (list(items).map(escaped), "must hold texts only"),
        (Form::Pairs, Value::Object(table)) => {
            let pair = |(name, value): (&String, &Value)| Some(format!("{name}={}", plain(value)?));
            (table.iter().map(pair).collect::<Option<Vec<_>>>().map(escaped), "must hold texts only")
        }
        (Form::Words | Form::List, value) => (plain(value), "must be a text or a list"),
        (Form::Pairs, value) => (plain(value), "must be a text or a table"),
    };
    text.ok_or(expected)
}
