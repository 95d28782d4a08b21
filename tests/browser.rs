//! Conversion in a real Chromium with the frontend that a ComfyUI (or its stand-in) serves.
//!
//! `BROWSER_TEST_SERVER` is that server's URL.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use comfy_worker::{
    browser::{Browser, ConvertError},
    config::BrowserConfig,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use url::Url;

/// Browsers started side by side would only measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A started browser, and what the operating system shows of it.
struct Started {
    browser: Browser,
    mark: String,
    _turn: MutexGuard<'static, ()>,
}

impl Started {
    async fn new() -> Self {
        Self::with(Duration::from_secs(30)).await
    }

    async fn with(convert_timeout: Duration) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let mark = format!("--mark-of-test={}", uuid::Uuid::new_v4());
        let config = BrowserConfig { executable: None, args: vec![mark.clone()], convert_timeout };
        let started = Instant::now();
        let browser = Browser::start(config, server()).await.unwrap();
        println!("ready after {:?}: {}", started.elapsed(), browser.version().await);
        Self { browser, mark, _turn: turn }
    }

    /// The process that leads Chromium's group.
    fn leader(&self) -> Option<Pid> {
        processes().into_iter().find(|(_, command)| command.contains(&self.mark)).map(|(pid, _)| pid)
    }

    fn profile(&self) -> PathBuf {
        let (_, command) =
            processes().into_iter().find(|(_, command)| command.contains(&self.mark)).expect("it runs");
        command
            .split(['\0', ' '])
            .find_map(|arg| arg.strip_prefix("--user-data-dir="))
            .map(PathBuf::from)
            .unwrap()
    }

    async fn prompt(&self, workflow: &Value) -> Value {
        let conversion = self.browser.convert(workflow).await.unwrap();
        assert!(conversion.workflow["nodes"].is_array(), "the workflow's half is missing");
        plain(Value::Object(conversion.prompt))
    }
}

fn server() -> Url {
    env::var("BROWSER_TEST_SERVER")
        .expect("set BROWSER_TEST_SERVER to the URL of a ComfyUI or of its stand-in")
        .parse()
        .unwrap()
}

/// Every process and its command line; the arguments end in NUL.
fn processes() -> Vec<(Pid, String)> {
    let read = |entry: fs::DirEntry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((pid, String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned()))
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| read(entry.ok()?)).collect()
}

/// The live processes of a group; a zombie is dead.
fn group(leader: Pid) -> usize {
    let of_group = |stat: String| {
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned);
        let state = fields.next()?;
        let group: i32 = fields.nth(1)?.parse().ok()?;
        (state != "Z" && group == leader.as_raw_nonzero().get()).then_some(())
    };
    processes()
        .into_iter()
        .filter_map(|(pid, _)| {
            of_group(fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)
        })
        .count()
}

async fn until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Without `_meta`, which newer frontends fill with more.
fn plain(mut prompt: Value) -> Value {
    for node in prompt.as_object_mut().unwrap().values_mut() {
        node.as_object_mut().unwrap().remove("_meta");
    }
    prompt
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))).unwrap()
}

/// A node as workflows hold it. `inputs` and `outputs`: name, type, link or links.
fn node(
    id: u32,
    kind: &str,
    inputs: &[(&str, &str, Value)],
    outputs: &[(&str, &str, Value)],
    values: Value,
) -> Value {
    let inputs: Vec<_> =
        inputs.iter().map(|(name, kind, link)| json!({"name": name, "type": kind, "link": link})).collect();
    let outputs: Vec<_> = outputs
        .iter()
        .enumerate()
        .map(|(slot, (name, kind, links))| json!({"name": name, "type": kind, "links": links, "slot_index": slot}))
        .collect();
    json!({"id": id, "type": kind, "pos": [id * 300, 100], "size": [200, 100], "flags": {}, "order": id, "mode": 0,
           "inputs": inputs, "outputs": outputs, "properties": {}, "widgets_values": values})
}

fn workflow(nodes: &[Value], links: Value) -> Value {
    json!({"last_node_id": 100, "last_link_id": 100, "nodes": nodes, "links": links, "groups": [], "config": {},
           "extra": {"ds": {"scale": 0.5, "offset": [11, 22]}}, "version": 0.4})
}

