//! `comfy-worker dead`: what lies in the dead letters, and what is to become of it.

use std::{
    collections::BTreeSet,
    pin::pin,
    time::{Duration, SystemTime},
};

use contract::{JobId, ObjectUri, request::identify, text::one_line};
use serde_json::{Value, json};

use super::{Context, Failed, letter, print};
use crate::{
    app::store_uri,
    config::Config,
    job::reset,
    queue::{Broker, DeadLetter, DeadLetters},
    store::Stores,
};

const ABOUT: &str = "\
Looking at a letter is a delivery to the broker. What was looked at goes back to its place, and now and then is \
published again at the end, so that it never exceeds a delivery limit. While one `dead` command runs, another sees \
nothing. A job id is the body's, else the message_id, else the body's SHA-256; letters of the same id are handled \
together.";

#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// A line a letter: job, when, why, how often, bytes, reply_to.
    List,
    /// Properties, reason and body of a job's letters.
    Show {
        /// The job.
        job: JobId,
    },
    /// Put jobs back into the queue of jobs, as they were published.
    Retry {
        #[command(flatten)]
        which: Which,
        /// Also a job that was answered already: its result and the count of its attempts are removed first.
        #[arg(long)]
        again: bool,
    },
    /// Throw letters away.
    Drop {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The jobs.
    #[arg(value_name = "JOB", required_unless_present = "all", conflicts_with = "all")]
    jobs: Vec<JobId>,
    /// Every letter.
    #[arg(long)]
    all: bool,
}

/// What is to become of a letter.
enum Disposition {
    Keep,
    Retry,
    Drop,
}

pub(super) async fn dead(context: Context, args: Args) -> Result<(), Failed> {
    let Context { config, json } = context;
    // A retry asks the store; a missing one is said before anything is touched.
    let base = match &args.action {
        Action::Retry { .. } => Some(store_uri(&config)?),
        _ => None,
    };
    let broker = Broker::connect(&config.amqp, &config.worker.id).await?;
    let desk = Session { broker: &broker, config: &config, json };
    let outcome = match (args.action, base) {
        (Action::List, _) => desk.list().await,
        (Action::Show { job }, _) => desk.show(job).await,
        (Action::Retry { which, again }, base) => desk.retry(which, again, base).await,
        (Action::Drop { which }, _) => desk.discard(which).await,
    };
    broker.close().await;
    outcome
}

struct Session<'a> {
    broker: &'a Broker,
    config: &'a Config,
    json: bool,
}

