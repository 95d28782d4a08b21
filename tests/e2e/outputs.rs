//! Every kind of output that ComfyUI has.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    answer::{ask, bytes, picture},
    prompts::{alone, color, node},
    suite::Suite,
};

pub(crate) async fn a_batch_in_a_subfolder(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(0xff_00_00, 1), "2": color(0x00_ff_00, 1), "3": color(0x00_00_ff, 1),
        "4": node("ImageBatch", json!({"image1": ["1", 0], "image2": ["2", 0]})),
        "5": node("ImageBatch", json!({"image1": ["4", 0], "image2": ["3", 0]})),
        "6": node("SaveImage", json!({"images": ["5", 0], "filename_prefix": "series/of three/shot"})),
        // The same names again, in another folder.
        "7": node("SaveImage", json!({"images": ["4", 0], "filename_prefix": "shot"})),
    });
    let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
    let home = format!("s3://{}/jobs/{}/1/outputs", bench.bucket("results"), answer.id);
    for (save, folder, count) in [("6", "/series/of three", 3), ("7", "", 2)] {
        let outputs = answer.outputs_of(save)?;
        ensure!(outputs.len() == count, "{outputs:#?}");
        for (index, (output, color)) in
            outputs.into_iter().zip([0xff_00_00, 0x00_ff_00, 0x00_00_ff]).enumerate()
        {
            ensure!(output["index"] == index, "{output}");
            ensure!(output["uri"] == format!("{home}{folder}/shot_{:05}_.png", index + 1), "{output}");
            picture(&bench, output).await?.ensure_color(color, bench.tolerance())?;
        }
    }
    let uploaded = answer.event_names().iter().filter(|name| **name == "uploaded").count();
    ensure!(uploaded == 5, "{uploaded} uploads were told of");
    Ok(())
}

pub(crate) async fn temp_files_when_asked_for(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({"1": color(0x77_88_99, 2), "2": node("PreviewImage", json!({"images": ["1", 0]}))});
    let job = |include_temp: bool| json!({"workflow": workflow, "output": {"include_temp": include_temp}});
    let without = ask(&bench, job(false)).await?.succeeded()?;
    ensure!(without.outputs()?.is_empty(), "{:#}", without.result);
    let with = ask(&bench, job(true)).await?.succeeded()?;
    ensure!(with.outputs()?.len() == 2, "{:#}", with.result);
    for output in with.outputs()? {
        ensure!(output["temp"] == true && output["key"] == "images", "{output}");
        picture(&bench, output).await?.ensure_color(0x77_88_99, bench.tolerance())?;
    }
    Ok(())
}

pub(crate) async fn texts(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let words = "äöü \u{1f98a} \"quoted\"\nand a second line";
    let workflow = json!({
        "1": node("PrimitiveStringMultiline", json!({"value": words})),
        "2": node("PreviewAny", json!({"source": ["1", 0]})),
        "3": node("PrimitiveInt", json!({"value": 42})),
        "4": node("PreviewAny", json!({"source": ["3", 0]})),
    });
    let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
    let wanted = |node: &str, text: &str| json!({"node": node, "key": "text", "index": 0, "kind": "text", "text": text});
    ensure!(*answer.outputs()? == [wanted("2", words), wanted("4", "42")], "{:#}", answer.result);
    Ok(())
}

pub(crate) async fn animations(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let webp = json!({
        "images": ["3", 0], "filename_prefix": "moving", "fps": 6.0, "lossless": true, "quality": 80, "method": "default",
    });
    let png = json!({"images": ["3", 0], "filename_prefix": "moving", "fps": 6.0, "compress_level": 4});
    let workflow = json!({
        "1": color(0xff_00_00, 1), "2": color(0x00_00_ff, 1),
        "3": node("ImageBatch", json!({"image1": ["1", 0], "image2": ["2", 0]})),
        "4": node("SaveAnimatedWEBP", webp),
        "5": node("SaveAnimatedPNG", png),
    });
    let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
    ensure!(answer.outputs()?.len() == 2, "`animated: [true]` is no output: {:#}", answer.result);

    let output = answer.outputs_of("4")?[0];
    ensure!(output["content_type"] == "image/webp" && output["kind"] == "image", "{output}");
    let webp = bytes(&bench, output).await?;
    ensure!(webp.starts_with(b"RIFF") && webp.get(8..12) == Some(b"WEBP"), "no WebP");
    let frames = webp.windows(4).filter(|window| window == b"ANMF").count();
    ensure!(frames == 2, "{frames} frames");

    let output = answer.outputs_of("5")?[0];
    ensure!(output["content_type"] == "image/png" && output["kind"] == "image", "{output}");
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes(&bench, output).await?)).read_info()?;
    let frames = reader.info().animation_control().map(|control| control.num_frames);
    ensure!(frames == Some(2), "{frames:?} frames");
    let mut pixels = vec![0; reader.output_buffer_size().context("a huge PNG")?];
    reader.next_frame(&mut pixels)?;
    let first = pixels.first_chunk::<3>();
    reader.next_frame(&mut pixels.clone())?;
    ensure!(first.is_some_and(|[red, ..]| red.abs_diff(255) <= bench.tolerance()), "{first:?}");
    Ok(())
}

