//! What is kept of a job that has ended: a result can hold megabytes, and fifty are kept.

use contract::{
    result::{Code, JobError, JobResult, Kind, Output, Stage, Status},
    text::{many_lines, one_line},
};
use serde::Serialize;

/// Outputs and warnings of one job; of more the number is told.
const OUTPUTS: usize = 64;
const WARNINGS: usize = 20;
/// Characters of a name, of an address, of a message, of a text that is an output or a warning.
const NAME: usize = 200;
const ADDRESS: usize = 1200;
const MESSAGE: usize = 8000;
const TEXT: usize = 500;
/// Characters of a traceback (the last ones: there is the cause) and of ComfyUI's `node_errors`.
const TRACEBACK: usize = 32_000;
const NODE_ERRORS: usize = 32_000;
/// Largest picture that is fetched to be looked at.
pub(super) const LARGEST_PICTURE: u64 = 8 << 20;

/// How a job left this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JobEnding {
    Succeeded,
    Failed,
    Cancelled,
    /// Somebody else runs it, or this worker once more.
    HandedBack,
}

/// A job's end, cut to a size that can be kept.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    status: JobEnding,
    /// Answered without a run: refused, or its result was there.
    unrun: bool,
    /// Why it went back to the queue.
    reason: Option<String>,
    error: Option<ErrorView>,
    outputs: Vec<OutputView>,
    outputs_in_all: usize,
    warnings: Vec<String>,
    warnings_in_all: usize,
    /// From its publishing.
    total_ms: u64,
}

/// An error, whole but for what is longer than anybody reads.
#[derive(Clone, Debug, Serialize)]
struct ErrorView {
    code: Code,
    stage: Stage,
    message: String,
    node: Option<String>,
    traceback: Option<String>,
    node_errors: Option<String>,
}

/// An output: what it is called and where it is.
#[derive(Clone, Debug, Serialize)]
struct OutputView {
    node: String,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<ShownFile>,
}

#[derive(Clone, Debug, Serialize)]
struct ShownFile {
    filename: String,
    uri: String,
    size: u64,
    /// Whether it can be looked at.
    picture: bool,
    #[serde(skip)]
    stored: Option<StoredPicture>,
}

/// A picture in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredPicture {
    pub(super) uri: String,
    pub(super) content_type: &'static str,
}

impl Outcome {
    /// Of a job that ended here; its pictures may be looked at.
    pub(super) fn of(result: &JobResult) -> Self {
        Self::read(result, true)
    }

    /// Of an answer that was in the store, or a refusal. What it lists as outputs anyone who may write there may
    /// have put in: their addresses are not followed.
    pub(super) fn unrun(result: &JobResult) -> Self {
        Self { unrun: true, ..Self::read(result, false) }
    }

    /// Of a job that goes back to the queue.
    pub(super) fn handed_back(reason: &str) -> Self {
        Self {
            status: JobEnding::HandedBack,
            unrun: false,
            reason: Some(one_line(reason, MESSAGE)),
            error: None,
            outputs: Vec::new(),
            outputs_in_all: 0,
            warnings: Vec::new(),
            warnings_in_all: 0,
            total_ms: 0,
        }
    }

    fn read(result: &JobResult, ours: bool) -> Self {
        let outputs = result.outputs.iter().take(OUTPUTS).map(|output| OutputView::of(output, ours));
        Self {
            status: match result.status {
                Status::Succeeded => JobEnding::Succeeded,
                Status::Failed => JobEnding::Failed,
                Status::Cancelled => JobEnding::Cancelled,
            },
            unrun: false,
            reason: None,
            error: result.error.as_ref().map(ErrorView::of),
            outputs: outputs.collect(),
            outputs_in_all: result.outputs.len(),
            warnings: result
                .warnings
                .iter()
                .take(WARNINGS)
                .map(|warning| many_lines(warning, TEXT))
                .collect(),
            warnings_in_all: result.warnings.len(),
            total_ms: result.timings.total_ms,
        }
    }

    pub(super) fn status(&self) -> JobEnding {
        self.status
    }

    /// The `index`th output, if it is a picture that may be looked at.
    pub(super) fn picture(&self, index: usize) -> Option<&StoredPicture> {
        self.outputs.get(index)?.file.as_ref()?.stored.as_ref()
    }
}

impl ErrorView {
    fn of(error: &JobError) -> Self {
        let traceback = error.traceback.as_ref().filter(|lines| !lines.is_empty());
        let node_errors = error.node_errors.as_ref().filter(|errors| !errors.is_null());
        Self {
            code: error.code,
            stage: error.stage,
            message: many_lines(&error.message, MESSAGE),
            node: error.node.as_ref().map(|node| one_line(node, NAME)),
            traceback: traceback.map(|lines| last_lines(lines)),
            node_errors: node_errors
                .and_then(|errors| serde_json::to_string_pretty(errors).ok())
                .map(|text| many_lines(&text, NODE_ERRORS)),
        }
    }
}

/// A traceback's end.
fn last_lines(lines: &[String]) -> String {
    let ended =
        lines.iter().map(|line| if line.ends_with('\n') { line.clone() } else { format!("{line}\n") });
    let whole: String = ended.collect();
    let whole = whole.trim_end();
    let over = whole.chars().count().saturating_sub(TRACEBACK);
    let Some((from, _)) = whole.char_indices().nth(over).filter(|_| over > 0) else {
        return many_lines(whole, TRACEBACK);
    };
    let shown = many_lines(&whole[from..], TRACEBACK);
    format!("(the first {over} characters are cut here, result.json has them) …\n{shown}")
}

impl OutputView {
    fn of(output: &Output, ours: bool) -> Self {
        let file = output.file.as_ref().map(|file| {
            let content_type = picture_type(&file.content_type)
                .filter(|_| ours && output.kind == Kind::Image && file.size <= LARGEST_PICTURE);
            ShownFile {
                filename: one_line(&file.filename, NAME),
                uri: one_line(&file.uri, ADDRESS),
                size: file.size,
                picture: content_type.is_some(),
                stored: content_type
                    .map(|content_type| StoredPicture { uri: file.uri.clone(), content_type }),
            }
        });
        Self {
            node: one_line(&output.node, NAME),
            kind: output.kind,
            text: output.text.as_ref().map(|text| many_lines(text, TEXT)),
            file,
        }
    }
}

/// The media type, if it is a picture's that holds no program: SVG does.
fn picture_type(content_type: &str) -> Option<&'static str> {
    ["image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"]
        .into_iter()
        .find(|known| content_type.eq_ignore_ascii_case(known))
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
