//! What ComfyUI says of its nodes' classes, by `GET /object_info/{class}`: asked once each.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use super::{Client, RequestError};

/// Bytes of a class's name. aiohttp takes request lines of 8190, in which each byte can take three.
const LONGEST_NAME: usize = 1000;

/// A class of nodes.
#[derive(Debug, Default)]
pub struct NodeClass {
    /// The inputs that it names, required and optional.
    inputs: HashMap<String, Input>,
    outputs: usize,
    /// Whether it makes outputs of a prompt.
    pub is_output: bool,
    /// Custom nodes take inputs that they do not name,
    is_custom: bool,
    /// and those that name an output for any type give as many as they like.
    is_open: bool,
}

/// How an input gets a value that is no link.
#[derive(Debug)]
enum Input {
    /// Chosen from these names.
    Choice(HashSet<String>),
    /// A text, a number, yes or no.
    Plain,
    /// By a widget of its own, such as one that takes a picture.
    Widget,
    /// A text that names a file, which only its widget limits.
    File,
    /// It grows others, which are named after it: `images.image0`, `format.codec`.
    Grows(Grown),
}

/// What grows from an input: by name, and by a prefix and a number.
#[derive(Debug, Default)]
struct Grown {
    named: HashMap<String, Input>,
    numbered: Option<(String, Box<Input>)>,
}

impl Grown {
    fn get(&self, name: &str) -> Option<&Input> {
        let (first, rest) = name.split_once('.').map_or((name, None), |(first, rest)| (first, Some(rest)));
        let numbered = || {
            let (prefix, input) = self.numbered.as_ref()?;
            first.strip_prefix(prefix)?.parse::<u16>().ok().map(|_| &**input)
        };
        let input = self.named.get(first).or_else(numbered)?;
        match (rest, input) {
            (None, input) => Some(input),
            (Some(rest), Input::Grows(grown)) => grown.get(rest),
            (Some(_), _) => None,
        }
    }

