#![doc = include_str!("../README.md")]

pub mod bounds;
pub mod event;
mod expansion;
pub mod failure;
mod id;
pub mod prompt;
pub mod records;
pub mod request;
pub mod result;
mod runpod;
#[cfg(feature = "schema")]
pub mod schema;
pub mod text;
mod uri;

pub use id::JobId;
pub use uri::{ObjectUri, UriError};
