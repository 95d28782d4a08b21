//! Values as they are written: durations, sizes, lists, hosts, names. An error says what is wrong, fit for one line.

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use contract::ObjectUri;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use secrecy::SecretString;
use url::{Host, Url};

use super::Variables;

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

pub(super) fn existing_file(text: &str) -> Result<PathBuf, String> {
    if Path::new(text).is_file() { path(text) } else { Err(format!("there is no file {text:?}")) }
}

/// A file that holds at least one certificate. It may be replaced while the worker runs.
pub(super) fn certificate_file(text: &str) -> Result<PathBuf, String> {
    let file = existing_file(text)?;
    let cannot = |error: rustls_pki_types::pem::Error| format!("cannot read {text:?}: {error}");
    let certificates = CertificateDer::pem_file_iter(&file).map_err(cannot)?;
    match certificates.collect::<Result<Vec<_>, _>>().map_err(cannot)?.len() {
        0 => Err(format!("{text:?} holds no certificate (-----BEGIN CERTIFICATE-----)")),
        _ => Ok(file),
    }
}

/// `http://` and a trailing `/` are tolerated, as the original tolerated them.
pub(super) fn host(text: &str) -> Result<String, String> {
    let bare = text.trim_start_matches("http://").trim_end_matches('/');
    let bracketed = if bare.parse::<Ipv6Addr>().is_ok() { format!("[{bare}]") } else { bare.to_owned() };
    match Host::parse(&bracketed) {
        // The wildcard is an address to listen on; a client reaches it by loopback.
        Ok(Host::Ipv4(address)) if address.is_unspecified() => Ok("127.0.0.1".into()),
        Ok(Host::Ipv6(address)) if address.is_unspecified() => Ok("[::1]".into()),
        Ok(host) => Ok(host.to_string()),
        Err(_) => Err(format!("{text:?} is no host name or address")),
    }
}

pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    address(text, "the AWS chain (AWS_ACCESS_KEY_ID …)")
}

pub(super) fn collector(text: &str) -> Result<Url, String> {
    address(text, "OTEL_EXPORTER_OTLP_HEADERS")
}

/// `secrets`: where an address's credentials belong.
fn address(text: &str, secrets: &str) -> Result<Url, String> {
    match Url::parse(text) {
        // Not repeated: it holds a password. Without a scheme it is no URL, and may hold one all the same.
        parsed
            if text.contains('@')
                || parsed
                    .as_ref()
                    .is_ok_and(|url| !url.username().is_empty() || url.password().is_some()) =>
        {
            Err(format!("must hold no credentials; they belong into {secrets}"))
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err(format!("{text:?} is no http(s) URL")),
    }
}

/// A filter takes any word for the name of a module; a misspelt level would silence everything.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let plain = |directive: &&str| !directive.contains(['=', '[']);
    if let Some(word) = text.split(',').map(str::trim).filter(plain).find(|word| !is_level(word)) {
        return Err(format!("{word:?} is none of {}", LEVELS.join(", ")));
    }
    let filter = tracing_subscriber::EnvFilter::try_new(text);
    filter.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(value) if !value.is_zero() => Ok(value),
        Ok(_) => Err("must be longer than zero".into()),
        Err(_) => Err(format!("{text:?} is no duration with a unit")),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        number => number.map_err(|_| format!("{text:?} is no whole number")),
    }
}

/// `2GiB`, `500MB`, `1024`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = text.get(digits.len()..).unwrap_or_default().trim();
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(format!("{unit:?} is no unit of bytes")),
    };
    match digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor)) {
        Some(0) | None => Err(format!("{text:?} is no number of bytes")),
        Some(count) => Ok(count),
    }
}

/// Items divided by commas; `\,` is a comma within an item, `\\` a backslash.
pub(super) fn list(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let c = match (c, rest.peek()) {
            (',', _) => {
                items.push(String::new());
                continue;
            }
            ('\\', Some(',' | '\\')) => rest.next().unwrap_or(c),
            _ => c,
        };
        if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

pub(super) fn variables(text: &str) -> Result<Variables, String> {
    let pairs = list(text).into_iter().enumerate().map(|(index, item)| match item.split_once('=') {
        Some((name, value)) if is_variable(name) => Ok((name.to_owned(), value.to_owned())),
        // Not repeated: it may be the rest of a credential that holds a comma.
        _ => Err(format!("item {} is no NAME=VALUE (a comma within a value is written `\\,`)", index + 1)),
    });
    pairs.collect::<Result<_, _>>().map(Variables)
}

pub(super) fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Prefixes of addresses in a store.
pub(super) fn store_prefixes(text: &str) -> Result<Vec<String>, String> {
    list(text).into_iter().map(store_prefix).collect()
}

/// Prefixes of addresses in a store or in the web.
pub(super) fn input_prefixes(text: &str) -> Result<Vec<String>, String> {
    let is_web = |prefix: &String| prefix.starts_with("http://") || prefix.starts_with("https://");
    let check = |prefix: String| if is_web(&prefix) { web_prefix(prefix) } else { store_prefix(prefix) };
    list(text).into_iter().map(check).collect()
}

/// A prefix must end at a boundary, or `s3://in` would also open the bucket `internal`.
fn store_prefix(prefix: String) -> Result<String, String> {
    match prefix.split_once("://") {
        Some(("s3" | "file", "")) => Ok(prefix),
        Some(("s3" | "file", _)) if !prefix.ends_with('/') => Err(format!("{prefix:?} must end with /")),
        Some(("s3" | "file", _)) => match prefix.parse::<ObjectUri>() {
            Ok(_) => Ok(prefix),
            Err(error) => Err(error.to_string()),
        },
        Some(("http" | "https", _)) => Err(format!("{prefix:?}: nothing is written to web hosts")),
        _ => Err(format!("{prefix:?} is no URI prefix")),
    }
}

/// `https://host/`, `https://host:8443/folder/`
fn web_prefix(prefix: String) -> Result<String, String> {
    match Url::parse(&prefix) {
        // Not repeated: it holds a password.
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err("a web prefix must hold neither user nor password".into())
        }
        Ok(url) if url.has_host() && url.query().is_none() && url.fragment().is_none() => {
            if prefix.ends_with('/') { Ok(prefix) } else { Err(format!("{prefix:?} must end with /")) }
        }
        _ => Err(format!("{prefix:?} names no web host, such as https://host/")),
    }
}

pub(super) fn amqp_url(text: &str) -> Result<SecretString, String> {
    // The text may hold a password: it is not repeated in the message.
    match Url::parse(text) {
        Ok(url)
            if matches!(url.scheme(), "amqp" | "amqps")
                && url.host_str().is_some_and(|host| !host.is_empty()) =>
        {
            Ok(text.to_owned().into())
        }
        _ => Err("is no amqp:// or amqps:// URL".into()),
    }
}

pub(super) fn management_url(text: &str) -> Result<SecretString, String> {
    // The text may hold a password: it is not repeated in the message.
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(text.to_owned().into()),
        _ => Err("is no http(s) URL".into()),
    }
}

/// AMQP short strings hold 255 bytes; `.dead.notices` is appended to the queue's.
pub(super) fn broker_name(text: &str) -> Result<String, String> {
    if text.len() > 240 { Err("is longer than 240 bytes".into()) } else { Ok(text.to_owned()) }
}

pub(super) fn worker_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.len() <= 128 && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} must be 1-128 of A-Z a-z 0-9 . _ -"))
    }
}
