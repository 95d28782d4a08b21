//! Where a job's events go: the broker's followers, the status page, a terminal.

use contract::{JobId, event::JobEvent, result::JobResult};

use connector::comfy::events::Image;

/// Takes events; must neither block nor fail.
pub trait EventSink: Send + Sync {
    /// Something happened.
    fn event(&self, event: &JobEvent);

    /// A picture of the work in progress.
    fn preview(&self, preview: &Preview<'_>);

    /// The job has this result, durably.
    fn ended(&self, result: &JobResult);
}

/// A preview and where it belongs.
#[derive(Debug)]
pub struct Preview<'a> {
    /// The job.
    pub id: &'a JobId,
    /// Its place among the attempt's events.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub at: u64,
    /// Which attempt.
    pub attempt: u32,
    /// Who runs it.
    pub worker: &'a str,
    /// The picture.
    pub image: &'a Image,
}
