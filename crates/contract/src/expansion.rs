//! How many nodes a UI workflow becomes. A subgraph or group node is as many as its definition has, and
//! those may be subgraphs again: a few kilobytes can be billions.

use std::{borrow::Cow, collections::HashMap};

use serde_json::Value;

use crate::text::one_line;

/// Subgraphs within subgraphs: the ids of the nodes in them grow with each level.
const DEEPEST: u32 = 64;

/// Nodes that the workflow becomes, its subgraphs among them; at least those that it lists. Saturates,
/// and takes time in proportion to the workflow.
///
/// # Errors
/// Subgraphs that contain themselves, or are nested too deep.
pub(crate) fn nodes(workflow: &Value) -> Result<u64, String> {
    let definitions = Definitions::of(workflow);
    let own = list(&workflow["nodes"]);
    let listed = definitions.all.iter().map(Definition::len).sum::<usize>() + own.len();
    let count = definitions.count.max(listed) as u64;
    let sizes = definitions.sizes()?;
    let expanded = own
        .iter()
        .map(|node| definitions.find(node).map_or(1, |at| sizes[at].saturating_add(1)))
        .fold(0, u64::saturating_add);
    Ok(expanded.max(count))
}

/// What stands for several nodes, by the node type that it is used as.
struct Definitions<'a> {
    count: usize,
    all: Vec<Definition<'a>>,
    by_type: HashMap<String, usize>,
}

struct Definition<'a> {
    name: Cow<'a, str>,
    /// Of all that are used as this type: which one the frontend takes does not matter.
    parts: Vec<&'a [Value]>,
}

impl Definition<'_> {
    fn len(&self) -> usize {
        self.parts.iter().map(|parts| parts.len()).sum()
    }
}

impl<'a> Definitions<'a> {
    fn of(workflow: &'a Value) -> Self {
        let mut found = Self { count: 0, all: Vec::new(), by_type: HashMap::new() };
        let mut pending = vec![workflow];
        while let Some(within) = pending.pop() {
            for subgraph in list(&within["definitions"]["subgraphs"]) {
                let id = subgraph["id"].as_str().unwrap_or_default();
                found.add(as_the_page_has_it(id), id.into(), &subgraph["nodes"]);
                pending.push(subgraph);
            }
        }
        for (name, group) in entries(&workflow["extra"]["groupNodes"]) {
            let kind = as_the_page_has_it(&format!("workflow>{name}"));
            found.add(kind, name, &group["nodes"]);
        }
        found
    }

    fn add(&mut self, kind: String, name: Cow<'a, str>, parts: &'a Value) {
        self.count += 1;
        let at = *self.by_type.entry(kind).or_insert(self.all.len());
        if at == self.all.len() {
            self.all.push(Definition { name, parts: Vec::new() });
        }
        self.all[at].parts.push(list(parts));
    }

    fn find(&self, node: &Value) -> Option<usize> {
        let kind = Some(&node["type"]).filter(|kind| kind.is_string() || kind.is_array())?;
        self.by_type.get(&as_the_page_has_it(&as_a_name(kind))).copied()
    }

