//! `comfy-worker serve`

use super::{Context, Failed};
use crate::{
    app::{self, ServeError},
    lifecycle::{self, ShutdownTokens},
};

pub(super) async fn serve(context: Context) -> Result<(), Failed> {
    let shutdown = ShutdownTokens::default();
    // Children die with this process (parent-death signal), files are swept by the next boot.
    let at_once = || std::process::exit(3);
    let _signals = lifecycle::on_signals(shutdown.clone(), context.config.worker.grace, at_once)
        .map_err(|error| Failed::Environment(format!("cannot listen for signals: {error}")))?;
    Box::pin(app::serve(context.config, shutdown)).await.map_err(|error| match error {
        ServeError::Misconfigured(message) => Failed::Usage(message),
        ServeError::Environment(message) => Failed::Environment(message),
    })
}
