//! What ComfyUI says about itself, bare and under `/api`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use connector::comfy::frontend;
use serde_json::{Map, Value, json};
use testbed::checkout;

use super::bed::on_comfyui;

#[test]
fn the_frontend_is_known_before_it_is_served() -> Result<()> {
    on_comfyui(async |bed| {
        let root = frontend::root(&bed.config).await.context("no frontend was found")?;
        let served = bed.fetch("").await?.bytes().await?;
        ensure!(served == fs::read(root.join("index.html"))?, "{} is not what is served", root.display());
        Ok(())
    })
}

#[test]
fn system_stats_name_version_and_devices() -> Result<()> {
    on_comfyui(async |bed| {
        let stats = bed.get("system_stats").await?;
        assert_eq!(bed.server.version(), stats["system"]["comfyui_version"].as_str().unwrap_or_default());
        for key in ["os", "ram_total", "ram_free", "comfyui_version", "python_version", "argv"] {
            assert!(!stats["system"][key].is_null(), "{key}: {stats}");
        }
        assert_eq!(stats["system"]["standin"] == true, !bed.is_real, "the one key that tells them apart");
        let device = stats["devices"][0].as_object().context("no device")?;
        for key in ["name", "type", "vram_total", "vram_free"] {
            assert!(device.contains_key(key), "{key}: {stats}");
        }
        Ok(())
    })
}

#[test]
fn core_classes_are_described_as_recorded() -> Result<()> {
    on_comfyui(async |bed| {
        let recorded = fs::read_to_string(checkout().join("tests/standin/core_nodes.json"))?;
        let recorded: Map<String, Value> = serde_json::from_str(&recorded)?;
        let said = bed.get("object_info").await?;
        for (class, expected) in &recorded {
            let said = said.get(class).with_context(|| format!("{class} is missing"))?;
            if bed.is_of_2026() {
                // It says more, and offers more: what there was is still there.
                for key in ["name", "output_node"] {
                    assert_eq!(said[key], expected[key], "{class} {key}");
                }
                for key in ["output", "output_is_list", "output_name"] {
                    let [now, then] = [said, expected].map(|class| class[key].as_array().map(Vec::as_slice));
                    let (now, then) = (now.context("no list")?, then.context("no list")?);
                    assert!(now.starts_with(then), "{class} {key}: {now:?}");
                }
                for input in expected["input"]["required"].as_object().into_iter().flatten() {
                    let known = ["required", "optional"]
                        .iter()
                        .any(|group| said["input"][group].get(input.0).is_some());
                    assert!(known, "{class} has no input {}", input.0);
                }
            } else {
                assert_eq!(&without_file_lists(said), &without_file_lists(expected), "{class}");
            }
            let alone = bed.get(&format!("object_info/{class}")).await?;
            assert_eq!(&alone[class], said, "{class} alone");
        }
        assert_eq!(bed.get("object_info/NoSuchNode").await?, json!({}));
        Ok(())
    })
}

/// The folder's files are options of nodes that load them.
fn without_file_lists(class: &Value) -> Value {
    let mut class = class.clone();
    if let Some(inputs) = class["input"]["required"].as_object_mut() {
        for (name, spec) in inputs.iter_mut() {
            if name == "image" && spec[0].is_array() {
                spec[0] = json!("files");
            }
        }
    }
    class
}

#[test]
fn every_route_has_its_twin_under_api() -> Result<()> {
    on_comfyui(async |bed| {
        for path in [
            "prompt",
            "queue",
            "history",
            "history/unknown",
            "object_info/SaveImage",
            "features",
            "embeddings",
            "models",
            "models/checkpoints",
        ] {
            assert_eq!(bed.get(path).await?, bed.get(&format!("api/{path}")).await?, "{path}");
        }
        for path in ["system_stats", "extensions", "view?filename=none.png", "no/such/route"] {
            let (bare, twin) = (bed.fetch(path).await?, bed.fetch(&format!("api/{path}")).await?);
            assert_eq!(bare.status(), twin.status(), "{path}");
        }
        for (path, body) in [
            ("prompt", json!({})),
            ("queue", json!({"delete": []})),
            ("history", json!({"delete": []})),
            ("interrupt", json!({"prompt_id": "unknown"})),
            ("free", json!({})),
        ] {
            assert_eq!(
                bed.post(path, &body).await?,
                bed.post(&format!("api/{path}"), &body).await?,
                "{path}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_foreign_page_is_refused() -> Result<()> {
    on_comfyui(async |bed| {
        let asked = bed.request("GET", "queue")?.header("Origin", "https://example.com").send().await?;
        assert_eq!(asked.status(), 403);
        let asked = bed.request("GET", "queue")?.header("Origin", bed.base().as_str().trim_end_matches('/'));
        assert_eq!(asked.send().await?.status(), 200);
        Ok(())
    })
}
