//! Jobs that succeed, whole: what comes in, what comes out, where it lies.

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lapin::BasicProperties;
use serde_json::{Value, json};
use testbed::wait_for;
use uuid::Uuid;

use crate::{
    answer::{Answer, ask},
    bench::Bench,
    contract::sha256,
    picture::{Picture, decoded_pattern, pattern},
    prompts::{alone, invert, invert_workflow, save},
    publisher::Publisher,
    suite::{SOON, Suite},
};

pub(crate) async fn ui_workflow_with_an_s3_picture(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let landscape = testbed::landscape();
    let uri = bench.input("landscape.png", &landscape).await?;
    let metadata = json!({"order": 7, "of": ["a", null, {"b": 1.5}]});
    let job = json!({
        "version": 1, "id": format!("Ui.job_{}", Uuid::new_v4().simple()), "workflow": invert_workflow()?,
        "inputs": {"1.image": uri}, "metadata": metadata,
    });
    let answer = ask(&bench, job).await?.succeeded()?;
    let Answer { id, result, .. } = &answer;

    let home = format!("s3://{}/jobs/{id}", bench.bucket("results"));
    let output = answer.only_output()?;
    let shown = ["node", "key", "index", "kind", "filename", "uri", "content_type", "temp"];
    ensure!(
        shown.map(|field| output[field].clone())
            == [
                json!("3"),
                json!("images"),
                json!(0),
                json!("image"),
                json!("inverted_00001_.png"),
                json!(format!("{home}/1/outputs/inverted_00001_.png")),
                json!("image/png"),
                json!(false)
            ],
        "{output:#}"
    );
    ensure!(output.get("url").is_none(), "a link that nobody asked for");
    let made = answer.only_picture(&bench).await?;
    made.ensure_is(|value| 255 - value, &Picture::read(&landscape)?, bench.tolerance())?;

    ensure!(result["history"] == format!("{home}/1/history.json"), "{}", result["history"]);
    ensure!(result["prompt"] == format!("{home}/1/prompt.json"), "{}", result["prompt"]);
    let prompt = bench.json(&format!("{home}/1/prompt.json")).await?;
    let name = prompt["1"]["inputs"]["image"].as_str().unwrap_or_default();
    ensure!(name.starts_with(&format!("{id}-")) && name.ends_with("/landscape.png"), "{prompt:#}");
    ensure!(prompt["2"]["class_type"] == "ImageInvert", "{prompt:#}");
    let history = bench.json(&format!("{home}/1/history.json")).await?;
    ensure!(history["status"]["status_str"] == "success", "{history:#}");
    ensure!(history["outputs"]["3"]["images"][0]["filename"] == "inverted_00001_.png", "{history:#}");

    // Both are in the picture, as if a person had saved it in ComfyUI's page.
    let chunk = |name: &str| -> Result<Value> {
        Ok(serde_json::from_str(made.texts.get(name).with_context(|| format!("no chunk {name}"))?)?)
    };
    ensure!(chunk("prompt")?["2"] == prompt["2"], "prompt: {}", chunk("prompt")?);
    let types: Vec<Value> = chunk("workflow")?["nodes"]
        .as_array()
        .context("no nodes")?
        .iter()
        .map(|node| node["type"].clone())
        .collect();
    ensure!(types == ["LoadImage", "ImageInvert", "SaveImage"], "workflow: {types:?}");

    for node in ["1", "2", "3"] {
        let timing = &result["nodes"][node];
        ensure!(timing["ms"].is_f64() && timing["cached"] == false, "node {node}: {timing}");
    }
    ensure!(result["timings"]["converted_ms"] != 0, "{}", result["timings"]);
    ensure!(result["warnings"] == json!([]), "{}", result["warnings"]);
    story(&answer)?;
    // The ack follows the answer, and the broker's figures follow the ack.
    let none = || async { waiting(suite, &bench).await.is_ok_and(|counts| counts == (0, 0)) };
    wait_for("the queue to be empty", SOON, none).await?;
    Ok(())
}

/// Every event in its place; staging and conversion go side by side, progress comes several times.
fn story(answer: &Answer) -> Result<()> {
    let mut names = answer.event_names();
    names.dedup();
    let expected = [
        "accepted",
        "staged",
        "converted",
        "queued",
        "started",
        "progress",
        "executed",
        "uploaded",
        "finished",
    ];
    ensure!(names == expected, "{names:?}");
    let event = |name: &str| {
        answer.events.iter().rev().find(|event| event["event"] == name).with_context(|| format!("no {name}"))
    };
    ensure!(event("staged")?["files"] == 1, "{}", event("staged")?);
    ensure!(event("converted")?["nodes"] == 3, "{}", event("converted")?);
    ensure!(event("queued")?["prompt_id"].as_str().is_some_and(|id| id.parse::<Uuid>().is_ok()));
    let progress = event("progress")?;
    ensure!(progress["node"].is_string() && progress["title"].is_string(), "{progress}");
    ensure!(progress["fraction"].as_f64().is_some_and(|fraction| (0.0..=1.0).contains(&fraction)));
    let output = answer.only_output()?;
    let uploaded = event("uploaded")?;
    ensure!(uploaded["filename"] == output["filename"] && uploaded["bytes"] == output["size"], "{uploaded}");
    ensure!(uploaded["done"] == 1 && uploaded["of"] == 1, "{uploaded}");
    Ok(())
}

/// Messages in the bench's queue: waiting, delivered and not acked.
async fn waiting(suite: &Suite, bench: &Bench) -> Result<(u64, u64)> {
    let columns = ["name", "messages_ready", "messages_unacknowledged"];
    let command = [&["list_queues", "--no-table-headers"], &columns[..]].concat();
    let list = suite.site().await?.broker.ctl(&command).await?;
    let queue = list.lines().find_map(|line| line.strip_prefix(&format!("{}\t", bench.topology().jobs)));
    let (ready, unacked) = queue.and_then(|line| line.split_once('\t')).context("no such queue")?;
    Ok((ready.parse()?, unacked.parse()?))
}

