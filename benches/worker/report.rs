//! The figures as a table (also Markdown), as JSON, and the machine they come from.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testbed::Machine;

use crate::figure::Figure;

/// Around the figures in docs/performance.md.
const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- /figures -->";

/// Where it was measured, and how.
pub(crate) struct Conditions {
    pub(crate) machine: Machine,
    pub(crate) quick: bool,
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quick = if self.quick { "; small sizes (--quick)" } else { "" };
        write!(f, "{}{quick}", self.machine)
    }
}

/// A table that is good to read in a terminal and in Markdown.
pub(crate) fn table(figures: &[Figure]) -> String {
    let rows: Vec<[String; 6]> = figures
        .iter()
        .map(|figure| {
            [
                figure.name.clone(),
                figure.engine.to_owned(),
                figure.shown_value(),
                figure.shown_goal(),
                figure.verdict(),
                figure.beside.clone(),
            ]
        })
        .collect();
    testbed::table(["figure", "on", "value", "goal", "", "beside"], &rows)
}

/// What bounds the figures that do not hold, a line each.
pub(crate) fn bounds(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figure in figures.iter().filter(|figure| figure.holds() == Some(false)) {
        let on = if figure.engine.is_empty() { String::new() } else { format!(", {}", figure.engine) };
        let _ = writeln!(text, "- {}{on}: {}.", figure.name, figure.bound);
    }
    text
}

/// The document with these figures in place of those it has.
pub(crate) fn in_document(document: &str, figures: &[Figure], conditions: &Conditions) -> Result<String> {
    let (before, rest) = document.split_once(BEGIN).context("docs/performance.md has no figures")?;
    let (_, after) = rest.split_once(END).context("the figures of docs/performance.md do not end")?;
    let bounds = bounds(figures);
    let bounds =
        if bounds.is_empty() { bounds } else { format!("\nWhat bounds those that miss:\n\n{bounds}") };
    Ok(format!(
        "{before}{BEGIN}\n{conditions}, which worker, RabbitMQ, S3 server and ComfyUI share:\n\n{}{bounds}{END}{after}",
        table(figures)
    ))
}

pub(crate) fn json(figures: &[Figure], conditions: &Conditions) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": conditions.machine,
        "quick": conditions.quick,
        "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
    })
}
