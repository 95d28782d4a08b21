//! The Chromium and the pages that all clones of a [`Browser`](super::Browser) use, and how they are
//! replaced: one page converts, a spare one waits beside it to take its place.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use url::Url;

use super::{
    ConvertError,
    page::{FrontendVersion, Page},
    preload::PreloadedPage,
    process::{ANSWER_LIMIT, Chromium},
};
use crate::{config::BrowserConfig, metrics};

/// A page that waits for work and does not answer within this is replaced.
const PAGE_ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Anyone who holds the lock on it uses the page, or prepares it.
pub(super) type Slot = tokio::sync::Mutex<Option<Page>>;

/// Invariant: anyone who locks both locks `in_use` first.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: BrowserConfig,
    pub(super) in_use: Slot,
    pub(super) spare: Slot,
    /// The first page, opened before ComfyUI answered.
    preload: tokio::sync::Mutex<Option<PreloadedPage>>,
    server: Url,
    program: PathBuf,
    /// Held while Chromium is started: two would each think theirs is the only one. Whether one was.
    starting: tokio::sync::Mutex<bool>,
    current: Mutex<Option<Arc<Chromium>>>,
    served: Mutex<Option<Arc<FrontendVersion>>>,
    stopped: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: BrowserConfig, server: Url, program: PathBuf) -> Self {
        Self {
            config,
            in_use: Slot::default(),
            spare: Slot::default(),
            preload: tokio::sync::Mutex::default(),
            server,
            program,
            starting: tokio::sync::Mutex::default(),
            current: Mutex::default(),
            served: Mutex::default(),
            stopped: CancellationToken::new(),
        }
    }

    /// A page that answers: the one in use, else the spare one, else a new one, in a new Chromium if
    /// need be.
    pub(super) async fn page(&self, in_use: &mut Option<Page>) -> Result<Page, ConvertError> {
        if let Some(page) = self.answering(in_use).await {
            return Ok(page);
        }
        // Waits for one that is being prepared.
        if let Some(page) = self.answering(&mut *self.spare.lock().await).await {
            return Ok(page);
        }
        self.prepare().await
    }

    /// Sees to it that there is a spare page.
    pub(super) async fn prepare_spare(&self) -> Result<(), ConvertError> {
        let mut spare = self.spare.lock().await;
        let page = match self.answering(&mut spare).await {
            Some(page) => page,
            None => self.prepare().await?,
        };
        *spare = Some(page);
        Ok(())
    }

    /// Takes the page, if it answers.
    async fn answering(&self, slot: &mut Option<Page>) -> Option<Page> {
        let page = slot.take()?;
        match page.ping(PAGE_ANSWER_LIMIT).await {
            Ok(()) => return Some(page),
            Err(error) => tracing::warn!(%error, "replacing ComfyUI's page"),
        }
        self.discard(page).await;
        None
    }

    async fn prepare(&self) -> Result<Page, ConvertError> {
        let chromium = self.chromium().await?;
        let preload = self.preload.lock().await.take();
        let page = match preload {
            Some(preload) => match preload.released().await {
                Err(reason) => {
                    tracing::debug!(%reason, "the preloaded page cannot be used");
                    Page::prepare(chromium, &self.server).await
                }
                ready => ready,
            },
            None => Page::prepare(chromium, &self.server).await,
        };
        let page = page.map_err(|error| ConvertError::Browser(format!("{}: {error}", self.server)))?;
        *locked(&self.served) = Some(Arc::clone(page.served()));
        Ok(page)
    }

    /// Opens the first page before ComfyUI answers, from the frontend's files in `root`. The page is a
    /// gain of time and nothing else: without it all goes on as ever.
    pub(super) async fn foresee(&self, root: PathBuf) {
        let opened = async {
            let chromium = self.chromium().await.map_err(|error| error.to_string())?;
            PreloadedPage::open(chromium, &self.server, root).await.map_err(|error| error.to_string())
        };
        match opened.await {
            Ok(preload) => *self.preload.lock().await = Some(preload),
            Err(reason) => tracing::debug!(reason, "cannot preload a page"),
        }
    }

    /// The Chromium that runs and answers, else a new one.
    pub(super) async fn chromium(&self) -> Result<Arc<Chromium>, ConvertError> {
        let mut started = self.starting.lock().await;
        if let Some(chromium) = self.current() {
            match chromium.ping(ANSWER_LIMIT).await {
                Ok(()) => return Ok(chromium),
                Err(error) => tracing::warn!(%error, "replacing Chromium"),
            }
            self.end(&chromium).await;
        }
        if self.is_stopped() {
            return Err(is_shut_down());
        }
        let chromium = Chromium::start(&self.program, &self.config, &self.server)
            .await
            .map(Arc::new)
            .map_err(ConvertError::Browser)?;
        self.replace(Some(Arc::clone(&chromium)));
        if std::mem::replace(&mut *started, true) {
            metrics::restarted("browser", "lost");
        }
        // `stop` may have looked while there was nothing to stop.
        if self.is_stopped() {
            chromium.close().await;
            return Err(is_shut_down());
        }
        Ok(chromium)
    }

    /// Closes a page that must not be used again, and its Chromium when that cannot do even this.
    pub(super) async fn discard(&self, page: Page) {
        let chromium = Arc::clone(page.chromium());
        if let Err(error) = page.dispose().await {
            tracing::warn!(%error, "replacing Chromium");
            self.end(&chromium).await;
        }
    }

    /// Ends this Chromium, whichever is in use by then. Cancelled halfway, it is still found by
    /// [`Shared::stop`].
    async fn end(&self, chromium: &Arc<Chromium>) {
        chromium.close().await;
        let mut current = locked(&self.current);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, chromium)) {
            *current = None;
        }
    }

    /// What the last page serves.
    pub(super) fn served(&self) -> Option<Arc<FrontendVersion>> {
        locked(&self.served).clone()
    }

    /// The Chromium that was started last.
    pub(super) fn current(&self) -> Option<Arc<Chromium>> {
        locked(&self.current).clone()
    }

    fn replace(&self, chromium: Option<Arc<Chromium>>) -> Option<Arc<Chromium>> {
        std::mem::replace(&mut *locked(&self.current), chromium)
    }

    /// Nothing starts any more; the caller ends what is returned.
    pub(super) fn stop(&self) -> Option<Arc<Chromium>> {
        self.stopped.cancel();
        self.replace(None)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }

    pub(super) fn stopped(&self) -> WaitForCancellationFuture<'_> {
        self.stopped.cancelled()
    }
}

pub(super) fn is_shut_down() -> ConvertError {
    ConvertError::Stopped
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
