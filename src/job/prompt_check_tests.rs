#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

fn refusal(prompt: Value) -> Option<String> {
    let Value::Object(mut prompt) = prompt else { panic!("no prompt") };
    check(&mut prompt).err().map(|error| error.to_string())
}

fn image() -> Value {
    json!({"class_type": "EmptyImage", "inputs": {"width": 8, "size": [8, 8], "names": ["a", "b"]}})
}

#[test]
fn what_would_end_the_thread_of_prompts_is_refused() {
    let save = json!({"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}});
    assert_eq!(refusal(json!({"1": save, "9": image()})), None);
    for inputs in [json!(null), json!([]), json!("x")] {
        let told =
            refusal(json!({"1": save, "9": image(), "2": {"class_type": "EmptyImage", "inputs": inputs}}));
        assert!(told.unwrap().starts_with("node 2 (EmptyImage): its `inputs` must be"), "{inputs}");
    }
    for link in [json!(["99", 0]), json!(["99", 0.0])] {
        let mut dangling = save.clone();
        dangling["inputs"]["nobody_has_it"] = link;
        let told = refusal(json!({"1": dangling, "9": image()})).unwrap();
        let expected =
            r#"node 1 (SaveImage), input "nobody_has_it": it is linked to node "99", which is not there"#;
        assert_eq!(told, expected);
    }
}

#[test]
fn links_lead_from_inputs_and_to_outputs_that_are_there() {
    let known = |name: &str, entry: Value| (name.to_owned(), Arc::new(NodeClass::read(&entry)));
    let known = HashMap::from([
        known(
            "EmptyImage",
            json!({"input": {"required": {"width": ["INT", {}]}}, "output": ["IMAGE"], "python_module": "nodes"}),
        ),
        known(
            "SaveImage",
            json!({"input": {"required": {"images": ["IMAGE"]}}, "output": [], "python_module": "nodes"}),
        ),
        known(
            "Batch",
            json!({"input": {"required": {"images": ["COMFY_AUTOGROW_V3", {"template": {"prefix": "image",
                "input": {"required": {"image": ["IMAGE", {}]}}}}]}}, "output": ["IMAGE"], "python_module": "comfy_extras.x"}),
        ),
        known("Switch", json!({"input": {}, "output": ["*"], "python_module": "custom_nodes.x"})),
    ]);
    let refusal = |class: &str, input: &str, link: Value| {
        let prompt = json!({
            "1": {"class_type": class, "inputs": {input: link}}, "9": image(), "2": {"class_type": "SaveImage"},
            "s": {"class_type": "Switch", "inputs": {}}, "x": {"class_type": "X", "inputs": {}}});
        check_by_class(&mut prompt.as_object().unwrap().clone(), &known).err().map(|error| error.to_string())
    };
    for (class, input, link) in [
        ("SaveImage", "images", json!(["9", 0])),
        ("SaveImage", "images", json!(["9", -1])),
        ("SaveImage", "images", json!({"__value__": ["9", 0]})),
        // A custom node may give and take what it likes, and of an unknown class ComfyUI tells.
        ("SaveImage", "images", json!(["s", 7])),
        ("SaveImage", "images", json!(["x", 7])),
        ("Switch", "any_7", json!(["9", 0])),
        ("X", "any", json!(["9", 0])),
        ("Batch", "images.image3", json!(["9", 0])),
    ] {
        assert_eq!(refusal(class, input, link.clone()), None, "{class} {input} {link}");
    }
    for output in [json!(1), json!(77), json!(-2), json!(0.0), json!(1e300), json!(u64::MAX), json!(true)] {
        for link in [json!(["9", output]), json!({"__value__": ["9", output]})] {
            let told = refusal("SaveImage", "images", link).unwrap();
            let problem = format!(r#"it is linked to output {output} of node "9", which is not there"#);
            assert_eq!(told, format!(r#"node 1 (SaveImage), input "images": {problem}"#));
        }
    }
    assert!(refusal("Switch", "any", json!(["9", 7])).is_some());
    assert!(refusal("SaveImage", "images", json!(["s", 0.0])).is_some());
    assert!(refusal("SaveImage", "images", json!(["2", 0])).is_some(), "it has no output at all");
    // Left out, with a word.
    for (name, link) in [
        ("nobody_has_it", json!(["9", 0])),
        ("nobody_has_it", json!(["9", 77])),
        // ComfyUI runs the node behind it, and looks at nothing there: neither at its files.
        ("images.x", json!(["9", false])),
    ] {
        let user = json!({"class_type": "SaveImage", "inputs": {"images": ["9", 0], name: link, "x": 7}});
        let mut prompt = json!({"1": user, "9": image()}).as_object().unwrap().clone();
        let warnings = check_by_class(&mut prompt, &known).unwrap();
        let said =
            format!(r#"node 1 (SaveImage) has no input "{name}" in this ComfyUI: its link was left out"#);
        assert_eq!(warnings, [said]);
        assert_eq!(prompt["1"]["inputs"], json!({"images": ["9", 0], "x": 7}));
    }
}

#[test]
fn files_are_in_comfyuis_folders() {
    let known = |inputs: Value| {
        let entry = json!({"input": {"required": inputs}, "output": [], "python_module": "nodes"});
        HashMap::from([("Load".to_owned(), Arc::new(NodeClass::read(&entry)))])
    };
    let refused = |known: &HashMap<String, Arc<NodeClass>>, input: &str, text: &str| {
        let prompt = json!({"1": {"class_type": "Load", "inputs": {input: text}}});
        check_by_class(&mut prompt.as_object().unwrap().clone(), known).is_err()
    };
    let known = known(json!({
        "image": [["a.png", "/models/there"], {"image_upload": true}], "file": ["COMBO", {"options": ["x"]}],
        "text": ["STRING", {}], "steps": ["INT", {}]}));
    for out in [
        "/etc/passwd",
        "../x",
        "a/../../x [output]",
        "~/x",
        "a\\..\\x",
        "ComfyUI_temp_hfmlp_00001_.png [temp]",
    ] {
        assert!(refused(&known, "image", out) && refused(&known, "file", out), "{out}");
        assert!(!refused(&known, "text", out), "{out}");
    }
    // What a link brings is not there to be looked at.
    let linked =
        json!({"1": {"class_type": "Load", "inputs": {"image": ["2", 0], "steps": ["2", 0]}}, "2": {}});
    let told = check_by_class(&mut linked.as_object().unwrap().clone(), &known).unwrap_err().to_string();
    assert!(told.contains(r#"input "image": it must name a file, not be a link"#), "{told}");
    for within in ["a.png", "job/cat.png [temp]", "/models/there", "a..b/x", "..."] {
        assert!(!refused(&known, "image", within), "{within}");
    }
}

#[test]
fn files_that_widgets_name_are_in_comfyuis_folders() {
    let class = |module: &str| {
        let inputs = json!({"image": ["WEBCAM", {}], "steps": ["INT", {}]});
        let entry = json!({"input": {"required": inputs}, "output": [], "python_module": module});
        HashMap::from([("Take".to_owned(), Arc::new(NodeClass::read(&entry)))])
    };
    let refused = |module: &str, image: Value| {
        let prompt = json!({"1": {"class_type": "Take", "inputs": {"image": image}}});
        check_by_class(&mut prompt.as_object().unwrap().clone(), &class(module)).is_err()
    };
    for out in [json!("/etc/x.png"), json!({"image": "a", "mask": ["../x"]}), json!({"__value__": "/x"})] {
        assert!(refused("comfy_extras.nodes_webcam", out.clone()), "{out}");
        assert!(!refused("custom_nodes.x", out), "what they take is their own affair");
    }
    assert!(!refused("comfy_extras.nodes_webcam", json!({"image": "webcam/1.png [temp]"})));
}

#[test]
fn places_to_write_to_are_texts_within_the_output_folder() {
    let told = |input: &str, value: Value| {
        refusal(
            json!({"1": {"class_type": "SaveImageTextDataSetToFolder", "inputs": {input: value}}, "9": image()}),
        )
    };
    for value in [json!("/x"), json!("../x"), json!(["9", 0]), json!({"__value__": "/x"}), json!(["a"])] {
        for input in ["filename_prefix", "folder_name"] {
            assert!(told(input, value.clone()).is_some(), "{input} {value}");
        }
    }
    assert_eq!(told("filename_prefix", json!("a/b")), None);
    let save = json!({"1": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": ["9", 0]}}, "9": image()});
    assert_eq!(refusal(save), None, "ComfyUI checks it");
}

#[test]
fn formats_read_no_attributes() {
    let told = |format: Value| {
        refusal(json!({"1": {"class_type": "StringFormat", "inputs": {"f_string": format}}, "9": image()}))
    };
    for format in ["{a}", "{a:>10.3f} {b!r}", "{{a.b}}", "a.b[c]", "{a:{b}}", "", "{", "}"] {
        assert_eq!(told(json!(format)), None, "{format}");
    }
    for format in [
        "{a.b}",
        "{a[b]}",
        "{a.__globals__[torch]}",
        "{a:{b.c}}",
        "{{{a.b}}}",
        "{0.x",
        "{a!r:{b[0]}}",
        "{[0]}",
    ] {
        assert!(told(json!(format)).is_some(), "{format}");
    }
    assert!(told(json!(["9", 0])).is_some() && told(json!({"__value__": "{a.b}"})).is_some());
}

#[test]
fn ids_outputs_and_fields_are_bounded() {
    let node = json!({"class_type": "Save", "inputs": {}, "is_changed": ["sum"], "_meta": {"title": "x"}});
    let mut prompt = json!({"1": node}).as_object().unwrap().clone();
    check(&mut prompt).unwrap();
    assert_eq!(prompt["1"], json!({"class_type": "Save", "inputs": {}, "_meta": {"title": "x"}}));
    assert!(refusal(json!({"1".repeat(LONGEST_ID): node})).is_none());
    assert!(refusal(json!({"1".repeat(LONGEST_ID + 1): node})).is_some());
    let entry = json!({"input": {}, "output": [], "output_node": true, "python_module": "nodes"});
    let known = HashMap::from([("Save".to_owned(), Arc::new(NodeClass::read(&entry)))]);
    let many = |count: usize| (0..count).map(|at| (at.to_string(), node.clone())).collect::<Prompt>();
    assert!(check_by_class(&mut many(MAX_OUTPUT_NODES), &known).is_ok());
    assert!(check_by_class(&mut many(MAX_OUTPUT_NODES + 1), &known).is_err());
}

#[test]
fn a_node_without_inputs_has_empty_ones() {
    let mut prompt = json!({"1": {"class_type": "X"}}).as_object().unwrap().clone();
    check(&mut prompt).unwrap();
    assert_eq!(prompt["1"]["inputs"], json!({}));
}

#[test]
fn rows_have_a_limit() {
    let row = |count: usize, last: &Value| {
        let node =
            |at: usize| json!({"class_type": "ImageInvert", "inputs": {"image": [(at + 1).to_string(), 0]}});
        let mut prompt: Prompt = (0..count - 1).map(|at| (at.to_string(), node(at))).collect();
        prompt.insert((count - 1).to_string(), last.clone());
        Value::Object(prompt)
    };
    assert_eq!(refusal(row(LONGEST_ROW, &image())), None);
    assert!(refusal(row(LONGEST_ROW + 1, &image())).is_some());
    let ring = json!({"class_type": "ImageInvert", "inputs": {"image": ["0", 0]}});
    assert!(refusal(row(3, &ring)).is_none() && refusal(row(LONGEST_ROW + 1, &ring)).is_some());
    // Two in each row, each of which takes both of the row before: no long row, and a million dependencies.
    let rows = |count: usize| {
        let pair = |row: usize| [format!("{row}a"), format!("{row}b")];
        let node = |row: usize| {
            let [a, b] = pair(row);
            json!({"class_type": "StringConcatenate", "inputs": {"string_a": [a, 0], "string_b": [b, 0]}})
        };
        let mut prompt: Prompt = (0..count).flat_map(|row| pair(row).map(|id| (id, node(row + 1)))).collect();
        prompt.extend(pair(count).map(|id| (id, image())));
        Value::Object(prompt)
    };
    assert_eq!(refusal(rows(300)), None);
    assert!(refusal(rows(700)).unwrap().contains("depend on too many others"));
    // Many ways between few nodes are no long row.
    let all =
        |at: usize| (0..at).map(|from| (from.to_string(), json!([from.to_string(), 0]))).collect::<Prompt>();
    let dense: Prompt =
        (0..400).map(|at| (at.to_string(), json!({"class_type": "X", "inputs": all(at)}))).collect();
    assert_eq!(refusal(Value::Object(dense)), None);
}

#[test]
fn what_would_leave_files_for_others_is_refused() {
    let save = json!({"1": {"class_type": "SaveTrainingDataset", "inputs": {"folder_name": "mine"}}});
    assert!(refusal(save).unwrap().contains("would stay on this machine"));
}
