//! What the frontend makes of workflows, and how it refuses them.

use connector::browser::ConvertError;
use serde_json::json;

use crate::{
    frontends,
    started::Started,
    workflows::{empty_image, nested, node, simple, workflow},
};

#[tokio::test(flavor = "multi_thread")]
async fn workflows_become_the_frontends_prompts() {
    for server in frontends::both().await {
        become_prompts(&Started::on(server).await).await;
    }
}

async fn become_prompts(started: &Started) {
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

    // A number that JavaScript cannot hold.
    let rounded = started.browser.convert(&simple(&json!(u64::MAX))).await.unwrap();
    assert_eq!(rounded.warnings.len(), 1);
    assert!(rounded.warnings[0].contains("node 1: 18446744073709551615"), "{:?}", rounded.warnings);

    // After all these the page is as it was: with another color, since the first one is known.
    let mut other = expected;
    other["1"]["inputs"]["color"] = json!(8);
    assert_eq!(started.prompt(&simple(&json!(8))).await, other);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_types_that_the_server_lacks_are_named_completely() {
    for server in frontends::both().await {
        name_missing(&Started::on(server).await).await;
    }
}

async fn name_missing(started: &Started) {
    let image = |id: u32, kind: &str| {
        node(id, kind, &[("image", "IMAGE", json!(null))], &[("IMAGE", "IMAGE", json!([]))], json!([]))
    };

    // A definition that nothing uses does not count.
    let mut unused = simple(&json!(7));
    unused["definitions"] = nested("Deep Unknown")["definitions"].clone();
    assert!(started.browser.convert(&unused).await.is_ok());

    // In a subgraph's subgraph. Every refusal costs a page, so the rest comes in one workflow.
    let mut many = nested("Deep Unknown");
    // Sorted, each once, with the characters that the frontend strips; the muted one does not count.
    let mut muted = image(19, "Muted Unknown");
    muted["mode"] = json!(2);
    let unknown = [image(14, "Z Node"), image(15, "A <Node> & \"more\""), image(16, "Z Node"), muted];
    // Of a group node only the part is named.
    let groups = [image(17, "workflow/old"), image(18, "workflow>new")];
    many["nodes"].as_array_mut().unwrap().extend(unknown.into_iter().chain(groups));
    let group = |part: &str| {
        json!({
            "nodes": [
                {"index": 0, "type": "ImageInvert", "pos": [0, 0], "size": [100, 50], "inputs": [], "outputs": []},
                {"index": 1, "type": part, "pos": [0, 0], "size": [100, 50], "inputs": [], "outputs": []},
            ],
            "links": [], "external": [],
        })
    };
    many["extra"]["groupNodes"] = json!({"old": group("Grouped Unknown"), "new": group("Also Grouped")});
    match started.browser.convert(&many).await {
        Err(ConvertError::MissingNodes(types)) => assert_eq!(
            types,
            ["A <Node> & \"more\"", "Also Grouped", "Deep Unknown", "Grouped Unknown", "Z Node"]
        ),
        other => panic!("{other:?}"),
    }
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_workflow_is_refused_in_one_line() {
    for server in frontends::both().await {
        refuse_garbage(&Started::on(server).await).await;
    }
}

async fn refuse_garbage(started: &Started) {
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
