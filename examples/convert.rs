//! Turns UI workflows into prompts, one a line, and runs nothing.
//!
//! ```sh
//! cargo run --example convert -- comfy_serverless.json portrait.json landscape.json
//! ```

use anyhow::{Context, Result, bail};
use comfy_worker::Config;
use connector::ComfyConnector;
use serde_json::Value;

const USAGE: &str = "usage: convert CONFIG WORKFLOW...";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, workflows @ ..] = arguments.as_slice() else { bail!(USAGE) };
    if workflows.is_empty() {
        bail!(USAGE);
    }
    let config = Config::from_file(config.as_ref())?;
    let connector = ComfyConnector::create(config.connector().await).await?;
    let outcome = convert(&connector, workflows).await;
    connector.shutdown().await;
    outcome
}

async fn convert(connector: &ComfyConnector, workflows: &[String]) -> Result<()> {
    for name in workflows {
        let text = std::fs::read(name).with_context(|| format!("cannot read {name}"))?;
        let workflow: Value = serde_json::from_slice(&text).with_context(|| format!("{name}: no JSON"))?;
        let conversion = connector
            .prompt_from_workflow(&workflow)
            .await
            .with_context(|| format!("cannot convert {name}"))?;
        for warning in conversion.warnings {
            eprintln!("{name}: {warning}");
        }
        println!("{}", Value::Object(conversion.prompt));
    }
    Ok(())
}
