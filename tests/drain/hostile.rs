//! Small messages made to stop a worker, or all of them: each is refused or survived, and the next job runs.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, future::try_join_all};
use lapin::{BasicProperties, options::BasicConsumeOptions, types::FieldTable};
use serde_json::{Value, json};
use testbed::{RawMessage, Signal, Worker, alive, wait_for};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use super::{
    JOB, SOON,
    bed::{Bed, slow_job, ui_job},
    site::{Site, child, end, status},
};

/// 24 kB of headers once ended the process of every worker that got them, and of `comfy-worker dead`.
#[tokio::test]
async fn headers_nested_thousands_deep_and_names_that_are_no_utf8_stop_nobody() -> Result<()> {
    let bed = Bed::new("headers").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let deepest = 127 * 1024 / 7;
    let foreign = [&[2, 0xFF, b'x', b'S', 0, 0, 0, 1][..], b"\xFF"].concat();
    let headers = [RawMessage::nested_headers(3_500), RawMessage::nested_headers(deepest), foreign];
    for (number, headers) in headers.iter().enumerate() {
        let id = format!("j{number}");
        let body = serde_json::to_vec(&slow_job(&id, 0.1))?;
        let message = RawMessage {
            routing_key: bed.queue().into(),
            headers: headers.clone(),
            reply_to: bed.replies(),
            body,
            ..RawMessage::default()
        };
        bed.broker.publish_raw(&message).await?;
        ensure!(bed.answer(&id).await?["status"] == "succeeded");
        // To all workers, and one that ends among the dead letters.
        for (exchange, routing_key) in
            [(bed.control(), b"\xFF\xE9".to_vec()), (String::new(), bed.queue().into())]
        {
            let body = b"neither an order nor a job".to_vec();
            bed.broker
                .publish_raw(&RawMessage {
                    exchange,
                    routing_key,
                    headers: headers.clone(),
                    body,
                    ..RawMessage::default()
                })
                .await?;
        }
    }
    wait_for("the dead letters", SOON, || async { bed.ready(".dead").await == Some(3) }).await?;
    ensure!(!worker.log().contains("lost the connection to the broker"), "{}", worker.log());
    for arguments in [&["dead", "list"][..], &["dead", "drop", "--all"]] {
        let (code, out, error) = site.command(arguments).await?;
        ensure!(code == 0, "{out} {error}");
    }
    ensure!(bed.ready(".dead").await == Some(0));
    bed.publish(&slow_job("after", 0.1)).await?;
    ensure!(bed.answer("after").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inside, _| json!([inside]))
}

/// `StandinDeep` for a real ComfyUI.
const DEEP_NODE: &str = r#"
class StandinDeep:
    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "standin"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"levels": ("INT", {"default": 1, "max": 1000000})}, "optional": {"seed": ("INT", {"default": 0})}}
    def run(self, levels, seed=0):
        value = []
        for _ in range(levels):
            value = [value]
        return {"ui": {"deep": value, "text": ["beside it"]}}
NODE_CLASS_MAPPINGS = {"StandinDeep": StandinDeep}
"#;

/// A prompt of 481 bytes, nested 127 deep, once had ComfyUI killed twice: its history was too deep to be read.
#[tokio::test]
async fn what_is_nested_deep_kills_no_comfyui_on_the_way_in_or_out() -> Result<()> {
    let bed = Bed::new("deep").await?;
    let site = Site::new(&bed, "a")?.with_nodes("standin_deep.py", DEEP_NODE)?;
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    let answer = async |id: &str, job: Value| {
        let mut job = job;
        job["id"] = json!(id);
        bed.publish(&job).await?;
        bed.answer(id).await
    };
    for (number, levels) in [61, 62, 110, 120].into_iter().enumerate() {
        let mut job = slow_job("", 0.1);
        job["workflow"]["2"]["_meta"] = json!({"x": nested(levels)});
        let answer = answer(&format!("in-{number}"), job).await?;
        let code = answer["error"]["code"].as_str();
        ensure!(code == (levels > 61).then_some("invalid_job"), "{levels}: {answer:#}");
    }
    // Python itself writes some 990, and ComfyUI ends over more. A real one copies a history before it answers, which
    // breaks at some 300: it answers 500 then, for good.
    for (number, levels) in [10, 124, 200, 900].into_iter().enumerate() {
        let inputs = json!({"levels": levels, "seed": number});
        let job = json!({"workflow": {"1": {"class_type": "StandinDeep", "inputs": inputs}}});
        let answer = answer(&format!("out-{number}"), job).await?;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        if levels < 300 || !message.contains("its history cannot be read") {
            ensure!(answer["status"] == "succeeded", "{answer:#}");
            ensure!(answer["outputs"].to_string().contains("beside it"), "{answer:#}");
        }
    }
    ensure!(child(&worker, "main.py")? == comfyui, "ComfyUI was killed");
    site.finish(worker, site.initial()).await
}

