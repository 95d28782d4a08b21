//! The workflow argument: a file, an address, or `-` for standard input.

use std::{io::Read, path::Path};

use contract::{
    ObjectUri,
    prompt::{is_ui_workflow, prompt_from_value},
};
use serde_json::Value;

use super::Failed;
use crate::store::{ObjectStore, StoreError, Stores};

/// Largest workflow read.
const LARGEST_WORKFLOW: u64 = 64 << 20;

/// Reads a workflow.
pub(super) async fn read(argument: &str, stores: &Stores) -> Result<Value, Failed> {
    let problem = |reason: String| Failed::Usage(format!("{argument}: {reason}"));
    let bytes = if argument == "-" {
        read_stdin().await.map_err(|error| problem(error.to_string()))?
    } else if argument.contains("://") {
        let uri: ObjectUri =
            argument.parse().map_err(|error: contract::UriError| Failed::Usage(error.to_string()))?;
        let read = stores.read(&uri, LARGEST_WORKFLOW).await.map_err(|error| match error {
            StoreError::Unavailable { .. } => Failed::Environment(format!("{error}; see store.endpoint")),
            error => Failed::Usage(error.to_string()),
        });
        read?.to_vec()
    } else {
        tokio::fs::read(argument).await.map_err(|error| problem(format!("cannot be read: {error}")))?
    };
    let workflow: Value =
        serde_json::from_slice(&bytes).map_err(|error| problem(format!("no JSON: {error}")))?;
    check_shape(&workflow).map_err(problem)?;
    Ok(workflow)
}

/// What is wrong with the shape is told here, before anything is started or published for it.
fn check_shape(workflow: &Value) -> Result<(), String> {
    if is_ui_workflow(workflow) {
        return Ok(());
    }
    match prompt_from_value(workflow.clone()) {
        Ok(prompt) if prompt.is_empty() => Err("the workflow has no nodes".to_owned()),
        Ok(_) => Ok(()),
        Err(failure) => Err(failure.to_string()),
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
