//! PUT: small things in one request, large files in parts.

use std::time::Duration;

use aws_sdk_s3::{
    config::{Config, timeout::TimeoutConfig},
    operation::put_object::builders::PutObjectFluentBuilder,
};
use bytes::Bytes;
use contract::ObjectUri;

use super::{
    S3Store,
    classify::S3Failure,
    disposition, multipart, object_of,
    source::{Source, SummedBytes},
};
use crate::store::{Content, Creation, StoreError, Stored};

/// Larger files go up in parts, so that a break costs one part, and memory for a few of them is enough.
const MULTIPART_FROM: u64 = 8 << 20;
/// The slowest upload that is waited for, in bytes a second.
const SLOWEST: u64 = 64 << 10;

pub(super) async fn put(
    store: &S3Store,
    uri: &ObjectUri,
    content: Content,
    content_type: &str,
) -> Result<Stored, StoreError> {
    let (bucket, key) = object_of(uri)?;
    // The loan of the memory goes back when all is sent.
    let (body, _piece, stored) = match content {
        Content::Bytes(bytes) => {
            let stored = Stored::of(&bytes).await;
            (SummedBytes::of(bytes), None, stored)
        }
        Content::File { path, size } if size > MULTIPART_FROM => {
            let whole = || Box::pin(multipart::put(store, uri, &path, size, content_type));
            return store.again(whole).await;
        }
        Content::File { path, size } => {
            let mut source = Source::open(uri, &path, size).await?;
            let piece = source.next(size).await?;
            let body = piece.as_ref().map(|piece| piece.body.clone());
            (body.unwrap_or_else(|| SummedBytes::of(Bytes::new())), piece, source.finish())
        }
    };
    let attempt = || {
        let request = store
            .client
            .put_object()
            .bucket(bucket)
            .key(key)
            .content_type(content_type)
            .set_content_disposition(disposition(content_type));
        let request = request.set_checksum_crc32(store.checksums.then(|| body.crc32()));
        send(store, uri, request.body(body.stream()), stored.size)
    };
    store.again(attempt).await.map(|()| stored)
}

pub(super) async fn create(
    store: &S3Store,
    uri: &ObjectUri,
    body: Bytes,
    content_type: &str,
) -> Result<Creation, StoreError> {
    let (bucket, key) = object_of(uri)?;
    let attempt = || async {
        let request = store.client.put_object().bucket(bucket).key(key).content_type(content_type);
        let request = request.if_none_match("*").body(body.clone().into());
        match send(store, uri, request, body.len() as u64).await {
            Ok(()) => Ok(Creation::Created),
            Err(failure) if failure.status() == Some(412) => Ok(Creation::Exists),
            Err(failure) => Err(failure),
        }
    };
    store.again(attempt).await
}

async fn send(
    store: &S3Store,
    uri: &ObjectUri,
    request: PutObjectFluentBuilder,
    size: u64,
) -> Result<(), S3Failure> {
    let sent = request.customize().config_override(time_for(store, size)).send();
    Box::pin(sent).await.map(drop).map_err(|error| store.failure(uri, error))
}

/// Time limits for a request that carries `size` bytes.
pub(super) fn time_for(store: &S3Store, size: u64) -> aws_sdk_s3::config::Builder {
    let attempt = store.limits.attempt + Duration::from_secs(size / SLOWEST);
    let all = store.limits.operation.max(attempt * 2);
    Config::builder().timeout_config(
        TimeoutConfig::builder()
            .connect_timeout(store.limits.connect)
            .operation_attempt_timeout(attempt)
            .operation_timeout(all)
            .build(),
    )
}
