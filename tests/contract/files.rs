//! Files over HTTP, and what is written into them.

use std::fs;

use anyhow::{Context as _, Result};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use testbed::png;
use uuid::Uuid;

use super::{
    bed::{Bed, on_comfyui},
    frames::Ears,
    prompts::{image, prefix, save, saved},
};

#[test]
fn pictures_embed_prompt_and_workflow() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let (prefix, id) = (prefix(), Uuid::new_v4().to_string());
        let prompt = json!({"1": image(1), "2": save("1", &prefix)});
        let workflow = json!({"nodes": [], "note": "é 世界"});
        let body = json!({"prompt": prompt, "client_id": ears.client_id, "prompt_id": id,
                          "extra_data": {"extra_pnginfo": {"workflow": workflow}}});
        assert_eq!(bed.post("prompt", &body).await?.0, 200);
        ears.until_end(&id).await?;
        let file = fs::read(bed.path.join(format!("output/{prefix}_00001_.png")))?;
        let texts = png_texts(&file);
        let read = |key: &str| {
            let text = texts.iter().find(|(name, _)| name == key).map(|(_, text)| text.as_str());
            text.and_then(|text| serde_json::from_str::<Value>(text).ok())
        };
        assert_eq!(read("prompt"), Some(prompt));
        assert_eq!(read("workflow"), Some(workflow));
        Ok(())
    })
}

#[test]
fn view_serves_outputs_and_nothing_else() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let sub = prefix();
        let id = bed.prompt(&ears, &json!({"1": image(1), "2": save("1", &format!("{sub}/x"))})).await?;
        ears.until_end(&id).await?;
        let query = format!("filename=x_00001_.png&type=output&subfolder={sub}");
        for path in [format!("view?{query}"), format!("api/view?{query}")] {
            let answer = bed.fetch(&path).await?;
            assert_eq!(answer.status(), 200, "{path}");
            let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok());
            assert_eq!(kind, Some("image/png"));
            let file = fs::read(bed.path.join("output").join(&sub).join("x_00001_.png"))?;
            assert_eq!(answer.bytes().await?, file, "{path}");
        }
        for (query, status) in [
            (format!("filename=y.png&subfolder={sub}"), 404),
            (String::new(), 404),
            ("filename=".into(), 400),
            ("filename=../comfyui.log".into(), 400),
            ("filename=/etc/passwd".into(), 400),
            ("filename=x.png&type=nowhere".into(), 400),
            ("filename=comfyui.log&subfolder=..".into(), 403),
            ("filename=passwd&subfolder=/etc".into(), 403),
        ] {
            assert_eq!(bed.fetch(&format!("view?{query}")).await?.status(), status, "{query}");
        }
        Ok(())
    })
}

#[test]
fn an_uploaded_picture_can_be_loaded() -> Result<()> {
    on_comfyui(async |bed| {
        let picture = png(32, 16, shade);
        let (name, sub) = (format!("{}.png", prefix()), prefix());
        let fields = [("subfolder", sub.as_str())];
        let answer = upload(bed, &name, &picture, &fields).await?;
        assert_eq!(answer, (200, json!({"name": name, "subfolder": sub, "type": "input"})));
        let file = bed.path.join("input").join(&sub).join(&name);
        assert_eq!(fs::read(&file)?, picture);

        // Equal bytes keep the name, others get a new one unless told to overwrite.
        assert_eq!(upload(bed, &name, &picture, &fields).await?.1["name"], name.as_str());
        let other = png(16, 32, shade);
        let stem = name.trim_end_matches(".png");
        let renamed = upload(bed, &name, &other, &fields).await?.1["name"].take();
        assert_eq!(renamed, format!("{stem} (1).png"));
        let overwritten = [("subfolder", sub.as_str()), ("overwrite", "true")];
        assert_eq!(upload(bed, &name, &other, &overwritten).await?.1["name"], name.as_str());
        assert_eq!(fs::read(&file)?, other);

        assert_eq!(upload(bed, &name, &picture, &[("subfolder", "../../out")]).await?.0, 400);
        assert_eq!(upload(bed, "../../out.png", &picture, &[]).await?.0, 400);

        let mut ears = Ears::open(bed).await?;
        let load = json!({"class_type": "LoadImage", "inputs": {"image": format!("{sub}/{name}")}});
        let id = bed.prompt(&ears, &json!({"1": load, "2": save("1", &prefix())})).await?;
        ears.until_end(&id).await?;
        assert_eq!(bed.history(&id).await?["status"]["status_str"], "success");
        Ok(())
    })
}

