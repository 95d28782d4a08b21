//! Every kind of workflow that people have: what it becomes, on the pinned frontend and on the newest.

use comfy_worker::job::apply::set_inputs;
use connector::browser::{Conversion, ConvertError};
use serde_json::{Map, Value, json};
use testbed::RunningEngine;

use crate::{
    bare::Bare,
    frontends,
    started::{Started, plain},
    workflows::{empty_image, nested, node, simple, workflow},
};

/// EmptyImage's output goes into SaveImage, whatever lies between.
fn straight() -> Value {
    json!({"1": empty_image(), "3": save(json!({"filename_prefix": "x", "images": ["1", 0]}))})
}

fn save(inputs: Value) -> Value {
    json!({"class_type": "SaveImage", "inputs": inputs})
}

fn image() -> Value {
    node(1, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, 7]))
}

fn saver(link: u32) -> Value {
    node(3, "SaveImage", &[("images", "IMAGE", json!(link))], &[], json!(["x"]))
}

fn reroute(id: u32, from: u32, to: u32) -> Value {
    node(id, "Reroute", &[("", "*", json!(from))], &[("", "IMAGE", json!([to]))], json!([]))
}

/// Its widget `widget` has an input, with this link.
fn with_input(mut node: Value, widget: &str, kind: &str, link: Value) -> Value {
    let input = json!({"name": widget, "type": kind, "link": link, "widget": {"name": widget}});
    node["inputs"].as_array_mut().unwrap().push(input);
    node
}

fn primitive(id: u32, kind: &str, links: Value, values: Value) -> Value {
    let mut node = node(id, "PrimitiveNode", &[], &[(kind, kind, links)], values);
    node["outputs"][0]["widget"] = json!({"name": "value"});
    node
}

/// With `mode` (2: muted, 4: bypassed) at `pointer`.
fn in_mode(mut workflow: Value, pointer: &str, mode: u32) -> Value {
    workflow.pointer_mut(pointer).unwrap()["mode"] = mode.into();
    workflow
}