/// EmptyImage → ImageInvert → SaveImage.
fn simple(seed: &Value) -> Value {
    workflow(
        &[
            node(1, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, seed])),
            node(
                2,
                "ImageInvert",
                &[("image", "IMAGE", json!(1))],
                &[("IMAGE", "IMAGE", json!([2]))],
                json!([]),
            ),
            node(3, "SaveImage", &[("images", "IMAGE", json!(2))], &[], json!(["schön 画像"])),
        ],
        json!([[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]),
    )
}

fn empty_image() -> Value {
    json!({"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 7}})
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_become_the_frontends_prompts() {
    let started = Started::new().await;

    // Plain, unicode, and the view comes back as it went in.
    let plain_workflow = simple(&json!(7));
    let expected = json!({
        "1": empty_image(),
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "schön 画像", "images": ["2", 0]}},
    });
    assert_eq!(started.prompt(&plain_workflow).await, expected);
    let conversion = started.browser.convert(&plain_workflow).await.unwrap();
    assert_eq!(conversion.workflow["extra"]["ds"], plain_workflow["extra"]["ds"]);
    assert!(conversion.warnings.is_empty());
    assert!(started.browser.frontend_version().is_some_and(|version| version.starts_with('1')));

    // Nothing.
    let empty = started.browser.convert(&workflow(&[], json!([]))).await.unwrap();
    assert!(empty.prompt.is_empty());

    // A bypassed node is passed by, a muted one and notes vanish.
    let mut bypassed = plain_workflow.clone();
    bypassed["nodes"][1]["mode"] = json!(4);
    let mut muted = node(4, "SaveImage", &[("images", "IMAGE", json!(null))], &[], json!(["muted"]));
    muted["mode"] = json!(2);
    let note = node(5, "Note", &[], &[], json!(["read me"]));
    let markdown = node(6, "MarkdownNote", &[], &[], json!(["**read me**"]));
    bypassed["nodes"].as_array_mut().unwrap().extend([muted, note, markdown]);
    assert_eq!(
        started.prompt(&bypassed).await,
        json!({
            "1": empty_image(),
            "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "schön 画像", "images": ["1", 0]}},
        })
    );

    // A reroute and a primitive are resolved.
    let mut save = node(
        3,
        "SaveImage",
        &[("images", "IMAGE", json!(2)), ("filename_prefix", "STRING", json!(3))],
        &[],
        json!(["overwritten"]),
    );
    save["inputs"][1]["widget"] = json!({"name": "filename_prefix"});
    let mut primitive =
        node(4, "PrimitiveNode", &[], &[("STRING", "STRING", json!([3]))], json!(["from primitive"]));
    primitive["outputs"][0]["widget"] = json!({"name": "filename_prefix"});
    let indirect = workflow(
        &[
            node(1, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, 7])),
            node(2, "Reroute", &[("", "*", json!(1))], &[("", "IMAGE", json!([2]))], json!([])),
            save,
            primitive,
        ],
        json!([[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"], [3, 4, 0, 3, 1, "STRING"]]),
    );
    assert_eq!(
        started.prompt(&indirect).await,
        json!({
            "1": empty_image(),
            "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "from primitive", "images": ["1", 0]}},
        })
    );

    // A subgraph within a subgraph.
    let nested = nested("ImageInvert");
    assert_eq!(
        started.prompt(&nested).await,
        json!({
            "1": empty_image(),
            "2:5:9": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "nested", "images": ["2:5:9", 0]}},
        })
    );

    // After all these the first still gives the same.
    assert_eq!(started.prompt(&plain_workflow).await, expected);
    started.browser.shutdown().await;
}

const OUTER: &str = "0aa8cf42-9e4d-4e2f-8d5a-000000000001";
const INNER: &str = "0aa8cf42-9e4d-4e2f-8d5a-000000000002";

