//! Models that jobs bring: fetched once, gone on with, kept and evicted.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Fault, Spoil, wait_for};
use uuid::Uuid;

use crate::{
    answer::{Answer, ask},
    bench::Bench,
    contract::sha256,
    prompts::{alone, save},
    publisher::Publisher,
    suite::{JOB, SOON, Suite},
    website::Page,
};

/// Two of them fit into [`crate::suite::MODEL_CACHE_BYTES`], three do not.
const MODEL_BYTES: usize = 100_000;

fn content(seed: u8) -> Vec<u8> {
    (0..MODEL_BYTES).map(|at| u8::try_from(at * 7 % 251).unwrap_or(0) ^ seed).collect()
}

/// A model that no earlier test used.
fn fresh() -> String {
    format!("{}.safetensors", Uuid::new_v4().simple())
}

fn model(source: &str, name: &str) -> Value {
    json!({"source": source, "folder": "models", "subfolder": "loras", "name": name})
}

fn with(models: &[Value]) -> Value {
    let id = format!("model-{}", Uuid::new_v4().simple());
    json!({"id": id, "workflow": save(0, "x"), "files": models})
}

fn path(bench: &Bench, name: &str) -> PathBuf {
    bench.engine().path.join("models/loras").join(name)
}

/// How many models were fetched, and how many were there.
fn counts(answer: &Answer) -> Result<(u64, u64)> {
    let timings = &answer.result["timings"];
    ensure!(timings["models_ms"].as_u64() <= timings["staged_ms"].as_u64(), "{timings}");
    let count = |key: &str| {
        let (files, bytes) = (timings[key]["files"].as_u64(), timings[key]["bytes"].as_u64());
        let files = files.with_context(|| format!("{key}: {timings}"))?;
        ensure!(bytes == Some(files * MODEL_BYTES as u64), "{key}: {timings}");
        Ok(files)
    };
    Ok((count("models_cold")?, count("models_warm")?))
}

pub(crate) async fn fetched_once(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let bench = place.bench().await;
    let name = fresh();
    let source = bench.input(&name, &content(1)).await?;
    let job = with(&[model(&source, &name)]);
    let plain = ask(&bench, json!({"workflow": save(0, "x")})).await?.succeeded()?;
    ensure!(plain.result["timings"].get("models_ms").is_none(), "{:#}", plain.result);

    // Both jobs are there before the first byte is.
    let mut others = Publisher::connect(&bench).await?;
    let (first, second) = (job.clone(), with(&[model(&source, &name)]));
    place.gate.set(Fault::Hold, &format!("GET /{}/open/{name}", bench.bucket("in")));
    let caught = place.gate.caught();
    let both = async {
        for _ in 0..2 {
            others.wait_event("accepted").await?;
        }
        place.gate.wait_caught_more(caught, SOON).await?;
        place.gate.lift();
        anyhow::Ok(())
    };
    let (first, second, both) = tokio::join!(ask(&bench, first), ask(&bench, second), both);
    both?;
    let mut sum = (0, 0);
    for answer in [first?.succeeded()?, second?.succeeded()?] {
        let (cold, warm) = counts(&answer)?;
        sum = (sum.0 + cold, sum.1 + warm);
    }
    ensure!(sum == (1, 1), "{sum:?}");
    ensure!(std::fs::read(path(&bench, &name))? == content(1), "it is another model");

    // It is there for later jobs, with its checksum too, and after a restart.
    let mut summed = model(&source, &name);
    summed["sha256"] = json!(sha256(&content(1)));
    ensure!(counts(&ask(&bench, with(&[summed.clone()])).await?.succeeded()?)? == (0, 1));
    bench.restart().await?;
    ensure!(counts(&ask(&bench, with(&[summed])).await?.succeeded()?)? == (0, 1));
    // Changed at its source: only anyone who wants that gets the new one.
    bench.input(&name, &content(2)).await?;
    ensure!(counts(&ask(&bench, with(&[model(&source, &name)])).await?.succeeded()?)? == (0, 1));
    let mut newest = model(&source, &name);
    newest["overwrite"] = json!(true);
    ensure!(counts(&ask(&bench, with(&[newest.clone()])).await?.succeeded()?)? == (1, 0));
    ensure!(counts(&ask(&bench, with(&[newest])).await?.succeeded()?)? == (0, 1));
    ensure!(std::fs::read(path(&bench, &name))? == content(2), "it is the old model");
    Ok(())
}

