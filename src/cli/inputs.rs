//! `--input NODE.NAME=VALUE`: files, addresses and values interchangeable.

use std::{path::PathBuf, str::FromStr};

use serde_json::{Value, json};

use crate::job::request::{NodeInput, has_file_scheme};

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
        } else if let Some(path) = value.strip_prefix("file://") {
            ArgValue::File(path.into())
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

/// Numbers and booleans are what they look like; everything else is text.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ArgValue, InputArg};

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
    fn mistakes_are_named() {
        for text in ["10.image", "image=x", ".image=x", "10.=x", "3.seed:=x"] {
            assert!(value(text).is_err(), "{text}");
        }
    }
}
