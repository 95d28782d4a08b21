//! A page of ComfyUI's frontend as the original opens it: in a browser of its own, for itself.

use std::time::Duration;

use chromiumoxide::{Browser, BrowserConfig, Page};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;

/// Waits until the frontend is set up; what the original's `typeof window.app` was meant to tell.
const READY: &str = r"async () => {
    const types = Object.keys(await (await fetch('api/object_info')).json());
    const isReady = () => window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow
        && types.every((type) => Object.hasOwn(window.LiteGraph.registered_node_types, type));
    while (!isReady()) await new Promise((done) => setTimeout(done, 25));
}";

/// Converts; with the milliseconds that only the frontend's two calls took.
const CONVERT: &str = r"async (text) => {
    const workflow = JSON.parse(text);
    const begin = performance.now();
    await window.app.loadGraphData(workflow, true, false, null,
        {showMissingNodesDialog: false, showMissingModelsDialog: false});
    const prompt = await window.app.graphToPrompt();
    return JSON.stringify([prompt.output, performance.now() - begin]);
}";

/// A browser with one page.
pub(crate) struct LonePage {
    browser: Browser,
    page: Page,
    handler: JoinHandle<()>,
    _profile: tempfile::TempDir,
}

impl LonePage {
    pub(crate) async fn open(url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let settings = BrowserConfig::builder()
            .user_data_dir(profile.path())
            .window_size(1280, 720)
            .request_timeout(Duration::from_secs(120))
            .no_sandbox()
            .args(["--enable-webgl", "--disable-gpu", "--disable-background-networking"])
            .build()
            .unwrap();
        let (browser, mut handler) = Browser::launch(settings).await.unwrap();
        let handler = tokio::spawn(async move { while handler.next().await.is_some() {} });
        let page = browser.new_page(url).await.unwrap();
        page.evaluate_function(READY).await.unwrap();
        Self { browser, page, handler, _profile: profile }
    }

    /// The prompt, and the milliseconds that the page itself needed.
    pub(crate) async fn convert(&self, workflow: &Value) -> (Value, f64) {
        use chromiumoxide::cdp::js_protocol::runtime::{CallArgument, CallFunctionOnParams};
        let mut call = CallFunctionOnParams::new(CONVERT);
        let text = Value::String(workflow.to_string());
        call.arguments = Some(vec![CallArgument { value: Some(text), ..CallArgument::default() }]);
        call.await_promise = Some(true);
        call.return_by_value = Some(true);
        let answer: String = self.page.evaluate_function(call).await.unwrap().into_value().unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    pub(crate) async fn close(mut self) {
        self.browser.close().await.unwrap();
        self.browser.wait().await.unwrap();
        self.handler.abort();
    }
}
