//! A page that is opened while ComfyUI still imports.
//!
//! Reading and running the frontend takes a page seconds, and its files are those of a package on this
//! disk. So they are served from there, by DevTools, and all else that the page asks for (node
//! definitions, settings, extensions) waits until ComfyUI answers. What was served is then compared
//! with what ComfyUI serves: another `index.html` is another frontend, whose page this is not.

use std::{
    fs::File,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chromiumoxide::{
    Page as CdpPage,
    cdp::browser_protocol::{
        fetch::{
            ContinueRequestParams, DisableParams, EnableParams, EventRequestPaused, FulfillRequestParams,
            HeaderEntry,
        },
        network::ResourceType,
    },
    error::CdpError,
};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use super::{
    page::{IdlePage, Page},
    process::{ANSWER_LIMIT, CallError, Chromium},
};

/// Longest answer to a request for `index.html`.
const INDEX_LIMIT: Duration = Duration::from_secs(10);
/// How the frontend's router calls the module of its one view.
const VIEW: &str = "GraphView-";
/// From ComfyUI's answer until the page can convert; after that one is made in the common way.
const READY_LIMIT: Duration = Duration::from_secs(40);
/// Held requests that are let go at a time.
const SIDE_BY_SIDE: usize = 16;
const OPENING: &str = "opening ComfyUI's page";

/// The page, waiting for ComfyUI.
#[derive(Debug)]
pub(super) struct PreloadedPage {
    blank: IdlePage,
    server: Url,
    index: PathBuf,
    /// Set once ComfyUI answers.
    answers: watch::Sender<bool>,
    opening: AbortOnDropHandle<Result<(), CdpError>>,
    _gate: AbortOnDropHandle<()>,
}

impl PreloadedPage {
    /// Sends a new page to `server`, where nobody answers yet. `root`: the frontend's files.
    pub(super) async fn open(
        chromium: Arc<Chromium>,
        server: &Url,
        root: PathBuf,
    ) -> Result<Self, CallError> {
        let blank = IdlePage::open(chromium).await?;
        let page = blank.cdp().clone();
        let listen = page.event_listener::<EventRequestPaused>();
        let requests = blank.chromium().call("requests", ANSWER_LIMIT, listen).await?;
        let intercept = page.execute(EnableParams::default());
        blank.chromium().call("holding requests", ANSWER_LIMIT, intercept).await?;
        let (answers, answering) = watch::channel(false);
        let index = root.join("index.html");
        let (chromium, server) = (Arc::clone(blank.chromium()), server.clone());
        let gate = Gate { chromium, page: page.clone(), server: server.clone(), root, answering };
        let gate = AbortOnDropHandle::new(tokio::spawn(gate.keep(requests)));
        let target = server.to_string();
        let opening = AbortOnDropHandle::new(tokio::spawn(async move { page.goto(target).await.map(drop) }));
        Ok(Self { blank, server, index, answers, opening, _gate: gate })
    }

    /// ComfyUI answers: the page, once it can convert.
    pub(super) async fn released(self) -> Result<Page, CallError> {
        self.check_index().await.map_err(|text| CallError::Failed { what: OPENING, text })?;
        self.answers.send_replace(true);
        let opened = async { self.opening.await.unwrap_or(Err(CdpError::NoResponse)) };
        self.blank.chromium().call(OPENING, READY_LIMIT, opened).await?;
        let page = self.blank.cdp().clone();
        let ready = self.blank.ready(READY_LIMIT).await?;
        // Nothing is held any more; from here on the page is like any other.
        ready.chromium().call("letting requests go", ANSWER_LIMIT, page.execute(DisableParams {})).await?;
        Ok(ready)
    }

    async fn check_index(&self) -> Result<(), String> {
        let ours = tokio::fs::read(&self.index).await.map_err(|error| error.to_string())?;
        let answer = async {
            let client = reqwest::Client::builder().no_proxy().timeout(INDEX_LIMIT).build()?;
            client.get(self.server.clone()).send().await?.error_for_status()?.bytes().await
        };
        let served = answer.await.map_err(|error| error.to_string())?;
        if served == ours { Ok(()) } else { Err("ComfyUI serves another frontend".to_owned()) }
    }
}

/// Answers the page's requests from the disk, or holds them.
struct Gate {
    chromium: Arc<Chromium>,
    page: CdpPage,
    server: Url,
    root: PathBuf,
    answering: watch::Receiver<bool>,
}

impl Gate {
    async fn keep(mut self, mut requests: impl futures_util::Stream<Item = Arc<EventRequestPaused>> + Unpin) {
        let mut held = Vec::new();
        loop {
            let opened = async {
                // An error: nobody will say so any more, and the page is being dropped.
                let _ = self.answering.wait_for(|answers| *answers).await;
            };
            tokio::select! {
                () = opened => break,
                request = requests.next() => {
                    let Some(request) = request else { return };
                    if !self.answer(&request, true) {
                        if held.is_empty() {
                            self.look_ahead().await;
                        }
                        held.push(request);
                    }
                }
            }
        }
        let rest = futures_util::stream::iter(held).chain(requests);
        let gate = &self;
        let on_its_way = |request: Arc<EventRequestPaused>| async move {
            if !gate.answer(&request, false) {
                let go_on = ContinueRequestParams::new(request.request_id.clone());
                gate.ask("letting a request go", gate.page.execute(go_on)).await;
            }
        };
        rest.for_each_concurrent(SIDE_BY_SIDE, on_its_way).await;
    }

    /// Has the page load the view that it opens once ComfyUI has told it its users: a second of work.
    async fn look_ahead(&self) {
        let Ok(mut assets) = tokio::fs::read_dir(self.root.join("assets")).await else { return };
        while let Ok(Some(asset)) = assets.next_entry().await {
            let name = asset.file_name();
            if let Some(name) = name.to_str().filter(|name| name.starts_with(VIEW) && name.ends_with(".js")) {
                let import = format!("void import({})", serde_json::json!(format!("./assets/{name}")));
                self.ask("a look ahead", self.page.evaluate_expression(import)).await;
            }
        }
    }

    async fn ask<T>(&self, what: &'static str, answer: impl Future<Output = Result<T, CdpError>>) {
        if let Err(error) = self.chromium.call(what, ANSWER_LIMIT, answer).await {
            tracing::debug!(%error, "the preloaded page failed");
        }
    }

    /// Answers without ComfyUI, where that can be. `alone`: ComfyUI does not answer yet.
    fn answer(&self, paused: &EventRequestPaused, alone: bool) -> bool {
        let url = paused.request.url.parse::<Url>().ok();
        let own = url.filter(|url| url.origin() == self.server.origin());
        let path = own.and_then(|url| file_of(&self.root, url.path()));
        let Some(path) = path else { return false };
        // A folder may have the name of one of ComfyUI's calls.
        let opened = File::open(&path).ok().filter(|file| file.metadata().is_ok_and(|found| found.is_file()));
        let (file, kind) = match opened {
            Some(file) => (file, mime_guess::from_path(&path).first_or_octet_stream()),
            // The user's own style sheets would hold up every script, and nobody looks at this page.
            None if alone && paused.resource_type == ResourceType::Stylesheet => {
                match File::open("/dev/null") {
                    Ok(empty) => (empty, mime_guess::mime::TEXT_CSS),
                    Err(_) => return false,
                }
            }
            None => return false,
        };
        let mut answer = FulfillRequestParams::new(paused.request_id.clone(), 200);
        answer.response_headers = Some(vec![HeaderEntry::new("Content-Type", kind.to_string())]);
        let session = self.page.session_id().as_ref();
        match serde_json::to_value(&answer) {
            Ok(params) => {
                self.chromium.side_door().send_file(session, FulfillRequestParams::IDENTIFIER, &params, file);
                true
            }
            Err(_) => false,
        }
    }
}

/// The file under `root` that a path of the page's own address stands for.
fn file_of(root: &Path, path: &str) -> Option<PathBuf> {
    let path = percent_encoding::percent_decode_str(path.trim_start_matches('/')).decode_utf8().ok()?;
    let path = if path.is_empty() { "index.html" } else { &*path };
    let under = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    under.then(|| root.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_beneath_the_root_are_served() {
        let of = |path| file_of(Path::new("/root"), path);
        assert_eq!(of("/"), Some("/root/index.html".into()));
        assert_eq!(of("/assets/a%20b.js"), Some("/root/assets/a b.js".into()));
        for outside in ["/../x", "/assets/../../x", "//etc/passwd/..", "/%2e%2e/x", "/./x"] {
            assert_eq!(of(outside), None, "{outside}");
        }
    }
}
