//! S3 over a real server.

use std::{fs::File, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use comfy_worker::{
    config::StoreConfig,
    store::{Content, ObjectStore, StoreError, Stores},
};
use tempfile::TempDir;

use super::{
    config,
    fake::{Fake, Reply},
    files_beneath,
    server::{PartFault, S3Server},
    stores, uri,
};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_link_opens_the_object_without_credentials() {
    let folder = TempDir::new().unwrap();
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
    for key in ["plain.txt", "naïve + 100% %2e.txt"] {
        let object = uri(&format!("s3://bucket/renders/{key}"));
        store.put(&object, Content::Bytes(Bytes::from_static(b"here")), "text/plain").await.unwrap();
        let link = store.presign_get(&object, Duration::from_secs(600)).await.unwrap().unwrap();
        let answer = reqwest::get(link.clone()).await.unwrap();
        assert_eq!(answer.status(), 200, "{link}");
        assert_eq!(answer.headers()["content-type"], "text/plain");
        assert_eq!(answer.bytes().await.unwrap(), "here");
        assert!(!link.as_str().contains(server.secret_key()));

        let mut other = link;
        other.set_path("/bucket/renders/other");
        assert_eq!(reqwest::get(other).await.unwrap().status(), 403);
    }
    // More than S3 signs for is cut to what it does.
    let object = uri("s3://bucket/x");
    let link = store.presign_get(&object, Duration::from_secs(30 * 24 * 3600)).await.unwrap().unwrap();
    assert!(link.query().unwrap().contains("X-Amz-Expires=604800"), "{link}");
}

/// A page or a script that a node wrote must not run in a browser that follows a link into the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_browser_would_run_is_saved_by_it() {
    let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
    let small = || Content::Bytes(Bytes::from_static(b"<script>"));
    for (name, content, content_type, disposition) in [
        ("page", small(), "text/html", Some("attachment")),
        ("drawing", small(), "image/svg+xml", Some("attachment")),
        ("in-parts", large_file(&sources), "text/html", Some("attachment")),
        ("picture", small(), "image/png", None),
    ] {
        let object = uri(&format!("s3://bucket/{name}"));
        store.put(&object, content, content_type).await.unwrap();
        let link = store.presign_get(&object, Duration::from_secs(600)).await.unwrap().unwrap();
        let answer = reqwest::get(link).await.unwrap();
        let told = answer.headers().get("content-disposition").map(|value| value.to_str().unwrap());
        assert_eq!(told, disposition, "{name}");
    }
}

#[tokio::test]
async fn wrong_keys_are_the_configurations_fault_and_stay_secret() {
    let folder = TempDir::new().unwrap();
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    for (access, secret, hint) in [
        ("nobodyskey", "hush-hush-1", "AWS_ACCESS_KEY_ID"),
        (server.access_key(), "hush-hush-2", "AWS_SECRET_ACCESS_KEY"),
    ] {
        let store = stores(&server.endpoint(), access, secret).await;
        let read = store.read(&uri("s3://bucket/x"), 1).await.unwrap_err();
        let probe = store.probe(&uri("s3://bucket/results")).await.unwrap_err();
        for error in [read, probe] {
            assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
            assert!(error.to_string().contains(hint), "{error}");
            assert!(!format!("{error} {error:?} {store:?}").contains(secret), "{error}");
        }
    }
}

