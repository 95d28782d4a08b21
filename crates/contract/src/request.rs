//! The job as published (version 1), parsed into meaning.
//!
//! What is refused here is the publisher's mistake: [`Failure::Malformed`] for a body that is no
//! JSON object, [`Failure::Invalid`] for everything else, with the field's path in the message.

use std::{collections::BTreeMap, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use crate::{
    JobId,
    bounds::{MAX_INPUTS, check_depth, check_files, check_metadata, check_values},
    failure::Failure,
    runpod,
    text::{one_line, quoted},
};

/// A job, checked.
#[derive(Clone, Debug)]
pub struct JobRequest {
    /// Its name; the manifest lies under it.
    pub id: JobId,
    /// SHA-256 of the body: same id with another digest is a conflict.
    pub digest: String,
    /// The workflow or where it is.
    pub workflow: WorkflowSource,
    /// What to set in the prompt.
    pub inputs: BTreeMap<NodeInput, InputValue>,
    /// Files to place beside the inputs.
    pub files: Vec<FileRequest>,
    /// Files that the workflow mentions by their bare name; staged apart and renamed in the prompt.
    pub named_files: Vec<FileSource>,
    /// Where outputs go and which.
    pub output: OutputRequest,
    /// Longest execution.
    pub timeout: Option<Duration>,
    /// Whether outputs that ComfyUI dropped are mere warnings.
    pub allow_partial: bool,
    /// Key for ComfyUI's API nodes.
    pub api_key_comfy_org: Option<SecretString>,
    /// Echoed untouched.
    pub metadata: Option<Value>,
}

/// Where the workflow is.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkflowSource {
    /// In the message.
    Inline(Value),
    /// At an address.
    At(String),
}

/// `<node id>.<input name>` of the prompt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeInput {
    /// The node's id; inside subgraphs it holds a colon (`12:3`).
    pub node: String,
    /// The input's name.
    pub input: String,
}

impl std::fmt::Display for NodeInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.node, self.input)
    }
}

impl std::str::FromStr for NodeInput {
    type Err = String;

    /// Node ids hold no dot, input names may: the first one divides.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('.') {
            Some((node, input)) if !node.is_empty() && !input.is_empty() => {
                Ok(Self { node: node.to_owned(), input: input.to_owned() })
            }
            _ => Err(format!("{} is no <node id>.<input name>", quoted(text, 80))),
        }
    }
}

/// What an input is set to.
#[derive(Clone, Debug, PartialEq)]
pub enum InputValue {
    /// This value.
    Literal(Value),
    /// The staged name of this file.
    File(FileSource),
    /// This web address: a file where such ones may be read, else a literal, since prompts hold some.
    Address(String),
}

/// A file to be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    /// Its URI.
    pub source: String,
    /// Its SHA-256 in hexadecimal digits, checked when given.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[0-9A-Fa-f]{64}$")))]
    pub sha256: Option<String>,
    /// The name to stage it under; default: the last part of the URI.
    pub name: Option<String>,
}

/// A file to be placed in one of ComfyUI's folders.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(transform = super::schema::models_lie_deeper)
)]
#[serde(deny_unknown_fields)]
pub struct FileRequest {
    /// Its URI.
    pub source: String,
    /// Which folder.
    pub folder: FolderType,
    /// Folder within it; models need one (`checkpoints`, `loras` …).
    pub subfolder: Option<String>,
    /// File name; default: the last part of the URI.
    pub name: Option<String>,
    /// Replace a file that is there.
    #[serde(default)]
    pub overwrite: bool,
    /// Remove it after the job.
    #[serde(default)]
    pub ephemeral: bool,
    /// Its SHA-256 in hexadecimal digits, checked when given.
    #[cfg_attr(feature = "schema", schemars(regex(pattern = "^[0-9A-Fa-f]{64}$")))]
    pub sha256: Option<String>,
}

/// One of ComfyUI's folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FolderType {
    /// What workflows read.
    Input,
    /// What workflows write.
    Output,
    /// What ComfyUI clears at its next start.
    Temp,
    /// Model files, in subfolders by kind.
    Models,
}

impl FolderType {
    /// The folder's name under ComfyUI's base folder.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Temp => "temp",
            Self::Models => "models",
        }
    }
}

/// Where outputs go and which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct OutputRequest {
    /// Instead of the store's own place.
    pub uri: Option<String>,
    /// Previews in ComfyUI's temp folder too.
    #[serde(default)]
    pub include_temp: bool,
    /// Lifetime of presigned links, in seconds; none when absent.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 604_800)))]
    pub presign_seconds: Option<u64>,
}

