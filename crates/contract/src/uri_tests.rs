#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use super::{MAX_KEY_BYTES, ObjectUri, UriError};

fn uri(text: &str) -> ObjectUri {
    text.parse().unwrap()
}

fn refusal(text: &str) -> UriError {
    text.parse::<ObjectUri>().unwrap_err()
}

#[test]
fn s3_keys_are_taken_as_they_are() {
    for key in ["a", "a b/c", "naïve/キー.png", "a+b", "100%", "%2e%2e/x", "a?b#c", "a\\b", "...", "-rf"] {
        let text = format!("s3://bucket/{key}");
        assert_eq!(uri(&text), ObjectUri::S3 { bucket: "bucket".into(), key: key.into() });
        assert_eq!(uri(&text).to_string(), text);
    }
}

#[test]
fn a_bucket_alone_has_an_empty_key_and_no_trailing_slash() {
    for text in ["s3://bucket", "s3://bucket/", "s3://bucket//"] {
        assert_eq!(uri(text).to_string(), "s3://bucket");
    }
    assert_eq!(uri("s3://bucket/folder/").to_string(), "s3://bucket/folder");
    assert_eq!(uri("s3://bucket").file_name(), "");
    assert_eq!(uri("s3://bucket/a/b c.png").file_name(), "b c.png");
}

#[test]
fn impossible_buckets_are_refused() {
    for bucket in
        ["", "ab", "Bucket", "under_score", "-ab", "ab-", ".ab", "a..b", "bücket", "..", "a:b", "a@b.c"]
    {
        assert!(matches!(refusal(&format!("s3://{bucket}/key")), UriError::Bucket(_)), "{bucket:?}");
    }
    assert!(matches!(refusal(&format!("s3://{}/key", "b".repeat(64))), UriError::Bucket(_)));
}

#[test]
fn keys_that_climb_or_cannot_be_shown_are_refused() {
    for key in ["/x", "a//b", "a/../b", "../x", ".", "a/.", "a\nb", "a\u{1b}[31m", "a\0b"] {
        assert!(matches!(refusal(&format!("s3://bucket/{key}")), UriError::Key(_)), "{key:?}");
        assert!(uri("s3://bucket/folder").join(key).is_err(), "{key:?}");
        assert!(uri("file:///folder").join(key).is_err(), "{key:?}");
    }
    assert!(uri("s3://bucket").join("").is_err());
    assert!(uri("s3://bucket").join("a/").is_err());
}

#[test]
fn keys_longer_than_s3_takes_are_refused() {
    let longest = "é".repeat(MAX_KEY_BYTES / 2);
    assert_eq!(uri(&format!("s3://bucket/{longest}")), uri("s3://bucket").join(&longest).unwrap());
    assert!(matches!(refusal(&format!("s3://bucket/{longest}x")), UriError::TooLong(_)));
    assert!(matches!(uri("s3://bucket/x").join(&longest), Err(UriError::TooLong(_))));
}

#[test]
fn other_schemes_are_refused() {
    for text in ["", "cat.png", "/cat.png", "http://host/x", "S3://bucket/x", "file:/x", "s3:/bucket"] {
        assert!(matches!(refusal(text), UriError::Scheme(_)), "{text:?}");
    }
}

#[test]
fn file_addresses_are_decoded_and_shown_encoded() {
    for (text, path) in [
        ("file:///folder/cat.png", "/folder/cat.png"),
        ("file:///folder/", "/folder"),
        ("file:///a%20b/%C3%A9.png", "/a b/é.png"),
        ("file:///100%25", "/100%"),
        ("file:///a%3Fb%23c", "/a?b#c"),
        ("file:///a/../b", "/b"),
        ("file:///a/%2e%2e/b", "/b"),
        ("file://localhost/a", "/a"),
    ] {
        assert_eq!(uri(text), ObjectUri::File(PathBuf::from(path)), "{text:?}");
        assert_eq!(uri(&uri(text).to_string()), uri(text), "{text:?}");
    }
    assert_eq!(ObjectUri::File("/a b/ü#?%.png".into()).to_string(), "file:///a%20b/%C3%BC%23%3F%25.png");
    assert_eq!(uri("file:///a%20b/c%20d.png").file_name(), "c d.png");
}

#[test]
fn misleading_file_addresses_are_refused() {
    for text in [
        "file://",
        "file://host/share",
        "file://./relative",
        "file:///a?b",
        "file:///a#b",
        "file:///in/..%2f..%2fetc/passwd",
        "file:///a%00b",
        "file:///a%0Ab",
    ] {
        assert!(text.parse::<ObjectUri>().is_err(), "{text:?}");
    }
}

#[test]
fn beneath_compares_whole_parts() {
    let within = |text: &str, prefix: &str| uri(text).is_beneath(&[prefix.to_owned()]);
    for (text, prefix) in [
        ("s3://bucket/in/x", "s3://bucket/in/"),
        ("s3://bucket/in/x", "s3://bucket/in"),
        ("s3://bucket/in", "s3://bucket/in/"),
        ("s3://bucket/in/x", "s3://bucket/"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/in/x", "s3://"),
        ("file:///my%20folder/x", "file:///my%20folder/"),
        ("file:///my%20folder/x", "file:///my folder/"),
        ("file:///x", "file:///"),
        ("file:///x", "file://"),
    ] {
        assert!(within(text, prefix), "{text} {prefix}");
    }
    for (text, prefix) in [
        ("s3://bucket/internal/x", "s3://bucket/in"),
        ("s3://bucket-2/x", "s3://bucket"),
        ("s3://bucket", "s3://bucket/in/"),
        ("s3://bucket/in/x", "file://"),
        ("s3://bucket/in/x", "https://bucket/in/"),
        ("s3://bucket/in/x", ""),
        ("file:///folder-2/x", "file:///folder"),
        ("file:///folder/../x", "file:///folder/"),
        ("file:///x", "s3://"),
    ] {
        assert!(!within(text, prefix), "{text} {prefix}");
    }
    assert!(!uri("s3://bucket/x").is_beneath(&[]));
    let climbing = ObjectUri::File("/folder/../etc/passwd".into());
    assert!(!climbing.is_beneath(&["file:///folder/".to_owned()]));
}

#[test]
fn join_stays_beneath() {
    let joined = uri("s3://bucket").join("a/b c").unwrap();
    assert_eq!(joined.to_string(), "s3://bucket/a/b c");
    assert_eq!(joined.join("%2e%2e").unwrap().to_string(), "s3://bucket/a/b c/%2e%2e");
    assert_eq!(uri("file:///a").join("b c/%").unwrap(), ObjectUri::File("/a/b c/%".into()));
}
