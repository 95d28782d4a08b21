//! Where an object lies: `s3://bucket/key` or `file:///folder/file`.

use std::{fmt, path::PathBuf, str::FromStr};

use url::Url;

/// The address of an object, or of the folder (prefix) that objects lie in. It never ends in `/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ObjectUri {
    /// An object in a bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key; empty for the bucket itself.
        key: String,
    },
    /// A local file.
    File(PathBuf),
}

/// Why a text is no [`ObjectUri`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Neither `s3://` nor `file://`.
    #[error("{0:?} starts with neither s3:// nor file://")]
    Scheme(String),
    /// No bucket, or one that S3 cannot have.
    #[error("{0:?} names no bucket (3-63 of a-z 0-9 . -)")]
    Bucket(String),
    /// A key with an empty, `.` or `..` part, or a control character.
    #[error("{0:?} has a part that is empty, `.`, `..` or a control character")]
    Key(String),
    /// `file://` with a host, or without an absolute path.
    #[error("{0:?} is no file:///absolute/path")]
    File(String),
}

impl ObjectUri {
    /// The address of `relative` beneath this one. Invariant: the result lies beneath `self`.
    ///
    /// # Errors
    /// When a part of `relative` is empty, `.` or `..`, or holds a control character.
    pub fn join(&self, relative: &str) -> Result<Self, UriError> {
        check_parts(relative)?;
        Ok(match self {
            Self::S3 { bucket, key } if key.is_empty() => {
                Self::S3 { bucket: bucket.clone(), key: relative.to_owned() }
            }
            Self::S3 { bucket, key } => Self::S3 { bucket: bucket.clone(), key: format!("{key}/{relative}") },
            Self::File(path) => Self::File(path.join(relative)),
        })
    }

    /// The last part of the key or path; empty for a bare bucket.
    #[must_use]
    pub fn file_name(&self) -> &str {
        match self {
            Self::S3 { key, .. } => key.rsplit('/').next().unwrap_or_default(),
            Self::File(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        }
    }

    /// Whether this address lies beneath one of `prefixes` (`s3://bucket/`, `s3://`).
    #[must_use]
    pub fn is_beneath(&self, prefixes: &[String]) -> bool {
        let text = self.to_string();
        prefixes.iter().any(|prefix| text.starts_with(prefix.as_str()) || format!("{text}/") == *prefix)
    }
}

fn check_parts(key: &str) -> Result<(), UriError> {
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if key.split('/').any(bad) { Err(UriError::Key(key.to_owned())) } else { Ok(()) }
}

impl FromStr for ObjectUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if let Some(rest) = text.strip_prefix("s3://") {
            // The key is taken as it is: S3 keys are not percent-encoded in such addresses.
            let (bucket, key) =
                rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
            let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
            if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(allowed) {
                return Err(UriError::Bucket(text.to_owned()));
            }
            if !key.is_empty() {
                check_parts(key).map_err(|_| UriError::Key(text.to_owned()))?;
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        if text.starts_with("file://") {
            return Url::parse(text)
                .ok()
                .filter(|url| url.host().is_none())
                .and_then(|url| url.to_file_path().ok())
                .map(Self::File)
                .ok_or_else(|| UriError::File(text.to_owned()));
        }
        Err(UriError::Scheme(text.to_owned()))
    }
}

impl fmt::Display for ObjectUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, key } if key.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
            Self::File(path) => match Url::from_file_path(path) {
                Ok(url) => write!(f, "{url}"),
                Err(()) => write!(f, "file://{}", path.display()),
            },
        }
    }
}

impl serde::Serialize for ObjectUri {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
