//! The name of a job.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// 1–128 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit: fit for a routing key, an object
/// key and a folder's name as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JobId(String);

impl JobId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= 128 && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            let shown = crate::text::quoted(text, 64);
            Err(format!(
                "the job id {shown} must be 1-128 of A-Z a-z 0-9 . _ - and start with a letter or digit"
            ))
        }
    }
}

impl TryFrom<String> for JobId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
