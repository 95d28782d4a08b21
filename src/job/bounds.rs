//! How large the parts of a job and of its result may be: bounds against jobs that would wear out the
//! worker, the browser or the broker. Depth is bounded by the JSON reader: 128 levels.

use serde_json::Value;

use super::{failure::Failure, result::JobError};

/// A result is a message: texts in it, in bytes, all together.
pub(crate) const INLINE_TEXT: usize = 4 << 20;
/// Characters of a message in a result, and of each line of its traceback.
const MESSAGE: usize = 16 << 10;
/// Lines of a traceback: the last ones, where the cause is.
const TRACEBACK_LINES: usize = 200;

/// Nodes of a UI workflow, those of its subgraphs' definitions too, or of a prompt.
fn nodes_of(workflow: &Value) -> usize {
    let listed = |graph: &Value| graph.get("nodes").and_then(Value::as_array).map(Vec::len);
    let Some(nodes) = listed(workflow) else { return workflow.as_object().map_or(0, serde_json::Map::len) };
    let subgraphs = workflow.pointer("/definitions/subgraphs").and_then(Value::as_array);
    nodes + subgraphs.into_iter().flatten().filter_map(listed).sum::<usize>()
}

/// # Errors
/// When the workflow or prompt has more than `most` nodes.
pub(super) fn check_nodes(workflow: &Value, most: u32) -> Result<(), Failure> {
    check_node_count(nodes_of(workflow), most)
}

/// # Errors
/// When that is more than `most`: subgraphs within subgraphs can be many more nodes than were sent.
pub(super) fn check_node_count(nodes: usize, most: u32) -> Result<(), Failure> {
    if nodes as u64 <= u64::from(most) {
        return Ok(());
    }
    Err(Failure::Invalid(format!("workflow: it has {nodes} nodes, more than {most} (job.max_nodes)")))
}

/// Cuts what ComfyUI and its nodes said to a length that any broker takes.
pub(super) fn cut(error: &mut JobError) {
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
    use crate::job::{failure::NodeFailure, result::Stage};

    #[test]
    fn nodes_are_counted_wherever_they_stand() {
        let ui = json!({"nodes": [{}, {}], "definitions": {"subgraphs": [{"nodes": [{}]}, {"nodes": [{}, {}]}, {}]}});
        let prompt = json!({"1": {}, "2": {}});
        assert_eq!((nodes_of(&ui), nodes_of(&prompt), nodes_of(&json!([]))), (5, 2, 0));
        assert!(check_nodes(&ui, 5).is_ok());
        let refused = check_nodes(&ui, 4).unwrap_err().to_string();
        assert!(refused.contains("5 nodes, more than 4 (job.max_nodes)"), "{refused}");
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
