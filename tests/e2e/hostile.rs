//! Hostile names, bodies and addresses, through real AMQP: each is a clear
//! refusal or a contained success, canaries are untouched, and the worker is ready at once.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    answer::Answer,
    bench::{Bench, files_beneath},
    picture::pattern,
    prompts::{color, invert, invert_workflow, node, save},
    publisher::Publisher,
    suite::Suite,
};

/// From a job's answer to a worker that takes the next one; the mean, since other tests run beside.
const READY: Duration = Duration::from_secs(1);

const NAMES: &[&str] = &[
    "../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "%2e%2e%2f",
    "a/../../b",
    "a\0b.png",
    "",
    ".",
    "..",
    "x [output]",
    "../x [temp]",
    "line\nfeed.png",
    "\u{1b}[2J\u{1b}]0;x\u{7}.png",
    "\u{202e}gnp.x",
    "-rf",
    "CON",
    "Ａ.png",
    "%date%/../../x",
    "~/x",
    "$HOME/x",
    ".comfy-worker",
    "result.json",
    "attempts/1.json",
];

/// What no job may touch: content, time and inode of every file in ComfyUI's other folders, and what
/// the store holds of other jobs.
#[derive(Debug, PartialEq)]
struct Canaries {
    files: BTreeMap<PathBuf, Identity>,
    /// As the S3 server keeps them on disk.
    objects: BTreeMap<PathBuf, Identity>,
}

/// A file's size, time and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, i64, i64, u64);

fn identity(path: &Path) -> Result<Identity> {
    let metadata = fs::metadata(path)?;
    Ok(Identity(metadata.len(), metadata.mtime(), metadata.mtime_nsec(), metadata.ino()))
}

impl Canaries {
    fn plant(bench: &Bench) -> Result<()> {
        let base = &bench.engine().path;
        for place in ["canary.txt", "models/checkpoints/canary.safetensors", "custom_nodes/canary.txt"] {
            let path = base.join(place);
            fs::create_dir_all(path.parent().context("no folder")?)?;
            fs::write(path, "canary")?;
        }
        Ok(())
    }

    fn look(bench: &Bench) -> Result<Self> {
        let base = &bench.engine().path;
        let mut files = BTreeMap::new();
        let found = files_beneath(base, &["models", "custom_nodes"])?.into_iter().map(|(path, _)| path);
        let found = found.filter(|path| path.extension().is_none_or(|extension| extension != "pyc"));
        for path in found.chain([base.join("canary.txt"), "/etc/passwd".into()]) {
            files.insert(path.clone(), identity(&path)?);
        }
        let mut objects = BTreeMap::new();
        let store = bench.s3().path(&bench.bucket("results"), "");
        for (path, _) in files_beneath(&store, &[""])? {
            let kept = identity(&path)?;
            objects.insert(path.strip_prefix(&store)?.to_owned(), kept);
        }
        Ok(Self { files, objects })
    }

    /// Whether all is as before, but for what belongs to the job `id`.
    fn untouched(&self, after: &mut Self, id: &str) -> Result<()> {
        let own = Path::new("jobs").join(id);
        after.objects.retain(|key, _| !key.starts_with(&own));
        let changed = |before: &BTreeMap<PathBuf, Identity>, after: &BTreeMap<PathBuf, Identity>| {
            let differs = |path: &&PathBuf| before.get(*path) != after.get(*path);
            before.keys().chain(after.keys()).filter(differs).cloned().collect::<Vec<_>>()
        };
        let files = changed(&self.files, &after.files);
        ensure!(files.is_empty(), "touched: {files:?}");
        let objects = changed(&self.objects, &after.objects);
        ensure!(objects.is_empty(), "other jobs' objects: {objects:?}");
        Ok(())
    }
}

/// One hostile message.
struct Case {
    name: String,
    body: Vec<u8>,
    properties: BasicProperties,
    /// The error's code, where only one will do.
    code: Option<&'static str>,
}

impl Case {
    fn job(name: impl Into<String>, mut job: Value) -> Self {
        if job.get("id").is_none() {
            job["id"] = json!(format!("hostile-{}", Uuid::new_v4().simple()));
        }
        Self::bytes(name, job.to_string().into_bytes())
    }

    fn bytes(name: impl Into<String>, body: Vec<u8>) -> Self {
        Self { name: name.into(), body, properties: BasicProperties::default(), code: None }
    }

