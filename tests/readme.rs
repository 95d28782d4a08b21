//! The README's table of settings is the one that the settings make.

use std::{fmt::Write as _, path::Path};

use comfy_worker::config::settings::SETTINGS;

const BEGIN: &str = "<!-- settings -->";
const END: &str = "<!-- /settings -->";

fn table() -> String {
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

#[test]
fn the_table_of_settings_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap_or_default();
    let between = readme.split_once(BEGIN).and_then(|(_, rest)| Some(rest.split_once(END)?.0));
    let expected = table();
    assert!(
        between.is_some_and(|found| found.trim() == expected.trim()),
        "README.md must hold between {BEGIN} and {END}:\n\n{expected}"
    );
}