    /// From `template` of an input that grows by itself.
    fn of_template(template: &Value) -> Self {
        let mut inputs = inputs_of(&template["input"]);
        let Some((_, described)) = inputs.next() else { return Self::default() };
        let names = template["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let named = names.map(|name| (name.to_owned(), Input::read(described))).collect();
        let prefix = template["prefix"].as_str();
        Self { named, numbered: prefix.map(|prefix| (prefix.to_owned(), Box::new(Input::read(described)))) }
    }

    /// From the options of one of which each brings inputs of its own. Some have the same ones.
    fn of_options(options: &Value) -> Self {
        let mut named: HashMap<String, Input> = HashMap::new();
        for (name, described) in
            options.as_array().into_iter().flatten().flat_map(|option| inputs_of(&option["inputs"]))
        {
            match (named.get_mut(name), Input::read(described)) {
                (Some(Input::Grows(known)), Input::Grows(more)) => {
                    known.named.extend(more.named);
                    known.numbered = known.numbered.take().or(more.numbered);
                }
                (Some(Input::Choice(known)), Input::Choice(more)) => known.extend(more),
                (_, input) => drop(named.insert(name.clone(), input)),
            }
        }
        Self { named, numbered: None }
    }
}

/// Required and optional ones, with their descriptions.
fn inputs_of(groups: &Value) -> impl Iterator<Item = (&String, &Value)> {
    ["required", "optional"].into_iter().filter_map(|group| groups[group].as_object()).flatten()
}

impl NodeClass {
    /// By its entry.
    #[must_use]
    pub fn read(entry: &Value) -> Self {
        let inputs = inputs_of(&entry["input"]);
        let outputs = entry["output"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_custom =
            entry["python_module"].as_str().is_none_or(|module| module.starts_with("custom_nodes"));
        Self {
            inputs: inputs.map(|(name, described)| (name.clone(), Input::read(described))).collect(),
            outputs: outputs.len(),
            is_output: entry["output_node"] == true,
            is_custom,
            is_open: is_custom && outputs.iter().any(|kind| kind == "*"),
        }
    }

    /// Whether an input can be linked.
    #[must_use]
    pub fn takes(&self, input: &str) -> bool {
        self.is_custom || self.input(input).is_some()
    }

    fn input(&self, name: &str) -> Option<&Input> {
        let grown = || {
            let (first, rest) = name.split_once('.')?;
            let Input::Grows(grown) = self.inputs.get(first)? else { return None };
            grown.get(rest)
        };
        self.inputs.get(name).or_else(grown)
    }

    /// Whether it has this output. Python counts from the end as well, and by whole numbers only.
    #[must_use]
    pub fn gives(&self, output: &Value) -> bool {
        let outputs = i64::try_from(self.outputs).unwrap_or(i64::MAX);
        let output = output.as_i64().or_else(|| output.as_bool().map(i64::from));
        output.is_some_and(|output| self.is_open || (-outputs..outputs).contains(&output))
    }

    /// Whether an input's value is among those that it can be chosen from; `None` if it is not chosen.
    #[must_use]
    pub fn chooses(&self, input: &str, value: &str) -> Option<bool> {
        match self.input(input)? {
            Input::Choice(choices) => Some(choices.contains(value)),
            Input::Plain | Input::Widget | Input::File | Input::Grows(_) => None,
        }
    }

    /// Whether an input of ComfyUI's own gets its value by a widget: which files those name ComfyUI does not check.
    #[must_use]
    pub fn has_widget(&self, input: &str) -> bool {
        !self.is_custom && matches!(self.input(input), Some(Input::Widget | Input::File))
    }

    /// Whether an input of ComfyUI's own is chosen from a list, or names a file.
    #[must_use]
    pub fn names_a_file(&self, input: &str) -> bool {
        !self.is_custom && matches!(self.input(input), Some(Input::Choice(_) | Input::File))
    }
}

impl Input {
    fn read(described: &Value) -> Self {
        static NONE: Vec<Value> = Vec::new();
        // 0.3.64 lists choices in the type's place, newer ones among the options.
        let listed = match &described[0] {
            Value::Array(listed) => Some(listed),
            // Those that the page gets elsewhere are none that ComfyUI says it offers.
            Value::String(kind) if kind == "COMBO" => {
                Some(described[1]["options"].as_array().unwrap_or(&NONE))
            }
            Value::String(kind) if kind == "STRING" && described[1]["image_upload"] == true => {
                return Self::File;
            }
            Value::String(kind) if ["STRING", "INT", "FLOAT", "BOOLEAN"].contains(&kind.as_str()) => None,
            Value::String(kind) if kind == "COMFY_AUTOGROW_V3" => {
                return Self::Grows(Grown::of_template(&described[1]["template"]));
            }
            Value::String(kind) if kind == "COMFY_DYNAMICCOMBO_V3" => {
                return Self::Grows(Grown::of_options(&described[1]["options"]));
            }
            _ => return Self::Widget,
        };
        let Some(listed) = listed else { return Self::Plain };
        Self::Choice(listed.iter().filter_map(Value::as_str).map(str::to_owned).collect())
    }
}

/// The classes that were asked for.
#[derive(Debug, Default)]
pub struct NodeClasses(Mutex<HashMap<String, Arc<NodeClass>>>);

impl NodeClasses {
    /// Those of these names that ComfyUI describes; `None` when it lacks one of them, and so refuses the prompt.
    ///
    /// # Errors
    /// When it does not answer: a node can hold Python's lock for minutes.
    pub async fn of<'a>(
        &self,
        client: &Client,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<HashMap<String, Arc<NodeClass>>>, RequestError> {
        let mut found = HashMap::new();
        for name in names {
            // Not names of classes: they would be left out of the address, or be too long for it, which ComfyUI answers by
            // closing the connection.
            if matches!(name, "" | "." | "..") || name.len() > LONGEST_NAME {
                return Ok(None);
            }
            let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
            let class = match known {
                Some(class) => class,
                None => match client.node_class(name).await {
                    Ok(answer) => match answer.get(name) {
                        Some(entry) => self.keep(name, entry),
                        None => return Ok(None),
                    },
                    Err(error) if !error.answered => return Err(error),
                    // A class whose description breaks runs all the same.
                    Err(error) => {
                        tracing::debug!(%error, class = name, "ComfyUI does not describe a class");
                        continue;
                    }
                },
            };
            found.insert(name.to_owned(), class);
        }
        Ok(Some(found))
    }

