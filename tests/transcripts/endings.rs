//! Each recording comes to its right end, with its outputs and node times.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use connector::comfy::{
    events::Event,
    history::{ExecutionOutcome, OutputContent, OutputItem},
    tracker::Step,
};

use super::recording::{Played, Recording};

/// (transcript, outputs as `node key index where`, cached nodes, timed nodes)
type Ran = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const SUCCEEDED: [Ran; 10] = [
    ("success", &["2 images 0 output//shot_00001_.png"], &[], &["1", "2"]),
    ("fully-cached-repeat", &["2 images 0 output//shot_00001_.png"], &["1", "2"], &[]),
    ("preview-temp-output", &["2 images 0 temp//ComfyUI_temp_RANDOM_00001_.png"], &[], &["1", "2"]),
    (
        "batch-and-subfolder",
        &[
            "2 images 0 output/sub/dir/pic_00001_.png",
            "2 images 1 output/sub/dir/pic_00002_.png",
            "2 images 2 output/sub/dir/pic_00003_.png",
        ],
        &[],
        &["1", "2"],
    ),
    ("text-output", &["2 text 0 \"hello é 世界\""], &[], &["1", "2"]),
    // Beside `animated: [true]`, which is no output.
    ("animated-output", &["2 images 0 output//anim_00001_.webp"], &[], &["1", "2"]),
    ("video-output", &["2 images 0 output/video/clip_00001_.mp4"], &[], &["1", "2", "3"]),
    ("latent-output", &["2 latents 0 output/latents/x_00001_.latent"], &[], &["1", "2"]),
    ("websocket-image-output", &[], &[], &["1", "2"]),
    ("partly-invalid-outputs-dropped", &["2 images 0 output//shot_00002_.png"], &[], &["1", "2"]),
];

/// A preview's name has five random letters.
fn without_random(shown: String) -> String {
    match shown.split_once("ComfyUI_temp_") {
        Some((before, after)) => format!("{before}ComfyUI_temp_RANDOM{}", after.get(5..).unwrap_or_default()),
        None => shown,
    }
}

