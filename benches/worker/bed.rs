//! What the rows share: a folder, a broker, a store, ComfyUIs, and the worker under measure.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use testbed::{Engine, RabbitMq, S3Server, Signal, Worker, WorkerBuilder, checkout, folder_of_process};
use tokio::{sync::OnceCell, time::sleep};

use crate::{large::Pass, queue::Queue};

/// A real ComfyUI with cold disk caches, on a loaded machine.
pub(crate) const BOOT: Duration = Duration::from_secs(300);
const DRAIN: Duration = Duration::from_secs(60);
pub(crate) const BUCKET: &str = "bench";

/// Which ComfyUI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Standin,
    Real,
}

impl On {
    /// The stand-in, and the real one where there is one.
    pub(crate) fn all() -> Vec<Self> {
        let real = std::env::var_os("COMFYUI_DIR").is_some_and(|folder| !folder.is_empty());
        if real { vec![Self::Standin, Self::Real] } else { vec![Self::Standin] }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Standin => "stand-in",
            Self::Real => "ComfyUI",
        }
    }
}

/// How much of everything is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) busy_jobs: usize,
    pub(crate) calls: u32,
    pub(crate) tiny_jobs: u32,
    pub(crate) starts: usize,
    pub(crate) templates: usize,
    pub(crate) megabytes: u64,
    pub(crate) passes: usize,
    pub(crate) scale_jobs: usize,
}

impl Sizes {
    pub(crate) fn new(quick: bool, megabytes: Option<u64>) -> Self {
        let sizes = if quick {
            Self {
                busy_jobs: 12,
                calls: 40,
                tiny_jobs: 40,
                starts: 1,
                templates: 8,
                megabytes: 64,
                passes: 1,
                scale_jobs: 4,
            }
        } else {
            Self {
                busy_jobs: 60,
                calls: 200,
                tiny_jobs: 200,
                starts: 5,
                templates: 24,
                megabytes: 2048,
                passes: 2,
                scale_jobs: 20,
            }
        };
        Self { megabytes: megabytes.unwrap_or(sizes.megabytes), ..sizes }
    }
}

/// Everything of one run.
pub(crate) struct Bed {
    pub(crate) folder: PathBuf,
    pub(crate) sizes: Sizes,
    /// The release where scripts/bench built one, else that of this profile.
    pub(crate) binary: PathBuf,
    pub(crate) is_release: bool,
    broker: OnceCell<RabbitMq>,
    s3: OnceCell<S3Server>,
    pub(crate) pass: OnceCell<Pass>,
}

impl Bed {
    pub(crate) fn new(sizes: Sizes) -> Result<Self> {
        let release = std::env::var_os("BENCH_BINARY").filter(|path| !path.is_empty());
        let binary = release.clone().map_or_else(|| env!("CARGO_BIN_EXE_comfy-worker").into(), PathBuf::from);
        ensure!(binary.is_file(), "there is no comfy-worker at {}", binary.display());
        Ok(Self {
            folder: folder_of_process("bench")?,
            sizes,
            binary,
            is_release: release.is_some(),
            broker: OnceCell::new(),
            s3: OnceCell::new(),
            pass: OnceCell::new(),
        })
    }

    pub(crate) async fn broker(&self) -> Result<&RabbitMq> {
        let start = || async { RabbitMq::start(&self.folder.join("rabbitmq")).await };
        self.broker.get_or_try_init(start).await
    }

    pub(crate) async fn s3(&self) -> Result<&S3Server> {
        let start = || async {
            let s3 = S3Server::start(&self.folder.join("s3")).await?;
            s3.create_bucket(BUCKET)?;
            anyhow::Ok(s3)
        };
        self.s3.get_or_try_init(start).await
    }

    /// A ComfyUI with its folders under `name`.
    pub(crate) fn engine(&self, on: On, name: &str) -> Result<Engine> {
        let folder = self.folder.join(name).join("comfy");
        match on {
            On::Standin => Engine::standin(&folder),
            On::Real => {
                let engine = Engine::from_env(&folder)?;
                let node = checkout().join("benches/worker/node.py");
                fs::copy(&node, engine.path.join("custom_nodes/standin_work.py"))
                    .with_context(|| format!("cannot copy {}", node.display()))?;
                Ok(engine)
            }
        }
    }

    /// A worker of that name whose jobs come from the queue of the same name.
    pub(crate) async fn worker(&self, name: &str, queue: &str, engine: &Engine) -> Result<WorkerBuilder> {
        Ok(Worker::builder(&self.binary, &self.folder.join(name))?
            .broker(self.broker().await?)
            .store(self.s3().await?, &format!("s3://{BUCKET}/{queue}"))
            .engine(engine)
            .set("amqp.queue", queue)
            .set("worker.id", name)
            .set("comfyui.env", format!("STANDIN_TIMES={}", self.times(name).display()))
            .set("inputs.max_bytes", "16GiB"))
    }

    /// Start and end of each execution of that worker's ComfyUI.
    pub(crate) fn times(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("times.jsonl")
    }

    /// A worker that is ready, and the publisher's side of its queue.
    pub(crate) async fn boot(&self, queue: &str, builder: WorkerBuilder) -> Result<(Worker, Queue)> {
        let mut worker = builder.start().await?;
        worker.wait_ready(BOOT).await?;
        Ok((worker, Queue::connect(&self.broker().await?.url(), queue).await?))
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        if let Some(broker) = self.broker.get() {
            broker.stop().await?;
        }
        Ok(())
    }
}

/// Ends a worker in good order.
pub(crate) async fn drain(mut worker: Worker) -> Result<()> {
    worker.signal(Signal::TERM)?;
    let status = worker.wait_exit(DRAIN).await?;
    ensure!(status.success(), "the worker ended with {status}\n{}", worker.log());
    Ok(())
}

/// Asks every 10 ms, and gives how long it took since `begin` until it was answered well.
pub(crate) async fn seconds_until_ok(url: &str, begin: Instant) -> Result<f64> {
    let client = reqwest::Client::new();
    while begin.elapsed() < BOOT {
        if client.get(url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            return Ok(begin.elapsed().as_secs_f64());
        }
        sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("{url} did not answer well within {BOOT:?}")
}
