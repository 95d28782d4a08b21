//! Health and status over HTTP: `/livez`, `/readyz`, `/metrics`, `/status`.

mod board;

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::metrics;

pub use board::{Board, JobPlace, Phase};

/// The endpoint; ends with its drop.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    _server: AbortOnDropHandle<()>,
}

/// Serves `board` at `address`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, board: Board) -> std::io::Result<Admin> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(measured))
        .route("/status", get(async |State(board): State<Board>| Json(board.status())))
        .with_state(board);
    let server = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the admin endpoint ended");
        }
    });
    Ok(Admin { address, _server: AbortOnDropHandle::new(server) })
}

async fn measured(State(board): State<Board>) -> impl IntoResponse {
    metrics::ready(board.unready_reason().is_none());
    match metrics::render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(board): State<Board>) -> impl IntoResponse {
    match board.unready_reason() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
