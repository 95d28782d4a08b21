//! Bodies and inputs that are refused, each with the code and the words that say what to change.

use anyhow::{Context as _, Result, ensure};
use lapin::BasicProperties;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    answer::{Answer, ask},
    bench::MAX_INPUT_BYTES,
    picture::pattern,
    prompts::{invert, save},
    publisher::Publisher,
    suite::Suite,
};

/// Checks that an error's message holds all of `words`.
pub(crate) fn says(error: &Value, words: &[&str]) -> Result<()> {
    let message = error["message"].as_str().context("no message")?;
    let missing: Vec<_> = words.iter().filter(|word| !message.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} not in {message:?}");
    // What ComfyUI itself said may have several lines.
    ensure!(error["stage"] == "run" || !message.contains('\n'), "several lines: {message:?}");
    Ok(())
}

pub(crate) async fn malformed_bodies(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let mut publisher = Publisher::connect(&bench).await?;
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    let bodies: [&[u8]; 8] = [
        b"",
        b"{\"id\": \"x\", \"workflow\": {",
        b"[1, 2]",
        b"\"text\"",
        b"\xff\xfe{}",
        b"{\"id\": NaN}",
        b"null",
        &deep,
    ];
    for body in bodies {
        let id = format!("malformed-{}", Uuid::new_v4().simple());
        let properties = BasicProperties::default()
            .with_message_id(id.as_str().into())
            .with_reply_to(publisher.reply_to.as_str().into());
        publisher.publish(body, properties).await?;
        let answer = Answer::read(publisher.reply().await?.body)?;
        says(answer.failed("malformed_job", "accept")?, &["JSON"])?;
        ensure!(answer.id == id, "{}", answer.id);
        let stored = bench.s3().get(&bench.bucket("results"), &format!("jobs/{id}/result.json")).await?;
        ensure!(stored == answer.body, "the stored result is another one");
    }
    Ok(())
}

pub(crate) async fn malformed_and_nobody_to_tell(suite: &Suite) -> Result<()> {
    let bench = suite.standin().await?;
    let publisher = Publisher::connect(&bench).await?;
    for body in [b"no job".as_slice(), br#"{"workflow": {}, "typo": 1}"#] {
        publisher.publish(body, BasicProperties::default()).await?;
        let dead = publisher.take(&bench.topology().dead).await?;
        ensure!(dead.data == body, "{}", String::from_utf8_lossy(&dead.data));
        let headers = dead.properties.headers().clone().unwrap_or_default();
        ensure!(headers.contains_key("x-death"), "{headers:?}");
    }
    // It goes on.
    ask(&bench, json!({"workflow": save(1, "x")})).await?.succeeded().map(drop)
}

pub(crate) async fn fields(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let workflow = save(1, "x");
    let cases = [
        (json!({"workflow": workflow, "outptu": {}}), vec!["outptu", "output"]),
        (json!({"workflow": workflow, "output": {"urri": 1}}), vec!["output", "urri", "include_temp"]),
        (
            json!({"workflow": workflow, "output": {"include_temp": "yes"}}),
            vec!["output.include_temp", "boolean"],
        ),
        (
            json!({"workflow": workflow, "files": [{"source": "s3://a-bucket/x", "folder": "inputs"}]}),
            vec!["files[0].folder", "inputs"],
        ),
        (
            json!({"workflow": workflow, "files": [{"source": "s3://a-bucket/x", "folder": "models"}]}),
            vec!["files[0].subfolder"],
        ),
        (json!({"workflow": workflow, "timeout_seconds": -1}), vec!["timeout_seconds", "-1"]),
        (json!({"workflow": workflow, "timeout_seconds": "900"}), vec!["timeout_seconds", "900"]),
        (json!({"workflow": workflow, "output": {"presign_seconds": 0}}), vec!["output.presign_seconds"]),
        (json!({"workflow": workflow, "version": 2}), vec!["version", "2"]),
        (json!({"workflow": workflow, "workflow_uri": "s3://a-bucket/x"}), vec!["workflow", "workflow_uri"]),
        (json!({"inputs": {}}), vec!["workflow"]),
        (json!({"workflow": "text"}), vec!["workflow", "map"]),
        (json!({"workflow": {"a": {"no": "class"}}}), vec!["workflow", "class_type"]),
        (json!({"workflow": workflow, "inputs": {"image": 1}}), vec!["inputs", "image"]),
        (json!({"workflow": workflow, "inputs": {"1.color": {"valeu": 1}}}), vec!["inputs.1.color", "valeu"]),
        (
            json!({"workflow": workflow, "inputs": {"1.color": {"source": "s3://a-bucket/x", "sha256": "12"}}}),
            vec!["inputs.1.color", "sha256"],
        ),
        (
            json!({"workflow": workflow, "output": {"uri": "s3://elsewhere/x"}}),
            vec!["output.uri", "s3://elsewhere/x", "outputs.allow"],
        ),
        (json!({"workflow": save(1, "../../evil")}), vec!["filename_prefix", "../../evil"]),
    ];
    for (job, words) in cases {
        let answer = ask(&bench, job.clone()).await?;
        let error = &answer.result["error"];
        ensure!(error["code"] == "invalid_job", "{job}: {error}");
        says(error, &words).with_context(|| format!("{job}"))?;
    }
    // A bad id cannot be answered under that id.
    let mut publisher = Publisher::connect(&bench).await?;
    publisher.ask(&serde_json::to_vec(&json!({"id": "../other", "workflow": workflow}))?).await?;
    let answer = Answer::read(publisher.reply().await?.body)?;
    says(answer.failed("invalid_job", "accept")?, &["id", "../other"])?;
    ensure!(answer.id.len() == 64, "{}", answer.id);
    Ok(())
}

