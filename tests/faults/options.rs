//! What a script was told, by variables of its own.

use std::{
    env,
    fmt::Display,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};

/// `None`: nothing was said.
pub(super) fn given<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|error| anyhow!("{name}={text}: {error}"))
        }
        _ => Ok(None),
    }
}

pub(super) fn minutes(count: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(count * 60.0).with_context(|| format!("{count} minutes"))
}

pub(super) fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| u64::from(since.subsec_nanos()))
}
