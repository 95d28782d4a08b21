//! Planted secrets: a worker that has them all, at its most talkative, lets none of them out, whatever becomes of its jobs.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use serde_json::{Value, json};
use testbed::{Collector, Signal, wait_for};

use super::{
    SOON,
    bed::{Bed, slow_job},
    site::{Site, end},
    story::Story,
    traced,
};

/// Percent-encoded in the URL, where `/` and `"` need it.
const AMQP_PASSWORD: &str = "planted/amqp\"password";
const AMQP_PASSWORD_IN_URL: &str = "planted%2Famqp%22password";
const MANAGEMENT_PASSWORD: &str = "planted-management-password";
const API_KEY: &str = "planted-comfyui-api-key/+=";
const SESSION_TOKEN: &str = "planted-aws-session-token";
const WRONG_SECRET_KEY: &str = "planted-wrong-aws-secret";
const ADMIN_TOKEN: &str = "planted-admin-token";
const OTEL_HEADER: &str = "planted-otel-header";
const HF_TOKEN: &str = "planted-hugging-face-token";
const BASIC_AUTH: &str = "planted-basic-auth";
const SIGNATURE: &str = "planted0signature0000000000000000";

/// A worker that holds everything that is planted.
async fn planted(bed: &Bed, collector: &Collector) -> Result<Site> {
    bed.broker.ctl(&["add_user", "planted", AMQP_PASSWORD]).await?;
    bed.broker.ctl(&["set_permissions", "planted", ".*", ".*", ".*"]).await?;
    let address = bed.broker_address()?;
    Ok(traced(bed, "a", collector)?
        .set("log.level", "trace")
        .set("log.format", "json")
        .set("amqp.url", format!("amqp://planted:{AMQP_PASSWORD_IN_URL}@{address}/%2f"))
        // Nobody listens there: it is told that it cannot be asked.
        .set("amqp.management_url", format!("http://monitor:{MANAGEMENT_PASSWORD}@127.0.0.1:1"))
        .set("admin.token", ADMIN_TOKEN)
        .set("comfyui.env", format!("HF_TOKEN={HF_TOKEN}"))
        .set("comfyui.max_restarts", "100")
        .set("inputs.allow", format!("s3://,http://{}/", bed.s3.address()))
        .env("AWS_SESSION_TOKEN", SESSION_TOKEN)
        .env("OTEL_EXPORTER_OTLP_HEADERS", format!("authorization=Bearer%20{OTEL_HEADER},x-tenant=t")))
}

fn telling(id: &str, mode: &str) -> Value {
    json!({"version": 1, "id": id, "api_key_comfy_org": API_KEY, "workflow": {
        "1": {"class_type": "StandinTell", "inputs": {"mode": mode, "variable": "HF_TOKEN"}}}})
}

fn loading(id: &str, source: &str) -> Value {
    let mut job = slow_job(id, 0.0);
    job["workflow"]["1"] = json!({"class_type": "LoadImage", "inputs": {"image": "none.png"}});
    job["inputs"] = json!({"1.image": {"source": source, "name": "cat.png"}});
    job["api_key_comfy_org"] = json!(API_KEY);
    job
}

/// Everything that is told of these jobs, by its place.
type Told = BTreeMap<String, String>;

