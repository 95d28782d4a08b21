//! Values out of file, environment and flags, collecting every mistake instead of the first.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::{
    Sources, legacy,
    settings::{self, PREFIX, SETTINGS},
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

/// A raw value and where it came from, for messages.
#[derive(Clone, Debug)]
struct Given {
    text: String,
    origin: String,
}

/// Hands out typed values by key and remembers what was wrong.
#[derive(Debug)]
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
            let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
            match SETTINGS.iter().find(|setting| setting.variable() == *variable) {
                Some(setting) => reader.give(setting.key, value.clone(), format!("variable {variable}")),
                // Read by the command line itself.
                None if rest == "CONFIG" => {}
                None => reader.unknown(variable, SETTINGS.iter().map(settings::Setting::variable)),
            }
        }
        for (key, value) in &sources.flags {
            match settings::find(key) {
                Some(setting) => {
                    reader.give(setting.key, value.clone(), format!("flag --{}", setting.flag()))
                }
                None => reader.unknown(key, SETTINGS.iter().map(|setting| setting.key.to_owned())),
            }
        }
        reader
    }

    fn give(&mut self, key: &'static str, text: String, origin: String) {
        self.given.insert(key, Given { text, origin });
    }

    fn unknown(&mut self, name: &str, known: impl Iterator<Item = String>) {
        let near = crate::text::nearest(name, known);
        self.mistakes.push(Mistake::new(name, format!("no such setting{near}")));
    }

    fn read_file(&mut self, name: &str, text: &str) {
        let root = if name.ends_with(".toml") {
            toml::from_str::<Value>(text).map_err(|error| error.message().to_owned())
        } else {
            serde_json::from_str::<Value>(text).map_err(|error| error.to_string())
        };
        let sections = match root {
            Ok(Value::Object(sections)) => sections,
            Ok(_) => return self.mistakes.push(Mistake::new(name, "must be a table of sections")),
            Err(error) => return self.mistakes.push(Mistake::new(name, format!("cannot be read: {error}"))),
        };
        if legacy::is_legacy(&sections) {
            let (values, mistakes) = legacy::translate(&sections);
            self.mistakes.extend(mistakes);
            for (key, text, original) in values {
                self.give(key, text, format!("{original} in {name}"));
            }
            return;
        }
        for (section, keys) in sections {
            let Value::Object(keys) = keys else {
                self.mistakes
                    .push(Mistake::new(section, format!("must be a section, as in [comfyui], in {name}")));
                continue;
            };
            for (key, value) in keys {
                let full = format!("{section}.{key}");
                match (settings::find(&full), as_text(&value)) {
                    (Some(setting), Some(text)) => self.give(setting.key, text, name.to_owned()),
                    (Some(setting), None) => self.mistakes.push(Mistake::new(
                        full,
                        format!("must be a plain value, e.g. {} (in {name})", setting.example),
                    )),
                    (None, _) => self.unknown(&full, SETTINGS.iter().map(|setting| setting.key.to_owned())),
                }
            }
        }
    }

    /// The text of a setting, `None` when it is empty or not given and has no default.
    fn text(&self, key: &'static str) -> Option<String> {
        let default = settings::find(key).map(|setting| setting.default).unwrap_or_default();
        let text = self.given.get(key).map_or(default, |given| given.text.trim());
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A setting that may be absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(key)?;
        parse(&text).map_err(|problem| self.refuse(key, &problem)).ok()
    }

    /// A setting that always has a value. A mistaken one is remembered and stands as the default
    /// until [`Reader::finish`] reports it.
    pub(super) fn required<T: Default>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        debug_assert!(settings::find(key).is_some(), "{key} is not in SETTINGS");
        self.optional(key, parse).unwrap_or_default()
    }

    /// Remembers that the value given for `key` cannot be used.
    pub(super) fn refuse(&mut self, key: &'static str, problem: &str) {
        let origin = self.given.get(key).map_or_else(|| "default".to_owned(), |given| given.origin.clone());
        let example = settings::find(key).map(|setting| setting.example).unwrap_or_default();
        self.mistakes.push(Mistake::new(key, format!("{problem} ({origin}); for example: {example}")));
    }

    pub(super) fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() { Ok(()) } else { Err(Mistakes(self.mistakes)) }
    }
}

/// Scalars as they would stand in a variable; lists joined by commas; tables as `key=value` lists.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null => Some(String::new()),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(as_text).collect();
            items.map(|items| items.join(","))
        }
        Value::Object(map) => {
            let pairs: Option<Vec<String>> =
                map.iter().map(|(key, value)| Some(format!("{key}={}", as_text(value)?))).collect();
            pairs.map(|pairs| pairs.join(","))
        }
    }
}
