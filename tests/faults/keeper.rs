//! The soak's workers: each has a keeper, who strikes it and starts it again.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use testbed::{Fault, Signal, Worker, wait_for};
use tokio::{sync::mpsc, time::sleep};

use super::{
    BOOT, SOON,
    bed::Bed,
    journal::{Harm, Left},
    place::Place,
    plan::Act,
    site::{child, kill},
};

/// A worker that has just booted gets so long to take a job before it can be struck: a strike that
/// meets no job shows little.
const RESPITE: Duration = Duration::from_secs(10);
/// Boots of one worker in a row that may fail: as often as all poison jobs together may kill one.
const BOOTS: u32 = 10;
/// Between two boots of a worker whose surroundings are not there.
const PAUSE: Duration = Duration::from_secs(2);
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

/// Starts a worker, strikes it as told, starts it again whenever it ends.
pub(super) struct Keeper {
    pub(super) bed: Arc<Bed>,
    pub(super) place: Arc<Place>,
    pub(super) strikes: mpsc::Receiver<Act>,
    /// Whether a strike would be carried out now.
    pub(super) listens: Arc<AtomicBool>,
}

/// How a keeper is told to strike.
pub(super) struct Orders {
    pub(super) sender: mpsc::Sender<Act>,
    pub(super) listens: Arc<AtomicBool>,
}

impl Orders {
    /// Whether the keeper takes it: one who is starting his worker does not.
    pub(super) fn give(&self, act: &Act) -> bool {
        self.listens.swap(false, Ordering::SeqCst) && self.sender.try_send(act.clone()).is_ok()
    }
}

/// The first one from `worker` on who takes it.
pub(super) fn give(keepers: &[Orders], worker: usize, act: &Act) -> Option<usize> {
    // Only the first one's disk is small.
    let most = if matches!(act, Act::DiskFull(_)) { 1 } else { keepers.len() };
    let mut order = (0..most).map(|step| (worker + step) % keepers.len());
    order.find(|keeper| keepers[*keeper].give(act))
}

impl Keeper {
    /// Until nobody strikes any more: the worker, which runs. Takes no strike while it starts it.
    pub(super) async fn keep(mut self, mut worker: Worker) -> Result<Worker> {
        self.place.houses(&worker);
        loop {
            self.listens.store(true, Ordering::SeqCst);
            tokio::select! {
                act = self.strikes.recv() => match act {
                    None => return Ok(worker),
                    Some(act) => {
                        let pid = worker.pid();
                        if let Err(error) = self.strike(&mut worker, act).await {
                            // A poison job may kill it in the very moment in which it is struck.
                            let Some(status) = worker.exit_status() else { return Err(error) };
                            self.note_end(status, &worker);
                            worker = self.boot().await?;
                        }
                        if worker.pid() != pid {
                            self.wait_at_work().await;
                        }
                    }
                },
                ended = worker.wait_exit(FOR_EVER) => {
                    self.listens.store(false, Ordering::SeqCst);
                    self.note_end(ended?, &worker);
                    self.place.bury(&mut worker, &[], &self.bed.journal).await?;
                    worker = self.boot().await?;
                    self.wait_at_work().await;
                }
            }
        }
    }

    /// Where no job comes an idle one is struck.
    async fn wait_at_work(&self) {
        let since = self.bed.journal.now();
        let at_work = || async { self.bed.journal.has_accepted(&self.place.name, since) };
        let _ = wait_for("a job in hand", RESPITE, at_work).await;
    }

    /// A worker that ended unstruck.
    fn note_end(&self, status: ExitStatus, worker: &Worker) {
        if self.place.may_end(status) {
            println!("{}: {status}, as it may now", self.place.name);
        } else if status.signal() == Some(Signal::KILL.as_raw()) {
            self.bed.journal.fault(Harm::Poison, Some(&self.place.name), "");
        } else {
            let log = worker.log();
            let words = log.lines().next_back().unwrap_or_default();
            self.bed.journal.left(Left::Exit, format!("{}: {status} by itself: {words}", self.place.name));
        }
    }

    /// A poison job can kill a worker before its boot is seen to be over.
    async fn boot(&self) -> Result<Worker> {
        let mut boots = BOOTS;
        while boots > 0 {
            let mut worker = self.place.site.start().await?;
            self.place.houses(&worker);
            if worker.wait_ready(BOOT).await.is_ok() {
                return Ok(worker);
            }
            let status = worker.wait_exit(SOON).await?;
            if self.place.may_end(status) {
                // As any platform starts it again.
                sleep(PAUSE).await;
            } else {
                self.note_end(status, &worker);
                boots -= 1;
            }
        }
        bail!("worker {} does not boot", self.place.name)
    }

    async fn strike(&self, worker: &mut Worker, act: Act) -> Result<()> {
        // What a poison job killed just now is not there to be struck.
        if worker.exit_status().is_some() {
            return Ok(());
        }
        let (name, journal) = (Some(self.place.name.as_str()), &self.bed.journal);
        match act {
            Act::Kill => {
                self.place.kill(worker, journal).await?;
                *worker = self.boot().await?;
            }
            Act::Term => {
                journal.fault(Harm::Term, name, "");
                self.place.drain(worker, &self.bed, || {}).await?;
                *worker = self.boot().await?;
            }
            Act::Stop(time) => {
                journal.fault(Harm::Stop, name, format!("{time:?}"));
                worker.signal(Signal::STOP)?;
                sleep(time).await;
                worker.signal(Signal::CONT)?;
            }
            Act::Amqp(fault, time) => {
                journal.fault(Harm::Amqp, name, format!("{fault:?} for {time:?}"));
                let place = Arc::clone(&self.place);
                place.gate.set(fault, "");
                if fault == Fault::Reset {
                    place.gate.cut();
                }
                tokio::spawn(async move {
                    sleep(time).await;
                    place.gate.lift();
                    // A connection that lost bytes in between must not be believed again.
                    if matches!(fault, Fault::Swallow | Fault::HalfOpen) {
                        place.gate.cut();
                    }
                });
            }
            Act::Engine => self.kill_child(worker, "main.py", Harm::Engine),
            Act::NoBoot(how, time) => {
                let (bed, place) = (Arc::clone(&self.bed), Arc::clone(&self.place));
                place.let_fail(time);
                fs::write(place.boot_file(), how).context("cannot keep ComfyUI from booting")?;
                journal.fault(Harm::NoBoot, name, format!("{how} for {time:?}"));
                self.kill_child(worker, "main.py", Harm::Engine);
                tokio::spawn(async move {
                    sleep(time).await;
                    let _ = fs::remove_file(place.boot_file());
                    bed.journal.lifted(Harm::NoBoot, Some(&place.name));
                });
            }
            Act::Browser => self.kill_child(worker, "--user-data-dir", Harm::Browser),
            Act::DiskFull(time) => {
                let filler = self.place.input_of(worker)?.join("filler");
                journal.fault(Harm::DiskFull, name, format!("{time:?}"));
                let mut file = File::create(&filler).context("cannot fill the disk")?;
                while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
                sleep(time).await;
                // A worker that was killed meanwhile took its file system along.
                let _ = fs::remove_file(&filler);
            }
            Act::Store(..) | Act::Broker => {}
        }
        Ok(())
    }

    fn kill_child(&self, worker: &Worker, part: &str, harm: Harm) {
        // One that is being started again is not there.
        if let Ok(pid) = child(worker, part)
            && kill(pid, Signal::KILL).is_ok()
        {
            self.bed.journal.fault(harm, Some(&self.place.name), format!("pid {pid}"));
        }
    }
}
