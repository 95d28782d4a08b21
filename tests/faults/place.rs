//! Where a worker lives through a run: its gate to the broker, its canaries, its lives one after
//! the other, and what each of them must not leave.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use testbed::{Gate, ProcessInfo, Signal, Worker, wait_for, zombies};

use super::{
    SOON,
    bed::Bed,
    evidence,
    journal::{Harm, Journal, Left},
    site::{Site, Snapshot, end, status},
};

/// The children of a killed worker die with it.
pub(super) const DEATH: Duration = Duration::from_secs(5);

/// A worker's place.
pub(super) struct Place {
    pub(super) name: &'static str,
    pub(super) site: Site,
    /// Between the worker and the broker.
    pub(super) gate: Gate,
    before: Snapshot,
}

impl Place {
    /// On the stand-in; `tmpfs`: its input folder is a file system of 16 MB of its own.
    pub(super) async fn new(bed: &Bed, name: &'static str, tmpfs: bool) -> Result<Self> {
        Self::on(bed, name, tmpfs, Site::standin(bed, name)?).await
    }

    /// The same, with a small frontend: a boot takes half the CPU.
    pub(super) async fn light(bed: &Bed, name: &'static str, tmpfs: bool) -> Result<Self> {
        Self::on(bed, name, tmpfs, Site::light(bed, name)?).await
    }

    async fn on(bed: &Bed, name: &'static str, tmpfs: bool, site: Site) -> Result<Self> {
        let gate = Gate::start(bed.broker_address()?).await?;
        let folder = bed.folder.path().join(name);
        let text = |path: PathBuf| path.display().to_string();
        let mut site = site
            .set("amqp.url", format!("amqp://guest:guest@{}/%2f", gate.address()))
            .set("store.endpoint", format!("http://{}", bed.front.address()))
            .set("worker.grace", "10s")
            // The plan kills more ComfyUIs than a machine ever loses.
            .set("comfyui.max_restarts", "1000")
            .env("STANDIN_LEDGER", text(folder.join("ledger")))
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
        Ok(Self { name, site, gate, before })
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
        let ports = evidence::ports(worker);
        end(worker, Duration::ZERO).await?;
        self.note_orphans(seen, journal).await;
        evidence::listeners(journal, &ports).await;
        Ok(())
    }

    async fn note_orphans(&self, seen: &[ProcessInfo], journal: &Journal) {
        if let Err(error) = self.site.wait_no_process(seen, DEATH).await {
            journal.left(Left::Process, format!("{}: {error:#}", self.name));
        }
    }

    /// Kills the worker and notes what outlives it.
    pub(super) async fn kill(&self, worker: &mut Worker, journal: &Journal) -> Result<()> {
        let (seen, ports) = (worker.descendants(), evidence::ports(worker));
        worker.signal(Signal::KILL)?;
        journal.fault(Harm::Kill, Some(self.name), "");
        end(worker, Duration::ZERO).await?;
        self.note_orphans(&seen, journal).await;
        evidence::listeners(journal, &ports).await;
        Ok(())
    }

    /// Waits for the orderly end of a worker that was sent TERM; `meanwhile` runs once it drains.
    pub(super) async fn drain(&self, worker: &mut Worker, bed: &Bed, meanwhile: impl FnOnce()) -> Result<()> {
        let journal = &bed.journal;
        let (seen, ports) = (worker.descendants(), evidence::ports(worker));
        worker.signal(Signal::TERM)?;
        let draining = || async {
            status(worker).await.map_or(true, |status| status["state"].as_str() == Some("draining"))
        };
        wait_for("the drain", SOON, draining).await?;
        meanwhile();
        let (status, _) = end(worker, Duration::from_secs(10)).await?;
        if status.signal() == Some(Signal::KILL.as_raw()) {
            // The job that it was to finish was poison.
            journal.fault(Harm::Poison, Some(self.name), "after TERM");
        } else if status.code() != Some(0) {
            journal.left(Left::Exit, format!("{}: {status} after TERM", self.name));
        }
        self.note_orphans(&seen, journal).await;
        evidence::listeners(journal, &ports).await;
        Ok(())
    }

    /// The last worker's end: what a killed one left is swept by a start that comes late enough.
    pub(super) async fn close(&self, mut worker: Worker, bed: &Bed) -> Result<()> {
        let reaped = || async { zombies(worker.pid()).is_empty() };
        if wait_for("the reaping of all children", SOON, reaped).await.is_err() {
            bed.journal.left(Left::Process, format!("{}: zombies {:?}", self.name, zombies(worker.pid())));
        }
        evidence::resources(&bed.journal, self.name, &worker)?;
        self.drain(&mut worker, bed, || {}).await?;
        if self.site.ensure_no_file(&self.before).is_err() {
            let mut sweeper = self.site.boot().await?;
            self.drain(&mut sweeper, bed, || {}).await?;
        }
        if let Err(error) = self.site.ensure_no_file(&self.before) {
            bed.journal.left(Left::File, format!("{}: {error:#}", self.name));
        }
        evidence::secrets(&bed.journal, bed, &worker.log());
        // Beside the journal: the run's own folder goes with its end.
        let log = bed.kept.join(format!("{}-{}.log", bed.name, self.name));
        fs::write(&log, worker.log()).with_context(|| format!("cannot write {}", log.display()))
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