/// A job as comfy-worker's publishers send it.
#[derive(Deserialize)]
#[cfg_attr(
    feature = "schema",
    derive(schemars::JsonSchema),
    schemars(rename = "Job", transform = super::schema::one_workflow)
)]
#[serde(deny_unknown_fields)]
pub(crate) struct Body {
    /// The version of this contract.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1)))]
    version: Option<u64>,
    /// The job's name: the same one with the same body is the same job, run once. Default: the
    /// message's `message_id`, else the body's SHA-256.
    id: Option<JobId>,
    /// A UI workflow or an API prompt.
    workflow: Option<Map<String, Value>>,
    /// Where the workflow is, instead.
    workflow_uri: Option<String>,
    /// `<node id>.<input name>` of the prompt to what that input is set to.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(schema_with = "super::schema::inputs"))]
    inputs: BTreeMap<String, Value>,
    /// Files for ComfyUI's folders, models among them.
    #[serde(default)]
    files: Vec<FileRequest>,
    /// Where outputs go and which.
    #[serde(default)]
    output: OutputRequest,
    /// Longest execution. Default: the worker's `job.timeout`.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.001, max = 604_800.0)))]
    timeout_seconds: Option<f64>,
    /// Whether outputs that ComfyUI dropped while running the rest are mere warnings.
    #[serde(default)]
    allow_partial: bool,
    /// Key for ComfyUI's API nodes.
    #[cfg_attr(
        feature = "schema",
        schemars(with = "Option<String>", regex(pattern = crate::schema::KEY_PATTERN))
    )]
    api_key_comfy_org: Option<SecretString>,
    /// Echoed untouched in the result.
    metadata: Option<Value>,
}

/// The deadlines a job may ask for: up to a week. More is a mistake of units.
pub const TIMEOUT_SECONDS: std::ops::RangeInclusive<f64> = 0.001..=7.0 * 24.0 * 3600.0;
/// S3 signs links for at most a week.
const LONGEST_PRESIGN_SECONDS: u64 = 7 * 24 * 3600;

impl JobRequest {
    /// Like [`JobRequest::parse`], but a body of more than `max_bytes` is not read.
    ///
    /// # Errors
    /// [`Refused`], as [`JobRequest::parse`].
    pub fn accept(body: &[u8], message_id: Option<&str>, max_bytes: u64) -> Result<Self, Box<Refused>> {
        let size = body.len() as u64;
        if size <= max_bytes {
            return Self::parse(body, message_id);
        }
        let digest = digest_of(body);
        let id = fallback_id(message_id, &digest);
        let problem = format!("the message has {size} bytes, more than {max_bytes} (job.max_message_bytes)");
        Err(Box::new(Refused { id, digest, metadata: None, failure: Failure::Malformed(problem) }))
    }

    /// Reads a message's body; `message_id` names the job when the body does not.
    ///
    /// # Errors
    /// [`Refused`]: what is wrong, beside as much of the job's identity as could be read, so that
    /// the publisher can be told.
    pub fn parse(body: &[u8], message_id: Option<&str>) -> Result<Self, Box<Refused>> {
        let digest = digest_of(body);
        let fallback_id = fallback_id(message_id, &digest);
        let refuse = |failure, id: Option<JobId>, metadata| {
            Box::new(Refused { id: id.or(fallback_id.clone()), digest: digest.clone(), metadata, failure })
        };
        check_values(body).map_err(|problem| refuse(Failure::Malformed(problem), None, None))?;
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            refuse(Failure::Malformed(format!("the body is no JSON: {error}")), None, None)
        })?;
        let Value::Object(mut object) = value else {
            return Err(refuse(Failure::Malformed("the body is no JSON object".into()), None, None));
        };
        let own_id = object.get("id").and_then(Value::as_str).and_then(|id| id.parse::<JobId>().ok());
        // What is refused for its metadata is answered without it.
        let metadata = object.get("metadata").filter(|metadata| check_metadata(metadata).is_ok()).cloned();
        // Serde repeats what it did not expect, however long that is.
        let invalid = |problem: String| {
            refuse(Failure::Invalid(one_line(&problem, 600)), own_id.clone(), metadata.clone())
        };

        let named_files = runpod::translate(&mut object).map_err(&invalid)?;
        let body: Body = typed(Value::Object(object)).map_err(&invalid)?;
        body.check(digest.clone(), fallback_id.clone(), named_files).map_err(&invalid)
    }
}

/// SHA-256 in hexadecimal digits.
fn digest_of(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The id of a body that names none.
fn fallback_id(message_id: Option<&str>, digest: &str) -> Option<JobId> {
    message_id.and_then(|id| id.parse().ok()).or_else(|| digest.parse().ok())
}

/// The id of the job that a message holds, be it one or not.
#[must_use]
pub fn identify(body: &[u8], message_id: Option<&str>, max_bytes: u64) -> Option<JobId> {
    match JobRequest::accept(body, message_id, max_bytes) {
        Ok(job) => Some(job.id),
        Err(refused) => refused.id,
    }
}

/// A value by its type; what is wrong is told with its path.
fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| match error.path().to_string().as_str() {
        "." => error.into_inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })
}

