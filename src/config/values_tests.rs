//! The forms that single values may have.

use super::*;

#[test]
fn sizes_of_bytes() {
    let bytes = |text: &str| flags(&[("inputs.max_bytes", text)]).map(|config| config.inputs.max_bytes).ok();
    for (text, expected) in [
        ("1024", 1024),
        ("7B", 7),
        ("500MB", 500_000_000),
        ("2 GiB", 2 << 30),
        ("3KiB", 3 << 10),
        ("1TB", 1_000_000_000_000),
        ("4TiB", 4 << 40),
    ] {
        assert_eq!(bytes(text), Some(expected), "{text}");
    }
    for text in ["0", "-1", "1.5GiB", "GiB", "2gib", "2XB", "99999999999999999999", "99999999TiB", "1e3"] {
        assert_eq!(bytes(text), None, "{text}");
    }
    assert!(mistake("inputs.max_bytes", "2XB").contains("for example: 512MiB"));
}

#[test]
fn durations() {
    let timeout = |text: &str| flags(&[("job.timeout", text)]).map(|config| config.job.timeout).ok();
    assert_eq!(timeout("90s"), Some(Duration::from_secs(90)));
    assert_eq!(timeout("1h 30m"), Some(Duration::from_secs(5400)));
    assert_eq!(timeout("250ms"), Some(Duration::from_millis(250)));
    for text in ["0s", "-1s", "15", "1e3s", "s", "99999999999999999999h", "NaN"] {
        assert_eq!(timeout(text), None, "{text}");
    }
}

