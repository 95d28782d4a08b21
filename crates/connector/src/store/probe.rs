//! What a place for results must be able to do, shown on a small object.

use bytes::Bytes;
use contract::ObjectUri;
use uuid::Uuid;

use super::{Creation, ObjectStore, StoreError};

/// Where the next probe's object lies: a name that no job can have (ids start with a letter or digit).
pub fn object_beneath(prefix: &ObjectUri) -> Result<ObjectUri, StoreError> {
    prefix
        .join(&format!(".comfy-worker-probe-{}", Uuid::new_v4().simple()))
        .map_err(|error| StoreError::Misconfigured { uri: prefix.to_string(), reason: error.to_string() })
}

/// Creates `uri`, is refused a second time, reads the first content back, and is told of an object
/// under `prefix` that there is none.
pub async fn run(store: &impl ObjectStore, prefix: &ObjectUri, uri: &ObjectUri) -> Result<(), StoreError> {
    let wrong = |reason: &str| StoreError::Misconfigured { uri: uri.to_string(), reason: reason.to_owned() };
    let first = Bytes::from(format!("comfy-worker probe {}\n", Uuid::new_v4()));
    let created = store.create(uri, first.clone(), "text/plain").await;
    // `Exists` here can only be this call's own object, after a lost answer: the name is new.
    created.map_err(|error| match error {
        StoreError::NotFound { uri } => StoreError::Misconfigured {
            uri,
            reason: "there is no such bucket: create it, or change store.uri".to_owned(),
        },
        other => other,
    })?;

    let again = store.create(uri, Bytes::from_static(b"a second writer\n"), "text/plain").await?;
    if again == Creation::Created {
        return Err(wrong(
            "this store ignores If-None-Match, results could be overwritten; use one that honours it \
             (Amazon S3, MinIO, Ceph, SeaweedFS in recent versions)",
        ));
    }
    let limit = first.len() as u64;
    match store.read(uri, limit).await {
        Ok(read) if read == first => {}
        Ok(_) | Err(StoreError::TooLarge { .. }) => {
            return Err(wrong(
                "this store changed an object that it said it had kept: what a job leaves here could not be trusted",
            ));
        }
        Err(StoreError::NotFound { .. }) => {
            return Err(wrong(
                "this store does not show an object right after it was written; use one that does",
            ));
        }
        Err(error) => return Err(error),
    }
    match store.read(&object_beneath(prefix)?, limit).await {
        Ok(_) | Err(StoreError::NotFound { .. }) => Ok(()),
        // Not when it forbids what it has just shown, too: keys are being exchanged, and that passes.
        Err(StoreError::Forbidden { .. }) if store.read(uri, limit).await.is_ok() => Err(wrong(
            "asked for an object that does not exist, this store says that it is forbidden: whether a job has \
             its result could not be told; allow the credentials s3:ListBucket on the bucket",
        )),
        Err(error) => Err(error),
    }
}
