//! One Chromium: started by us in a process group of its own, spoken to over DevTools.
//!
//! Invariant: anyone who holds a [`Running`] owns the processes and the profile folder; dropping it
//! ends both, also when the start is cancelled halfway.

use std::{
    fs,
    path::Path,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::Duration,
};

use chromiumoxide::{
    Browser as Cdp,
    cdp::browser_protocol::browser::{CloseParams, GetVersionParams},
    error::CdpError,
    handler::HandlerConfig,
};
use contract::text::one_line;
use futures_util::StreamExt;
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, test_kill_process_group, waitpgid};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use url::Url;

use super::{command::command, pipe, profile::Profile};
use crate::{
    child::{LogTail, ProcessGroup, ProcessTree},
    config::BrowserConfig,
};

/// From the start to a DevTools connection; 0.3–0.9 s measured, cold disks take longer.
const START_LIMIT: Duration = Duration::from_secs(30);
/// A Chromium that answers nothing for this long is given up.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Why a call to Chromium gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("Chromium ended")]
    Dead,
    #[error("the page crashed")]
    Crashed,
    #[error("no answer to {what} within {limit:?}")]
    Silent { what: &'static str, limit: Duration },
    #[error("{what}: {text}")]
    Failed { what: &'static str, text: String },
}

/// A Chromium that runs, or did: see [`Chromium::is_dead`].
#[derive(Debug)]
pub(super) struct Chromium {
    cdp: Cdp,
    side_door: pipe::RawPipeWriter,
    product: String,
    members: ProcessTree,
    running: Mutex<Option<Running>>,
    dead: CancellationToken,
    _handler: AbortOnDropHandle<()>,
    _bridge: AbortOnDropHandle<()>,
    _stderr: AbortOnDropHandle<()>,
}

impl Chromium {
    /// Starts `program`, which may reach `server` and nothing else.
    ///
    /// # Errors
    /// One line: what the start said.
    pub(super) async fn start(program: &Path, config: &BrowserConfig, server: &Url) -> Result<Self, String> {
        if rustix::process::geteuid().is_root() {
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::warn!("running as root: Chromium starts without its sandbox"));
            return Self::start_once(program, config, server, false).await;
        }
        match Self::start_once(program, config, server, true).await {
            Err(reason) if is_of_sandbox(&reason) => {
                tracing::warn!(reason, "the kernel refuses Chromium's sandbox: starting without");
                Self::start_once(program, config, server, false).await
            }
            outcome => outcome,
        }
    }

    async fn start_once(
        program: &Path,
        config: &BrowserConfig,
        server: &Url,
        sandbox: bool,
    ) -> Result<Self, String> {
        let profile = Profile::create().map_err(|error| format!("cannot make a profile folder: {error}"))?;
        let mut command = command(program, config, server, profile.path(), sandbox);
        let pipe = pipe::attach(&mut command).map_err(|error| format!("no pipe to Chromium: {error}"))?;
        let group = ProcessGroup::spawn(command, "chromium")
            .await
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let members = group.members();
        let mut running = Running { group: Some(group), profile: Some(profile) };

        let dead = CancellationToken::new();
        let tail = LogTail::default();
        let stderr = running.group.as_mut().and_then(|group| group.take_output().1);
        let stderr = stderr.ok_or_else(|| "its standard error is missing".to_owned())?;
        let follow = {
            let (tail, dead) = (tail.clone(), dead.clone());
            async move {
                tail.follow(stderr, |line| tracing::debug!(target: "chromium", "{line}")).await;
                dead.cancel();
            }
        };
        let stderr = AbortOnDropHandle::new(tokio::spawn(follow));

        let connect = async {
            let bridged = pipe::bridge(pipe).await.map_err(|error| error.to_string())?;
            let (address, side_door, bridge) = bridged;
            let settings = HandlerConfig {
                viewport: None,
                // Our own limits are shorter. Theirs would fail a conversion that may take longer.
                request_timeout: config.convert_timeout.saturating_mul(2).max(Duration::from_secs(600)),
                ..HandlerConfig::default()
            };
            let (cdp, mut handler) =
                Cdp::connect_with_config(address, settings).await.map_err(|error| error.to_string())?;
            let gone = dead.clone();
            let handler = AbortOnDropHandle::new(tokio::spawn(async move {
                // Polling on after a lost connection would leave pending calls without an answer.
                while let Some(event) = handler.next().await {
                    if let Err(error) = event {
                        tracing::debug!(%error, "DevTools");
                        if matches!(error, CdpError::Ws(_) | CdpError::Io(_)) {
                            break;
                        }
                    }
                }
                gone.cancel();
            }));
            let version = tokio::select! {
                version = cdp.execute(GetVersionParams::default()) => version.map_err(|error| error.to_string())?,
                () = dead.cancelled() => return Err("it ended".to_owned()),
            };
            Ok((cdp, side_door, handler, bridge, version.result.product))
        };
        let failed = |text: &str| {
            let words = one_line(tail.last(6).trim(), 900);
            let text = if words.is_empty() { format!("{text} and said nothing") } else { words };
            format!("{} did not start: {text}", program.display())
        };
        let (cdp, side_door, handler, bridge, product) = match timeout(START_LIMIT, connect).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(text)) => {
                // What it wrote last may still be in the pipe. A program that ends is noticed by the
                // connection or by its output first, whichever comes: say the same of both.
                let ended = timeout(ANSWER_LIMIT, stderr).await.is_ok();
                return Err(failed(if ended { "it ended" } else { &text }));
            }
            Err(_) => return Err(failed(&format!("no answer within {START_LIMIT:?}"))),
        };
        Ok(Self {
            cdp,
            side_door,
            product,
            members,
            running: Mutex::new(Some(running)),
            dead,
            _handler: handler,
            _bridge: bridge,
            _stderr: stderr,
        })
    }

    /// The DevTools connection. Every call through it belongs into [`Chromium::call`].
    pub(super) fn cdp(&self) -> &Cdp {
        &self.cdp
    }

    /// The way for large commands.
    pub(super) fn side_door(&self) -> &pipe::RawPipeWriter {
        &self.side_door
    }

    /// Resident memory of all its processes, in bytes.
    pub(super) fn rss(&self) -> u64 {
        self.members.rss()
    }

    /// Such as `Chrome/156.0.8078.79`.
    pub(super) fn product(&self) -> &str {
        &self.product
    }

    /// Its connection or its processes are gone.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_cancelled()
    }

    /// Waits for an answer, `limit` at most, and not at all once Chromium is dead.
    pub(super) async fn call<T>(
        &self,
        what: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, CdpError>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            answer = timeout(limit, answer) => match answer {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(CdpError::Ws(_) | CdpError::Io(_) | CdpError::ChannelSendError(_) | CdpError::NoResponse)) => {
                    Err(CallError::Dead)
                }
                Ok(Err(error)) => Err(CallError::Failed { what, text: describe(&error) }),
                Err(_) => Err(CallError::Silent { what, limit }),
            },
            () = self.dead.cancelled() => Err(CallError::Dead),
        }
    }

    /// Whether the browser process itself answers.
    pub(super) async fn ping(&self, limit: Duration) -> Result<(), CallError> {
        self.call("a sign of life", limit, self.cdp.execute(GetVersionParams::default())).await.map(drop)
    }

    /// Ends with [`CallError::Silent`] once the browser process stopped answering, else never.
    pub(super) async fn watch(&self) -> CallError {
        loop {
            sleep(Duration::from_secs(2)).await;
            if let Err(error) = self.ping(ANSWER_LIMIT * 3).await {
                return error;
            }
        }
    }

    /// Asks Chromium to close, for 1 s at most; then nothing of its group is left, nor its profile.
    pub(super) async fn close(&self) {
        let asked = self.call("close", ANSWER_LIMIT, self.cdp.execute(CloseParams::default())).await;
        if asked.is_ok() {
            let _ = timeout(ANSWER_LIMIT, self.dead.cancelled()).await;
        }
        if let Some(running) = self.take_running() {
            // Waits for processes and removes files: both block.
            let _ = tokio::task::spawn_blocking(move || drop(running)).await;
        }
    }

    /// Kills the group and removes the profile, now. Blocks for as long as dying takes.
    pub(super) fn kill(&self) {
        drop(self.take_running());
    }

    fn take_running(&self) -> Option<Running> {
        self.dead.cancel();
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The processes and their profile folder.
#[derive(Debug)]
struct Running {
    group: Option<ProcessGroup>,
    profile: Option<Profile>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            kill(group);
        }
        if let Some(profile) = self.profile.take() {
            profile.remove();
        }
    }
}

