//! The same again: prompts that ComfyUI has in its execution cache, messages that come twice.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    answer::{Answer, ask, bytes, picture},
    picture::{decoded_pattern, pattern},
    prompts::{alone, color, invert, node, save},
    publisher::Publisher,
    suite::Suite,
};

/// The trap: ComfyUI answers the second one from its cache, with names of files that are gone.
pub(crate) async fn same_prompt_again(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let input = bench.input("again.png", &pattern(20)).await?;
    let mut workflow = invert("x");
    workflow["4"] = node("PreviewImage", json!({"images": ["2", 0]}));
    let mut first: Option<Vec<u8>> = None;
    for include_temp in [false, false, true, true] {
        // The same staged name each time, so that the prompts are the same but for their folder.
        let file = json!({"source": input, "folder": "input", "name": "again.png", "ephemeral": true});
        let job = json!({
            "workflow": workflow, "inputs": {"1.image": "again.png"}, "files": [file],
            "output": {"include_temp": include_temp},
        });
        let answer = ask(&bench, job).await?.succeeded()?;
        let count = if include_temp { 2 } else { 1 };
        ensure!(answer.outputs()?.len() == count, "{:#}", answer.result);
        for output in answer.outputs()? {
            let made = picture(&bench, output).await?;
            made.ensure_is(|value| 255 - value, &decoded_pattern(20)?, bench.tolerance())?;
        }
        let saved = answer.outputs_of("3")?[0];
        ensure!(saved["filename"] == "inverted_00001_.png" && saved["temp"] == false, "{saved}");
        // The nodes before it are not run again; its pixels are the same bytes.
        let saved = without_text(&bytes(&bench, saved).await?)?;
        match &first {
            None => first = Some(saved),
            Some(first) => {
                ensure!(*first == saved, "the second picture has other pixels");
                ensure!(answer.result["nodes"]["2"]["cached"] == true, "{}", answer.result["nodes"]);
            }
        }
        if include_temp {
            ensure!(answer.outputs_of("4")?[0]["temp"] == true, "{:#}", answer.result);
        }
    }
    Ok(())
}

/// The pixel data of a PNG, as it is packed.
fn without_text(png: &[u8]) -> Result<Vec<u8>> {
    let (mut rest, mut data) = (png.get(8..).unwrap_or_default(), Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let end = 4 + usize::try_from(u32::from_be_bytes(*length))?;
        if let Some(chunk) = after.get(..end).filter(|chunk| chunk.starts_with(b"IDAT")) {
            data.extend_from_slice(&chunk[4..]);
        }
        rest = after.get(end + 4..).unwrap_or_default();
    }
    ensure!(!data.is_empty(), "no IDAT");
    Ok(data)
}

/// A prefix that comes from another node cannot be made the job's own: the save node is run again
/// once its files are found missing.
pub(crate) async fn linked_prefix_again(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = json!({
        "1": color(0x12_34_56, 1),
        "2": node("PrimitiveString", json!({"value": "linked/prefix"})),
        "3": node("SaveImage", json!({"images": ["1", 0], "filename_prefix": ["2", 0]})),
    });
    for _ in 0..2 {
        let answer = ask(&bench, json!({"workflow": workflow})).await?.succeeded()?;
        let output = answer.only_output()?;
        let uri = output["uri"].as_str().unwrap_or_default();
        ensure!(uri.ends_with("/1/outputs/linked/prefix_00001_.png"), "{uri}");
        answer.only_picture(&bench).await?.ensure_color(0x12_34_56, bench.tolerance())?;
    }
    Ok(())
}

/// What the stand-in has executed so far.
fn prompts(stats: &Value) -> usize {
    stats["prompts"].as_array().map_or(0, Vec::len)
}

pub(crate) async fn one_job_published_twice(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let mut publisher = Publisher::connect(&bench).await?;
    let before = prompts(&bench.stats().await?);
    let job = json!({
        "id": format!("twice-{}", Uuid::new_v4().simple()), "workflow": alone("StandinSleep", json!({"seconds": 0.3})),
        "metadata": {"n": 1},
    });
    let body = serde_json::to_vec(&job)?;
    let ids = [publisher.ask(&body).await?, publisher.ask(&body).await?];
    let replies = [publisher.reply().await?, publisher.reply().await?];
    ensure!(replies[0].body == replies[1].body, "two answers to one job");
    let answered = replies.each_ref().map(|reply| reply.correlation_id.clone().unwrap_or_default());
    ensure!(answered == ids, "{answered:?}");
    Answer::read(replies[0].body.clone())?.succeeded()?;
    let executed = prompts(&bench.stats().await?) - before;
    ensure!(executed == 1, "{executed} executions");
    Ok(())
}

/// As after a lost ack, later and by another publisher.
pub(crate) async fn a_finished_job_again(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let workflow = alone("StandinFail", json!({"message": "once is enough", "exception_type": "ValueError"}));
    for workflow in [save(0x44_55_66, "x"), workflow] {
        let job = json!({"id": format!("again-{}", Uuid::new_v4().simple()), "workflow": workflow});
        let answer = ask(&bench, job.clone()).await?;
        let before = prompts(&bench.stats().await?);
        let mut publisher = Publisher::connect(&bench).await?;
        publisher.ask(&serde_json::to_vec(&job)?).await?;
        ensure!(publisher.reply().await?.body == answer.body, "another answer");
        ensure!(prompts(&bench.stats().await?) == before, "it was run again");
    }
    Ok(())
}

pub(crate) async fn another_body_under_the_same_id(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let id = format!("conflict-{}", Uuid::new_v4().simple());
    let job = |color: u32| json!({"id": id, "workflow": save(color, "x"), "metadata": color});
    let first = ask(&bench, job(1)).await?.succeeded()?;
    let second = ask(&bench, job(2)).await?;
    let error = second.failed("id_conflict", "accept")?;
    ensure!(error["message"].as_str().is_some_and(|text| text.contains(&id)), "{error}");
    // The first one's answer stands.
    let mut publisher = Publisher::connect(&bench).await?;
    publisher.ask(&serde_json::to_vec(&job(1))?).await?;
    ensure!(publisher.reply().await?.body == first.body, "another answer");

    // Also when one of the two is no job.
    let id = format!("conflict-{}", Uuid::new_v4().simple());
    let refused = ask(&bench, json!({"id": id, "workflow": save(3, "x"), "typo": 1})).await?;
    refused.failed("invalid_job", "accept")?;
    let second = ask(&bench, json!({"id": id, "workflow": save(3, "x")})).await?;
    second.failed("id_conflict", "accept")?;
    let third = ask(&bench, json!({"id": first.id, "workflow": save(1, "x"), "typo": 1})).await?;
    ensure!(third.result["status"] == "failed", "a refused body was answered with another job's result");
    Ok(())
}
