//! The nodes of a job as its progress told of them, in that order.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use contract::{result::NodeTiming, text::one_line};
use serde::Serialize;

/// Nodes of a job in hand; of more the first ones go.
const MOST: usize = 300;
/// Nodes of a job that has ended: those that took longest.
const MAX_KEPT: usize = 24;
/// Characters of a node's id and title.
const NAME: usize = 120;

/// What is known of a job's nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: VecDeque<Node>,
    /// How many have begun, and how many of them before the prompt began again.
    begun: u64,
    begun_before: u64,
    /// How many took their outputs from ComfyUI's execution cache; known at the end.
    cached: usize,
}

#[derive(Clone, Debug)]
struct Node {
    revision: u64,
    told: NodeStatus,
}

/// One node as the page gets it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct NodeStatus {
    /// Its place in the order of beginning, from 0.
    number: u64,
    id: String,
    title: String,
    /// Steps done, and steps in all.
    value: f64,
    max: f64,
    /// Unix time in milliseconds.
    began: u64,
    /// How long it ran, once it does no longer.
    ms: Option<u64>,
}

impl Nodes {
    /// A node makes progress: those before it are done.
    pub(super) fn progress(
        &mut self,
        at: u64,
        (id, title): (&str, &str),
        (value, max): (f64, f64),
        revision: u64,
    ) {
        let id = one_line(id, NAME);
        for other in self.nodes.iter_mut().filter(|node| node.told.ms.is_none() && node.told.id != id) {
            other.leave(at, revision);
        }
        if let Some(node) = self.nodes.iter_mut().find(|node| node.told.id == id) {
            // One that waited for others goes on: its time does too.
            let before = node.told.ms.take().unwrap_or_default();
            if before > 0 {
                node.told.began = at.saturating_sub(before);
            }
            (node.told.value, node.told.max, node.revision) = (value, max, revision);
            return;
        }
        let told = NodeStatus {
            number: self.begun,
            id,
            title: one_line(title, NAME),
            value,
            max,
            began: at,
            ms: None,
        };
        self.nodes.push_back(Node { revision, told });
        self.begun += 1;
        if self.nodes.len() > MOST {
            self.nodes.pop_front();
        }
    }

    /// None runs any more.
    pub(super) fn end(&mut self, at: u64, revision: u64) {
        for node in self.nodes.iter_mut().filter(|node| node.told.ms.is_none()) {
            node.leave(at, revision);
        }
    }

    /// The prompt begins again.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.begun_before = self.begun;
    }

    /// The result's times.
    pub(super) fn settle(&mut self, timings: &BTreeMap<String, NodeTiming>, revision: u64) {
        self.cached = timings.values().filter(|timing| timing.cached).count();
        for node in &mut self.nodes {
            if let Some(timing) = timings.get(&node.told.id) {
                let took = Duration::try_from_secs_f64(timing.ms / 1000.0).unwrap_or_default();
                node.told.ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                node.revision = revision;
            }
        }
    }

    /// Leaves those that took longest, the longest first.
    pub(super) fn keep_longest(&mut self) {
        self.nodes.make_contiguous().sort_by_key(|node| std::cmp::Reverse(node.told.ms));
        self.nodes.truncate(MAX_KEPT);
        self.nodes.shrink_to_fit();
    }

    /// Those that changed after `revision`.
    pub(super) fn since(&self, revision: u64) -> Vec<NodeStatus> {
        self.nodes.iter().filter(|node| node.revision > revision).map(|node| node.told.clone()).collect()
    }

    /// The number of the first that is still told of.
    pub(super) fn first(&self) -> u64 {
        self.nodes.iter().map(|node| node.told.number).min().unwrap_or(self.begun)
    }

    /// How many of this prompt have begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun - self.begun_before
    }

    /// How many came out of the execution cache.
    pub(super) fn cached(&self) -> usize {
        self.cached
    }
}

impl Node {
    fn leave(&mut self, at: u64, revision: u64) {
        self.told.ms = Some(at.saturating_sub(self.told.began));
        self.revision = revision;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(nodes: &mut Nodes, at: u64, id: &str) {
        nodes.progress(at, (id, id), (0.0, 1.0), at);
    }

    #[test]
    fn each_has_its_place_and_its_time() {
        let mut nodes = Nodes::default();
        begin(&mut nodes, 10, "a");
        nodes.progress(20, ("a", "a"), (3.0, 4.0), 20);
        begin(&mut nodes, 30, "b");
        // A lazy input: it was entered before.
        begin(&mut nodes, 50, "a");
        nodes.end(70, 70);
        let told: Vec<_> = nodes.since(0).into_iter().map(|node| (node.number, node.id, node.ms)).collect();
        assert_eq!(told, [(0, "a".to_owned(), Some(20 + 20)), (1, "b".to_owned(), Some(20))]);
        assert_eq!(nodes.since(50).len(), 1, "b was left at 50");
        nodes.clear();
        assert_eq!((nodes.first(), nodes.begun()), (2, 0));
    }

    #[test]
    fn they_are_bounded_and_the_first_ones_go() {
        let mut nodes = Nodes::default();
        for number in 0..MOST as u64 + 5 {
            begin(&mut nodes, number, &format!("{number}{}", "x".repeat(1000)));
        }
        assert_eq!((nodes.since(0).len(), nodes.first(), nodes.begun()), (MOST, 5, MOST as u64 + 5));
        assert!(nodes.since(0).iter().all(|node| node.id.chars().count() == NAME + 1));
    }

    #[test]
    fn of_an_ended_job_the_longest_are_kept() {
        let mut nodes = Nodes::default();
        for number in 0..100 {
            begin(&mut nodes, number, &number.to_string());
        }
        let took = |ms: f64, cached| NodeTiming { ms, cached };
        let timings = [("7", took(900.4, false)), ("8", took(f64::NAN, false)), ("x", took(0.0, true))];
        nodes.settle(&timings.map(|(id, timing)| (id.to_owned(), timing)).into(), 200);
        assert_eq!(nodes.since(199).len(), 2);
        nodes.keep_longest();
        let told = nodes.since(0);
        assert_eq!((told.len(), nodes.cached()), (MAX_KEPT, 1));
        assert_eq!((told[0].id.as_str(), told[0].ms), ("7", Some(900)));
    }
}
