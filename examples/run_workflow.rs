//! Runs one workflow and lists what it made.
//!
//! ```sh
//! cargo run --example run_workflow -- comfy_serverless.json portrait.json
//! ```

use anyhow::{Context, Result, bail};
use comfy_worker::Config;
use connector::ComfyConnector;
use serde_json::Value;

const USAGE: &str = "usage: run_workflow CONFIG WORKFLOW (a UI workflow or a prompt)";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, workflow] = arguments.as_slice() else { bail!(USAGE) };
    let config = Config::from_file(config.as_ref())?;
    let text = std::fs::read(workflow).with_context(|| format!("cannot read {workflow}"))?;
    let workflow: Value = serde_json::from_slice(&text).with_context(|| format!("{workflow}: no JSON"))?;

    let connector = ComfyConnector::create(config.connector().await).await?;
    let outcome = connector.run_workflow(workflow.into()).await;
    connector.shutdown().await;
    for output in outcome?.outputs() {
        println!("node {}, {}: {}", output.node, output.key, output.content);
    }
    Ok(())
}
