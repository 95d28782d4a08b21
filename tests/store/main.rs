//! The object stores: one suite over a local folder and over S3, then what each must do on its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, unreachable_pub, reason = "nobody reads a test's documentation")]

mod fake;
mod faults;
mod large;
mod local;
mod parts;
mod s3;
mod server;
mod stretches;
mod suite;

use std::path::Path;

use contract::ObjectUri;

use comfy_worker::{config::StoreConfig, store::Stores};
use secrecy::SecretString;

/// The stores of a worker whose S3 endpoint is `endpoint`.
async fn stores(endpoint: &str, access_key: &str, secret_key: &str) -> Stores {
    Stores::with_credentials(&config(endpoint), access_key, &SecretString::from(secret_key)).await
}

fn config(endpoint: &str) -> StoreConfig {
    StoreConfig { uri: None, endpoint: Some(endpoint.parse().unwrap()), region: None, path_style: true }
}

fn uri(text: &str) -> ObjectUri {
    text.parse().unwrap()
}

/// Names of all files under `folder`, hidden ones too.
fn files_beneath(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(files_beneath(&path));
        } else {
            names.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    names
}
