//! The workers of a fleet: who is up, who comes, who goes.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use testbed::Worker;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Event,
    plan::{Act, Phase, Step, Way},
};
use crate::{
    bed::{Bed, Line},
    evidence,
    journal::{Left, Record},
    place::Place,
};

/// Between two looks at the workers.
const LOOK: Duration = Duration::from_millis(50);
/// For a worker to be up that can be told to go: others may still boot, and places be cleared.
const PATIENCE: Duration = Duration::from_secs(600);
/// So long a worker with a job in hand is looked for, before an idle one is killed.
const AT_WORK: Duration = Duration::from_secs(5);

/// Folders for one worker after the other.
struct Berth {
    place: Place,
    lives: usize,
}

/// A worker that is up.
struct Member {
    berth: Berth,
    /// The berth's, under this worker's name.
    place: Place,
    worker: Worker,
}

enum Move {
    Up(Box<Member>),
    Gone(Box<Berth>),
}

/// All of them. Dropping it kills them.
pub(super) struct Crew {
    bed: Arc<Bed>,
    line: Arc<Line>,
    free: VecDeque<Berth>,
    up: Vec<Member>,
    moves: JoinSet<Result<Move>>,
}

impl Crew {
    /// As many workers as places, at the most.
    pub(super) fn new(bed: &Arc<Bed>, line: Arc<Line>, places: Vec<Place>) -> Self {
        let free = places.into_iter().map(|place| Berth { place, lives: 0 }).collect();
        Self { bed: Arc::clone(bed), line, free, up: Vec::new(), moves: JoinSet::new() }
    }

    pub(super) fn up(&self) -> usize {
        self.up.len()
    }

    /// Carries out the steps as their turn comes.
    pub(super) async fn follow(
        &mut self,
        steps: &[Step],
        phases: &[Phase],
        published: impl Fn() -> usize,
    ) -> Result<()> {
        for step in steps {
            // Publishing has limits of its own.
            self.attend("the next step's turn", Duration::MAX, |_| published() >= step.after).await?;
            match step.act {
                Act::Phase(number) => {
                    let Phase { name, workers } = phases[number].clone();
                    self.note(Event::Phase { at: self.bed.journal.now(), name, workers });
                }
                Act::Add => self.add().await?,
                Act::Go(way, dice) => self.let_go(way, dice).await?,
            }
        }
        Ok(())
    }

    /// Starts one more, in a place that is or gets free.
    pub(super) async fn add(&mut self) -> Result<()> {
        self.attend("a free place", PATIENCE, |crew| !crew.free.is_empty()).await?;
        let mut berth = self.free.pop_front().context("no free place")?;
        berth.lives += 1;
        let place = berth.place.renamed(format!("{}.{}", berth.place.name, berth.lives));
        self.moves.spawn(boot(Arc::clone(&self.bed), berth, place));
        Ok(())
    }

    /// Has one go; not the last one that is up while others boot.
    async fn let_go(&mut self, way: Way, dice: usize) -> Result<()> {
        let can_go = |crew: &Self| crew.up.len() > usize::from(!crew.moves.is_empty());
        self.attend("a worker that can go", PATIENCE, can_go).await?;
        let bed = Arc::clone(&self.bed);
        let at_work = |crew: &Self| {
            let turns = (0..crew.up.len()).map(|step| (dice.wrapping_add(step)) % crew.up.len());
            turns.into_iter().find(|turn| bed.journal.has_in_hand(&crew.up[*turn].place.name))
        };
        if way == Way::Kill {
            let _ = self.attend("a worker at work", AT_WORK, |crew| at_work(crew).is_some()).await;
        }
        let whom = at_work(self).filter(|_| way == Way::Kill).unwrap_or(dice % self.up.len().max(1));
        ensure!(whom < self.up.len(), "nobody is up");
        let member = self.up.remove(whom);
        self.see_off(member, way);
        Ok(())
    }

