//! `--input NODE.NAME=VALUE`: files, addresses and values interchangeable.

use std::{collections::BTreeSet, path::PathBuf, str::FromStr};

use contract::{
    ObjectUri,
    request::{NodeInput, TIMEOUT_SECONDS, has_file_scheme},
};
use serde_json::{Value, json};

use super::Failed;

/// One `--input`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct InputArg {
    pub(super) address: NodeInput,
    pub(super) value: ArgValue,
}

/// What it is set to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ArgValue {
    /// A file on this machine.
    File(PathBuf),
    /// Standard input.
    Stdin,
    /// A value, or an address that the job understands as it is.
    Value(Value),
}

impl FromStr for InputArg {
    type Err = String;

    /// `10.image=cat.png` an existing file, `10.image=s3://…` an address, `3.seed=7` a number,
    /// `6.text=a fox` a text, `10.image=-` standard input; `6.text:="cat.png"` JSON, never a file.
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, value) =
            text.split_once('=').ok_or("must be NODE.NAME=VALUE, for example 10.image=cat.png")?;
        if let Some(address) = address.strip_suffix(':') {
            let literal: Value =
                serde_json::from_str(value).map_err(|error| format!("after := stands JSON: {error}"))?;
            return Ok(Self { address: address.parse()?, value: ArgValue::Value(json!({"value": literal})) });
        }
        let address = address.parse()?;
        let value = if value == "-" {
            ArgValue::Stdin
        } else if value.starts_with("file://") {
            match value.parse() {
                Ok(ObjectUri::File(path)) => ArgValue::File(path),
                Ok(uri) => ArgValue::Value(uri.to_string().into()),
                Err(error) => return Err(error.to_string()),
            }
        } else if has_file_scheme(value) {
            ArgValue::Value(value.into())
        } else if PathBuf::from(value).is_file() {
            ArgValue::File(value.into())
        } else {
            ArgValue::Value(scalar(value))
        };
        Ok(Self { address, value })
    }
}

/// Standard input can be read once, and an input set once.
pub(super) fn check(workflow: &str, inputs: &[InputArg]) -> Result<(), Failed> {
    let piped = inputs.iter().filter(|input| input.value == ArgValue::Stdin).count();
    if piped + usize::from(workflow == "-") > 1 {
        return Err(Failed::Usage("- (standard input) can stand for one thing only".to_owned()));
    }
    let mut seen = BTreeSet::new();
    match inputs.iter().find(|input| !seen.insert(&input.address)) {
        Some(twice) => Err(Failed::Usage(format!("--input {}: given twice", twice.address))),
        None => Ok(()),
    }
}

/// A job's `timeout_seconds`.
pub(super) fn timeout_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| TIMEOUT_SECONDS.contains(seconds));
    seconds.ok_or_else(|| "must be seconds, more than none and at most a week, for example 900".to_owned())
}

/// Numbers and booleans are what they look like; everything else is text.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::{ArgValue, InputArg, check, timeout_seconds};

    fn value(text: &str) -> Result<ArgValue, String> {
        text.parse::<InputArg>().map(|arg| arg.value)
    }

    #[test]
    fn values_are_what_they_look_like() {
        assert_eq!(value("3.seed=7"), Ok(ArgValue::Value(json!(7))));
        assert_eq!(value("3.seed=18446744073709551615"), Ok(ArgValue::Value(json!(u64::MAX))));
        assert_eq!(value("6.text=a red fox = 1"), Ok(ArgValue::Value(json!("a red fox = 1"))));
        assert_eq!(value("10.image=s3://in/cat.png"), Ok(ArgValue::Value(json!("s3://in/cat.png"))));
        assert_eq!(value("10.image=-"), Ok(ArgValue::Stdin));
        assert_eq!(value("10.image=Cargo.toml"), Ok(ArgValue::File("Cargo.toml".into())));
        assert_eq!(value("6.text:=\"Cargo.toml\""), Ok(ArgValue::Value(json!({"value": "Cargo.toml"}))));
    }

    #[test]
    fn addresses_of_files_are_files() {
        assert_eq!(value("10.image=file:///a%20b/c.png"), Ok(ArgValue::File("/a b/c.png".into())));
        assert_eq!(value("10.image=data:,x"), Ok(ArgValue::Value(json!("data:,x"))));
        assert_eq!(value("6.text=https://host/x"), Ok(ArgValue::Value(json!("https://host/x"))));
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["10.image", "image=x", ".image=x", "10.=x", "3.seed:=x", "10.image=file://host/x"] {
            assert!(value(text).is_err(), "{text}");
        }
    }

    #[test]
    fn standard_input_is_read_once_and_inputs_are_set_once() {
        let inputs =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<InputArg>>();
        assert!(check("w.json", &inputs(&["1.a=-", "2.a=x"])).is_ok());
        assert!(check("-", &inputs(&["1.a=x"])).is_ok());
        for (workflow, texts) in
            [("-", ["1.a=-", "2.a=x"]), ("w.json", ["1.a=-", "2.a=-"]), ("w.json", ["1.a=1", "1.a=2"])]
        {
            assert!(check(workflow, &inputs(&texts)).is_err(), "{workflow} {texts:?}");
        }
    }

    #[test]
    fn timeouts_are_positive_and_end_one_day() {
        assert_eq!((timeout_seconds("900"), timeout_seconds("0.5")), (Ok(900.0), Ok(0.5)));
        for text in ["0", "-1", "nan", "inf", "1e999", "604801", "15m", ""] {
            assert!(timeout_seconds(text).is_err(), "{text}");
        }
    }
}
