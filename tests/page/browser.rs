//! A headless Chromium that looks at the page as people do, and notes what it complains of.

use std::{
    env,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use chromiumoxide::{
    Browser as Cdp, Page as CdpPage,
    cdp::{
        browser_protocol::{
            emulation::{MediaFeature, SetDeviceMetricsOverrideParams, SetEmulatedMediaParams},
            input::{DispatchKeyEventParams, DispatchKeyEventType},
            log::{EnableParams as EnableLog, EventEntryAdded, LogEntryLevel},
            page::{CaptureScreenshotFormat, Viewport},
        },
        js_protocol::runtime::{
            ConsoleApiCalledType, EnableParams as EnableRuntime, EventConsoleApiCalled, EventExceptionThrown,
        },
    },
    handler::HandlerConfig,
    page::ScreenshotParams,
};
use connector::child::{LogTail, ProcessGroup};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use testbed::{scratch_root, wait_for};
use tokio::{process::Command, sync::oneshot, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::SOON;

/// A screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    pub(super) width: i64,
    pub(super) height: i64,
    pub(super) phone: bool,
}

pub(super) const DESK: Screen = Screen { width: 1180, height: 900, phone: false };
/// The narrowest that is in use.
pub(super) const PHONE: Screen = Screen { width: 360, height: 740, phone: true };

/// A page that is open.
pub(super) struct Page {
    page: CdpPage,
    complaints: Arc<Mutex<Vec<String>>>,
    // In this order: DevTools, then the processes, then their folders.
    _cdp: Cdp,
    _tasks: Vec<AbortOnDropHandle<()>>,
    _group: ProcessGroup,
    _profile: TempDir,
    _temporary: TempDir,
}

impl Page {
    /// Opens `url`.
    pub(super) async fn open(url: &str) -> Result<Self> {
        timeout(SOON, Self::start(url)).await.context("Chromium or its page is silent")?
    }

    async fn start(url: &str) -> Result<Self> {
        std::fs::create_dir_all(scratch_root()?)?;
        let profile = tempfile::tempdir_in(scratch_root()?)?;
        // A killed Chromium leaves its socket's folder. Beside the profile its path would be too long for one.
        let temporary = tempfile::tempdir()?;
        let mut command = Command::new(program()?);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ])
            .args([
                "--remote-debugging-port=0",
                "--no-first-run",
                "--force-color-profile=srgb",
                "--lang=en-GB",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("TMPDIR", temporary.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut group =
            ProcessGroup::spawn(command, "page-chromium").await.context("cannot start Chromium")?;
        let (found, address) = oneshot::channel();
        let mut found = Some(found);
        let stderr = group.take_output().1.context("no standard error")?;
        let follow = LogTail::default().follow(stderr, move |line| {
            if let Some((_, address)) = line.split_once("DevTools listening on ") {
                let _ = found.take().map(|found| found.send(address.to_owned()));
            }
        });
        let mut tasks = vec![AbortOnDropHandle::new(tokio::spawn(follow))];
        let settings = HandlerConfig { viewport: None, request_timeout: SOON, ..HandlerConfig::default() };
        let (cdp, mut handler) = Cdp::connect_with_config(address.await?, settings).await?;
        tasks.push(AbortOnDropHandle::new(tokio::spawn(
            async move { while handler.next().await.is_some() {} },
        )));
        let page = cdp.new_page("about:blank").await?;
        let complaints = Arc::default();
        tasks.extend(listen(&page, &complaints).await?);
        page.goto(url).await?;
        Ok(Self {
            page,
            complaints,
            _cdp: cdp,
            _tasks: tasks,
            _group: group,
            _profile: profile,
            _temporary: temporary,
        })
    }

    /// What an expression gives.
    pub(super) async fn ask<T: DeserializeOwned>(&self, expression: &str) -> Result<T> {
        let answer = timeout(SOON, self.page.evaluate(expression)).await.context("the page is silent")?;
        answer
            .with_context(|| expression.to_owned())?
            .into_value()
            .with_context(|| format!("{expression}: another type"))
    }

    /// Does something in the page.
    pub(super) async fn run(&self, statements: &str) -> Result<()> {
        self.ask::<bool>(&format!("(() => {{ {statements}; return true; }})()")).await.map(drop)
    }

    /// Waits until an expression is true.
    pub(super) async fn wait(&self, expression: &str) -> Result<()> {
        self.wait_within(expression, SOON).await
    }

    pub(super) async fn wait_within(&self, expression: &str, limit: Duration) -> Result<()> {
        let holds = || async { self.ask::<bool>(&format!("Boolean({expression})")).await.unwrap_or(false) };
        let waited = wait_for(expression, limit, holds).await;
        let text = || async { self.ask::<String>("document.body.innerText").await.unwrap_or_default() };
        match waited {
            Ok(()) => Ok(()),
            Err(error) => {
                Err(error.context(format!("the page: {}\ncomplaints: {:?}", text().await, self.complaints())))
            }
        }
    }

    /// Waits until the text of the elements that `selector` finds holds `text`.
    pub(super) async fn wait_text(&self, selector: &str, text: &str) -> Result<()> {
        let (selector, text) = (serde_json::to_string(selector)?, serde_json::to_string(text)?);
        let found = format!(
            "[...document.querySelectorAll({selector})].some((element) => element.textContent.includes({text}))"
        );
        self.wait(&found).await
    }

    /// Presses a button, as a mouse does.
    pub(super) async fn click(&self, selector: &str) -> Result<()> {
        self.page.find_element(selector).await.with_context(|| selector.to_owned())?.click().await?;
        Ok(())
    }

    /// Presses keys, one after the other: `Tab`, `Enter`, `Space`, or a letter.
    pub(super) async fn press(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let (key, code, text, number) = match *key {
                "Tab" => ("Tab", "Tab", None, 9),
                "Enter" => ("Enter", "Enter", Some("\r"), 13),
                "Space" => (" ", "Space", Some(" "), 32),
                "Escape" => ("Escape", "Escape", None, 27),
                other => (other, other, Some(other), 0),
            };
            for kind in [DispatchKeyEventType::KeyDown, DispatchKeyEventType::KeyUp] {
                let mut event = DispatchKeyEventParams::new(kind.clone());
                event.key = Some(key.to_owned());
                event.code = Some(code.to_owned());
                event.windows_virtual_key_code = Some(number);
                event.text = text.filter(|_| kind == DispatchKeyEventType::KeyDown).map(str::to_owned);
                self.page.execute(event).await?;
            }
        }
        Ok(())
    }

    /// Types a text.
    pub(super) async fn write(&self, text: &str) -> Result<()> {
        let letters: Vec<String> = text.chars().map(String::from).collect();
        self.press(&letters.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    /// Shows the page on that screen, dark or light.
    pub(super) async fn look(&self, screen: Screen, dark: bool) -> Result<()> {
        let Screen { width, height, phone } = screen;
        self.page.execute(SetDeviceMetricsOverrideParams::new(width, height, 1.0, phone)).await?;
        let feature = |name: &str, value: &str| MediaFeature::new(name, value);
        let scheme = if dark { "dark" } else { "light" };
        let media = SetEmulatedMediaParams::builder()
            .features([feature("prefers-color-scheme", scheme), feature("prefers-reduced-motion", "reduce")])
            .build();
        self.page.execute(media).await?;
        self.wait(&format!(
            "innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches"
        ))
        .await
    }

    /// A picture of what is to be seen on the screen; of all of it if `whole`.
    pub(super) async fn picture(&self, whole: bool) -> Result<Vec<u8>> {
        let size = if whole { "document.documentElement.scrollHeight" } else { "innerHeight" };
        let (width, height): (f64, f64) = self.ask(&format!("[innerWidth, {size}]")).await?;
        let clip = Viewport { x: 0.0, y: 0.0, width, height, scale: 1.0 };
        // Not the library's whole page, which forgets the screen.
        let params = ScreenshotParams::builder()
            .format(CaptureScreenshotFormat::Png)
            .clip(clip)
            .capture_beyond_viewport(true)
            .build();
        Ok(timeout(SOON, self.page.screenshot(params)).await.context("no screenshot")??)
    }

    /// What Chromium has complained of: exceptions, errors and warnings on the console, breaches of the policy.
    pub(super) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().map(|complaints| complaints.clone()).unwrap_or_default()
    }

    /// Takes note of complaints that were to be expected: each must hold one of `words`.
    pub(super) fn excuse(&self, words: &[&str]) -> Result<()> {
        let mut complaints = self.complaints.lock().map_err(|_| anyhow::anyhow!("a listener panicked"))?;
        for complaint in complaints.drain(..) {
            ensure!(words.iter().any(|word| complaint.contains(word)), "{complaint}");
        }
        Ok(())
    }

    pub(super) fn ensure_no_complaint(&self) -> Result<()> {
        let complaints = self.complaints();
        ensure!(complaints.is_empty(), "Chromium complains: {complaints:#?}");
        Ok(())
    }
}

/// Where pictures of the page are put to be looked at.
pub(super) fn keep(name: &str, picture: &[u8]) -> Result<PathBuf> {
    let folder = scratch_root()?.join("page");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(name);
    std::fs::write(&file, picture)?;
    Ok(file)
}

async fn listen(page: &CdpPage, complaints: &Arc<Mutex<Vec<String>>>) -> Result<Vec<AbortOnDropHandle<()>>> {
    let note = |complaints: &Mutex<Vec<String>>, text: String| {
        if let Ok(mut complaints) = complaints.lock() {
            complaints.push(text);
        }
    };
    page.execute(EnableLog::default()).await?;
    page.execute(EnableRuntime::default()).await?;
    // Breaches of the policy come with the log, too; this says which.
    page.evaluate_on_new_document(
        "addEventListener('securitypolicyviolation', (event) => console.error('policy', event.violatedDirective, event.blockedURI))",
    )
    .await?;
    let mut entries = page.event_listener::<EventEntryAdded>().await?;
    let mut calls = page.event_listener::<EventConsoleApiCalled>().await?;
    let mut exceptions = page.event_listener::<EventExceptionThrown>().await?;
    let all = [Arc::clone(complaints), Arc::clone(complaints), Arc::clone(complaints)];
    let [of_entries, of_calls, of_exceptions] = all;
    Ok(vec![
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(event) = entries.next().await {
                if matches!(event.entry.level, LogEntryLevel::Error | LogEntryLevel::Warning) {
                    let url = event.entry.url.clone().unwrap_or_default();
                    note(&of_entries, format!("{} {url}", event.entry.text));
                }
            }
        })),
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(event) = calls.next().await {
                let bad = [
                    ConsoleApiCalledType::Error,
                    ConsoleApiCalledType::Warning,
                    ConsoleApiCalledType::Assert,
                ];
                if bad.contains(&event.r#type) {
                    let words =
                        event.args.iter().filter_map(|arg| arg.value.as_ref().map(ToString::to_string));
                    note(&of_calls, words.collect::<Vec<_>>().join(" "));
                }
            }
        })),
        AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(event) = exceptions.next().await {
                let details = &event.exception_details;
                let what = details.exception.as_ref().and_then(|exception| exception.description.clone());
                note(&of_exceptions, format!("exception: {}", what.unwrap_or_else(|| details.text.clone())));
            }
        })),
    ])
}

/// Chromium where scripts/setup has it: `CHROME`, `PATH`, Playwright's folder.
fn program() -> Result<PathBuf> {
    let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = variable("CHROME").or_else(|| variable("COMFY_WORKER_BROWSER_EXECUTABLE")) {
        return Ok(named.into());
    }
    let names = ["chromium", "google-chrome", "google-chrome-stable", "chrome", "chromium-browser"];
    let folders = || env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let on_path = names.iter().flat_map(|name| folders().into_iter().map(move |folder| folder.join(name)));
    let playwright = variable("PLAYWRIGHT_BROWSERS_PATH")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache/ms-playwright")));
    let revisions = std::fs::read_dir(playwright.unwrap_or_default()).into_iter().flatten().flatten();
    let in_playwright = revisions.flat_map(|entry| {
        ["chrome-linux64/chrome", "chrome-linux/chrome"].map(|name| entry.path().join(name))
    });
    on_path
        .chain(in_playwright)
        .find(|program| program.is_file())
        .context("no Chromium: run scripts/setup, or point CHROME at one")
}
