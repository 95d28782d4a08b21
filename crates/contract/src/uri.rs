//! Where an object lies: `s3://bucket/key` or `file:///folder/file`.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

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
    #[error("{0:?} names no bucket (3-63 of a-z 0-9 . -, a letter or digit at both ends)")]
    Bucket(String),
    /// A key longer than S3 takes.
    #[error("{0:?}: the key is longer than {MAX_KEY_BYTES} bytes")]
    TooLong(String),
    /// A key with an empty, `.` or `..` part, or a control character.
    #[error("{0:?} has a part that is empty, `.`, `..` or a control character")]
    Key(String),
    /// `file://` with a host, a query, a fragment or an encoded `/`, or without an absolute path.
    #[error("{0:?} is no file:///absolute/path (write % as %25, ? as %3F, # as %23)")]
    File(String),
}

/// The longest key of S3, in bytes of UTF-8 (Amazon S3 user guide, "Naming objects").
const MAX_KEY_BYTES: usize = 1024;

impl ObjectUri {
    /// The address of `relative` under this one. Invariant: the result lies under `self`.
    ///
    /// # Errors
    /// When a part of `relative` is empty, `.` or `..`, or holds a control character, or the key
    /// becomes longer than S3 takes.
    pub fn join(&self, relative: &str) -> Result<Self, UriError> {
        check_parts(relative)?;
        match self {
            Self::S3 { bucket, key } => {
                let key = if key.is_empty() { relative.to_owned() } else { format!("{key}/{relative}") };
                check_length(&key)?;
                Ok(Self::S3 { bucket: bucket.clone(), key })
            }
            Self::File(path) => Ok(Self::File(path.join(relative))),
        }
    }

    /// The last part of the key or path; empty for a bare bucket.
    #[must_use]
    pub fn file_name(&self) -> &str {
        match self {
            Self::S3 { key, .. } => key.rsplit('/').next().unwrap_or_default(),
            Self::File(path) => path.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        }
    }

    /// Whether this address lies under one of `prefixes` (`s3://bucket/folder/`, `file:///folder/`,
    /// `s3://` for every bucket), or is one. Whole parts are compared: `s3://bucket/in` does not open
    /// `s3://bucket/internal`.
    #[must_use]
    pub fn is_beneath(&self, prefixes: &[String]) -> bool {
        prefixes.iter().any(|prefix| match (prefix.as_str(), self) {
            ("s3://", Self::S3 { .. }) | ("file://", Self::File(_)) => true,
            (text, _) => text.parse().is_ok_and(|folder| self.lies_in(&folder)),
        })
    }

    /// The way from `folder` to here; `None` outside of it.
    #[must_use]
    pub fn within(&self, folder: &Self) -> Option<String> {
        if !self.lies_in(folder) {
            return None;
        }
        match (self, folder) {
            (Self::S3 { key, .. }, Self::S3 { key: above, .. }) => {
                key.strip_prefix(above.as_str()).map(|rest| rest.trim_start_matches('/').to_owned())
            }
            (Self::File(path), Self::File(above)) => {
                path.strip_prefix(above).ok().map(|rest| rest.to_string_lossy().into_owned())
            }
            _ => None,
        }
    }

    fn lies_in(&self, folder: &Self) -> bool {
        match (self, folder) {
            (Self::S3 { bucket, key }, Self::S3 { bucket: same, key: above }) => {
                let below = key.strip_prefix(above.as_str());
                bucket == same
                    && below.is_some_and(|rest| above.is_empty() || rest.is_empty() || rest.starts_with('/'))
            }
            // A path that was not parsed here may climb (`..`), which starts_with does not see.
            (Self::File(path), Self::File(above)) => !climbs(path) && path.starts_with(above),
            _ => false,
        }
    }
}

fn check_parts(key: &str) -> Result<(), UriError> {
    let bad = |part: &str| matches!(part, "" | "." | "..") || part.chars().any(char::is_control);
    if key.split('/').any(bad) { Err(UriError::Key(key.to_owned())) } else { Ok(()) }
}

fn check_length(key: &str) -> Result<(), UriError> {
    if key.len() > MAX_KEY_BYTES { Err(UriError::TooLong(key.to_owned())) } else { Ok(()) }
}

fn climbs(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

fn is_bucket(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (3..=63).contains(&name.len())
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && !name.contains("..")
        && name.chars().all(|c| edge(Some(c)) || matches!(c, '.' | '-'))
}

impl FromStr for ObjectUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if let Some(rest) = text.strip_prefix("s3://") {
            // The key is taken as it is: S3 keys are not percent-encoded in such addresses.
            let rest = rest.trim_end_matches('/');
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_bucket(bucket) {
                return Err(UriError::Bucket(text.to_owned()));
            }
            if !key.is_empty() {
                check_parts(key).map_err(|_| UriError::Key(text.to_owned()))?;
                check_length(key)?;
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), key: key.to_owned() });
        }
        // Bare, it would mean the root folder: nobody writes that on purpose.
        if text == "file://" {
            return Err(UriError::File(text.to_owned()));
        }
        if text.starts_with("file://") {
            // `%2F` decodes into a separator after the URL's own `..` were resolved:
            // `..%2f..` would climb out of a folder that the text seems to lie in.
            let plain =
                |path: &PathBuf| !climbs(path) && !path.to_string_lossy().chars().any(char::is_control);
            return Url::parse(text)
                .ok()
                .filter(|url| url.host().is_none() && url.query().is_none() && url.fragment().is_none())
                .and_then(|url| url.to_file_path().ok())
                .filter(plain)
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

#[cfg(test)]
#[path = "uri_tests.rs"]
mod tests;
