//! Checks a prompt before it is posted. ComfyUI takes some prompts of a few bytes that then end the thread which runs
//! prompts, and so everybody's jobs (tried with 0.3.64 and 0.33.0): a node that no output needs and whose `inputs` is no
//! object; links to nodes, outputs or inputs that are not there; a very long row of nodes. It does not validate nodes that
//! only an undeclared input leads to, and a link gets around its lists of allowed files: so the files that a node may open
//! are checked here, too.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use contract::{
    failure::Failure,
    prompt::Prompt,
    text::{one_line, quoted},
};
use serde_json::{Map, Value, json};

use connector::comfy::classes::NodeClass;

/// Nodes in a row, each of which takes what the one before gives. ComfyUI follows them by recursion, also those that no
/// output needs, and Python ends that after some 980.
const LONGEST_ROW: usize = 800;

/// Of all nodes together, the nodes that each of them depends on. ComfyUI makes a text of those for every node, to look for
/// it in its cache: 170 kB of prompt with a million cost it minutes and gigabytes.
const MAX_DEPENDENCIES: usize = 400_000;

/// Characters of a node's id. Its errors name all outputs of a prompt, each for each.
const LONGEST_ID: usize = 200;
/// Nodes that make outputs: for the same reason.
const MAX_OUTPUT_NODES: usize = 1000;
/// Warnings of links that were left out.
const MAX_WARNINGS: usize = 20;
/// Inputs by which a class of ComfyUI's own says where it writes, unchecked by it (0.33.0, `nodes_dataset.py`).
const PLACES: [(&str, &[&str]); 2] = [
    ("SaveImageDataSetToFolder", &["folder_name", "filename_prefix"]),
    ("SaveImageTextDataSetToFolder", &["folder_name", "filename_prefix"]),
];
/// A class of ComfyUI's own whose files are no outputs: they would stay for every later job to read.
const LEAVES_FILES: &str = "SaveTrainingDataset";
/// The class that is Python's `str.format`, and its format.
const FORMAT: (&str, &str) = ("StringFormat", "f_string");

/// What a node consists of. ComfyUI reads more there, what it was cached by (`is_changed`) among it.
const FIELDS: [&str; 3] = ["class_type", "inputs", "_meta"];

/// Gives nodes without `inputs` empty ones, takes what is no part of a node away, and looks for the rest of it.
///
/// # Errors
/// [`Failure::PromptRefused`], naming the node as ComfyUI does.
pub(super) fn check(prompt: &mut Prompt) -> Result<(), Failure> {
    for (id, node) in prompt.iter_mut() {
        if id.chars().nth(LONGEST_ID).is_some() {
            return Err(refused(id, node, &format!("its id is longer than {LONGEST_ID} characters"), ""));
        }
        if let Some(node) = node.as_object_mut() {
            node.retain(|field, _| FIELDS.contains(&field.as_str()));
        }
        let inputs = node.as_object_mut().map(|node| node.entry("inputs").or_insert_with(|| json!({})));
        if !inputs.is_some_and(|inputs| inputs.is_object()) {
            return Err(refused(id, node, "its `inputs` must be an object, {} for none", ""));
        }
        check_texts(id, node)?;
    }
    let places: HashMap<&str, usize> = prompt.keys().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
    let mut users = vec![Vec::new(); prompt.len()];
    let mut open = vec![0_usize; prompt.len()];
    for (user, (id, node)) in prompt.iter().enumerate() {
        for (name, value) in node.get("inputs").and_then(Value::as_object).into_iter().flatten() {
            let Some((from, _)) = linked(value) else { continue };
            let Some(at) = places.get(from) else {
                let problem = format!("it is linked to node {}, which is not there", quoted(from, 40));
                return Err(refused(id, node, &problem, name));
            };
            users[*at].push(user);
            open[user] += 1;
        }
    }
    if has_more_dependencies(&users, open.clone(), MAX_DEPENDENCIES) {
        return Err(Failure::Invalid(format!(
            "workflow: its nodes depend on too many others: with those that each one needs, more than {MAX_DEPENDENCIES}"
        )));
    }
    let row = longest_row(&mut users, open);
    if row <= LONGEST_ROW {
        return Ok(());
    }
    Err(Failure::Invalid(format!("workflow: {row} nodes follow one another, more than {LONGEST_ROW}")))
}