#[test]
fn a_new_input_is_seen_and_a_changed_one_runs_again() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let name = format!("{}.png", prefix());
        let file = bed.path.join("input").join(&name);
        let load = json!({"class_type": "LoadImage", "inputs": {"image": name}});
        let prompt = json!({"1": load, "2": save("1", &prefix())});
        for (round, size) in [(1, 16), (2, 24)] {
            fs::write(&file, png(size, size, shade))?;
            let id = bed.prompt(&ears, &prompt).await?;
            ears.until_end(&id).await?;
            let made = bed.history(&id).await?["outputs"]["2"]["images"][0]["filename"].take();
            let made = made.as_str().context("no file")?.to_owned();
            assert!(made.contains(&format!("_0000{round}_")), "{made}");
            let bytes = fs::read(bed.path.join("output").join(made))?;
            assert_eq!(bytes.get(16..20), Some(&size.to_be_bytes()[..]), "its width");
        }
        fs::remove_file(&file)?;
        let body = json!({"prompt": prompt, "client_id": ears.client_id});
        assert_eq!(bed.post("prompt", &body).await?.0, 400, "gone, so refused");
        Ok(())
    })
}

#[test]
fn a_counter_goes_on_where_files_are() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let mut prompt = saved();
        let prefix = prompt["2"]["inputs"]["filename_prefix"].as_str().context("no prefix")?.to_owned();
        fs::write(bed.path.join(format!("output/{prefix}_00041_.png")), b"")?;
        prompt["1"] = image(2);
        let id = bed.prompt(&ears, &prompt).await?;
        ears.until_end(&id).await?;
        let images = bed.history(&id).await?["outputs"]["2"]["images"].take();
        let names = images.as_array().into_iter().flatten().filter_map(|image| image["filename"].as_str());
        assert_eq!(names.collect::<Vec<_>>(), [42, 43].map(|n| format!("{prefix}_000{n}_.png")));
        Ok(())
    })
}

async fn upload(bed: &Bed, name: &str, bytes: &[u8], fields: &[(&str, &str)]) -> Result<(u16, Value)> {
    let part = Part::bytes(bytes.to_vec()).file_name(name.to_owned()).mime_str("image/png")?;
    let mut form = Form::new().part("image", part);
    for (key, value) in fields {
        form = form.text((*key).to_owned(), (*value).to_owned());
    }
    let answer = bed.request("POST", "upload/image")?.multipart(form).send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.json().await.unwrap_or(Value::Null)))
}

/// The `tEXt` chunks of a PNG; text beyond Latin-1 is escaped JSON there.
fn png_texts(file: &[u8]) -> Vec<(String, String)> {
    let (mut found, mut rest) = (Vec::new(), file.get(8..).unwrap_or_default());
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let length = head.iter().take(4).fold(0, |length, byte| length << 8 | usize::from(*byte));
        let body = tail.get(..length).unwrap_or_default();
        if head.ends_with(b"tEXt") {
            let mut parts =
                body.splitn(2, |byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
            found.extend(parts.next().zip(parts.next()));
        }
        rest = tail.get(length + 4..).unwrap_or_default();
    }
    found
}

fn shade(x: u32, y: u32) -> [u8; 3] {
    [x, y, x + y].map(|value| value.to_le_bytes()[0])
}
