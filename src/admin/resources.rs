//! Memory as the worker measures it, for anyone who looks at the page.

use contract::text::one_line;
use serde::Serialize;

/// How many rows of either kind are shown: a machine has some GPUs.
const MOST: usize = 32;
/// Characters of a name.
const NAME: usize = 80;

/// What is used of the machine. Anyone who samples it hands it to [`StatusBoard::resources`](super::StatusBoard::resources).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Main memory: the worker's own, ComfyUI's, Chromium's.
    pub memory: Vec<Usage>,
    /// ComfyUI's devices (VRAM).
    pub devices: Vec<Usage>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Whose.
    pub name: String,
    /// Bytes in use.
    pub used: u64,
    /// Bytes there are, or may be used; `None`: no limit is known.
    pub total: Option<u64>,
}

impl Resources {
    /// Fit for the page: devices' names are outside text.
    pub(super) fn bounded(mut self) -> Self {
        for rows in [&mut self.memory, &mut self.devices] {
            rows.truncate(MOST);
            rows.iter_mut().for_each(|row| row.name = one_line(&row.name, NAME));
        }
        self
    }
}