    /// How many nodes each one is: innermost first.
    fn sizes(&self) -> Result<Vec<u64>, String> {
        let count = self.all.len();
        let (mut sizes, mut levels, mut open) =
            (vec![0_u64; count], vec![1_u32; count], vec![0_usize; count]);
        let mut users = vec![Vec::new(); count];
        for (at, definition) in self.all.iter().enumerate() {
            sizes[at] = definition.len() as u64;
            for inner in definition.parts.iter().copied().flatten().filter_map(|part| self.find(part)) {
                users[inner].push(at);
                open[at] += 1;
            }
        }
        let mut known: Vec<_> = (0..count).filter(|at| open[*at] == 0).collect();
        let mut done = 0;
        while let Some(inner) = known.pop() {
            done += 1;
            for at in users[inner].drain(..) {
                sizes[at] = sizes[at].saturating_add(sizes[inner]);
                levels[at] = levels[at].max(levels[inner] + 1);
                open[at] -= 1;
                if open[at] == 0 {
                    known.push(at);
                }
            }
        }
        let named = |at: usize| one_line(&self.all[at].name, 60);
        if done < count {
            let at = open.iter().position(|open| *open > 0).unwrap_or_default();
            return Err(format!("subgraph {} contains itself, or one that does", named(at)));
        }
        match levels.iter().position(|levels| *levels > DEEPEST) {
            Some(at) => {
                Err(format!("in subgraph {} others are nested deeper than {DEEPEST} levels", named(at)))
            }
            None => Ok(sizes),
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// What the frontend finds in it by name: a list has its positions for names.
fn entries(value: &Value) -> Box<dyn Iterator<Item = (Cow<'_, str>, &Value)> + '_> {
    match value {
        Value::Object(fields) => Box::new(fields.iter().map(|(name, value)| (name.as_str().into(), value))),
        Value::Array(items) => {
            Box::new(items.iter().enumerate().map(|(position, value)| (position.to_string().into(), value)))
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// What JavaScript looks up for a type that is no text: `["x"]` is as good as `"x"`.
fn as_a_name(kind: &Value) -> Cow<'_, str> {
    match kind {
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(as_a_name).collect::<Vec<_>>().join(",").into(),
        _ => Cow::default(),
    }
}

/// The frontend takes characters out of types that it does not know, and changes an old separator; what
/// is then the name of a definition is one.
fn as_the_page_has_it(kind: &str) -> String {
    let kind: String = kind.chars().filter(|character| !"&<>\"'`=".contains(*character)).collect();
    match kind.strip_prefix("workflow/") {
        Some(name) => format!("workflow{name}"),
        None => kind,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::{Duration, Instant};

    use serde_json::json;

    use super::*;

    fn of(kinds: &[&str]) -> Value {
        kinds.iter().map(|kind| json!({"type": kind})).collect()
    }

    fn workflow(nodes: &[&str], subgraphs: &[(&str, &[&str])]) -> Value {
        let subgraphs: Vec<_> =
            subgraphs.iter().map(|(id, nodes)| json!({"id": id, "nodes": of(nodes)})).collect();
        json!({"nodes": of(nodes), "definitions": {"subgraphs": subgraphs}})
    }

    #[test]
    fn each_use_of_a_definition_counts() {
        assert_eq!(nodes(&workflow(&["A", "B"], &[])), Ok(2));
        // Unused ones are loaded, too.
        assert_eq!(nodes(&workflow(&["A"], &[("s", &["A", "B"])])), Ok(3));
        assert_eq!(nodes(&workflow(&["s", "s", "s"], &[("s", &["A", "B"])])), Ok(9));
        assert_eq!(nodes(&workflow(&["s", "t"], &[("s", &["t", "t"]), ("t", &["A", "B", "C"])])), Ok(13));
        assert_eq!(nodes(&workflow(&[], &[("s", &[]), ("t", &[]), ("u", &[])])), Ok(3));
        assert_eq!(
            nodes(&json!({"nodes": [7, {}, {"type": 7}], "definitions": {"subgraphs": [7, {}]}})),
            Ok(3)
        );
    }

    #[test]
    fn subgraphs_within_definitions_and_group_nodes_count_too() {
        let mut nested = workflow(&["s"], &[("s", &["t", "t"])]);
        nested["definitions"]["subgraphs"][0]["definitions"] =
            json!({"subgraphs": [{"id": "t", "nodes": of(&["A", "B"])}]});
        assert_eq!(nodes(&nested), Ok(7));
        for (kind, name) in [
            ("workflow>pair", "pair"),
            ("workflow/pair", "pair"),
            ("workflow>a<b", "ab"),
            ("workflow/ab", "a'b"),
        ] {
            let mut grouped = workflow(&[kind, kind], &[]);
            grouped["extra"]["groupNodes"] = json!({name: {"nodes": of(&["A", "B"])}});
            assert_eq!(nodes(&grouped), Ok(6), "{kind}");
        }
        assert_eq!(nodes(&workflow(&["<s>", "'s'"], &[("s", &["A", "B"])])), Ok(6));
        // The page takes lists for names, and their positions for names of what they hold.
        let listed = json!({"nodes": [{"type": ["s"]}, {"type": [["s"]]}, {"type": [["s", null]]}], "definitions":
            {"subgraphs": [{"id": "s", "nodes": of(&["A", "B"])}]}});
        assert_eq!(nodes(&listed), Ok(7));
        let mut grouped = workflow(&["workflow>1", "workflow>1"], &[]);
        grouped["extra"]["groupNodes"] = json!([{"nodes": of(&["A", "B"])}, {"nodes": of(&["workflow>0"])}]);
        assert_eq!(nodes(&grouped), Ok(8));
        // Two that are used as one type count together.
        assert_eq!(nodes(&workflow(&["s"; 9], &[("s", &["A"]), ("s", &["A"; 5]), ("s", &["A"])])), Ok(72));
    }

    #[test]
    fn what_would_never_end_is_counted_at_once() {
        let ids: Vec<_> = (0..=DEEPEST).map(|level| format!("level-{level}")).collect();
        let doubled = |levels: usize| {
            let subgraphs: Vec<_> = (0..levels)
                .map(|level| match level {
                    0 => json!({"id": ids[0], "nodes": of(&["A"; 10])}),
                    _ => json!({"id": ids[level], "nodes": of(&[ids[level - 1].as_str(); 10])}),
                })
                .collect();
            json!({"nodes": of(&[&ids[levels - 1]]), "definitions": {"subgraphs": subgraphs}})
        };
        let begun = Instant::now();
        assert_eq!(nodes(&doubled(3)), Ok(1 + 10 + 100 + 1000));
        assert_eq!(nodes(&doubled(64)), Ok(u64::MAX));
        assert_eq!(
            nodes(&doubled(65)),
            Err("in subgraph level-64 others are nested deeper than 64 levels".into())
        );
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        for endless in [
            workflow(&["A"], &[("s", &["s"])]),
            workflow(&["s"], &[("s", &["A", "t"]), ("t", &["u"]), ("u", &["s"])]),
            json!({"nodes": [], "extra": {"groupNodes": {"g": {"nodes": of(&["workflow/g"])}}}}),
        ] {
            assert!(nodes(&endless).unwrap_err().contains("contains itself"), "{endless}");
        }
    }

    #[test]
    fn many_definitions_take_no_longer_than_their_text() {
        let many: Vec<_> =
            (0..100_000).map(|id| json!({"id": id.to_string(), "nodes": of(&["x", "y"])})).collect();
        let begun = Instant::now();
        assert_eq!(nodes(&json!({"nodes": [], "definitions": {"subgraphs": many}})), Ok(200_000));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}
