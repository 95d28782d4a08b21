//! The execution cache: the trap, and the two ways around it that the worker takes.

use std::fs;

use anyhow::{Context as _, Result};
use contract::prompt::prompt_from_value;

use comfy_worker::job::apply::{force_rerun, set_output_folder};
use serde_json::Value;

use super::{
    bed::on_comfyui,
    frames::{Ears, Heard, story},
    prompts::{inverted, prefix, saved},
};

#[test]
fn a_repeat_runs_nothing_and_names_the_old_files() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prompt = saved();
        let first = bed.prompt(&ears, &prompt).await?;
        ears.until_end(&first).await?;
        let outputs = bed.history(&first).await?["outputs"].take();
        let name = outputs["2"]["images"][0]["filename"].as_str().context("no file")?.to_owned();
        let file = bed.path.join("output").join(&name);
        fs::remove_file(&file)?;

        let second = bed.prompt(&ears, &prompt).await?;
        let heard = ears.until_end(&second).await?;
        let expected = [
            "execution_start",
            "execution_cached [\"1\",\"2\"]",
            "executed \"2\"",
            "progress_state 2=finished",
            "execution_success",
            "executing null",
        ];
        assert_eq!(story(&heard), expected);
        assert_eq!(bed.history(&second).await?["outputs"], outputs, "the old names");
        assert!(!file.exists(), "although the file is gone");
        Ok(())
    })
}

#[test]
fn a_folder_of_its_own_makes_only_the_saving_node_run() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prompt = inverted("picture");
        for folder in [prefix(), prefix()].iter().enumerate() {
            let (round, folder) = folder;
            let mut own = prompt_from_value(prompt.clone())?;
            set_output_folder(&mut own, folder)?;
            let id = bed.prompt(&ears, &Value::Object(own)).await?;
            let heard = ears.until_end(&id).await?;
            if round == 1 {
                assert_eq!(cached(&heard), ["1", "2"]);
                assert_eq!(ran(&heard), ["\"3\""]);
            }
            let image = bed.history(&id).await?["outputs"]["3"]["images"][0].take();
            assert_eq!(image["subfolder"], folder.as_str());
            assert!(bed.path.join("output").join(folder).join("picture_00001_.png").is_file());
        }
        Ok(())
    })
}

#[test]
fn an_input_that_the_node_does_not_know_makes_it_run_again() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let mut prompt = prompt_from_value(inverted(&prefix()))?;
        let id = bed.prompt(&ears, &Value::Object(prompt.clone())).await?;
        ears.until_end(&id).await?;

        force_rerun(&mut prompt, ["3"], "first");
        let id = bed.prompt(&ears, &Value::Object(prompt.clone())).await?;
        let heard = ears.until_end(&id).await?;
        assert_eq!((cached(&heard), ran(&heard)), (vec!["1".into(), "2".into()], vec!["\"3\"".into()]));
        let name = bed.history(&id).await?["outputs"]["3"]["images"][0]["filename"].take();
        assert!(name.as_str().is_some_and(|name| name.contains("_00002_")), "a new file: {name}");

        let id = bed.prompt(&ears, &Value::Object(prompt.clone())).await?;
        let heard = ears.until_end(&id).await?;
        assert_eq!(cached(&heard), ["1", "2", "3"], "the same nonce is the same input");

        // In the middle it takes everything after it along.
        force_rerun(&mut prompt, ["2"], "second");
        let id = bed.prompt(&ears, &Value::Object(prompt)).await?;
        let heard = ears.until_end(&id).await?;
        assert_eq!((cached(&heard), ran(&heard)), (vec!["1".into()], vec!["\"2\"".into(), "\"3\"".into()]));
        Ok(())
    })
}

#[test]
fn only_the_latest_prompt_is_remembered() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prompt = saved();
        for (prompt, expected) in [(&prompt, 0), (&prompt, 2), (&saved(), 0), (&prompt, 0)] {
            let id = bed.prompt(&ears, prompt).await?;
            let heard = ears.until_end(&id).await?;
            assert_eq!(cached(&heard).len(), expected);
        }
        Ok(())
    })
}

#[test]
fn freeing_memory_forgets_everything() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prompt = saved();
        let id = bed.prompt(&ears, &prompt).await?;
        ears.until_end(&id).await?;
        bed.client().free().await?;
        // It is applied after a prompt: that one may still be answered from the cache.
        for _ in 0..2 {
            let id = bed.prompt(&ears, &prompt).await?;
            let heard = ears.until_end(&id).await?;
            if cached(&heard).is_empty() {
                return Ok(());
            }
        }
        panic!("still cached after POST /free");
    })
}

fn cached(heard: &[Heard]) -> Vec<String> {
    let frame = heard.iter().find(|frame| frame.kind() == "execution_cached");
    let nodes = frame.and_then(|frame| frame.data()["nodes"].as_array()).into_iter().flatten();
    let mut nodes = nodes.filter_map(|node| node.as_str().map(str::to_owned)).collect::<Vec<_>>();
    nodes.sort();
    nodes
}

/// The nodes that ran, as `executing` named them.
fn ran(heard: &[Heard]) -> Vec<String> {
    let executing =
        story(heard).into_iter().filter_map(|label| label.strip_prefix("executing ").map(str::to_owned));
    executing.filter(|node| node != "null").collect()
}