/// Kills the group and waits, for 1 s at most, until it is empty: a dying process still writes
/// into the profile.
fn kill(mut group: ProcessGroup) {
    let Some(id) = i32::try_from(group.pid()).ok().and_then(Pid::from_raw) else { return };
    let _ = kill_process_group(id, Signal::KILL);
    for _ in 0..200 {
        if group.exit_status().is_some() {
            // As process 1 of a container we inherit Chromium's orphans: nobody else reaps them.
            while let Ok(Some(_)) = waitpgid(id, WaitOptions::NOHANG) {}
            if test_kill_process_group(id).is_err() || !has_live_member(id) {
                break;
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// A group of nothing but zombies still counts as one: where process 1 reaps nobody's children
/// it never ends.
fn has_live_member(id: Pid) -> bool {
    let is_live_member = |stat: String| {
        // The program's name may hold anything; after its last bracket: state, parent, group.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let live = !matches!(fields.next()?, "Z" | "X");
        let group: i32 = fields.nth(1)?.parse().ok()?;
        Some(live && group == id.as_raw_nonzero().get())
    };
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes
        .filter_map(|process| fs::read_to_string(process.ok()?.path().join("stat")).ok())
        .any(|stat| is_live_member(stat).unwrap_or_default())
}

/// What Chromium says where the kernel grants neither user namespaces nor its setuid helper: "No
/// usable sandbox!", "Failed to move to new namespace", from `zygote_host_impl_linux.cc`.
fn is_of_sandbox(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    ["sandbox", "namespace", "zygote"].iter().any(|word| reason.contains(word))
}

/// One line of what went wrong.
fn describe(error: &CdpError) -> String {
    let text = match error {
        CdpError::JavascriptException(details) => details
            .exception
            .as_ref()
            .and_then(|exception| exception.description.clone())
            .unwrap_or_else(|| details.text.clone()),
        other => other.to_string(),
    };
    one_line(text.lines().next().unwrap_or_default(), 500)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener},
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// Answers every request with an empty page, and counts the connections.
    fn listen() -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&count);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        (address, count)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_but_the_servers_port_is_reached() {
        let ((server, served), (other, leaked)) = (listen(), listen());
        let config = BrowserConfig {
            executable: None,
            args: Vec::new(),
            convert_timeout: Duration::from_secs(10),
            install: None,
        };
        let program = super::super::find::chromium(None).unwrap().unwrap();
        let url: Url = format!("http://{server}/").parse().unwrap();
        let chromium = Chromium::start(&program, &config, &url).await.unwrap();
        let page = chromium.cdp().new_page(url.as_str()).await.unwrap();
        let script = format!(
            "async () => {{
                const reach = async (url) => fetch(url, {{ mode: 'no-cors' }}).then(() => 'reached', () => 'blocked');
                const socket = new Promise((done) => {{
                    const socket = new WebSocket('ws://{other}/');
                    socket.onerror = socket.onclose = () => done('closed');
                }});
                const port = {port};
                return [
                    await reach('/again'), await reach('http://{other}/'), await reach(`http://localhost:${{port}}/`),
                    await reach('http://10.0.0.1/'), await socket,
                ].join();
            }}",
            port = other.port()
        );
        let reached: String = page.evaluate_function(script.as_str()).await.unwrap().into_value().unwrap();
        assert_eq!(reached, "reached,blocked,blocked,blocked,closed");
        assert!(served.load(Ordering::SeqCst) > 1);
        assert_eq!(leaked.load(Ordering::SeqCst), 0);
        chromium.close().await;
    }
}
