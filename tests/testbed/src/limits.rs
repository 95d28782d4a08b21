//! How long things may take on a slow, busy machine; nothing here is waited out in the good case.

use std::time::Duration;

/// RabbitMQ's boot (5 s on an idle machine).
pub(crate) const BROKER_BOOT: Duration = Duration::from_secs(90);
/// RabbitMQ's orderly end.
pub(crate) const BROKER_STOP: Duration = Duration::from_secs(30);
/// The stand-in's boot.
pub(crate) const STANDIN_BOOT: Duration = Duration::from_secs(30);
/// A real ComfyUI's boot with cold disk caches (65 s measured).
pub(crate) const COMFYUI_BOOT: Duration = Duration::from_secs(300);
/// The end of a process that was sent KILL, or whose parent was.
pub(crate) const DEATH: Duration = Duration::from_secs(10);
