//! Cache of conversions, by the workflow, the frontend's version and the server's node
//! definitions.

use std::time::Duration;

use moka::sync::Cache;
use serde_json::Value;

use super::{
    Conversion,
    convert::{self, Answer},
    page::FrontendVersion,
};
use crate::checksum;

/// Nothing that an extension of the frontend does unseen, such as writing a date, stays for longer.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Of the page's answers, as text.
const LARGEST_BYTES: u64 = 32 << 20;

/// What the page answered to workflows, the least used forgotten first.
#[derive(Debug)]
pub(super) struct ConversionCache(Cache<Key, String>);

/// A digest of all that an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn new(text: &str, served: &FrontendVersion) -> Self {
        let mut sum = checksum::RunningChecksum::default();
        for part in [&served.frontend, &served.definitions] {
            sum.update(part.as_bytes());
            sum.update(&[0]);
        }
        sum.update(text.as_bytes());
        Self(sum.finish())
    }
}

impl ConversionCache {
    pub(super) fn new() -> Self {
        let weigh = |_: &Key, text: &String| u32::try_from(text.len()).unwrap_or(u32::MAX);
        Self(Cache::builder().max_capacity(LARGEST_BYTES).weigher(weigh).time_to_live(LIFETIME).build())
    }

    /// What `workflow` became before.
    pub(super) fn get(&self, key: &Key, workflow: &Value) -> Option<Conversion> {
        match Answer::parse(self.0.get(key)?) {
            Ok(Answer::Converted { prompt, workflow: saved, .. }) => {
                Some(Conversion::new(prompt, saved, workflow))
            }
            _ => None,
        }
    }

    /// Keeps an answer, unless the workflow's next conversion may be another.
    pub(super) fn put(&self, key: Key, workflow: &Value, answer: String) {
        if !convert::is_dynamic(workflow) {
            self.0.insert(key, answer);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn served(frontend: &str, definitions: &str) -> FrontendVersion {
        FrontendVersion { frontend: frontend.into(), definitions: definitions.into() }
    }

    #[test]
    fn a_key_holds_all_that_an_answer_depends_on() {
        let key = Key::new("{}", &served("1.27", "ab"));
        assert_eq!(key, Key::new("{}", &served("1.27", "ab")));
        assert_ne!(key, Key::new("{ }", &served("1.27", "ab")));
        assert_ne!(key, Key::new("{}", &served("1.28", "ab")));
        assert_ne!(key, Key::new("{}", &served("1.27", "b")));
        assert_ne!(key, Key::new("{}", &served("1.27a", "b")));
    }

    #[test]
    fn what_may_change_is_not_kept_and_the_rest_is_bounded() {
        let known = ConversionCache::new();
        let key = Key::new("{}", &served("1", ""));
        let answer = |size: usize| format!(r#"{{"output": {{}}, "workflow": "{}"}}"#, "x".repeat(size));
        known.put(key.clone(), &json!({"nodes": [{"widgets_values": ["a {red|blue} fox"]}]}), answer(1));
        assert!(known.get(&key, &json!({})).is_none());
        known.put(key.clone(), &json!({"nodes": [{"widgets_values": ["a red fox"]}]}), answer(1));
        assert!(known.get(&key, &json!({})).is_some());
        for number in 0..100 {
            let key = Key::new(&number.to_string(), &served("1", ""));
            known.put(key, &json!({}), answer(1 << 20));
        }
        known.0.run_pending_tasks();
        assert!(known.0.weighted_size() <= LARGEST_BYTES, "{}", known.0.weighted_size());
    }
}