/// ComfyUI takes these, and its thread that runs prompts ends over most of them: some 200 bytes had it killed twice.
#[tokio::test]
async fn prompts_that_end_comfyuis_thread_are_refused() -> Result<()> {
    let bed = Bed::new("thread").await?;
    let site = Site::new(&bed, "a")?;
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    let image =
        json!({"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}});
    let row = (0..=1_500).map(|at| match at {
        1_500 => (at, json!({"class_type": "EmptyImage", "inputs": {}})),
        _ => (at, json!({"class_type": "ImageInvert", "inputs": {"image": [(at + 1).to_string(), 0]}})),
    });
    for (id, code, change) in [
        // Given empty ones.
        ("no-inputs", None, json!({"7": {"class_type": "EmptyImage"}})),
        ("inputs-list", Some("invalid_prompt"), json!({"7": {"class_type": "EmptyImage", "inputs": []}})),
        (
            "no-node",
            Some("invalid_prompt"),
            json!({"7": {"class_type": "ImageInvert", "inputs": {"nobody_has_it": ["99", 0]}}}),
        ),
        (
            "no-output",
            Some("invalid_prompt"),
            json!({"7": image, "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 77], "filename_prefix": "x"}}}),
        ),
        (
            "no-input",
            None,
            json!({"7": image, "8": {"class_type": "SaveImage",
            "inputs": {"images": ["7", 0], "filename_prefix": "x", "nobody_has_it": ["7", 77]}}}),
        ),
        (
            "truth",
            Some("invalid_prompt"),
            json!({"7": image, "8": {"class_type": "ImageInvert", "inputs": {"image": ["99", true]}}}),
        ),
        (
            "value",
            Some("invalid_prompt"),
            json!({"8": {"class_type": "SaveImage", "inputs": {"images": {"__value__": ["99", 0]}, "filename_prefix": "x"}}}),
        ),
        (
            "file",
            Some("invalid_prompt"),
            json!({"8": {"class_type": "LoadImage", "inputs": {"image": "/etc/hostname"}}}),
        ),
        // These two no thread minds: they read ComfyUI's memory, and write where they like.
        (
            "format",
            Some("invalid_prompt"),
            json!({"7": image, "8": {"class_type": "StringFormat",
            "inputs": {"f_string": "{a.backward.__globals__[torch].os.environ}", "values.a": ["7", 0]}},
            "9": {"class_type": "PreviewAny", "inputs": {"source": ["8", 0]}}}),
        ),
        (
            "place",
            Some("invalid_prompt"),
            json!({"7": image, "8": {"class_type": "SaveImageTextDataSetToFolder",
            "inputs": {"images": ["7", 0], "texts": "x", "folder_name": "x", "filename_prefix": {"__value__": "/tmp/x"}, "mode": "overwrite"}}}),
        ),
        (
            "row",
            Some("invalid_job"),
            row.map(|(at, node)| (at.to_string(), node)).collect::<serde_json::Map<_, _>>().into(),
        ),
    ] {
        let mut job = slow_job(id, 0.1);
        for (node, content) in change.as_object().into_iter().flatten() {
            job["workflow"][node] = content.clone();
        }
        bed.publish(&job).await?;
        let answer = bed.answer(id).await?;
        ensure!(answer["error"]["code"].as_str() == code, "{answer:#}");
    }
    bed.publish(&slow_job("after", 0.1)).await?;
    ensure!(bed.answer("after").await?["status"] == "succeeded");
    ensure!(child(&worker, "main.py")? == comfyui, "ComfyUI was killed");
    site.finish(worker, site.initial()).await
}

/// Each is small, and once cost minutes of CPU or hundreds of megabytes.
#[tokio::test]
async fn numbers_that_multiply_are_refused_at_once() -> Result<()> {
    let bed = Bed::new("numbers").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let inputs = |count: usize| {
        let inputs =
            (0..count).map(|number| (format!("1.x{number}"), json!({"source": "data:,", "name": "x"})));
        json!({"id": format!("inputs-{count}"), "workflow": {}, "inputs": Value::Object(inputs.collect())})
    };
    let metadata = |id: &str, value: Value| json!({"id": id, "workflow": {}, "metadata": value});
    let wide = vec![nested(60); 1_000];
    for (job, words) in [
        (inputs(20_000), "20000 are given, more than 10000"),
        (inputs(2_000), "the job names 2000, in inputs and files, more than 1000"),
        (metadata("deep", nested(120)), "nested deeper than 64 levels"),
        (metadata("wide", json!(wide)), "give a URI instead"),
        (json!({"id": "values", "workflow": {"x": vec![json!({}); 700_000]}}), "values, more than 1000000"),
    ] {
        let id = job["id"].as_str().unwrap_or_default();
        bed.publish_with(&job, BasicProperties::default().with_message_id(id.into())).await?;
        let answer = bed.answer(id).await?;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(words), "{answer:#}");
        ensure!(answer.to_string().len() < 2_000, "{} bytes", answer.to_string().len());
    }
    site.finish(worker, site.initial()).await
}

/// Values that take three bytes in a message take a hundred in memory, and what is given back to the allocator may stay with
/// the process.
#[tokio::test]
async fn large_bodies_take_memory_for_a_moment_only() -> Result<()> {
    const MIB: u64 = 1 << 20;
    let bed = Bed::new("memory").await?;
    let site = Site::standin(&bed, "a")?;
    let worker = site.boot().await?;
    let before = memory(&worker, "VmRSS")?;
    for round in 0..3 {
        for (name, values) in [("many", (16 << 20) / 3), ("most", 490_000)] {
            let id = format!("{name}-{round}");
            let list = vec!["{}"; values].join(",");
            let body = format!(
                r#"{{"id":"{id}","workflow":{{"1":{{"class_type":"X","inputs":{{"x":[{list}]}}}}}}}}"#
            );
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_reply_to(bed.replies().into());
            bed.publish_body(body.as_bytes(), properties).await?;
            let answer = bed.answer(&id).await?;
            ensure!(answer["status"] == "failed", "{answer:#}");
        }
    }
    let (peak, after) = (memory(&worker, "VmHWM")?, memory(&worker, "VmRSS")?);
    println!("MiB: {} before, {} at the peak, {} after", before / MIB, peak / MIB, after / MIB);
    ensure!(
        peak < before + 400 * MIB && after < before + 150 * MIB,
        "{before} before, {peak}, {after} after"
    );
    site.finish(worker, site.initial()).await
}

/// What the kernel says of the worker's memory, in bytes.
fn memory(worker: &Worker, what: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).context("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// Honest jobs on three workers, first alone and then beside all attacks: they do not notice.
/// `HOSTILE_JOBS`: how many (`scripts/hostile` has 100); from 100 on their waits are compared as well.
#[tokio::test]
async fn honest_jobs_do_not_notice_hostile_ones() -> Result<()> {
    let jobs: usize = match std::env::var("HOSTILE_JOBS") {
        Ok(text) => text.parse().context("HOSTILE_JOBS is no number")?,
        Err(_) => 12,
    };
    let bed = Bed::new("lane").await?;
    let sites = [Site::standin(&bed, "a")?, Site::light(&bed, "b")?, Site::light(&bed, "c")?];
    let workers = try_join_all(sites.iter().map(Site::boot)).await?;
    let processes = || workers.iter().map(|worker| Ok((worker.pid(), child(worker, "main.py")?)));
    let before = processes().collect::<Result<Vec<_>>>()?;
    let quiet = lane(&bed, "quiet", jobs, &[]).await?;
    let half = half_requests(&workers).await?;
    let beside = lane(&bed, "beside", jobs, &attacks(&bed)?).await?;
    drop(half);
    let (quiet, beside) = (percentile(quiet), percentile(beside));
    println!("{jobs} honest jobs: p99 {quiet:.2?} alone, {beside:.2?} beside the attacks");
    ensure!(before == processes().collect::<Result<Vec<_>>>()?, "a worker or a ComfyUI was replaced");
    for (worker, comfyui) in before {
        ensure!(alive(worker) && alive(comfyui));
    }
    for worker in &workers {
        ensure!(status(worker).await?["state"] == "ready", "{:#}", status(worker).await?);
    }
    // Of fewer the slowest one decides.
    ensure!(jobs < 100 || beside < quiet * 2, "p99 {beside:.2?} beside attacks, {quiet:.2?} alone");
    for (site, worker) in sites.iter().zip(workers) {
        site.finish(worker, site.initial()).await?;
    }
    Ok(())
}

fn percentile(mut waits: Vec<Duration>) -> Duration {
    waits.sort();
    waits.get(waits.len() * 99 / 100).copied().unwrap_or_default()
}

/// Two honest jobs for each worker at a time, every other one a UI workflow, and beside every third the next attack; beside
/// more where all attacks would not come. Half a second is short for a job: what two cores do for three workers is less
/// of its wait.
async fn lane(bed: &Bed, name: &str, jobs: usize, attacks: &[RawMessage]) -> Result<Vec<Duration>> {
    const AHEAD: usize = 6;
    let channel = bed.channel().await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut answers =
        channel.basic_consume(bed.replies().into(), "".into(), options, FieldTable::default()).await?;
    let every = (jobs / attacks.len().max(1)).clamp(1, 3);
    let (mut open, mut waits) = (BTreeMap::new(), Vec::new());
    for number in 0..jobs + AHEAD {
        if number < jobs {
            let id = format!("{name}-{number}");
            let job = if number % 2 == 0 { slow_job(&id, 0.5) } else { ui_job(&id)? };
            if number % every == 0 && !attacks.is_empty() {
                let mut attack = attacks[number / every % attacks.len()].clone();
                // Another body each time: the answer to the same one is kept.
                attack.body.resize(attack.body.len() + number, b' ');
                bed.broker.publish_raw(&attack).await?;
            }
            open.insert(id.clone(), Instant::now());
            bed.publish(&job).await?;
        }
        while open.len() >= AHEAD || (number >= jobs && !open.is_empty()) {
            let answer =
                timeout(JOB, answers.next()).await.context("no answer")?.context("no consumer")??;
            let result: Value = serde_json::from_slice(&answer.data)?;
            if let Some(since) = open.remove(result["id"].as_str().unwrap_or_default()) {
                ensure!(result["status"] == "succeeded", "{result:#}");
                waits.push(since.elapsed());
            }
        }
    }
    channel.close(200, "".into()).await?;
    Ok(waits)
}

/// As many as once took all descriptors.
async fn half_requests(workers: &[Worker]) -> Result<Vec<TcpStream>> {
    let mut half = Vec::new();
    for worker in workers {
        for _ in 0..400 {
            let address = worker.admin_url("");
            let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await?;
            let _ = stream.write_all(b"GET /status HTTP/1.1\r\nHost: local").await;
            half.push(stream);
        }
    }
    Ok(half)
}

/// The smallest attack of each kind, without an id: each is a job of its own by its digest.
fn attacks(bed: &Bed) -> Result<Vec<RawMessage>> {
    let to_queue = |body: &Value| RawMessage {
        routing_key: bed.queue().into(),
        reply_to: bed.replies(),
        body: body.to_string().into_bytes(),
        ..RawMessage::default()
    };
    let prompt = |inputs: Value| json!({"workflow": {"1": {"class_type": "StandinDeep", "inputs": inputs}}});
    let inputs = (0..20_000).map(|number| (format!("1.x{number}"), json!({"source": "data:,", "name": "x"})));
    let file = json!({"source": "data:,x", "folder": "models", "subfolder": "checkpoints", "name": "x", "overwrite": true});
    let ui = |nodes: Value, subgraphs: Value| json!({"workflow": {"nodes": nodes, "links": [], "version": 0.4, "definitions": {"subgraphs": subgraphs}}});
    let node = |id: u32, kind: &str| {
        json!({"id": id, "type": kind, "pos": [0, 0], "size": [1, 1], "inputs": [], "outputs": [],
        "properties": {}, "widgets_values": [], "mode": 0, "flags": {}, "order": 0})
    };
    let uuid = |level: u32| format!("{level:08}-0000-4000-8000-000000000000");
    let bomb = (0..12).map(|level| {
        let nodes: Vec<_> = (0..10).map(|id| node(id, &uuid(level + 1))).collect();
        json!({"id": uuid(level), "name": "x", "version": 1, "nodes": nodes, "links": [], "inputs": [], "outputs": [],
            "inputNode": {"id": -10, "bounding": [0, 0, 1, 1]}, "outputNode": {"id": -20, "bounding": [0, 0, 1, 1]}})
    });
    let mut poison = node(1, "SaveImage");
    poison["mode"] = json!(2);
    poison["constructor"] = json!({"nodeData": {"input": {"required": {}}}});
    let jobs = [
        prompt(json!({"levels": 1, "x": nested(120)})),
        prompt(json!({"levels": 900})),
        json!({"workflow": {}, "inputs": Value::Object(inputs.collect())}),
        json!({"workflow": {}, "metadata": nested(120)}),
        json!({"workflow": {"x": vec![json!({}); 700_000]}}),
        json!({"workflow": {}, "files": [file]}),
        json!({"workflow": {}, "output": {"uri": "s3://results/jobs/quiet-1"}}),
        ui(json!([node(1, &uuid(0))]), bomb.collect()),
        ui(
            json!([poison]),
            json!([{"id": "SaveImage", "name": "x", "version": 1, "nodes": [], "links": []}]),
        ),
    ];
    let mut attacks: Vec<_> = jobs.iter().map(to_queue).collect();
    let headers = RawMessage::nested_headers(3_500);
    attacks.push(RawMessage { headers: headers.clone(), ..to_queue(&json!({"workflow": {}})) });
    attacks.push(RawMessage {
        exchange: bed.control(),
        routing_key: vec![0xFF, 0xE9],
        headers,
        body: b"{}".to_vec(),
        ..RawMessage::default()
    });
    Ok(attacks)
}

/// Whatever a job does, the next one's inputs, files and result are as if it had run alone. `HOSTILE_ROUNDS`: how many
/// are drawn; `HOSTILE_SEED`: which.
#[tokio::test]
async fn a_job_leaves_nothing_to_the_next_one() -> Result<()> {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>()).transpose();
    let (rounds, seed) = (given("HOSTILE_ROUNDS")?.unwrap_or(8), given("HOSTILE_SEED")?);
    let seed = seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("seed {seed}, {rounds} rounds (HOSTILE_SEED, HOSTILE_ROUNDS)");
    let mut dice = fastrand::Rng::with_seed(seed);
    let bed = Bed::new("isolation").await?;
    bed.s3.put("inputs", "mine.txt", "mine").await?;
    let site = Site::standin(&bed, "a")?;
    let mut worker = site.boot().await?;
    let honest = async |id: String| {
        let job = json!({"id": id, "workflow": {
            "1": {"class_type": "StandinInputRead", "inputs": {"file": "x"}},
            "2": {"class_type": "StandinCustomOutput", "inputs": {"key": "files", "filename_prefix": "mine", "extension": "bin",
                "count": 2, "type": "output", "seed": 4}},
            "3": {"class_type": "LoadImage", "inputs": {"image": "x"}},
            "4": {"class_type": "StandinText", "inputs": {"text": "mine"}},
        }, "inputs": {"1.file": "s3://inputs/mine.txt", "3.image": "s3://inputs/cat.png"}});
        bed.publish(&job).await?;
        let result = bed.answer(&id).await?;
        ensure!(result["status"] == "succeeded", "{result:#}");
        let mut outputs = result["outputs"].as_array().context("no outputs")?.clone();
        for output in &mut outputs {
            // Where it lies has the id in it.
            output.as_object_mut().context("no object")?.remove("uri");
        }
        ensure!(result["warnings"] == json!([]), "{result:#}");
        Ok::<_, anyhow::Error>(outputs)
    };
    let alone = honest("alone".to_owned()).await?;
    for round in 0..rounds {
        let next = format!("b{round}");
        let mut hostile = draw(&mut dice, &next);
        let id = format!("a{round}");
        hostile["id"] = json!(id);
        bed.publish(&hostile).await?;
        let first = bed.answer(&id).await?;
        let after = honest(next).await?;
        ensure!(after == alone, "after {hostile:#}\n({first:#})\n{after:#?}\nis not\n{alone:#?}");
    }
    // What the nodes and `files` have left on purpose lies there.
    worker.signal(Signal::TERM)?;
    let (status, _) = end(&mut worker, Duration::ZERO).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// A job that reaches for what the next one, of that id, will have.
fn draw(dice: &mut fastrand::Rng, next: &str) -> Value {
    let pick = |dice: &mut fastrand::Rng, of: &[&str]| of[dice.usize(..of.len())].replace("NEXT", next);
    let paths = [
        "NEXT/mine.txt",
        "NEXT/cat.png",
        "NEXT-/cat.png",
        "../output/mine_00001_.bin",
        "mine_00001_.bin [output]",
        "x",
        ".comfy-worker/index.json",
        "a0/mine.txt",
    ];
    let prefixes = ["mine", "NEXT/mine", "../mine", "comfy-worker-0/mine", "%date%/mine", "", "mine/"];
    let modes =
        ["symlink", "parent", "hard_link", "same_twice", "missing", "newline", "directory", "wrong_types"];
    let mut nodes = serde_json::Map::new();
    for number in 0..dice.usize(1..6) {
        let node = match dice.usize(..8) {
            0 => json!({"class_type": "StandinInputRead", "inputs": {"file": pick(dice, &paths)}}),
            1 => json!({"class_type": "LoadImage", "inputs": {"image": pick(dice, &paths)}}),
            2 => {
                json!({"class_type": "StandinCustomOutput", "inputs": {"key": "files", "filename_prefix": pick(dice, &prefixes),
                "extension": "bin", "count": dice.u32(..4), "type": pick(dice, &["output", "temp", "input"]), "seed": 4}})
            }
            3 => {
                json!({"class_type": "StandinMisbehave", "inputs": {"mode": pick(dice, &modes), "target": "/etc/passwd"}})
            }
            4 => json!({"class_type": "StandinText", "inputs": {"text": "mine", "seed": dice.u32(..2)}}),
            5 => json!({"class_type": "StandinDeep", "inputs": {"levels": dice.u32(..900)}}),
            6 => {
                json!({"class_type": "StandinNaN", "inputs": {"mode": pick(dice, &["progress", "event", "output"])}})
            }
            _ => json!({"class_type": "StandinFail", "inputs": {}}),
        };
        nodes.insert((number + 1).to_string(), node);
    }
    let mut job = json!({"workflow": nodes, "allow_partial": true});
    if dice.bool() {
        let file = json!({"source": pick(dice, &["data:,theirs", "s3://inputs/cat.png", "s3://results/jobs/alone/result.json"]),
            "folder": pick(dice, &["input", "output", "temp"]), "subfolder": pick(dice, &["", "NEXT", "comfy-worker-0"]),
            "name": pick(dice, &["mine.txt", "cat.png", "x", "mine_00001_.bin"]), "overwrite": dice.bool(), "ephemeral": dice.bool()});
        job["files"] = json!([file]);
    }
    if dice.u8(..4) == 0 {
        job["output"] =
            json!({"uri": format!("s3://results/jobs/{}", pick(dice, &["NEXT", "NEXT/1", "_x", "a"]))});
    }
    job
}

/// Nodes run as the worker's user and can write to its journal: what a line there names once was removed at the next start.
#[tokio::test]
async fn a_line_planted_in_the_journal_removes_nothing() -> Result<()> {
    let bed = Bed::new("planted").await?;
    let site = Site::light(&bed, "a")?;
    let canary = bed.folder.path().join("canary");
    std::fs::create_dir_all(canary.join("within"))?;
    // By a link in ComfyUI's own folders, too.
    let link = site.folder("input").join("link");
    std::os::unix::fs::symlink(&canary, &link)?;
    let journal = site.state("journal");
    std::fs::create_dir_all(&journal)?;
    let lines = [canary.clone(), link.join("within"), site.folder("input").join("../../../canary")]
        .map(|path| json!({"owned": {"path": path, "inode": null}}).to_string());
    std::fs::write(journal.join("0123456789abcdef0123456789abcdef.jsonl"), lines.join("\n") + "\n")?;
    let worker = site.boot().await?;
    ensure!(canary.join("within").is_dir(), "it was removed");
    ensure!(worker.log().matches("ignoring a journal entry").count() == 3, "{}", worker.log());
    std::fs::remove_file(&link)?;
    site.finish(worker, site.initial()).await
}
