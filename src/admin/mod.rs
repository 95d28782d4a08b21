//! Health, status and the status page over HTTP: `/livez`, `/readyz`, `/metrics`, `/status`, `/`.
//!
//! Anyone who reaches the port may look; commands need `admin.token`. No request is waited for by a job: what
//! is told comes from the [`StatusBoard`], pictures come from the store, a few at a time.

mod board;
mod checks;
mod commands;
mod events;
mod job_status;
mod listener;
mod nodes;
mod outcome;
mod page;
mod pictures;
mod resources;
mod stages;
mod views;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::{get, post},
};
use secrecy::SecretString;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

pub use board::{JobHandle, Phase, StatusBoard};
pub use commands::Commands;
pub use resources::{Resources, Usage};
pub use views::Status;

use crate::{metrics, store::ObjectStore};

/// The endpoint; ends with its drop.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    site: Arc<AdminState>,
    _closed: DropGuard,
    _server: AbortOnDropHandle<()>,
}

/// What the handlers share.
#[derive(Debug)]
struct AdminState {
    board: StatusBoard,
    token: Option<SecretString>,
    /// Held while a wrong token is answered.
    wrong_tokens: tokio::sync::Mutex<()>,
    commands: Box<dyn Commands>,
    /// Where the outputs are.
    store: OnceLock<Arc<dyn ObjectStore>>,
    listeners: Arc<events::Listeners>,
    /// Pictures that are fetched at a time.
    pictures: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Admin {
    /// From now on the page can show pictures that jobs have made.
    pub fn shows_outputs_of(&self, store: Arc<dyn ObjectStore>) {
        let _ = self.site.store.set(store);
    }
}

/// Serves `board` at `address`. Anyone who has the `token` gives `commands`; without one nobody does.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    board: StatusBoard,
    token: Option<SecretString>,
    commands: impl Commands + 'static,
) -> std::io::Result<Admin> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let closed = CancellationToken::new();
    let site = Arc::new(AdminState {
        board,
        token,
        wrong_tokens: tokio::sync::Mutex::default(),
        commands: Box::new(commands),
        store: OnceLock::new(),
        listeners: Arc::default(),
        pictures: Arc::new(Semaphore::new(pictures::MAX_PICTURES)),
        closed: closed.clone(),
    });
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(measured))
        .route("/status", get(status))
        .merge(page::routes())
        .route("/events", get(events::events))
        .route("/jobs/{id}/preview", get(pictures::preview))
        .route("/jobs/{id}/outputs/{index}", get(pictures::output))
        .route("/jobs/{id}/cancel", post(commands::cancel))
        .route("/drain", post(commands::drain))
        .layer(middleware::from_fn_with_state(checks::HostNames::of(address), checks::check))
        .layer(middleware::map_response(checks::harden))
        .with_state(Arc::clone(&site));
    let server = tokio::spawn(listener::answer(listener, routes, closed.clone()));
    Ok(Admin { address, site, _closed: closed.drop_guard(), _server: AbortOnDropHandle::new(server) })
}

async fn status(State(site): State<Arc<AdminState>>) -> impl IntoResponse {
    match serde_json::to_vec(&site.board.status()) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn measured(State(site): State<Arc<AdminState>>) -> impl IntoResponse {
    metrics::ready(site.board.unready_reason().is_none());
    match metrics::render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(site): State<Arc<AdminState>>) -> impl IntoResponse {
    match site.board.unready_reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
