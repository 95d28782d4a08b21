//! One workflow that is to change what the next one becomes: the smallest of each kind.

use connector::browser::{Conversion, ConvertError};
use serde_json::{Value, json};

use crate::{
    frontends,
    kinds::grouped,
    started::{Started, plain},
    workflows::{INNER, OUTER, empty_image, nested, node, simple, workflow},
};

const DEFAULTS: [&str; 2] = ["EmptyImage", "SaveImage"];

/// Nodes whose values are the definitions' defaults; `number` makes it one that is not known.
fn defaults(number: u32) -> Value {
    let nodes = DEFAULTS.map(|kind| node(u32::from(kind == "SaveImage") + 1, kind, &[], &[], json!(null)));
    let mut workflow = workflow(&nodes, json!([]));
    workflow["extra"]["number"] = number.into();
    workflow
}

fn expected() -> Value {
    json!({
        "1": {"class_type": "EmptyImage", "inputs": {"width": 512, "height": 512, "batch_size": 1, "color": 0}},
        "2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI"}},
    })
}

/// `definitions` with another id for the outer subgraph.
fn renamed(id: &str) -> Value {
    let mut workflow = nested("EmptyImage");
    workflow["nodes"][1]["type"] = id.into();
    workflow["definitions"]["subgraphs"][0]["id"] = id.into();
    workflow
}

fn with_field(name: &str, value: Value) -> Value {
    let mut workflow = simple(&json!(7));
    // Muted: that it does not run is no excuse.
    workflow["nodes"][2]["mode"] = json!(2);
    workflow["nodes"][2][name] = value;
    workflow
}

async fn is_refused(started: &Started, workflow: &Value, word: &str) {
    match started.browser.convert(workflow).await {
        Err(ConvertError::Refused(text)) => assert!(text.contains(word), "{text}"),
        other => panic!("{other:?}"),
    }
}

