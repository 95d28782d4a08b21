//! What a job's `inputs` and `files` can be.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    answer::{ask, picture},
    contract::sha256,
    picture::{decoded_pattern, pattern},
    prompts::{color, invert, node, save},
    suite::Suite,
};

pub(crate) async fn literals(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(0, 1),
        "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "x"})),
        "3": node("PreviewAny", json!({"source": "x"})),
    });
    let inputs = json!({
        "1.color": 0x11_22_33, "1.width": {"value": 24}, "2.filename_prefix": "literal",
        // What looks like an address is one, unless it is said to be a value.
        "3.source": {"value": "s3://not-a-file"},
    });
    let answer = ask(&bench, json!({"workflow": workflow, "inputs": inputs})).await?.succeeded()?;
    let made = answer.outputs_of("2")?;
    ensure!(made[0]["filename"] == "literal_00001_.png", "{}", made[0]);
    let made = picture(&bench, made[0]).await?;
    ensure!((made.width, made.height) == (24, 16), "{} x {}", made.width, made.height);
    made.ensure_color(0x11_22_33, bench.tolerance())?;
    ensure!(answer.outputs_of("3")?[0]["text"] == "s3://not-a-file", "{:#}", answer.result);

    // Web addresses and texts with a colon are literals too.
    let prompt = json!({"1": node("PreviewAny", json!({"source": ""}))});
    for text in ["https://example.org/x.png", "a red fox: running", "data without a colon", "C:\\x.png"] {
        let job = json!({"workflow": prompt, "inputs": {"1.source": text}});
        let answer = ask(&bench, job).await?.succeeded()?;
        ensure!(answer.only_output()?["text"] == text, "{:#}", answer.result);
    }
    Ok(())
}

pub(crate) async fn named_objects(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let source = bench.input("folder/blob", &pattern(10)).await?;
    let sum = sha256(&pattern(10)).to_uppercase();
    let input = json!({"source": source, "sha256": sum, "name": "Ein Bild.png"});
    let answer =
        ask(&bench, json!({"workflow": invert("x"), "inputs": {"1.image": input}})).await?.succeeded()?;
    let prompt = bench.json(answer.result["prompt"].as_str().unwrap_or_default()).await?;
    let name = prompt["1"]["inputs"]["image"].as_str().unwrap_or_default();
    ensure!(name.starts_with(&format!("{}-", answer.id)) && name.ends_with("/Ein Bild.png"), "{name}");
    let made = answer.only_picture(&bench).await?;
    made.ensure_is(|value| 255 - value, &decoded_pattern(10)?, bench.tolerance())
}

pub(crate) async fn two_files_of_one_name(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let (first, second) =
        (bench.input("a/same.png", &pattern(11)).await?, bench.input("b/same.png", &pattern(12)).await?);
    let workflow = json!({
        "1": node("LoadImage", json!({"image": "x"})),
        "2": node("LoadImage", json!({"image": "x"})),
        "3": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "first"})),
        "4": node("SaveImage", json!({"images": ["2", 0], "filename_prefix": "second"})),
        "5": node("LoadImage", json!({"image": "x"})),
        "6": node("SaveImage", json!({"images": ["5", 0], "filename_prefix": "third"})),
    });
    // The third one is the first one again: fetched once.
    let inputs = json!({"1.image": first, "2.image": second, "5.image": first});
    let answer = ask(&bench, json!({"workflow": workflow, "inputs": inputs})).await?.succeeded()?;
    for (node, seed) in [("3", 11), ("4", 12), ("6", 11)] {
        let made = picture(&bench, answer.outputs_of(node)?[0]).await?;
        made.ensure_is(|value| value, &decoded_pattern(seed)?, bench.tolerance())?;
    }
    let staged = answer.events.iter().find(|event| event["event"] == "staged");
    ensure!(staged.is_some_and(|staged| staged["files"] == 2), "{staged:?}");
    Ok(())
}

pub(crate) async fn nodes_inside_a_subgraph(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "12:3": color(0, 1),
        "12:7:4": node("ImageInvert", json!({"image": ["12:3", 0]})),
        "5": node("SaveImage", json!({"images": ["12:7:4", 0], "filename_prefix": "x"})),
    });
    let job = json!({"workflow": workflow, "inputs": {"12:3.color": 0x00_00_ff}});
    let answer = ask(&bench, job).await?.succeeded()?;
    ensure!(answer.result["nodes"].get("12:7:4").is_some(), "{}", answer.result["nodes"]);
    answer.only_picture(&bench).await?.ensure_color(0xff_ff_00, bench.tolerance())
}

pub(crate) async fn placed_files(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let source = bench.input("placed.png", &pattern(13)).await?;
    let file = json!({
        "source": source, "folder": "input", "subfolder": "for/this job", "name": "p.png", "ephemeral": true,
        "sha256": sha256(&pattern(13)),
    });
    let job = json!({"workflow": invert("for/this job/p.png"), "files": [file]});
    let answer = ask(&bench, job).await?.succeeded()?;
    let made = answer.only_picture(&bench).await?;
    made.ensure_is(|value| 255 - value, &decoded_pattern(13)?, bench.tolerance())?;

    // A model stays, and is there for the next job.
    let model = json!({"source": source, "folder": "models", "subfolder": "loras", "name": "m.safetensors"});
    for _ in 0..2 {
        ask(&bench, json!({"workflow": save(0, "x"), "files": [model]})).await?.succeeded()?;
    }
    let kept = bench.engine().path.join("models/loras/m.safetensors");
    ensure!(std::fs::read(&kept)? == pattern(13), "{} holds something else", kept.display());
    // A file that is there is never overwritten unasked.
    let other = json!({"source": bench.input("other.png", &pattern(14)).await?, "folder": "models",
        "subfolder": "loras", "name": "m.safetensors", "sha256": sha256(&pattern(14))});
    let answer = ask(&bench, json!({"workflow": save(0, "x"), "files": [other]})).await?;
    let error = answer.failed("invalid_job", "stage")?;
    ensure!(error["message"].as_str().is_some_and(|text| text.contains("overwrite")), "{error}");
    ensure!(std::fs::read(&kept)? == pattern(13), "it was overwritten");
    Ok(())
}
