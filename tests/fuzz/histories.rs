//! History entries: no file is opened but those under ComfyUI's folders.

use std::fs;

use contract::request::OutputRequest;

use connector::{comfy::history::History, deliver, stage::Folders};
use proptest::prelude::*;
use serde_json::json;

use super::{fuzz, json};

const WORDS: &[&str] = &[
    "outputs",
    "images",
    "gifs",
    "text",
    "filename",
    "subfolder",
    "type",
    "output",
    "temp",
    "input",
    "status",
    "status_str",
    "success",
    "error",
    "completed",
    "messages",
    "execution_error",
    "execution_start",
    "execution_cached",
    "execution_success",
    "execution_interrupted",
    "timestamp",
    "node_id",
    "exception_message",
    "traceback",
    "prompt",
    "a.png",
    "sub",
    "../canary",
    "..",
    "/etc/passwd",
    "link",
    "linked",
    "fifo",
    "x/../../canary",
    "nodes",
];

#[test]
fn history_entries() {
    let Ok(folder) = tempfile::tempdir() else { panic!("no folder") };
    let base = folder.path().join("comfy");
    let plant = || -> std::io::Result<()> {
        for name in ["output/sub", "temp", "input", "models"] {
            fs::create_dir_all(base.join(name))?;
        }
        for name in ["output/a.png", "output/sub/a.png", "temp/a.png", "canary", "input/a.png"] {
            fs::write(base.join(name), name)?;
        }
        std::os::unix::fs::symlink(base.join("canary"), base.join("output/link"))?;
        std::os::unix::fs::symlink(&base, base.join("output/linked"))
    };
    assert!(plant().is_ok());
    let entry = json!({
        "prompt": [1, "p", {}, {"extra": 1}, ["1"]],
        "outputs": {"1": {"images": [{"filename": "a.png", "subfolder": "sub", "type": "output"}], "text": ["x"]},
                    "2": {"gifs": [{"filename": "a.png", "subfolder": "", "type": "temp"}]}},
        "status": {"status_str": "success", "completed": true, "messages": [
            ["execution_start", {"prompt_id": "p", "timestamp": 1}],
            ["execution_error", {"node_id": "1", "exception_message": "m", "traceback": ["t"]}]]},
    });
    let strategy = (json::near(entry, WORDS), any::<bool>());
    let own = deliver::OwnFolder::none(std::time::UNIX_EPOCH);
    fuzz("history entries", &strategy, |(entry, include_temp)| {
        let Some(history) = History::find(&json!({"p": entry}), "p") else { return Ok(()) };
        let _ = (history.executed_ms(), history.cached_nodes(), history.without_secrets());
        if let Some(failure) = history.outcome().failure() {
            prop_assert!(!failure.to_string().is_empty());
        }
        let request = OutputRequest { include_temp, ..OutputRequest::default() };
        match deliver::find(&Folders::new(base.clone()), &own, &request, &history, Vec::new(), 1_000) {
            Ok(findings) => {
                for path in findings.written() {
                    let under = path.starts_with(base.join("output")) || path.starts_with(base.join("temp"));
                    let straight = path.components().all(|part| part.as_os_str() != "..");
                    prop_assert!(under && straight && !path.is_symlink(), "{path:?}");
                    let real = path.canonicalize().map_err(|error| TestCaseError::fail(error.to_string()))?;
                    prop_assert_eq!(real.file_name(), path.file_name());
                    prop_assert!(!real.ends_with("canary"), "{real:?}");
                }
            }
            Err(missing) => {
                prop_assert!(!missing.nodes.is_empty());
                prop_assert!(!missing.message.chars().any(char::is_control), "{:?}", missing.message);
            }
        }
        Ok(())
    });
    assert!(fs::read(base.join("canary")).is_ok_and(|content| content == b"canary"));
}
