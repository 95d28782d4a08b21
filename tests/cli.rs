//! The command as people and scripts meet it: exit codes, words, JSON, pipes and signals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use comfy_worker::config::settings::SETTINGS;
use rustix::process::{Pid, kill_process};
use serde_json::Value;
use testbed::{Engine, Signal, descendants};

const PROMPT: &str = r#"{"3": {"class_type": "X", "inputs": {"seed": 1}}}"#;
/// Nothing listens there.
const NOBODY: &str = "amqp://worker:hunter2@127.0.0.1:1/%2f";

/// A folder to call the command in.
struct Place(tempfile::TempDir);

/// What a call came to.
#[derive(Debug)]
struct Called {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("prompt.json", PROMPT);
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// The command with nothing of the caller's in its environment.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_comfy-worker"));
        for (name, _) in env::vars_os() {
            let named = |prefix: &str| name.to_str().is_some_and(|name| name.starts_with(prefix));
            if named("COMFY_WORKER_") || named("AWS_") || named("RUST_") {
                command.env_remove(&name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.path())
            .env("HOME", self.path())
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn call(&self, arguments: &[&str]) -> Called {
        self.finish(self.command(arguments))
    }

    /// Whatever it was called with: no panic, no `Debug` text, no secret, and lines that end.
    fn finish(&self, mut command: Command) -> Called {
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let called =
            Called { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace", "hunter2", "Error {", "Some(", "Err("] {
            assert!(!called.err.contains(word) && !called.out.contains(word), "{word}: {called:#?}");
        }
        called
    }

    /// Names of what lies in the folder.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}

impl Called {
    /// Ended so, with these words on standard error and nothing on standard output.
    #[track_caller]
    fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "{word}: {self:#?}");
        }
        assert!(self.out.is_empty(), "{self:#?}");
    }

    /// Standard output as JSON values, one a line.
    fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

#[test]
fn help_is_readable() {
    let place = Place::new();
    let short = place.call(&["-h"]);
    let long = place.call(&["--help"]);
    assert_eq!((short.code, long.code), (Some(0), Some(0)));
    for command in ["serve", "run", "submit", "cancel", "convert", "check", "dead", "completions", "man"] {
        assert!(short.out.contains(&format!("\n  {command} ")), "{command}: {}", short.out);
        assert_eq!(place.call(&[command, "--help"]).code, Some(0));
    }
    for setting in SETTINGS {
        let flag = format!("--{} ", setting.flag());
        assert!(!short.out.contains(&flag), "{flag} is too much for -h");
        assert!(long.out.contains(&flag) && long.out.contains(&setting.variable()), "{flag}");
        assert!(!place.call(&["run", "-h"]).out.contains(&flag));
    }
    assert!(short.out.lines().count() < 30);
    let wide = long.out.lines().map(|line| line.chars().count()).max();
    assert!(wide <= Some(110), "{wide:?}");
    assert!(place.call(&["--version"]).out.starts_with("comfy-worker "));
}

#[test]
fn unknown_words_are_named() {
    let place = Place::new();
    place.call(&["frobnicate"]).refused(2, &["unrecognized subcommand 'frobnicate'", "--help"]);
    place.call(&["serve", "--amqp-qeue", "x"]).refused(2, &["'--amqp-qeue'", "'--amqp-queue'"]);
    place.call(&["run"]).refused(2, &["<WORKFLOW>"]);
    place.call(&[]).refused(2, &["Usage: comfy-worker", "Commands:"]);
    place.call(&["submit", "prompt.json", "--id", "../x"]).refused(2, &["'--id <ID>'", "must be 1-128 of"]);
    place.call(&["submit", "prompt.json", "-o", "x"]).refused(2, &["--wait"]);
    place.call(&["dead", "retry"]).refused(2, &["<JOB>"]);
    place.call(&["dead", "drop", "--all", "x"]).refused(2, &["'--all' cannot be used with"]);
    place.call(&["dead", "show", "../x"]).refused(2, &["must be 1-128 of"]);
    place.call(&["dead", "retry", "x", "--amqp-url", NOBODY]).refused(2, &["store.uri: missing"]);
    place.call(&["dead", "list", "--amqp-url", NOBODY]).refused(3, &["cannot reach amqp://127.0.0.1:1/%2f"]);
    place
        .call(&["submit", "prompt.json", "--output-uri", "x"])
        .refused(2, &["starts with neither s3:// nor file://"]);
}

#[test]
fn settings_are_checked_before_anything_starts() {
    let place = Place::new();
    let port_and_timeout = ["--comfyui-port", "0", "--job-timeout", "soon"];
    for command in [vec!["serve"], vec!["run", "prompt.json"], vec!["check"], vec!["convert", "prompt.json"]]
    {
        let called = place.call(&[command, port_and_timeout.to_vec()].concat());
        called.refused(2, &["comfyui.port: \"0\" is no port", "job.timeout: \"soon\" is no duration"]);
        assert_eq!(called.err.lines().count(), 2, "{called:?}");
    }
    place.call(&["serve"]).refused(2, &["store.uri: missing", "s3://bucket/prefix"]);
    place.call(&["--config", "none.toml", "check"]).refused(2, &["--config: cannot read none.toml"]);
    place
        .call(&["serve", "--amqp-url", "http://x:hunter2@y"])
        .refused(2, &["amqp.url: is no amqp:// or amqps:// URL"]);
    place.write("c.toml", "[amqp]\nqeue = 'x'\nurl = 'hunter2'");
    place.call(&["check", "--config", "c.toml"]).refused(
        2,
        &["amqp.qeue: no such setting (c.toml); did you mean amqp.queue", "amqp.url: is no amqp://"],
    );
    let mut command = place.command(&["check"]);
    command.env("COMFY_WORKER_CONFIG", "c.toml").env("COMFY_WORKER_WORKER_GRACE", "1");
    place.finish(command).refused(2, &["variable COMFY_WORKER_WORKER_GRACE", "amqp.qeue"]);
    assert_eq!(place.files(), ["c.toml", "prompt.json"]);
}

#[test]
fn workflows_are_checked_before_anything_starts() {
    let place = Place::new();
    for (name, text) in [
        ("broken.json", "{"),
        ("list.json", "[]"),
        ("empty.json", "{}"),
        ("none-of-both.json", "{\"a\": 1}"),
        ("binary.json", "\0\u{1}\u{2}"),
    ] {
        place.write(name, text);
    }
    for (workflow, words) in [
        ("none.json", "none.json: cannot be read: No such file"),
        (".", ".: cannot be read: Is a directory"),
        ("broken.json", "broken.json: no JSON: EOF"),
        ("binary.json", "binary.json: no JSON: "),
        ("list.json", "list.json: workflow: must be an object"),
        ("empty.json", "empty.json: the workflow has no nodes"),
        (
            "none-of-both.json",
            "neither a UI workflow (no `nodes`) nor a prompt (node \"a\" has no class_type)",
        ),
        ("http://host/w.json", "\"http://host/w.json\" starts with neither s3:// nor file://"),
        ("file://host/w.json", "is no file:///absolute/path"),
        ("file:///no/such/w.json", "file:///no/such/w.json: not found"),
        ("-", "-: no JSON: EOF"),
    ] {
        place.call(&["run", workflow]).refused(2, &[words]);
        place.call(&["submit", workflow, "--amqp-url", NOBODY]).refused(2, &[words]);
    }
    assert!(!place.files().contains(&"state".to_owned()));
}

#[test]
fn inputs_are_checked_before_anything_starts() {
    let place = Place::new();
    for (arguments, words) in [
        (vec!["--input", "seed=1"], "\"seed\" is no <node id>.<input name>"),
        (vec!["--input", "3.seed"], "must be NODE.NAME=VALUE"),
        (vec!["--input", "3.seed:=x"], "after := stands JSON"),
        (vec!["--input", "3.seed=1", "--input", "3.seed=2"], "--input 3.seed: given twice"),
        (vec!["--input", "3.a=-", "--input", "3.b=-"], "can stand for one thing only"),
        (vec!["--input", "3.a=file:///no/such.png"], "such.png"),
        (vec!["--timeout", "-1"], "must be seconds, more than none and at most a week"),
        (vec!["--timeout", "nan"], "must be seconds"),
    ] {
        for command in ["run", "submit"] {
            let settings = vec![command, "prompt.json", "--amqp-url", NOBODY];
            place.call(&[settings, arguments.clone()].concat()).refused(2, &[words]);
        }
    }
    place.call(&["convert", "-", "-"]).refused(2, &["can stand for one workflow only"]);
    place
        .call(&["convert", "a/x.json", "b/x.json", "-o", "out"])
        .refused(2, &["two workflows are called x.json"]);
}

#[test]
fn a_command_that_cannot_be_started_is_the_environments_fault() {
    let place = Place::new();
    let called = place.call(&["run", "prompt.json", "--comfyui-command", "no-such-program --x"]);
    called.refused(
        3,
        &["cannot start ComfyUI with `no-such-program --x`", "see comfyui.command and comfyui.workdir"],
    );
    place
        .call(&["run", "prompt.json", "--comfyui-workdir", "/no/such"])
        .refused(3, &["in /no/such", "comfyui.workdir"]);
    place
        .call(&["run", "prompt.json", "--worker-state-dir", "/dev/null/x"])
        .refused(2, &["/dev/null/x: Not a directory", "see worker.state_dir"]);
    // Nothing stays of a run that did not begin.
    assert_eq!(place.files(), ["prompt.json", "state"]);
}

#[test]
fn without_a_broker_nothing_is_published() {
    let place = Place::new();
    let called = place.call(&["submit", "prompt.json", "--amqp-url", NOBODY]);
    called.refused(3, &["cannot reach amqp://127.0.0.1:1/%2f", "Connection refused"]);
    assert_eq!(called.err.lines().count(), 1, "{called:?}");
}

#[test]
fn failures_are_json_too() {
    let place = Place::new();
    for (arguments, code, kind, words) in [
        (vec!["run"], 2, "usage", "the following required arguments were not provided:   <WORKFLOW>"),
        (vec!["frobnicate"], 2, "usage", "unrecognized subcommand 'frobnicate'"),
        (vec!["run", "none.json"], 2, "usage", "none.json: cannot be read"),
        (vec!["check", "--comfyui-port", "x"], 2, "usage", "comfyui.port"),
        (vec!["submit", "prompt.json", "--amqp-url", NOBODY], 3, "environment", "cannot reach"),
        (
            vec!["run", "prompt.json", "--comfyui-command", "no-such-program"],
            3,
            "environment",
            "see comfyui.command",
        ),
    ] {
        let called = place.call(&[arguments.clone(), vec!["--json"]].concat());
        assert_eq!(called.code, Some(code), "{called:#?}");
        let values = called.json();
        assert_eq!(values.len(), 1, "{called:#?}");
        assert_eq!(values[0]["error"]["code"], kind, "{called:#?}");
        assert!(values[0]["error"]["message"].as_str().unwrap().contains(words), "{called:#?}");
        assert!(!called.err.is_empty(), "people are told as well: {arguments:?}");
    }
    let help = place.call(&["--json", "--help"]);
    assert_eq!(help.code, Some(0));
}

#[test]
fn check_has_a_line_for_each_part() {
    let place = Place::new();
    let settings = ["check", "--amqp-url", NOBODY, "--comfyui-command", "no-such-program"];
    let store = format!("file://{}", place.path().join("store").display());
    let called = place.call(&[&settings[..], &["--store-uri", &store, "--json"]].concat());
    assert_eq!(called.code, Some(3), "{called:#?}");
    let values = called.json();
    let parts: Vec<_> = values
        .iter()
        .filter_map(|value| Some((value.get("part")?.as_str()?, value["ok"].as_bool()?)))
        .collect();
    let expected = [
        ("configuration", true),
        ("comfyui", false),
        ("browser", false),
        ("broker", false),
        ("bucket", true),
    ];
    assert_eq!(parts, expected);
    assert_eq!(values[5]["error"]["message"], "3 of 5 parts are not well");
    let plain = place.call(&settings);
    assert_eq!(plain.code, Some(2), "no store.uri: {plain:#?}");
    assert!(plain.out.contains("FAIL broker") && plain.out.contains("ok   configuration"), "{plain:#?}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let place = Place::new();
    for arguments in [
        vec!["--help"],
        vec!["-h"],
        vec!["--version"],
        vec!["completions", "bash"],
        vec!["man"],
        vec!["frobnicate", "--json"],
        vec!["run", "none.json", "--json"],
        vec!["check", "--comfyui-command", "no-such-program", "--amqp-url", NOBODY],
    ] {
        for (broken_out, broken_err) in [(true, false), (true, true)] {
            let mut child = place.command(&arguments).spawn().unwrap();
            let err = child.stderr.take().unwrap();
            if broken_out {
                drop(child.stdout.take());
            }
            let mut said = String::new();
            if broken_err {
                drop(err)
            } else {
                BufReader::new(err).read_to_string(&mut said).unwrap();
            }
            let code = child.wait().unwrap().code();
            assert!(code.is_some_and(|code| code < 4), "{arguments:?}: {code:?}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
}

/// Waits for a line of its standard error that holds `words`.
fn wait_for_line(child: &mut Child, words: &str) -> String {
    let mut said = String::new();
    let mut reader = BufReader::new(child.stderr.as_mut().unwrap());
    while !said.contains(words) {
        assert!(reader.read_line(&mut said).unwrap() > 0, "it ended: {said}");
    }
    said
}

fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < limit, "in vain waited until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupt_while_comfyui_boots_ends_at_once_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let place = Place::new();
        let engine = Engine::standin(&place.path().join("comfy")).unwrap();
        let command_line = engine.command_line();
        let (workdir, path) = (engine.workdir.display().to_string(), engine.path.display().to_string());
        let mut command = place.command(&[
            "run",
            "prompt.json",
            "-o",
            "out",
            "--json",
            "--comfyui-command",
            &command_line,
            "--comfyui-workdir",
            &workdir,
            "--comfyui-path",
            &path,
            "--comfyui-env",
            "STANDIN_BOOT_DELAY=600",
        ]);
        let mut child = command.spawn().unwrap();
        wait_for_line(&mut child, "starting ComfyUI");
        until("ComfyUI is started", Duration::from_secs(30), || !descendants(child.id()).is_empty());
        let children = descendants(child.id());
        let sent = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        let taken = sent.elapsed();
        let (mut out, mut err) = (String::new(), String::new());
        child.stdout.unwrap().read_to_string(&mut out).unwrap();
        child.stderr.unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(status.code(), Some(3), "{err}");
        assert!(taken < Duration::from_secs(2), "{taken:?}");
        assert!(err.contains("comfy-worker: interrupted") && !err.contains("panicked"), "{err}");
        let said: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(said["error"]["code"], "environment");
        // Killed, they are gone when the kernel gets round to it.
        let gone = || !children.iter().any(|child| testbed::alive(child.pid));
        until("its children are gone", Duration::from_secs(2).saturating_sub(sent.elapsed()), gone);
        assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), 0);
        let journal = place.path().join("state/comfy-worker/journal");
        assert_eq!(fs::read_dir(journal).unwrap().count(), 0);
    }
}

#[test]
fn standard_input_is_a_workflow() {
    let place = Place::new();
    let mut command = place.command(&["submit", "-", "--amqp-url", NOBODY]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(PROMPT.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    // As far as the broker, and no further.
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

/// Nodes run as the worker's user: its credentials are in its environment and memory.
#[test]
fn other_processes_of_the_same_user_see_nothing_of_its_environment_and_memory() {
    use std::os::unix::{fs::PermissionsExt as _, process::CommandExt as _};
    // Root reads everything: then both are somebody who is not.
    let user = rustix::process::geteuid().is_root().then_some(65_534);
    let lower = |command: &mut Command| {
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
    };
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The checkout may lie where only root can go.
    let program = place.path().join("comfy-worker");
    fs::copy(env!("CARGO_BIN_EXE_comfy-worker"), &program).unwrap();
    let mut command = Command::new(program);
    command
        .args(["run", "-"])
        .env("AWS_SECRET_ACCESS_KEY", "hunter2")
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    lower(&mut command);
    let mut child = command.spawn().unwrap();
    let folder = format!("/proc/{}", child.id());
    // It waits for the workflow: by then it is hidden.
    until("it reads", Duration::from_secs(60), || {
        fs::read_to_string(format!("{folder}/comm")).is_ok_and(|name| name == "comfy-worker\n")
            && fs::read_dir(format!("{folder}/task")).is_ok_and(|tasks| tasks.count() > 1)
    });
    for entry in ["environ", "mem", "maps", "fd/0"] {
        let mut look = Command::new("head");
        look.args(["-c", "1"]).arg(format!("{folder}/{entry}")).stdin(Stdio::null());
        lower(&mut look);
        let seen = look.output().unwrap();
        let said = String::from_utf8_lossy(&seen.stderr).into_owned();
        assert!(!seen.status.success() && said.contains("Permission denied"), "{entry}: {said}");
    }
    drop(child.stdin.take());
    child.wait().unwrap();
}