pub(crate) async fn addresses(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let cases = [
        (json!({"9.image": 1}), vec!["inputs.9.image", "no node 9", "1", "2", "3"]),
        (json!({"1.imgae": "x.png"}), vec!["inputs.1.imgae", "LoadImage", "did you mean image"]),
        (json!({"3.seed": 1}), vec!["inputs.3.seed", "SaveImage", "filename_prefix"]),
    ];
    for (inputs, words) in cases {
        let answer = ask(&bench, json!({"workflow": invert("x"), "inputs": inputs})).await?;
        says(answer.failed("invalid_job", "convert")?, &words)?;
    }
    Ok(())
}

pub(crate) async fn missing_objects(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let uri = format!("s3://{}/open/nothing.png", bench.bucket("in"));
    let jobs = [
        json!({"workflow": invert("x"), "inputs": {"1.image": uri}}),
        json!({"workflow": invert("x"), "files": [{"source": uri, "folder": "input"}]}),
        json!({"workflow_uri": uri}),
    ];
    for job in jobs {
        let answer = ask(&bench, job).await?;
        says(answer.failed("input_not_found", "stage")?, &[&uri])?;
    }
    Ok(())
}

pub(crate) async fn foreign_places(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let (input, private) = (bench.bucket("in"), bench.bucket("private"));
    for (bucket, key) in [(&input, "closed/x.png"), (&private, "x.png"), (&input, "open-too/x.png")] {
        bench.s3().put(bucket, key, pattern(30)).await?;
    }
    let closed = [
        format!("s3://{input}/closed/x.png"),
        format!("s3://{private}/x.png"),
        format!("s3://{input}/open-too/x.png"),
        "file:///etc/passwd".into(),
        "http://127.0.0.1:1/x.png".into(),
        "https://example.org/x.png".into(),
    ];
    for uri in &closed {
        let job = json!({"workflow": invert("x"), "inputs": {"1.image": {"source": uri}}});
        let answer = ask(&bench, job).await?;
        says(answer.failed("input_forbidden", "stage")?, &[uri])?;
        if !uri.starts_with("http") {
            let answer = ask(&bench, json!({"workflow_uri": uri})).await?;
            says(answer.failed("input_forbidden", "stage")?, &[uri])?;
        }
    }
    Ok(())
}

/// A job neither reads nor writes in other jobs' folders under `store.uri`, whatever else is open.
pub(crate) async fn others_places(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let results = format!("s3://{}/jobs", bench.bucket("results"));
    let first = ask(&bench, json!({"workflow": save(0x12_34_56, "first")})).await?.succeeded()?;
    let uri = first.only_output()?["uri"].as_str().context("no uri")?.to_owned();
    for job in [
        json!({"workflow": invert("x"), "inputs": {"1.image": {"source": uri}}}),
        json!({"workflow_uri": format!("{results}/{}/1/prompt.json", first.id)}),
    ] {
        says(
            ask(&bench, job).await?.failed("input_forbidden", "stage")?,
            &["other jobs' results", "inputs.allow"],
        )?;
    }
    for place in ["anothers", "anothers/result.json", "anothers/1/outputs"] {
        let job = json!({"workflow": save(1, "x"), "output": {"uri": format!("{results}/{place}")}});
        says(
            ask(&bench, job).await?.failed("invalid_job", "accept")?,
            &["the folder of another job", "/_renders"],
        )?;
    }
    let job = json!({"workflow": save(2, "x"), "output": {"uri": format!("{results}/_renders")}});
    let answer = ask(&bench, job).await?.succeeded()?;
    let uri = answer.only_output()?["uri"].as_str().context("no uri")?;
    ensure!(uri.starts_with(&format!("{results}/_renders/{}/1/outputs/", answer.id)), "{uri}");
    Ok(())
}

pub(crate) async fn checksums(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let source = bench.input("sum.png", &pattern(31)).await?;
    let wrong = "ab".repeat(32);
    let input = json!({"source": source, "sha256": wrong});
    let answer = ask(&bench, json!({"workflow": invert("x"), "inputs": {"1.image": input}})).await?;
    let found = crate::contract::sha256(&pattern(31));
    says(answer.failed("checksum_mismatch", "stage")?, &[&source, &wrong, &found])
}

pub(crate) async fn sizes(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let half = vec![b'x'; MAX_INPUT_BYTES / 2 + 1];
    let too_much = vec![b'x'; MAX_INPUT_BYTES + 1];
    let one = bench.input("one.bin", &too_much).await?;
    let halves = (bench.input("first.bin", &half).await?, bench.input("second.bin", &half).await?);
    let jobs = [
        json!({"workflow": invert("x"), "inputs": {"1.image": one}}),
        json!({"workflow": invert("x"), "inputs": {"1.image": halves.0, "3.filename_prefix": halves.1}}),
    ];
    for job in jobs {
        let answer = ask(&bench, job).await?;
        says(
            answer.failed("input_too_large", "stage")?,
            &[&MAX_INPUT_BYTES.to_string(), "inputs.max_bytes"],
        )?;
    }
    Ok(())
}

pub(crate) async fn schemes(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    for uri in ["ftp://example.org/x.png", "x.png", "S3:/x", "gs://bucket/x.png"] {
        let job = json!({"workflow": invert("x"), "inputs": {"1.image": {"source": uri, "name": "x.png"}}});
        let answer = ask(&bench, job).await?;
        says(answer.failed("unsupported_uri", "stage")?, &[uri, "s3://"])?;
    }
    let answer = ask(&bench, json!({"workflow_uri": "ftp://example.org/w.json"})).await?;
    says(answer.failed("unsupported_uri", "stage")?, &["ftp://example.org/w.json"])
}
