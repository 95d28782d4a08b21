//! Hostile workflows, drawn from a grammar of tricks: a fair workflow, and some things that no frontend
//! writes into it.

use std::hash::{BuildHasher as _, RandomState};

use serde_json::{Value, json};

use crate::{
    kinds::{grouped, promoted},
    workflows::{INNER, OUTER, nested, node, simple, workflow},
};

/// The id that fair workflows and hostile ones have in common.
pub(crate) const ID: &str = "5b0c1f0e-7a39-4c52-9d44-0c5f6f4a0001";

/// Numbers that follow from a seed (SplitMix64).
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn fresh_seed() -> u64 {
        RandomState::new().hash_one("isolation")
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).unwrap()
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn word(&mut self, choices: &[&str]) -> Value {
        self.one_of(choices).into()
    }

    /// Any value, some of which look like what the frontend keeps.
    fn junk(&mut self) -> Value {
        match self.below(16) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!(-1),
            3 => json!(1e300),
            4 => json!(u64::MAX),
            5 => json!(""),
            6 => json!("<img src=x onerror=alert(1)>"),
            7 => json!([]),
            8 => json!([[[{}]]]),
            9 => json!({}),
            10 => json!({"call": 1, "apply": 1, "bind": 1}),
            11 => json!({"length": 0, "name": "x", "configure": 1}),
            12 => json!({"input": {"required": {}}, "output": [], "name": "SaveImage"}),
            13 => json!({"id": ID, "nodes": [], "links": []}),
            14 => json!({"value": 99, "options": {"values": ["x"], "default": 99}, "type": "number"}),
            _ => json!("x".repeat(2000)),
        }
    }

    pub(crate) fn hostile(&mut self) -> Value {
        let mut workflow = match self.below(6) {
            0 => simple(&json!(self.below(100))),
            1 => nested("ImageInvert"),
            2 => grouped("workflow>pair"),
            3 => grouped("workflow/pair"),
            4 => promoted(self.one_in(2)),
            _ => fair(self),
        };
        workflow["id"] = ID.into();
        for _ in 0..=self.below(3) {
            self.trick(&mut workflow);
            // Junk where the next trick would write into an object.
            let places = ["/extra", "/extra/groupNodes", "/definitions"];
            if places
                .iter()
                .filter_map(|place| workflow.pointer(place))
                .any(|there| !there.is_object() && !there.is_null())
            {
                break;
            }
        }
        workflow
    }

    fn trick(&mut self, workflow: &mut Value) {
        // Half of them: what reaches beyond its workflow, if anything does.
        let tricks = if self.one_in(2) { 6 } else { 20 };
        match self.below(tricks) {
            0 => self.other_definition(workflow),
            1 => self.subgraph_id(workflow),
            2 => self.group_name(workflow),
            3 => self.shared_name(workflow),
            4 => self.live_field(workflow),
            5 => self.graph_field(workflow),
            6 => self.any_node(workflow)["mode"] = json!(self.one_of(&[2, 4, 2, 4, 1, 3, 99])),
            7 => self.extra(workflow),
            8 => self.widget_values(workflow),
            9 => self.kind(workflow),
            10 => self.definitions(workflow),
            11 => self.properties(workflow),
            12 => self.link(workflow),
            13 => self.slot(workflow),
            14 => self.added(workflow),
            15 => self.node_id(workflow),
            16 => {
                let field =
                    self.one_of(&["title", "flags", "size", "pos", "color", "order", "widgets_values_named"]);
                self.any_node(workflow)[field] = self.junk_or_words();
            }
            17 => {
                let field =
                    self.one_of(&["id", "version", "state", "revision", "groups", "config", "last_node_id"]);
                workflow[field] = self.junk();
            }
            18 => self.subgraph_field(workflow),
            _ => self.group_part(workflow),
        }
    }

    fn junk_or_words(&mut self) -> Value {
        if self.one_in(2) {
            self.junk()
        } else {
            self.word(&["SaveImage", "__proto__", "{a|b}", "%date:yyyy%"])
        }
    }

    fn any_node<'a>(&mut self, workflow: &'a mut Value) -> &'a mut Value {
        let mut lists = vec!["/nodes".to_owned()];
        let subgraphs = workflow["definitions"]["subgraphs"].as_array().map_or(0, Vec::len);
        lists.extend((0..subgraphs).map(|at| format!("/definitions/subgraphs/{at}/nodes")));
        let list = lists[self.below(lists.len())].clone();
        let count = workflow.pointer(&list).and_then(Value::as_array).map_or(0, Vec::len);
        if count == 0 || !workflow.pointer(&list).unwrap()[0].is_object() {
            return &mut workflow["extra"];
        }
        let at = self.below(count);
        workflow.pointer_mut(&format!("{list}/{at}")).unwrap()
    }

    fn a_subgraph<'a>(&mut self, workflow: &'a mut Value) -> Option<&'a mut Value> {
        let subgraphs =
            workflow["definitions"]["subgraphs"].as_array_mut().filter(|list| !list.is_empty())?;
        let at = self.below(subgraphs.len());
        Some(&mut subgraphs[at])
    }

    /// The same ids as in fair workflows, something else within.
    fn other_definition(&mut self, workflow: &mut Value) {
        let mut other = nested("EmptyImage");
        other["definitions"]["subgraphs"][1]["nodes"][0]["widgets_values"] = json!([13, 13, 1, 13]);
        other["definitions"]["subgraphs"][1]["name"] = self.word(&["Save Image", "inner", "SaveImage", ""]);
        workflow["definitions"] = other["definitions"].take();
        workflow["extra"]["groupNodes"]["pair"] = json!({
            "nodes": [{"index": 0, "type": "EmptyImage", "inputs": [], "outputs": [], "widgets_values": [13, 13, 1, 13]}],
            "links": [], "external": [[0, 0, "IMAGE"]],
        });
    }

    fn subgraph_id(&mut self, workflow: &mut Value) {
        let id = self.one_of(&[
            "SaveImage",
            "EmptyImage",
            "workflow>pair",
            "constructor",
            "",
            "00000000-0000-0000-0000-000000000000",
            ID,
            OUTER,
            INNER,
        ]);
        if let Some(subgraph) = self.a_subgraph(workflow) {
            // Not within itself: what the page does then is a matter of time, not of isolation.
            let within = subgraph["nodes"].as_array().into_iter().flatten().any(|node| node["type"] == id);
            if !within && id != OUTER {
                subgraph["id"] = id.into();
            }
        }
    }

    fn group_name(&mut self, workflow: &mut Value) {
        let name =
            self.one_of(&["pair", "SaveImage", "toString", "valueOf", "a/b", "a<b", "constructor", ""]);
        let group = grouped("workflow>pair")["extra"]["groupNodes"]["pair"].take();
        workflow["extra"]["groupNodes"][name] = group;
        if self.one_in(2) {
            self.any_node(workflow)["type"] = format!("workflow>{name}").into();
        }
    }

    fn shared_name(&mut self, workflow: &mut Value) {
        let name = self.one_of(&["__proto__", "constructor", "prototype"]);
        let junk = self.junk();
        let definition = json!({"nodeData": {"name": "EmptyImage", "inputs": {}, "outputs": [], "input": {"required": {}}}, "title": "x"});
        self.any_node(workflow)[name] = if self.one_in(2) { definition } else { junk };
    }

    /// What a node has under that name in the page.
    fn live_field(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "serialize",
            "configure",
            "clone",
            "graph",
            "subgraph",
            "rootGraph",
            "widgets",
            "addWidget",
            "onConfigure",
            "onNodeCreated",
            "onExecuted",
            "addInput",
            "getInputNode",
            "getInputLink",
            "isVirtualNode",
            "computeSize",
            "setSize",
            "comfyClass",
            "nodeData",
            "events",
            "applyToGraph",
            "getInnerNodes",
            "serialize_widgets",
            "imgs",
            "badges",
            "_state",
            "onConnectionsChange",
            "onInputAdded",
            "onOutputAdded",
            "onSerialize",
            "updateArea",
            "resolveInput",
            "convertWidgetToInput",
            "setInnerNodes",
            "isSubgraphNode",
            "getTitle",
            "has_errors",
            "last_serialization",
            "refreshComboInNode",
            "recreate",
            "onGraphConfigured",
            "onAfterGraphConfigured",
        ]);
        let junk = self.junk();
        self.any_node(workflow)[field] = junk;
    }

    fn graph_field(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "filter",
            "getNodeById",
            "events",
            "_subgraphs",
            "subgraphs",
            "_links",
            "list_of_graphcanvas",
            "onConfigure",
            "onNodeAdded",
            "onNodeRemoved",
            "onTrigger",
            "add",
            "serialize",
            "primaryCanvas",
            "status",
            "vars",
            "_nodes",
            "_nodes_by_id",
            "isRootGraph",
            "rootGraph",
            "execution_timer_id",
            "asSerialisable",
            "models",
            "seed_widgets",
            "clear",
            "change",
            "nodes_executing",
            "_version",
            "reroutesInternal",
            "floatingLinks",
            "inputs",
            "widgets",
            "computeExecutionOrder",
            "getLink",
            "_canvas",
            "onSerialize",
            "constructorName",
            "createSubgraph",
        ]);
        workflow[field] = self.junk();
    }

    fn extra(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "linearMode",
            "linearData",
            "reroutes",
            "linkExtensions",
            "ds",
            "groupNodes",
            "workflowRendererVersion",
            "frontendVersion",
            "node_versions",
            "info",
            "prompt",
            "VHS_latentpreview",
            "linkPresentation",
        ]);
        workflow["extra"][field] = match self.below(4) {
            0 => json!(true),
            1 => self.word(&["Vue", "LG", "9.9.9"]),
            _ => self.junk(),
        };
    }

    fn widget_values(&mut self, workflow: &mut Value) {
        let values = match self.below(6) {
            0 => {
                json!({"seed": self.junk(), "width": 8, "filename_prefix": self.junk(), "constructorName": 1})
            }
            1 => json!([self.junk(), self.junk(), self.junk(), self.junk()]),
            2 => json!([u64::MAX, "randomize", -1, 1e308, "euler", {"deep": [1]}]),
            3 => json!([]),
            4 => json!(vec![7; 300]),
            _ => self.junk(),
        };
        self.any_node(workflow)["widgets_values"] = values;
    }

    fn kind(&mut self, workflow: &mut Value) {
        let kind = match self.below(4) {
            0 => self.junk(),
            _ => self.word(&[
                "constructor",
                "toString",
                "__proto__",
                "hasOwnProperty",
                "SaveImage ",
                "<SaveImage>",
                "workflow>pair",
                "workflow/pair",
                "workflow>",
                "Reroute",
                "PrimitiveNode",
                "Note",
                "MarkdownNote",
                "PrimitiveInt",
                "LoadImage",
                "Load3D",
                "KSampler",
                "CLIPTextEncode",
                "PrimitiveStringMultiline",
                "Preview3D",
                "SaveGLB",
                "WebcamCapture",
            ]),
        };
        let node = self.any_node(workflow);
        node["type"] = kind;
        // Else the missing type is all that the page sees.
        if self.one_in(2) {
            node["mode"] = json!(2);
        }
    }

    fn definitions(&mut self, workflow: &mut Value) {
        match self.below(4) {
            0 => workflow["definitions"] = Value::Null,
            1 => workflow["extra"]["groupNodes"] = Value::Null,
            2 => workflow["definitions"] = nested("ImageInvert")["definitions"].take(),
            _ => {
                let again = workflow["definitions"].clone();
                if let Some(subgraph) = self.a_subgraph(workflow) {
                    subgraph["definitions"] = again;
                }
            }
        }
    }

    fn properties(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "Node name for S&R",
            "proxyWidgets",
            "previewExposures",
            "models",
            "cnr_id",
            "ver",
            "text",
            "showOutputText",
            "horizontal",
            "enabled",
            "Run widget replace on values",
            "ue_properties",
            "Camera Info",
            "value",
        ]);
        let junk = match self.below(3) {
            0 => json!([["9", "color"], ["-1", "width"], [{}, 7]]),
            _ => self.junk(),
        };
        self.any_node(workflow)["properties"] = json!({field: junk});
    }

    fn link(&mut self, workflow: &mut Value) {
        let link = match self.below(6) {
            0 => json!([9, 99, 0, 3, 0, "IMAGE"]),
            1 => json!([u64::MAX, 1, 0, 3, 0, "IMAGE"]),
            2 => json!([1, 3, 0, 1, 0, "IMAGE"]),
            3 => {
                json!({"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "*"})
            }
            4 => json!([-1, -10, 0, -20, 0, {"x": 1}]),
            _ => self.junk(),
        };
        if let Some(links) = workflow["links"].as_array_mut() {
            links.push(link);
        }
    }

    fn slot(&mut self, workflow: &mut Value) {
        let list = self.one_of(&["inputs", "outputs"]);
        let slot = match self.below(5) {
            0 => {
                json!({"name": "filename_prefix", "type": "STRING", "link": 77, "widget": {"name": "filename_prefix"}})
            }
            1 => json!({"name": "x", "type": self.junk(), "link": null, "links": [1, 2]}),
            2 => json!({"name": "width", "type": "INT", "widget": self.junk(), "link": 1}),
            3 => json!({"name": self.junk(), "localized_name": self.junk(), "type": "*"}),
            _ => self.junk(),
        };
        let node = self.any_node(workflow);
        match node[list].as_array_mut() {
            Some(slots) => slots.push(slot),
            None => node[list] = slot,
        }
    }

    fn added(&mut self, workflow: &mut Value) {
        let junk = self.junk();
        let added = match self.below(6) {
            0 => node(50, "Reroute", &[("", "*", json!(1))], &[("", "IMAGE", json!([60]))], json!([])),
            1 => {
                let mut primitive = node(
                    51,
                    "PrimitiveNode",
                    &[],
                    &[("INT", "INT", json!([61]))],
                    json!([junk, "increment"]),
                );
                primitive["outputs"][0]["widget"] =
                    json!({"name": "color", "config": ["INT", {"default": 13, "max": 13}]});
                primitive
            }
            2 => node(52, "Note", &[], &[], json!([junk])),
            3 => node(53, "KSampler", &[], &[], json!([1, "randomize", 20, 8.5, "euler", "normal", 0.75])),
            4 => node(54, "LoadImage", &[], &[], json!([junk, "image"])),
            _ => node(55, "CLIPTextEncode", &[], &[], json!(["a {red|blue} fox"])),
        };
        if let Some(nodes) = workflow["nodes"].as_array_mut() {
            nodes.push(added);
        }
    }

    fn node_id(&mut self, workflow: &mut Value) {
        let id = match self.below(3) {
            0 => self.word(&["1", "12:3", "-10", "__proto__", ""]),
            1 => json!(self.one_of(&[1, 2, 3, -1, -10, -20, 0])),
            _ => self.junk(),
        };
        self.any_node(workflow)["id"] = id;
    }

    fn subgraph_field(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "inputs",
            "outputs",
            "inputNode",
            "outputNode",
            "widgets",
            "name",
            "extra",
            "state",
            "nodes",
            "rootGraph",
            "isRootGraph",
            "getNodeById",
            "events",
            "description",
            "category",
            "links",
            "groups",
            "version",
        ]);
        let junk = self.junk();
        if let Some(subgraph) = self.a_subgraph(workflow) {
            subgraph[field] = junk;
        }
    }

    fn group_part(&mut self, workflow: &mut Value) {
        let field = self.one_of(&[
            "type",
            "widgets_values",
            "inputs",
            "outputs",
            "serialize",
            "graph",
            "index",
            "mode",
        ]);
        let junk = self.junk();
        let place = self.one_of(&["links", "external", "config", "nodes"]);
        let group = &mut workflow["extra"]["groupNodes"]["pair"];
        if self.one_in(3) {
            group[place] = junk;
        } else if group["nodes"][0].is_object() {
            group["nodes"][0][field] = junk;
        }
    }
}

/// A sampler, a text and an image that is loaded, as people have them.
pub(crate) fn fair(draw: &mut Draw) -> Value {
    let seed = draw.below(1_000_000);
    workflow(
        &[
            node(
                1,
                "KSampler",
                &[],
                &[("LATENT", "LATENT", json!(null))],
                json!([seed, "randomize", 20, 8.5, "euler", "normal", 0.75]),
            ),
            node(2, "CLIPTextEncode", &[], &[("CONDITIONING", "CONDITIONING", json!([]))], json!(["a fox"])),
            node(3, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([]))], json!([64, 32, 1, 7])),
        ],
        json!([]),
    )
}
