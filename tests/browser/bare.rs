//! The frontend without the worker: a page of ComfyUI in a Chromium of its own, as people open it.

use std::{path::Path, process::Stdio, time::Duration};

use chromiumoxide::{
    Browser as Cdp, Page,
    cdp::js_protocol::runtime::{CallArgument, CallFunctionOnParams},
    handler::HandlerConfig,
};
use connector::child::{LogTail, ProcessGroup};
use futures_util::StreamExt;
use serde_json::{Map, Value};
use tempfile::TempDir;
use testbed::{RunningEngine, scratch_root, wait_for};
use tokio::{process::Command, sync::oneshot, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::frontends::get;

/// For a page on a machine that builds at the same time.
const LIMIT: Duration = Duration::from_secs(90);

pub(crate) struct Bare {
    page: Page,
    // In this order: DevTools, then the processes, then their folders.
    _cdp: Cdp,
    _tasks: [AbortOnDropHandle<()>; 2],
    _group: ProcessGroup,
    _profile: TempDir,
    _temporary: TempDir,
}

impl Bare {
    /// Opens the page of `server` in a Chromium started from the file `program`.
    pub(crate) async fn open(program: &Path, server: &RunningEngine) -> Self {
        timeout(LIMIT, Self::start(program, server)).await.expect("Chromium or its page is silent")
    }

    async fn start(program: &Path, server: &RunningEngine) -> Self {
        let profile = tempfile::tempdir_in(scratch_root().unwrap()).unwrap();
        // A killed Chromium leaves its socket's folder. Beside the profile its path would be too long for one.
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        command.env("TMPDIR", temporary.path());
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--enable-webgl",
                "--disable-dev-shm-usage",
            ])
            .args(["--remote-debugging-port=0", "--no-first-run", "--window-size=1280,720"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut group = ProcessGroup::spawn(command, "bare-chromium").await.unwrap();
        let (found, address) = oneshot::channel();
        let mut found = Some(found);
        let follow = LogTail::default().follow(group.take_output().1.unwrap(), move |line| {
            if let Some((_, address)) = line.split_once("DevTools listening on ") {
                let _ = found.take().map(|found| found.send(address.to_owned()));
            }
        });
        let stderr = AbortOnDropHandle::new(tokio::spawn(follow));
        let settings = HandlerConfig { viewport: None, request_timeout: LIMIT, ..HandlerConfig::default() };
        let (cdp, mut handler) = Cdp::connect_with_config(address.await.unwrap(), settings).await.unwrap();
        let handler =
            AbortOnDropHandle::new(tokio::spawn(async move { while handler.next().await.is_some() {} }));
        let page = cdp.new_page(server.url()).await.unwrap();
        let bare = Self {
            page,
            _cdp: cdp,
            _tasks: [stderr, handler],
            _group: group,
            _profile: profile,
            _temporary: temporary,
        };

        let count = get::<Map<String, Value>>(server, "/object_info").await.len();
        wait_for("the bare page", LIMIT, || async { bare.is_ready(count).await }).await.unwrap();
        bare
    }

    /// The frontend has opened its own first workflow, and knows as many node types as the server has.
    async fn is_ready(&self, nodes: usize) -> bool {
        let script = format!(
            "Boolean(window.app?.extensionManager?.workflow?.activeWorkflow && !app.extensionManager.spinner
             && Object.keys(LiteGraph.registered_node_types).length >= {nodes})"
        );
        self.page.evaluate(script).await.is_ok_and(|answer| answer.into_value().unwrap_or(false))
    }

    /// What `graphToPrompt` gives for the workflow: `{output, workflow}`, or `{error}`.
    pub(crate) async fn answer(&self, workflow: &Value) -> Value {
        let mut call = CallFunctionOnParams::new(include_str!("bare.js"));
        let text = Value::from(workflow.to_string());
        call.arguments = Some(vec![CallArgument { value: Some(text), ..CallArgument::default() }]);
        call.await_promise = Some(true);
        call.return_by_value = Some(true);
        let answer =
            timeout(LIMIT, self.page.evaluate_function(call)).await.expect("the bare page is silent");
        serde_json::from_str(answer.unwrap().value().unwrap().as_str().unwrap()).unwrap()
    }
}
