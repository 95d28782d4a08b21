//! One page of ComfyUI's frontend in a browser context of its own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chromiumoxide::{
    Page as CdpPage,
    cdp::{
        browser_protocol::{
            browser::BrowserContextId,
            target::{CreateBrowserContextParams, CreateTargetParams, EventTargetCrashed},
        },
        js_protocol::runtime::{CallArgument, CallFunctionOnParams},
    },
    error::CdpError,
};
use contract::text::one_line;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use url::Url;

use super::{
    convert::Answer,
    process::{ANSWER_LIMIT, CallError, Chromium},
};

/// From nothing to ready. 4–5 s measured on two cores; thousands of node types take longer.
const PREPARE_LIMIT: Duration = Duration::from_secs(90);
/// For a page that loads nothing.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// What a call of [`Page::convert`] is called in errors.
pub(super) const CONVERSION: &str = "the conversion";
const DOCUMENT: &str = concat!(include_str!("document.js"), include_str!("guard.js"));
const READY: &str = include_str!("ready.js");
const CONVERT: &str = include_str!("convert.js");

/// A page in a context of its own that has not loaded anything yet.
#[derive(Debug)]
pub(super) struct IdlePage {
    page: CdpPage,
    context: Context,
    crashed: CancellationToken,
    _watch: AbortOnDropHandle<()>,
}

/// A page that is ready to convert.
#[derive(Debug)]
pub(super) struct Page {
    opened: IdlePage,
    served: Arc<FrontendVersion>,
    conversions: u32,
}

/// What a conversion depends on beside the workflow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FrontendVersion {
    /// The frontend's version.
    pub(super) frontend: String,
    /// A digest of the server's node definitions, the lists of its files in them.
    pub(super) definitions: String,
}

#[derive(Deserialize)]
struct Readiness {
    #[serde(default)]
    ready: bool,
    #[serde(default)]
    stage: String,
    #[serde(default)]
    frontend: String,
    #[serde(default)]
    definitions: String,
    #[serde(default)]
    unregistered: Vec<String>,
}

impl IdlePage {
    /// A new context and page. Dropping it, or the future, leaves nothing behind.
    pub(super) async fn open(chromium: Arc<Chromium>) -> Result<Self, CallError> {
        let context = Context::create(chromium).await?;
        let chromium = &context.chromium;
        let mut blank = CreateTargetParams::new("about:blank");
        blank.browser_context_id = Some(context.id.clone());
        let page = chromium.call("a new page", OPEN_LIMIT, chromium.cdp().new_page(blank)).await?;
        let (crashed, watch) = watch_for_crash(chromium, &page).await?;
        chromium.call("a script", OPEN_LIMIT, page.evaluate_on_new_document(DOCUMENT)).await?;
        Ok(Self { page, context, crashed, _watch: watch })
    }

    /// The page, for DevTools.
    pub(super) fn cdp(&self) -> &CdpPage {
        &self.page
    }

    /// The Chromium that it belongs to.
    pub(super) fn chromium(&self) -> &Arc<Chromium> {
        &self.context.chromium
    }

    /// Itself once the frontend that it has been sent to can convert.
    pub(super) async fn ready(self, limit: Duration) -> Result<Page, CallError> {
        let started = Instant::now();
        let poll = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        // The page gives up first, and can say what it waited for.
        let ready = call_function(&self.page, READY, poll.into());
        let ready = tokio::select! {
            ready = self.chromium().call("the frontend's set-up", limit + ANSWER_LIMIT, ready) => ready?,
            () = self.crashed.cancelled() => return Err(CallError::Crashed),
        };
        let failed = |text| CallError::Failed { what: "the frontend's set-up", text };
        let ready: Readiness = serde_json::from_value(ready).map_err(|error| failed(error.to_string()))?;
        if !ready.ready {
            let stage = one_line(&ready.stage, 200);
            return Err(failed(format!("still waiting after {:?} until {stage}", started.elapsed())));
        }
        if !ready.unregistered.is_empty() {
            tracing::warn!(types = ?ready.unregistered, "the frontend did not register some of the server's node types");
        }
        tracing::debug!(frontend = ready.frontend, took = ?started.elapsed(), "page ready");
        let served = Arc::new(FrontendVersion { frontend: ready.frontend, definitions: ready.definitions });
        Ok(Page { opened: self, served, conversions: 0 })
    }
}

impl Page {
    /// A new context and page at `server`, ready. Dropping the future leaves nothing behind.
    pub(super) async fn prepare(chromium: Arc<Chromium>, server: &Url) -> Result<Self, CallError> {
        let started = Instant::now();
        let left = || PREPARE_LIMIT.saturating_sub(started.elapsed()).max(ANSWER_LIMIT);
        let blank = IdlePage::open(chromium).await?;
        let opening = blank.page.goto(server.as_str());
        blank.chromium().call("opening ComfyUI's page", left(), opening).await?;
        blank.ready(left()).await
    }

