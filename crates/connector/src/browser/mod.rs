//! Chromium: a warm page of ComfyUI's own frontend that turns UI workflows into prompts, and a spare
//! one beside it.
//!
//! ```text
//! Browser ─┬─ ConversionCache (by content)
//!          └─ Shared ─┬─ page in use ── browser context ─┐
//!                     ├─ spare page ─── browser context ─┤
//!                     └──────────────────────────── Chromium (process group, profile, DevTools' pipe)
//! ```
//!
//! Invariants: a page is either fit for the next conversion or gone (after any error, and when a
//! conversion was cancelled halfway, its context is closed); no workflow finds anything of an earlier
//! one in its page (`guard.js`: what a workflow defines is removed afterwards, and a page in which one
//! changed anything else is not used again); a Chromium that does not answer is killed with its whole
//! group before another one starts; nothing waits for Chromium without a time limit.

mod cache;
mod command;
mod convert;
mod find;
mod hostile;
mod install;
mod page;
mod pipe;
mod preload;
mod process;
mod profile;
mod shared;
mod unpack;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{sync::Notify, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use url::Url;

use self::{
    cache::{ConversionCache, Key},
    convert::Answer,
    page::Page,
    process::{ANSWER_LIMIT, CallError},
    shared::Shared,
};
use crate::{config::BrowserConfig, metrics};

/// Tries for one workflow, each in a fresh context.
const ATTEMPTS: u32 = 3;
/// A spare page is prepared this long after the one in use: 4–5 s of work that must not delay the first
/// jobs. After an error it is prepared at once.
const SPARE_AFTER: Duration = Duration::from_secs(15);
/// The frontend keeps a tab for every workflow that it loads: a page's memory grows until it is replaced.
const CONVERSIONS_PER_PAGE: u32 = 100;

/// What the frontend's `graphToPrompt` made of a UI workflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversion {
    /// The prompt: node id to `{class_type, inputs, _meta}`.
    pub prompt: Map<String, Value>,
    /// The workflow as the frontend saved it: goes into `extra_pnginfo`, so that PNGs open again.
    pub workflow: Value,
    /// What the publisher should know, such as numbers that JavaScript rounded.
    pub warnings: Vec<String>,
}

/// Why a workflow could not be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The workflow uses node types that this server lacks: the job's fault. The list is complete and sorted.
    #[error("this server lacks the node types {}", .0.join(", "))]
    MissingNodes(Vec<String>),
    /// The frontend refused the workflow, in its own words: the job's fault.
    #[error("the frontend cannot convert this workflow: {0}")]
    Refused(String),
    /// No answer within the limit, after retries in fresh pages.
    #[error("no conversion within {0:?}")]
    TimedOut(Duration),
    /// It was stopped meanwhile, with the ComfyUI that it belongs to.
    #[error("the browser was stopped")]
    Stopped,
    /// The page crashed meanwhile.
    #[error("browser: the page crashed")]
    PageCrashed,
    /// Chromium is missing, cannot start, or died and did not come back: the worker's fault.
    #[error("browser: {0}")]
    Browser(String),
}

/// What an error says about the workflow, and whether another attempt makes no sense. In a used page an earlier workflow may
/// be to blame. One that takes too long in a fresh page would do so again, and hold up all others meanwhile; one that
/// crashed two of them, each with gigabytes, would crash a third.
fn judged(error: ConvertError, fresh: bool, crashes: &mut u32) -> (ConvertError, bool) {
    match error {
        ConvertError::MissingNodes(_) => (error, true),
        ConvertError::Refused(_) | ConvertError::TimedOut(_) => (error, fresh),
        ConvertError::PageCrashed if fresh && *crashes > 0 => {
            (ConvertError::Refused("it crashed ComfyUI's page twice".to_owned()), true)
        }
        ConvertError::PageCrashed => {
            *crashes += u32::from(fresh);
            (error, false)
        }
        error => (error, false),
    }
}