/// EmptyImage → outer subgraph (inner subgraph (`kind`)) → SaveImage.
fn nested(kind: &str) -> Value {
    let subgraph = |id: &str, name: &str, inside: Value, inside_id: u32| {
        json!({
            "id": id, "version": 1, "name": name, "revision": 0, "config": {}, "groups": [], "widgets": [], "extra": {},
            "state": {"lastGroupId": 0, "lastNodeId": 20, "lastLinkId": 20, "lastRerouteId": 0},
            "inputNode": {"id": -10, "bounding": [0, 0, 120, 60]},
            "outputNode": {"id": -20, "bounding": [600, 0, 120, 60]},
            "inputs": [{"id": format!("{}a", &id[..35]), "name": "image", "type": "IMAGE", "linkIds": [1], "pos": [0, 0]}],
            "outputs": [{"id": format!("{}b", &id[..35]), "name": "IMAGE", "type": "IMAGE", "linkIds": [2], "pos": [0, 0]}],
            "nodes": [inside],
            "links": [
                {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": inside_id, "target_slot": 0, "type": "IMAGE"},
                {"id": 2, "origin_id": inside_id, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "IMAGE"},
            ],
        })
    };
    let instance = |id: u32, kind: &str| {
        node(id, kind, &[("image", "IMAGE", json!(1))], &[("IMAGE", "IMAGE", json!([2]))], json!([]))
    };
    let mut workflow = workflow(
        &[
            node(1, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, 7])),
            instance(2, OUTER),
            node(3, "SaveImage", &[("images", "IMAGE", json!(2))], &[], json!(["nested"])),
        ],
        json!([[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]]),
    );
    workflow["definitions"] = json!({"subgraphs": [
        subgraph(OUTER, "outer", instance(5, INNER), 5),
        subgraph(INNER, "inner", instance(9, kind), 9),
    ]});
    workflow
}

