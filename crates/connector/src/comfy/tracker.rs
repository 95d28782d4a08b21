//! One prompt's progress, out of its websocket events. Pure: recorded transcripts replay through it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use contract::{
    prompt::{Prompt, node_title},
    result::NodeTiming,
};
use serde_json::Value;

use super::{
    events::{Event, Image, NodeProgress},
    forecast::NodeTimes,
};

/// What an event means for the one who waits.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing new.
    Nothing,
    /// The prompt left the queue and runs.
    Started,
    /// There is progress to tell.
    Progress(Progress),
    /// A preview to show.
    Preview(Image),
    /// An output that exists only here.
    Output(OutputImage),
    /// A node is done: its entry of the history's `outputs`.
    Executed {
        /// The node.
        node: String,
        /// The entry.
        outputs: Value,
    },
    /// The prompt is over: read the history.
    Ended,
}

/// How far a prompt is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The node that runs.
    pub node: String,
    /// Its title.
    pub title: String,
    /// Its steps done.
    pub value: f64,
    /// Its steps in all.
    pub max: f64,
    /// Of the whole prompt, 0 to 1: nodes weigh the same. Never goes back.
    pub fraction: f64,
    /// What is left of the whole prompt, where its node's steps and past prompts tell.
    pub left: Option<Duration>,
}

/// A picture that a node sent over the websocket as its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputImage {
    /// The node.
    pub node: String,
    /// Position among that node's.
    pub index: usize,
    /// The picture.
    pub image: Image,
}

/// A stretch of time in which a node ran, since the moment that the tracker's times are counted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRun {
    /// The node; those that it made of itself have ids of their own.
    pub node: String,
    /// When it began.
    pub begin: Duration,
    /// How long it took.
    pub took: Duration,
}

/// More than any prompt of people's: a loop of nodes could go on forever.
const MAX_RUNS: usize = 10_000;

/// Follows one prompt. Times are since any fixed moment, on a clock that never goes back.
#[derive(Debug)]
pub struct Tracker {
    titles: HashMap<String, String>,
    known: Arc<NodeTimes>,
    socket_outputs: HashSet<String>,
    sent: HashMap<String, usize>,
    running: Option<(String, Duration)>,
    steps: (f64, f64),
    timings: BTreeMap<String, NodeTiming>,
    runs: Vec<NodeRun>,
    started: bool,
    ended: bool,
    furthest: f64,
}

impl Tracker {
    /// For this prompt.
    #[must_use]
    pub fn new(prompt: &Prompt) -> Self {
        let sends_outputs = |id: &&String| {
            let class = prompt.get(*id).and_then(|node| node.get("class_type")?.as_str()).unwrap_or_default();
            class.to_ascii_lowercase().contains("websocket")
        };
        Self {
            titles: prompt.keys().map(|id| (id.clone(), node_title(prompt, id))).collect(),
            known: Arc::default(),
            socket_outputs: prompt.keys().filter(sends_outputs).cloned().collect(),
            sent: HashMap::new(),
            running: None,
            steps: (0.0, 1.0),
            timings: BTreeMap::new(),
            runs: Vec::new(),
            started: false,
            ended: false,
            furthest: 0.0,
        }
    }

    /// Tells what is left by what such nodes took.
    #[must_use]
    pub fn knowing(self, known: Arc<NodeTimes>) -> Self {
        Self { known, ..self }
    }

    /// Takes an event of this prompt.
    pub fn step(&mut self, event: Event, now: Duration) -> Step {
        match event {
            Event::Started => return self.start(),
            Event::Cached(nodes) => {
                self.start();
                for node in nodes {
                    self.timings.insert(node, NodeTiming { ms: 0.0, cached: true });
                }
            }
            Event::Executing(None) => {
                self.leave_node(now);
                // Told once: whatever comes after it is no news.
                return if std::mem::replace(&mut self.ended, true) { Step::Nothing } else { Step::Ended };
            }
            Event::Executing(Some(node)) => {
                self.enter_node(node, now);
                return self.progress(now);
            }
            Event::Progress { node, value, max } if self.is_running(&node) => {
                self.steps = (value, max);
                return self.progress(now);
            }
            Event::ProgressState(nodes) => return self.take_state(&nodes, now),
            Event::Image(image) => return self.take_image(image),
            Event::Failed(_) | Event::Interrupted | Event::Succeeded => self.leave_node(now),
            Event::Executed { node, outputs } => return Step::Executed { node, outputs },
            Event::Progress { .. } | Event::Status { .. } | Event::Other(_) => {}
        }
        Step::Nothing
    }