#[test]
fn successes_bring_their_outputs_from_under_any_key() -> Result<()> {
    let versions = ["", " of 0.33.0"].into_iter();
    for (version, (name, outputs, cached, timed)) in
        versions.flat_map(|version| SUCCEEDED.map(|expected| (version, expected)))
    {
        let recording = Recording::named(&format!("{name}{version}"))?;
        let history = recording.history.as_ref().context("no history")?;
        assert_eq!(history.outcome(), ExecutionOutcome::Succeeded, "{name}");
        assert_eq!(
            history.outputs().iter().map(shown).map(without_random).collect::<Vec<_>>(),
            outputs,
            "{name}"
        );
        assert_eq!(history.cached_nodes(), cached, "{name}");
        assert!(history.executed_ms().is_some_and(|ms| ms < 5_000), "{name}: {:?}", history.executed_ms());

        let played = recording.play();
        assert_eq!(played.failures, [], "{name}");
        let of = |cached| {
            let nodes = played.timings.iter().filter(|(_, timing)| timing.cached == cached);
            nodes.map(|(node, _)| node.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(of(true), cached, "{name}: cached nodes");
        assert_eq!(of(false), timed, "{name}: timed nodes");
    }
    Ok(())
}

#[test]
fn every_run_starts_moves_forward_and_ends_once_and_last() -> Result<()> {
    for recording in Recording::all()?.into_iter().filter(|recording| recording.status == 200) {
        let name = &recording.name;
        let Played { steps, .. } = recording.play();
        assert_eq!(steps.first(), Some(&Step::Started), "{name}");
        assert_eq!(steps.last(), Some(&Step::Ended), "{name}");
        for (what, step) in [("end", Step::Ended), ("start", Step::Started)] {
            assert_eq!(steps.iter().filter(|each| **each == step).count(), 1, "{name}: one {what}");
        }
        let mut last = 0.0;
        for step in &steps {
            if let Step::Progress(progress) = step {
                assert!((last..=1.0).contains(&progress.fraction), "{name}: {last} then {progress:?}");
                last = progress.fraction;
                assert!(recording.prompt.contains_key(&progress.node), "{name}: {progress:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn refused_prompts_have_no_frames_and_no_history() -> Result<()> {
    let recordings = Recording::all()?;
    let refused = recordings.iter().filter(|recording| recording.status == 400).collect::<Vec<_>>();
    assert_eq!(refused.len(), 2 * 6);
    for recording in refused {
        assert!(recording.lines.is_empty() && recording.history.is_none(), "{}", recording.name);
    }
    Ok(())
}

#[test]
fn an_error_keeps_comfyuis_words() -> Result<()> {
    let recording = Recording::named("execution-error")?;
    let outcome = recording.history.as_ref().context("no history")?.outcome();
    let ExecutionOutcome::Failed(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(
        (failure.node_id.as_str(), failure.node_type.as_str(), failure.exception_type.as_str()),
        ("2", "SaveImage", "Exception")
    );
    let words = "Saving image outside the output folder is not allowed";
    assert!(failure.exception_message.contains(words), "{failure}");
    assert!(failure.traceback.len() > 2 && failure.traceback.iter().any(|line| line.contains("save_images")));
    let played = recording.play();
    assert_eq!(played.failures, [Event::Failed(failure)], "websocket and history agree");
    assert!(played.timings.contains_key("2"), "the node that failed has a time, too: {:?}", played.timings);
    Ok(())
}

#[test]
fn an_interrupt_is_told_from_an_error() -> Result<()> {
    let recording = Recording::named("interrupted")?;
    let history = recording.history.as_ref().context("no history")?;
    assert_eq!(history.outcome(), ExecutionOutcome::Interrupted);
    assert_eq!(history.outputs(), []);
    let played = recording.play();
    assert_eq!(played.failures, [Event::Interrupted]);
    let ms = played.timings.get("1").map(|timing| timing.ms).unwrap_or_default();
    assert!((1_885.0..1_886.0).contains(&ms), "from 0.0121 s to 1.8973 s: {ms}");
    Ok(())
}

#[test]
fn websocket_pictures_are_outputs_where_the_node_says_so_and_previews_elsewhere() -> Result<()> {
    let mut recording = Recording::named("websocket-image-output")?;
    let steps = recording.play().steps;
    let outputs = steps.iter().filter_map(|step| match step {
        Step::Output(image) => Some((image.node.as_str(), image.index, image.image.content_type)),
        _ => None,
    });
    assert_eq!(outputs.collect::<Vec<_>>(), [("2", 0, "image/png"), ("2", 1, "image/png")]);
    for step in &steps {
        if let Step::Output(output) = step {
            assert!(output.image.bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "metadata cut off");
        }
    }
    assert!(!steps.iter().any(|step| matches!(step, Step::Preview(_))));

    let save = recording.prompt.get_mut("2").and_then(|node| node.get_mut("class_type"));
    *save.context("no node 2")? = "KSampler".into();
    let steps = recording.play().steps;
    assert_eq!(steps.iter().filter(|step| matches!(step, Step::Preview(_))).count(), 2);
    assert!(!steps.iter().any(|step| matches!(step, Step::Output(_))));
    Ok(())
}

#[test]
fn cached_nodes_count_as_done() -> Result<()> {
    let recording = Recording::named("fully-cached-repeat")?;
    let timings = recording.play().timings;
    let expected = ["1", "2"].map(|node| (node.to_owned(), (0.0, true)));
    let found = timings.into_iter().map(|(node, timing)| (node, (timing.ms, timing.cached)));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), BTreeMap::from(expected));
    Ok(())
}

fn shown(item: &OutputItem) -> String {
    let what = match &item.content {
        OutputContent::File { filename, subfolder, folder } => format!("{folder}/{subfolder}/{filename}"),
        OutputContent::Text(text) => format!("{text:?}"),
    };
    format!("{} {} {} {what}", item.node, item.key, item.index)
}
