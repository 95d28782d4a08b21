//! How long prompts of one kind took, node by node: what tells how near its end the next one is.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use contract::{
    prompt::{Prompt, is_model_name},
    result::NodeTiming,
};
use moka::sync::Cache;
use serde_json::Value;

/// Kinds that are remembered, the least used forgotten.
const KINDS: u64 = 256;
/// A longer string is a text.
const LONGEST_CHOICE: usize = 128;

/// The expected time of each node; one that is missing has never been seen at work.
pub type NodeTimes = BTreeMap<String, Duration>;

/// What past prompts took. Clones share it.
#[derive(Clone, Debug)]
pub struct Forecasts(Cache<u64, Arc<NodeTimes>>);

impl Default for Forecasts {
    fn default() -> Self {
        Self(Cache::new(KINDS))
    }
}

impl Forecasts {
    /// What the nodes of such a prompt take; empty for the first of its kind.
    #[must_use]
    pub fn of(&self, prompt: &Prompt) -> Arc<NodeTimes> {
        self.0.get(&kind(prompt)).unwrap_or_default()
    }

    /// Learns from a prompt that has run: half the old, half the new. A node that ComfyUI had no need
    /// to run, a lazy branch, takes nothing; one that was cached says nothing.
    pub fn learn(&self, prompt: &Prompt, timings: &BTreeMap<String, NodeTiming>) {
        let kind = kind(prompt);
        let mut times = self.0.get(&kind).map_or_else(NodeTimes::new, |known| (*known).clone());
        for node in prompt.keys() {
            let took = match timings.get(node) {
                Some(timing) if timing.cached => continue,
                Some(timing) => Duration::try_from_secs_f64(timing.ms / 1000.0).unwrap_or_default(),
                None => Duration::ZERO,
            };
            times.entry(node.clone()).and_modify(|known| *known = (*known + took) / 2).or_insert(took);
        }
        self.0.insert(kind, Arc::new(times));
    }
}

/// Nodes, links, and the values that may decide how long they take: sizes, steps, models; not seeds,
/// texts and files, which differ from job to job.
fn kind(prompt: &Prompt) -> u64 {
    let mut nodes: Vec<_> = prompt.iter().collect();
    nodes.sort_by_key(|(id, _)| *id);
    let mut hasher = DefaultHasher::new();
    for (id, node) in nodes {
        (id, node.get("class_type").and_then(Value::as_str)).hash(&mut hasher);
        let inputs = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
        let mut inputs: Vec<_> =
            inputs.filter_map(|(name, value)| Some((name, decisive(name, value)?))).collect();
        inputs.sort_unstable();
        inputs.hash(&mut hasher);
    }
    hasher.finish()
}

fn decisive(name: &str, value: &Value) -> Option<String> {
    match value {
        Value::Number(_) if name.ends_with("seed") => None,
        Value::String(text) if text.contains(char::is_whitespace) => None,
        Value::String(text) if text.contains('/') && !is_model_name(text) => None,
        Value::String(text) if text.len() > LONGEST_CHOICE => None,
        value => Some(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    fn prompt(seed: u64, source: &str) -> Prompt {
        let file = format!("job-{seed}/cat.bin");
        let prompt = json!({
            "1": {"class_type": "Load", "inputs": {"noise_seed": seed, "text": format!("a cat, {seed}"), "image": file}},
            "2": {"class_type": "Save", "inputs": {"images": [source, 0]}},
            "3": {"class_type": "Lazy", "inputs": {}},
        });
        prompt.as_object().unwrap().clone()
    }

    fn timings(of: &[(&str, f64, bool)]) -> BTreeMap<String, NodeTiming> {
        of.iter()
            .map(|(id, ms, cached)| ((*id).to_owned(), NodeTiming { ms: *ms, cached: *cached }))
            .collect()
    }

    #[test]
    fn a_kind_is_known_whatever_its_seeds_texts_and_files() {
        let forecasts = Forecasts::default();
        assert!(forecasts.of(&prompt(1, "1")).is_empty());
        forecasts.learn(&prompt(1, "1"), &timings(&[("1", 100.0, false), ("2", 10.0, false)]));
        let known = forecasts.of(&prompt(2, "1"));
        assert_eq!(known["1"], Duration::from_millis(100));
        assert_eq!(known["3"], Duration::ZERO, "it had no need to run");
        assert!(forecasts.of(&prompt(1, "3")).is_empty(), "other links, other work");
        for (name, value) in
            [("steps", json!(4)), ("model", json!("sd/xl.safetensors")), ("sampler", json!("euler"))]
        {
            let mut other = prompt(1, "1");
            other["1"]["inputs"][name] = value;
            assert!(forecasts.of(&other).is_empty(), "{name}");
        }
    }

    #[test]
    fn a_cached_node_says_nothing_and_later_runs_count_more() {
        let forecasts = Forecasts::default();
        forecasts.learn(&prompt(1, "1"), &timings(&[("1", 0.0, true), ("2", 10.0, false)]));
        assert!(!forecasts.of(&prompt(1, "1")).contains_key("1"));
        forecasts.learn(&prompt(1, "1"), &timings(&[("1", 100.0, false), ("2", 30.0, false)]));
        let known = forecasts.of(&prompt(1, "1"));
        assert_eq!((known["1"], known["2"]), (Duration::from_millis(100), Duration::from_millis(20)));
    }
}