    /// Whether anything has shown that the prompt runs.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.started
    }

    /// Whether the prompt is over.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The nodes whose outputs exist only as websocket frames.
    pub fn socket_outputs(&self) -> impl Iterator<Item = &String> {
        self.socket_outputs.iter()
    }

    /// Whether this prompt has any of those.
    #[must_use]
    pub fn expects_socket_outputs(&self) -> bool {
        !self.socket_outputs.is_empty()
    }

    /// Each node's time so far.
    #[must_use]
    pub fn into_timings(self) -> BTreeMap<String, NodeTiming> {
        self.timings
    }

    /// Each stretch in which a node ran until now, in their order.
    pub fn take_runs(&mut self, now: Duration) -> Vec<NodeRun> {
        self.leave_node(now);
        std::mem::take(&mut self.runs)
    }

    fn start(&mut self) -> Step {
        if std::mem::replace(&mut self.started, true) { Step::Nothing } else { Step::Started }
    }

    fn is_running(&self, node: &str) -> bool {
        self.running.as_ref().is_some_and(|(running, _)| running == node)
    }

    fn enter_node(&mut self, node: String, now: Duration) {
        self.started = true;
        self.leave_node(now);
        self.steps = (0.0, 1.0);
        self.running = Some((node, now));
    }

    fn leave_node(&mut self, now: Duration) {
        if let Some((node, since)) = self.running.take() {
            let took = now.saturating_sub(since);
            if self.runs.len() < MAX_RUNS {
                self.runs.push(NodeRun { node: node.clone(), begin: since, took });
            }
            self.timings.entry(node).or_default().ms += took.as_secs_f64() * 1000.0;
        }
    }

    fn take_state(&mut self, nodes: &BTreeMap<String, NodeProgress>, now: Duration) -> Step {
        let running = self.running.as_ref().and_then(|(node, _)| nodes.get(node));
        match running.filter(|state| state.state == "running" && state.max > 1.0) {
            Some(state) if self.steps != (state.value, state.max) => {
                self.steps = (state.value, state.max);
                self.progress(now)
            }
            _ => Step::Nothing,
        }
    }

    fn take_image(&mut self, image: Image) -> Step {
        let node = image.node.clone().or_else(|| self.running.as_ref().map(|(node, _)| node.clone()));
        match node {
            // Its previews are JPEG; what it outputs comes as PNG.
            Some(node) if self.socket_outputs.contains(&node) && image.content_type == "image/png" => {
                let sent = self.sent.entry(node.clone()).or_default();
                let index = *sent;
                *sent += 1;
                Step::Output(OutputImage { node, index, image })
            }
            _ => Step::Preview(image),
        }
    }

    fn progress(&mut self, now: Duration) -> Step {
        let Some((node, _)) = &self.running else { return Step::Nothing };
        let (value, max) = self.steps;
        let within = if max > 0.0 { (value / max).clamp(0.0, 1.0) } else { 0.0 };
        let done = self.timings.keys().filter(|id| *id != node && self.titles.contains_key(*id)).count();
        let all = self.titles.len().max(1);
        #[allow(clippy::cast_precision_loss)]
        let fraction = ((done as f64 + within) / all as f64).clamp(0.0, 1.0);
        // A node that waits for others (lazy inputs) is entered twice: a bar must not go back.
        self.furthest = self.furthest.max(fraction);
        let title = self.titles.get(node).unwrap_or(node).clone();
        let (node, fraction, left) = (node.clone(), self.furthest, self.left(now));
        Step::Progress(Progress { node, title, value, max, fraction, left })
    }

    /// The rest of the node that runs, by its steps or by what it took before, and of those that have
    /// not run; `None` when one of them is unknown.
    fn left(&self, now: Duration) -> Option<Duration> {
        let (running, since) = self.running.as_ref()?;
        let (spent, (value, max)) = (now.saturating_sub(*since), self.steps);
        let mut left = if value >= 1.0 && max > 1.0 {
            Duration::try_from_secs_f64(spent.as_secs_f64() * (max - value).max(0.0) / value).ok()?
        } else {
            self.known.get(running)?.saturating_sub(spent)
        };
        let waits = |id: &&String| *id != running && !self.timings.contains_key(*id);
        for node in self.titles.keys().filter(waits) {
            left = left.checked_add(*self.known.get(node)?)?;
        }
        Some(left)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn tracker(known: &[(&str, u64)]) -> Tracker {
        let prompt = json!({"1": {"class_type": "A"}, "2": {"class_type": "B"}, "3": {"class_type": "C"}});
        let known = known.iter().map(|(node, took)| ((*node).to_owned(), seconds(*took))).collect();
        Tracker::new(prompt.as_object().unwrap()).knowing(Arc::new(known))
    }

    fn left(step: Step) -> Option<Duration> {
        let Step::Progress(progress) = step else { panic!("no progress: {step:?}") };
        progress.left
    }

    fn enters(node: &str) -> Event {
        Event::Executing(Some(node.to_owned()))
    }

    #[test]
    fn what_is_left_is_what_such_nodes_took() {
        let mut tracker = tracker(&[("1", 10), ("2", 20), ("3", 30)]);
        assert_eq!(left(tracker.step(enters("1"), seconds(0))), Some(seconds(60)));
        assert_eq!(left(tracker.step(enters("2"), seconds(2))), Some(seconds(50)));
        assert_eq!(left(tracker.step(enters("3"), seconds(90))), Some(seconds(30)));
    }

    #[test]
    fn a_cached_node_takes_nothing_and_steps_tell_more_than_the_past() {
        let mut tracker = tracker(&[("1", 10), ("2", 20)]);
        tracker.step(Event::Cached(vec!["3".to_owned()]), seconds(0));
        assert_eq!(left(tracker.step(enters("1"), seconds(0))), Some(seconds(30)));
        let steps = Event::Progress { node: "1".to_owned(), value: 1.0, max: 5.0 };
        assert_eq!(left(tracker.step(steps, seconds(30))), Some(seconds(120 + 20)));
    }

    #[test]
    fn every_run_of_a_node_has_its_time() {
        let mut tracker = tracker(&[]);
        tracker.step(Event::Cached(vec!["3".to_owned()]), seconds(1));
        tracker.step(enters("1"), seconds(1));
        tracker.step(enters("2"), seconds(3));
        // It waited for an input that it asked for while it ran.
        tracker.step(enters("1"), seconds(4));
        let run = |node: &str, begin, took| NodeRun {
            node: node.to_owned(),
            begin: seconds(begin),
            took: seconds(took),
        };
        assert_eq!(tracker.take_runs(seconds(9)), [run("1", 1, 2), run("2", 3, 1), run("1", 4, 5)]);
        assert_eq!(tracker.take_runs(seconds(9)), []);
        assert!((tracker.into_timings()["1"].ms - 7000.0).abs() < 1e-6);
    }

    #[test]
    fn nobody_knows_what_has_never_run() {
        let mut unknown = tracker(&[("1", 10), ("2", 20)]);
        assert_eq!(left(unknown.step(enters("1"), seconds(0))), None, "node 3");
        // The last one's own steps are enough.
        let mut unknown = tracker(&[]);
        unknown.step(Event::Cached(vec!["1".to_owned(), "2".to_owned()]), seconds(0));
        assert_eq!(left(unknown.step(enters("3"), seconds(0))), None);
        let steps = Event::Progress { node: "3".to_owned(), value: 3.0, max: 4.0 };
        assert_eq!(left(unknown.step(steps, seconds(30))), Some(seconds(10)));
    }
}
