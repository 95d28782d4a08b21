//! The manual and the shell completions, made of the command line itself.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Output},
};

use comfy_worker::config::settings::SETTINGS;

const COMMANDS: [&str; 9] =
    ["serve", "run", "submit", "cancel", "convert", "check", "dead", "completions", "man"];

/// Configured wrongly: what is made here must not ask for a configuration.
fn call(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-worker"));
    command.args(arguments).env("COMFY_WORKER_CONFIG", "/none").env("COMFY_WORKER_AMQP_DECLARE", "perhaps");
    command.output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = call(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A page as a reader sees it, nearly: without what only roff sees.
fn shown(page: &str) -> String {
    ["\\fB", "\\fI", "\\fR"]
        .iter()
        .fold(page.to_owned(), |page, font| page.replace(font, ""))
        .replace("\\-", "-")
}

#[test]
fn every_setting_is_in_the_manual() {
    let page = shown(&printed(&["man"]));
    for setting in SETTINGS {
        for text in
            [format!("--{} VALUE", setting.flag()), setting.variable(), format!("Key {}", setting.key)]
        {
            assert!(page.contains(&text), "{text}");
        }
    }
    for heading in
        ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS", "SETTINGS", "EXIT STATUS", "SEE ALSO"]
    {
        assert!(
            page.contains(&format!("\n.SH \"{heading}\"\n")) || page.contains(&format!("\n.SH {heading}\n")),
            "{heading}"
        );
    }
    for code in 0..=3 {
        assert!(page.contains(&format!("\n.TP\n{code}\n")), "exit code {code}");
    }
}

#[test]
fn each_command_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("man1");
    assert!(printed(&["man", "-o", target.to_str().unwrap()]).is_empty());
    let mut expected: Vec<String> = COMMANDS
        .iter()
        .map(|command| (*command).to_owned())
        .chain(["list", "show", "retry", "drop"].map(|action| format!("dead-{action}")))
        .map(|name| format!("comfy-worker-{name}.1"))
        .chain(["comfy-worker.1".to_owned()])
        .collect();
    expected.sort();
    let mut found: Vec<String> = fs::read_dir(&target)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, expected);
    for file in found {
        let page = fs::read_to_string(target.join(&file)).unwrap();
        let name = file.strip_suffix(".1").unwrap();
        assert!(page.contains(&format!(".TH {name} 1 ")), "{file}");
        assert!(shown(&page).contains(&format!(".SH NAME\n{name} - ")), "{file}");
        // Anything else at the head of a line would be taken for a request, and vanish.
        for line in page.lines().filter(|line| line.starts_with(['.', '\''])) {
            let request = line.split_whitespace().next().unwrap();
            let known = [
                ".TH", ".SH", ".TP", ".RS", ".RE", ".IP", ".PP", ".br", ".nf", ".fi", ".na", ".ad", ".ie",
                ".el",
            ];
            assert!(known.contains(&request), "{file}: {line}");
        }
    }
    let page = fs::read_to_string(target.join("comfy-worker.1")).unwrap();
    assert_eq!(page.trim_end(), printed(&["man"]).trim_end());
    // A folder that cannot be made.
    let blocked = target.join("comfy-worker.1/below");
    let output = call(&["man", "-o", blocked.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("cannot write"), "{said}");
}

#[test]
fn every_shell_gets_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = printed(&["completions", shell]);
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("amqp-queue"), "{shell}");
    }
    let output = call(&["completions", "csh"]);
    assert_eq!(output.status.code(), Some(2));
}

/// What bash offers for the last of these words.
fn offered(script: &str, words: &[&str]) -> Vec<String> {
    let test = format!(
        "{script}
         COMP_WORDS=({})
         COMP_CWORD={}
         [[ $(complete -p comfy-worker) =~ -F\\ ([^ ]+) ]]
         \"${{BASH_REMATCH[1]}}\" comfy-worker '{}' '{}'
         printf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("test.bash");
    fs::write(&file, test).unwrap();
    let output = Command::new("bash").args(["--norc", "-u"]).arg(&file).output().expect("bash must be there");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes() {
    let script = printed(&["completions", "bash"]);
    assert_eq!(offered(&script, &["comfy-worker", "ser"]), ["serve"]);
    assert_eq!(offered(&script, &["comfy-worker", "dead", "re"]), ["retry"]);
    assert_eq!(offered(&script, &["comfy-worker", "serve", "--amqp-qu"]), ["--amqp-queue"]);
    assert_eq!(offered(&script, &["comfy-worker", "submit", "--wa"]), ["--wait"]);
    assert!(offered(&script, &["comfy-worker", "completions", ""]).contains(&"zsh".to_owned()));
}
