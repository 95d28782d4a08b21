//! RabbitMQ: jobs in, results and events out.
//!
//! Two connections, one to consume and one to publish: a broker that is short of memory or disk stops
//! reading from those that publish, for minutes, and acks and heartbeats must go on. A task owns each
//! and replaces it when it is lost; lapin's own recovery is off, because it hands a held message out
//! again without telling that its first copy still runs. Each connection is an *epoch*: a [`Delivery`]
//! belongs to the one it came by and settles as [`Settled::Stale`] on any other, and the broker
//! delivers it again.
//!
//! What differs between versions of RabbitMQ, as seen on 3.10, 4.0 and 4.3:
//!
//! - *Hand-backs*: before 4.3 nack and reject both count to the delivery limit, from 4.3 on only reject
//!   does, and `x-acquired-count` counts both. We nack.
//! - *A returned message's delay*: from 4.3 on a policy or an argument, `delayed-retry-type`, may set one.
//! - *Consumer timeout*: before 3.12 the server's only; then the shorter of the queue's argument and its
//!   policy; from 4.3 on a subscription's own comes before both, but a job that is asked for singly has
//!   none. At its end the channel is closed; from 4.3 on a subscription is only cancelled, and later acks
//!   are passed over in silence.
//! - *`x-consumer-timeout` of an existing queue*: before 4.3 not compared when it is declared again.
//! - *Priorities in the delay queue*: before 4.0 there are none; 4.0 alternates, so that a message waits
//!   for two of a higher one at most; from 4.3 on each priority has a head of its own.
//! - *Delivery limit*: from 4.0 on 20 where none is set, also of the dead letters.
//! - *Largest message*: 128 MiB, from 4.0 on 16 MiB.
//!
//! Invariants: every wait for the broker has a time limit. A publish that matters is mandatory and
//! confirmed. Nothing here acks by itself. No task is left after [`Broker::close`].

mod broker;
mod compatibility;
mod connection;
mod consumer;
mod control;
mod dead;
mod death;
mod delivery;
mod dial;
mod error;
mod events;
mod exclusive;
mod follow;
mod frames;
mod management;
mod message;
mod postpone;
mod publisher;
mod refusal;
mod reply;
mod results;
mod session;
mod take;
mod topology;
mod version;

pub use broker::Broker;
pub use compatibility::{ConsumerTimeout, QueueCompatibility};
pub use consumer::Consumer;
pub use control::{ControlCommand, ControlCommands};
pub use dead::{DeadLetter, DeadLetters};
pub use death::DeathRecord;
pub use delivery::{Delivery, Settled, Settlement};
pub use error::{PublishError, QueueError, ReplyWarning};
pub use events::{Event, EventSender, PreviewEvent};
pub use follow::{Follow, Followed};
pub use message::{JobProperties, Message};
pub use postpone::{LONGEST_DELAY, Postponement};
pub use reply::reply_allowed;
pub use results::ResultMessage;
pub use session::Health;