async fn missing(started: &Started, workflow: &Value) -> Vec<String> {
    match started.browser.convert(workflow).await {
        Err(ConvertError::MissingNodes(types)) => types,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_types_that_the_server_lacks_are_named_completely() {
    let started = Started::new().await;
    let image = |id: u32, kind: &str| {
        node(id, kind, &[("image", "IMAGE", json!(null))], &[("IMAGE", "IMAGE", json!([]))], json!([]))
    };

    // Sorted, each once, with the characters that the frontend strips; the muted one does not count.
    let mut many = simple(&json!(7));
    let mut muted = image(9, "Muted Unknown");
    muted["mode"] = json!(2);
    let unknown = [image(4, "Z Node"), image(5, "A <Node> & \"more\""), image(6, "Z Node"), muted];
    many["nodes"].as_array_mut().unwrap().extend(unknown);
    assert_eq!(missing(&started, &many).await, ["A <Node> & \"more\"", "Z Node"]);

    // In a subgraph's subgraph; not in a definition that nothing uses.
    assert_eq!(missing(&started, &nested("Deep Unknown")).await, ["Deep Unknown"]);
    let mut unused = simple(&json!(7));
    unused["definitions"] = nested("Deep Unknown")["definitions"].clone();
    assert!(started.browser.convert(&unused).await.is_ok());

    // In a group node, of which only the part is named.
    for separator in ['/', '>'] {
        let mut grouped = simple(&json!(7));
        let kind = format!("workflow{separator}pair");
        grouped["nodes"].as_array_mut().unwrap().push(image(4, &kind));
        grouped["extra"]["groupNodes"] = json!({"pair": {
            "nodes": [
                {"index": 0, "type": "ImageInvert", "pos": [0, 0], "size": [100, 50], "inputs": [], "outputs": []},
                {"index": 1, "type": "Grouped Unknown", "pos": [0, 0], "size": [100, 50], "inputs": [], "outputs": []},
            ],
            "links": [], "external": [],
        }});
        assert_eq!(missing(&started, &grouped).await, ["Grouped Unknown"], "{separator}");
    }
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_workflow_is_refused_in_one_line() {
    let started = Started::new().await;
    let garbage = [
        json!(null),
        json!([1, 2]),
        json!({"3": {"class_type": "KSampler", "inputs": {}}}),
        json!({"nodes": [7, "x", null], "links": []}),
        json!({"nodes": [{"id": 1}], "links": [[1]], "version": 0.4}),
        json!({"nodes": [], "links": "none", "definitions": {"subgraphs": [3]}}),
    ];
    for workflow in garbage {
        match started.browser.convert(&workflow).await {
            Err(error @ (ConvertError::Refused(_) | ConvertError::MissingNodes(_))) => {
                println!("{workflow}: {error}");
                assert!(!error.to_string().contains('\n'));
            }
            Ok(conversion) => {
                println!("{workflow}: {:?}", conversion.prompt);
                assert!(conversion.prompt.is_empty(), "{workflow}: {conversion:?}");
            }
            other => panic!("{workflow}: {other:?}"),
        }
    }
    // Nothing of that stays behind.
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rounded_number_is_warned_of() {
    let started = Started::new().await;
    let conversion = started.browser.convert(&simple(&json!(u64::MAX))).await.unwrap();
    assert_eq!(conversion.warnings.len(), 1);
    assert!(conversion.warnings[0].contains("node 1: 18446744073709551615"), "{:?}", conversion.warnings);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conversions_side_by_side_do_not_mix() {
    let started = Started::new().await;
    let tasks: Vec<_> = (0..10)
        .map(|color: u32| {
            let browser = started.browser.clone();
            tokio::spawn(async move { browser.convert(&simple(&json!(color))).await })
        })
        .collect();
    for (color, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().unwrap().prompt["1"]["inputs"]["color"], json!(color));
    }
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_chromium_costs_no_conversion() {
    let started = Started::new().await;
    let leader = started.leader().unwrap();
    let profile = started.profile();
    kill_process(leader, Signal::KILL).unwrap();
    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the kill", clock.elapsed());
    assert_ne!(started.leader().unwrap(), leader);
    until("the first group is gone", Duration::from_secs(2), || group(leader) == 0).await;
    assert!(!profile.exists());
    started.browser.validate().await.unwrap();

    // In the middle of a conversion.
    let leader = started.leader().unwrap();
    let busy = busy();
    let (converted, ()) = tokio::join!(started.browser.convert(&busy), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        kill_process_group(leader, Signal::KILL).unwrap();
    });
    assert!(!converted.unwrap().prompt.is_empty());
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_page_costs_no_conversion_and_no_browser() {
    let started = Started::new().await;
    let leader = started.leader().unwrap();
    let crash = || {
        let profile = started.profile();
        let of_this = |command: &str| {
            command.contains("--type=renderer") && command.contains(profile.to_str().unwrap())
        };
        let renderers: Vec<_> = processes().into_iter().filter(|(_, command)| of_this(command)).collect();
        for (pid, _) in &renderers {
            kill_process(*pid, Signal::KILL).unwrap();
        }
        assert!(!renderers.is_empty());
    };
    crash();
    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the crash", clock.elapsed());

    let busy = busy();
    let clock = Instant::now();
    let (converted, ()) = tokio::join!(started.browser.convert(&busy), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        crash();
    });
    assert!(!converted.unwrap().prompt.is_empty());
    println!("converted {:?} after the crash halfway", clock.elapsed());
    assert_eq!(started.leader().unwrap(), leader);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_replaced_before_they_grow() {
    let started = Started::new().await;
    let leader = started.leader().unwrap();
    let before = group(leader);
    let mut times = Vec::new();
    for color in 0..120 {
        let clock = Instant::now();
        assert_eq!(started.prompt(&simple(&json!(color))).await["1"]["inputs"]["color"], json!(color));
        times.push(clock.elapsed());
    }
    times.sort();
    println!("median {:?}, most {:?}", times[60], times[119]);
    assert_eq!(started.leader().unwrap(), leader);
    until("the first page is gone", Duration::from_secs(5), || group(leader) <= before).await;
    started.browser.shutdown().await;
}

/// Takes the frontend a while.
fn busy() -> Value {
    let image = |id| node(id, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([]))], json!([64, 64, 1, id]));
    workflow(&(1..400).map(image).collect::<Vec<_>>(), json!([]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_chromium_is_replaced_within_limits() {
    let started = Started::new().await;
    let leader = started.leader().unwrap();
    kill_process_group(leader, Signal::STOP).unwrap();

    let clock = Instant::now();
    let ill = started.browser.validate().await.unwrap_err();
    assert!(clock.elapsed() < Duration::from_secs(1), "{:?}", clock.elapsed());
    println!("validate: {ill}");

    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the stop", clock.elapsed());
    assert!(clock.elapsed() < Duration::from_secs(25), "{:?}", clock.elapsed());
    assert_eq!(group(leader), 0);

    // In the middle of a conversion: noticed long before the conversion's own limit.
    let leader = started.leader().unwrap();
    let clock = Instant::now();
    let busy = busy();
    let (converted, ()) = tokio::join!(started.browser.convert(&busy), async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        kill_process_group(leader, Signal::STOP).unwrap();
    });
    assert!(!converted.unwrap().prompt.is_empty());
    println!("converted {:?} after the stop halfway", clock.elapsed());
    assert!(clock.elapsed() < Duration::from_secs(27), "{:?}", clock.elapsed());
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_and_the_next_conversion_works() {
    let started = Started::with(Duration::from_millis(1)).await;
    let leader = started.leader().unwrap();
    match started.browser.convert(&busy()).await {
        Err(ConvertError::TimedOut(limit)) => assert_eq!(limit, Duration::from_millis(1)),
        other => panic!("{other:?}"),
    }
    // A slow workflow is no reason to replace a Chromium that answers.
    assert_eq!(started.leader().unwrap(), leader);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_conversion_leaves_no_trace() {
    let started = Started::new().await;
    let limit = Duration::from_millis(40);
    assert!(tokio::time::timeout(limit, started.browser.convert(&busy())).await.is_err());
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_shutdown_or_drop() {
    for dropped in [false, true] {
        let started = Started::new().await;
        started.browser.validate().await.unwrap();
        let leader = started.leader().unwrap();
        let profile = started.profile();
        assert!(profile.is_dir() && group(leader) > 1);
        let clock = Instant::now();
        if dropped {
            drop(started);
        } else {
            started.browser.shutdown().await;
            let taken = clock.elapsed();
            started.browser.shutdown().await;
            assert!(started.browser.validate().await.is_err());
            assert!(matches!(
                started.browser.convert(&simple(&json!(7))).await,
                Err(ConvertError::Browser(_))
            ));
            println!("shut down in {taken:?}");
            assert!(taken < Duration::from_secs(3));
        }
        assert_eq!(group(leader), 0, "dropped: {dropped}");
        assert!(!profile.exists(), "dropped: {dropped}");
        println!("gone after {:?}, dropped: {dropped}", clock.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_named() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let config =
        BrowserConfig { executable: None, args: Vec::new(), convert_timeout: Duration::from_secs(5) };
    let error = Browser::start(config, nobody.clone()).await.unwrap_err().to_string();
    println!("{error}");
    assert!(
        error.contains(nobody.as_str()) && error.contains("ERR_CONNECTION_REFUSED") && !error.contains('\n')
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_executable_is_one_clear_line() {
    let config = BrowserConfig {
        executable: Some("/bin/false".into()),
        args: Vec::new(),
        convert_timeout: Duration::from_secs(5),
    };
    let error = Browser::start(config, server()).await.unwrap_err().to_string();
    println!("{error}");
    assert!(error.ends_with("/bin/false did not start: it ended and said nothing") && !error.contains('\n'));
}

/// Every template with a golden prompt: `BROWSER_TEST_TEMPLATES` is the folder `templates` of
/// the PyPI package comfyui-workflow-templates 0.1.95, `BROWSER_TEST_GOLDEN` that of the prompts.
/// Against ComfyUI 0.3.64 with frontend 1.27.10.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the templates, the golden prompts and ComfyUI 0.3.64"]
async fn templates_convert_to_their_golden_prompts() {
    let folder = |name: &str| PathBuf::from(env::var(name).unwrap_or_else(|_| panic!("set {name}")));
    let (templates, golden) = (folder("BROWSER_TEST_TEMPLATES"), folder("BROWSER_TEST_GOLDEN"));
    let started = Started::new().await;
    let browser = &started.browser;
    let mut different = Vec::new();
    let mut times = Vec::new();
    for entry in fs::read_dir(&golden).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let workflow = read(&templates.join(name));
        let started = Instant::now();
        match browser.convert(&workflow).await {
            Ok(conversion) if Value::Object(conversion.prompt.clone()) == read(&path) => {
                times.push(started.elapsed())
            }
            Ok(conversion) => {
                let text = serde_json::to_string_pretty(&conversion.prompt).unwrap();
                fs::write(env::temp_dir().join(name), text).unwrap();
                different.push(format!("{name:?}"));
            }
            // What this server lacks came out without a class when the golden prompts were recorded.
            Err(ConvertError::MissingNodes(_))
                if read(&path).as_object().unwrap().values().any(|node| node["class_type"].is_null()) => {}
            Err(error) => different.push(format!("{name:?}: {error}")),
        }
    }
    times.sort();
    println!("{} equal, median {:?}, most {:?}", times.len(), times[times.len() / 2], times.last());
    browser.shutdown().await;
    assert!(different.is_empty(), "{different:#?}");
}
