//! One job, if there is one: for a worker that has one in hand and wants no subscription that brings
//! another at each ack.

use std::{sync::Arc, time::Duration};

use lapin::options::BasicGetOptions;
use tokio::sync::oneshot;

use super::{
    connection::BrokerConnection,
    delivery::{Delivery, Settlement},
    error::{BrokerError, within},
    message::short,
    session::{Role, Session},
};

/// The answer holds a whole message: 128 MB of it over a line of 1 MB/s. A broker that is gone is known by its heartbeats.
const MESSAGE_LIMIT: Duration = Duration::from_secs(180);

/// Asks for a job; `None`: there is none, or no connection. Dropped, what comes is handed back.
pub(super) async fn take(session: &Arc<Session>) -> Option<Delivery> {
    let link = session.current_link(Role::Consume)?;
    let queue = session.config.queue.clone();
    let (sender, taken) = oneshot::channel();
    session.tasks.spawn(async move {
        match get(&link, &queue).await {
            Ok(delivery) => {
                if let Err(Some(delivery)) = sender.send(delivery) {
                    delivery.settle(Settlement::HandBack).await;
                }
            }
            Err(BrokerError::Silent(..)) => link.fail("the broker does not answer a get"),
            Err(error) => tracing::debug!(%error, "cannot ask the broker for a job"),
        }
    });
    taken.await.ok().flatten()
}

async fn get(link: &Arc<BrokerConnection>, queue: &str) -> Result<Option<Delivery>, BrokerError> {
    let Ok(name) = short(queue) else { return Ok(None) };
    let channel = link.taker().await?;
    let got = channel.basic_get(name, BasicGetOptions { no_ack: false });
    let got = within(MESSAGE_LIMIT, "basic.get", got).await?;
    Ok(got.map(|got| Delivery::new(got.delivery, channel, Arc::clone(link), queue)))
}
