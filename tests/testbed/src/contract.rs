//! Jobs, results and events, judged by the JSON Schemas of `docs/schema`.

use std::{fs, sync::LazyLock};

use anyhow::{Context as _, Result, bail};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::checkout;

type Schema = LazyLock<Result<Validator, String>>;

static JOB: Schema = Schema::new(|| read("job-v1.json", false));
static RESULT: Schema = Schema::new(|| read("result-v1.json", true));
static EVENT: Schema = Schema::new(|| read("event-v1.json", true));

/// # Errors
/// When that is no job: every reason, with its place.
pub fn must_be_job(value: &Value) -> Result<()> {
    judge(&JOB, value).context("no job by docs/schema/job-v1.json")
}

/// # Errors
/// When that is no result, or has a field that the schema does not name.
pub fn must_be_result(value: &Value) -> Result<()> {
    judge(&RESULT, value).context("no result by docs/schema/result-v1.json")
}

/// # Errors
/// When that is no event, or has a field that the schema does not name.
pub fn must_be_event(value: &Value) -> Result<()> {
    judge(&EVENT, value).context("no event by docs/schema/event-v1.json")
}

fn judge(schema: &Schema, value: &Value) -> Result<()> {
    let schema = schema.as_ref().map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let wrong: Vec<String> =
        schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

/// `closed`: readers of results and events pass unknown fields over, but what the worker itself sends
/// must all stand in the schema.
fn read(name: &str, closed: bool) -> Result<Validator, String> {
    let file = checkout().join("docs/schema").join(name);
    let problem = |problem: &dyn std::fmt::Display| format!("{}: {problem}", file.display());
    let text = fs::read_to_string(&file).map_err(|error| problem(&error))?;
    let mut schema: Value = serde_json::from_str(&text).map_err(|error| problem(&error))?;
    if closed {
        close(&mut schema);
        schema["$defs"]
            .as_object_mut()
            .into_iter()
            .flat_map(|definitions| definitions.values_mut())
            .for_each(close);
    }
    jsonschema::draft202012::new(&schema).map_err(|error| problem(&error))
}

fn close(schema: &mut Value) {
    if schema.get("properties").is_some() {
        schema["unevaluatedProperties"] = json!(false);
    }
}
