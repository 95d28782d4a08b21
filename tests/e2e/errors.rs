//! Jobs that ComfyUI, or its page, refuses or fails: in their own words.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    answer::ask,
    prompts::{color, invert_workflow, node, save},
    refusals::says,
    suite::Suite,
};

pub(crate) async fn refused_prompts(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let mut workflow = save(1, "x");
    workflow["1"]["inputs"]["width"] = json!(-64);
    workflow["1"]["inputs"]["height"] = json!("tall");
    let answer = ask(&bench, json!({"workflow": workflow, "metadata": [1]})).await?;
    let error = answer.failed("invalid_prompt", "post")?;
    says(error, &["Value -64 smaller than min of 1", "width", "EmptyImage"])?;
    let errors = error["node_errors"]["1"]["errors"].as_array().context("no node_errors")?;
    // ComfyUI keeps the inputs in a set: their order is random.
    let types: BTreeSet<_> = errors.iter().filter_map(|error| error["type"].as_str()).collect();
    ensure!(types == BTreeSet::from(["invalid_input_type", "value_smaller_than_min"]), "{types:?}");
    ensure!(error["node_errors"]["1"]["class_type"] == "EmptyImage", "{error}");

    let nothing_to_do = json!({"workflow": {"1": color(1, 1)}});
    let answer = ask(&bench, nothing_to_do).await?;
    says(answer.failed("invalid_prompt", "post")?, &["Prompt has no outputs"])?;

    let mut workflow = save(1, "x");
    workflow["2"]["inputs"]["images"] = json!(["7", 0]);
    let answer = ask(&bench, json!({"workflow": workflow})).await?;
    answer.failed("invalid_prompt", "post")?;
    ask(&bench, json!({"workflow": save(1, "x")})).await?.succeeded().map(drop)
}

/// ComfyUI drops outputs that fail validation and runs the rest.
pub(crate) async fn dropped_outputs(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let mut workflow = save(0x20_40_60, "good");
    workflow["3"] = node("LoadImage", json!({"image": "nope.png"}));
    workflow["4"] = node("SaveImage", json!({"images": ["3", 0], "filename_prefix": "bad"}));
    let answer = ask(&bench, json!({"workflow": workflow})).await?;
    let error = answer.failed("invalid_prompt", "post")?;
    says(error, &["Invalid image file: nope.png"])?;
    ensure!(error["node_errors"]["3"]["dependent_outputs"] == json!(["4"]), "{error}");

    let answer = ask(&bench, json!({"workflow": workflow, "allow_partial": true})).await?.succeeded()?;
    answer.only_picture(&bench).await?.ensure_color(0x20_40_60, bench.tolerance())?;
    let warnings = answer.result["warnings"].as_array().context("no warnings")?;
    let told = |warning: &Value| warning.as_str().is_some_and(|text| text.contains("nope.png"));
    ensure!(warnings.len() == 1 && warnings.iter().all(told), "{warnings:?}");
    Ok(())
}

pub(crate) async fn node_exceptions(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(1, 1),
        "2": node("PrimitiveString", json!({"value": "../../evil"})),
        "7": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": ["2", 0]})),
    });
    let answer = ask(&bench, json!({"workflow": workflow})).await?;
    let error = answer.failed("execution_error", "run")?;
    says(
        error,
        &["node 7 (SaveImage)", "Exception", "Saving image outside the output folder is not allowed"],
    )?;
    ensure!(error["node"] == "7", "{error}");
    ensure!(error["traceback"].as_array().is_some_and(|lines| !lines.is_empty()), "{error}");
    // What ComfyUI said of it is stored too.
    let history = bench.json(answer.result["history"].as_str().context("no history")?).await?;
    ensure!(history["status"]["status_str"] == "error", "{history:#}");
    let prompt = bench.json(answer.result["prompt"].as_str().context("no prompt")?).await?;
    ensure!(prompt == workflow, "{prompt:#}");
    Ok(())
}

pub(crate) async fn unknown_nodes(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let mut workflow = invert_workflow()?;
    workflow["nodes"][1]["type"] = json!("FancyInverter");
    let answer = ask(&bench, json!({"workflow": workflow})).await?;
    says(answer.failed("missing_nodes", "convert")?, &["FancyInverter"])?;

    let workflow = json!({"1": node("NoSuchNode", json!({})), "2": save(1, "x")["2"]});
    let answer = ask(&bench, json!({"workflow": workflow})).await?;
    // "Cannot execute because node NoSuchNode does not exist." in 0.3.64, "Node 'NoSuchNode' not found. …" in 0.33.0.
    says(answer.failed("invalid_prompt", "post")?, &["NoSuchNode"])?;

    // The page is as good as before.
    let input = bench.input("after.png", &crate::picture::pattern(40)).await?;
    let job = json!({"workflow": invert_workflow()?, "inputs": {"1.image": input}});
    ask(&bench, job).await?.succeeded().map(drop)
}

pub(crate) async fn deadlines(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let mut workflow = save(1, "x");
    workflow["1"]["inputs"]["width"] = json!(3000);
    workflow["1"]["inputs"]["height"] = json!(3000);
    let answer = ask(&bench, json!({"workflow": workflow, "timeout_seconds": 0.001})).await?;
    says(answer.failed("timeout", "run")?, &["0.001 s"])?;
    ask(&bench, json!({"workflow": save(2, "x")})).await?.succeeded().map(drop)
}