impl Body {
    fn check(
        self,
        digest: String,
        fallback_id: Option<JobId>,
        named_files: Vec<FileSource>,
    ) -> Result<JobRequest, String> {
        if let Some(version) = self.version.filter(|version| *version != 1) {
            return Err(format!("version: {version} is unknown here; this worker speaks version 1"));
        }
        let workflow = match (self.workflow, self.workflow_uri) {
            (Some(workflow), None) => WorkflowSource::Inline(Value::Object(workflow)),
            (None, Some(uri)) => WorkflowSource::At(uri),
            (None, None) => return Err("workflow: missing; give workflow or workflow_uri".into()),
            (Some(_), Some(_)) => {
                return Err("workflow: give either workflow or workflow_uri, not both".into());
            }
        };
        if let WorkflowSource::Inline(workflow) = &workflow {
            check_depth("workflow", workflow)?;
        }
        self.metadata.as_ref().map_or(Ok(()), check_metadata)?;
        let given = self.inputs.len();
        if given > MAX_INPUTS {
            return Err(format!("inputs: {given} are given, more than {MAX_INPUTS}"));
        }
        let inputs: BTreeMap<NodeInput, InputValue> = self
            .inputs
            .into_iter()
            .map(|(address, value)| {
                check_depth(&format!("inputs.{address}"), &value)?;
                let address: NodeInput = address.parse().map_err(|problem| format!("inputs: {problem}"))?;
                let value =
                    InputValue::parse(value).map_err(|problem| format!("inputs.{address}: {problem}"))?;
                Ok((address, value))
            })
            .collect::<Result<_, String>>()?;
        let staged = inputs.values().filter(|value| matches!(value, InputValue::File(_))).count();
        let files = staged + self.files.len() + named_files.len();
        check_files(files)?;
        for (index, file) in self.files.iter().enumerate() {
            check_sha256(file.sha256.as_deref())
                .map_err(|problem| format!("files[{index}].sha256: {problem}"))?;
            if file.folder == FolderType::Models && file.subfolder.as_deref().is_none_or(str::is_empty) {
                return Err(format!(
                    "files[{index}].subfolder: models need one, such as checkpoints or loras"
                ));
            }
        }
        let timeout = match self.timeout_seconds {
            None => None,
            Some(seconds) if TIMEOUT_SECONDS.contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
            Some(seconds) => {
                return Err(format!("timeout_seconds: {seconds} is not within a millisecond and a week"));
            }
        };
        if let Some(seconds) = self.output.presign_seconds
            && !(1..=LONGEST_PRESIGN_SECONDS).contains(&seconds)
        {
            return Err(format!("output.presign_seconds: {seconds} is not within 1 second and a week"));
        }
        if self.api_key_comfy_org.as_ref().is_some_and(|key| !is_key(key.expose_secret())) {
            return Err(
                "api_key_comfy_org: it is no key: letters, digits and -._~+/= are, 512 at most".into()
            );
        }
        Ok(JobRequest {
            id: self.id.or(fallback_id).ok_or("id: missing")?,
            digest,
            workflow,
            inputs,
            files: self.files,
            named_files,
            output: self.output,
            timeout,
            allow_partial: self.allow_partial,
            api_key_comfy_org: self.api_key_comfy_org,
            metadata: self.metadata,
        })
    }
}

impl InputValue {
    /// A string with a known scheme is a file, `{source…}` a file, `{value}` a literal, all else but web
    /// addresses a literal.
    fn parse(value: Value) -> Result<Self, String> {
        match value {
            Value::String(text) if has_file_scheme(&text) => {
                Ok(Self::File(FileSource { source: text, sha256: None, name: None }))
            }
            Value::String(text) if ["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) => {
                Ok(Self::Address(text))
            }
            Value::Object(mut object) => {
                if object.contains_key("source") {
                    let file: FileSource = typed(Value::Object(object))?;
                    check_sha256(file.sha256.as_deref()).map_err(|problem| format!("sha256: {problem}"))?;
                    return Ok(Self::File(file));
                }
                match (object.remove("value"), object.keys().next()) {
                    (Some(value), None) => Ok(Self::Literal(value)),
                    (_, Some(key)) => {
                        Err(format!("unknown field `{key}`; an object has `source` or `value`"))
                    }
                    (None, None) => Err("an object has `source` or `value`".into()),
                }
            }
            literal => Ok(Self::Literal(literal)),
        }
    }
}

/// Whether a bare string names a file to be staged, wherever it is read.
#[must_use]
pub fn has_file_scheme(text: &str) -> bool {
    ["s3://", "data:"].iter().any(|scheme| text.starts_with(scheme))
}

/// Whether it is written as keys are. While its job is in hand it is hidden wherever it appears, also in others' log lines: a
/// text of JSON's own would tear them apart.
fn is_key(key: &str) -> bool {
    key.len() <= 512 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte))
}

fn check_sha256(sum: Option<&str>) -> Result<(), String> {
    match sum {
        Some(sum) if sum.len() != 64 || !sum.bytes().all(|c| c.is_ascii_hexdigit()) => {
            Err("must be 64 hexadecimal digits".into())
        }
        _ => Ok(()),
    }
}

/// A body that is no job, with what could be read of it.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
pub struct Refused {
    /// The id it gave, or its fallback.
    pub id: Option<JobId>,
    /// SHA-256 of the body.
    pub digest: String,
    /// Its metadata, to be echoed.
    pub metadata: Option<Value>,
    /// What is wrong.
    pub failure: Failure,
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