impl Session<'_> {
    /// One pass over all letters. Cut short by a signal or a failure it gives back what it holds.
    async fn pass(
        &self,
        mut decide: impl AsyncFnMut(&JobId, &DeadLetter) -> Result<Disposition, Failed>,
    ) -> Result<(), Failed> {
        let mut letters = self.broker.dead_letters().await?;
        if letters.others_hold() {
            print::note("somebody else is reading the dead letters: not all of them can be seen now");
        }
        let passed = self.each(&mut letters, &mut decide).await;
        let returned = letters.give_back().await.map_err(Failed::from);
        passed.and(returned)
    }

    async fn each(
        &self,
        letters: &mut DeadLetters,
        decide: &mut impl AsyncFnMut(&JobId, &DeadLetter) -> Result<Disposition, Failed>,
    ) -> Result<(), Failed> {
        let mut interrupted = pin!(tokio::signal::ctrl_c());
        loop {
            // Only between two letters: one that is being moved is moved.
            let letter = tokio::select! {
                biased;
                _ = &mut interrupted => {
                    let left = "interrupted: the letters that were not reached are where they were";
                    return Err(Failed::Environment(left.to_owned()));
                }
                letter = letters.next() => letter?,
            };
            let Some(letter) = letter else { return Ok(()) };
            let message = &letter.message;
            let id =
                identify(&message.body, message.message_id.as_deref(), self.config.job.max_message_bytes);
            let fate = match &id {
                Some(id) => decide(id, &letter).await?,
                None => Disposition::Keep,
            };
            match (fate, id) {
                (Disposition::Retry, Some(id)) => {
                    letters.retry(letter).await?;
                    self.tell(&id, "retried", "back in the queue");
                }
                (Disposition::Drop, Some(id)) => {
                    letters.discard(letter).await?;
                    self.tell(&id, "dropped", "thrown away");
                }
                _ => letters.keep(letter).await?,
            }
        }
    }

    async fn list(&self) -> Result<(), Failed> {
        // Printed afterwards: a pager that waits for its reader must not hold the letters.
        let mut lines = Vec::new();
        let note = async |id: &JobId, letter: &DeadLetter| {
            lines.push(if self.json { letter::summary(id, letter).to_string() } else { line(id, letter) });
            Ok(Disposition::Keep)
        };
        self.pass(note).await?;
        let count = lines.len();
        lines.iter().for_each(|line| print::result(letter::printable(line)));
        print::note(format!("{count} dead letter(s) of {}", self.config.amqp.queue));
        Ok(())
    }

    async fn show(&self, job: JobId) -> Result<(), Failed> {
        let mut shown = Vec::new();
        let note = async |id: &JobId, letter: &DeadLetter| {
            if *id == job {
                shown.push(if self.json {
                    letter::whole(id, letter).to_string()
                } else {
                    letter::page(id, letter)
                });
            }
            Ok(Disposition::Keep)
        };
        self.pass(note).await?;
        if shown.is_empty() {
            self.refuse(&job, NO_SUCH);
            return Err(Failed::Job);
        }
        shown.iter().for_each(|letter| print::result(letter::printable(letter)));
        Ok(())
    }

    async fn retry(&self, which: Which, again: bool, base: Option<ObjectUri>) -> Result<(), Failed> {
        let Some(base) = base else { return Ok(()) };
        let stores = Stores::new(&self.config.store).await;
        let unavailable = |error: contract::failure::Failure| Failed::Environment(error.to_string());
        let mut tally = Counts::new(which);
        // Looked up once: the first of several letters of a job may remove what the others would meet.
        let mut ready = BTreeSet::new();
        let decide = async |id: &JobId, letter: &DeadLetter| {
            if !tally.wants(id) {
                return Ok(Disposition::Keep);
            }
            let body = &letter.message.body;
            if again && reset::is_anothers(&stores, &base, id, body).await.map_err(unavailable)? {
                if tally.refused.insert(id.clone()) {
                    self.refuse(id, ANOTHERS);
                }
                return Ok(Disposition::Keep);
            }
            if !ready.contains(id) {
                if again {
                    reset::forget(&stores, &base, id).await.map_err(unavailable)?;
                } else if reset::is_answered(&stores, &base, id).await.map_err(unavailable)? {
                    if tally.refused.insert(id.clone()) {
                        self.refuse(id, ANSWERED);
                    }
                    return Ok(Disposition::Keep);
                }
                ready.insert(id.clone());
            }
            Ok(Disposition::Retry)
        };
        self.pass(decide).await?;
        self.close(&tally)
    }

    async fn discard(&self, which: Which) -> Result<(), Failed> {
        let mut tally = Counts::new(which);
        let decide = async |id: &JobId, _: &DeadLetter| {
            Ok(if tally.wants(id) { Disposition::Drop } else { Disposition::Keep })
        };
        self.pass(decide).await?;
        self.close(&tally)
    }

    /// Names what was asked for and not found.
    fn close(&self, tally: &Counts) -> Result<(), Failed> {
        let missing: Vec<&JobId> = tally.jobs.difference(&tally.found).collect();
        missing.iter().for_each(|id| self.refuse(id, NO_SUCH));
        if missing.is_empty() && tally.refused.is_empty() { Ok(()) } else { Err(Failed::Job) }
    }

    fn tell(&self, id: &JobId, action: &str, words: &str) {
        if self.json {
            print::result(json!({"id": id, "action": action}));
        } else {
            print::result(format!("{id}: {words}"));
        }
    }

    fn refuse(&self, id: &JobId, reason: &str) {
        print::note(format!("comfy-worker: {id}: {reason}"));
        if self.json {
            print::result(json!({"id": id, "error": reason}));
        }
    }
}

const NO_SUCH: &str = "there is no such letter among the dead ones (`comfy-worker dead list` shows them)";
const ANSWERED: &str = "has a result already, and a retry would only send that again; with --again it is removed first \
                        and the job runs again";

const ANOTHERS: &str = "the job of this id had another body: its result is not removed for this letter, which `drop` throws away";

/// What was asked for, and what became of it.
struct Counts {
    all: bool,
    jobs: BTreeSet<JobId>,
    found: BTreeSet<JobId>,
    refused: BTreeSet<JobId>,
}

impl Counts {
    fn new(which: Which) -> Self {
        let jobs = which.jobs.into_iter().collect();
        Self { all: which.all, jobs, found: BTreeSet::new(), refused: BTreeSet::new() }
    }

    fn wants(&mut self, id: &JobId) -> bool {
        let wanted = self.all || self.jobs.contains(id);
        if wanted {
            self.found.insert(id.clone());
        }
        wanted
    }
}

fn line(id: &JobId, letter: &DeadLetter) -> String {
    let Value::Object(summary) = letter::summary(id, letter) else { return String::new() };
    let text = |name: &str| match summary.get(name) {
        Some(Value::String(text)) => one_line(text, 200),
        None | Some(Value::Null) => "-".to_owned(),
        Some(other) => other.to_string(),
    };
    let [at, reason, count, bytes, reply_to] = ["at", "reason", "count", "bytes", "reply_to"].map(text);
    format!("{id:<36} {at:<20} {reason:<14} {count:>3}x {bytes:>9} B  {reply_to}")
}

/// A moment as `2026-01-31T12:00:00Z`.
pub(super) fn moment(at: SystemTime) -> String {
    // A header may say any time, and later ones than this cannot be written so.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(at.min(last)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_that_a_header_says_can_be_written() {
        let after = |seconds| moment(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(after(0), "1970-01-01T00:00:00Z");
        for seconds in [253_402_300_799, 253_402_300_800, i64::MAX as u64] {
            assert_eq!(after(seconds), "9999-12-31T23:59:59Z");
        }
    }
}