async fn lacks(started: &Started, workflow: &Value, kind: &str) {
    match started.browser.convert(workflow).await {
        Err(ConvertError::MissingNodes(types)) => assert_eq!(types, [kind]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replaces_classes_and_definitions_is_refused() {
    for server in frontends::both().await {
        let started = Started::on(server).await;
        assert_eq!(started.prompt(&defaults(0)).await, expected());
        for (number, id) in (1..).zip(["SaveImage", "constructor", "__proto__", "workflow>pair", ""]) {
            is_refused(&started, &renamed(id), "UUID").await;
            assert_eq!(started.prompt(&defaults(number)).await, expected(), "{id}");
        }
        let other =
            json!({"nodeData": {"name": "SaveImage", "input": {"required": {}}, "output": []}, "title": "x"});
        for (number, name) in (10..).zip(["constructor", "__proto__", "prototype"]) {
            is_refused(&started, &with_field(name, other.clone()), name).await;
            let mut deep = simple(&json!(7));
            deep["extra"]["groupNodes"] = json!({"pair": {"nodes": [{"properties": {name: 1}}]}});
            is_refused(&started, &deep, name).await;
            assert_eq!(started.prompt(&defaults(number)).await, expected(), "{name}");
        }
        started.browser.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_do_not_outlive_their_workflow() {
    for server in frontends::both().await {
        let started = Started::on(server).await;
        for kind in ["workflow>pair", "workflow/pair"] {
            started.prompt(&grouped(kind)).await;
            let mut without = grouped(kind);
            without["extra"].as_object_mut().unwrap().remove("groupNodes");
            lacks(&started, &without, kind).await;
        }
        started.prompt(&nested("ImageInvert")).await;
        let mut without = nested("ImageInvert");
        without.as_object_mut().unwrap().remove("definitions");
        lacks(&started, &without, OUTER).await;
        // Nor in a definition.
        started.prompt(&nested("ImageInvert")).await;
        let mut without = nested("ImageInvert");
        without["definitions"]["subgraphs"].as_array_mut().unwrap().pop();
        lacks(&started, &without, INNER).await;

        // Another one of that id or name is that one.
        started.prompt(&nested("ImageInvert")).await;
        let prompt = started.prompt(&nested("ImageScaleToTotalPixels")).await;
        assert_eq!(prompt["2:5:9"]["class_type"], "ImageScaleToTotalPixels");
        started.prompt(&grouped("workflow>pair")).await;
        let mut other = grouped("workflow>pair");
        other["extra"]["groupNodes"]["pair"]["nodes"][1]["type"] = "ImageBlur".into();
        let prompt = started.prompt(&other).await;
        let kinds: Vec<_> = prompt.as_object().unwrap().values().map(|node| &node["class_type"]).collect();
        assert!(kinds.iter().any(|kind| **kind == "ImageBlur"), "{prompt}");
        started.browser.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_into_live_objects_stays_with_its_page() {
    for server in frontends::both().await {
        let started = Started::on(server).await;
        let mut hostile = Vec::new();
        for name in
            ["serialize", "configure", "addWidget", "onConfigure", "computeSize", "onConnectionsChange"]
        {
            hostile.push(with_field(name, json!({"call": 1, "apply": 1, "length": 9})));
        }
        hostile.push(with_field("graph", json!({"id": OUTER, "nodes": [], "links": []})));
        for name in ["filter", "list_of_graphcanvas", "_subgraphs", "events", "getNodeById", "onNodeAdded"] {
            let mut workflow = simple(&json!(7));
            workflow[name] = json!({"length": 0});
            hostile.push(workflow);
        }
        for (number, workflow) in (0..).zip(&hostile) {
            let outcome = started.browser.convert(workflow).await;
            if let Ok(Conversion { prompt, .. }) = &outcome {
                println!("converted: {} nodes", prompt.len());
            }
            assert!(matches!(outcome, Ok(_) | Err(ConvertError::Refused(_))), "{outcome:?}");
            assert_eq!(started.prompt(&defaults(number)).await, expected(), "{workflow}");
            let mut numbered = nested("ImageInvert");
            numbered["extra"]["number"] = number.into();
            assert_eq!(started.prompt(&numbered).await["1"], empty_image(), "{workflow}");
        }
        started.browser.shutdown().await;
    }
}

/// Two workflows of one id, the second without values of its own.
#[tokio::test(flavor = "multi_thread")]
async fn workflows_of_one_id_share_nothing() {
    for server in frontends::both().await {
        let started = Started::on(server).await;
        for number in 0..3 {
            let mut valued = simple(&json!(number));
            valued["id"] = OUTER.into();
            assert_eq!(started.browser.convert(&valued).await.unwrap().workflow["id"], OUTER);
            let mut bare = defaults(number);
            bare["id"] = OUTER.into();
            assert_eq!(plain(started.browser.convert(&bare).await.unwrap().prompt.into()), expected());
        }
        started.browser.shutdown().await;
    }
}

/// `job.max_nodes` counts by the same rule.
#[tokio::test(flavor = "multi_thread")]
async fn group_nodes_in_a_list_are_named_by_their_positions() {
    for server in frontends::both().await {
        let started = Started::on(server).await;
        let mut listed = grouped("workflow>0");
        listed["extra"]["groupNodes"] = json!([listed["extra"]["groupNodes"]["pair"]]);
        let prompt = started.prompt(&listed).await;
        assert_eq!(prompt.as_object().unwrap().len(), 3, "{prompt}");
        started.browser.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_workflow_with_a_huge_prompt_is_refused() {
    let started = Started::on(frontends::pinned().await).await;
    let mut text = node(1, "CLIPTextEncode", &[], &[], json!(["x".repeat(1 << 20)]));
    text["title"] = "t".into();
    let prefix = |times: usize| {
        let save = node(2, "SaveImage", &[], &[], json!(["%t.text%".repeat(times)]));
        workflow(&[text.clone(), save], json!([]))
    };
    let prompt = started.prompt(&prefix(2)).await;
    assert_eq!(prompt["2"]["inputs"]["filename_prefix"].as_str().unwrap().len(), 2 << 20);
    is_refused(&started, &prefix(70), "its prompt would have").await;
    started.browser.shutdown().await;
}
