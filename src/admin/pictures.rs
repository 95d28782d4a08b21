//! Pictures for the page: the last preview of a job in hand, out of memory, and outputs of the last jobs,
//! out of the store.
//!
//! A job made them, so they are outside data: only kinds of pictures that hold no program, named by us and
//! never guessed, in a sandbox should somebody open one by itself.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{
        StatusCode,
        header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use contract::{JobId, ObjectUri};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::{
    AdminState,
    outcome::{LARGEST_PICTURE, StoredPicture},
};
use crate::store::{Object, ObjectStore, StoreError};

/// Outputs that are fetched at a time: jobs need the store more.
pub(super) const MAX_PICTURES: usize = 4;
/// Longest wait for one's turn, for the store to begin, and for all of a picture.
const TURN_LIMIT: Duration = Duration::from_secs(20);
const OPEN_LIMIT: Duration = Duration::from_secs(10);
const WHOLE_LIMIT: Duration = Duration::from_secs(60);
const SANDBOX: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";

/// `GET /jobs/{id}/preview`
pub(super) async fn preview(State(site): State<Arc<AdminState>>, Path(id): Path<String>) -> Response {
    let preview = id.parse().ok().and_then(|id: JobId| site.board.preview(&id));
    match preview {
        Some((content_type, bytes)) => {
            ([(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, SANDBOX)], bytes).into_response()
        }
        None => (StatusCode::NOT_FOUND, "no preview of such a job\n").into_response(),
    }
}

/// `GET /jobs/{id}/outputs/{index}`
pub(super) async fn output(
    State(site): State<Arc<AdminState>>,
    Path((id, index)): Path<(String, String)>,
) -> Response {
    let picture = id.parse().ok().zip(index.parse().ok());
    let picture = picture.and_then(|(id, index): (JobId, usize)| site.board.picture(&id, index));
    let (Some(picture), Some(store)) = (picture, site.store.get()) else {
        return (StatusCode::NOT_FOUND, "no such picture among the last jobs' outputs\n").into_response();
    };
    let Ok(Ok(turn)) = timeout(TURN_LIMIT, Arc::clone(&site.pictures).acquire_owned()).await else {
        let told = "many pictures are being fetched\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "5")], told).into_response();
    };
    match timeout(OPEN_LIMIT, open(&**store, &picture)).await {
        Ok(Ok(object)) => {
            let size = object.size;
            // The turn ends with the body, no matter who ends that.
            let body = bounded(object).take_until(sleep(WHOLE_LIMIT)).inspect(move |_| {
                let _ = &turn;
            });
            let headers = [
                (CONTENT_TYPE, picture.content_type),
                (CONTENT_SECURITY_POLICY, SANDBOX),
                (CACHE_CONTROL, "private, max-age=3600"),
            ];
            let mut response = (headers, Body::from_stream(body)).into_response();
            if let Some(size) = size {
                response.headers_mut().insert(CONTENT_LENGTH, size.into());
            }
            response
        }
        Ok(Err(StoreError::NotFound { .. })) => {
            (StatusCode::NOT_FOUND, "the store no longer has it\n").into_response()
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "cannot read an output for the status page");
            (StatusCode::BAD_GATEWAY, "the store does not give it\n").into_response()
        }
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "the store is silent\n").into_response(),
    }
}

async fn open(store: &dyn ObjectStore, picture: &StoredPicture) -> Result<Object, StoreError> {
    let wrong = |reason: String| StoreError::Misconfigured { uri: picture.uri.clone(), reason };
    let uri: ObjectUri = picture.uri.parse().map_err(|error: contract::UriError| wrong(error.to_string()))?;
    let object = store.open(&uri).await?;
    match object.size {
        Some(size) if size > LARGEST_PICTURE => {
            Err(StoreError::TooLarge { uri: picture.uri.clone(), limit: LARGEST_PICTURE })
        }
        _ => Ok(object),
    }
}

/// No more than the largest picture, whatever the store sends.
fn bounded(object: Object) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send {
    let mut left = LARGEST_PICTURE;
    object.body.map(move |part| {
        let part = part?;
        left =
            left.checked_sub(part.len() as u64).ok_or_else(|| std::io::Error::other("larger than it was"))?;
        Ok(part)
    })
}
