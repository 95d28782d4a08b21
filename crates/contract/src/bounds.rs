//! How large the parts of a job and of its result may be: bounds against jobs that would wear out the
//! worker, the browser or the broker.

use serde_json::Value;

use crate::{expansion, failure::Failure, prompt::is_ui_workflow, result::JobError};

/// Objects and lists within one another. Our reader and ComfyUI's history add levels, and readers stop at 128.
pub const DEEPEST: usize = 64;
/// Values of a body, each some 100 bytes in memory however short it is written.
const MAX_VALUES: usize = 1_000_000;
/// Bytes of `metadata`, which is in every result.
const METADATA: usize = 64 << 10;
/// Entries of `inputs`.
pub const MAX_INPUTS: usize = 10_000;
/// Files of a job, wherever it names them.
const MAX_FILES: usize = 1_000;
/// A result that is longer is not stored: it could not be read again.
pub const LARGEST_RECORD: u64 = 64 << 20;

/// A result is a message: texts in it, in bytes, all together.
pub const INLINE_TEXT: usize = 4 << 20;
/// Characters of a message in a result, and of each line of its traceback.
const MESSAGE: usize = 16 << 10;
/// Lines of a traceback: the last ones, where the cause is.
const TRACEBACK_LINES: usize = 200;

/// Looks through a body before it is read, in one pass over its bytes: what is small as text can be large in memory.
///
/// # Errors
/// When it holds too many values.
pub fn check_values(body: &[u8]) -> Result<(), String> {
    let (mut in_string, mut escaped, mut values) = (false, false, 0);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'{' | b'[' if !in_string => values += 1,
            _ => {}
        }
    }
    if values <= MAX_VALUES {
        return Ok(());
    }
    Err(format!("the body holds {values} values, more than {MAX_VALUES}"))
}

/// # Errors
/// When objects and lists lie too deep in one another.
pub fn check_depth(what: &str, value: &Value) -> Result<(), String> {
    if is_deeper(value, DEEPEST) {
        return Err(format!("{what}: nested deeper than {DEEPEST} levels"));
    }
    Ok(())
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(items) => items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(fields) => fields.values().any(|field| is_deeper(field, levels - 1)),
        _ => false,
    }
}

/// # Errors
/// When a job names more files than it may.
pub fn check_files(count: usize) -> Result<(), String> {
    if count > MAX_FILES {
        return Err(format!("files: the job names {count}, in inputs and files, more than {MAX_FILES}"));
    }
    Ok(())
}

/// # Errors
/// When results would grow too large, or too deep, by it.
pub fn check_metadata(metadata: &Value) -> Result<(), String> {
    check_depth("metadata", metadata)?;
    let size = serde_json::to_vec(metadata).map_or(usize::MAX, |text| text.len());
    if size > METADATA {
        return Err(format!("metadata: it has {size} bytes, more than {METADATA}; give a URI instead"));
    }
    Ok(())
}

/// # Errors
/// When the workflow or prompt has, or becomes, more than `most` nodes.
fn check_nodes(workflow: &Value, most: u32) -> Result<(), Failure> {
    let nodes = if is_ui_workflow(workflow) {
        expansion::nodes(workflow).map_err(|why| Failure::Invalid(format!("workflow: {why}")))?
    } else {
        workflow.as_object().map_or(0, serde_json::Map::len) as u64
    };
    check_node_count(nodes, most)
}

/// What a page or ComfyUI is asked to work on, however it came.
///
/// # Errors
/// When it is nested too deep, or has more than `most` nodes, with those of its subgraphs.
pub fn check_workflow(workflow: &Value, most: u32) -> Result<(), Failure> {
    check_depth("workflow", workflow).map_err(Failure::Invalid)?;
    check_nodes(workflow, most)
}

/// # Errors
/// When that is more than `most`.
pub fn check_node_count(nodes: u64, most: u32) -> Result<(), Failure> {
    if nodes <= u64::from(most) {
        return Ok(());
    }
    Err(Failure::Invalid(format!("workflow: it has {nodes} nodes, more than {most} (job.max_nodes)")))
}

