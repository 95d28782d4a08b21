//! What all tests share, started by the first one that asks and stopped after the last one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use testbed::{
    Engine, Front, Gate, ProcessInfo, RabbitMq, S3Server, alive, descendants, folder_of_process,
    processes_with_env_or_cwd_beneath, wait_for,
};
use tokio::{runtime::Runtime, sync::OnceCell, time::timeout};

use crate::{
    bench::{Bench, JobPermit},
    website::Website,
};

/// Longer than any test on a slow machine with a real ComfyUI: three boots of it.
const LONGEST_TEST: Duration = Duration::from_secs(600);
/// Longest job of a test, restarts of a real ComfyUI included.
pub(crate) const JOB: Duration = Duration::from_secs(240);
/// For what takes a moment on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// What the worker of [`Web`] keeps of models.
pub(crate) const MODEL_CACHE_BYTES: u64 = 250_000;

/// Broker, S3 server and the two workers.
pub(crate) struct Suite {
    runtime: Runtime,
    site: OnceCell<Arc<Site>>,
    any: OnceCell<Bench>,
    standin: OnceCell<Bench>,
    web: OnceCell<Web>,
}

/// A worker on the stand-in that may read from a web server, with few bytes for models and two jobs in
/// hand at once.
pub(crate) struct Web {
    bench: Bench,
    /// It may read under `/open/` there, by the address and by the name `localhost`.
    pub(crate) site: Website,
    /// Before the S3 server; its requests pass the gate.
    pub(crate) front: Front,
    pub(crate) gate: Gate,
}

impl Web {
    async fn start(site: &Arc<Site>) -> Result<Self> {
        let engine = Engine::standin(&site.folder.join("web"))?;
        let gate = Gate::start(site.s3.address()).await?;
        let front = Front::start(gate.address()).await?;
        let web = Website::start().await?;
        let allow = format!(
            "s3://web-in/open/,{},http://localhost:{}/open/,http://169.254.169.254/",
            web.url("open/"),
            web.port()
        );
        let settings = [
            ("store.endpoint", format!("http://{}", front.address())),
            ("inputs.allow", allow),
            ("inputs.model_cache_bytes", MODEL_CACHE_BYTES.to_string()),
            ("amqp.lookahead", "1".to_owned()),
            ("log.level", "comfy_worker=debug,info".to_owned()),
        ];
        let bench = Bench::start_with(site, "web", engine, &settings).await?;
        Ok(Self { bench, site: web, front, gate })
    }

    /// For the caller alone.
    pub(crate) async fn bench(&self) -> JobPermit<'_> {
        self.bench.turn().await
    }
}

/// What both workers use.
pub(crate) struct Site {
    /// All data of this process; that of a killed one is removed by the next.
    pub(crate) folder: PathBuf,
    pub(crate) broker: RabbitMq,
    pub(crate) s3: S3Server,
}

impl Suite {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self {
            runtime,
            site: OnceCell::new(),
            any: OnceCell::new(),
            standin: OnceCell::new(),
            web: OnceCell::new(),
        })
    }

    /// Runs one test.
    pub(crate) fn run(&self, test: impl Future<Output = Result<()>>) -> Result<()> {
        let test = async {
            timeout(LONGEST_TEST, test)
                .await
                .unwrap_or_else(|_| Err(anyhow::anyhow!("not over after {LONGEST_TEST:?}")))
        };
        self.runtime.block_on(test)
    }

    /// Broker and S3 server.
    pub(crate) async fn site(&self) -> Result<&Arc<Site>> {
        self.site.get_or_try_init(|| async { Ok(Arc::new(Site::start().await?)) }).await
    }

    /// The worker on the environment's ComfyUI, for the caller alone.
    pub(crate) async fn any(&self) -> Result<JobPermit<'_>> {
        let site = self.site().await?;
        let start = || async { Bench::start(site, "any", Engine::from_env(&site.folder.join("any"))?).await };
        Ok(self.any.get_or_try_init(start).await?.turn().await)
    }

    /// The worker on the stand-in, for the caller alone.
    pub(crate) async fn standin(&self) -> Result<JobPermit<'_>> {
        let site = self.site().await?;
        let start =
            || async { Bench::start(site, "standin", Engine::standin(&site.folder.join("standin"))?).await };
        Ok(self.standin.get_or_try_init(start).await?.turn().await)
    }

    /// The worker that reads from the web.
    pub(crate) async fn web(&self) -> Result<&Web> {
        let site = self.site().await?;
        self.web.get_or_try_init(|| Web::start(site)).await
    }

    /// Drains what runs and looks at what is left. `keep`: the data too, for anyone who looks for a
    /// failure's cause.
    pub(crate) fn close(&self, keep: bool) -> Result<()> {
        let Some(site) = self.site.get() else { return Ok(()) };
        let stopped = self.runtime.block_on(async {
            let running: Vec<ProcessInfo> = descendants(std::process::id())
                .into_iter()
                .filter(|process| !is_own_guard(process))
                .collect();
            let web = self.web.get().map(|web| &web.bench);
            for bench in [&self.any, &self.standin].into_iter().filter_map(OnceCell::get).chain(web) {
                bench.drain().await.with_context(|| format!("worker {}: {}", bench.name(), bench.log()))?;
            }
            site.queues_are_empty().await?;
            site.broker.stop().await?;
            nothing_runs(site, &running).await
        });
        if keep || stopped.is_err() {
            eprintln!("everything is kept in {} until the next run", site.folder.display());
        } else {
            std::fs::remove_dir_all(&site.folder)?;
        }
        stopped
    }
}

impl Site {
    async fn start() -> Result<Self> {
        let folder = folder_of_process("e2e")?;
        let broker = RabbitMq::start(&folder.join("rabbitmq")).await?;
        let s3 = S3Server::start(&folder.join("s3")).await?;
        Ok(Self { folder, broker, s3 })
    }

    /// Neither waiting nor unacked messages in any queue but the one that collects all results.
    async fn queues_are_empty(&self) -> Result<()> {
        let full = || async {
            let queues = self.broker.ctl(&["list_queues", "--no-table-headers", "name", "messages"]).await;
            let queues = queues.unwrap_or_else(|error| format!("{error:#}"));
            let full = |line: &&str| !line.ends_with("\t0") && !line.starts_with("any.results");
            queues.lines().filter(full).map(str::to_owned).collect::<Vec<_>>()
        };
        // The broker's figures come a moment late.
        let gone = wait_for("empty queues", SOON, || async { full().await.is_empty() }).await;
        match gone {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("messages are left: {:?}", full().await))),
        }
    }
}

/// What would end our children if we were killed ends with us.
fn is_own_guard(process: &ProcessInfo) -> bool {
    process.parent == std::process::id() && process.command.contains("comfy-worker-guard")
}

async fn nothing_runs(site: &Site, started: &[ProcessInfo]) -> Result<()> {
    let left = || {
        let mut left = processes_with_env_or_cwd_beneath(&site.folder);
        left.retain(|process| !is_own_guard(process));
        left.extend(started.iter().filter(|process| alive(process.pid)).cloned());
        left
    };
    let gone = wait_for("the end of every process", SOON, || async { left().is_empty() });
    gone.await.with_context(|| format!("left: {:#?}", left()))
}

/// The last lines of a log.
pub(crate) fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