/// What became of a conversion, and of its page.
enum Attempt {
    /// The page is fit for another one.
    Fit(Conversion),
    /// It is not: the workflow, the page's first one, changed it.
    Last(Conversion),
    /// Not converted, or not to be trusted: the page was changed by an earlier workflow.
    Worn,
}

/// A headless Chromium with a page of ComfyUI's frontend, ready to convert.
///
/// Cheap to clone; conversions run one after the other, however many tasks ask. Ends with
/// [`Browser::shutdown`], or when the last clone is dropped: no process and no folder is left.
#[derive(Clone, Debug)]
pub struct Browser(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
    known: ConversionCache,
    warming: std::sync::Mutex<Option<AbortOnDropHandle<()>>>,
    /// The spare page is wanted at once.
    hurry: Arc<Notify>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.stop().iter().for_each(|chromium| chromium.kill());
    }
}

impl Browser {
    /// Starts Chromium, which may reach `server` and nothing else. ComfyUI need not answer yet.
    ///
    /// # Errors
    /// [`ConvertError::Browser`]: no Chromium is there and none may be installed, or it does not start.
    pub async fn launch(config: BrowserConfig, server: Url) -> Result<Self, ConvertError> {
        let program = install::chromium(&config).await?;
        let shared = Arc::new(Shared::new(config, server, program));
        let (warming, hurry) = (std::sync::Mutex::default(), Arc::default());
        let browser = Self(Arc::new(Owner { shared, known: ConversionCache::new(), warming, hurry }));
        browser.0.shared.chromium().await?;
        Ok(browser)
    }

    /// Opens ComfyUI's page before ComfyUI answers: the frontend's own files are read from `root`, the
    /// folder that ComfyUI will serve; what else the page asks for waits. [`Browser::attach`] goes on with
    /// it, unless ComfyUI then serves another frontend.
    pub async fn foresee(&self, root: PathBuf) {
        self.0.shared.foresee(root).await;
    }

    /// Opens ComfyUI's page and waits until it can convert: 4–5 s on two cores. ComfyUI must
    /// answer. Call it again after ComfyUI restarted: its node types may be others.
    ///
    /// # Errors
    /// [`ConvertError::Browser`]: what the page waited for, or what Chromium said.
    pub async fn attach(&self) -> Result<(), ConvertError> {
        let shared = &self.0.shared;
        let mut in_use = shared.in_use.lock().await;
        for slot in [&mut *in_use, &mut *shared.spare.lock().await] {
            if let Some(page) = slot.take() {
                shared.discard(page).await;
            }
        }
        let mut attempt = 1;
        let page = loop {
            match shared.page(&mut in_use).await {
                Err(error) if attempt == ATTEMPTS || shared.is_stopped() => return Err(error),
                Err(error) => tracing::warn!(%error, attempt, "ComfyUI's page is not ready, trying again"),
                Ok(page) => break page,
            }
            attempt += 1;
        };
        *in_use = Some(page);
        self.keep_spare(SPARE_AFTER);
        Ok(())
    }

    /// [`Browser::launch`], then [`Browser::attach`].
    ///
    /// # Errors
    /// As those.
    pub async fn start(config: BrowserConfig, server: Url) -> Result<Self, ConvertError> {
        let browser = Self::launch(config, server).await?;
        match browser.attach().await {
            Ok(()) => Ok(browser),
            Err(error) => {
                browser.shutdown().await;
                Err(error)
            }
        }
    }

    /// Turns a UI workflow into a prompt. One that was converted before, by the same frontend for the
    /// same node definitions, is known, unless it holds dynamic prompts. Any other takes up to three
    /// attempts; `browser.convert_timeout` limits each attempt's conversion alone, replacing a page or
    /// Chromium before it has limits of its own. An empty graph gives an empty prompt.
    ///
    /// # Errors
    /// [`ConvertError::MissingNodes`] and [`ConvertError::Refused`] blame the workflow, the others
    /// the worker. After every error the next conversion has a fresh page.
    pub async fn convert(&self, workflow: &Value) -> Result<Conversion, ConvertError> {
        let Owner { shared, known, .. } = &*self.0;
        let text = convert::text_of(workflow)?;
        let served = shared.served();
        let known = served.and_then(|served| known.get(&Key::new(&text, &served), workflow));
        metrics::converted(known.is_some());
        if let Some(conversion) = known {
            return if shared.is_stopped() { Err(shared::is_shut_down()) } else { Ok(conversion) };
        }
        tokio::select! {
            outcome = self.attempts(workflow, &text) => outcome,
            () = shared.stopped() => Err(shared::is_shut_down()),
        }
    }

