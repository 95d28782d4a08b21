//! A job that is to be run once more although it was answered: its records are removed first.

use contract::{JobId, ObjectUri, failure::Failure};

use super::attempt::Records;
use crate::store::ObjectStore;
use connector::checksum;

/// Whether the job has a result: run again it would only be answered from it.
///
/// # Errors
/// When the store cannot say.
pub async fn is_answered(store: &dyn ObjectStore, base: &ObjectUri, id: &JobId) -> Result<bool, Failure> {
    Ok(Records::new(store, base, id.as_str())?.result().await?.is_some())
}

/// Whether the id is that of a job with another body: its records are not this one's to remove, whatever was published
/// under its id since.
///
/// # Errors
/// When the store cannot say.
pub async fn is_anothers(
    store: &dyn ObjectStore,
    base: &ObjectUri,
    id: &JobId,
    body: &[u8],
) -> Result<bool, Failure> {
    Records::new(store, base, id.as_str())?.has_other_body(&checksum::of_bytes(body)).await
}

/// Removes the job's result and the markers of its attempts, which would make it poison at once.
/// What the attempts uploaded stays.
///
/// # Errors
/// When the store does not do it; called again it goes on.
pub async fn forget(store: &dyn ObjectStore, base: &ObjectUri, id: &JobId) -> Result<(), Failure> {
    Records::new(store, base, id.as_str())?.remove().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{
        super::{attempt::Opened, message::JobMessage},
        *,
    };
    use crate::store::LocalStore;

    #[tokio::test]
    async fn a_forgotten_job_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let base = ObjectUri::File(folder.path().to_owned());
        let id: JobId = "j".parse().unwrap();
        let records = Records::new(&LocalStore, &base, "j").unwrap();
        // Each of another delivery, whose worker is gone.
        let delivered = JobMessage { redelivered: true, ..JobMessage::local("".into(), "j".to_owned()) };
        let open = async || {
            let records = Records::new(&LocalStore, &base, "j").unwrap();
            records.open(&checksum::of_bytes(b"body"), "w", 2, &delivered).await.unwrap()
        };
        for crashed in [1, 2] {
            assert!(matches!(open().await, Opened::Attempt(attempt) if attempt.number == crashed));
        }
        let Opened::Poison { attempt, crashes: 2 } = open().await else { panic!("no poison") };
        assert_eq!(attempt.number, 3);
        assert!(!is_answered(&LocalStore, &base, &id).await.unwrap());
        records.settle("{}".into()).await.unwrap();
        assert!(is_answered(&LocalStore, &base, &id).await.unwrap());
        assert!(is_anothers(&LocalStore, &base, &id, b"another").await.unwrap());
        assert!(!is_anothers(&LocalStore, &base, &id, b"body").await.unwrap());
        std::fs::create_dir(folder.path().join("j/1")).unwrap();

        for _ in 0..2 {
            forget(&LocalStore, &base, &id).await.unwrap();
            assert!(!is_answered(&LocalStore, &base, &id).await.unwrap());
        }
        assert!(matches!(open().await, Opened::Attempt(attempt) if attempt.number == 1));
        assert!(folder.path().join("j/1").is_dir(), "outputs stay");
    }
}
