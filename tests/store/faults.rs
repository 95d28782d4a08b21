//! S3 stores that misbehave.

use std::time::{Duration, Instant};

use bytes::Bytes;
use comfy_worker::store::{Content, Creation, ObjectStore, StoreError, Stores};

use super::{
    fake::{Asked, Fake, Reply},
    stores, uri,
};

const OBJECT: &str = "s3://bucket/object";

async fn reach(fake: &Fake) -> Stores {
    stores(&fake.endpoint(), "key", "hush-hush").await
}

async fn read_from(
    answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
) -> Result<Bytes, StoreError> {
    let fake = Fake::start(answer).await;
    reach(&fake).await.read(&uri(OBJECT), 1 << 20).await
}

fn whole(body: &[u8]) -> Reply {
    Reply::new(200, body).header("ETag", "\"v1\"")
}

/// The rest from `offset`, as a range.
fn rest(body: &[u8], offset: usize) -> Reply {
    let range = format!("bytes {offset}-{}/{}", body.len() - 1, body.len());
    Reply::new(206, &body[offset..]).header("ETag", "\"v1\"").header("Content-Range", &range)
}

#[tokio::test]
async fn a_body_that_breaks_off_goes_on_where_it_ended() {
    let body: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let content = body.clone();
    let fake = Fake::start(move |asked, _| match asked.headers.get("range") {
        None => whole(&content).cut_after(150_000),
        Some(range) => {
            assert_eq!(asked.headers["if-match"], "\"v1\"");
            let offset: usize = range["bytes=".len()..].trim_end_matches('-').parse().unwrap();
            let cut = (content.len() - offset).min(150_000);
            rest(&content, offset).cut_after(cut)
        }
    })
    .await;
    let read = reach(&fake).await.read(&uri(OBJECT), 1 << 20).await.unwrap();
    assert!(read == body);
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test]
async fn an_object_replaced_while_it_is_read_is_never_mixed() {
    let replaced = read_from(|_, count| match count {
        0 => whole(b"old content").cut_after(4),
        _ => Reply::error(412, "PreconditionFailed", "changed"),
    });
    let error = replaced.await.unwrap_err();
    assert!(matches!(error, StoreError::Changed { .. }), "{error}");

    // A store that ignores ranges sends the start again.
    let error = read_from(|_, _| whole(b"some content").cut_after(4)).await.unwrap_err();
    assert!(matches!(&error, StoreError::Unavailable { reason, .. } if reason.contains("ranges")), "{error}");

    // Without an ETag nobody knows what the rest belongs to.
    let error = read_from(|_, _| Reply::new(200, "some content").cut_after(4)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_given_up() {
    let error = read_from(|asked, _| match asked.headers.get("range") {
        None => whole(b"some content").cut_after(4),
        Some(_) => rest(b"some content", 4).cut_after(0),
    });
    let error = error.await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_body_that_differs_from_its_checksum_is_refused() {
    // CRC32 of something else.
    let error = read_from(|_, _| whole(b"some content").header("x-amz-checksum-crc32", "AAAAAA==")).await;
    let error = error.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { reason, .. } if reason.contains("checksum")),
        "{error}"
    );
}

#[tokio::test]
async fn a_store_that_recovers_is_waited_for() {
    let read = read_from(|_, count| match count {
        0 => Reply::error(503, "SlowDown", "slow down"),
        1 => Reply::error(500, "InternalError", "oops"),
        2 => Reply::new(502, "<html>bad gateway</html>"),
        _ => whole(b"content"),
    });
    assert_eq!(read.await.unwrap(), "content");
}

#[tokio::test]
async fn a_store_that_does_not_recover_is_unavailable_in_bounded_time() {
    let since = Instant::now();
    let error = read_from(|_, _| Reply::error(503, "SlowDown", "slow down")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("SlowDown: slow down"), "{error}");
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_unavailable_in_bounded_time() {
    let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for endpoint in [format!("http://{refusing}"), "http://no-such-host.invalid".to_owned()] {
        let since = Instant::now();
        let store = stores(&endpoint, "key", "hush-hush").await;
        for outcome in [
            store.read(&uri(OBJECT), 1).await.map(drop),
            store.put(&uri(OBJECT), Content::Bytes(Bytes::new()), "x/y").await.map(drop),
            store.probe(&uri("s3://bucket")).await,
        ] {
            let error = outcome.unwrap_err();
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
            assert!(error.to_string().contains(&endpoint), "{error}");
        }
        assert!(since.elapsed() < Duration::from_secs(60), "three calls took {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn an_endpoint_that_swallows_connections_is_unavailable_within_20_seconds() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let silent = socket.listen(1).unwrap();
    let address = silent.local_addr().unwrap();
    // Once the queue of unaccepted connections is full, the kernel drops every further SYN.
    let mut waiting = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(500), tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(connected.unwrap());
    }
    let store = stores(&format!("http://{address}"), "key", "hush-hush").await;
    let since = Instant::now();
    let error = store.read(&uri(OBJECT), 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    println!("given up after {:?}: {error}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_login_in_the_endpoint_is_not_shown() {
    let store = stores("http://user:hush-hush@127.0.0.1:9", "key", "secret").await;
    let error = store.read(&uri(OBJECT), 1).await.unwrap_err();
    assert!(!format!("{error} {error:?} {store:?}").contains("hush-hush"), "{error}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let error = read_from(|_, _| Reply::error(403, "AccessDenied", "not for&#10;you")).await.unwrap_err();
    let StoreError::Forbidden { uri: object, reason } = error else { panic!("{error}") };
    assert_eq!(object, OBJECT);
    assert_eq!(reason, "403 AccessDenied: not for\\nyou");

    for code in ["NoSuchKey", "NoSuchBucket"] {
        let error = read_from(move |_, _| Reply::error(404, code, "gone")).await.unwrap_err();
        assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    }
    let elsewhere = |_: &Asked, _| {
        Reply::error(301, "PermanentRedirect", "elsewhere").header("x-amz-bucket-region", "eu-west-3")
    };
    let error = read_from(elsewhere).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Misplaced { reason, .. } if reason.contains("eu-west-3")),
        "{error}"
    );
}

#[tokio::test]
async fn a_missing_bucket_is_named_by_the_probe() {
    let fake = Fake::start(|_, _| Reply::error(404, "NoSuchBucket", "no such bucket")).await;
    let store = reach(&fake).await;
    let error = store.put(&uri(OBJECT), Content::Bytes(Bytes::new()), "x/y").await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    let error = store.probe(&uri("s3://bucket/results")).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Misconfigured { reason, .. } if reason.contains("store.uri")),
        "{error}"
    );
}

#[tokio::test]
async fn creating_asks_again_when_two_writers_meet() {
    let fake = Fake::start(|asked, count| {
        assert_eq!(asked.headers["if-none-match"], "*");
        match count {
            0 | 1 => Reply::error(409, "ConditionalRequestConflict", "try again"),
            2 => Reply::new(200, ""),
            _ => Reply::error(412, "PreconditionFailed", "it exists"),
        }
    })
    .await;
    let store = reach(&fake).await;
    let create = || store.create(uri_of_object(), Bytes::from_static(b"{}"), "application/json");
    assert_eq!(create().await.unwrap(), Creation::Created);
    assert_eq!(create().await.unwrap(), Creation::Exists);
    assert_eq!(fake.asked().len(), 4);
}

fn uri_of_object() -> &'static contract::ObjectUri {
    static URI: std::sync::LazyLock<contract::ObjectUri> = std::sync::LazyLock::new(|| uri(OBJECT));
    &URI
}

#[tokio::test]
async fn a_store_that_ignores_if_none_match_is_refused() {
    let fake = Fake::start(|_, _| Reply::new(200, "")).await;
    let error = reach(&fake).await.probe(&uri("s3://bucket/results")).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("ignores If-None-Match"), "{error}");
    let asked = fake.asked();
    let last = asked.last().unwrap();
    assert_eq!(last.method, "DELETE");
    assert!(last.path.starts_with("/bucket/results/.comfy-worker-probe-"), "{last:?}");

    // One that says that it has no such thing.
    let fake = Fake::start(|_, _| Reply::error(501, "NotImplemented", "a header you provided")).await;
    let error = reach(&fake).await.probe(&uri("s3://bucket")).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
}

