//! One life from the start to the shutdown.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::{
    ComfyConnector, ConnectorError, Ill, Payload, State, browser::ConvertError, comfy::ExecuteError,
    job::failure::Failure,
};
use serde_json::{Value, json};
use testbed::wait_for_value;

use super::{
    bed::{Bed, LIMIT, color, invert, my_turn},
    uploads,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_connector_lives_and_leaves_nothing() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::new()?;
    println!("{}", bed.engine.describe());
    let config = bed.config(&[])?;
    let starting = {
        let config = config.clone();
        let create = move || {
            let config = config.clone();
            async move { ComfyConnector::create(&config).await }
        };
        tokio::spawn(async move { tokio::try_join!(create(), create(), create()) })
    };
    let live = wait_for_value("a live connector", LIMIT, || async { ComfyConnector::live() }).await?;
    let mut states = live.watch_state();
    ensure!(*states.borrow_and_update() == State::Initializing);
    let clock = Instant::now();
    let (connector, second, third) = starting.await??;
    println!("ready after {:?}", clock.elapsed());
    ensure!(states.has_changed()? && *states.borrow_and_update() == State::Ready);

    let address = connector.server_address().context("no address")?;
    let client = connector.client_id().context("no client id")?;
    ensure!(address.starts_with("http://127.0.0.1:"), "{address}");
    let websocket = format!("{}/ws?clientId={client}", address.replace("http:", "ws:"));
    ensure!(connector.ws_address() == Some(websocket));
    for same in [live, second, third] {
        ensure!(
            same.client_id().as_ref() == Some(&client) && same.server_address().as_ref() == Some(&address)
        );
    }
    ensure!(connector.validate_resources().await == Ok(()));

    uploads::are_taken_or_refused(&bed, &connector).await?;
    runs(&bed, &connector).await?;
    failures_are_told(&bed, &connector).await?;
    a_call_costs_no_question(&connector).await?;
    ensure!(connector.state() == State::Ready && connector.validate_resources().await == Ok(()));

    let clock = Instant::now();
    tokio::join!(connector.shutdown(), connector.shutdown());
    println!("shut down after {:?}", clock.elapsed());
    ensure!(states.has_changed()? && *states.borrow_and_update() == State::Killed);
    bed.wait_nothing_runs().await?;
    connector.shutdown().await;
    ensure!(ComfyConnector::live().is_none() && connector.server_address().is_none());
    ensure!(connector.validate_resources().await == Err(Ill::NotRunning));
    let after = connector.run_workflow(Payload::Prompt(color(1))).await;
    ensure!(matches!(after, Err(ConnectorError::Killed)), "{after:?}");
    uploads::are_gone_but_for_what_stays(&bed)
}

async fn runs(bed: &Bed, connector: &ComfyConnector) -> Result<()> {
    let history = connector.run_workflow(invert()?.into()).await?;
    let outputs = history.outputs();
    ensure!(outputs.len() == 1 && outputs[0].node == "3" && outputs[0].key == "images", "{outputs:?}");
    let file = bed.engine.path.join(outputs[0].content.to_string());
    // Both halves of the conversion are used: the picture opens in ComfyUI again.
    let png = png::Decoder::new(std::io::BufReader::new(fs::File::open(&file)?)).read_info()?;
    let texts = &png.info().uncompressed_latin1_text;
    let workflow =
        texts.iter().find(|chunk| chunk.keyword == "workflow").context("no workflow in the PNG")?;
    ensure!(serde_json::from_str::<Value>(&workflow.text)?["nodes"].as_array().map(Vec::len) == Some(3));
    fs::remove_file(file)?;

    let mut prompt = connector.prompt_from_workflow(&invert()?).await?.prompt;
    ensure!(prompt.len() == 3);
    prompt["1"]["inputs"]["image"] = "batch/cat.png".into();
    let history = connector.run_workflow(Payload::Prompt(Value::Object(prompt))).await?;
    ensure!(history.entry()["status"]["status_str"] == "success", "{:?}", history.entry());
    let output = history.outputs().first().context("no output")?.content.to_string();
    fs::remove_file(bed.engine.path.join(output))?;
    Ok(())
}

/// With ComfyUI's own words, and without harm to the connector.
async fn failures_are_told(bed: &Bed, connector: &ComfyConnector) -> Result<()> {
    let error = async |payload: Value| {
        let error = connector.run_workflow(payload.into()).await.err().context("it ran")?;
        println!("{error}");
        Ok::<_, anyhow::Error>(error)
    };
    let refused = error(json!({"1": {"class_type": "NoSuchNode", "inputs": {}}})).await?;
    ensure!(matches!(&refused, ConnectorError::Execute(ExecuteError::Refused { .. })), "{refused:?}");
    ensure!(refused.to_string().contains("NoSuchNode"), "{refused}");

    let broken =
        connector.upload_data(&bed.source("broken.png", "no picture")?, &uploads::ephemeral()).await?;
    let mut prompt = color(2);
    prompt["1"] = json!({"class_type": "LoadImage", "inputs": {"image": "broken.png"}});
    let failed = error(prompt).await?;
    let ConnectorError::Failed(Failure::NodeFailed(node)) = &failed else { anyhow::bail!("{failed:?}") };
    ensure!(node.node_id == "1" && !node.exception_message.is_empty(), "{node:?}");
    ensure!(broken.is_file());

    let mut workflow = invert()?;
    workflow["nodes"][1]["type"] = "NoSuchNode".into();
    let missing = error(workflow).await?;
    let ConnectorError::Convert(ConvertError::MissingNodes(nodes)) = &missing else {
        anyhow::bail!("{missing:?}")
    };
    ensure!(*nodes == ["NoSuchNode"]);
    for no_prompt in [json!(7), json!({"1": {}})] {
        ensure!(matches!(error(no_prompt).await?, ConnectorError::Failed(Failure::Invalid(_))));
    }
    Ok(())
}

/// ComfyUI is not asked for its health before each call.
async fn a_call_costs_no_question(connector: &ComfyConnector) -> Result<()> {
    const CALLS: u32 = 10_000;
    connector.validate_resources().await?;
    let clock = Instant::now();
    for _ in 0..CALLS {
        connector.engine().await?;
    }
    println!("{:?} a call", clock.elapsed() / CALLS);
    ensure!(clock.elapsed() < Duration::from_secs(2));
    Ok(())
}
