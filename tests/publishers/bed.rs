//! One broker, store and worker for all publishers.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use testbed::{Engine, Gate, RabbitMq, S3Server, Worker, WorkerBuilder, folder_of_process};
use tokio::sync::{OnceCell, RwLock};

use crate::permissions;

const BOOT: Duration = Duration::from_secs(180);
/// Where publishers find nothing of a worker's.
const EMPTY: &str = "empty";

pub(crate) struct Bed {
    pub(crate) s3: S3Server,
    broker: &'static RabbitMq,
    builder: WorkerBuilder,
    _worker: Worker,
    /// Held by anyone who has jobs in the queue; alone by who starts a worker there that is killed.
    pub(crate) turns: RwLock<()>,
}

impl Bed {
    /// Started by anyone who asks first; it ends with this process.
    pub(crate) async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Bed> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    async fn start() -> Result<Self> {
        let dir = folder_of_process("publishers")?;
        let broker = RabbitMq::shared().await?;
        permissions::grant(broker).await?;
        broker.ctl(&["add_vhost", EMPTY]).await?;
        broker.ctl(&["set_permissions", "-p", EMPTY, permissions::PUBLISHER, ".*", ".*", ".*"]).await?;
        let s3 = S3Server::start(&dir.join("s3")).await?;
        s3.create_bucket("inputs")?;
        s3.create_bucket("results")?;
        // Its nodes misbehave when asked to.
        let engine = Engine::standin(&dir.join("comfyui"))?;
        let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), &dir)?
            .store(&s3, "s3://results/jobs")
            .engine(&engine)
            .set("amqp.url", permissions::url(&broker.url(), permissions::WORKER))
            .set("amqp.reply_to_allow", "replies.*,comfy.follow.*");
        let mut worker = builder.clone().start().await?;
        worker.wait_ready(BOOT).await?;
        Ok(Self { s3, broker, builder, _worker: worker, turns: RwLock::default() })
    }

    pub(crate) fn broker(&self) -> &'static RabbitMq {
        self.broker
    }

    /// To start another worker like it, or a command beside it.
    pub(crate) fn builder(&self) -> WorkerBuilder {
        self.builder.clone()
    }

    pub(crate) fn broker_address(&self) -> Result<SocketAddr> {
        let url = url::Url::parse(&self.broker.url())?;
        Ok(SocketAddr::from(([127, 0, 0, 1], url.port().context("the broker's port")?)))
    }

    pub(crate) fn url(&self, gate: &Gate) -> String {
        format!("amqp://{0}:{0}@{1}/%2f", permissions::PUBLISHER, gate.address())
    }

    pub(crate) fn empty_vhost_url(&self, gate: &Gate) -> String {
        format!("amqp://{0}:{0}@{1}/{EMPTY}", permissions::PUBLISHER, gate.address())
    }

    /// The jobs that have this picture among their outputs.
    pub(crate) async fn jobs_that_made(&self, picture: &[u8]) -> Result<BTreeSet<String>> {
        let mut jobs = BTreeSet::new();
        for (key, _) in self.s3.list("results", "jobs/").await? {
            let id = key.split('/').nth(1).context("no job's object")?;
            if key.contains("/outputs/") && self.s3.get("results", &key).await? == picture {
                jobs.insert(id.to_owned());
            }
        }
        Ok(jobs)
    }

    pub(crate) async fn attempts(&self, id: &str) -> Result<usize> {
        Ok(self.s3.list("results", &format!("jobs/{id}/attempts/")).await?.len())
    }

    pub(crate) async fn result(&self, id: &str) -> Result<Value> {
        let body = self.s3.get("results", &format!("jobs/{id}/result.json")).await?;
        serde_json::from_slice(&body).context("result.json")
    }
}
