//! Runs one workflow over many pictures: each is uploaded for as long as the program runs, and put
//! into one input of the prompt.
//!
//! ```sh
//! cargo run --example batch -- comfy_serverless.json portrait.json 1.image photos/*.png
//! ```

use anyhow::{Context, Result, bail, ensure};
use comfy_worker::Config;
use connector::{ComfyConnector, Payload, Subfolder, UploadOptions};
use serde_json::{Map, Value};

const USAGE: &str = "usage: batch CONFIG WORKFLOW NODE.INPUT PICTURE...";

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, workflow, input, pictures @ ..] = arguments.as_slice() else { bail!(USAGE) };
    let (node, input) = input.split_once('.').context(USAGE)?;
    let text = std::fs::read(workflow).with_context(|| format!("cannot read {workflow}"))?;
    let workflow: Value = serde_json::from_slice(&text).with_context(|| format!("{workflow}: no JSON"))?;

    let connector = ComfyConnector::create(Config::from_file(config.as_ref())?.connector().await).await?;
    let outcome = batch(&connector, &workflow, (node, input), pictures).await;
    connector.shutdown().await;
    outcome
}

async fn batch(
    connector: &ComfyConnector,
    workflow: &Value,
    (node, input): (&str, &str),
    pictures: &[String],
) -> Result<()> {
    let mut prompt = connector.prompt_from_workflow(workflow).await?.prompt;
    println!("the prompt has {} nodes", prompt.len());
    let mut done = 0;
    for picture in pictures {
        match run(connector, &mut prompt, (node, input), picture).await {
            Ok(outputs) => {
                println!("{picture}: {}", outputs.join(", "));
                done += 1;
            }
            Err(error) => println!("{picture}: {error:#}"),
        }
    }
    println!("{done} of {} pictures done", pictures.len());
    connector.validate_resources().await.context("something is unhealthy")?;
    println!("all resources are well");
    ensure!(done == pictures.len(), "not all pictures are done");
    Ok(())
}

async fn run(
    connector: &ComfyConnector,
    prompt: &mut Map<String, Value>,
    (node, input): (&str, &str),
    picture: &str,
) -> Result<Vec<String>> {
    let options =
        UploadOptions { subfolder: Subfolder::parse("batch")?, ephemeral: true, ..UploadOptions::default() };
    let path = connector.upload_data(picture.as_ref(), &options).await?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let value = prompt.get_mut(node).and_then(|node| node.get_mut("inputs")?.get_mut(input));
    *value.with_context(|| format!("the prompt has no input {node}.{input}"))? =
        format!("batch/{name}").into();
    let history = connector.run_workflow(Payload::Prompt(Value::Object(prompt.clone()))).await?;
    Ok(history.outputs().iter().map(|output| output.content.to_string()).collect())
}
