//! A TCP proxy that misbehaves on command, between the worker and a broker or a store.
//!
//! A fault applies to every chunk that passes, in both directions, while its rule is set. To add one:
//! a variant of [`Fault`] and its arm in `Gate`'s `pass`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
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
}

/// Which chunks suffer what.
#[derive(Clone, Debug, Default)]
struct Rule {
    fault: Option<Fault>,
    /// Only chunks that hold this, such as `GET /bucket/key`: an HTTP request's head comes in one.
    /// Empty: all.
    says: Arc<[u8]>,
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
        let (rule, caught) = (watch::Sender::new(Rule::default()), watch::Sender::new(0));
        let (rules, count) = (rule.clone(), caught.clone());
        let server = background::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let pump = Pump { rules: rules.subscribe(), caught: count.clone() };
                connections.spawn(pump.connection(near, upstream));
                while connections.try_join_next().is_some() {}
            }
        })?;
        Ok(Self { address, rule, caught, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the fault for what passes from now on; `says` empty: for everything.
    pub fn set(&self, fault: Fault, says: &str) {
        self.rule.send_replace(Rule { fault: Some(fault), says: says.as_bytes().into() });
    }

    /// Lifts the fault: what was held passes.
    pub fn lift(&self) {
        self.rule.send_replace(Rule::default());
    }

    /// How often a fault has met something since the start.
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
        wait_for("something to be caught at the gate", limit, || async { *self.caught.borrow() > 0 }).await
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

impl Pump {
    async fn connection(self, near: TcpStream, upstream: SocketAddr) {
        let Ok(far) = TcpStream::connect(upstream).await else { return };
        let (near_in, near_out) = near.into_split();
        let (far_in, far_out) = far.into_split();
        let there = self.clone().direction(near_in, far_out);
        let back = self.direction(far_in, near_out);
        // An orderly end of one direction leaves the other open.
        let _ = tokio::try_join!(there, back);
    }

    async fn direction(mut self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> Result<(), Broken> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await.map_err(|_| Broken)?;
            let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else {
                return to.shutdown().await.map_err(|_| Broken);
            };
            self.pass(chunk, &from, &to).await?;
            to.write_all(chunk).await.map_err(|_| Broken)?;
        }
    }

    /// Returns when `chunk` may go on.
    async fn pass(&mut self, chunk: &[u8], from: &OwnedReadHalf, to: &OwnedWriteHalf) -> Result<(), Broken> {
        let mut met = false;
        loop {
            let fault = self.rules.borrow_and_update().on(chunk);
            let Some(fault) = fault else { return Ok(()) };
            if !met {
                met = true;
                self.caught.send_modify(|caught| *caught += 1);
            }
            match fault {
                Fault::Hold => self.rules.changed().await.map_err(|_| Broken)?,
                Fault::Reset => {
                    let _ = from.as_ref().set_zero_linger();
                    let _ = to.as_ref().set_zero_linger();
                    return Err(Broken);
                }
            }
        }
    }
}
