//! Who may import whom, read from the sources.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The sources of the worker and those of the connector, a crate of its own.
const ROOTS: [&str; 2] = ["src", "crates/connector/src"];

/// Each product file by its path under one of [`ROOTS`], without tests, comments and strings.
fn sources() -> BTreeMap<String, String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let is_test = |path: &Path| path.file_stem().unwrap().to_str().unwrap().ends_with("tests");
    let mut sources = BTreeMap::new();
    for root in ROOTS.map(|root| Path::new(env!("CARGO_MANIFEST_DIR")).join(root)) {
        let mut files = Vec::new();
        walk(&root, &mut files);
        for path in files.iter().filter(|path| !is_test(path)) {
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            // Both have a `store`, a `metrics` and a `lib.rs`.
            let code = product_code(&fs::read_to_string(path).unwrap());
            sources.entry(name.to_owned()).or_insert_with(String::new).push_str(&code);
        }
    }
    sources
}

fn product_code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines
        .map(|line| if line.matches('"').count() >= 2 { line.split('"').next().unwrap() } else { line })
        .fold(String::new(), |mut all, line| {
            all.push_str(line);
            all.push('\n');
            all
        })
}

/// Whether the code names the crate or module `name` as the head of a path.
fn names(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + name.len()..];
        let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
        starts && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}

/// The modules of this crate that the code imports: `crate::a`, `crate::{a, b::c}`.
fn own_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let word =
            |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(list) = rest.strip_prefix('{') else {
            modules.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => modules.push(word(std::mem::take(&mut item).trim())),
                _ => {}
            }
            if depth == 0 && c != ',' {
                item.push(c);
            }
        }
        modules.push(word(item.trim()));
    }
    modules.retain(|module| !module.is_empty());
    modules
}

#[test]
fn the_reader_of_imports_reads_them() {
    let code = product_code(
        "// use lapin::Channel;\nuse crate::{\n    comfy::{Observer, events::Image},\n    store,\n};\nuse crate::queue::Broker;\nuse url::Url;\n",
    );
    assert_eq!(own_modules(&code), ["comfy", "store", "queue"]);
    assert!(names(&code, "url") && !names(&code, "lapin") && !names(&code, "rl"));
}

#[test]
fn vendor_crates_stay_in_their_adapters() {
    let homes: [(&[&str], &[&str]); 8] = [
        (&["async_rs", "lapin"], &["queue/"]),
        (
            &["aws_config", "aws_sdk_s3", "aws_smithy_types", "aws_smithy_runtime_api", "aws_types"],
            &["store/"],
        ),
        (&["chromiumoxide", "command_fds"], &["browser/"]),
        (&["tokio_tungstenite"], &["comfy/", "browser/pipe.rs"]),
        (
            &["reqwest"],
            &[
                "comfy/",
                "browser/preload.rs",
                "browser/install.rs",
                "queue/management.rs",
                "stage/web",
                "telemetry/collector.rs",
            ],
        ),
        (&["zip"], &["browser/unpack.rs"]),
        (&["axum"], &["admin/"]),
        (
            &["opentelemetry", "opentelemetry_http", "opentelemetry_otlp", "opentelemetry_sdk"],
            &["telemetry/"],
        ),
    ];
    for (file, code) in sources() {
        for (crates, folders) in homes {
            let at_home = folders.iter().any(|folder| file.starts_with(folder));
            for name in crates {
                assert!(at_home || !names(&code, name), "{file} uses {name}, which belongs into {folders:?}");
            }
        }
    }
}

#[test]
fn pure_modules_know_neither_tokio_nor_a_vendor() {
    let pure = [
        "job/apply.rs",
        "job/prompt_check.rs",
        "job/decision.rs",
        "comfy/events.rs",
        "comfy/tracker.rs",
        "comfy/history.rs",
        "comfy/json.rs",
    ];
    let impure = [
        "tokio",
        "tokio_util",
        "futures_util",
        "lapin",
        "aws_config",
        "aws_sdk_s3",
        "chromiumoxide",
        "tokio_tungstenite",
        "reqwest",
        "axum",
        "opentelemetry",
        "rustix",
        "sysinfo",
    ];
    let sources = sources();
    for file in pure {
        let code = sources.get(file).unwrap_or_else(|| panic!("{file} is gone: fix the list"));
        for name in impure {
            assert!(!names(code, name), "{file} is pure and uses {name}");
        }
        for thing in ["std::fs", "std::net", "std::process", "async fn", ".await"] {
            assert!(!code.contains(thing), "{file} is pure and uses {thing}");
        }
    }
}

#[test]
fn adapters_do_not_import_one_another() {
    let adapters = ["queue", "store", "browser", "comfy"];
    for (file, code) in sources() {
        let Some(home) = adapters.iter().find(|adapter| file.starts_with(&format!("{adapter}/"))) else {
            continue;
        };
        for module in own_modules(&code) {
            let foreign = module != **home && adapters.contains(&module.as_str());
            assert!(!foreign, "{file} imports crate::{module}: adapters do not know one another");
        }
    }
}

#[test]
fn nobody_below_imports_the_command_line_the_wiring_or_the_life_of_a_job() {
    for (file, code) in sources() {
        let above: &[&str] = match file.as_str() {
            "main.rs" | "lib.rs" => continue,
            file if file.starts_with("cli/") => continue,
            file if file.starts_with("app/") => &["cli"],
            file if file.starts_with("job/") => &["cli", "app"],
            _ => &["cli", "app", "job"],
        };
        for module in own_modules(&code) {
            assert!(!above.contains(&module.as_str()), "{file} imports crate::{module}, which is above it");
        }
    }
}

/// A library for programs that have no queue: no broker, no S3, no server, no traces, whatever brings them in.
#[test]
fn the_connector_brings_no_worker() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--package",
            "comfy-connector",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("chromiumoxide"), "{tree}");
    let foreign = |name: &&&str| {
        let heads = [
            "lapin",
            "amq-",
            "aws-sdk",
            "aws-config",
            "aws-smithy",
            "axum",
            "opentelemetry",
            "clap",
            "comfy-worker",
        ];
        **name != "comfy-worker-contract" && heads.iter().any(|head| name.starts_with(head))
    };
    assert_eq!(crates.iter().find(foreign), None);
}

/// The contract is for publishers, too: types, and nothing that does something with them.
#[test]
fn the_contract_needs_little() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/contract/Cargo.toml");
    let manifest: toml::Table = fs::read_to_string(root).unwrap().parse().unwrap();
    let names: Vec<&str> = manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    let known = [
        "schemars",
        "secrecy",
        "serde",
        "serde_json",
        "serde_path_to_error",
        "sha2",
        "strsim",
        "thiserror",
        "url",
    ];
    assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
}
