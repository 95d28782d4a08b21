//! What a job's trace knows before the job is read.

use crate::{queue::Message, telemetry::Received};

/// What is known of a job by its message alone.
pub(super) fn received<'a>(queue: &'a str, message: &'a Message) -> Received<'a> {
    Received {
        queue,
        traceparent: message.traceparent.as_deref(),
        tracestate: message.tracestate.as_deref(),
        message_id: message.message_id.as_deref(),
        correlation_id: message.correlation_id.as_deref(),
        body_bytes: message.body.len(),
        redelivered: message.redelivered,
        delivery_count: message.delivery_count,
    }
}
