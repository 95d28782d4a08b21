//! Conversion in a real Chromium with the frontend that a ComfyUI (or its stand-in) serves.
//!
//! `BROWSER_TEST_SERVER` is that server's URL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfy_worker::{
    browser::{Browser, ConvertError},
    config::BrowserConfig,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use url::Url;

fn server() -> Url {
    env::var("BROWSER_TEST_SERVER")
        .expect("set BROWSER_TEST_SERVER to the URL of a ComfyUI or of its stand-in")
        .parse()
        .unwrap()
}

fn config() -> BrowserConfig {
    BrowserConfig { executable: None, args: Vec::new(), convert_timeout: Duration::from_secs(30) }
}

async fn browser() -> Browser {
    let started = Instant::now();
    let browser = Browser::start(config(), server()).await.unwrap();
    println!("browser ready after {:?}", started.elapsed());
    browser
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))).unwrap()
}

/// Every template with a golden prompt: `BROWSER_TEST_TEMPLATES` is the folder `templates` of
/// the PyPI package comfyui-workflow-templates 0.1.95, `BROWSER_TEST_GOLDEN` that of the prompts.
/// Against ComfyUI 0.3.64 with frontend 1.27.10.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the templates, the golden prompts and ComfyUI 0.3.64"]
async fn templates_convert_to_their_golden_prompts() {
    let folder = |name: &str| PathBuf::from(env::var(name).unwrap_or_else(|_| panic!("set {name}")));
    let (templates, golden) = (folder("BROWSER_TEST_TEMPLATES"), folder("BROWSER_TEST_GOLDEN"));
    let browser = browser().await;
    let mut different = Vec::new();
    let mut times = Vec::new();
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let workflow = read(&templates.join(name));
        let started = Instant::now();
        match browser.convert(&workflow).await {
            Ok(conversion) if Value::Object(conversion.prompt.clone()) == read(&path) => {
                times.push(started.elapsed())
            }
            Ok(conversion) => {
                let text = serde_json::to_string_pretty(&conversion.prompt).unwrap();
                fs::write(env::temp_dir().join(name), text).unwrap();
                different.push(format!("{name:?}"));
            }
            Err(error) => different.push(format!("{name:?}: {error}")),
        }
    }
    times.sort();
    println!("{} equal, median {:?}, most {:?}", times.len(), times[times.len() / 2], times.last());
    browser.shutdown().await;
    assert!(different.is_empty(), "{different:#?}");
}