#[test]
fn hosts() {
    let host = |text: &str| flags(&[("comfyui.host", text)]).map(|config| config.comfyui.host).ok();
    for (text, expected) in [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("http://127.0.0.1/", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("::", "[::1]"),
        ("gpu-7.internal", "gpu-7.internal"),
    ] {
        assert_eq!(host(text).as_deref(), Some(expected), "{text}");
    }
    for text in ["https://x", "a/b", "user@host", "a?b", "a b", "host:8188", "http://", "[::1"] {
        assert_eq!(host(text), None, "{text}");
    }
}

#[test]
fn prefixes_end_at_a_boundary() {
    let allow = |text: &str| flags(&[("inputs.allow", text)]).map(|config| config.inputs.allow).ok();
    for text in ["s3://", "file://", "s3://inputs/", "s3://inputs/a/b/", "file:///srv/in/"] {
        assert_eq!(allow(text).as_deref(), Some([text.to_owned()].as_slice()), "{text}");
    }
    for text in
        ["s3://inputs", "in/", "https://host", "ftp://x/", "s3://X!/", "s3://inputs//b/", "file://host/x/"]
    {
        assert_eq!(allow(text), None, "{text}");
        assert_eq!(flags(&[("outputs.allow", text)]).map(|_| ()).ok(), None, "{text}");
    }
}

#[test]
fn web_hosts_are_read_and_not_written() {
    for text in ["https://host/", "http://127.0.0.1:9000/in/", "https://[::1]/", "https://host:8443/a/b/"] {
        assert_eq!(flags(&[("inputs.allow", text)]).unwrap().inputs.allow, [text], "{text}");
        assert_eq!(flags(&[("outputs.allow", text)]).map(|_| ()).ok(), None, "{text}");
    }
    for text in
        ["https://", "https:///", "https://host/a", "https://host/?x/", "https://host/#/", "http://a b/"]
    {
        assert_eq!(flags(&[("inputs.allow", text)]).map(|_| ()).ok(), None, "{text}");
    }
    let refused = flags(&[("inputs.allow", "https://user:hunter2@host/")]).unwrap_err().to_string();
    assert!(refused.contains("password") && !refused.contains("hunter2"), "{refused}");
}

#[test]
fn a_program_comes_by_https_and_an_endpoint_without_a_scheme_is_not_repeated() {
    let refused =
        flags(&[("browser.download", "http://mirror.example/builds.json")]).unwrap_err().to_string();
    assert!(refused.contains("browser.download") && refused.contains("https://"), "{refused}");
    for source in
        ["https://mirror.example/x", "http://127.0.0.1:9/x", "http://[::1]:9/x", "http://localhost/x"]
    {
        assert!(flags(&[("browser.download", source)]).is_ok(), "{source}");
    }
    for endpoint in ["AKIA:hunter2@store.example", "user:hunter2@127.0.0.1:9000", "http://user:hunter2@host"]
    {
        let refused = flags(&[("store.endpoint", endpoint)]).unwrap_err().to_string();
        assert!(refused.contains("must hold no credentials") && !refused.contains("hunter2"), "{refused}");
    }
}

#[test]
fn a_token_that_could_be_guessed_is_refused() {
    let refused = flags(&[("admin.token", "hunter2")]).unwrap_err().to_string();
    assert!(
        refused.contains("admin.token: it has less than 16") && !refused.contains("hunter2"),
        "{refused}"
    );
    assert!(flags(&[("admin.token", "0123456789abcdef")]).is_ok());
}

#[test]
fn store_addresses() {
    let store = |pairs: &[(&str, &str)]| flags(pairs).map(|config| config.store);
    let here =
        store(&[("store.uri", "s3://bucket/a/"), ("store.endpoint", "http://127.0.0.1:9000")]).unwrap();
    assert_eq!(here.uri.unwrap().to_string(), "s3://bucket/a");
    // An endpoint of one's own seldom has buckets in its host names.
    assert!(here.path_style);
    let aws = [("store.endpoint", "https://s3.example"), ("store.path_style", "no")];
    assert!(!store(&aws).unwrap().path_style);
    for text in ["bucket", "http://bucket", "s3://", "s3://B/x", "file://", "s3://bucket/../x"] {
        assert!(mistake("store.uri", text).contains("for example: s3://bucket/prefix"), "{text}");
    }
    for text in ["127.0.0.1:9000", "ftp://host", "http://"] {
        assert!(store(&[("store.endpoint", text)]).is_err(), "{text}");
    }
}

#[test]
fn other_values() {
    for (key, value, expected) in [
        ("comfyui.command", "python3 'main.py", "missing closing quote"),
        ("browser.executable", "no/such/chromium", "there is no file \"no/such/chromium\""),
        ("admin.listen", "9188", "\"9188\" is no ADDRESS:PORT"),
        ("amqp.delivery_limit", "0", "must be at least 1"),
        ("amqp.lookahead", "2", "is none of auto, 0, 1"),
        ("amqp.delivery_limit", "-1", "is no whole number"),
        ("amqp.url", "amqp:///vhost", "is no amqp:// or amqps:// URL"),
        ("job.max_attempts", "0", "must be at least 1"),
        ("worker.id", "gpu 7", "must be 1-128 of"),
        ("log.level", "verbose", "\"verbose\" is none of off, error, warn"),
        ("log.level", "a=b=c", ""),
        ("log.format", "xml", "\"xml\" is none of auto, text, json"),
        ("comfyui.env", "9X=1", "item 1 is no NAME=VALUE"),
    ] {
        assert!(mistake(key, value).contains(expected), "{key}: {}", mistake(key, value));
    }
    assert!(mistake("amqp.queue", &"q".repeat(241)).contains("longer than 240 bytes"));
    let config = flags(&[("admin.listen", "off"), ("log.level", "comfy_worker=debug,WARN")]).unwrap();
    assert_eq!((config.admin.listen, config.log.level.as_str()), (None, "comfy_worker=debug,WARN"));
}

#[test]
fn an_authority_is_a_file_with_certificates() {
    let fixture = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(name);
        path.to_str().unwrap().to_owned()
    };
    let authority = fixture("authority.pem");
    assert_eq!(flags(&[("amqp.ca_file", &authority)]).unwrap().amqp.ca_file, Some(authority.into()));
    assert!(mistake("amqp.ca_file", "no/such.pem").starts_with("there is no file \"no/such.pem\" (flag"));
    let other = mistake("amqp.ca_file", &fixture("connector-basic.json"));
    assert!(other.contains("holds no certificate"), "{other}");
    assert!(other.ends_with("for example: /etc/ssl/broker-ca.pem"), "{other}");
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(mistake("amqp.ca_file", key.path().to_str().unwrap()).contains("holds no certificate"));
    std::fs::write(key.path(), "-----BEGIN CERTIFICATE-----\nAA!A\n").unwrap();
    assert!(mistake("amqp.ca_file", key.path().to_str().unwrap()).contains("cannot read"));
}

#[test]
fn a_chromium_is_installed_into_the_state_folder_where_allowed() {
    assert_eq!(flags(&[("browser.download", "https://mirror.example/c.zip")]).unwrap().browser.install, None);
    let allowed = [("browser.auto_install", "true"), ("worker.state_dir", "/state")];
    let install = flags(&allowed).unwrap().browser.install.unwrap();
    assert!(install.source.as_str().starts_with("https://googlechromelabs.github.io/"), "{install:?}");
    assert_eq!(install.folder, absolute("/state/chromium"));
    assert!(mistake("browser.download", "ftp://mirror.example/c.zip").contains("no http(s) URL"));
}

#[test]
fn folders_of_comfyui() {
    let folders = |pairs: &[(&str, &str)]| flags(pairs).unwrap().comfyui;
    let both = folders(&[("comfyui.workdir", "/opt/ComfyUI")]);
    assert_eq!(
        (both.workdir.as_path(), both.path.as_path()),
        (Path::new("/opt/ComfyUI"), Path::new("/opt/ComfyUI"))
    );
    let apart = folders(&[
        ("comfyui.workdir", "app"),
        ("comfyui.path", "/data"),
        ("comfyui.test_workflow", "t.json"),
    ]);
    assert_eq!((apart.workdir, apart.path), (absolute("app"), "/data".into()));
    // The original starts in its workdir and reads the test workflow from there.
    assert_eq!(apart.test_workflow, Some(absolute("app").join("t.json")));
}