pub(crate) async fn prompt_with_a_data_uri(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let data = format!("data:image/png;base64,{}", STANDARD.encode(pattern(1)));
    let answer = ask(&bench, json!({"workflow": invert("nothing.png"), "inputs": {"1.image": data}})).await?;
    let answer = answer.succeeded()?;
    let made = answer.only_picture(&bench).await?;
    made.ensure_is(|value| 255 - value, &decoded_pattern(1)?, bench.tolerance())?;
    ensure!(
        made.texts.contains_key("prompt") && !made.texts.contains_key("workflow"),
        "{:?}",
        made.texts.keys()
    );
    Ok(())
}

pub(crate) async fn workflow_by_its_address(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let picture = bench.input("picture.png", &pattern(2)).await?;
    for (name, workflow) in [("prompt.json", invert("nothing.png")), ("workflow.json", invert_workflow()?)] {
        let uri = bench.input(name, &serde_json::to_vec(&workflow)?).await?;
        let answer =
            ask(&bench, json!({"workflow_uri": uri, "inputs": {"1.image": picture}})).await?.succeeded()?;
        let made = answer.only_picture(&bench).await?;
        made.ensure_is(|value| 255 - value, &decoded_pattern(2)?, bench.tolerance())?;
    }
    Ok(())
}

pub(crate) async fn outputs_elsewhere(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let renders = bench.bucket("renders");
    let job = json!({"workflow": save(0x33_66_99, "x"), "output": {"uri": format!("s3://{renders}/team-a")}});
    let answer = ask(&bench, job).await?.succeeded()?;
    let home = format!("team-a/{}/1", answer.id);
    let keys: Vec<String> = bench.objects("renders", "").await?.into_iter().map(|(key, _)| key).collect();
    let wanted = ["history.json", "outputs/x_00001_.png", "prompt.json"].map(|name| format!("{home}/{name}"));
    ensure!(keys == wanted, "{keys:?}");
    ensure!(answer.result["history"] == format!("s3://{renders}/{home}/history.json"));
    answer.only_picture(&bench).await?.ensure_color(0x33_66_99, bench.tolerance())
}

pub(crate) async fn runpod_body(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let body = json!({"input": {
        "workflow": invert("cat.png"),
        "images": [{"name": "cat.png", "image": STANDARD.encode(pattern(3))}],
    }});
    let answer = ask(&bench, body.clone()).await?.succeeded()?;
    let made = answer.only_picture(&bench).await?;
    made.ensure_is(|value| 255 - value, &decoded_pattern(3)?, bench.tolerance())?;
    // No id anywhere: it is the body's digest.
    ensure!(answer.id == sha256(&serde_json::to_vec(&body)?), "{}", answer.id);
    Ok(())
}

/// Without `reply_to` the result goes to the results exchange alone, and the message_id is the id.
pub(crate) async fn nobody_waits(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let publisher = Publisher::connect(&bench).await?;
    let id = format!("quiet-{}", Uuid::new_v4().simple());
    let body = serde_json::to_vec(&json!({"workflow": save(0x10_20_30, "x")}))?;
    publisher.publish(&body, BasicProperties::default().with_message_id(id.as_str().into())).await?;
    let queue = bench.topology().results.clone().context("this bench has no results exchange")?;
    let result = loop {
        let delivery = publisher.take(&queue).await?;
        if delivery.routing_key.as_str() == id {
            break delivery.data;
        }
    };
    let stored = bench.s3().get(&bench.bucket("results"), &format!("jobs/{id}/result.json")).await?;
    ensure!(stored == result, "the published result is not the stored one");
    Answer::read(result)?.succeeded()?;
    bench.folders_are_clean().await
}

pub(crate) async fn progress_and_previews(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let mut publisher = Publisher::connect(&bench).await?;
    let id = format!("steps-{}", Uuid::new_v4().simple());
    let mut workflow =
        alone("StandinProgress", json!({"steps": 8, "seconds": 1.2, "previews": true, "text": ""}));
    workflow["1"]["_meta"] = json!({"title": "The sampler"});
    publisher.ask(&serde_json::to_vec(&json!({"id": id, "workflow": workflow}))?).await?;
    let (mut fractions, mut previews, mut seqs) = (Vec::new(), 0, Vec::new());
    loop {
        let event = publisher.event().await?;
        if event.routing_key.as_str() == format!("job.{id}.preview") {
            previews += 1;
            let kind = event.properties.content_type().as_ref().map(ToString::to_string);
            ensure!(
                event.data.starts_with(b"\xff\xd8\xff") && kind.as_deref() == Some("image/jpeg"),
                "{kind:?}"
            );
            continue;
        }
        let body: Value = serde_json::from_slice(&event.data)?;
        seqs.push(body["seq"].as_u64());
        if body["event"] == "progress" && body["max"] == 8.0 {
            ensure!(body["title"] == "The sampler" && body["node"] == "1", "{body}");
            fractions.push(body["fraction"].as_f64().context("no fraction")?);
        }
        if body["event"] == "finished" {
            break;
        }
    }
    // At most ten a second, and previews two.
    ensure!((3..=16).contains(&fractions.len()) && fractions.is_sorted(), "{fractions:?}");
    ensure!((1..=4).contains(&previews), "{previews} previews");
    ensure!(seqs.is_sorted(), "{seqs:?}");
    Answer::read(publisher.reply().await?.body)?.succeeded().map(drop)
}
