//! Tables in the documents are those that the program makes.

use std::{fmt::Write as _, path::Path};

use comfy_worker::{config::settings::SETTINGS, metrics};

fn settings() -> String {
    let mut table = "| key | default | example | what it does |\n|---|---|---|---|\n".to_owned();
    // In a cell a bar would end it, also within code.
    let code =
        |text: &str| if text.is_empty() { String::new() } else { format!("`{}`", text.replace('|', "\\|")) };
    for setting in SETTINGS {
        let (default, example, help) =
            (code(setting.default), code(setting.example), setting.help.replace('|', "\\|"));
        let _ = writeln!(table, "| `{}` | {default} | {example} | {help} |", setting.key);
    }
    table
}

/// `file` must hold `expected` between the marks `<!-- name -->` and `<!-- /name -->`.
fn must_hold(file: &str, name: &str, expected: &str) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default();
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let between = text.split_once(&begin).and_then(|(_, rest)| Some(rest.split_once(&end)?.0));
    assert!(
        between.is_some_and(|found| found.trim() == expected.trim()),
        "{file} must hold between {begin} and {end}:\n\n{expected}"
    );
}

#[test]
fn the_table_of_settings_is_up_to_date() {
    must_hold("docs/configuration.md", "settings", &settings());
}

#[test]
fn the_table_of_metrics_is_up_to_date() {
    must_hold("docs/metrics.md", "metrics", &metrics::table());
}
