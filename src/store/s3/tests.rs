#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use contract::ObjectUri;
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    S3Store,
    classify::{Facts, Meaning, meaning},
    client::TransferLimits,
};
use crate::{
    config::StoreConfig,
    store::{ObjectStore, StoreError},
};

fn answer(status: u16, code: &str) -> Facts {
    let (code, words) = (code.to_owned(), "the words".to_owned());
    Facts { status: Some(status), code, words, ..Facts::default() }
}

fn unanswered(chain: &str) -> Facts {
    Facts { chain: chain.to_owned(), ..Facts::default() }
}

#[test]
fn every_answer_has_its_meaning() {
    let kind = |facts: &Facts| match meaning(facts, "the store") {
        Meaning::NotFound => "not found",
        Meaning::Forbidden(_) => "forbidden",
        Meaning::Misplaced(_) => "misplaced",
        Meaning::Misconfigured(_) => "misconfigured",
        Meaning::Unavailable { repeat: false, .. } => "unavailable",
        Meaning::Unavailable { repeat: true, .. } => "again",
    };
    for (status, code, expected) in [
        (404, "NoSuchKey", "not found"),
        (404, "NoSuchBucket", "not found"),
        (404, "", "not found"),
        (404, "NoSuchUpload", "again"),
        (403, "AccessDenied", "forbidden"),
        (403, "", "forbidden"),
        (403, "InvalidObjectState", "forbidden"),
        (403, "InvalidAccessKeyId", "forbidden"),
        (403, "SignatureDoesNotMatch", "forbidden"),
        (403, "RequestTimeTooSkewed", "misconfigured"),
        (400, "ExpiredToken", "forbidden"),
        (400, "AuthorizationHeaderMalformed", "misplaced"),
        (301, "PermanentRedirect", "misplaced"),
        (301, "", "misplaced"),
        (501, "NotImplemented", "misconfigured"),
        (400, "InvalidRequest", "misconfigured"),
        (405, "MethodNotAllowed", "misconfigured"),
        (409, "ConditionalRequestConflict", "again"),
        (409, "OperationAborted", "again"),
        (400, "BadDigest", "again"),
        (400, "RequestTimeout", "unavailable"),
        (429, "", "again"),
        (500, "InternalError", "unavailable"),
        (503, "SlowDown", "unavailable"),
        (502, "", "unavailable"),
        (200, "InternalError", "unavailable"),
    ] {
        assert_eq!(kind(&answer(status, code)), expected, "{status} {code}");
    }
    for (chain, expected) in [
        ("dispatch failure: io error: tcp connect error: Connection refused (os error 111)", "unavailable"),
        ("dispatch failure: other: the credential provider was not enabled", "misconfigured"),
        ("dispatch failure: other: the credentials provider was not properly configured: x", "misconfigured"),
        ("dispatch failure: other: an error occurred while loading credentials: AccessDenied", "forbidden"),
        ("an error occurred while loading credentials: dispatch failure: io error", "unavailable"),
        ("other: credentials provider timed out after 5 seconds", "unavailable"),
        ("dispatch failure: io error: invalid peer certificate: UnknownIssuer", "misconfigured"),
        ("dispatch failure: other: minimum throughput was specified at 1 B/s", "again"),
    ] {
        assert_eq!(kind(&unanswered(chain)), expected, "{chain}");
    }
    let unsent = Facts { unsent: true, ..unanswered("failed to construct request") };
    assert_eq!(kind(&unsent), "misconfigured");
}

/// A signed link to HTML or SVG would run its script in the name of the bucket's host.
#[test]
fn what_could_run_scripts_is_saved_and_not_shown() {
    for shown in [
        "image/png",
        "image/jpeg",
        "video/mp4",
        "audio/flac",
        "application/json",
        "text/plain; charset=utf-8",
    ] {
        assert_eq!(super::disposition(shown), None, "{shown}");
    }
    for saved in [
        "text/html",
        "image/svg+xml",
        "application/xhtml+xml",
        "text/xml",
        "text/javascript",
        "model/gltf+json",
        "",
    ] {
        assert_eq!(super::disposition(saved).as_deref(), Some("attachment"), "{saved}");
    }
}

#[test]
fn a_wrong_region_is_named_with_the_right_one() {
    let facts = Facts { region: Some("eu-west-3".to_owned()), ..answer(301, "PermanentRedirect") };
    let Meaning::Misplaced(reason) = meaning(&facts, "Amazon S3 (region us-east-1)") else {
        panic!("{facts:?}")
    };
    assert!(reason.contains("store.region") && reason.contains("eu-west-3"), "{reason}");
}

/// A store that waits little for what comes from `endpoint`.
async fn impatient(endpoint: std::net::SocketAddr) -> S3Store {
    let config = StoreConfig {
        uri: None,
        endpoint: Some(format!("http://{endpoint}").parse().unwrap()),
        region: None,
        path_style: true,
    };
    let limits = TransferLimits {
        connect: Duration::from_millis(500),
        attempt: Duration::from_millis(300),
        operation: Duration::from_secs(3),
        stall: Duration::from_millis(150),
        least_bytes: 1000,
        backoff: Duration::from_millis(1),
    };
    S3Store::with_limits(&config, Some(("key", &SecretString::from("secret"))), limits).await
}

/// Reads one request without a body; its lines.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

fn object() -> ObjectUri {
    "s3://bucket/key".parse().unwrap()
}

#[tokio::test]
async fn a_stalled_body_goes_on_over_a_new_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = impatient(listener.local_addr().unwrap()).await;
    let server = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        request(&mut first).await.unwrap();
        first.write_all(b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 10\r\n\r\n01234").await.unwrap();
        // The first connection stays open and silent.
        let (mut second, _) = listener.accept().await.unwrap();
        let asked = request(&mut second).await.unwrap().to_lowercase();
        let rest =
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5\r\n\r\n56789";
        second.write_all(rest).await.unwrap();
        drop(first);
        asked
    });
    assert_eq!(store.read(&object(), 10).await.unwrap().as_ref(), b"0123456789");
    let asked = server.await.unwrap();
    assert!(asked.contains("range: bytes=5-") && asked.contains("if-match: \"v1\""), "{asked}");
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = impatient(listener.local_addr().unwrap()).await;
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                request(&mut stream).await?;
                let head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-999999/1000000\r\nContent-Length: 1000000\r\n\r\n";
                stream.write_all(head).await.ok()?;
                // No ETag: nothing to go on from. The pause is the fault itself, not a wait for something.
                while stream.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Some(())
            });
        }
    });
    let error = store.read(&object(), 1_000_000).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable { reason, .. } if reason.contains("bytes in")),
        "{error}"
    );
    server.abort();
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = impatient(listener.local_addr().unwrap()).await;
    // The kernel accepts; nobody reads.
    let error = store.read(&object(), 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    drop(listener);
}
