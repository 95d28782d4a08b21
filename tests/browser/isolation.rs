//! No workflow changes what another becomes: hostile ones, drawn at random, then a fair one on the same
//! page, which must become what a fresh page made of it.
//!
//! `ISOLATION_SEED` repeats a run, `ISOLATION_SECONDS` is how long each frontend is tried.

use std::{
    env,
    time::{Duration, Instant},
};

use connector::browser::ConvertError;
use serde_json::{Value, json};
use testbed::RunningEngine;
use uuid::Uuid;

use crate::{
    draw::{Draw, ID, fair},
    frontends,
    kinds::{grouped, promoted},
    started::Started,
    workflows::{nested, node, simple, workflow},
};

fn given(name: &str, default: impl FnOnce() -> u64) -> u64 {
    match env::var(name).ok().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")),
        None => default(),
    }
}

fn without(mut workflow: Value, part: &str) -> Value {
    workflow.pointer_mut(part).unwrap().take();
    workflow
}

/// What hostile workflows are to leave alone: each with the ids and names that those use, too.
fn fair_ones() -> Vec<(&'static str, Value)> {
    let defaults = |kind: &str| workflow(&[node(1, kind, &[], &[], json!(null))], json!([]));
    let rerouted = workflow(
        &[
            node(1, "EmptyImage", &[], &[("IMAGE", "IMAGE", json!([1]))], json!([64, 32, 1, 7])),
            node(4, "Reroute", &[("", "*", json!(1))], &[("", "IMAGE", json!([2]))], json!([])),
            node(3, "SaveImage", &[("images", "IMAGE", json!(2))], &[], json!(["x"])),
        ],
        json!([[1, 1, 0, 4, 0, "IMAGE"], [2, 4, 0, 3, 0, "IMAGE"]]),
    );
    let mut ones = vec![
        ("no subgraphs", without(nested("ImageInvert"), "/definitions")),
        ("no group nodes", without(grouped("workflow>pair"), "/extra/groupNodes")),
        ("a plain one", simple(&json!(7))),
        ("a sampler", fair(&mut Draw::of(7))),
        ("an image's defaults", defaults("EmptyImage")),
        ("a sampler's defaults", defaults("KSampler")),
        ("a saver's defaults", defaults("SaveImage")),
        ("a loader's defaults", defaults("LoadImage")),
        ("a reroute", rerouted),
        ("subgraphs", nested("ImageInvert")),
        ("a group node", grouped("workflow>pair")),
        ("a group node of old", grouped("workflow/pair")),
        ("a promoted widget", promoted(false)),
        ("a proxied widget", promoted(true)),
    ];
    for (_, workflow) in &mut ones {
        workflow["id"] = ID.into();
    }
    ones
}

struct Trial<'a> {
    started: &'a Started,
    conversions: u64,
}

impl Trial<'_> {
    /// What becomes of the workflow, without what is new each time.
    async fn outcome(&mut self, workflow: &Value) -> Result<Value, ConvertError> {
        // None that is known.
        let mut numbered = workflow.clone();
        self.conversions += 1;
        numbered["extra"]["number"] = self.conversions.into();
        let converted = self.started.browser.convert(&numbered).await?;
        let mut saved = converted.workflow;
        saved["extra"]["number"].take();
        saved["extra"]["ds"].take();
        let mut made = json!({"prompt": converted.prompt, "workflow": saved, "warnings": converted.warnings});
        hide_new_ids(&mut made, &workflow.to_string());
        Ok(made)
    }

    /// The same in a page that has seen no other workflow.
    async fn alone(&mut self, workflow: &Value) -> String {
        // After a refusal the page is another one.
        let unknown = self.outcome(&nested("Unknown")).await;
        assert!(matches!(unknown, Err(ConvertError::MissingNodes(_))), "{unknown:?}");
        told(self.outcome(workflow).await)
    }
}

fn told(outcome: Result<Value, ConvertError>) -> String {
    outcome.map_or_else(|error| error.to_string(), |made| serde_json::to_string_pretty(&made).unwrap())
}

/// Definitions that the frontend makes of group nodes have ids by chance.
fn hide_new_ids(made: &mut Value, source: &str) {
    match made {
        Value::String(text) if Uuid::try_parse(text).is_ok() && !source.contains(text.as_str()) => {
            *text = "(new)".into();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| hide_new_ids(item, source)),
        Value::Object(fields) => fields.values_mut().for_each(|value| hide_new_ids(value, source)),
        _ => {}
    }
}

async fn try_on(server: &RunningEngine) {
    let seed = given("ISOLATION_SEED", Draw::fresh_seed);
    let limit = Duration::from_secs(given("ISOLATION_SECONDS", || 15));
    let started = Started::limited_on(server, Duration::from_secs(20)).await;
    println!("frontend {}: ISOLATION_SEED={seed}, {limit:?}", started.browser.frontend_version().unwrap());
    let mut trial = Trial { started: &started, conversions: 0 };
    let mut fair = Vec::new();
    // Each in a page of its own, where there is time.
    let long = limit > Duration::from_secs(60);
    for (name, workflow) in fair_ones() {
        let expected = if long { trial.alone(&workflow).await } else { told(trial.outcome(&workflow).await) };
        fair.push((name, workflow, expected));
    }

    let mut draw = Draw::of(seed);
    let begun = Instant::now();
    // Since this page was opened, as far as that shows.
    let mut before: Vec<Value> = Vec::new();
    let (mut hostile, mut refused, mut compared) = (0, 0, 0);
    // However slow the machine: most that are drawn are refused.
    while begun.elapsed() < limit || refused == hostile {
        assert!(hostile < 1_000, "{hostile} workflows, and all are refused");
        for _ in 0..=draw.below(4) {
            let workflow = draw.hostile();
            hostile += 1;
            if trial.outcome(&workflow).await.is_ok() {
                before.push(workflow);
            } else {
                refused += 1;
            }
        }
        // The first two lack definitions that hostile ones have.
        let count = if draw.one_in(4) { 2 } else { fair.len() };
        let (name, workflow, expected) = &fair[draw.below(count)];
        let found = told(trial.outcome(workflow).await);
        compared += 1;
        let last: Vec<_> = before.iter().rev().take(6).rev().map(Value::to_string).collect();
        assert!(
            found == *expected,
            "ISOLATION_SEED={seed}, comparison {compared}, {name}:\n{}\nafter\n{}",
            difference(expected, &found),
            last.join("\n")
        );
    }
    println!("{hostile} hostile workflows, {refused} refused; {compared} comparisons, none differs");
    started.browser.shutdown().await;
}

/// The lines that differ.
fn difference(expected: &str, found: &str) -> String {
    let only = |mark: char, one: &str, other: &str| {
        let other: Vec<_> = other.lines().collect();
        let lines = one.lines().filter(|line| !other.contains(line)).take(20);
        lines.map(|line| format!("{mark} {line}\n")).collect::<String>()
    };
    only('-', expected, found) + &only('+', found, expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_workflow_changes_another_on_the_pinned_frontend() {
    try_on(frontends::pinned().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_workflow_changes_another_on_the_newest_frontend() {
    try_on(frontends::newest().await).await;
}
