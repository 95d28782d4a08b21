//! ComfyUI's official templates, as scripts/setup unpacks them.

use std::fs;

use serde_json::{Value, json};
use testbed::checkout;

pub(crate) struct Template {
    pub(crate) name: String,
    pub(crate) workflow: Value,
}

impl Template {
    /// The first `most` of them, in the order of their names.
    pub(crate) fn all(most: usize) -> Vec<Self> {
        let folder = checkout().join(".cache/templates/comfyui_workflow_templates/templates");
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}: run scripts/setup --tools first", folder.display());
        });
        let mut all: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let workflow: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
                workflow["nodes"].is_array().then(|| Self { name: path.display().to_string(), workflow })
            })
            .collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all.truncate(most);
        all
    }

    /// The same workflow in other words: nothing that was converted before.
    pub(crate) fn changed(&self, mark: &str) -> Value {
        let mut workflow = self.workflow.clone();
        workflow["extra"]["bench"] = json!(mark);
        workflow
    }

    /// Whether a text is drawn again each time, so that no conversion is kept.
    pub(crate) fn is_dynamic(&self) -> bool {
        let text = self.workflow.to_string();
        text.contains('|') || text.contains("%date:")
    }
}

/// The file with a real server's node types.
pub(crate) fn node_types() -> String {
    checkout().join("tests/fixtures/object_info-0.3.64.json.gz").display().to_string()
}
