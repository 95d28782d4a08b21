//! The figures as a table (also Markdown), as JSON, and the machine they come from.

use std::{fmt::Write as _, fs, thread};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::figure::Figure;

/// Around the figures in the README.
const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- /figures -->";

/// Where it was measured, and how.
pub(crate) struct Machine {
    pub(crate) cores: usize,
    pub(crate) processor: String,
    pub(crate) quick: bool,
}

impl Machine {
    pub(crate) fn here(quick: bool) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let processor = model.map_or("unknown processor", |(_, name)| name.trim()).to_owned();
        Self { cores, processor, quick }
    }

    pub(crate) fn describe(&self) -> String {
        let quick = if self.quick { "; small sizes (--quick)" } else { "" };
        format!("{} cores, {}{quick}", self.cores, self.processor)
    }
}

/// A table that is good to read in a terminal and in a README.
pub(crate) fn table(figures: &[Figure]) -> String {
    let head = ["figure", "on", "value", "goal", "", "beside"].map(str::to_owned);
    let lines: Vec<[String; 6]> = figures
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
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells = lines.iter().chain([&head]).map(|line| line[column].chars().count());
            cells.max().unwrap_or_default().max(3)
        })
        .collect();
    let row = |cells: &[String; 6]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let mut text = row(&head);
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let _ = writeln!(text, "|{}|", rule.join("|"));
    for line in &lines {
        text.push_str(&row(line));
    }
    text
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

/// The README with these figures in place of those it has.
pub(crate) fn in_readme(readme: &str, figures: &[Figure], machine: &Machine) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("README.md has no figures")?;
    let (_, after) = rest.split_once(END).context("README.md's figures do not end")?;
    let bounds = bounds(figures);
    let bounds =
        if bounds.is_empty() { bounds } else { format!("\nWhat bounds those that miss:\n\n{bounds}") };
    Ok(format!(
        "{before}{BEGIN}\n{}, which worker, RabbitMQ, S3 server and ComfyUI share:\n\n{}{bounds}{END}{after}",
        machine.describe(),
        table(figures)
    ))
}

pub(crate) fn json(figures: &[Figure], machine: &Machine) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": { "cores": machine.cores, "processor": machine.processor },
        "quick": machine.quick,
        "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
    })
}