    async fn attempts(&self, workflow: &Value, text: &str) -> Result<Conversion, ConvertError> {
        let shared = &self.0.shared;
        let mut in_use = shared.in_use.lock().await;
        let (mut attempt, mut crashes) = (1, 0);
        loop {
            // Taken out of the slot: when this future is dropped, so is the page.
            let (error, last) = match shared.page(&mut in_use).await {
                Err(error) => (error, false),
                Ok(mut page) => match self.attempt(&mut page, workflow, text).await {
                    Ok(Attempt::Fit(conversion)) => {
                        let fresh = page.is_fresh();
                        // One that has grown closes in the background, by its drop.
                        *in_use = Some(page).filter(|page| page.conversions() < CONVERSIONS_PER_PAGE);
                        if fresh {
                            self.keep_spare(SPARE_AFTER);
                        }
                        return Ok(conversion);
                    }
                    Ok(Attempt::Last(conversion)) => {
                        shared.discard(page).await;
                        self.keep_spare(Duration::ZERO);
                        return Ok(conversion);
                    }
                    // No attempt: at most one more page, and that is a fresh one.
                    Ok(Attempt::Worn) => {
                        shared.discard(page).await;
                        continue;
                    }
                    Err(error) => {
                        let fresh = page.is_fresh();
                        shared.discard(page).await;
                        judged(error, fresh, &mut crashes)
                    }
                },
            };
            if last || attempt == ATTEMPTS {
                self.keep_spare(Duration::ZERO);
                return Err(error);
            }
            tracing::warn!(%error, attempt, "converting again in a fresh page");
            attempt += 1;
        }
    }

    async fn attempt(&self, page: &mut Page, workflow: &Value, text: &str) -> Result<Attempt, ConvertError> {
        let limit = self.0.shared.config.convert_timeout;
        let (prompt, saved, lasting, worn) = match page.convert(text, limit).await {
            Ok(Answer::Converted { prompt, workflow, lasting, worn }) => (prompt, workflow, lasting, worn),
            Ok(Answer::Worn(reason)) if !page.is_fresh() => {
                tracing::warn!(reason, "an earlier workflow left something in ComfyUI's page, replacing it");
                return Ok(Attempt::Worn);
            }
            Ok(Answer::Worn(reason)) => return Err(ConvertError::Browser(format!("a fresh page: {reason}"))),
            Ok(Answer::Missing(types)) => return Err(ConvertError::MissingNodes(types)),
            Ok(Answer::Refused(message)) => return Err(ConvertError::Refused(message)),
            Err(CallError::Silent { what: page::CONVERSION, .. }) => {
                return Err(ConvertError::TimedOut(limit));
            }
            Err(CallError::Crashed) => return Err(ConvertError::PageCrashed),
            Err(error) => return Err(ConvertError::Browser(error.to_string())),
        };
        if let Some(reason) = &worn {
            tracing::warn!(reason, "a workflow left something in ComfyUI's page, replacing it");
            // This one, or an earlier one just now.
            if !page.is_fresh() {
                return Ok(Attempt::Worn);
            }
        }
        if let Some(answer) = lasting {
            self.0.known.put(Key::new(text, page.served()), workflow, answer);
        }
        let conversion = Conversion::new(prompt, saved, workflow);
        Ok(if worn.is_some() { Attempt::Last(conversion) } else { Attempt::Fit(conversion) })
    }