    /// Drains all that are up, and clears every place.
    pub(super) async fn dismiss(&mut self) -> Result<Vec<Place>> {
        self.attend("the end of all boots and drains", PATIENCE, |crew| crew.moves.is_empty()).await?;
        let ways = [Way::Term, Way::Order].into_iter().cycle();
        for (member, way) in std::mem::take(&mut self.up).into_iter().zip(ways) {
            println!("{}", member.place.examine(&member.worker, &self.bed.journal).await?);
            self.see_off(member, way);
        }
        self.attend("the last drains", PATIENCE, |crew| crew.moves.is_empty()).await?;
        let places: Vec<Place> = self.free.drain(..).map(|berth| berth.place).collect();
        for place in &places {
            place.clear(&self.bed).await?;
        }
        Ok(places)
    }

    /// Keeps the crew until something is done.
    pub(super) async fn attend(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            self.muster();
            if done(self) {
                return Ok(());
            }
            ensure!(begin.elapsed() < limit, "waited {limit:?} in vain for {what}");
            tokio::select! {
                Some(moved) = self.moves.join_next() => match moved?? {
                    Move::Up(member) => self.up.push(*member),
                    Move::Gone(berth) => self.free.push_back(*berth),
                },
                () = sleep(LOOK) => {}
            }
        }
    }

    /// Notes those that ended by themselves; as with any platform another one is started.
    fn muster(&mut self) {
        while let Some(ended) = self.up.iter_mut().position(|member| member.worker.exit_status().is_some()) {
            let member = self.up.remove(ended);
            self.see_off(member, Way::Itself);
        }
    }

    fn see_off(&mut self, member: Member, way: Way) {
        let (at, worker) = (self.bed.journal.now(), member.place.name.clone());
        self.note(Event::Leaving { at, worker, way });
        self.moves.spawn(see_off(Arc::clone(&self.bed), Arc::clone(&self.line), member, way));
    }

    fn note(&self, event: Event) {
        self.bed.journal.note(Record::Fleet(event));
    }
}

async fn boot(bed: Arc<Bed>, berth: Berth, place: Place) -> Result<Move> {
    let (journal, worker) = (&bed.journal, place.name.clone());
    journal.note(Record::Fleet(Event::Begun { at: journal.now(), worker: worker.clone() }));
    let booted = place.site.boot().await;
    match booted {
        Ok(started) => {
            journal.note(Record::Fleet(Event::Ready { at: journal.now(), worker }));
            Ok(Move::Up(Box::new(Member { berth, place, worker: started })))
        }
        Err(error) => {
            let failed = format!("{worker} did not boot: {error:#}");
            // The first ones are waited for: not in silence.
            println!("{failed}");
            journal.left(Left::Exit, failed);
            Ok(Move::Gone(Box::new(berth)))
        }
    }
}

/// Ends a worker so, and notes what it did and what it leaves.
async fn see_off(bed: Arc<Bed>, line: Arc<Line>, member: Member, way: Way) -> Result<Move> {
    let Member { berth, place, mut worker } = member;
    let (journal, name) = (&bed.journal, place.name.clone());
    let kilobytes = evidence::memory(&worker);
    let since = journal.now();
    let gone = match way {
        Way::Kill => place.kill(&mut worker, journal).await,
        Way::Term => place.drain(&mut worker, &bed, || {}).await,
        Way::Order => place.drain_on_order(&mut worker, &bed, &line).await,
        Way::Itself => {
            let status = worker.exit_status().context("it runs")?;
            let log = worker.log();
            let words = log.lines().next_back().unwrap_or_default();
            journal.left(Left::Exit, format!("{name}: {status} by itself: {words}"));
            place.bury(&mut worker, &[], journal).await
        }
    };
    if let Err(error) = gone {
        journal.left(Left::Exit, format!("{name}: {error:#}"));
    }
    drop(worker);
    if matches!(way, Way::Term | Way::Order)
        && let Err(error) = place.ensure_clean()
    {
        journal.left(Left::File, format!("{name}: {error:#}"));
    }
    let executions = place.executions()?;
    let busy = executions.iter().map(|(start, end)| end - start).sum::<f64>();
    journal.note(Record::Fleet(Event::Gone {
        at: journal.now(),
        worker: name,
        way,
        took: journal.now() - since,
        busy: (busy * 1000.0) as u64,
        kilobytes,
    }));
    Ok(Move::Gone(Box::new(berth)))
}