/// Cuts what ComfyUI and its nodes said to a length that any broker takes.
pub fn cut(error: &mut JobError) {
    cut_text(&mut error.message);
    if let Some(lines) = &mut error.traceback {
        lines.drain(..lines.len().saturating_sub(TRACEBACK_LINES));
        lines.iter_mut().for_each(cut_text);
    }
}

fn cut_text(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MESSAGE) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;
    use crate::{failure::NodeFailure, result::Stage};

    #[test]
    fn nodes_are_counted_wherever_they_stand() {
        let ui = json!({"nodes": [{}, {}], "definitions": {"subgraphs": [{"nodes": [{}]}, {"nodes": [{}, {}]}, {}]}});
        let prompt = json!({"1": {}, "2": {}});
        assert!(check_nodes(&ui, 5).is_ok() && check_nodes(&prompt, 2).is_ok());
        for (workflow, most) in [(&ui, 4), (&prompt, 1)] {
            let refused = check_nodes(workflow, most).unwrap_err().to_string();
            let said = format!("{} nodes, more than {most} (job.max_nodes)", most + 1);
            assert!(refused.contains(&said), "{refused}");
        }
        let id = "0aa8cf42-9e4d-4e2f-8d5a-000000000001";
        let used = json!({"nodes": [{"type": id}, {"type": id}], "definitions": {"subgraphs": [{"id": id, "nodes": [{}, {}]}]}});
        assert!(check_nodes(&used, 6).is_ok() && check_nodes(&used, 5).is_err());
        let endless =
            json!({"nodes": [], "definitions": {"subgraphs": [{"id": id, "nodes": [{"type": id}]}]}});
        let refused = check_nodes(&endless, 5).unwrap_err().to_string();
        assert!(refused.contains(&format!("subgraph {id} contains itself")), "{refused}");
    }

    #[test]
    fn values_are_counted_outside_of_strings() {
        let many = |values: usize| format!("[{}0]", "{},".repeat(values));
        assert_eq!(check_values(many(MAX_VALUES / 2 - 1).as_bytes()), Ok(()));
        assert!(check_values(many(MAX_VALUES / 2).as_bytes()).is_err());
        let text = format!("[\"{}\", \"\\\\\"]", "{,\\\",[".repeat(MAX_VALUES));
        assert_eq!(check_values(text.as_bytes()), Ok(()));
    }

    #[test]
    fn depth_and_metadata_have_bounds() {
        let nested = |levels| {
            (0..levels).fold(
                json!(1),
                |inside, level| if level % 2 == 0 { json!([inside]) } else { json!({"a": inside}) },
            )
        };
        assert_eq!(check_depth("x", &nested(DEEPEST)), Ok(()));
        assert_eq!(check_depth("x", &nested(DEEPEST + 1)), Err("x: nested deeper than 64 levels".to_owned()));
        assert_eq!(check_metadata(&json!("x".repeat(METADATA - 2))), Ok(()));
        assert!(check_metadata(&json!("x".repeat(METADATA - 1))).is_err());
        assert!(check_metadata(&nested(DEEPEST + 1)).is_err());
    }

    #[test]
    fn the_end_of_a_traceback_is_kept() {
        let failure = Failure::NodeFailed(Box::new(NodeFailure {
            exception_message: "é".repeat(MESSAGE * 2),
            traceback: (0..TRACEBACK_LINES + 7)
                .map(|line| line.to_string())
                .chain(["x".repeat(MESSAGE + 1)])
                .collect(),
            ..NodeFailure::default()
        }));
        let error = failure.to_error(Stage::Run);
        assert_eq!(error.message.chars().count(), MESSAGE + 1);
        let traceback = error.traceback.unwrap();
        assert_eq!((traceback.len(), traceback[0].as_str()), (TRACEBACK_LINES, "8"));
        assert_eq!(traceback.last().unwrap().chars().count(), MESSAGE + 1);
    }
}
