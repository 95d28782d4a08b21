//! Where the frontend lies that ComfyUI will serve, known before ComfyUI answers.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command, time::timeout};

use super::environment::inherit;
use crate::config::ComfyUiConfig;

/// An interpreter that takes longer is no help.
const LIMIT: Duration = Duration::from_secs(5);
/// Finds the package that ComfyUI serves by default (`app/frontend_management.py`) without importing it.
const FIND: &str = "import importlib.util as u; \
    print(list(u.find_spec('comfyui_frontend_package').submodule_search_locations)[0])";

/// The folder of the frontend's files: the one that ComfyUI's command line names, else that of the
/// package, asked of the Python that runs ComfyUI. A guess: what is served must be compared. `None` where the command is no Python, or has no such package.
pub async fn root(config: &ComfyUiConfig) -> Option<PathBuf> {
    let mut args = config.command.iter().skip_while(|arg| *arg != "--front-end-root");
    if let Some(root) = args.nth(1) {
        return with_index(config.workdir.join(root));
    }
    let python = config.command.first()?;
    if !Path::new(python).file_name()?.to_str()?.starts_with("python") {
        return None;
    }
    let mut command = Command::new(python);
    inherit(&mut command);
    command
        .args(["-c", FIND])
        .current_dir(&config.workdir)
        .envs(&config.env.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // A task that nobody drops: a child that nobody waits for stays a zombie.
    let asked = tokio::spawn(async move {
        let mut child = command.spawn().ok()?;
        let mut answer = String::new();
        let mut output = child.stdout.take()?;
        let read = timeout(LIMIT, output.read_to_string(&mut answer)).await;
        // It has said all, or takes too long.
        let _ = child.kill().await;
        read.ok()?.ok().map(|_| answer)
    });
    let package = asked.await.ok()??;
    with_index(Path::new(package.trim()).join("static"))
}

fn with_index(root: PathBuf) -> Option<PathBuf> {
    root.join("index.html").is_file().then_some(root)
}
