//! The ComfyUIs whose frontends convert: the pinned frontend and the newest one.

use std::{ffi::OsString, fs, path::PathBuf};

use serde::de::DeserializeOwned;
use testbed::{Engine, RunningEngine, checkout, folder_of_process};
use tokio::sync::OnceCell;

/// The pinned frontend: of the ComfyUI at `COMFYUI_DIR`, else of a stand-in that describes every node
/// of ComfyUI 0.3.64.
pub(crate) async fn pinned() -> &'static RunningEngine {
    static SERVER: OnceCell<RunningEngine> = OnceCell::const_new();
    if variable("COMFYUI_DIR").is_some() {
        return RunningEngine::shared().await.unwrap();
    }
    SERVER.get_or_init(|| standin("comfyui-described", None)).await
}

/// The frontend of `tests/fixtures/frontend-newest-requirements.txt`, or the one whose static files
/// are in `FRONTEND_DIR`, on such a stand-in.
pub(crate) async fn newest() -> &'static RunningEngine {
    static SERVER: OnceCell<RunningEngine> = OnceCell::const_new();
    SERVER.get_or_init(|| standin("comfyui-newest", Some(newest_files()))).await
}

pub(crate) async fn both() -> [&'static RunningEngine; 2] {
    [pinned().await, newest().await]
}

async fn standin(name: &str, frontend: Option<PathBuf>) -> RunningEngine {
    let mut engine = Engine::standin(&folder_of_process(name).unwrap()).unwrap();
    let nodes = fixture("object_info-0.3.64.json.gz");
    engine.command.extend(["--standin-extra-nodes".into(), nodes.to_str().unwrap().into()]);
    if let Some(folder) = frontend {
        engine.command.extend(["--front-end-root".into(), folder.to_str().unwrap().into()]);
    }
    engine.start().await.unwrap()
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

pub(crate) fn newest_files() -> PathBuf {
    variable("FRONTEND_DIR").map_or_else(
        || unpacked("frontend-newest").join("comfyui_frontend_package/static"),
        |folder| std::path::absolute(folder).unwrap(),
    )
}

/// The folder of the PyPI packages that `tests/fixtures/<name>-requirements.txt` lists.
pub(crate) fn unpacked(name: &str) -> PathBuf {
    let folder = checkout().join(".cache").join(name);
    let wanted = fs::read(fixture(&format!("{name}-requirements.txt"))).unwrap();
    assert!(
        fs::read(folder.join(".made-of")).is_ok_and(|stamp| stamp == wanted),
        "the packages of tests/fixtures/{name}-requirements.txt are missing in {}: run scripts/setup --tools \
         (or scripts/test)",
        folder.display()
    );
    folder
}

/// What the server answers to a GET.
pub(crate) async fn get<T: DeserializeOwned>(server: &RunningEngine, path: &str) -> T {
    reqwest::get(format!("{}{path}", server.url())).await.unwrap().json().await.unwrap()
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    checkout().join("tests/fixtures").join(name)
}
