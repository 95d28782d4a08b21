//! What the worker tells anyone who runs it: logs ([`init`]) and traces ([`Traces`]), both without secrets.
//!
//! Of a job both tell by way of its [`JobSpan`]: whatever is logged within it has the job's fields, and if
//! there are traces it is a span of the publisher's trace, with a [`StageSpan`] for each stage.

mod collector;
mod line;
mod logs;
mod places;
mod secrets;
mod spans;
mod stages;
mod traces;

pub(crate) use logs::BARS;
pub use logs::init;
pub(crate) use places::name_places;
pub use secrets::redact;
pub(crate) use secrets::{keep_secret, redact_in_place, redact_json};
pub(crate) use spans::SpanError;
pub use spans::{JobSpan, NodeTime, StageSpan, Topic};
pub use stages::StageName;
pub use traces::{Received, Traces};
