//! A models folder that two workers share, as on a volume.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Result, ensure};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use testbed::{Fault, Gate, wait_for};

use super::{
    BOOT, SOON,
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

/// An operator's models lie on a drive that ComfyUI was told of. It takes the first file of a name that it finds, and would
/// take a job's for everybody.
#[tokio::test]
async fn a_model_on_an_operators_drive_is_not_stood_in_for() -> Result<()> {
    let bed = Bed::new("drive").await?;
    bed.s3.put("inputs", "theirs.safetensors", b"theirs".to_vec()).await?;
    bed.s3.put("inputs", "evil/theirs.safetensors", b"evil".to_vec()).await?;
    let drive = bed.folder.path().join("drive");
    fs::create_dir_all(drive.join("loras"))?;
    fs::write(drive.join("loras/theirs.safetensors"), "theirs")?;
    let paths = bed.folder.path().join("paths.yaml");
    fs::write(&paths, json!({"drive": {"base_path": drive, "loras": "loras"}}).to_string())?;
    let site = Site::new(&bed, "a")?.arguments(&format!("--extra-model-paths-config {}", paths.display()));
    let file = |source: &str, more: serde_json::Value| {
        let mut file =
            json!({"source": format!("s3://inputs/{source}"), "folder": "models", "subfolder": "loras"});
        file.as_object_mut()
            .into_iter()
            .for_each(|file| file.extend(more.as_object().cloned().unwrap_or_default()));
        file
    };
    let sha256 =
        |content: &[u8]| Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sum = sha256(b"theirs");
    let (good, evil) = ("theirs.safetensors", "evil/theirs.safetensors");
    let jobs = [
        // Published while ComfyUI does not run yet, which says where its folders are.
        ("early", file(evil, json!({"overwrite": true})), false),
        ("late", file(evil, json!({"overwrite": true})), false),
        ("passing", file(evil, json!({"overwrite": true, "ephemeral": true})), false),
        ("other", file(evil, json!({"sha256": sha256(b"evil")})), false),
        ("by-name", file(evil, json!({})), true),
        ("by-sum", file(good, json!({"sha256": sum})), true),
        ("by-sum-passing", file(good, json!({"sha256": sum, "ephemeral": true})), true),
    ];
    let mut worker = site.start().await?;
    for (id, file, is_right) in &jobs {
        let mut job = slow_job(id, 0.1);
        job["files"] = json!([file]);
        // Until the worker has declared the queue.
        wait_for("the job in a queue", SOON, async || bed.publish(&job).await.is_ok()).await?;
        let result = bed.answer(id).await?;
        let expected = if *is_right { json!(["succeeded", null]) } else { json!(["failed", "invalid_job"]) };
        ensure!(json!([result["status"], result["error"]["code"]]) == expected, "{result:#}");
        let message = result["error"]["message"].as_str().unwrap_or_default();
        ensure!(
            *is_right || message.contains("models/loras/theirs.safetensors would stand in for"),
            "{message}"
        );
    }
    ensure!(names(&site.folder("models/loras"))?.iter().all(|name| name.starts_with("put_")));
    worker.wait_ready(BOOT).await?;
    site.finish(worker, site.initial()).await
}