#[tokio::test]
async fn a_bucket_is_no_object() {
    let store = stores("http://127.0.0.1:9", "key", "secret").await;
    let error = store.read(&uri("s3://bucket"), 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
}

/// A sparse file that goes up in parts.
fn large_file(folder: &TempDir) -> Content {
    let (path, size) = (folder.path().join("large.bin"), 70 << 20);
    File::create(&path).unwrap().set_len(size).unwrap();
    Content::File { path, size }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_part_fails_is_aborted() {
    let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = S3Server::with_fault(folder.path(), PartFault::Refuse).await;
    server.create_bucket("bucket");
    let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
    let object = uri("s3://bucket/large.bin");
    let error = store.put(&object, large_file(&sources), "x/y").await.unwrap_err();
    assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
    assert_eq!(server.aborts.load(Ordering::SeqCst), 1);
    assert!(matches!(store.read(&object, 1).await, Err(StoreError::NotFound { .. })));
    assert_eq!(files_beneath(&folder.path().join("bucket")), Vec::<String>::new());
}

/// A store that is away breaks an upload and its abort alike: once it is back nothing of it may stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_that_fails_is_tried_until_it_does_not() {
    let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = S3Server::with_fault(folder.path(), PartFault::RefuseAborts).await;
    server.create_bucket("bucket");
    let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
    let object = uri("s3://bucket/large.bin");
    store.put(&object, large_file(&sources), "x/y").await.unwrap_err();
    let refused = || async { server.aborts.load(Ordering::SeqCst) >= 3 };
    testbed::wait_for("refused aborts", SOON, refused).await.unwrap();
    server.allow_aborts();
    let before = server.aborts.load(Ordering::SeqCst);
    let gone = || async { server.aborts.load(Ordering::SeqCst) > before };
    testbed::wait_for("the abort", SOON, gone).await.unwrap();
    store.settled().await;
    assert_eq!(files_beneath(&folder.path().join("bucket")), Vec::<String>::new());
    let left = std::fs::read_dir(folder.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "bucket").collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What a process leaves open is aborted by the next one; not what another has in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_were_left_are_aborted_by_the_next_process() {
    let (folder, sources, notes) =
        (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = S3Server::with_fault(folder.path(), PartFault::RefuseAborts).await;
    server.create_bucket("bucket");
    let elsewhere = TempDir::new().unwrap();
    let elsewhere = S3Server::start(elsewhere.path()).await;
    let open = async |server: &S3Server| {
        let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
        store.with_upload_notes(notes.path().to_owned())
    };
    let written = || std::fs::read_dir(notes.path()).unwrap().count();
    std::fs::write(notes.path().join("upload-torn.json"), "{\"object\": \"s3://b").unwrap();
    let first = open(&server).await;
    testbed::wait_for("the sweep", SOON, || async { written() == 0 }).await.unwrap();
    first.put(&uri("s3://bucket/large.bin"), large_file(&sources), "x/y").await.unwrap_err();
    // The first still tries to abort it. A server of its own shows what the second asks for.
    let second = open(&elsewhere).await;
    second.settled().await;
    assert_eq!((written(), elsewhere.aborts.load(Ordering::SeqCst)), (1, 0));
    first.settled().await;
    assert_eq!(written(), 1);
    drop(first);
    server.allow_aborts();
    let refused = server.aborts.load(Ordering::SeqCst);
    let third = open(&server).await;
    testbed::wait_for("the abort", SOON, || async { written() == 0 }).await.unwrap();
    third.settled().await;
    assert_eq!(server.aborts.load(Ordering::SeqCst), refused + 1);
    let left = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["bucket"]);
}

/// Also while it begins, when nobody is left to hear that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_cancelled_is_aborted() {
    for fault in [PartFault::Hang, PartFault::HangBegin] {
        let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let server = S3Server::with_fault(folder.path(), fault).await;
        server.create_bucket("bucket");
        let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
        let object = uri("s3://bucket/large.bin");
        tokio::select! {
            done = store.put(&object, large_file(&sources), "x/y") => panic!("{done:?}"),
            () = server.hanging.notified() => {}
        }
        if fault == PartFault::HangBegin {
            server.released.notify_one();
        }
        store.settled().await;
        assert_eq!(server.aborts.load(Ordering::SeqCst), 1, "{fault:?}");
    }
}

/// Runs one ignored test of this binary in a process whose AWS environment is `env` alone.
async fn passes_alone(test: &str, env: &[(&str, &str)]) {
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env_clear()
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .envs(env.iter().copied())
        .output()
        .await
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{child:?}");
}

#[tokio::test]
async fn missing_credentials_are_named() {
    passes_alone("s3::without_credentials", &[("AWS_EC2_METADATA_DISABLED", "true")]).await;
}

#[tokio::test]
async fn making_the_stores_contacts_nobody() {
    let fake = Fake::start(|_, _| Reply::new(404, "")).await;
    let endpoint = fake.endpoint();
    let env = [("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*endpoint), ("AWS_ENDPOINT_URL", &*endpoint)];
    passes_alone("s3::only_made", &env).await;
    assert_eq!(fake.asked().len(), 0);
}

#[tokio::test]
#[ignore = "making_the_stores_contacts_nobody runs it, in a process with its own AWS environment"]
async fn only_made() {
    println!("{:?}", Stores::new(&by_the_chain()).await);
}

#[tokio::test]
async fn the_aws_environment_leads_to_the_store() {
    let folder = TempDir::new().unwrap();
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    let endpoint = server.endpoint().replace("127.0.0.1", "localhost");
    for variable in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
        let keys =
            [("AWS_ACCESS_KEY_ID", server.access_key()), ("AWS_SECRET_ACCESS_KEY", server.secret_key())];
        passes_alone("s3::probes_by_the_chain", &[keys[0], keys[1], (variable, &endpoint)]).await;
    }
}

#[tokio::test]
#[ignore = "the_aws_environment_leads_to_the_store runs it, in a process with its own AWS environment"]
async fn probes_by_the_chain() {
    Stores::new(&by_the_chain()).await.probe(&uri("s3://bucket")).await.unwrap();
}

/// Settings that leave everything to the AWS chain.
fn by_the_chain() -> StoreConfig {
    StoreConfig { uri: None, endpoint: None, region: None, path_style: false }
}

#[tokio::test]
#[ignore = "missing_credentials_are_named runs it, in a process without an AWS environment"]
async fn without_credentials() {
    // Port 9 would refuse: without credentials nobody gets as far as that.
    let store = Stores::new(&config("http://127.0.0.1:9")).await;
    let object = uri("s3://bucket/x");
    let read = store.read(&object, 1).await.unwrap_err();
    let link = store.presign_get(&object, Duration::from_secs(60)).await.unwrap_err();
    for error in [read, link] {
        assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
        assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    }
}