    fn keep(&self, name: &str, entry: &Value) -> Arc<NodeClass> {
        let class = Arc::new(NodeClass::read(entry));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::clone(&class));
        class
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use axum::{Router, extract::Path, http::StatusCode, routing::get};
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_comfyui_says_of_its_classes_is_asked_once() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let describe = move |Path(name): Path<String>| async move {
            log.lock().unwrap().push(name.clone());
            match name.as_str() {
                // As ComfyUI answers when `INPUT_TYPES` of a custom node raises.
                "Broken" => Err(StatusCode::INTERNAL_SERVER_ERROR),
                "Absent" => Ok(json!({}).to_string()),
                _ => Ok(json!({name: {"input": {}, "output": ["IMAGE"]}}).to_string()),
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/", listener.local_addr().unwrap());
        let server = axum::serve(listener, Router::new().route("/object_info/{name}", get(describe)));
        let server = tokio::spawn(server.into_future());
        let (client, classes) = (Client::new(base.parse().unwrap()).unwrap(), NodeClasses::default());
        let of = |names: [&'static str; 2]| classes.of(&client, names);
        let known = of(["A", "Broken"]).await.unwrap().unwrap();
        assert_eq!(known.keys().collect::<Vec<_>>(), ["A"]);
        assert!(of(["a/../B & C", "Absent"]).await.unwrap().is_none());
        for none in ["", ".", "..", "x".repeat(LONGEST_NAME + 1).leak()] {
            assert!(of(["A", none]).await.unwrap().is_none());
        }
        assert_eq!(*asked.lock().unwrap(), ["A", "Broken", "a/../B & C", "Absent"]);
        server.abort();
        let _ = server.await;
        assert!(of(["A", "a/../B & C"]).await.unwrap().is_some(), "those are known");
        assert!(of(["A", "D"]).await.is_err());
    }

    /// As 0.33.0 describes `BatchImagesNode`, `StringFormat` and `SaveVideo`.
    #[test]
    fn inputs_grow_by_the_names_of_their_template_only() {
        let image = json!({"required": {"image": ["IMAGE", {}]}});
        let grows = |template: Value| json!(["COMFY_AUTOGROW_V3", {"template": template}]);
        let codec = json!(["COMFY_DYNAMICCOMBO_V3", {"options": [
            {"key": "h264", "inputs": {"required": {"quality": ["INT", {}]}}},
            {"key": "av1", "inputs": {"optional": {"speed": ["COMBO", {"options": ["fast"]}]}}}]}]);
        let class = NodeClass::read(&json!({
            "input": {"required": {
                "images": grows(json!({"input": image, "prefix": "image", "min": 1, "max": 50})),
                "values": grows(json!({"input": image, "names": ["a", "b"], "min": 0})),
                "format": ["COMFY_DYNAMICCOMBO_V3", {"options": [
                    {"key": "auto", "inputs": {}}, {"key": "mp4", "inputs": {"required": {"codec": codec}}}]}]}},
            "output": [], "python_module": "comfy_extras.nodes_video"}));
        for input in
            ["images", "images.image0", "images.image12", "values.b", "format.codec", "format.codec.speed"]
        {
            assert!(class.takes(input), "{input}");
        }
        for input in [
            "images.x",
            "images.image",
            "images.image0.y",
            "values.c",
            "format.x",
            "format.codec.x",
            "x.image0",
        ] {
            assert!(!class.takes(input), "{input}");
        }
        assert_eq!(class.chooses("format.codec.speed", "slow"), Some(false));
    }

    #[test]
    fn a_class_is_read_as_servers_of_different_ages_describe_it() {
        let entry = |module: &str, outputs: &[&str]| {
            NodeClass::read(&json!({
                "input": {
                    "required": {"a": [["x", "y"], {"image_upload": true}], "b": ["COMBO", {"options": ["x"]}]},
                    "optional": {"c": ["INT", {}]}, "hidden": {"d": "PROMPT"}},
                "output": outputs, "output_node": true, "python_module": module}))
        };
        let core = entry("nodes", &["IMAGE"]);
        assert!(["a", "b", "c"].iter().all(|input| core.takes(input)));
        assert!(!["d", "c.1", "a.x"].iter().any(|input| core.takes(input)));
        assert!(
            core.is_output && core.gives(&json!(0)) && core.gives(&json!(-1)) && core.gives(&json!(false))
        );
        assert!(![json!(1), json!(-2), json!(0.0), json!(true)].iter().any(|output| core.gives(output)));
        let chosen = ["a", "b", "c"].map(|input| core.chooses(input, "y"));
        assert_eq!(chosen, [Some(true), Some(false), None]);
        let custom = entry("custom_nodes.impact", &["*"]);
        assert!(custom.takes("any_7") && custom.gives(&json!(7)) && !custom.gives(&json!(0.5)));
        assert!(!entry("custom_nodes.impact", &["IMAGE"]).gives(&json!(7)));
        assert!(!entry("comfy_extras.nodes_logic", &["*"]).gives(&json!(7)));
    }
}