    /// The frontend and the node types that this page has.
    pub(super) fn served(&self) -> &Arc<FrontendVersion> {
        &self.served
    }

    /// The Chromium that it belongs to.
    pub(super) fn chromium(&self) -> &Arc<Chromium> {
        self.opened.chromium()
    }

    /// How many conversions were tried here.
    pub(super) fn conversions(&self) -> u32 {
        self.conversions
    }

    /// Whether it has seen no workflow but the one that was just converted.
    pub(super) fn is_fresh(&self) -> bool {
        self.conversions <= 1
    }

    /// Whether the page's own process answers.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), CallError> {
        self.call("a sign of life", limit, "() => 1", Value::Null).await.map(drop)
    }

    /// Converts the workflow in `text`. After an error the page is not fit for another one.
    pub(super) async fn convert(&mut self, text: &str, limit: Duration) -> Result<Answer, CallError> {
        self.conversions += 1;
        let answer = self.call(CONVERSION, limit, CONVERT, text.into());
        let answer = tokio::select! {
            answer = answer => answer?,
            // A stopped browser is noticed within seconds, whatever the conversion's limit is.
            error = self.chromium().watch() => return Err(error),
        };
        let Value::String(answer) = answer else {
            return Err(CallError::Failed { what: CONVERSION, text: "its answer is no text".into() });
        };
        Answer::parse(answer).map_err(|text| CallError::Failed { what: "the conversion's answer", text })
    }

    async fn call(
        &self,
        what: &'static str,
        limit: Duration,
        function: &str,
        argument: Value,
    ) -> Result<Value, CallError> {
        let IdlePage { page, crashed, .. } = &self.opened;
        tokio::select! {
            answer = self.chromium().call(what, limit, call_function(page, function, argument)) => answer,
            () = crashed.cancelled() => Err(CallError::Crashed),
        }
    }

    /// Closes the page with all that it stored.
    pub(super) async fn dispose(mut self) -> Result<(), CallError> {
        self.opened.context.dispose().await
    }
}

/// Calls a JavaScript function with one argument; what it returns, `null` for what JSON cannot hold.
async fn call_function(page: &CdpPage, function: &str, argument: Value) -> Result<Value, CdpError> {
    let mut call = CallFunctionOnParams::new(function);
    call.arguments = Some(vec![CallArgument { value: Some(argument), ..CallArgument::default() }]);
    call.await_promise = Some(true);
    call.return_by_value = Some(true);
    Ok(page.evaluate_function(call).await?.value().cloned().unwrap_or_default())
}

/// After a crash of the page's process no pending call is ever answered.
async fn watch_for_crash(
    chromium: &Chromium,
    page: &CdpPage,
) -> Result<(CancellationToken, AbortOnDropHandle<()>), CallError> {
    let listen = chromium.cdp().event_listener::<EventTargetCrashed>();
    let mut events = chromium.call("crash events", ANSWER_LIMIT, listen).await?;
    let crashed = CancellationToken::new();
    let (token, target) = (crashed.clone(), page.target_id().clone());
    let watch = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if event.target_id == target {
                tracing::warn!(status = event.status, "the frontend's page crashed");
                token.cancel();
            }
        }
    });
    Ok((crashed, AbortOnDropHandle::new(watch)))
}

/// A browser context: cookies, storage and pages that no other context sees.
#[derive(Debug)]
struct Context {
    chromium: Arc<Chromium>,
    id: BrowserContextId,
    disposed: bool,
}

impl Context {
    async fn create(chromium: Arc<Chromium>) -> Result<Self, CallError> {
        let create = chromium.cdp().create_browser_context(CreateBrowserContextParams::default());
        let id = chromium.call("a new context", ANSWER_LIMIT * 5, create).await?;
        Ok(Self { chromium, id, disposed: false })
    }

    async fn dispose(&mut self) -> Result<(), CallError> {
        self.disposed = true;
        dispose(&self.chromium, self.id.clone()).await
    }
}

impl Drop for Context {
    /// A dropped future (a cancelled job) must not leave its page running.
    fn drop(&mut self) {
        if self.disposed || self.chromium.is_dead() {
            return;
        }
        let (chromium, id) = (Arc::clone(&self.chromium), self.id.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = dispose(&chromium, id).await {
                    tracing::warn!(%error, "cannot close a page, closing Chromium");
                    chromium.close().await;
                }
            });
        }
    }
}

async fn dispose(chromium: &Chromium, id: BrowserContextId) -> Result<(), CallError> {
    chromium.call("closing a page", ANSWER_LIMIT, chromium.cdp().dispose_browser_context(id)).await
}
