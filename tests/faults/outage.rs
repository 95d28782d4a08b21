//! The long faults: one after the other, short ones in their midst, and what workers say of themselves meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use testbed::{Fault, Spoil, wait_for, wait_for_value};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    bed::Bed,
    journal::{Harm, Left},
    keeper::{Orders, give},
    place::Place,
    plan::{Act, Away, Outage, Plan},
    soak::{CATCH_UP, LONGEST},
};

/// How soon a worker must say that it cannot do without what is away.
const NOTICED: Duration = Duration::from_secs(10);
/// A job is held for a minute while ComfyUI boots, and then given back.
const HELD: Duration = Duration::from_secs(75);
/// Between two looks at the workers.
const LOOK: Duration = Duration::from_millis(500);
const ANSWER: Duration = Duration::from_secs(2);

/// Whom the long faults meet.
pub(super) struct Outages<'a> {
    pub(super) bed: &'a Bed,
    pub(super) places: &'a [Arc<Place>],
    pub(super) keepers: &'a [Orders],
    /// Held while something is done to the broker.
    pub(super) broker: &'a Mutex<()>,
}

impl Outages<'_> {
    /// Each in its turn, while jobs are published.
    pub(super) async fn carry_out(&self, plan: &Plan, published: &AtomicUsize) -> Result<()> {
        for outage in &plan.outages {
            let due = || async { published.load(Ordering::Relaxed) > outage.after };
            wait_for("the next long fault's turn", LONGEST, due).await?;
            println!("{}", outage.what_and_when());
            self.endure(outage).await?;
        }
        Ok(())
    }

    async fn endure(&self, outage: &Outage) -> Result<()> {
        let (bed, what) = (self.bed, format!("{:?} for {:?}", outage.what, outage.time));
        let begins = |harm| bed.journal.fault(harm, None, what.as_str());
        let is_over = |harm| bed.journal.lifted(harm, None);
        match outage.what {
            Away::Store => {
                begins(Harm::StoreAway);
                bed.store_gate.set(Fault::Reset, "");
                bed.store_gate.cut();
                self.pass(outage, self.see_unready(&what)).await;
                bed.store_gate.lift();
                is_over(Harm::StoreAway);
            }
            Away::Permission => {
                // One that is started meanwhile is told so at once.
                self.places.iter().for_each(|place| place.let_fail(outage.time));
                begins(Harm::StoreForbids);
                bed.front.spoil("", Spoil::Refuse(403), usize::MAX);
                self.pass(outage, self.see_unready(&what)).await;
                bed.front.lift_all(Spoil::Refuse(403));
                is_over(Harm::StoreForbids);
            }
            Away::Room { memory } => {
                let _turn = self.broker.lock().await;
                let (command, none, plenty) = if memory {
                    ("set_vm_memory_high_watermark", "0", "0.8")
                } else {
                    ("set_disk_free_limit", "1000000000000000", "1000000")
                };
                begins(Harm::Alarm);
                bed.broker.ctl(&[command, none]).await?;
                self.pass(outage, std::future::pending()).await;
                bed.broker.ctl(&[command, plenty]).await?;
                is_over(Harm::Alarm);
            }
            Away::Broker { killed } => {
                let _turn = self.broker.lock().await;
                begins(Harm::BrokerDown);
                if killed {
                    bed.broker.kill().await?
                } else {
                    bed.broker.stop().await?
                }
                self.pass(outage, self.see_unready(&what)).await;
                bed.broker.restart().await?;
                is_over(Harm::BrokerDown);
            }
            Away::ComfyUi { worker, hangs } => {
                let act = Act::NoBoot(if hangs { "hang" } else { "exit" }, outage.time);
                let taken = || async { give(self.keepers, worker, &act) };
                let whom = wait_for_value("a worker to strike", CATCH_UP, taken).await?;
                self.pass(outage, self.see_nothing_held(&self.places[whom])).await;
            }
        }
        Ok(())
    }

    /// Lets its time pass; strikes meanwhile, and looks at the workers.
    async fn pass(&self, outage: &Outage, look: impl Future<Output = ()>) {
        let begin = Instant::now();
        let strikes = async {
            for (share, worker, act) in &outage.meanwhile {
                sleep_until(begin + outage.time.mul_f64(*share)).await;
                if give(self.keepers, *worker, act).is_none() {
                    println!("nobody is there for {act:?}");
                }
            }
        };
        let _ = tokio::join!(timeout_at(begin + outage.time, look), strikes);
    }

    /// Notes each worker that is ready without what it needs.
    async fn see_unready(&self, what: &str) {
        let mut told = BTreeSet::new();
        sleep(NOTICED).await;
        loop {
            for place in self.places {
                // One that does not answer is not ready.
                let answer = get(place.admin("/readyz")).await;
                if answer.is_some_and(|(status, _)| status == StatusCode::OK) && told.insert(&place.name) {
                    let ready = format!("{}: ready {NOTICED:?} and more into {what}", place.name);
                    self.bed.journal.left(Left::Standing, ready);
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Notes a worker that holds a job for long while its ComfyUI does not boot.
    async fn see_nothing_held(&self, place: &Place) {
        let (mut held, mut since) = (Value::Null, Instant::now());
        loop {
            if let Some((_, body)) = get(place.admin("/status")).await {
                let id = serde_json::from_str(&body)
                    .map_or(Value::Null, |status: Value| status["job"]["id"].clone());
                if id != held {
                    (held, since) = (id, Instant::now());
                } else if !held.is_null() && since.elapsed() > HELD {
                    let holds = format!("{}: holds {held} while its ComfyUI does not boot", place.name);
                    return self.bed.journal.left(Left::Standing, holds);
                }
            }
            sleep(LOOK).await;
        }
    }
}

async fn get(url: String) -> Option<(StatusCode, String)> {
    let answer = Client::new().get(url).timeout(ANSWER).send().await.ok()?;
    Some((answer.status(), answer.text().await.ok()?))
}
