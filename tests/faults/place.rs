//! Where a worker lives through a run: its gate to the broker, its canaries, its lives one after
//! the other, and what each of them must not leave.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::ExitStatus,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use testbed::{Gate, ProcessInfo, Signal, Worker, wait_for, zombies};

use super::{
    ENDING, SOON,
    bed::{Bed, Line},
    evidence,
    journal::{Harm, Journal, Left},
    site::{Site, Snapshot, status},
};

/// The children of a killed worker die with it.
pub(super) const DEATH: Duration = Duration::from_secs(5);

/// What a drain may take until the running job goes back.
const GRACE: Duration = Duration::from_secs(10);

/// How a worker ends when a part of its surroundings fails.
const SURROUNDINGS: i32 = 3;
/// For an end to come that began while something was away.
const LATE: Duration = Duration::from_secs(20);

const BOOT_FILE: &str = "boot";

/// A worker's place.
#[derive(Clone)]
pub(super) struct Place {
    /// The worker's name.
    pub(super) name: String,
    pub(super) site: Site,
    /// Between the worker and the broker.
    pub(super) gate: Arc<Gate>,
    before: Snapshot,
    life: Arc<Mutex<Life>>,
}

/// The worker that lives there now.
#[derive(Default)]
struct Life {
    /// Its admin endpoint.
    admin: String,
    /// Until then it may end by itself, for what it needs is not to be had.
    may_fail_until: Option<Instant>,
}

impl Place {
    /// On the stand-in; `tmpfs`: its input folder is a file system of 16 MB of its own.
    pub(super) async fn new(bed: &Bed, name: &str, tmpfs: bool) -> Result<Self> {
        Self::on(bed, name, tmpfs, Site::standin(bed, name)?).await
    }

    /// The same, with a small frontend: a boot takes half the CPU.
    pub(super) async fn light(bed: &Bed, name: &str) -> Result<Self> {
        Self::on(bed, name, false, Site::light(bed, name)?).await
    }

    /// A light one whose worker speaks with broker and store themselves: nobody is to come between them.
    pub(super) async fn direct(bed: &Bed, name: &str) -> Result<Self> {
        let mut place = Self::light(bed, name).await?;
        place.site = place.site.set("amqp.url", bed.broker.url()).set("store.endpoint", bed.s3.endpoint());
        Ok(place)
    }

    /// The same folders for a worker of another name, the start and end of whose executions are written
    /// into a file of its own.
    pub(super) fn renamed(&self, name: String) -> Self {
        let times = self.times_of(&name).display().to_string();
        let site = self.site.clone().set("worker.id", name.as_str()).env("STANDIN_TIMES", times);
        Self { name, site, ..self.clone() }
    }

    /// Start and end of each execution of a [`Place::renamed`] one, in seconds.
    pub(super) fn executions(&self) -> Result<Vec<(f64, f64)>> {
        #[derive(Deserialize)]
        struct Span {
            start: f64,
            end: f64,
        }
        // Nobody has run anything.
        let Ok(times) = fs::read_to_string(self.times_of(&self.name)) else { return Ok(Vec::new()) };
        let span = |line: &str| -> Result<_> {
            let Span { start, end } = serde_json::from_str(line)?;
            Ok((start, end))
        };
        times.lines().map(span).collect()
    }

    fn times_of(&self, name: &str) -> PathBuf {
        self.site.folder(&format!("../times-{name}.jsonl"))
    }

