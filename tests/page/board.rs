//! A status page without a worker: the test says what happens.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use bytes::Bytes;
use contract::{
    JobId,
    event::{EventKind, JobEvent},
    result::{
        Code, JobError, JobResult, Kind, NodeTiming, Output, OutputFile, Stage, Status, Timings, WorkerInfo,
    },
};

use comfy_worker::{
    admin::{self, Admin, Commands, JobHandle, StatusBoard},
    events::{EventSink, Preview},
    store::LocalStore,
};
use connector::comfy::events::Image;
use tempfile::TempDir;
use testbed::{landscape, png};

pub(super) const TOKEN: &str = "a-long-random-text";

/// A page's server and its board.
pub(super) struct Desk {
    pub(super) admin: Admin,
    pub(super) board: StatusBoard,
    pub(super) told: Told,
    /// Where the outputs are.
    pub(super) folder: TempDir,
}

/// The commands that came.
#[derive(Clone, Debug, Default)]
pub(super) struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().map(|told| told.clone()).unwrap_or_default()
    }

    fn note(&self, command: String) {
        if let Ok(mut told) = self.0.lock() {
            told.push(command);
        }
    }
}

impl Commands for Told {
    fn cancel(&self, job: &JobId) -> bool {
        self.note(format!("cancel {job}"));
        true
    }

    fn drain(&self) {
        self.note("drain".into());
    }
}

impl Desk {
    pub(super) async fn new(token: Option<&str>) -> Result<Self> {
        Self::at("127.0.0.1:0".parse()?, "gpu-7", token).await
    }

    pub(super) async fn at(address: SocketAddr, worker: &str, token: Option<&str>) -> Result<Self> {
        let (board, told) = (StatusBoard::new(worker.into()), Told::default());
        let admin = admin::serve(address, board.clone(), token.map(Into::into), told.clone()).await?;
        admin.shows_outputs_of(Arc::new(LocalStore));
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("landscape.png"), landscape())?;
        Ok(Self { admin, board, told, folder })
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.admin.address)
    }

    /// A job that is taken now.
    pub(super) fn job(&self, id: &str) -> Result<Job> {
        self.job_since(id, 0)
    }

    /// A job that was taken so many milliseconds ago.
    pub(super) fn job_since(&self, id: &str, ms: u64) -> Result<Job> {
        let id = id.parse().map_err(anyhow::Error::msg)?;
        let job = Job { place: self.board.take_job(), id, at: now().saturating_sub(ms) };
        job.event_after(0, EventKind::Accepted);
        Ok(job)
    }

    /// A picture of this name in the folder of outputs.
    pub(super) fn output(&self, filename: &str) -> Output {
        let uri = format!("file://{}/landscape.png", self.folder.path().display());
        output(filename, &uri, "image/png", 192_000)
    }
}

/// A job in hand.
pub(super) struct Job {
    place: JobHandle,
    id: JobId,
    at: u64,
}

impl Job {
    pub(super) fn event(&self, kind: EventKind) {
        self.event_after(now().saturating_sub(self.at), kind);
    }

    /// What happened so many milliseconds after it was taken.
    pub(super) fn event_after(&self, ms: u64, kind: EventKind) {
        let (id, at) = (self.id.clone(), self.at + ms);
        self.place.event(&JobEvent { version: 1, id, seq: at, at, attempt: 1, worker: "gpu-7".into(), kind });
    }

    /// Up to its execution.
    pub(super) fn run(&self, nodes: usize) {
        self.event_after(140, EventKind::Staged { files: 1, bytes: 192_000 });
        self.event_after(235, EventKind::Converted { nodes });
        self.event_after(236, EventKind::Queued { prompt_id: "p".into() });
        self.event_after(240, EventKind::Started);
    }

    /// A node that has come so far, so many milliseconds after the job was taken.
    pub(super) fn node(&self, ms: u64, (node, title): (&str, &str), (value, max): (f64, f64), fraction: f64) {
        self.event_after(
            ms,
            EventKind::Progress { node: node.into(), title: title.into(), value, max, fraction },
        );
    }

    pub(super) fn preview(&self, seq: u64) {
        let shade = |x: u32, y: u32| [u8::try_from((x + y) % 256).unwrap_or_default(), 120, 90];
        let image = Image { node: None, content_type: "image/png", bytes: Bytes::from(png(128, 128, shade)) };
        self.place.preview(&Preview {
            id: &self.id,
            seq,
            at: now(),
            attempt: 1,
            worker: "gpu-7",
            image: &image,
        });
    }

    pub(super) fn succeed(self, outputs: Vec<Output>) {
        self.end(Status::Succeeded, outputs, None);
    }

    pub(super) fn fail(self, error: JobError) {
        let status = if error.code == Code::Cancelled { Status::Cancelled } else { Status::Failed };
        self.end(status, Vec::new(), Some(error));
    }

    fn end(self, status: Status, outputs: Vec<Output>, error: Option<JobError>) {
        self.event(EventKind::Finished { status });
        let timing = |ms, cached| NodeTiming { ms, cached };
        self.place.ended(&JobResult {
            version: 1,
            id: self.id.clone(),
            status,
            outputs,
            history: None,
            prompt: None,
            error,
            warnings: Vec::new(),
            timings: Timings {
                queued_ms: 310,
                staged_ms: 140,
                converted_ms: 95,
                waited_ms: 4,
                executed_ms: 6200,
                uploaded_ms: 380,
                total_ms: 7129,
                models: None,
            },
            nodes: BTreeMap::from([("3".into(), timing(5890.0, false)), ("4".into(), timing(0.0, true))]),
            attempt: 1,
            worker: WorkerInfo::default(),
            metadata: None,
        });
    }
}

pub(super) fn output(filename: &str, uri: &str, content_type: &str, size: u64) -> Output {
    Output {
        node: "9".into(),
        key: "images".into(),
        index: 0,
        kind: Kind::Image,
        text: None,
        file: Some(OutputFile {
            filename: filename.into(),
            uri: uri.into(),
            url: None,
            content_type: content_type.into(),
            size,
            sha256: String::new(),
            temp: false,
        }),
    }
}

pub(super) fn error(code: Code, message: &str) -> JobError {
    JobError {
        code,
        stage: Stage::Run,
        message: message.into(),
        node_errors: None,
        node: None,
        traceback: None,
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}