/// Name, workflow, prompt.
type Case = (&'static str, Value, Value);

fn links() -> Vec<Case> {
    let chain = workflow(
        &[image(), reroute(4, 1, 2), reroute(5, 2, 3), saver(3)],
        json!([[1, 1, 0, 4, 0, "IMAGE"], [2, 4, 0, 5, 0, "IMAGE"], [3, 5, 0, 3, 0, "IMAGE"]]),
    );
    let mut native = workflow(&[image(), saver(1)], json!([[1, 1, 0, 3, 0, "IMAGE"]]));
    let reroutes = json!([{"id": 1, "pos": [400, 120], "linkIds": [1]}, {"id": 2, "parentId": 1, "pos": [500, 120], "linkIds": [1]}]);
    native["extra"]["reroutes"] = reroutes.clone();
    native["extra"]["linkExtensions"] = json!([{"id": 1, "parentId": 2}]);
    let mut version_1 = native.clone();
    version_1["version"] = json!(1);
    version_1["reroutes"] = reroutes;
    version_1["links"] = json!([{"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "IMAGE", "parentId": 2}]);
    version_1["state"] = json!({"lastGroupId": 0, "lastNodeId": 100, "lastLinkId": 100, "lastRerouteId": 2});
    version_1["extra"] = json!({});
    let loose = json!({"1": empty_image(), "3": save(json!({"filename_prefix": "schön 画像"}))});
    let twice =
        json!({"1": empty_image(), "3": save(json!({"filename_prefix": "schön 画像", "images": ["1", 0]}))});
    vec![
        ("a chain of reroutes", chain, straight()),
        ("native reroutes", native, straight()),
        ("version 1: links are objects", version_1, straight()),
        ("a muted node between", in_mode(simple(&json!(7)), "/nodes/1", 2), loose),
        ("a bypassed node between", in_mode(simple(&json!(7)), "/nodes/1", 4), twice),
    ]
}

fn widgets() -> Vec<Case> {
    let sampler = |then: &str| {
        let values = json!([123_456_789, then, 20, 8.5, "euler", "normal", 0.75]);
        workflow(&[node(1, "KSampler", &[], &[("LATENT", "LATENT", json!(null))], values)], json!([]))
    };
    let sampled = json!({"1": {"class_type": "KSampler", "inputs": {
        "seed": 123_456_789, "steps": 20, "cfg": 8.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.75}}});
    let square = with_input(with_input(image(), "width", "INT", json!(2)), "height", "INT", json!(3));
    let shared = workflow(
        &[square, primitive(4, "INT", json!([2, 3]), json!([96, "randomize"])), saver(1)],
        json!([[1, 1, 0, 3, 0, "IMAGE"], [2, 4, 0, 1, 0, "INT"], [3, 4, 0, 1, 1, "INT"]]),
    );
    let mut squared = straight();
    squared["1"]["inputs"]["width"] = json!(96);
    squared["1"]["inputs"]["height"] = json!(96);
    let text = node(4, "PrimitiveString", &[], &[("STRING", "STRING", json!([2]))], json!(["from a node"]));
    let fed = |input: Value| {
        let mut save = saver(1);
        save["inputs"].as_array_mut().unwrap().push(input);
        workflow(&[image(), text.clone(), save], json!([[1, 1, 0, 3, 0, "IMAGE"], [2, 4, 0, 3, 1, "STRING"]]))
    };
    let name = "filename_prefix";
    let old = fed(
        json!({"name": name, "type": "STRING", "link": 2, "widget": {"name": name, "config": ["STRING", {"default": "ComfyUI"}]}}),
    );
    let new = fed(
        json!({"name": name, "localized_name": "Präfix", "type": "STRING", "link": 2, "widget": {"name": name}}),
    );
    let linked = json!({
        "1": empty_image(),
        "3": save(json!({"filename_prefix": ["4", 0], "images": ["1", 0]})),
        "4": {"class_type": "PrimitiveString", "inputs": {"value": "from a node"}},
    });
    let unlinked = workflow(
        &[
            with_input(with_input(image(), "width", "INT", json!(null)), "color", "INT", json!(null)),
            saver(1),
        ],
        json!([[1, 1, 0, 3, 0, "IMAGE"]]),
    );
    let text = |text: &str| workflow(&[node(1, "CLIPTextEncode", &[], &[], json!([text]))], json!([]));
    let encoded = |text: &str| json!({"1": {"class_type": "CLIPTextEncode", "inputs": {"text": text}}});
    vec![
        ("a seed to be randomized afterwards", sampler("randomize"), sampled.clone()),
        ("a seed to be incremented afterwards", sampler("increment"), sampled.clone()),
        ("a fixed seed", sampler("fixed"), sampled),
        ("one primitive for two widgets", shared, squared),
        ("a widget turned into an input, as old versions saved it", old, linked.clone()),
        ("a widget turned into an input", new, linked),
        ("inputs of widgets without a link", unlinked, straight()),
        ("escaped braces", text(r"a \{red|blue\} fox"), encoded("a {red|blue} fox")),
        ("comments in a text", text("a /* small */fox // here"), encoded("a fox ")),
        ("one choice only", text("a {red} fox"), encoded("a red fox")),
    ]
}

fn subgraphs() -> Vec<Case> {
    let inverted = |inputs: Value| json!({"1": empty_image(), "3": save(inputs)});
    let direct = inverted(json!({"filename_prefix": "nested", "images": ["1", 0]}));
    let loose = inverted(json!({"filename_prefix": "nested"}));
    let colored =
        json!({"2:9": empty_image(), "3": save(json!({"filename_prefix": "x", "images": ["2:9", 0]}))});
    let nested = || nested("ImageInvert");
    let inner = "/definitions/subgraphs/1/nodes/0";
    vec![
        ("a bypassed node in a subgraph", in_mode(nested(), inner, 4), direct.clone()),
        ("a muted node in a subgraph", in_mode(nested(), inner, 2), loose.clone()),
        // The page gives the parts the mode of the whole.
        ("a bypassed subgraph", in_mode(in_mode(nested(), inner, 4), "/nodes/1", 4), direct),
        ("a widget of a subgraph", promoted(false), colored),
        ("a muted subgraph", in_mode(in_mode(nested(), inner, 2), "/nodes/1", 2), loose),
    ]
}

/// A subgraph (EmptyImage) → SaveImage, with the color as a widget of the subgraph: by an input of the
/// subgraph, as `proxied` also by newer frontends' list of promoted widgets.
pub(crate) fn promoted(proxied: bool) -> Value {
    const ID: &str = "0aa8cf42-9e4d-4e2f-8d5a-000000000003";
    let mut inside = node(9, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([2]))], json!([64, 32, 1, 5]));
    let mut outside = node(2, ID, &[], &[("IMAGE", "IMAGE", json!([1]))], json!([7]));
    let (mut inputs, mut links) = (json!([]), vec![json!([9, 0, -20, 0, "IMAGE"])]);
    if proxied {
        outside["properties"]["proxyWidgets"] = json!([["9", "color"]]);
    } else {
        inside = with_input(inside, "color", "INT", json!(3));
        outside = with_input(outside, "color", "INT", json!(null));
        inputs = json!([{"id": format!("{}a", &ID[..35]), "name": "color", "type": "INT", "linkIds": [3], "pos": [0, 0]}]);
        links.push(json!([-10, 0, 9, 0, "INT"]));
    }
    let links: Vec<_> = links
        .iter()
        .zip(2..)
        .map(|(link, id)| json!({"id": id, "origin_id": link[0], "origin_slot": link[1], "target_id": link[2], "target_slot": link[3], "type": link[4]}))
        .collect();
    let mut workflow = workflow(&[outside, saver(1)], json!([[1, 2, 0, 3, 0, "IMAGE"]]));
    workflow["definitions"] = json!({"subgraphs": [{
        "id": ID, "version": 1, "name": "colored", "revision": 0, "config": {}, "groups": [], "widgets": [], "extra": {},
        "state": {"lastGroupId": 0, "lastNodeId": 20, "lastLinkId": 20, "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [0, 0, 120, 60]}, "outputNode": {"id": -20, "bounding": [600, 0, 120, 60]},
        "inputs": inputs, "nodes": [inside], "links": links,
        "outputs": [{"id": format!("{}b", &ID[..35]), "name": "IMAGE", "type": "IMAGE", "linkIds": [2], "pos": [0, 0]}],
    }]});
    workflow
}

/// EmptyImage and ImageInvert in a group node → SaveImage.
pub(crate) fn grouped(kind: &str) -> Value {
    let mut workflow = workflow(
        &[node(2, kind, &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, 7])), saver(1)],
        json!([[1, 2, 0, 3, 0, "IMAGE"]]),
    );
    let part = |index: u32, kind: &str, inputs: Value, values: Value| {
        json!({"index": index, "type": kind, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": index, "mode": 0, "inputs": inputs,
               "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}], "properties": {}, "widgets_values": values})
    };
    workflow["extra"]["groupNodes"] = json!({"pair": {
        "nodes": [
            part(0, "EmptyImage", json!([]), json!([512, 512, 1, 0])),
            part(1, "ImageInvert", json!([{"name": "image", "type": "IMAGE", "link": null}]), json!([])),
        ],
        "links": [[0, 0, 1, 0, 1, "IMAGE"]],
        "external": [[1, 0, "IMAGE"]],
    }});
    workflow
}

/// What [`grouped`] becomes, but for the ids: newer frontends make a subgraph of it.
fn ungrouped(prompt: &Value) -> bool {
    let node = |kind: &str| {
        let mut nodes = prompt.as_object().unwrap().iter();
        nodes.find(|(_, node)| node["class_type"] == kind).unwrap()
    };
    let ((empty, source), (invert, inverted), (_, saved)) =
        (node("EmptyImage"), node("ImageInvert"), node("SaveImage"));
    prompt.as_object().map(Map::len) == Some(3)
        && source["inputs"] == empty_image()["inputs"]
        && inverted["inputs"] == json!({"image": [empty, 0]})
        && saved["inputs"] == json!({"filename_prefix": "x", "images": [invert, 0]})
}

/// What files hold by mistake, or from another frontend: the page makes of it what it can, or says
/// what is wrong.
fn odd() -> Vec<(&'static str, Value)> {
    let to = |link: Value| workflow(&[image(), saver(1)], json!([link]));
    let mut twice = simple(&json!(7));
    twice["nodes"][1]["id"] = json!(1);
    vec![
        ("a link from nowhere", to(json!([1, 99, 0, 3, 0, "IMAGE"]))),
        ("a link from a slot that is not there", to(json!([1, 1, 5, 3, 0, "IMAGE"]))),
        ("a link of another type", to(json!([1, 1, 0, 3, 0, "LATENT"]))),
        ("a link that is not listed", workflow(&[image(), saver(1)], json!([]))),
        ("one id twice", twice),
        ("a widget promoted by newer frontends", promoted(true)),
        ("too few widget values", workflow(&[node(1, "EmptyImage", &[], &[], json!([64]))], json!([]))),
        ("a bypassed subgraph whose parts are not", in_mode(nested("ImageInvert"), "/nodes/1", 4)),
        ("a muted subgraph whose parts are not", in_mode(nested("ImageInvert"), "/nodes/1", 2)),
    ]
}

async fn check(server: &RunningEngine) {
    let started = Started::on(server).await;
    let bare = Bare::open(&started.program(), server).await;
    let mut wrong = Vec::new();
    for (name, workflow, expected) in links().into_iter().chain(widgets()).chain(subgraphs()) {
        match started.browser.convert(&workflow).await {
            Ok(Conversion { prompt, .. }) if plain(prompt.clone().into()) == expected => {}
            Ok(Conversion { prompt, .. }) => {
                wrong.push(format!("{name}:\n  became   {}\n  expected {expected}", Value::Object(prompt)));
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    let group_nodes = ["workflow>pair", "workflow/pair"].map(|kind| (kind, grouped(kind)));
    for (_, workflow) in &group_nodes {
        let prompt = started.prompt(workflow).await;
        assert!(ungrouped(&prompt), "{prompt}");
    }
    for (name, workflow) in odd().into_iter().chain(group_nodes) {
        let theirs = bare.answer(&workflow).await;
        let same = match started.browser.convert(&workflow).await {
            Ok(Conversion { prompt, .. }) => Value::Object(prompt) == theirs["output"],
            // In its words of that moment: what fails first may be the drawing.
            Err(ConvertError::Refused(_)) => theirs["error"].is_string(),
            Err(_) => false,
        };
        if !same {
            wrong.push(format!("{name}: {:?}\n  theirs {theirs}", started.browser.convert(&workflow).await));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    let red_or_blue =
        workflow(&[node(1, "CLIPTextEncode", &[], &[], json!(["a {red|blue} fox"]))], json!([]));
    let mut fox = started.prompt(&red_or_blue).await;
    let fox = fox["1"]["inputs"]["text"].take();
    assert!(["a red fox", "a blue fox"].map(Value::from).contains(&fox), "{fox}");
    large_seeds(&started).await;
    started.browser.shutdown().await;
}

/// In a subgraph, and by a primitive: rounded with a warning, exact through a job's inputs.
async fn large_seeds(started: &Started) {
    let noise =
        |id| node(id, "RandomNoise", &[], &[("NOISE", "NOISE", json!(null))], json!([u64::MAX, "randomize"]));
    let mut workflow = nested("ImageInvert");
    workflow["definitions"]["subgraphs"][1]["nodes"].as_array_mut().unwrap().push(noise(11));
    let fed = with_input(noise(12), "noise_seed", "INT", json!(5));
    workflow["nodes"]
        .as_array_mut()
        .unwrap()
        .extend([fed, primitive(13, "INT", json!([5]), json!([u64::MAX, "fixed"]))]);
    workflow["links"].as_array_mut().unwrap().push(json!([5, 13, 0, 12, 0, "INT"]));

    let Conversion { mut prompt, warnings, .. } = started.browser.convert(&workflow).await.unwrap();
    for place in ["node 11 in subgraph inner: 18446744073709551615", "node 13: 18446744073709551615"] {
        assert!(warnings.iter().any(|warning| warning.starts_with(place)), "{warnings:?}");
    }
    for id in ["2:5:11", "12"] {
        assert_ne!(prompt[id]["inputs"]["noise_seed"], json!(u64::MAX), "{id}");
        let input = format!("{id}.noise_seed").parse().unwrap();
        set_inputs(&mut prompt, &[(input, json!(u64::MAX))].into()).unwrap();
        assert_eq!(prompt[id]["inputs"]["noise_seed"], json!(u64::MAX), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_on_the_pinned_frontend() {
    check(frontends::pinned().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_on_the_newest_frontend() {
    check(frontends::newest().await).await;
}
