//! Commands to the workers, to all of them at once: `amqp.control_exchange`, a fanout exchange.

use std::sync::Arc;

use bytes::Bytes;
use contract::text::quoted;
use lapin::BasicProperties;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    error::PublishError,
    exclusive::{ControlMessage, ExclusiveQueue},
    message::{TRANSIENT, short},
    publisher::{Envelope, RetryPolicy, publish},
    session::Session,
};

/// A command is short; what is longer is none.
const LARGEST_ORDER: usize = 4096;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlCommand {
    /// `{"cancel": "<job id>"}`: end that job, wherever it is.
    Cancel(String),
    /// `{"drain": "<worker id>"}`, and `{"drain": true}` for every worker.
    Drain(Option<String>),
}

impl ControlCommand {
    /// # Errors
    /// Why it is none.
    fn read(body: &[u8]) -> Result<Self, String> {
        if body.len() > LARGEST_ORDER {
            return Err(format!("{} bytes", body.len()));
        }
        let shown = || quoted(&String::from_utf8_lossy(body), 200);
        let Ok(Value::Object(command)) = serde_json::from_slice(body) else { return Err(shown()) };
        let mut entries = command.into_iter();
        match (entries.next(), entries.next()) {
            (Some((key, Value::String(id))), None) if key == "cancel" => Ok(Self::Cancel(id)),
            (Some((key, Value::String(id))), None) if key == "drain" => Ok(Self::Drain(Some(id))),
            (Some((key, Value::Bool(true))), None) if key == "drain" => Ok(Self::Drain(None)),
            _ => Err(shown()),
        }
    }

    fn body(&self) -> Bytes {
        let command = match self {
            Self::Cancel(id) => json!({"cancel": id}),
            Self::Drain(Some(id)) => json!({"drain": id}),
            Self::Drain(None) => json!({"drain": true}),
        };
        command.to_string().into()
    }
}

/// The commands as they come. What is sent while there is no connection is lost.
pub struct ControlCommands(ExclusiveQueue);

impl ControlCommands {
    pub(super) fn new(session: &Arc<Session>) -> Self {
        let name = format!("comfy.control.{}", Uuid::new_v4().simple());
        let exchange = session.config.control_exchange.clone();
        Self(ExclusiveQueue::new(session, name, exchange, String::new()))
    }

    /// The next command; `None` once the broker handle is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<ControlCommand> {
        loop {
            let ControlMessage::Message(delivered) = self.0.next().await? else { continue };
            match ControlCommand::read(&delivered.data) {
                Ok(command) => return Some(command),
                Err(shown) => tracing::warn!(shown, "ignoring an unknown control message"),
            }
        }
    }
}

/// Tells every worker that listens now; also when none does.
pub(super) async fn send(
    session: &Session,
    command: &ControlCommand,
    deadline: Instant,
) -> Result<(), PublishError> {
    let envelope = Envelope {
        exchange: short(&session.config.control_exchange)?,
        routing_key: "".into(),
        properties: BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(TRANSIENT),
        body: command.body(),
    };
    let policy = RetryPolicy { unroutable: false, nacks: Some(1) };
    match publish(session, &envelope, policy, deadline).await {
        Ok(()) | Err(PublishError::Unroutable { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_they_are_written() {
        for command in [
            ControlCommand::Cancel("a".into()),
            ControlCommand::Drain(Some("w".into())),
            ControlCommand::Drain(None),
        ] {
            assert_eq!(ControlCommand::read(&command.body()), Ok(command));
        }
    }

    #[test]
    fn anything_else_is_no_order() {
        let long = format!(r#"{{"cancel": "{}"}}"#, "a".repeat(LARGEST_ORDER));
        let bodies = [
            "",
            "null",
            "[]",
            "{}",
            r#"{"cancel": 1}"#,
            r#"{"drain": false}"#,
            r#"{"drain": null}"#,
            r#"{"cancel": "a", "drain": true}"#,
            r#"{"kill": "a"}"#,
            r#"{"cancel": "a""#,
            "\u{1b}[2J",
            &long,
        ];
        for body in bodies {
            let error = ControlCommand::read(body.as_bytes()).err();
            assert!(error.is_some_and(|shown| shown.chars().all(|c| !c.is_control())), "{body:?}");
        }
    }
}
