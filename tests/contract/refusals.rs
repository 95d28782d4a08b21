//! What `/prompt` refuses, with status and words.

use anyhow::{Context as _, Result};
use contract::prompt::prompt_from_value;

use connector::comfy::{PostError, PromptId, PromptPost};
use serde_json::{Value, json};

use super::{
    bed::{LIMIT, on_comfyui},
    frames::{Ears, labels},
    prompts::{image, prefix, save, saved},
};

const FAILED: (&str, &str) = ("prompt_outputs_failed_validation", "Prompt outputs failed validation");

/// A refused prompt: the error's type, message and details, and each node's errors as
/// `node class: type, message, details`.
struct Refusal {
    prompt: Value,
    error: (&'static str, &'static str),
    details: &'static str,
    nodes: &'static [&'static str],
}

/// Node 1 as given, saved by node 2.
fn with(class: &str, inputs: Value) -> Value {
    json!({"1": {"class_type": class, "inputs": inputs}, "2": save("1", "shot")})
}

fn empty(width: Value, height: Value) -> Value {
    with("EmptyImage", json!({"width": width, "height": height, "batch_size": 1, "color": 1}))
}

fn refusals() -> Vec<Refusal> {
    let failed = |prompt, details, nodes| Refusal { prompt, error: FAILED, details, nodes };
    let invalid = |prompt, message, details| Refusal {
        prompt,
        error: ("invalid_prompt", message),
        details,
        nodes: &[],
    };
    let no_outputs = |prompt| Refusal {
        prompt,
        error: ("prompt_no_outputs", "Prompt has no outputs"),
        details: "",
        nodes: &[],
    };
    let invert = |from: &str| json!({"class_type": "ImageInvert", "inputs": {"image": [from, 0]}});
    vec![
        no_outputs(json!({})),
        no_outputs(json!({"1": image(1)})),
        invalid(
            with("NoSuchNode", json!({})),
            "Cannot execute because node NoSuchNode does not exist.",
            "Node ID '#1'",
        ),
        invalid(
            json!({"1": {"inputs": {}}}),
            "Cannot execute because a node is missing the class_type property.",
            "Node ID '#1'",
        ),
        failed(json!({"1": invert("3"), "3": invert("1"), "2": save("3", "shot")}), "", &[]),
        failed(
            with("EmptyImage", json!({"width": 64, "batch_size": 1, "color": 1})),
            "",
            &["1 EmptyImage: required_input_missing, Required input is missing, height"],
        ),
        failed(
            empty(json!(-64), json!(64)),
            "",
            &["1 EmptyImage: value_smaller_than_min, Value -64 smaller than min of 1, width"],
        ),
        failed(
            empty(json!(64), json!(99_999)),
            "",
            &["1 EmptyImage: value_bigger_than_max, Value 99999 bigger than max of 16384, height"],
        ),
        failed(
            empty(json!("x"), json!(64)),
            "",
            &["1 EmptyImage: invalid_input_type, Failed to convert an input value to a INT value, \
               width, x, invalid literal for int() with base 10: 'x'"],
        ),
        failed(
            with("LoadImage", json!({"image": "nope.png"})),
            "",
            &["1 LoadImage: custom_validation_failed, Custom validation failed for node, \
               image - Invalid image file: nope.png"],
        ),
        failed(
            json!({"1": image(1), "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0],
                "upscale_method": "magic", "width": 8, "height": 8, "crop": "disabled"}}, "3": save("2", "x")}),
            "",
            &["2 ImageScale: value_not_in_list, Value not in list, upscale_method: 'magic' not in \
               ['nearest-exact', 'bilinear', 'area', 'bicubic', 'lanczos']"],
        ),
        failed(
            json!({"1": {"class_type": "PrimitiveString", "inputs": {"value": "x"}}, "2": save("1", "x")}),
            "Return type mismatch between linked nodes: images, received_type(STRING) mismatch input_type(IMAGE)",
            &["2 SaveImage: return_type_mismatch, Return type mismatch between linked nodes, \
               images, received_type(STRING) mismatch input_type(IMAGE)"],
        ),
        failed(
            json!({"2": {"class_type": "SaveImage", "inputs": {"images": ["1"], "filename_prefix": "x"}}}),
            "Bad linked input, must be a length-2 list of [node_id, slot_index]: images",
            &["2 SaveImage: bad_linked_input, Bad linked input, must be a length-2 list of \
               [node_id, slot_index], images"],
        ),
        failed(
            json!({"2": save("77", "x")}),
            "Exception when validating node: '77'",
            &["2 SaveImage: exception_during_validation, Exception when validating node, '77'"],
        ),
        failed(
            json!({"2": invert("77"), "3": save("2", "x")}),
            "",
            &["2 ImageInvert: exception_during_inner_validation, Exception when validating inner node, '77'"],
        ),
        failed(
            json!({"1": image(1), "2": {"class_type": "SaveImage"}}),
            "Exception when validating node: 'inputs'",
            &["2 SaveImage: exception_during_validation, Exception when validating node, 'inputs'"],
        ),
    ]
}

