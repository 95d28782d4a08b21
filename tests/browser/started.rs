//! A started browser, and what the operating system shows of it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use comfy_worker::config::BrowserConfig;
use connector::browser::Browser;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use testbed::{ProcessInfo, RunningEngine};
use tokio::sync::{Mutex, MutexGuard};
use url::Url;

use crate::{
    processes::{ours, pid, until},
    workflows::busy,
};

/// Browsers started side by side would only measure each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub(crate) async fn my_turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// The server that the tests share.
pub(crate) async fn server() -> Url {
    RunningEngine::shared().await.unwrap().url().parse().unwrap()
}

pub(crate) struct Started {
    pub(crate) browser: Browser,
    /// From nothing to a first page.
    pub(crate) ready_after: Duration,
    mark: String,
    _turn: MutexGuard<'static, ()>,
}

impl Started {
    pub(crate) async fn new() -> Self {
        Self::with(Duration::from_secs(30)).await
    }

    pub(crate) async fn with(convert_timeout: Duration) -> Self {
        Self::at(server().await, convert_timeout).await
    }

    pub(crate) async fn on(server: &RunningEngine) -> Self {
        Self::limited_on(server, Duration::from_secs(60)).await
    }

    pub(crate) async fn limited_on(server: &RunningEngine, convert_timeout: Duration) -> Self {
        Self::at(server.url().parse().unwrap(), convert_timeout).await
    }

    async fn at(server: Url, convert_timeout: Duration) -> Self {
        let turn = my_turn().await;
        let mark = format!("--mark-of-test={}", uuid::Uuid::new_v4());
        let mut config = BrowserConfig::default().with_convert_timeout(convert_timeout);
        config.args = vec![mark.clone()];
        let started = Instant::now();
        let browser = Browser::start(config, server).await.unwrap();
        let ready_after = started.elapsed();
        println!("ready after {ready_after:?}: {}", browser.version().await);
        Self { browser, ready_after, mark, _turn: turn }
    }

    /// The process that leads Chromium's group.
    pub(crate) fn leader(&self) -> Pid {
        pid(self.process().pid).unwrap()
    }

    /// The file that Chromium's processes run.
    pub(crate) fn program(&self) -> PathBuf {
        fs::read_link(format!("/proc/{}/exe", self.process().pid)).unwrap()
    }

    pub(crate) fn profile(&self) -> PathBuf {
        let command = self.process().command;
        command.split(' ').find_map(|arg| arg.strip_prefix("--user-data-dir=")).map(PathBuf::from).unwrap()
    }

    /// Stops Chromium until the returned value is dropped.
    pub(crate) fn stop_chromium(&self) -> Stopped {
        let leader = self.leader();
        kill_process_group(leader, Signal::STOP).unwrap();
        Stopped(leader)
    }

    /// Waits until a page of ComfyUI is loaded beside the one in use.
    pub(crate) async fn wait_for_spare(&self) {
        until("a spare page", Duration::from_secs(60), || self.browser.has_spare()).await;
    }

    fn process(&self) -> ProcessInfo {
        ours().into_iter().find(|process| process.command.contains(&self.mark)).expect("it runs")
    }

    pub(crate) async fn prompt(&self, workflow: &Value) -> Value {
        let conversion = self.browser.convert(workflow).await.unwrap();
        assert!(conversion.workflow["nodes"].is_array(), "the workflow's half is missing");
        plain(Value::Object(conversion.prompt))
    }

    /// Converts a large workflow and does `harm` in the middle of it; how long it took from then on.
    pub(crate) async fn convert_through(&self, harm: impl FnOnce()) -> Duration {
        let browser = self.browser.clone();
        let conversion = tokio::spawn(async move { browser.convert(&busy()).await });
        // Nothing outside tells how far it is. Too late is noticed here, too early is harmless.
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(!conversion.is_finished(), "converted before the harm was done");
        let clock = Instant::now();
        harm();
        assert!(!conversion.await.unwrap().unwrap().prompt.is_empty());
        clock.elapsed()
    }
}

/// A Chromium that is stopped; goes on when this is dropped.
pub(crate) struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::CONT);
    }
}

/// Without `_meta`, which newer frontends fill with more.
pub(crate) fn plain(mut prompt: Value) -> Value {
    for node in prompt.as_object_mut().unwrap().values_mut() {
        node.as_object_mut().unwrap().remove("_meta");
    }
    prompt
}
