//! Starts that fail: what they say, and that they leave nothing.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use comfy_worker::Config;
use connector::{ComfyConnector, ConnectorError, PromptError, browser::ConvertError, comfy::BootError};
use serde_json::json;
use testbed::free_port;

use super::bed::{Bed, invert, my_turn};

async fn failure(bed: &Bed, config: &Config) -> Result<ConnectorError> {
    let error = ComfyConnector::create(config.connector().await).await.err().context("it started")?;
    println!("{error}");
    ensure!(!error.to_string().is_empty());
    ensure!(ComfyConnector::live().is_none());
    bed.wait_nothing_runs().await?;
    Ok(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_is_told_at_once() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::standin()?;
    let config = bed.config(&[("comfyui.command", "no-such-program main.py")])?;
    let error = failure(&bed, &config).await?;
    ensure!(matches!(error, ConnectorError::Boot(BootError::Spawn { .. })), "{error:?}");

    let test = bed.source("test.json", "{")?.display().to_string();
    let error = failure(&bed, &bed.config(&[("comfyui.test_workflow", &test)])?).await?;
    ensure!(matches!(error, ConnectorError::TestWorkflow(_)), "{error:?}");

    // ComfyUI, which boots for ten minutes, is not waited for.
    let settings = [("browser.executable", "/bin/false"), ("comfyui.env", "STANDIN_BOOT_DELAY=600")];
    let error = failure(&bed, &bed.config(&settings)?).await?;
    ensure!(matches!(error, ConnectorError::Convert(ConvertError::Browser(_))), "{error:?}");

    let settings = [("comfyui.env", "STANDIN_BOOT=exit")];
    let error = failure(&bed, &bed.config(&settings)?).await?;
    ensure!(matches!(error, ConnectorError::Boot(BootError::Exited(_))), "{error:?}");

    let settings = [("comfyui.env", "STANDIN_BOOT=hang"), ("comfyui.boot_timeout", "500ms")];
    let error = failure(&bed, &bed.config(&settings)?).await?;
    ensure!(matches!(error, ConnectorError::Boot(BootError::TimedOut { .. })), "{error:?}");
    Ok(())
}

/// The test workflow of the original's file goes through conversion and execution.
#[tokio::test(flavor = "multi_thread")]
async fn a_self_test_fails_at_its_conversion_and_at_its_execution() -> Result<()> {
    let _turn = my_turn().await;
    let bed = Bed::standin()?;
    let file = bed.dir.join("comfy_serverless.json");
    let text = json!({
        "API_COMMAND_LINE": bed.engine.command_line(),
        "API_WORKING_DIRECTORY": bed.engine.workdir,
        "INITIAL_PORT": free_port()?,
        "TEST_PAYLOAD_FILE": "test_server.json",
        "MAX_COMFY_START_ATTEMPTS": 60,
        "COMFYUI_PATH": bed.engine.path,
    });
    fs::write(&file, text.to_string())?;
    let mut config = Config::from_file(&file)?;
    config.worker.state_dir = bed.dir.join("state");
    config.browser.args.push(bed.mark());
    let test = bed.engine.workdir.join("test_server.json");

    let mut workflow = invert()?;
    workflow["nodes"][1]["type"] = "NoSuchNode".into();
    fs::write(&test, workflow.to_string())?;
    let error = failure(&bed, &config).await?;
    let ConnectorError::SelfTest(inner) = &error else { anyhow::bail!("{error:?}") };
    let ConnectorError::Convert(ConvertError::MissingNodes(nodes)) = &**inner else {
        anyhow::bail!("{error:?}")
    };
    ensure!(*nodes == ["NoSuchNode"]);

    let inputs = json!({"message": "as asked", "exception_type": "ValueError", "seed": 1});
    fs::write(&test, json!({"1": {"class_type": "StandinFail", "inputs": inputs}}).to_string())?;
    let error = failure(&bed, &config).await?;
    ensure!(error.to_string().contains("as asked"));
    let ConnectorError::SelfTest(inner) = &error else { anyhow::bail!("{error:?}") };
    ensure!(matches!(**inner, ConnectorError::Failed(PromptError::NodeFailed(_))), "{error:?}");
    Ok(())
}
