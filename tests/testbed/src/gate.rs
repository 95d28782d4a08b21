//! A TCP proxy that misbehaves on command, between the worker and a broker or a store.
//!
//! A fault applies to every chunk that passes, in both directions, while its rule is set. To add one:
//! a variant of [`Fault`] and its arm in `Pump::pass`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::{background, wait_for};

const CHUNK: usize = 16 * 1024;

/// What happens to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It waits, and everything behind it, until the rule no longer applies.
    Hold,
    /// The connection is reset (RST), on both sides.
    Reset,
    /// It vanishes; the connection stays, as it does when a machine on the way dies.
    Swallow,
    /// It takes its time: so many bytes a second in each direction.
    Throttle(usize),
    /// Its direction is closed in good order, the other one stays open; what the sender still says
    /// vanishes, also after the rule is lifted.
    HalfOpen,
    /// So many bytes pass in all, then the connections that bring more are reset.
    CutAfter(usize),
}

/// Which chunks suffer what.
#[derive(Clone, Debug, Default)]
struct Rule {
    fault: Option<Fault>,
    /// Only chunks that hold this, such as `GET /bucket/key`: an HTTP request's head comes in one.
    /// Empty: all.
    says: Arc<[u8]>,
    /// Bytes that passed under [`Fault::CutAfter`].
    passed: Arc<AtomicUsize>,
}

impl Rule {
    fn on(&self, chunk: &[u8]) -> Option<Fault> {
        let said = self.says.is_empty() || chunk.windows(self.says.len()).any(|window| window == &*self.says);
        self.fault.filter(|_| said)
    }
}

/// The proxy. Dropping it closes its listener and every connection.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    rule: watch::Sender<Rule>,
    cuts: watch::Sender<()>,
    caught: watch::Sender<usize>,
    server: JoinHandle<()>,
}

impl Gate {
    /// A proxy on a free loopback port to `upstream`, without a fault.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = background::run(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .await?
            .context("no loopback port for the proxy")?;
        let address = listener.local_addr()?;
        let (rule, cuts, caught) =
            (watch::Sender::new(Rule::default()), watch::Sender::new(()), watch::Sender::new(0));
        let (rules, cut, count) = (rule.clone(), cuts.clone(), caught.clone());
        let server = background::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let pump = Pump { rules: rules.subscribe(), caught: count.clone() };
                connections.spawn(pump.connection(near, upstream, cut.subscribe()));
                while connections.try_join_next().is_some() {}
            }
        })?;
        Ok(Self { address, rule, cuts, caught, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the fault for what passes from now on; `says` empty: for everything.
    pub fn set(&self, fault: Fault, says: &str) {
        let says = says.as_bytes().into();
        self.rule.send_replace(Rule { fault: Some(fault), says, passed: Arc::default() });
    }

    /// Lifts the fault: what was held passes.
    pub fn lift(&self) {
        self.rule.send_replace(Rule::default());
    }

    /// Resets every connection that there is now, idle ones too; new ones are let through.
    pub fn cut(&self) {
        self.cuts.send_replace(());
    }

    /// How many chunks a fault has met since the start.
    #[must_use]
    pub fn caught(&self) -> usize {
        *self.caught.borrow()
    }

    /// Waits until a fault has met something since [`Gate::caught`] said `before`.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn wait_caught_more(&self, before: usize, limit: Duration) -> Result<()> {
        wait_for("more to be caught at the gate", limit, || async { self.caught() > before }).await
    }

    /// Waits until a fault has met something since the start.
    ///
    /// # Errors
    /// When `limit` passes first.
    pub async fn wait_caught(&self, limit: Duration) -> Result<()> {
        wait_for("something to be caught at the gate", limit, || async { self.caught() > 0 }).await
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // The tasks of its connections end with their set.
        self.server.abort();
    }
}

#[derive(Clone)]
struct Pump {
    rules: watch::Receiver<Rule>,
    caught: watch::Sender<usize>,
}

/// A direction that ends both: the connection is reset.
struct Broken;

/// How much of a chunk goes on, and what follows.
enum Passing {
    Whole,
    Nothing,
    /// Its first bytes, then the reset.
    Start(usize),
    /// The end of this direction.
    End,
}

impl Pump {
    async fn connection(self, near: TcpStream, upstream: SocketAddr, mut cuts: watch::Receiver<()>) {
        let Ok(far) = TcpStream::connect(upstream).await else { return };
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let there = self.clone().direction(&mut near_in, &mut far_out);
        let back = self.direction(&mut far_in, &mut near_out);
        let broken = tokio::select! {
            // An orderly end of one direction leaves the other open.
            ended = async { tokio::try_join!(there, back) } => ended.is_err(),
            _ = cuts.changed() => true,
        };
        if broken {
            for socket in [near_in.as_ref(), far_in.as_ref()] {
                let _ = socket.set_zero_linger();
            }
            // Dropped, they would say a goodbye in good order first.
            near_out.forget();
            far_out.forget();
        }
    }

    async fn direction(mut self, from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> Result<(), Broken> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await.map_err(|_| Broken)?;
            let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
                return to.shutdown().await.map_err(|_| Broken);
            };
            match self.pass(chunk).await? {
                Passing::Whole => to.write_all(chunk).await.map_err(|_| Broken)?,
                Passing::Nothing => {}
                Passing::Start(bytes) => {
                    let _ = to.write_all(chunk.get(..bytes).unwrap_or(chunk)).await;
                    return Err(Broken);
                }
                Passing::End => {
                    to.shutdown().await.map_err(|_| Broken)?;
                    while from.read(&mut buffer).await.map_err(|_| Broken)? > 0 {}
                    return Ok(());
                }
            }
        }
    }

    /// Returns when it is clear what becomes of `chunk`.
    async fn pass(&mut self, chunk: &[u8]) -> Result<Passing, Broken> {
        let mut met = false;
        loop {
            let rule = self.rules.borrow_and_update().clone();
            let Some(fault) = rule.on(chunk) else { return Ok(Passing::Whole) };
            if !met {
                met = true;
                self.caught.send_modify(|caught| *caught += 1);
            }
            let changed = async { self.rules.changed().await.map_err(|_| Broken) };
            match fault {
                Fault::Hold => changed.await?,
                Fault::Reset => return Err(Broken),
                Fault::Swallow => return Ok(Passing::Nothing),
                Fault::HalfOpen => return Ok(Passing::End),
                Fault::Throttle(rate) => tokio::select! {
                    () = sleep(Duration::from_secs_f64(chunk.len() as f64 / rate.max(1) as f64)) => {
                        return Ok(Passing::Whole);
                    }
                    changed = changed => changed?,
                },
                Fault::CutAfter(limit) => {
                    let before = rule.passed.fetch_add(chunk.len(), Ordering::Relaxed);
                    let left = limit.saturating_sub(before);
                    return Ok(if left < chunk.len() { Passing::Start(left) } else { Passing::Whole });
                }
            }
        }
    }
}
