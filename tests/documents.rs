//! What the documents say is so: links lead somewhere, JSON is what the schemas say, commands, flags,
//! settings and S3 calls are the program's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use comfy_worker::config::settings::{PREFIX, SETTINGS};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use serde_json::Value;
use testbed::{checkout, contract};

/// A Markdown file, as far as these tests read it.
#[derive(Default)]
struct Document {
    path: PathBuf,
    anchors: BTreeSet<String>,
    links: Vec<String>,
    /// Language and text.
    blocks: Vec<(String, String)>,
    spans: Vec<String>,
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let mut document = Self { path, ..Self::default() };
        let (mut heading, mut block) = (None::<String>, None::<(String, String)>);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => document.anchor(&heading.take().unwrap()),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.into_string());
                }
                Event::Start(Tag::CodeBlock(kind)) => {
                    let language = match kind {
                        CodeBlockKind::Fenced(language) => language.into_string(),
                        CodeBlockKind::Indented => String::new(),
                    };
                    block = Some((language, String::new()));
                }
                Event::End(TagEnd::CodeBlock) => document.blocks.push(block.take().unwrap()),
                Event::Text(text) => {
                    if let Some((_, block)) = &mut block {
                        block.push_str(&text);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Code(code) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&code);
                    }
                    document.spans.push(code.into_string());
                }
                _ => {}
            }
        }
        document
    }

    /// As GitHub makes them: lower case, no punctuation, hyphens for spaces, numbered when repeated.
    fn anchor(&mut self, heading: &str) {
        let plain: String = heading
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let mut anchor = plain.clone();
        let mut number = 0;
        while !self.anchors.insert(anchor) {
            number += 1;
            anchor = format!("{plain}-{number}");
        }
    }

    fn name(&self) -> String {
        self.path.strip_prefix(checkout()).unwrap().display().to_string()
    }

    /// Its shell commands, a line each, whatever they were divided into.
    fn commands(&self) -> Vec<String> {
        let blocks = self.blocks.iter().filter(|(language, _)| language == "sh");
        let lines = blocks
            .flat_map(|(_, text)| text.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
        lines.chain(self.spans.iter().cloned()).collect()
    }
}

fn documents() -> Vec<Document> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !path.is_symlink() {
                // Not ours, or not written by people.
                if !["target", "node_modules"].contains(&name)
                    && (!name.starts_with('.') || name == ".github")
                {
                    walk(&path, found);
                }
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&checkout(), &mut found);
    found.sort();
    assert!(found.len() >= 10, "{found:?}");
    found.into_iter().map(Document::read).collect()
}