/// Whether nodes with these `users`, each of which waits for so many, depend on more than `most` others in all. A ring is
/// not looked at: ComfyUI refuses it.
fn has_more_dependencies(users: &[Vec<usize>], mut open: Vec<usize>, most: usize) -> bool {
    let words = users.len().div_ceil(64);
    let mut needs = vec![Vec::new(); users.len()];
    let mut known: Vec<_> = (0..users.len()).filter(|at| open[*at] == 0).collect();
    let mut sum = 0;
    while let Some(from) = known.pop() {
        let mut own: Vec<u64> = std::mem::take(&mut needs[from]);
        sum += own.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        if sum > most {
            return true;
        }
        own.resize(words, 0);
        own[from / 64] |= 1 << (from % 64);
        for user in &users[from] {
            let theirs = &mut needs[*user];
            theirs.resize(words, 0);
            theirs.iter_mut().zip(&own).for_each(|(theirs, own)| *theirs |= own);
            open[*user] -= 1;
            if open[*user] == 0 {
                known.push(*user);
            }
        }
    }
    false
}

/// Texts that a class of ComfyUI's own uses as they are: as a path, or as a format that reads any object's attributes, and so
/// ComfyUI's memory. A link would get around the look at them.
fn check_texts(id: &str, node: &Value) -> Result<(), Failure> {
    let class = class_of(node).unwrap_or_default();
    let text = |input: &str| match node["inputs"].get(input).map(unwrapped) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(refused(id, node, "it must be a text, not a link: what it says is checked", input)),
    };
    for input in PLACES.iter().filter(|(writer, _)| *writer == class).flat_map(|(_, inputs)| *inputs) {
        if leads_out(text(input)?) {
            return Err(refused(id, node, "it must name something in the output folder", input));
        }
    }
    if class == LEAVES_FILES {
        let problem = "what it saves is no output and would stay on this machine: a worker does not run it";
        return Err(refused(id, node, problem, ""));
    }
    if class == FORMAT.0 && reads_attributes(text(FORMAT.1)?) {
        let problem =
            "a field must be a name alone: attributes and items of objects are not open to a prompt";
        return Err(refused(id, node, problem, FORMAT.1));
    }
    Ok(())
}

/// Whether a format of Python's has a field like `{a.b}` or `{a[b]}`, formats within formats included.
fn reads_attributes(format: &str) -> bool {
    let mut rest = format;
    while let Some((_, after)) = rest.split_once('{') {
        rest = after.strip_prefix('{').unwrap_or(after);
        let field: &str = after.split(['}', ':', '!']).next().unwrap_or_default();
        if !after.starts_with('{') && field.contains(['.', '[']) {
            return true;
        }
    }
    false
}

/// The classes of a prompt's nodes.
pub(super) fn classes(prompt: &Prompt) -> BTreeSet<&str> {
    prompt.values().filter_map(class_of).collect()
}

/// Takes links away that lead to inputs which are not there: their nodes would fail for them, or never be checked. Then looks
/// for links to outputs that are not there, and for files out of ComfyUI's folders. `known` has what ComfyUI says of
/// [`classes`]; the answer is what the publisher should know.
///
/// # Errors
/// [`Failure::PromptRefused`], naming the node as ComfyUI does.
pub(super) fn check_by_class(
    prompt: &mut Prompt,
    known: &HashMap<String, Arc<NodeClass>>,
) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    for (id, node) in prompt.iter_mut() {
        let Some(class) = known_class(known, node) else { continue };
        let title = title_of(id, node);
        let Some(inputs) = node.get_mut("inputs").and_then(Value::as_object_mut) else { continue };
        inputs.retain(|name, value| {
            let stays = linked(value).is_none() || class.takes(name);
            if !stays && warnings.len() < MAX_WARNINGS {
                let name = quoted(name, 40);
                warnings.push(format!("{title} has no input {name} in this ComfyUI: its link was left out"));
            }
            stays
        });
    }
    let prompt = &*prompt;
    for Link { id, user, input, from, source, output } in links(prompt) {
        if known_class(known, source).is_some_and(|class| !class.gives(output)) {
            let from = quoted(from, 40);
            let problem = format!("it is linked to output {output} of node {from}, which is not there");
            return Err(refused(id, user, &problem, input));
        }
    }
    for (id, node) in prompt {
        for (name, value) in node.get("inputs").and_then(Value::as_object).into_iter().flatten() {
            let Some(class) = known_class(known, node) else { continue };
            if linked(value).is_some() && opens_files(node) && class.names_a_file(name) {
                return Err(refused(
                    id,
                    node,
                    "it must name a file, not be a link: what it names is checked",
                    name,
                ));
            }
            let value = unwrapped(value);
            let is_out = |text: &str| leads_out(text) && class.chooses(name, text) == Some(false);
            if value.as_str().is_some_and(is_out) || class.has_widget(name) && holds_path_out(value) {
                return Err(refused(id, node, "it must name something in its folder", name));
            }
        }
    }
    let outputs =
        prompt.values().filter(|node| known_class(known, node).is_some_and(|class| class.is_output)).count();
    if outputs > MAX_OUTPUT_NODES {
        let problem = format!("workflow: {outputs} nodes make outputs, more than {MAX_OUTPUT_NODES}");
        return Err(Failure::Invalid(problem));
    }
    Ok(warnings)
}

