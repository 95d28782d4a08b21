//! The frames of a prompt's life and the history that it leaves.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    bed::{Bed, on_comfyui},
    control::without_time,
    frames::{Ears, Heard, labels, story},
    prompts::{fresh, image, prefix, save, saved},
};

#[test]
fn a_success_in_order() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prefix = prefix();
        let prompt = json!({"1": image(1), "2": save("1", &prefix)});
        let id = bed.prompt(&ears, &prompt).await?;
        let heard = ears.until_end(&id).await?;
        let expected = [
            "execution_start",
            "execution_cached []",
            "progress_state 1=running",
            "executing \"1\"",
            "progress_state 1=finished",
            "progress_state 1=finished 2=running",
            "executing \"2\"",
            "executed \"2\"",
            "progress_state 1=finished 2=finished",
            "execution_success",
            "executing null",
        ];
        assert_eq!(story(&heard), expected);
        let all = labels(&heard);
        let last = ["execution_success", "status 0", "executing null"];
        assert!(all.ends_with(&last.map(str::to_owned)), "{all:?}");
        for frame in heard.iter().filter(|frame| frame.kind() != "status") {
            assert_eq!(frame.data()["prompt_id"], id.as_str(), "{frame:?}");
        }

        let history = bed.history(&id).await?;
        assert_eq!(
            history.as_object().context("written before the null")?.keys().collect::<Vec<_>>(),
            ["prompt", "outputs", "status", "meta"]
        );
        let mut queued = history["prompt"].as_array().context("prompt")?.clone();
        without_time(&mut queued[3]);
        assert_eq!(queued.len(), 5);
        assert!(queued[0].is_number(), "{queued:?}");
        let rest = json!([id, prompt, {"client_id": ears.client_id}, ["2"]]);
        assert_eq!(Value::Array(queued[1..].to_vec()), rest);
        let file = json!({"filename": format!("{prefix}_00001_.png"), "subfolder": "", "type": "output"});
        assert_eq!(history["outputs"], json!({"2": {"images": [file]}}));
        let node = json!({"node_id": "2", "display_node": "2", "parent_node": null, "real_node_id": "2"});
        assert_eq!(history["meta"], json!({"2": node}));
        assert_eq!(verdict(&history), ("success", true));
        assert_eq!(messages(&history), ["execution_start", "execution_cached", "execution_success"]);
        assert!(bed.path.join(format!("output/{prefix}_00001_.png")).is_file());
        Ok(())
    })
}

#[test]
fn history_is_there_at_the_null_every_time() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        for _ in 0..10 {
            let id = bed.prompt(&ears, &saved()).await?;
            ears.until_end(&id).await?;
            assert!(bed.history(&id).await?.is_object());
        }
        Ok(())
    })
}

#[test]
fn an_error_in_order() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let id = bed.prompt(&ears, &json!({"1": image(1), "2": save("1", "../../evil")})).await?;
        let heard = ears.until_end(&id).await?;
        let expected = [
            "execution_start",
            "execution_cached []",
            "progress_state 1=running",
            "executing \"1\"",
            "progress_state 1=finished",
            "progress_state 1=finished 2=running",
            "executing \"2\"",
            "execution_error",
            "executing null",
        ];
        assert_eq!(story(&heard), expected);
        let all = labels(&heard);
        assert!(
            all.ends_with(&["execution_error", "status 0", "executing null"].map(str::to_owned)),
            "{all:?}"
        );
        let error = heard.iter().find(|frame| frame.kind() == "execution_error").map(Heard::data);
        let error = error.context("no error")?;
        let told = ["prompt_id", "node_id", "node_type", "exception_type"].map(|key| error[key].clone());
        assert_eq!(told, [id.as_str(), "2", "SaveImage", "Exception"].map(Value::from));
        let words = "**** ERROR: Saving image outside the output folder is not allowed.";
        assert!(error["exception_message"].as_str().is_some_and(|text| text.starts_with(words)), "{error}");
        assert_eq!(error["executed"], json!(["1"]));
        for (key, is) in
            [("traceback", Value::is_array as fn(&Value) -> bool), ("current_inputs", Value::is_object)]
        {
            assert!(is(&error[key]), "{key}: {error}");
        }

        let history = bed.history(&id).await?;
        assert_eq!(verdict(&history), ("error", false));
        assert_eq!(messages(&history), ["execution_start", "execution_cached", "execution_error"]);
        assert_eq!(history["status"]["messages"][2][1], *error, "the same words");
        assert_eq!(history["outputs"], json!({}));
        Ok(())
    })
}