/// Keeps the first object and answers as `other` to any call but its own reading.
async fn keeping(other: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Fake {
    keeping_for(usize::MAX, other).await
}

/// The same, and its own reading as well after so many times.
async fn keeping_for(reads: usize, other: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Fake {
    let left = std::sync::Mutex::new(reads);
    let kept = std::sync::Mutex::new(None::<(String, Vec<u8>)>);
    let key = |asked: &Asked| asked.path.split('?').next().unwrap_or_default().to_owned();
    Fake::start(move |asked, _| {
        let mut kept = kept.lock().unwrap();
        match (asked.method.as_str(), kept.as_ref()) {
            ("PUT", Some(_)) => Reply::error(412, "PreconditionFailed", "it exists"),
            ("PUT", None) => {
                *kept = Some((key(asked), asked.body.clone()));
                Reply::new(200, "")
            }
            ("GET", Some((path, content))) if key(asked) == *path && take_one(&left) => whole(content),
            _ => other(asked),
        }
    })
    .await
}

fn take_one(left: &std::sync::Mutex<usize>) -> bool {
    let mut left = left.lock().unwrap();
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

#[tokio::test]
async fn a_place_that_forbids_deleting_is_fit_for_work() {
    let fake = keeping(|asked| match asked.method.as_str() {
        "GET" => Reply::error(404, "NoSuchKey", "no such key"),
        _ => Reply::error(403, "AccessDenied", "no deleting"),
    })
    .await;
    reach(&fake).await.probe(&uri("s3://bucket")).await.unwrap();
}

/// Keys that are exchanged in the middle of the probe: nobody must change a setting for that.
#[tokio::test]
async fn a_place_that_forbids_everything_from_then_on_is_not_called_misconfigured() {
    let fake = keeping_for(1, |_| Reply::error(403, "AccessDenied", "keys are exchanged")).await;
    let error = reach(&fake).await.probe(&uri("s3://bucket/results")).await.unwrap_err();
    assert!(matches!(error, StoreError::Forbidden { .. }), "{error}");
}

/// Without `s3:ListBucket` a redelivered job would go round forever.
#[tokio::test]
async fn a_place_that_calls_missing_objects_forbidden_is_refused() {
    let fake = keeping(|asked| match asked.method.as_str() {
        "GET" => Reply::error(403, "AccessDenied", "no listing"),
        _ => Reply::new(204, ""),
    })
    .await;
    let error = reach(&fake).await.probe(&uri("s3://bucket/results")).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
    assert!(error.to_string().contains("s3:ListBucket"), "{error}");
    assert_eq!(fake.asked().last().unwrap().method, "DELETE");
}
