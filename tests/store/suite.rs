//! What every store must do.

use std::sync::Arc;

use bytes::Bytes;
use contract::ObjectUri;

use comfy_worker::store::{Content, Creation, ObjectStore, StoreError};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::{files_beneath, server::S3Server, stores, uri};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_folders_hold_what_they_are_given() {
    let folder = TempDir::new().unwrap();
    let store = stores("http://127.0.0.1:9", "unused", "unused").await;
    let prefix = ObjectUri::File(folder.path().join("not there yet/renders"));
    holds_what_it_is_given(store, &prefix).await;
    assert!(files_beneath(folder.path()).iter().all(|name| !name.contains("comfy-worker")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_holds_what_it_is_given() {
    let folder = TempDir::new().unwrap();
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
    for prefix in ["s3://bucket", "s3://bucket/some/prefix"] {
        holds_what_it_is_given(store.clone(), &uri(prefix)).await;
    }
    assert!(files_beneath(&folder.path().join("bucket")).iter().all(|name| !name.contains("comfy-worker")));
}

/// On a store of yours: `STORE_TEST_ENDPOINT`, `STORE_TEST_URI` (a place in a bucket that is there) and the variables of AWS
/// for its keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a store: STORE_TEST_ENDPOINT, STORE_TEST_URI"]
async fn another_store_holds_what_it_is_given() {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(variable);
    let store = stores(&variable("STORE_TEST_ENDPOINT"), &keys[0], &keys[1]).await;
    holds_what_it_is_given(store, &uri(&variable("STORE_TEST_URI"))).await;
}

async fn holds_what_it_is_given(store: impl ObjectStore + Clone + 'static, prefix: &ObjectUri) {
    let at = |key: &str| prefix.join(key).unwrap();
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());

    // The place is fit for results, and looking leaves nothing behind.
    store.probe(prefix).await.unwrap();

    // Missing.
    let missing = at("missing.json");
    let error = store.read(&missing, 10).await.unwrap_err();
    assert!(matches!(&error, StoreError::NotFound { uri } if *uri == missing.to_string()), "{error}");
    let beneath_nothing = store.open(&at("no/such/folder/x")).await.err().unwrap();
    assert!(matches!(beneath_nothing, StoreError::NotFound { .. }), "{beneath_nothing}");

    // Put, read, replace; sizes and limits to the byte.
    let file = at("job/1/outputs/a.txt");
    let stored = store.put(&file, Content::Bytes(bytes("first")), "text/plain").await.unwrap();
    assert_eq!((stored.size, stored.sha256), (5, sum(b"first")));
    assert_eq!(store.read(&file, 5).await.unwrap(), bytes("first"));
    store.put(&file, Content::Bytes(bytes("second")), "text/plain").await.unwrap();
    assert_eq!(store.read(&file, 100).await.unwrap(), bytes("second"));
    assert_eq!(store.open(&file).await.unwrap().size, Some(6));
    let error = store.read(&file, 5).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { limit: 5, .. }), "{error}");

    // The rest of a version, and of none but that.
    let version = store.version(&file).await.unwrap().unwrap();
    let mut rest = String::new();
    let opened = store.open_from(&file, 3, Some(&version)).await.unwrap();
    assert_eq!((opened.size, opened.version.as_ref()), (Some(6), Some(&version)));
    opened.into_reader().read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "ond");
    store.put(&file, Content::Bytes(bytes("third!")), "text/plain").await.unwrap();
    let error = store.open_from(&file, 3, Some(&version)).await.err().unwrap();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    assert!(matches!(store.version(&missing).await, Err(StoreError::NotFound { .. })));

    // Nothing at all is content, too.
    let empty = at("empty");
    store.put(&empty, Content::Bytes(Bytes::new()), "application/octet-stream").await.unwrap();
    assert_eq!(store.read(&empty, 0).await.unwrap(), Bytes::new());

    // A file, and the first bytes of a longer one.
    let source = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(3_000_001).collect();
    std::fs::write(source.path(), &content).unwrap();
    for size in [3_000_001, 70_000, 0] {
        let object = at("file.bin");
        let path = source.path().to_owned();
        let written = Content::File { path, size: size as u64 };
        let stored = store.put(&object, written, "application/octet-stream").await.unwrap();
        assert_eq!((stored.size, stored.sha256), (size as u64, sum(&content[..size])));
        let mut body = Vec::new();
        store.open(&object).await.unwrap().into_reader().read_to_end(&mut body).await.unwrap();
        assert!(body == content[..size], "{size} bytes");
    }
    // A source that is missing, or has become shorter: the local side's fault, and nothing is written.
    for (path, size) in [("/no/such/source".into(), 1), (source.path().to_owned(), 3_000_002)] {
        let error = store.put(&at("never"), Content::File { path, size }, "x/y").await.unwrap_err();
        assert!(matches!(error, StoreError::Local { .. }), "{error}");
        assert!(matches!(store.read(&at("never"), 1).await, Err(StoreError::NotFound { .. })));
    }

    // Created once.
    let result = at("job/result.json");
    assert_eq!(store.create(&result, bytes("one"), "application/json").await.unwrap(), Creation::Created);
    assert_eq!(store.create(&result, bytes("two"), "application/json").await.unwrap(), Creation::Exists);
    assert_eq!(store.read(&result, 10).await.unwrap(), bytes("one"));
    // An empty object is there, too.
    assert_eq!(store.create(&empty, bytes("x"), "x/y").await.unwrap(), Creation::Exists);

    // Of many at once one wins, and its content stays.
    let store = Arc::new(store);
    for round in 0..10 {
        let contested = at(&format!("contested-{round}"));
        let start = Arc::new(tokio::sync::Barrier::new(8));
        let writers = (0..8).map(|writer| {
            let (store, contested, start) = (Arc::clone(&store), contested.clone(), Arc::clone(&start));
            tokio::spawn(async move {
                let body = Bytes::from(format!("{writer}").repeat(2000));
                start.wait().await;
                (body.clone(), store.create(&contested, body, "text/plain").await.unwrap())
            })
        });
        let outcomes: Vec<_> =
            futures_util::future::join_all(writers).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<_> = outcomes.iter().filter(|(_, found)| *found == Creation::Created).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(store.read(&contested, 10_000).await.unwrap(), winners[0].0);
    }

    // Removed, and what is not there removed again.
    for uri in [&result, &result, &at("no/such/folder/x")] {
        store.delete(uri).await.unwrap();
        assert!(matches!(store.read(uri, 10).await, Err(StoreError::NotFound { .. })));
    }
    assert_eq!(store.create(&result, bytes("three"), "application/json").await.unwrap(), Creation::Created);

    // Keys that need care on the way.
    for key in
        ["a b", "a+b", "100%", "%2e%2e/x", "naïve/キー 1.png", "a?b#c&d=e", "a'b\"c", "~tilde", "(1)*!"]
    {
        let object = at(key);
        let body = Bytes::from(key.to_owned());
        store
            .put(&object, Content::Bytes(body.clone()), "x/y")
            .await
            .unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(store.read(&object, 100).await.unwrap_or_else(|e| panic!("{key}: {e}")), body);
    }
    // Two spellings of one letter are two keys.
    for (key, body) in [("\u{e9}", "composed"), ("e\u{301}", "decomposed")] {
        store.put(&at(key), Content::Bytes(bytes(body)), "x/y").await.unwrap();
    }
    assert_eq!(store.read(&at("\u{e9}"), 100).await.unwrap(), bytes("composed"));
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