#[test]
fn links_lead_somewhere() {
    let documents: BTreeMap<PathBuf, Document> =
        documents().into_iter().map(|document| (document.path.canonicalize().unwrap(), document)).collect();
    let (mut wrong, mut files, mut anchors) = (Vec::new(), 0, 0);
    for document in documents.values() {
        for link in &document.links {
            if ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme)) {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.path.clone(),
                file => document.path.parent().unwrap().join(file),
            };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{}: there is no {link}", document.name()));
                continue;
            };
            files += 1;
            if !anchor.is_empty() {
                anchors += 1;
                let there = documents.get(&target).is_some_and(|document| document.anchors.contains(anchor));
                if !there {
                    wrong.push(format!("{}: {link}: no such heading", document.name()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files > 40 && anchors > 15, "{files} links, {anchors} anchors: are they still read?");
}

#[test]
fn json_is_what_the_schemas_say() {
    let (mut jobs, mut results, mut events) = (0, 0, 0);
    for document in documents() {
        for (language, text) in &document.blocks {
            let shown = || format!("{}:\n{text}", document.name());
            match language.as_str() {
                "json" => {
                    let value: Value =
                        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {}", shown()));
                    let judged = if value.get("event").is_some() {
                        events += 1;
                        contract::must_be_event(&value)
                    } else if value.get("status").is_some() {
                        results += 1;
                        contract::must_be_result(&value)
                    } else if ["workflow", "workflow_uri", "input"].iter().any(|key| value.get(key).is_some())
                    {
                        jobs += 1;
                        contract::must_be_job(&value)
                    } else {
                        Ok(())
                    };
                    judged.unwrap_or_else(|error| panic!("{error:#}\nin {}", shown()));
                }
                "toml" => drop(
                    toml::from_str::<toml::Table>(text)
                        .unwrap_or_else(|error| panic!("{error} in {}", shown())),
                ),
                _ => {}
            }
        }
    }
    assert!(jobs > 0 && results > 0 && events > 0, "{jobs} jobs, {results} results, {events} events");
}

/// The long flags of a command, as its help has them.
fn flags(command: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_comfy-worker")).args([command, "--help"]).output().unwrap();
    assert!(output.status.success(), "comfy-worker {command}: {output:?}");
    let help = String::from_utf8(output.stdout).unwrap();
    help.split(|c: char| c.is_whitespace() || [',', '[', ']'].contains(&c))
        .filter(|word| word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn commands_and_flags_exist() {
    const COMMANDS: [&str; 9] =
        ["serve", "run", "submit", "cancel", "convert", "check", "dead", "completions", "man"];
    let mut known: BTreeMap<&str, BTreeSet<String>> =
        COMMANDS.iter().map(|command| (*command, flags(command))).collect();
    for action in ["list", "show", "retry", "drop"] {
        let output = Command::new(env!("CARGO_BIN_EXE_comfy-worker"))
            .args(["dead", action, "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let more = help.split_whitespace().filter(|word| word.starts_with("--")).map(str::to_owned);
        known.get_mut("dead").unwrap().extend(more);
    }
    let mut seen = 0;
    for document in documents() {
        for line in document.commands() {
            // What follows is another command, or a remark.
            let line = line.split(['|', ';', '#', '>']).next().unwrap().replace("$ ", "");
            let Some(rest) = line.trim_start().strip_prefix("comfy-worker ") else { continue };
            let mut words = rest.split_whitespace();
            let command = words.next().unwrap_or_default();
            // `comfy-worker --json …`, or a placeholder.
            if command.starts_with('-') || command.chars().next().is_some_and(char::is_uppercase) {
                continue;
            }
            let flags =
                known.get(command).unwrap_or_else(|| panic!("{}: comfy-worker {rest}", document.name()));
            seen += 1;
            for word in words.filter(|word| word.starts_with("--")) {
                let flag = word.split('=').next().unwrap().trim_end_matches([')', ']', '`']);
                assert!(
                    flags.contains(flag),
                    "{}: comfy-worker {command} has no {flag}: {line}",
                    document.name()
                );
            }
        }
    }
    assert!(seen > 20, "{seen} commands: are they still read?");
}

#[test]
fn settings_and_variables_exist() {
    let sections: BTreeSet<&str> =
        SETTINGS.iter().filter_map(|setting| Some(setting.key.split_once('.')?.0)).collect();
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    let variables: BTreeSet<String> =
        SETTINGS.iter().map(|setting| setting.variable()).chain([format!("{PREFIX}CONFIG")]).collect();
    // Fields of a result that look like settings.
    let fields = ["worker.version", "worker.comfyui_version"];
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut seen = 0;
    // The chart's values are named like settings, and scripts/check-helm looks at them.
    for document in documents().into_iter().filter(|document| !document.name().starts_with("helm/")) {
        for span in &document.spans {
            let key = span.split([' ', '=']).next().unwrap_or_default();
            let Some((section, name)) = key.split_once('.') else { continue };
            if !sections.contains(section)
                || name.is_empty()
                || !name.chars().all(is_word)
                || fields.contains(&key)
            {
                continue;
            }
            // Files are named so, too.
            if ["rs", "md", "json", "yaml", "log", "toml"].contains(&name) {
                continue;
            }
            seen += 1;
            assert!(keys.contains(key), "{}: there is no setting {key}", document.name());
        }
        let texts = document.spans.iter().chain(document.blocks.iter().map(|(_, text)| text));
        for text in texts {
            for (at, _) in text.match_indices(PREFIX) {
                let variable: String =
                    text[at..].chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
                // `COMFY_WORKER_SECTION_KEY` and the like stand for all of them.
                let general =
                    variable == PREFIX || variable.ends_with("_KEY") && variable.contains("SECTION");
                assert!(
                    general || variables.contains(&variable),
                    "{}: there is no variable {variable}",
                    document.name()
                );
            }
        }
    }
    assert!(seen > 50, "{seen} settings: are they still read?");
}

/// The policies of docs/operating.md, by the comment before each.
fn policy(name: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(checkout().join("docs/operating.md")).unwrap();
    let (_, rest) = text.split_once(&format!("<!-- {name} policy -->\n```json\n")).unwrap();
    let policy: Value = serde_json::from_str(rest.split_once("\n```").unwrap().0).unwrap();
    let statements = policy["Statement"].as_array().unwrap().iter();
    statements
        .flat_map(|statement| statement["Action"].as_array().unwrap())
        .map(|action| action.as_str().unwrap().to_owned())
        .collect()
}

/// Calls of the AWS SDK's client in these files: `client.get_object()`.
fn s3_calls(folder: &Path) -> BTreeSet<String> {
    let mut calls = BTreeSet::new();
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in files.into_iter().chain([folder.with_extension("rs")]) {
        if file.file_stem().unwrap() == "tests" {
            continue;
        }
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let text: String = text.split_whitespace().collect();
        for (at, found) in text.match_indices("client.") {
            let call: String = text[at + found.len()..]
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                .collect();
            if text[at + found.len() + call.len()..].starts_with("()") {
                calls.insert(call);
            }
        }
    }
    calls
}

#[test]
fn the_workers_policy_is_what_the_store_calls() {
    let permissions = BTreeMap::from([
        ("get_object", "s3:GetObject"),
        ("head_object", "s3:GetObject"),
        ("put_object", "s3:PutObject"),
        ("create_multipart_upload", "s3:PutObject"),
        ("upload_part", "s3:PutObject"),
        ("complete_multipart_upload", "s3:PutObject"),
        ("abort_multipart_upload", "s3:AbortMultipartUpload"),
        ("delete_object", "s3:DeleteObject"),
    ]);
    let calls = s3_calls(&checkout().join("src/store/s3"));
    let known: BTreeSet<String> = permissions.keys().map(|call| (*call).to_owned()).collect();
    assert_eq!(calls, known, "src/store calls S3 in another way: fix this table and docs/operating.md");
    // That one decides between 403 and 404.
    let needed = permissions.values().copied().chain(["s3:ListBucket"]).map(str::to_owned).collect();
    assert_eq!(policy("worker"), needed);
    let publisher = ["s3:GetObject", "s3:ListBucket", "s3:PutObject"].map(str::to_owned);
    assert_eq!(policy("publisher"), publisher.into());
}
