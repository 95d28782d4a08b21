//! The Chromium and the page that all clones of a [`Browser`](super::Browser) use, and how either
//! is replaced.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use url::Url;

use super::{
    ConvertError,
    page::Page,
    process::{ANSWER_LIMIT, Chromium},
};
use crate::config::BrowserConfig;

/// A page that waits for work and does not answer within this is replaced.
const PAGE_ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Whoever holds the lock on it converts, or prepares the page.
#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) page: Option<Page>,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: BrowserConfig,
    pub(super) slot: tokio::sync::Mutex<Slot>,
    server: Url,
    program: PathBuf,
    current: Mutex<Option<Arc<Chromium>>>,
    frontend: Mutex<Option<String>>,
    stopped: CancellationToken,
}

impl Shared {
    pub(super) fn new(config: BrowserConfig, server: Url, program: PathBuf) -> Self {
        Self {
            config,
            slot: tokio::sync::Mutex::default(),
            server,
            program,
            current: Mutex::default(),
            frontend: Mutex::default(),
            stopped: CancellationToken::new(),
        }
    }

    /// A page that answers: the one in the slot, else a new one, in a new Chromium if need be.
    pub(super) async fn page(&self, slot: &mut Slot) -> Result<Page, ConvertError> {
        if let Some(page) = slot.page.take() {
            match page.ping(PAGE_ANSWER_LIMIT).await {
                Ok(()) => return Ok(page),
                Err(error) => tracing::warn!(%error, "replacing ComfyUI's page"),
            }
            self.discard(page).await;
        }
        let chromium = self.chromium().await?;
        let page = Page::prepare(chromium, &self.server)
            .await
            .map_err(|error| ConvertError::Browser(format!("{}: {error}", self.server)))?;
        *locked(&self.frontend) = Some(page.frontend().to_owned());
        Ok(page)
    }

    /// The Chromium that runs and answers, else a new one.
    pub(super) async fn chromium(&self) -> Result<Arc<Chromium>, ConvertError> {
        if let Some(chromium) = self.current() {
            match chromium.ping(ANSWER_LIMIT).await {
                Ok(()) => return Ok(chromium),
                Err(error) => tracing::warn!(%error, "replacing Chromium"),
            }
            self.replace(None);
            chromium.close().await;
        }
        if self.is_stopped() {
            return Err(is_shut_down());
        }
        let chromium = Chromium::start(&self.program, &self.config, &self.server)
            .await
            .map(Arc::new)
            .map_err(ConvertError::Browser)?;
        self.replace(Some(Arc::clone(&chromium)));
        // `stop` may have looked while there was nothing to stop.
        if self.is_stopped() {
            chromium.close().await;
            return Err(is_shut_down());
        }
        Ok(chromium)
    }

    /// Closes a page that must not be used again, and Chromium when it cannot do even that.
    pub(super) async fn discard(&self, page: Page) {
        if let Err(error) = page.dispose().await {
            tracing::warn!(%error, "replacing Chromium");
            if let Some(chromium) = self.replace(None) {
                chromium.close().await;
            }
        }
    }

    /// The version of the last page's frontend.
    pub(super) fn frontend(&self) -> Option<String> {
        locked(&self.frontend).clone()
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
    ConvertError::Browser("it is shut down".into())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
