//! Where a job's events go.

use std::sync::Arc;

use contract::{event::JobEvent, result::JobResult};

use crate::{
    admin::JobHandle,
    events::{EventSink, Preview},
    queue,
};

/// Events for the broker's followers and for the status page.
pub(super) struct Sinks {
    pub(super) status: Arc<JobHandle>,
    pub(super) events: queue::EventSender,
}

impl EventSink for Sinks {
    fn event(&self, event: &JobEvent) {
        self.status.event(event);
        if let Ok(body) = serde_json::to_value(event) {
            self.events.send(queue::Event::Json {
                job_id: event.id.to_string(),
                name: event.kind.name(),
                body,
            });
        }
    }

    fn preview(&self, preview: &Preview<'_>) {
        self.status.preview(preview);
        self.events.send(queue::Event::Preview(queue::PreviewEvent {
            job_id: preview.id.to_string(),
            image: preview.image.bytes.clone(),
            content_type: preview.image.content_type.to_owned(),
            seq: preview.seq,
            at: preview.at.to_string(),
            attempt: preview.attempt.into(),
            worker: preview.worker.to_owned(),
            node: preview.image.node.clone().unwrap_or_default(),
        }));
    }

    fn ended(&self, result: &JobResult) {
        self.status.ended(result);
    }
}