#[test]
fn no_path_out_of_the_output_folder() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        for bad in ["../x", "a/../../x", "/tmp/x", "sub/../../../x"] {
            let id = bed.prompt(&ears, &json!({"1": image(1), "2": save("1", bad)})).await?;
            let heard = ears.until_end(&id).await?;
            assert!(
                heard.iter().any(|frame| frame.kind() == "execution_error"),
                "{bad}: {:?}",
                story(&heard)
            );
        }
        let inside = format!("a/../b/{}", prefix());
        let id = bed.prompt(&ears, &json!({"1": image(1), "2": save("1", &inside)})).await?;
        ears.until_end(&id).await?;
        assert_eq!(bed.history(&id).await?["outputs"]["2"]["images"][0]["subfolder"], "b");
        Ok(())
    })
}

#[test]
fn outputs_of_every_kind() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let sub = prefix();
        let batch = json!({"1": image(3), "2": save("1", &format!("{sub}/dir/pic"))});
        let images = output(bed, &mut ears, &batch, "2").await?["images"].take();
        let file = |n: u32| json!({"filename": format!("pic_0000{n}_.png"), "subfolder": format!("{sub}/dir"), "type": "output"});
        assert_eq!(images, json!([file(1), file(2), file(3)]));

        let preview =
            json!({"1": image(1), "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}});
        let images = output(bed, &mut ears, &preview, "2").await?["images"].take();
        assert_eq!(images[0]["type"], "temp");
        let name = images[0]["filename"].as_str().context("no name")?;
        assert!(bed.path.join("temp").join(name).is_file(), "{name}");

        let text = json!({"1": {"class_type": "PrimitiveString", "inputs": {"value": format!("é 世界 {}", fresh())}},
                          "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}});
        let shown = output(bed, &mut ears, &text, "2").await?;
        assert_eq!(shown["text"][0], text["1"]["inputs"]["value"]);

        let animated = json!({"1": image(4), "2": {"class_type": "SaveAnimatedWEBP", "inputs": {"images": ["1", 0],
            "filename_prefix": prefix(), "fps": 6.0, "lossless": true, "quality": 80, "method": "default"}}});
        let shown = output(bed, &mut ears, &animated, "2").await?;
        assert_eq!(shown["animated"], json!([true]));
        assert_eq!(shown["images"].as_array().map(Vec::len), Some(1));

        let latent = json!({"1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "2": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0], "filename_prefix": prefix()}}});
        let shown = output(bed, &mut ears, &latent, "2").await?;
        assert_eq!(shown["latents"][0]["type"], "output");
        Ok(())
    })
}

async fn output(bed: &Bed, ears: &mut Ears, prompt: &Value, node: &str) -> Result<Value> {
    let id = bed.prompt(ears, prompt).await?;
    ears.until_end(&id).await?;
    let mut history = bed.history(&id).await?;
    assert_eq!(verdict(&history), ("success", true), "{history}");
    Ok(history["outputs"][node].take())
}

pub(crate) fn verdict(history: &Value) -> (&str, bool) {
    let status = &history["status"];
    (status["status_str"].as_str().unwrap_or_default(), status["completed"] == true)
}

pub(crate) fn messages(history: &Value) -> Vec<&str> {
    let messages = history["status"]["messages"].as_array().into_iter().flatten();
    messages.filter_map(|message| message[0].as_str()).collect()
}