    async fn on(bed: &Bed, name: &str, tmpfs: bool, site: Site) -> Result<Self> {
        let gate = Arc::new(Gate::start(bed.broker_address()?).await?);
        let folder = bed.folder.path().join(name);
        let text = |path: PathBuf| path.display().to_string();
        let mut site = site
            .set("amqp.url", format!("amqp://guest:guest@{}/%2f", gate.address()))
            .set("store.endpoint", format!("http://{}", bed.store_gate.address()))
            .set("worker.grace", format!("{}s", GRACE.as_secs()))
            // The plan kills more ComfyUIs than a machine ever loses.
            .set("comfyui.max_restarts", "1000")
            .env("STANDIN_LEDGER", text(folder.join("ledger")))
            .env("STANDIN_BOOT_FILE", text(folder.join(BOOT_FILE)))
            .env("COMFY_PHASES", text(bed.folder.path().join("phases")));
        fs::create_dir_all(bed.folder.path().join("phases"))?;
        // Somebody's own files, also under the names that jobs' folders get.
        for canary in ["input/theirs/cat.png", "output/old.png", "input/canary.txt"] {
            let file = site.folder(canary);
            fs::create_dir_all(file.parent().context("a folder")?)?;
            fs::write(file, "theirs")?;
        }
        let before = site.snapshot()?;
        if tmpfs {
            let mount =
                format!("mount -t tmpfs -o size=16m none '{}' && exec \"$@\"", text(site.folder("input")));
            let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
            site = site.launcher(words.map(str::to_owned));
        }
        Ok(Self { name: name.to_owned(), site, gate, before, life: Arc::default() })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this one lives here.
    pub(super) fn houses(&self, worker: &Worker) {
        self.life().admin = worker.admin_url("");
    }

    /// An address of anyone who lives here.
    pub(super) fn admin(&self, path: &str) -> String {
        self.life().admin.clone() + path
    }

    /// For so long the worker may end by itself, and a little longer: its last boot began before.
    pub(super) fn let_fail(&self, time: Duration) {
        self.life().may_fail_until = Some(Instant::now() + time + LATE);
    }

    /// Whether an end is one that it may come to now: of its surroundings.
    pub(super) fn may_end(&self, status: ExitStatus) -> bool {
        let may_fail = self.life().may_fail_until.is_some_and(|until| Instant::now() < until);
        may_fail && status.code() == Some(SURROUNDINGS)
    }

    /// What says how its ComfyUIs boot, while it is there.
    pub(super) fn boot_file(&self) -> PathBuf {
        self.site.folder("..").join(BOOT_FILE)
    }

    /// Every prompt that its ComfyUIs began, a line each.
    pub(super) fn ledger(&self) -> String {
        fs::read_to_string(self.site.folder("../ledger")).unwrap_or_default()
    }

    /// Waits until the worker has no job in hand.
    pub(super) async fn wait_idle(&self, worker: &Worker) -> Result<()> {
        let idle = || async { status(worker).await.is_ok_and(|status| status["job"].is_null()) };
        wait_for("the worker to be idle", SOON, idle).await
    }

    /// Waits for the end of a worker that was killed or panicked, and notes what outlives it.
    pub(super) async fn bury(
        &self,
        worker: &mut Worker,
        seen: &[ProcessInfo],
        journal: &Journal,
    ) -> Result<()> {
        let around = Around { seen: seen.to_vec(), ports: evidence::ports(worker) };
        worker.wait_exit(ENDING).await?;
        self.note_left(&around, journal).await;
        Ok(())
    }

    async fn note_left(&self, around: &Around, journal: &Journal) {
        if let Err(error) = self.site.wait_no_process(&around.seen, DEATH).await {
            journal.left(Left::Process, format!("{}: {error:#}", self.name));
        }
        evidence::listeners(journal, &around.ports).await;
    }

    /// Kills the worker and notes what outlives it.
    pub(super) async fn kill(&self, worker: &mut Worker, journal: &Journal) -> Result<()> {
        let around = Around::of(worker);
        worker.signal(Signal::KILL)?;
        journal.fault(Harm::Kill, Some(&self.name), "");
        worker.wait_exit(ENDING).await?;
        self.note_left(&around, journal).await;
        Ok(())
    }

    /// Waits for the orderly end of a worker that was sent TERM; `meanwhile` runs once it drains.
    pub(super) async fn drain(&self, worker: &mut Worker, bed: &Bed, meanwhile: impl FnOnce()) -> Result<()> {
        let around = Around::of(worker);
        worker.signal(Signal::TERM)?;
        self.see_drained(worker, bed, &around, meanwhile).await
    }

    /// The same for one that is told so through the control exchange.
    pub(super) async fn drain_on_order(&self, worker: &mut Worker, bed: &Bed, line: &Line) -> Result<()> {
        let around = Around::of(worker);
        bed.order(line, &json!({"drain": self.name})).await?;
        self.see_drained(worker, bed, &around, || {}).await
    }

    async fn see_drained(
        &self,
        worker: &mut Worker,
        bed: &Bed,
        around: &Around,
        meanwhile: impl FnOnce(),
    ) -> Result<()> {
        let journal = &bed.journal;
        let draining = || async {
            status(worker).await.map_or(true, |status| status["state"].as_str() == Some("draining"))
        };
        wait_for("the drain", SOON, draining).await?;
        meanwhile();
        let status = worker.wait_exit(GRACE + ENDING).await?;
        if status.signal() == Some(Signal::KILL.as_raw()) {
            // The job that it was to finish was poison.
            journal.fault(Harm::Poison, Some(&self.name), "in its drain");
        } else if status.code() != Some(0) && !self.may_end(status) {
            journal.left(Left::Exit, format!("{}: {status} after a drain", self.name));
        }
        self.note_left(around, journal).await;
        Ok(())
    }

    /// Notes what an idle worker should not hold; says what it holds.
    pub(super) async fn examine(&self, worker: &Worker, journal: &Journal) -> Result<String> {
        let reaped = || async { zombies(worker.pid()).is_empty() };
        if wait_for("the reaping of all children", SOON, reaped).await.is_err() {
            journal.left(Left::Process, format!("{}: zombies {:?}", self.name, zombies(worker.pid())));
        }
        evidence::resources(journal, &self.name, worker)
    }

    /// The last worker's end.
    pub(super) async fn close(&self, mut worker: Worker, bed: &Bed) -> Result<()> {
        println!("{}", self.examine(&worker, &bed.journal).await?);
        self.drain(&mut worker, bed, || {}).await?;
        self.clear(bed).await
    }

    /// Notes what nobody has removed, keeps the log. What a killed worker left is swept by a start that
    /// comes late enough.
    pub(super) async fn clear(&self, bed: &Bed) -> Result<()> {
        if self.site.ensure_no_file(&self.before).is_err() {
            let mut sweeper = self.site.boot().await?;
            self.drain(&mut sweeper, bed, || {}).await?;
        }
        if let Err(error) = self.site.ensure_no_file(&self.before) {
            bed.journal.left(Left::File, format!("{}: {error:#}", self.name));
        }
        let log = fs::read(self.site.folder("../worker.log")).context("the worker's log")?;
        evidence::secrets(&bed.journal, bed, &String::from_utf8_lossy(&log));
        // Beside the journal: the run's own folder goes with its end.
        let kept = bed.kept.join(format!("{}-{}.log", bed.name, self.name));
        fs::write(&kept, log).with_context(|| format!("cannot write {}", kept.display()))
    }

    /// That no file of a job is left beside a worker that runs and is idle.
    pub(super) fn ensure_clean(&self) -> Result<()> {
        self.site.ensure_no_job_file(&self.before)
    }

    /// The worker's input folder, seen from outside its namespace.
    pub(super) fn input_of(&self, worker: &Worker) -> Result<PathBuf> {
        let input = self.site.folder("input").canonicalize()?;
        let seen = PathBuf::from(format!("/proc/{}/root{}", worker.pid(), input.display()));
        ensure!(seen.is_dir(), "cannot look into {}", seen.display());
        Ok(seen)
    }
}

/// What must not outlive a worker.
struct Around {
    seen: Vec<ProcessInfo>,
    ports: Vec<u16>,
}

impl Around {
    fn of(worker: &Worker) -> Self {
        Self { seen: worker.descendants(), ports: evidence::ports(worker) }
    }
}