    fn refused(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }
}

async fn hold(bench: &Bench, cases: Vec<Case>) -> Result<()> {
    Canaries::plant(bench)?;
    let mut publisher = Publisher::connect(bench).await?;
    let count = cases.len();
    let (mut refusals, mut unready) = (0, Duration::ZERO);
    for case in cases {
        let before = Canaries::look(bench)?;
        let properties = case.properties.with_reply_to(publisher.reply_to.as_str().into());
        publisher.publish(&case.body, properties).await?;
        let name = &case.name;
        let reply = publisher.reply().await.with_context(|| format!("{name}: its log:\n{}", bench.log()))?;
        let answered = Instant::now();
        bench.wait_ready().await?;
        unready += answered.elapsed();
        let answer = Answer::read(reply.body)?;
        let judged = judge(bench, &answer, case.code).with_context(|| format!("{:#}", answer.result));
        judged.with_context(|| name.clone())?;
        refusals += usize::from(answer.result["status"] == "failed");
        let mut after = Canaries::look(bench)?;
        before.untouched(&mut after, &answer.id).with_context(|| name.clone())?;
        bench.folders_are_clean().await.with_context(|| name.clone())?;
    }
    let mean = unready / u32::try_from(count)?;
    println!(
        "{count} hostile messages: {refusals} refused, {} contained; ready after {mean:?}",
        count - refusals
    );
    ensure!(mean < READY, "ready after {mean:?} in the mean");
    Ok(())
}

/// A clear refusal, or a success that stays in its place.
fn judge(bench: &Bench, answer: &Answer, code: Option<&str>) -> Result<()> {
    let error = &answer.result["error"];
    if let Some(code) = code {
        ensure!(error["code"] == code, "not {code}");
    }
    if answer.result["status"] == "failed" {
        let message = error["message"].as_str().context("no message")?;
        ensure!(!message.is_empty() && error["code"] != "internal", "no clear refusal");
        // What a node itself said is its own; our words show nothing that steers a terminal.
        let ours = error["stage"] != "run" && error["stage"] != "post";
        ensure!(!ours || !message.chars().any(|c| c.is_control() || c == '\u{202e}'), "{message:?}");
        return Ok(());
    }
    let place = format!("s3://{}/jobs/{}/", bench.bucket("results"), answer.id);
    for output in answer.outputs()?.iter().filter(|output| output["kind"] != "text") {
        let uri = output["uri"].as_str().context("no uri")?;
        ensure!(uri.starts_with(&place) && !uri.contains("/../"), "{uri} is not in {place}");
    }
    Ok(())
}

/// Every name in every place where a job may give one.
pub(crate) async fn names(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let source = bench.input("hostile.png", &pattern(40)).await?;
    let long = "x".repeat(300);
    let mut cases = Vec::new();
    for name in NAMES.iter().copied().chain([long.as_str()]) {
        let shown: String = name.chars().take(30).collect();
        let places = [
            (
                "input",
                json!({"workflow": invert("x"), "inputs": {"1.image": {"source": source, "name": name}}}),
            ),
            (
                "file",
                json!({"workflow": save(1, "x"), "files": [
                {"source": source, "folder": "input", "name": name, "ephemeral": true}]}),
            ),
            (
                "subfolder",
                json!({"workflow": save(1, "x"), "files": [
                {"source": source, "folder": "input", "subfolder": name, "name": "x.png", "ephemeral": true}]}),
            ),
            ("prefix", json!({"workflow": save(2, name)})),
            ("image", json!({"workflow": invert(name)})),
            ("id", json!({"workflow": save(3, "x"), "id": name})),
        ];
        cases.extend(places.map(|(place, job)| Case::job(format!("{shown:?} as {place}"), job)));
    }
    let twins = ["é.png", "e\u{301}.png", "X.png", "x.png"];
    let mut inputs = serde_json::Map::new();
    let mut workflow = serde_json::Map::new();
    for (number, name) in twins.iter().enumerate() {
        inputs.insert(format!("{number}.image"), json!({"source": source, "name": name}));
        workflow.insert(number.to_string(), node("LoadImage", json!({"image": "x"})));
        let save = json!({"images": [number.to_string(), 0], "filename_prefix": "twin"});
        workflow.insert(format!("{number}-save"), node("SaveImage", save));
    }
    cases.push(Case::job("twins", json!({"workflow": workflow, "inputs": inputs})));
    hold(&bench, cases).await
}

