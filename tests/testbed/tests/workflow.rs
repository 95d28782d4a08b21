//! The quick start's workflow, converted by the frontend that ComfyUI or its stand-in serves.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_worker::config::BrowserConfig;
use connector::browser::Browser;
use serde_json::{Value, json};
use testbed::{Engine, checkout, scratch_root};

#[tokio::test(flavor = "multi_thread")]
async fn the_quick_starts_workflow_converts_to_its_prompt() -> Result<()> {
    let root = scratch_root()?;
    std::fs::create_dir_all(&root)?;
    let dir = tempfile::tempdir_in(root)?;
    let engine = Engine::from_env(dir.path())?.start().await?;
    let config = BrowserConfig::default().with_convert_timeout(Duration::from_secs(60));
    let browser = Browser::start(config, engine.url().parse()?).await?;

    let file = checkout().join("tests/fixtures/workflows/invert-ui.json");
    let conversion = browser.convert(&serde_json::from_slice(&std::fs::read(file)?)?).await?;
    let mut prompt = Value::Object(conversion.prompt);
    for node in prompt.as_object_mut().into_iter().flatten() {
        if let Some(node) = node.1.as_object_mut() {
            node.remove("_meta");
        }
    }
    let wanted = json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "example.png" } },
        "2": { "class_type": "ImageInvert", "inputs": { "image": ["1", 0] } },
        "3": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "inverted" } },
    });
    browser.shutdown().await;
    engine.stop().await?;
    ensure!(prompt == wanted, "{prompt:#}");
    Ok(())
}
