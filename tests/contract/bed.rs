//! The one ComfyUI of this run, and plain HTTP to it.

use std::{
    fs,
    path::PathBuf,
    sync::{LazyLock, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::config::ComfyUiConfig;
use connector::comfy::{Client, Server};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use testbed::{Engine, alive, free_port, scratch_root};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Mutex, OnceCell},
};
use url::Url;
use uuid::Uuid;

use super::frames::Ears;

/// Longest wait for anything that happens; nothing is waited out in the good case.
pub(crate) const LIMIT: Duration = Duration::from_secs(240);

/// A running ComfyUI.
pub(crate) struct Bed {
    pub(crate) server: Server,
    pub(crate) config: ComfyUiConfig,
    pub(crate) path: PathBuf,
    pub(crate) is_real: bool,
    /// The Python that runs it: it has aiohttp.
    pub(crate) python: String,
    http: reqwest::Client,
}

/// Runs a test body against the shared ComfyUI, alone.
pub(crate) fn on_comfyui(body: impl AsyncFnOnce(&Bed) -> Result<()>) -> Result<()> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    static ALONE: Mutex<()> = Mutex::const_new(());
    static BED: OnceCell<Bed> = OnceCell::const_new();
    // Connections and the child live on it: it must outlast every single test.
    let runtime = match RUNTIME.get() {
        Some(runtime) => runtime,
        None => {
            let made = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            RUNTIME.get_or_init(|| made)
        }
    };
    let _alone = runtime.block_on(ALONE.lock());
    runtime.block_on(async {
        let bed = BED.get_or_try_init(Bed::boot).await?;
        ensure!(bed.server.exit().is_none(), "ComfyUI ended: {:?}", bed.server.exit());
        body(bed).await
    })
}

/// How our own [`Server`] starts that engine.
pub(crate) fn config(engine: &Engine) -> Result<ComfyUiConfig> {
    let mut config = ComfyUiConfig::default();
    config.command.clone_from(&engine.command);
    config.workdir.clone_from(&engine.workdir);
    config.path.clone_from(&engine.path);
    config.port = free_port()?;
    config.boot_timeout = Duration::from_secs(300);
    Ok(config)
}

impl Bed {
    async fn boot() -> Result<Self> {
        let folder = folder()?;
        let engine = Engine::from_env(&folder)?;
        eprintln!("the contract is held against {}", engine.describe());
        let log = engine.path.join("comfyui.log");
        let each_line = move |line: &str| {
            use std::io::Write as _;
            let file = fs::File::options().create(true).append(true).open(&log);
            let _ = file.and_then(|mut file| writeln!(file, "{line}"));
        };
        let config = config(&engine)?;
        let server = Server::boot(&config, each_line, |_| ()).await?;
        Ok(Self {
            server,
            config,
            path: engine.path.clone(),
            is_real: engine.is_real(),
            python: engine.command.first().cloned().unwrap_or_default(),
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// Whether it is a ComfyUI of 2026, whose words differ here and there; the stand-in speaks those of 0.3.64.
    pub(crate) fn is_of_2026(&self) -> bool {
        let minor = self.server.version().split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
        minor.is_some_and(|minor| minor >= 33)
    }

    /// Transcripts of that ComfyUI, or of one that speaks like it.
    pub(crate) fn transcripts(&self) -> PathBuf {
        let folder = if self.is_of_2026() { "transcripts-0.33.0" } else { "transcripts" };
        testbed::checkout().join("tests/fixtures").join(folder)
    }

    pub(crate) fn client(&self) -> &Client {
        self.server.client()
    }

    pub(crate) fn base(&self) -> &Url {
        self.server.client().base()
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> Result<reqwest::RequestBuilder> {
        let url = self.base().join(path)?;
        Ok(self.http.request(method.parse()?, url).timeout(LIMIT))
    }

    /// GET, as it comes.
    pub(crate) async fn fetch(&self, path: &str) -> Result<Response> {
        self.request("GET", path)?.send().await.context(path.to_owned())
    }

    /// GET of JSON that must be there.
    pub(crate) async fn get(&self, path: &str) -> Result<Value> {
        let answer = self.fetch(path).await?;
        ensure!(answer.status() == StatusCode::OK, "{path}: {}", answer.status());
        answer.json().await.context(path.to_owned())
    }

    /// POST of JSON: status and, where there is one, JSON answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let answer = self.request("POST", path)?.json(body).send().await.context(path.to_owned())?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or(Value::Null)))
    }

    /// Posts a prompt for `ears` under a new id; fails when it is refused.
    pub(crate) async fn prompt(&self, ears: &Ears, prompt: &Value) -> Result<String> {
        let id = Uuid::new_v4().to_string();
        let body = json!({"prompt": prompt, "client_id": ears.client_id, "prompt_id": id});
        let (status, answer) = self.post("prompt", &body).await?;
        ensure!(status == 200, "refused: {answer}");
        ensure!(answer["prompt_id"] == id.as_str(), "our id is honoured: {answer}");
        Ok(id)
    }

    /// A prompt's history entry; `Null` when there is none.
    pub(crate) async fn history(&self, id: &str) -> Result<Value> {
        Ok(self.get(&format!("history/{id}")).await?[id].take())
    }
}

/// `<build folder>/tmp/contract-<pid>`; those of processes that are gone are removed.
fn folder() -> Result<PathBuf> {
    static NAME: LazyLock<String> = LazyLock::new(|| format!("contract-{}", std::process::id()));
    let root = scratch_root()?;
    for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("contract-")?.parse().ok());
        if owner.is_some_and(|pid| !alive(pid)) {
            // Another test process may be removing it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = root.join(&*NAME);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