/// `files` that would become code, or take the place of somebody's model.
pub(crate) async fn places(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let source = bench.input("hostile.bin", &pattern(41)).await?;
    let file = |folder: &str, subfolder: &str, name: &str| {
        json!({"workflow": save(1, "x"), "files": [
            {"source": source, "folder": folder, "subfolder": subfolder, "name": name, "ephemeral": true}]})
    };
    let sha256 = "00".repeat(32);
    let mut other = file("models", "checkpoints", "canary.safetensors");
    other["files"][0]["sha256"] = json!(sha256);
    let cases = vec![
        Case::job("a link out of models", file("models", "../custom_nodes", "x.py")).refused("invalid_job"),
        Case::job("code beside the models", file("models", "/custom_nodes", "x.py")).refused("invalid_job"),
        Case::job("code by way of input", file("input", "../custom_nodes", "x.py")).refused("invalid_job"),
        Case::job("a folder named like ours", file("input", "custom_nodes", "x.py")),
        Case::job("somebody's model", other).refused("invalid_job"),
        Case::job("an unknown folder", file("custom_nodes", "", "x.py")).refused("invalid_job"),
    ];
    hold(&bench, cases).await?;
    // A link that was there before must not lead a job's file out.
    let input = bench.engine().path.join("input/lead");
    std::os::unix::fs::symlink("/", &input)?;
    let case =
        Case::job("a link to /", file("input", "lead/tmp", "comfy-worker-hostile")).refused("invalid_job");
    let held = hold_one(&bench, case).await;
    fs::remove_file(&input)?;
    ensure!(!Path::new("/tmp/comfy-worker-hostile").exists(), "it led out");
    held
}

/// [`hold`] for one case while something of the test's own lies in ComfyUI's folders.
async fn hold_one(bench: &Bench, case: Case) -> Result<()> {
    let mut publisher = Publisher::connect(bench).await?;
    publisher.ask(&case.body).await?;
    let answer = Answer::read(publisher.reply().await?.body)?;
    judge(bench, &answer, case.code).with_context(|| format!("{}: {:#}", case.name, answer.result))
}

