//! A models folder that two workers share, as on a volume.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Result, ensure};
use serde_json::json;
use testbed::{Fault, Gate, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job},
    site::{Site, status},
};

const NAME: &str = "shared.safetensors";

#[tokio::test]
async fn two_workers_with_one_folder_fetch_a_model_once() -> Result<()> {
    let bed = Bed::new("shared-models").await?;
    bed.s3.put("inputs", NAME, vec![7; 100_000]).await?;
    let gate = Gate::start(bed.s3.address()).await?;
    let endpoint = format!("http://{}", gate.address());
    let sites = ["a", "b"].map(|name| Site::new(&bed, name));
    let [a, b] = sites;
    let (a, b) = (a?.set("store.endpoint", &endpoint), b?.set("store.endpoint", &endpoint));
    let (folder, second) = (a.folder("models"), b.folder("models"));
    fs::remove_dir_all(&second)?;
    symlink(&folder, &second)?;
    let workers = [a.boot().await?, b.boot().await?];

    gate.set(Fault::Hold, &format!("GET /inputs/{NAME}"));
    for id in ["first", "second"] {
        let mut job = slow_job(id, 0.1);
        job["files"] =
            json!([{"source": format!("s3://inputs/{NAME}"), "folder": "models", "subfolder": "loras"}]);
        bed.publish(&job).await?;
    }
    let both = || async {
        let [first, second] = &workers;
        let has_one = async |worker| status(worker).await.is_ok_and(|status| status["job"].is_object());
        has_one(first).await && has_one(second).await
    };
    wait_for("both workers to have a job", SOON, both).await?;
    gate.wait_caught(SOON).await?;
    gate.lift();

    let results = bed.answers(&["first", "second"]).await?;
    let files = |which: &str| -> u64 {
        let count = |result: &serde_json::Value| result["timings"][which]["files"].as_u64().unwrap_or(9);
        results.values().map(count).sum()
    };
    ensure!((files("models_cold"), files("models_warm")) == (1, 1), "{results:#?}");
    ensure!(results["first"]["worker"]["id"] != results["second"]["worker"]["id"], "{results:#?}");
    ensure!(fs::read(folder.join("loras").join(NAME))? == vec![7; 100_000]);
    let left = names(&folder.join("loras"))?;
    ensure!(left == [NAME], "{left:?}");
    let [first, second] = workers;
    a.finish(first, a.initial()).await?;
    b.finish(second, b.initial()).await
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder)?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