    /// Prepares a spare page in the background, where there is none. Whether one is being prepared
    /// already.
    fn keep_spare(&self, after: Duration) -> bool {
        let Owner { shared, warming, hurry, .. } = &*self.0;
        let mut warming = warming.lock().unwrap_or_else(PoisonError::into_inner);
        if warming.as_ref().is_some_and(|task| !task.is_finished()) {
            if after.is_zero() {
                hurry.notify_one();
            }
            return true;
        }
        let (shared, hurry) = (Arc::clone(shared), Arc::clone(hurry));
        *warming = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            // Either: it is time.
            let _ = timeout(after, hurry.notified()).await;
            if let Err(error) = shared.prepare_spare().await {
                tracing::warn!(%error, "cannot prepare the next page");
            }
        })));
        false
    }

    /// Chromium's product and version, such as `Chrome/156.0.8078.79`; empty while none runs.
    pub async fn version(&self) -> String {
        self.0.shared.current().map(|chromium| chromium.product().to_owned()).unwrap_or_default()
    }

    /// The version of the frontend that converts, once a page was ready. What a workflow becomes
    /// depends on it.
    #[must_use]
    pub fn frontend_version(&self) -> Option<String> {
        Some(self.0.shared.served()?.frontend.clone())
    }

    /// Resident memory of all of Chromium's processes, in bytes. Reads the process table.
    #[must_use]
    pub fn rss(&self) -> u64 {
        self.0.shared.current().map_or(0, |chromium| chromium.rss())
    }

    /// Whether a page waits to take the place of the one in use.
    #[must_use]
    pub fn has_spare(&self) -> bool {
        self.0.shared.spare.try_lock().is_ok_and(|page| page.is_some())
    }

    /// Whether Chromium answers and a page is ready, being used or being prepared. Takes 3 s at most. A
    /// page that is missing is prepared in the background.
    ///
    /// # Errors
    /// [`ConvertError::Browser`]: what is unhealthy.
    pub async fn validate(&self) -> Result<(), ConvertError> {
        let shared = &self.0.shared;
        let unhealthy = |text: &str| Err(ConvertError::Browser(text.into()));
        if shared.is_stopped() {
            return Err(shared::is_shut_down());
        }
        let Some(chromium) = shared.current().filter(|chromium| !chromium.is_dead()) else {
            self.keep_spare(Duration::ZERO);
            return unhealthy("Chromium does not run");
        };
        if let Err(error) = chromium.ping(ANSWER_LIMIT).await {
            self.keep_spare(Duration::ZERO);
            return unhealthy(&error.to_string());
        }
        for slot in [&shared.in_use, &shared.spare] {
            // Locked: anyone who uses or prepares it notices when it stops answering.
            let Ok(mut page) = slot.try_lock() else { return Ok(()) };
            if let Some(found) = &*page {
                match found.ping(ANSWER_LIMIT).await {
                    Ok(()) => return Ok(()),
                    // Closed by its drop; the spare one, or a new one, takes its place.
                    Err(error) => {
                        tracing::warn!(%error, "replacing ComfyUI's page");
                        *page = None;
                    }
                }
            }
        }
        if self.keep_spare(Duration::ZERO) { Ok(()) } else { unhealthy("no page of ComfyUI is ready") }
    }

    /// Closes Chromium within 1 s, else kills it, and removes its profile. A conversion in
    /// progress fails. Idempotent.
    pub async fn shutdown(&self) {
        let chromium = self.0.shared.stop();
        let warming = self.0.warming.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(warming) = warming {
            // It may have started another Chromium just now.
            warming.abort();
            let _ = warming.await;
        }
        if let Some(chromium) = chromium {
            chromium.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workflow_that_crashes_two_fresh_pages_is_refused() {
        let mut crashes = 0;
        let crash = |fresh, crashes: &mut u32| judged(ConvertError::PageCrashed, fresh, crashes);
        // That may be an earlier workflow's doing.
        assert!(matches!(crash(false, &mut crashes), (ConvertError::PageCrashed, false)));
        assert!(matches!(crash(false, &mut crashes), (ConvertError::PageCrashed, false)));
        assert!(matches!(crash(true, &mut crashes), (ConvertError::PageCrashed, false)));
        assert!(matches!(crash(true, &mut crashes), (ConvertError::Refused(_), true)));
    }
}
