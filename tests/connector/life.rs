//! One life from the start to the shutdown.

use std::{
    fs,
    io::Cursor,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use connector::{
    ComfyConnector, ConnectorError, HealthError, Payload, PlaceError, PromptError, State,
    browser::ConvertError,
    comfy::{ExecuteError, history::History},
};
use serde_json::{Value, json};
use testbed::{wait_for, wait_for_value};

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
            async move { ComfyConnector::create(config.connector().await).await }
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
    let mut other = config.connector().await;
    other.timeout += Duration::from_secs(1);
    let refused = ComfyConnector::create(other).await.err();
    ensure!(matches!(refused, Some(ConnectorError::OtherConfiguration)), "{refused:?}");

    uploads::are_taken_or_refused(&bed, &connector).await?;
    runs(&bed, &connector).await?;
    failures_are_told(&bed, &connector).await?;
    a_call_costs_no_question(&connector).await?;
    ensure!(connector.state() == State::Ready && connector.validate_resources().await == Ok(()));

    if !bed.engine.is_real() {
        a_dropped_call_takes_its_prompt_back(&connector).await?;
    }
    let cut_short = if bed.engine.is_real() { None } else { Some(start_sleeping(&connector).await?) };
    let clock = Instant::now();
    tokio::join!(connector.shutdown(), connector.shutdown());
    println!("shut down after {:?}", clock.elapsed());
    if let Some(sleeping) = cut_short {
        let outcome = sleeping.await?;
        ensure!(matches!(outcome, Err(ConnectorError::Killed)), "{outcome:?}");
    }
    ensure!(states.has_changed()? && *states.borrow_and_update() == State::Killed);
    bed.wait_nothing_runs().await?;
    connector.shutdown().await;
    ensure!(ComfyConnector::live().is_none() && connector.server_address().is_none());
    ensure!(connector.validate_resources().await == Err(HealthError::NotRunning));
    let after = connector.run_workflow(Payload::Prompt(color(1))).await;
    ensure!(matches!(after, Err(ConnectorError::Killed)), "{after:?}");
    let after = connector.upload_data(&bed.source("late.txt", "late")?, &uploads::ephemeral()).await;
    ensure!(matches!(after, Err(PlaceError::ShutDown)), "{after:?}");
    uploads::are_gone_but_for_what_stays(&bed)
}

async fn runs(bed: &Bed, connector: &ComfyConnector) -> Result<()> {
    let history = connector.run_workflow(invert()?.into()).await?;
    let outputs = history.outputs();
    ensure!(outputs.len() == 1 && outputs[0].node == "3" && outputs[0].key == "images", "{outputs:?}");
    let file = bed.engine.path.join(outputs[0].content.to_string());
    let files = connector.output_files(&history);
    ensure!(files.len() == 1 && files[0].node == "3" && files[0].path == file && !files[0].temp, "{files:?}");
    // Both halves of the conversion are used: the picture opens in ComfyUI again.
    let png = png::Decoder::new(Cursor::new(fs::read(&file)?)).read_info()?;
    let texts = &png.info().uncompressed_latin1_text;
    let workflow =
        texts.iter().find(|chunk| chunk.keyword == "workflow").context("no workflow in the PNG")?;
    ensure!(serde_json::from_str::<Value>(&workflow.text)?["nodes"].as_array().map(Vec::len) == Some(3));
    fs::remove_file(file)?;
    ensure!(connector.output_files(&history).is_empty());

    let mut prompt = connector.prompt_from_workflow(&invert()?).await?.prompt;
    ensure!(prompt.len() == 3);
    prompt["1"]["inputs"]["image"] = "batch/cat.png".into();
    let history = connector.run_workflow(Payload::Prompt(Value::Object(prompt))).await?;
    ensure!(history.entry()["status"]["status_str"] == "success", "{:?}", history.entry());
    let output = history.outputs().first().context("no output")?.content.to_string();
    fs::remove_file(bed.engine.path.join(output))?;

    // Refused before a page works on it.
    let deep = json!({"nodes": [], "links": [], "extra": (0..70).fold(json!(0), |inner, _| json!([inner]))});
    for refused in [
        connector.prompt_from_workflow(&deep).await.err(),
        connector.run_workflow(deep.clone().into()).await.err(),
    ] {
        ensure!(matches!(refused, Some(ConnectorError::Failed(_))), "{refused:?}");
    }

    // Side by side, each gets its own.
    let run = async |rgb: u32| {
        let history = connector.run_workflow(Payload::Prompt(color(rgb))).await?;
        let output = history.outputs().first().context("no output")?.content.to_string();
        let png = fs::read(bed.engine.path.join(&output))?;
        fs::remove_file(bed.engine.path.join(output))?;
        ensure!(first_pixel(&png)? == rgb, "not the color {rgb:06x}");
        Ok(())
    };
    tokio::try_join!(run(0xff0000), run(0x00ff00), run(0x0000ff))?;
    Ok(())
}

fn first_pixel(png: &[u8]) -> Result<u32> {
    let mut reader = png::Decoder::new(Cursor::new(png)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().context("a huge PNG")?];
    reader.next_frame(&mut pixels)?;
    let [red, green, blue] = *pixels.first_chunk().context("no pixel")?;
    Ok(u32::from_be_bytes([0, red, green, blue]))
}

async fn a_dropped_call_takes_its_prompt_back(connector: &ComfyConnector) -> Result<()> {
    let sleeping = start_sleeping(connector).await?;
    sleeping.abort();
    let queue = format!("{}/prompt", connector.server_address().context("no address")?);
    wait_for("the prompt to be gone", LIMIT, || async {
        let Ok(answer) = reqwest::get(&queue).await else { return false };
        answer.json::<Value>().await.is_ok_and(|answer| answer["exec_info"]["queue_remaining"] == 0)
    })
    .await
}

/// A call that would take ten minutes, once ComfyUI runs its prompt.
async fn start_sleeping(
    connector: &ComfyConnector,
) -> Result<tokio::task::JoinHandle<Result<History, ConnectorError>>> {
    let prompt = json!({"1": {"class_type": "StandinSleep", "inputs": {"seconds": 600.0, "seed": 1}}});
    let sleeper = connector.clone();
    let sleeping = tokio::spawn(async move { sleeper.run_workflow(Payload::Prompt(prompt)).await });
    let queue = format!("{}/prompt", connector.server_address().context("no address")?);
    wait_for("the prompt to run", LIMIT, || async {
        let Ok(answer) = reqwest::get(&queue).await else { return false };
        answer.json::<Value>().await.is_ok_and(|answer| answer["exec_info"]["queue_remaining"] == 1)
    })
    .await?;
    Ok(sleeping)
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
    let ConnectorError::Failed(PromptError::NodeFailed(node)) = &failed else { anyhow::bail!("{failed:?}") };
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
        ensure!(matches!(error(no_prompt).await?, ConnectorError::Failed(PromptError::Invalid(_))));
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
