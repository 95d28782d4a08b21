//! Workflows as the frontend saves them, made of nodes that every ComfyUI has.

use serde_json::{Value, json};

/// A node as workflows hold it. `inputs` and `outputs`: name, type, link or links.
pub(crate) fn node(
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

pub(crate) fn workflow(nodes: &[Value], links: Value) -> Value {
    json!({"last_node_id": 100, "last_link_id": 100, "nodes": nodes, "links": links, "groups": [], "config": {},
           "extra": {"ds": {"scale": 0.5, "offset": [11, 22]}}, "version": 0.4})
}

/// EmptyImage → ImageInvert → SaveImage.
pub(crate) fn simple(seed: &Value) -> Value {
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

/// What [`simple`]'s first node becomes, with 7 as its color.
pub(crate) fn empty_image() -> Value {
    json!({"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 7}})
}

pub(crate) const OUTER: &str = "0aa8cf42-9e4d-4e2f-8d5a-000000000001";
pub(crate) const INNER: &str = "0aa8cf42-9e4d-4e2f-8d5a-000000000002";

/// EmptyImage → outer subgraph (inner subgraph (`kind`)) → SaveImage.
pub(crate) fn nested(kind: &str) -> Value {
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

/// Takes the frontend a while.
pub(crate) fn busy() -> Value {
    let image = |id| node(id, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([]))], json!([64, 64, 1, id]));
    workflow(&(1..800).map(image).collect::<Vec<_>>(), json!([]))
}