/// A store that breaks off more often than the worker puts up with: the job goes back to the queue, and
/// its next attempt goes on where that one ended.
pub(crate) async fn gone_on_with(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let bench = place.bench().await;
    let name = fresh();
    let source = bench.input(&name, &content(3)).await?;
    place.front.spoil(format!("GET /{}/open/{name}", bench.bucket("in")), Spoil::Truncate(10_000), 6);
    let mut publisher = Publisher::connect(&bench).await?;
    publisher.ask(&serde_json::to_vec(&with(&[model(&source, &name)]))?).await?;
    let answer = Answer::read(publisher.reply().await?.body)?.succeeded()?;
    ensure!(counts(&answer)? == (1, 0) && answer.result["attempt"] == 2, "{:#}", answer.result);
    ensure!(place.front.left() == 0, "not all of it was spoilt");
    let log = bench.whole_log();
    ensure!(
        log.lines().any(|line| line.contains("resuming the download of a model") && line.contains("60000")),
        "it was fetched from the start"
    );
    ensure!(std::fs::read(path(&bench, &name))? == content(3), "it is another model");
    Ok(())
}

pub(crate) async fn a_killed_worker(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let (bench, site) = (place.bench().await, &place.site);
    let name = fresh();
    let page = format!("open/{name}");
    let source = site.put(&page, Page::Stuck(content(4), Some(50_000)));
    let mut publisher = Publisher::connect(&bench).await?;
    publisher.ask(&serde_json::to_vec(&with(&[model(&source, &name)]))?).await?;
    let folder = path(&bench, "");
    let part = || {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut parts = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".part"));
        parts.any(|part| part.metadata().is_ok_and(|part| part.len() == 50_000))
    };
    wait_for("half a model", JOB, || async { part() }).await?;
    bench.kill().await?;
    let answer = Answer::read(publisher.reply().await?.body)?.succeeded()?;
    ensure!(counts(&answer)? == (1, 0), "{:#}", answer.result);
    ensure!(
        site.asked(&page) == [format!("{page} "), format!("{page} bytes=50000-")],
        "{:?}",
        site.asked(&page)
    );
    ensure!(std::fs::read(path(&bench, &name))? == content(4), "it is another model");
    Ok(())
}

pub(crate) async fn least_recently_used(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let bench = place.bench().await;
    let mut models = Vec::new();
    for seed in 5..9 {
        let name = fresh();
        models.push((bench.input(&name, &content(seed)).await?, name));
    }
    let job = |number: usize| with(&[model(&models[number].0, &models[number].1)]);
    let there = || models.iter().map(|(_, name)| path(&bench, name).is_file()).collect::<Vec<_>>();
    let theirs = path(&bench, "theirs.safetensors");
    std::fs::write(&theirs, "theirs")?;

    // The oldest one is in use while the others come.
    let mut publisher = Publisher::connect(&bench).await?;
    let mut long = job(0);
    long["workflow"] = alone("StandinSleep", json!({"seconds": 600}));
    publisher.ask(&serde_json::to_vec(&long)?).await?;
    publisher.wait_event("started").await?;
    publisher
        .ask(&serde_json::to_vec(&with(&[1, 2].map(|number| model(&models[number].0, &models[number].1))))?)
        .await?;
    publisher.wait_event("staged").await?;
    ensure!(there() == [true, true, true, false], "{:?}", there());
    publisher.cancel(long["id"].as_str().context("no id")?).await?;
    for _ in 0..2 {
        publisher.reply().await?;
    }
    ask(&bench, job(3)).await?.succeeded()?;
    ensure!(!there()[0] && there()[3], "{:?}", there());
    ensure!(there().iter().filter(|there| **there).count() == 2, "{:?}", there());
    ensure!(theirs.is_file(), "somebody's own model was evicted");
    ensure!(counts(&ask(&bench, job(0)).await?.succeeded()?)? == (1, 0));
    std::fs::remove_file(theirs)?;
    Ok(())
}
