//! The workflow argument: a file, an address, or `-` for standard input.

use std::{io::Read, path::Path};

use serde_json::Value;

use super::Failed;
use crate::store::{ObjectStore, ObjectUri, Stores};

/// Largest workflow read.
const LARGEST_WORKFLOW: u64 = 64 << 20;

/// Reads a workflow.
pub(super) async fn read(argument: &str, stores: &Stores) -> Result<Value, Failed> {
    let problem = |reason: String| Failed::Usage(format!("{argument}: {reason}"));
    let bytes = if argument == "-" {
        read_stdin().await.map_err(|error| problem(error.to_string()))?
    } else if argument.contains("://") {
        let uri: ObjectUri =
            argument.parse().map_err(|error: crate::store::UriError| Failed::Usage(error.to_string()))?;
        stores.read(&uri, LARGEST_WORKFLOW).await.map_err(|error| Failed::Usage(error.to_string()))?.to_vec()
    } else {
        tokio::fs::read(argument).await.map_err(|error| problem(error.to_string()))?
    };
    let workflow: Value =
        serde_json::from_slice(&bytes).map_err(|error| problem(format!("no JSON: {error}")))?;
    if workflow.is_object() {
        Ok(workflow)
    } else {
        Err(problem("no workflow: not a JSON object".to_owned()))
    }
}

/// All of standard input.
pub(super) async fn read_stdin() -> std::io::Result<Vec<u8>> {
    let read = || {
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(LARGEST_WORKFLOW).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?
}

/// The name of a file without its folders and extension, for ids.
pub(super) fn stem(argument: &str) -> String {
    let stem = Path::new(argument).file_stem().and_then(|stem| stem.to_str()).unwrap_or("job");
    let safe: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(40)
        .collect();
    let safe = safe.trim_start_matches(['.', '_', '-']);
    if safe.is_empty() { "job".to_owned() } else { safe.to_owned() }
}