fn known_class<'a>(known: &'a HashMap<String, Arc<NodeClass>>, node: &Value) -> Option<&'a NodeClass> {
    known.get(class_of(node)?).map(Arc::as_ref)
}

/// Whether a class of ComfyUI's own opens files that its inputs name.
fn opens_files(node: &Value) -> bool {
    class_of(node).is_some_and(|class| class.starts_with("Load") || class == "Painter")
}

/// Whether a path leaves the folder that it is looked for in, or is that of a preview: those of all jobs lie in one folder,
/// and a node keeps the random part of their names for the next job that has it.
fn leads_out(path: &str) -> bool {
    path.starts_with(['/', '~'])
        || path.split(['/', '\\']).any(|part| part == ".." || part.starts_with("ComfyUI_temp_"))
}

fn holds_path_out(value: &Value) -> bool {
    match value {
        Value::String(text) => leads_out(text),
        Value::Array(values) => values.iter().any(holds_path_out),
        Value::Object(fields) => fields.values().any(holds_path_out),
        _ => false,
    }
}

/// An input that is linked to a node that is there.
struct Link<'a> {
    id: &'a str,
    user: &'a Value,
    input: &'a str,
    from: &'a str,
    source: &'a Value,
    output: &'a Value,
}

fn links(prompt: &Prompt) -> impl Iterator<Item = Link<'_>> {
    prompt.iter().flat_map(move |(id, user)| {
        let inputs = user.get("inputs").and_then(Value::as_object).into_iter().flatten();
        inputs.filter_map(move |(input, value)| {
            let (from, output) = linked(value)?;
            let source = prompt.get(from)?;
            Some(Link { id, user, input, from, source, output })
        })
    })
}

fn class_of(node: &Value) -> Option<&str> {
    node.get("class_type")?.as_str()
}

/// Of nodes with these `users`, each of which waits for so many; of a ring, and what takes from it, each could follow all
/// others.
fn longest_row(users: &mut [Vec<usize>], mut open: Vec<usize>) -> usize {
    let count = users.len();
    let mut rows = vec![1_usize; count];
    let mut known: Vec<_> = (0..count).filter(|at| open[*at] == 0).collect();
    let mut done = 0;
    while let Some(from) = known.pop() {
        done += 1;
        for user in std::mem::take(&mut users[from]) {
            rows[user] = rows[user].max(rows[from] + 1);
            open[user] -= 1;
            if open[user] == 0 {
                known.push(user);
            }
        }
    }
    rows.iter().max().copied().unwrap_or_default() + count - done
}

/// The node that an input comes from, and which of its outputs, by ComfyUI's rule: for Python `true` is 1.
fn linked(value: &Value) -> Option<(&str, &Value)> {
    match unwrapped(value).as_array()?.as_slice() {
        [Value::String(node), output @ (Value::Number(_) | Value::Bool(_))] => Some((node, output)),
        _ => None,
    }
}

/// What ComfyUI takes for an input's value: a list that is none of links is given as `{"__value__": […]}`.
pub(super) fn unwrapped(value: &Value) -> &Value {
    value.get("__value__").unwrap_or(value)
}

fn title_of(id: &str, node: &Value) -> String {
    format!("node {} ({})", one_line(id, 40), one_line(class_of(node).unwrap_or_default(), 80))
}

fn refused(id: &str, node: &Value, problem: &str, input: &str) -> Failure {
    let place = if input.is_empty() { String::new() } else { format!(", input {}", quoted(input, 40)) };
    let told = format!("{}{place}: {problem}", title_of(id, node));
    let class = node.get("class_type").cloned().unwrap_or_default();
    let error =
        json!({"type": "bad_link", "message": problem, "details": one_line(input, 80), "extra_info": {}});
    let entry = json!({"errors": [error], "dependent_outputs": [], "class_type": class});
    let node_errors = Map::from_iter([(one_line(id, 80), entry)]);
    Failure::PromptRefused { message: told, node_errors: Some(Value::Object(node_errors)) }
}

#[cfg(test)]
#[path = "prompt_check_tests.rs"]
mod tests;
