//! What workers know of a job that other workers gave back.

use std::time::SystemTime;

/// How and why a job was given back, through the delay queue, by workers so far. The broker's own count says nothing about
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequeueHistory {
    /// How often in a row for this cause.
    pub count: u32,
    /// Why the last time: a short word for programs.
    pub cause: String,
    /// When it was first given back for that cause.
    pub since: SystemTime,
}