async fn events(bed: &Bed) -> Result<(Channel, String)> {
    let connection = Connection::connect(&bed.broker.url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queue = format!("{}.heard", bed.events());
    channel
        .queue_declare(queue.as_str().into(), QueueDeclareOptions::default(), FieldTable::default())
        .await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(queue.as_str().into(), bed.events().into(), "#".into(), options, FieldTable::default())
        .await?;
    Ok((channel, queue))
}

#[tokio::test]
async fn no_planted_secret_gets_out() -> Result<()> {
    let (bed, collector) = (Bed::new("planted").await?, Collector::start().await?);
    let site = planted(&bed, &collector).await?;
    let mut worker = site.boot().await?;
    let (channel, queue) = events(&bed).await?;

    // A link that the worker signs itself, and which it then is given as an input.
    let mut signs = slow_job("signs", 0.0);
    signs["output"] = json!({"presign_seconds": 600});
    bed.publish(&signs).await?;
    let signed = bed.answer("signs").await?;
    let link = signed["outputs"][0]["url"].as_str().context("no link")?.to_owned();
    let url: url::Url = link.parse()?;
    let signature =
        url.query_pairs().find(|(name, _)| name == "X-Amz-Signature").context("no signature")?.1.into_owned();
    let (link_spoilt, host) = (link.replace(&signature, SIGNATURE), bed.s3.address());
    let printed_and_crashed = json!({"version": 1, "id": "crash", "api_key_comfy_org": API_KEY, "workflow": {
        "1": {"class_type": "StandinTell", "inputs": {"mode": "print", "variable": "HF_TOKEN"}},
        "2": {"class_type": "StandinCrash", "inputs": {"how": "exit", "exit_code": 3, "after_seconds": 0.2, "image": ["1", 0]}}}});
    let mut leaks_a_link = slow_job("leaks-a-link", 0.0);
    leaks_a_link["workflow"]["2"] = json!({"class_type": "StandinFail", "inputs": {"exception_type": "ValueError",
        "message": format!("403 for {link_spoilt} and http://me:{BASIC_AUTH}@{host}/x"), "image": ["1", 0]}});
    let jobs = [
        (telling("shows", "show"), "succeeded"),
        (telling("prints", "print"), "succeeded"),
        (telling("fails", "fail"), "failed"),
        (printed_and_crashed, "failed"),
        (loading("link", &link), "succeeded"),
        (loading("link-spoilt", &link_spoilt), "failed"),
        (
            loading("basic", &format!("http://me:{BASIC_AUTH}@{host}/inputs/cat.png?sig={SIGNATURE}")),
            "failed",
        ),
        (
            loading("elsewhere", &format!("https://me:{BASIC_AUTH}@elsewhere.example/x?sig={SIGNATURE}")),
            "failed",
        ),
        (leaks_a_link, "failed"),
        (
            json!({"version": 1, "id": "typo", "api_key_comfy_org": API_KEY, "workflow": {}, "typo": API_KEY}),
            "failed",
        ),
    ];
    let mut told = Told::new();
    for (job, status) in &jobs {
        let id = job["id"].as_str().context("no id")?;
        bed.publish(job).await?;
        let result = bed.answer(id).await.with_context(|| worker.log())?;
        ensure!(result["status"] == *status, "{id}: {result:#}");
        told.insert(format!("the result of {id}"), result.to_string());
        if id == "shows" {
            ensure!(
                result["outputs"][0]["text"] == *API_KEY.len().to_string(),
                "the key did not arrive: {result:#}"
            );
        }
    }
    for id in ["fails", "crash"] {
        let result = &told[&format!("the result of {id}")];
        ensure!(result.contains("key [redacted]"), "nobody told: then this shows nothing: {result}");
    }
    Story::of(&collector, "leaks-a-link", 1).await?;
    ensure!(collector.holds("key [redacted]"), "no span tells of the failure: then this shows nothing");

    for (id, _) in &jobs {
        let id = id["id"].as_str().context("no id")?;
        for (key, _) in bed.s3.list("results", &format!("jobs/{id}/")).await? {
            // What a publisher writes into a prompt is in it.
            if key.ends_with(".json") && (id != "leaks-a-link" || key.ends_with("result.json")) {
                let object = bed.s3.get("results", &key).await?;
                told.insert(key, String::from_utf8_lossy(&object).into_owned());
            }
        }
    }
    ensure!(
        told.get("jobs/fails/1/history.json").is_some_and(|history| history.contains("[redacted]")),
        "{:?}",
        told.keys()
    );
    for path in ["/status", "/readyz", "/"] {
        told.insert(path.to_owned(), reqwest::get(worker.admin_url(path)).await?.text().await?);
    }
    let (_, out, err) = site.command(&["check"]).await?;
    told.insert("check".to_owned(), format!("{out}\n{err}"));
    let mut heard = 0;
    while let Some(event) = channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await?
    {
        heard += 1;
        told.insert(format!("event {heard}"), String::from_utf8_lossy(&event.delivery.data).into_owned());
    }
    ensure!(heard > jobs.len(), "{heard} events");

    worker.signal(Signal::TERM)?;
    let (status, _) = end(&mut worker, Duration::ZERO).await?;
    ensure!(status.code() == Some(0), "{status}\n{}", worker.log());
    let log = worker.log();
    ensure!(log.contains(r#""level":"TRACE""#) || log.contains(r#""level":"DEBUG""#), "no talkative worker");
    ensure!(log.contains("key [redacted] HF_TOKEN [redacted]"), "what a node printed is not in the log");
    told.insert("the log".to_owned(), log);

    // The collector must know whose they are; nobody else.
    let headers = collector.headers();
    ensure!(
        !headers.is_empty()
            && headers.iter().all(|headers| headers["authorization"] == format!("Bearer {OTEL_HEADER}"))
    );
    for secret in [
        AMQP_PASSWORD,
        AMQP_PASSWORD_IN_URL,
        MANAGEMENT_PASSWORD,
        API_KEY,
        r#"planted-comfyui-api-key/+="#,
        SESSION_TOKEN,
        ADMIN_TOKEN,
        OTEL_HEADER,
        HF_TOKEN,
        BASIC_AUTH,
        SIGNATURE,
        &signature,
        bed.s3.secret_key(),
    ] {
        for (place, text) in &told {
            let line = text.lines().find(|line| line.contains(secret));
            ensure!(line.is_none(), "{secret} stands in {place}: {line:?}");
        }
        ensure!(!collector.holds(secret), "{secret} stands in a span");
    }
    Ok(())
}

/// A worker that cannot start has secrets, too.
#[tokio::test]
async fn a_start_that_fails_tells_no_secret() -> Result<()> {
    let (bed, collector) = (Bed::new("no-start").await?, Collector::start().await?);
    for (key, value, wrong) in [
        (
            "amqp.url",
            format!("amqp://nobody:{AMQP_PASSWORD_IN_URL}@{}/%2f", bed.broker_address()?),
            "password",
        ),
        ("amqp.url", format!("amqps://nobody:{AMQP_PASSWORD_IN_URL}@{}/%2f", bed.broker_address()?), "TLS"),
        ("traces.endpoint", format!("http://me:{BASIC_AUTH}@127.0.0.1:4318"), "OTEL_EXPORTER_OTLP_HEADERS"),
        ("AWS_SECRET_ACCESS_KEY", WRONG_SECRET_KEY.to_owned(), "AWS_SECRET_ACCESS_KEY"),
    ] {
        let site = traced(&bed, "a", &collector)?
            .set("log.level", "trace")
            .set("admin.token", ADMIN_TOKEN)
            .env("AWS_SESSION_TOKEN", SESSION_TOKEN);
        let site = if key.contains('.') { site.set(key, value) } else { site.env(key, value) };
        let mut worker = site.start().await?;
        wait_for("its end", SOON, || std::future::ready(worker.exit_status().is_some()))
            .await
            .with_context(|| worker.log())?;
        let log = worker.log();
        ensure!(log.contains(wrong), "{key}: {wrong}: {log}");
        for secret in [
            AMQP_PASSWORD,
            AMQP_PASSWORD_IN_URL,
            BASIC_AUTH,
            WRONG_SECRET_KEY,
            ADMIN_TOKEN,
            SESSION_TOKEN,
            bed.s3.secret_key(),
        ] {
            ensure!(!log.contains(secret), "{key}: {secret} is in the log: {log}");
        }
    }
    Ok(())
}
