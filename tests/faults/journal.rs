//! Everything that a run attempted and found, one JSON line each.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::fleet::Event;

/// Milliseconds since the run's start.
pub(super) type Millis = u64;

/// How a job must end, whatever happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Expected {
    /// It succeeds; one of its texts holds this.
    Success { says: String },
    /// It fails with this code.
    Failure { code: String },
    /// It kills its workers: `poison`.
    Poison,
    /// It is refused or contained.
    Answer,
    /// It goes to the dead letters: nobody is to be told.
    DeadLetter,
}

/// What was done to the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Harm {
    Kill,
    Term,
    Panic,
    Stop,
    Amqp,
    Store,
    Engine,
    Browser,
    Broker,
    DiskFull,
    /// A job killed its worker: no fault of the plan's.
    Poison,
    // The long ones; each is lifted some time later.
    StoreAway,
    StoreForbids,
    Alarm,
    BrokerDown,
    NoBoot,
}

impl Harm {
    /// Whether an execution may be lost by it. No store that is away, no broker and no lost connection is among
    /// these: the worker goes on with what it has, and nobody else runs that a second time.
    pub(super) fn costs_executions(self) -> bool {
        self.is_crash() || matches!(self, Self::Term | Self::Engine)
    }

    /// Whether no job is taken, or nobody told, until it is lifted.
    pub(super) fn halts(self) -> bool {
        matches!(self, Self::StoreAway | Self::StoreForbids | Self::Alarm | Self::BrokerDown)
    }

    /// Whether the attempt in hand ends without a word: it counts towards poison.
    fn is_crash(self) -> bool {
        matches!(self, Self::Kill | Self::Panic | Self::Poison | Self::Stop)
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(super) enum Record {
    /// Confirmed by the broker.
    Published { at: Millis, id: String, expected: Expected },
    /// A worker said that it had taken the job.
    Accepted { at: Millis, id: String, worker: String },
    /// Its ComfyUI began to run the job.
    Started { at: Millis, id: String, worker: String },
    /// An answer came; `sha256` of its body.
    Answered { at: Millis, id: String, sha256: String },
    /// It came out of the dead-letter queue.
    DeadLettered { at: Millis, id: String },
    /// Something was broken; `worker`: only that one's.
    Fault { at: Millis, harm: Harm, worker: Option<String>, detail: String },
    /// A long fault is over.
    Lifted { at: Millis, harm: Harm, worker: Option<String> },
    /// What is stored, after the run.
    Manifest(Manifest),
    /// Something that must not be there, after the run or a worker's end.
    Left { kind: Left, detail: String },
    /// A fleet grew, shrank or was looked at.
    Fleet(Event),
}

/// A stored result and what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) id: String,
    pub(super) sha256: String,
    pub(super) status: String,
    pub(super) code: Option<String>,
    pub(super) texts: Vec<String>,
    pub(super) outputs: Vec<StoredOutput>,
    /// The worker whose result it is.
    pub(super) by: String,
    /// The workers of its attempts.
    pub(super) workers: BTreeSet<String>,
    /// How often a ComfyUI began to run it.
    pub(super) executions: usize,
}

/// An output as the manifest names it, and the sum of what lies there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredOutput {
    pub(super) uri: String,
    pub(super) sha256: String,
    pub(super) found: Option<String>,
}

/// What can be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Left {
    Process,
    Listener,
    File,
    Message,
    Upload,
    Secret,
    /// Memory or descriptors.
    Resource,
    /// A worker ended otherwise than it should.
    Exit,
    /// A worker said that it was ready, or held a job, while what it needs was away.
    Standing,
}

impl Record {
    /// The job that it is about.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Published { id, .. }
            | Self::Accepted { id, .. }
            | Self::Started { id, .. }
            | Self::Answered { id, .. }
            | Self::DeadLettered { id, .. }
            | Self::Manifest(Manifest { id, .. }) => Some(id),
            Self::Fault { .. } | Self::Lifted { .. } | Self::Left { .. } | Self::Fleet(_) => None,
        }
    }
}

/// Which harms count.
pub(super) type Kinds = fn(Harm) -> bool;

/// The harms that may excuse a failure of a job that is all right: code, and how many of which.
pub(super) fn excuse(code: &str) -> Option<(usize, Kinds)> {
    match code {
        "poison" => Some((3, Harm::is_crash)),
        "checksum_mismatch" => Some((2, |harm| harm == Harm::Store)),
        "engine_crashed" => Some((2, |harm| harm == Harm::Engine)),
        "conversion_failed" => Some((2, |harm| harm == Harm::Browser)),
        _ => None,
    }
}

/// Writes the lines and keeps them.
pub(super) struct Journal {
    begin: Instant,
    file: Mutex<File>,
    records: Mutex<Vec<Record>>,
}

impl Journal {
    pub(super) fn create(file: &Path) -> Result<Self> {
        let file = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
        Ok(Self { begin: Instant::now(), file: Mutex::new(file), records: Mutex::default() })
    }

    pub(super) fn now(&self) -> Millis {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn note(&self, record: Record) {
        if let Ok(line) = serde_json::to_string(&record) {
            let _ = writeln!(self.file.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
        }
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(record);
    }

    pub(super) fn fault(&self, harm: Harm, worker: Option<&str>, detail: impl Into<String>) {
        let worker = worker.map(str::to_owned);
        self.note(Record::Fault { at: self.now(), harm, worker, detail: detail.into() });
    }

    pub(super) fn lifted(&self, harm: Harm, worker: Option<&str>) {
        self.note(Record::Lifted { at: self.now(), harm, worker: worker.map(str::to_owned) });
    }

    pub(super) fn left(&self, kind: Left, detail: impl Into<String>) {
        self.note(Record::Left { kind, detail: detail.into() });
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many answers came to that job.
    pub(super) fn answers(&self, id: &str) -> usize {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        records
            .iter()
            .filter(|record| matches!(record, Record::Answered { .. }) && record.id() == Some(id))
            .count()
    }

    /// Whether that worker has taken a job since then.
    pub(super) fn has_accepted(&self, name: &str, since: Millis) -> bool {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let accepted = |record: &Record| matches!(record, Record::Accepted { at, worker, .. } if *at >= since && worker == name);
        records.iter().rev().any(accepted)
    }

    /// Whether that worker has taken a job that is not answered.
    pub(super) fn has_in_hand(&self, name: &str) -> bool {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answered = BTreeSet::new();
        for record in records.iter().rev() {
            match record {
                Record::Answered { id, .. } => drop(answered.insert(id)),
                Record::Accepted { id, worker, .. } if worker == name => return !answered.contains(id),
                _ => {}
            }
        }
        false
    }

    /// Jobs that have been published and neither answered nor rejected.
    pub(super) fn outstanding(&self) -> BTreeSet<String> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = BTreeSet::new();
        let mut done = BTreeSet::new();
        for record in &*records {
            match record {
                Record::Published { id, .. } => open.insert(id.clone()),
                Record::Answered { id, .. } | Record::DeadLettered { id, .. } => done.insert(id.clone()),
                _ => false,
            };
        }
        &open - &done
    }
}