pub(crate) async fn bodies(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let text = |text: &str| text.as_bytes().to_vec();
    let prompt = json!({"1": color(1, 1)}).to_string();
    let image = "<img src=x onerror=\"fetch('http://169.254.169.254/')\">";
    let mut note = invert_workflow()?;
    let nodes = note["nodes"].as_array_mut().context("no nodes")?;
    let mut first = nodes.first().cloned().context("no node")?;
    first["id"] = json!(9000);
    first["type"] = json!("Note");
    first["title"] = json!(image);
    first["inputs"] = json!([]);
    first["outputs"] = json!([]);
    first["widgets_values"] = json!([image]);
    nodes.push(first);
    let cycle = json!({
        "1": node("ImageInvert", json!({"image": ["2", 0]})),
        "2": node("ImageInvert", json!({"image": ["1", 0]})),
        "3": node("SaveImage", json!({"images": ["2", 0], "filename_prefix": "x"})),
    });
    let many: serde_json::Map<_, _> = (0..100_000).map(|id| (id.to_string(), color(id, 1))).collect();
    let mut deep_ui = json!({"nodes": [], "links": []});
    deep_ui["nodes"] = (0..11_000).map(|id| json!({"id": id, "type": "Note"})).collect();
    // Ten of ten of ten …: 20 kB that are more nodes than there is memory for.
    let level = |level: usize| format!("0aa8cf42-9e4d-4e2f-8d5a-{level:012}");
    let tenfold = |levels: usize| {
        let within = |at: usize| if at == 0 { "Note".into() } else { level(at - 1) };
        let nodes = |at: usize| (0..10).map(|id| json!({"id": id, "type": within(at)})).collect::<Vec<_>>();
        let subgraphs: Vec<_> =
            (0..levels).map(|at| json!({"id": level(at), "nodes": nodes(at), "links": []})).collect();
        json!({"nodes": [{"id": 1, "type": level(levels - 1)}], "links": [], "definitions": {"subgraphs": subgraphs}})
    };
    let mut endless_subgraphs = tenfold(3);
    endless_subgraphs["definitions"]["subgraphs"][0]["nodes"][0]["type"] = level(2).into();
    let mut class_as_subgraph = tenfold(1);
    class_as_subgraph["definitions"]["subgraphs"][0]["id"] = json!("SaveImage");
    let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    bomb.extend(std::iter::repeat_n(0, 1 << 20));
    let mut zipped = Case::bytes("gzip", bomb).refused("malformed_job");
    zipped.properties = BasicProperties::default().with_content_encoding("gzip".into());
    let mut forged = Case::job("forged headers", json!({"workflow": save(7, "x")}));
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(i64::MAX));
    headers.insert("x-death".into(), AMQPValue::LongString("yes".into()));
    headers.insert("timestamp_in_ms".into(), AMQPValue::LongLongInt(i64::MAX));
    forged.properties = BasicProperties::default().with_headers(headers).with_timestamp(u64::MAX >> 1);
    let cases = vec![
        Case::bytes("cut short", text(&prompt[..prompt.len() - 1])).refused("malformed_job"),
        Case::bytes("100 MiB", vec![b' '; 100 << 20]).refused("malformed_job"),
        Case::bytes("NaN", text(r#"{"workflow": {"1": NaN}}"#)).refused("malformed_job"),
        Case::bytes("1e999", text(r#"{"workflow": {}, "timeout_seconds": 1e999}"#)).refused("malformed_job"),
        Case::bytes("half a surrogate pair", text(r#"{"workflow": {"1": "\ud800"}}"#))
            .refused("malformed_job"),
        Case::bytes("keys twice", text(&format!(r#"{{"workflow": {{}}, "workflow": {prompt}}}"#))),
        zipped,
        forged,
        Case::job("a cycle", json!({"workflow": cycle})),
        Case::job("100,000 nodes", json!({"workflow": many})).refused("invalid_job"),
        Case::job("11,000 notes", json!({"workflow": deep_ui})).refused("invalid_job"),
        Case::job("subgraphs within subgraphs", json!({"workflow": tenfold(40)})).refused("invalid_job"),
        Case::job("subgraphs of themselves", json!({"workflow": endless_subgraphs})).refused("invalid_job"),
        Case::job("a subgraph in a class's place", json!({"workflow": class_as_subgraph}))
            .refused("conversion_failed"),
        Case::job("__proto__", json!({"workflow": {"__proto__": color(1, 1), "constructor": color(2, 1)}})),
        Case::job("__proto__ of a UI workflow", {
            let mut workflow = invert_workflow()?;
            workflow["__proto__"] = json!({"polluted": true});
            json!({"workflow": workflow, "metadata": {"__proto__": {"polluted": true}}})
        }),
        Case::job("a note that runs", json!({"workflow": note})),
        Case::job("no graph", json!({"workflow": {"nodes": [1, "a", null], "links": "none"}})),
        Case::job("a long error", json!({"workflow": {"1": node(&"x".repeat(1 << 20), json!({}))}})),
        Case::job("endless", json!({"workflow": save(1, "x"), "timeout_seconds": 1e300}))
            .refused("invalid_job"),
        Case::job("back in time", json!({"workflow": save(1, "x"), "timeout_seconds": -1}))
            .refused("invalid_job"),
    ];
    hold(&bench, cases).await
}

pub(crate) async fn urls(suite: &Suite) -> Result<()> {
    let bench = suite.any().await?;
    let urls = [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:8188/interrupt",
        "http://127.0.0.1:8188/interrupt",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://localhost./",
        "https://user@127.0.0.1/",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "FILE:///etc/passwd",
        "s3://somebody-elses-bucket/x",
        "s3:///x",
        "s3://../x",
        "s3://any-in/open/../closed/x.png",
        "s3://any-in/open/%2e%2e/closed/x.png",
        "gopher://127.0.0.1/",
        "data:text/plain;base64,@@@",
        "\\\\server\\share",
    ];
    let cases = urls.iter().flat_map(|url| {
        let input = json!({"workflow": invert("x"), "inputs": {"1.image": {"source": url, "name": "x.png"}}});
        [
            Case::job(format!("{url} as an input"), input),
            Case::job(format!("{url} as a workflow"), json!({"workflow_uri": url})),
        ]
    });
    hold(&bench, cases.collect()).await
}
