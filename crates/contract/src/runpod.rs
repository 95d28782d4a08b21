//! RunPod's body `{"input": {"workflow": …, "images": [{"name", "image": base64}]}}`, turned into ours.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::request::FileSource;

/// Rewrites `body` in place when it has RunPod's form; answers the images, which the workflow
/// mentions by their bare names.
pub(crate) fn translate(body: &mut Map<String, Value>) -> Result<Vec<FileSource>, String> {
    if body.contains_key("workflow") || body.contains_key("workflow_uri") || !body.contains_key("input") {
        return Ok(Vec::new());
    }
    let Some(Value::Object(mut input)) = body.remove("input") else {
        return Err("input: must be an object with a workflow".into());
    };
    let workflow = input.remove("workflow").ok_or("input.workflow: missing")?;
    let images = input.remove("images").unwrap_or(Value::Null);
    if let Some(key) = input.remove("comfy_org_api_key")
        && body.insert("api_key_comfy_org".into(), key).is_some()
    {
        return Err("input.comfy_org_api_key: api_key_comfy_org is given too; give one of them".into());
    }
    if let Some(unknown) = input.keys().next() {
        return Err(format!("input.{unknown}: unknown field; expected workflow, images, comfy_org_api_key"));
    }
    body.insert("workflow".into(), workflow);
    // What RunPod's gateway adds beside `input` for itself.
    for key in ["webhook", "policy", "s3Config"] {
        body.remove(key);
    }
    match images {
        Value::Null => Ok(Vec::new()),
        Value::Array(images) => {
            let mut names = BTreeSet::new();
            let named = |(index, image)| match file(image) {
                Ok(file) if names.insert(file.name.clone()) => Ok(file),
                Ok(_) => Err(format!("input.images[{index}].name: another image has that name")),
                Err(problem) => Err(format!("input.images[{index}].{problem}")),
            };
            images.iter().enumerate().map(named).collect()
        }
        _ => Err("input.images: must be a list of {name, image}".into()),
    }
}

fn file(image: &Value) -> Result<FileSource, String> {
    let text = |key: &str| image.get(key).and_then(Value::as_str).ok_or(format!("{key}: must be a text"));
    let (name, content) = (text("name")?, text("image")?);
    let source = if content.starts_with("data:") {
        content.to_owned()
    } else {
        format!("data:application/octet-stream;base64,{content}")
    };
    Ok(FileSource { source, sha256: None, name: Some(name.to_owned()) })
}