#[test]
fn every_refusal_in_its_words() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        for Refusal { prompt, error, details, nodes } in refusals() {
            let id = PromptId::random().to_string();
            let body = json!({"prompt": prompt, "client_id": ears.client_id, "prompt_id": id});
            let (status, answer) = bed.post("prompt", &body).await?;
            let case = format!("{prompt} is answered {answer}");
            assert_eq!(status, 400, "{case}");
            let mut told = answer["error"].clone();
            let extra = told["extra_info"].take();
            if bed.is_of_2026() && said_otherwise_since(&told, &answer) {
                continue;
            }
            assert!(bed.is_of_2026() || extra == json!({}), "{case}");
            let expected =
                json!({"type": error.0, "message": error.1, "details": details, "extra_info": null});
            assert_eq!(told, expected, "{case}");
            assert_eq!(node_errors(&answer["node_errors"]), nodes, "{case}");
            for (id, node) in answer["node_errors"].as_object().context("no object")? {
                let outputs = node["dependent_outputs"].as_array().context("no outputs")?;
                assert!(!outputs.is_empty() && node["class_type"].is_string(), "{id}: {node}");
            }
            assert_eq!(bed.history(&id).await?, Value::Null, "{case}");
        }
        assert_eq!(labels(&ears.so_far().await?), [""; 0], "nothing was queued");
        Ok(())
    })
}

/// A class that is not there, and a ring of nodes, are named by themselves since 2026.
fn said_otherwise_since(error: &Value, answer: &Value) -> bool {
    let is_ring =
        node_errors(&answer["node_errors"]).iter().any(|line| line.contains(": dependency_cycle, "));
    error["type"] == "missing_node_type" || is_ring
}

fn node_errors(node_errors: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, node) in node_errors.as_object().into_iter().flatten() {
        let class = node["class_type"].as_str().unwrap_or("?");
        for error in node["errors"].as_array().into_iter().flatten() {
            let text = |key: &str| error[key].as_str().unwrap_or("?").to_owned();
            lines.push(format!("{id} {class}: {}, {}, {}", text("type"), text("message"), text("details")));
        }
    }
    lines
}

#[test]
fn bodies_that_are_no_prompt() -> Result<()> {
    on_comfyui(async |bed| {
        let (status, answer) = bed.post("prompt", &json!({"client_id": "x"})).await?;
        let words = "No prompt provided";
        let error = json!({"type": "no_prompt", "message": words, "details": words, "extra_info": {}});
        assert_eq!((status, answer), (400, json!({"error": error, "node_errors": {}})));

        for body in ["", "{", "no json", "NaN,"] {
            let answer = bed.request("POST", "prompt")?.body(body).send().await?;
            assert_eq!(answer.status(), 500, "{body:?}");
        }
        // A handler that breaks: nothing of it is queued.
        let broken = json!({"prompt": saved(), "client_id": "x", "extra_data": []});
        assert_eq!(bed.post("prompt", &broken).await?.0, 500);
        assert_eq!(bed.get("queue").await?, json!({"queue_running": [], "queue_pending": []}));

        // 100 MB is the default of --max-upload-size.
        let large = bed.request("POST", "prompt")?.timeout(LIMIT).body(vec![b' '; (100 << 20) + 1]);
        match large.send().await {
            Ok(answer) => assert_eq!(answer.status(), 413),
            // It may hang up while we still send.
            Err(error) => assert!(error.is_request(), "{error:?}"),
        }
        Ok(())
    })
}

#[test]
fn invalid_outputs_are_dropped_and_the_rest_runs() -> Result<()> {
    on_comfyui(async |bed| {
        let mut ears = Ears::open(bed).await?;
        let prompt = json!({"1": image(1), "2": save("1", &prefix()),
            "3": {"class_type": "LoadImage", "inputs": {"image": "nope.png"}}, "4": save("3", "other")});
        let id = PromptId::random().to_string();
        let body = json!({"prompt": prompt, "client_id": ears.client_id, "prompt_id": id});
        let (status, answer) = bed.post("prompt", &body).await?;
        assert_eq!((status, &answer["prompt_id"]), (200, &json!(id)));
        assert!(answer["number"].is_number());
        let expected = "3 LoadImage: custom_validation_failed, Custom validation failed for node, \
                        image - Invalid image file: nope.png";
        assert_eq!(node_errors(&answer["node_errors"]), [expected]);
        assert_eq!(answer["node_errors"]["3"]["dependent_outputs"], json!(["4"]));
        ears.until_end(&id).await?;
        let mut history = bed.history(&id).await?;
        assert_eq!(history["prompt"][4], json!(["2"]));
        assert_eq!(history["outputs"].as_object().map(serde_json::Map::len), Some(1));
        assert_eq!(history["status"]["status_str"].take(), "success");
        Ok(())
    })
}

#[test]
fn our_client_repeats_comfyuis_words() -> Result<()> {
    on_comfyui(async |bed| {
        let prompt = prompt_from_value(empty(json!(-64), json!("x")))?;
        let refused = |extra_data| {
            let prompt = &prompt;
            async move {
                let prompt_id = PromptId::random();
                let post = PromptPost { prompt, prompt_id, client_id: "x", extra_data };
                bed.client().post_prompt(&post).await
            }
        };
        let Err(PostError::Refused { message, node_errors }) = refused(json!({})).await else {
            panic!("not refused");
        };
        for part in [
            "Prompt outputs failed validation",
            "node 1 (EmptyImage): Value -64 smaller than min of 1: width",
            "node 1 (EmptyImage): Failed to convert an input value to a INT value: height, x",
        ] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        assert_eq!(node_errors["1"]["errors"].as_array().map(Vec::len), Some(2));

        let broke = refused(json!([])).await;
        assert!(matches!(broke, Err(PostError::Broke(_)) | Err(PostError::Refused { .. })), "{broke:?}");
        Ok(())
    })
}
