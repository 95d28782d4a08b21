//! The contract as JSON Schema (draft 2020-12), made of the types that read and write it: `docs/schema`.
//!
//! Only with the feature `schema`, which tests turn on: a release carries none of it. What a schema
//! cannot say, the worker still refuses: an `input.images` that names a file twice, a message that is
//! too large, `1.0` where a whole number is wanted.

use std::borrow::Cow;

/// How a key for ComfyUI's API nodes is written.
pub(crate) const KEY_PATTERN: &str = "^[A-Za-z0-9._~+/=-]{0,512}$";

use schemars::{
    JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema, transform::RecursiveTransform,
};
use serde_json::{Map, Value, json};

use crate::{
    JobId,
    event::JobEvent,
    request::{Body, FileSource},
    result::JobResult,
};

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What a publisher sends: `JobRequest::parse` takes what this admits.
#[must_use]
pub fn job() -> Value {
    let mut generator = settings().for_deserialize().into_generator();
    generator.subschema_for::<Body>();
    generator.subschema_for::<RunPodInput>();
    let mut definitions = generator.take_definitions(true);
    let runpod = definitions.get("Job").map(runpod_of);
    definitions.insert("RunPodJob".to_owned(), json!(runpod));
    let own = json!({"anyOf": [
        {"required": ["workflow"]}, {"required": ["workflow_uri"]}, {"not": {"required": ["input"]}},
    ]});
    json!({
        "$schema": DIALECT,
        "title": "Job, version 1",
        "description": "The body of a message in the queue of jobs: a job of comfy-worker's own form, or RunPod's.",
        "type": "object",
        "if": own,
        "then": {"$ref": "#/$defs/Job"},
        "else": {"$ref": "#/$defs/RunPodJob"},
        "$defs": definitions,
    })
}

/// What `result.json` holds and a publisher is sent. More fields may come: readers pass them over.
#[must_use]
pub fn result() -> Value {
    of::<JobResult>("Result, version 1")
}

/// What a job's followers are sent, but for previews, which are images. More fields may come, too.
#[must_use]
pub fn event() -> Value {
    of::<JobEvent>("Event, version 1")
}

fn of<T: JsonSchema>(title: &str) -> Value {
    let schema = settings().for_serialize().into_generator().into_root_schema_for::<T>().to_value();
    // Its name before its contents: people read it, too.
    let mut whole = json!({"$schema": DIALECT, "title": title, "description": schema["description"]});
    if let (Value::Object(whole), Value::Object(schema)) = (&mut whole, schema) {
        for (key, value) in schema {
            whole.entry(key).or_insert(value);
        }
    }
    whole
}

fn settings() -> SchemaSettings {
    SchemaSettings::draft2020_12().with_transform(RecursiveTransform(tidy))
}

/// A job of RunPod's form: what stands beside `workflow` in ours may stand beside `input`.
fn runpod_of(job: &Value) -> Value {
    let mut runpod = job.clone();
    runpod["description"] = "A job in RunPod's form, as its gateway passes it on.".into();
    runpod["required"] = json!(["input"]);
    runpod["not"] = json!({
        "required": ["api_key_comfy_org"],
        "properties": {"input": {"type": "object", "required": ["comfy_org_api_key"]}},
    });
    if let Some(schema) = runpod.as_object_mut() {
        schema.remove("oneOf");
    }
    if let Some(fields) = runpod["properties"].as_object_mut() {
        fields.remove("workflow");
        fields.remove("workflow_uri");
        fields.insert("input".to_owned(), json!({"$ref": "#/$defs/RunPodInput"}));
        for ignored in ["webhook", "policy", "s3Config"] {
            fields.insert(ignored.to_owned(), json!({"description": "RunPod's own; ignored."}));
        }
    }
    runpod
}

/// `input` of RunPod's form.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "src/job/runpod.rs reads it by hand; tests/schema.rs holds them together")]
struct RunPodInput {
    /// A UI workflow or an API prompt.
    workflow: Map<String, Value>,
    /// Files that the workflow mentions by their bare names.
    images: Option<Vec<RunPodImage>>,
    /// Key for ComfyUI's API nodes.
    #[schemars(regex(pattern = KEY_PATTERN))]
    comfy_org_api_key: Option<String>,
}

/// A file in the message.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "as above")]
struct RunPodImage {
    /// The name that the workflow mentions.
    name: String,
    /// Its content: base64, or a `data:` address.
    image: String,
}

impl JsonSchema for JobId {
    fn schema_name() -> Cow<'static, str> {
        "JobId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "1-128 of A-Z a-z 0-9 . _ -, starting with a letter or digit.",
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        })
    }
}

/// `inputs` of a job: an address of the prompt to what is put there.
pub(crate) fn inputs(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "propertyNames": {"pattern": r"^[^.]+\.[\s\S]+$"},
        "additionalProperties": {"anyOf": [
            {
                "description": "A value; a text that begins with s3:// or data:, and an allowed web address, is a file.",
                "not": {"type": "object"},
            },
            generator.subschema_for::<FileSource>(),
            {
                "description": "A value as it stands, whatever it looks like.",
                "type": "object",
                "properties": {"value": {}},
                "required": ["value"],
                "additionalProperties": false,
            },
        ]},
    })
}

/// Exactly one of the two; null is as good as absent.
pub(crate) fn one_workflow(job: &mut Schema) {
    job.insert(
        "oneOf".to_owned(),
        json!([
            {"required": ["workflow"],
             "properties": {"workflow": {"type": "object"}, "workflow_uri": {"type": "null"}}},
            {"required": ["workflow_uri"],
             "properties": {"workflow_uri": {"type": "string"}, "workflow": {"type": "null"}}},
        ]),
    );
}

/// Models need a subfolder.
pub(crate) fn models_lie_deeper(file: &mut Schema) {
    file.insert(
        "if".to_owned(),
        json!({"properties": {"folder": {"const": "models"}}, "required": ["folder"]}),
    );
    file.insert(
        "then".to_owned(),
        json!({"properties": {"subfolder": {"type": "string", "minLength": 1}}, "required": ["subfolder"]}),
    );
}

/// An output is one or the other.
pub(crate) fn a_text_or_a_whole_file(output: &mut Schema) {
    let file = ["filename", "uri", "content_type", "size", "sha256", "temp"];
    output.insert("anyOf".to_owned(), json!([{"required": ["text"]}, {"required": file}]));
}

/// Leaves out what only Rust knows (`uint64`), and the line breaks of comments.
fn tidy(schema: &mut Schema) {
    schema.remove("format");
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
}
