//! One connection: an epoch of the session.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{Channel, Connection, options::ConfirmSelectOptions};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    dial::Socket,
    error::{BrokerError, within},
};

/// Longest wait for a broker's answer that no disk is involved in.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How often a connection that is blocked is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Channels kept open for later publishes.
const IDLE_PUBLISHERS: usize = 4;

/// A connection. Once lost it is never used again.
pub(super) struct BrokerConnection {
    pub(super) epoch: u64,
    pub(super) connection: Connection,
    socket: Socket,
    lost: CancellationToken,
    why: Mutex<Option<String>>,
    publishers: Mutex<Vec<Channel>>,
    /// The one that single jobs are asked for on.
    taker: tokio::sync::Mutex<Option<Channel>>,
}

impl BrokerConnection {
    pub(super) fn new(epoch: u64, connection: Connection, socket: Socket) -> Arc<Self> {
        Arc::new(Self {
            epoch,
            connection,
            socket,
            lost: CancellationToken::new(),
            why: Mutex::default(),
            publishers: Mutex::default(),
            taker: tokio::sync::Mutex::default(),
        })
    }

    /// Whether anything that came by this connection is stale.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled() || !self.connection.status().connected()
    }

    /// Waits while the broker takes no messages on it, up to the end of the connection.
    pub(super) async fn unblocked(&self) {
        while self.connection.status().blocked() && !self.is_lost() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Gives the connection up: the broker takes back what was delivered on it.
    pub(super) fn fail(&self, why: &str) {
        let mut reason = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        reason.get_or_insert_with(|| why.to_owned());
        self.lost.cancel();
    }

    /// Ends when the connection was given up.
    pub(super) async fn failed(&self) -> String {
        self.lost.cancelled().await;
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        why.unwrap_or_else(|| "given up".into())
    }

    /// A new channel; dropping its last clone closes it.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        within(ANSWER_LIMIT, "opening a channel", self.connection.create_channel()).await
    }

    /// A channel in confirm mode, for one publish at a time: with two in flight, lapin gives the
    /// return of an unroutable message to whichever is confirmed next.
    pub(super) async fn publisher(&self) -> Result<Channel, BrokerError> {
        let idle = self.publishers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(channel) = idle.filter(|channel| channel.status().connected()) {
            return Ok(channel);
        }
        let channel = self.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within(ANSWER_LIMIT, "confirm.select", confirms).await?;
        Ok(channel)
    }

    /// The channel that single jobs are asked for on.
    pub(super) async fn taker(&self) -> Result<Channel, BrokerError> {
        let mut taker = self.taker.lock().await;
        if let Some(channel) = taker.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        Ok(taker.insert(self.channel().await?).clone())
    }

    /// Takes a channel of [`BrokerConnection::publisher`] back after a publish that was settled.
    pub(super) fn keep_publisher(&self, channel: Channel) {
        let mut idle = self.publishers.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_PUBLISHERS {
            idle.push(channel);
        }
    }

    /// Ends the connection: politely within a time limit, then at the socket.
    pub(super) async fn close(&self) {
        self.lost.cancel();
        if self.connection.status().connected() {
            let goodbye = self.connection.close(200, "OK".into());
            if let Err(error) = within(CLOSE_LIMIT, "connection.close", goodbye).await {
                tracing::debug!(%error, epoch = self.epoch, "the connection was cut");
            }
        }
        self.socket.cut();
    }
}
