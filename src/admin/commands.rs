//! What the page may have the worker do, for those who have the token.

use std::{fmt::Debug, sync::Arc, time::Duration};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::{
    Extension,
    extract::{Path, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use contract::JobId;
use secrecy::ExposeSecret;
use tokio::time::sleep;

use super::{AdminState, listener::Peer};
use connector::checksum;

/// Before a wrong token is answered.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 1_000 });

/// What obeys.
pub trait Commands: Debug + Send + Sync {
    /// Ends the job if it is in hand; whether it is.
    fn cancel(&self, job: &JobId) -> bool;

    /// Has the worker take no more jobs, finish, and end.
    fn drain(&self);
}

/// `POST /jobs/{id}/cancel`
pub(super) async fn cancel(
    State(site): State<Arc<AdminState>>,
    Path(id): Path<String>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&site, peer, &headers).await {
        return refusal;
    }
    if id.parse().is_ok_and(|id: JobId| site.commands.cancel(&id)) {
        (StatusCode::ACCEPTED, "the job is told to end\n").into_response()
    } else {
        let told = "this worker has no such job in hand; `comfy-worker cancel` reaches it wherever it is\n";
        (StatusCode::NOT_FOUND, told).into_response()
    }
}

/// `POST /drain`
pub(super) async fn drain(
    State(site): State<Arc<AdminState>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&site, peer, &headers).await {
        return refusal;
    }
    site.commands.drain();
    (StatusCode::ACCEPTED, "the worker drains\n").into_response()
}

/// What is said to those who do not have the token. It comes in a header that no page of another site can
/// send.
async fn refusal(site: &AdminState, peer: Peer, headers: &HeaderMap) -> Option<Response> {
    let Some(token) = &site.token else {
        let told =
            "read-only: set admin.token, and anyone who gives it may cancel jobs and drain the worker\n";
        return Some((StatusCode::FORBIDDEN, told).into_response());
    };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, given) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(given.trim())
    });
    // Their sums: how long it takes tells nothing, of the length neither.
    let [given, token] =
        [given.unwrap_or_default(), token.expose_secret()].map(|text| checksum::of_bytes(text.as_bytes()));
    if verify_slices_are_equal(given.as_bytes(), token.as_bytes()).is_ok() {
        return None;
    }
    // One after another, from everywhere: a token cannot be found by trying. The right one waits for nobody.
    let _turn = site.wrong_tokens.lock().await;
    tracing::warn!(from = %peer.0, "admin request refused: missing or wrong admin.token");
    sleep(WRONG_TOKEN_PAUSE).await;
    let told = "commands need the header `Authorization: Bearer <admin.token>`\n";
    Some((StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], told).into_response())
}