pub(crate) async fn video_and_latent(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": node("EmptyImage", json!({"width": 64, "height": 64, "batch_size": 8, "color": 0x40_80_c0})),
        "2": node("CreateVideo", json!({"images": ["1", 0], "fps": 8.0})),
        "3": node("SaveVideo", json!({"video": ["2", 0], "filename_prefix": "video/clip", "format": "auto", "codec": "auto"})),
        "4": node("EmptyLatentImage", json!({"width": 64, "height": 64, "batch_size": 1})),
        "5": node("SaveLatent", json!({"samples": ["4", 0], "filename_prefix": "latents/x"})),
    });
    let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
    let video = answer.outputs_of("3")?[0];
    ensure!(video["kind"] == "video" && video["content_type"] == "video/mp4", "{video}");
    ensure!(
        video["uri"].as_str().is_some_and(|uri| uri.ends_with("/outputs/video/clip_00001_.mp4")),
        "{video}"
    );
    ensure!(bytes(&bench, video).await?.get(4..8) == Some(b"ftyp"), "no MP4");

    let latent = answer.outputs_of("5")?[0];
    ensure!(latent["kind"] == "latent" && latent["key"] == "latents", "{latent}");
    let latent = bytes(&bench, latent).await?;
    let (length, rest) = latent.split_first_chunk::<8>().context("a short latent")?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length))?).context("a short header")?;
    let header: Value = serde_json::from_slice(header)?;
    ensure!(header["latent_tensor"]["shape"] == json!([1, 4, 8, 8]), "{header}");
    Ok(())
}

/// They exist as binary frames only, and none of them in the history.
pub(crate) async fn websocket_pictures(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(0xff_80_00, 1), "2": color(0x00_80_ff, 1),
        "3": node("ImageBatch", json!({"image1": ["1", 0], "image2": ["2", 0]})),
        "4": node("SaveImageWebsocket", json!({"images": ["3", 0]})),
    });
    for _ in 0..2 {
        let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
        let outputs = answer.outputs_of("4")?;
        ensure!(outputs.len() == 2, "{:#}", answer.result);
        for (index, (output, color)) in outputs.into_iter().zip([0xff_80_00, 0x00_80_ff]).enumerate() {
            ensure!(
                output["index"] == index && output["kind"] == "image" && output["temp"] == false,
                "{output}"
            );
            picture(&bench, output).await?.ensure_color(color, bench.tolerance())?;
        }
    }
    Ok(())
}

/// A node that ComfyUI remembers sends nothing the second time: it is run again.
pub(crate) async fn remembered_websocket_pictures(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let workflow = json!({
        "1": color(0x12_80_ff, 1), "2": node("StandinWebsocketImage", json!({"image": ["1", 0]})),
    });
    for _ in 0..2 {
        let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
        picture(&bench, answer.only_output()?).await?.ensure_color(0x12_80_ff, bench.tolerance())?;
        ensure!(answer.result["nodes"]["1"].is_object(), "{:#}", answer.result);
    }
    Ok(())
}

pub(crate) async fn presigned_links(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(0x0a_0b_0c, 1),
        "2": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": "with blanks/ä & b"})),
    });
    let job = json!({"workflow": workflow, "output": {"presign_seconds": 60}});
    let answer = ask(&bench, job).await?.succeeded()?;
    let output = answer.only_output()?;
    let url = output["url"].as_str().context("no url")?;
    ensure!(url.contains("X-Amz-Expires=60"), "{url}");
    let fetched = reqwest::get(url).await?.error_for_status()?.bytes().await?;
    ensure!(fetched == bytes(&bench, output).await?, "the link leads to other bytes");
    let without_signature = url.split('?').next().unwrap_or_default();
    let status = reqwest::get(without_signature).await?.status();
    ensure!(status == 403, "without its signature: {status}");
    Ok(())
}

/// Files under whatever key a custom node lists them.
pub(crate) async fn any_key(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let cases = [
        ("gifs", "webm", "video", "video/webm"),
        ("audio", "flac", "audio", "audio/flac"),
        ("3d", "glb", "model", "model/gltf-binary"),
        ("result", "bin", "file", "application/octet-stream"),
        ("a key of its own", "safetensors", "file", "application/octet-stream"),
    ];
    for (key, extension, kind, content_type) in cases {
        let inputs = json!({
            "key": key, "filename_prefix": "any/f", "extension": extension, "count": 2, "type": "output", "seed": 5,
        });
        let answer =
            ask(&bench, json!({"workflow": alone("StandinCustomOutput", inputs)})).await?.succeeded()?;
        let outputs = answer.outputs_of("1")?;
        ensure!(outputs.len() == 2, "{outputs:#?}");
        for (index, output) in outputs.into_iter().enumerate() {
            ensure!(output["key"] == key && output["kind"] == kind, "{output}");
            ensure!(output["content_type"] == content_type, "{output}");
            let text = String::from_utf8(bytes(&bench, output).await?)?;
            ensure!(text == format!("{key} {index} of seed 5\n"), "{text}");
        }
    }
    // What a node lists out of `input` is nothing that it made.
    let inputs = json!({"key": "k", "filename_prefix": "f", "extension": "bin", "count": 1, "type": "temp", "seed": 6});
    let job = json!({"workflow": alone("StandinCustomOutput", inputs), "output": {"include_temp": true}});
    let answer = ask(&bench, job).await?.succeeded()?;
    ensure!(answer.only_output()?["temp"] == true, "{:#}", answer.result);
    Ok(())
}
