//! The last line of defence: what is known to be a secret, or looks like one in an address, is replaced
//! wherever text leaves by a log, a trace or an error. This is the last safeguard: code that
//! holds a secret must not log it in the first place.

use std::{
    borrow::Cow,
    ops::Range,
    sync::{PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use connector::text::is_credential;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use url::Url;

use crate::config::Config;

/// What is shown in a secret's place.
const HIDDEN: &str = "[redacted]";
/// Shorter ones would tear words apart that have nothing to do with them.
const SHORTEST: usize = 8;

/// Longest first: one may be a part of another.
static KNOWN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Parameters of signed links and their like, whose values open what they point at.
const OPENERS: [&str; 14] = [
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "signature",
    "sig",
    "token",
    "access_token",
    "id_token",
    "api_key",
    "apikey",
    "password",
    "secret",
];

/// The text without secrets.
#[must_use]
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    for secret in KNOWN.read().unwrap_or_else(PoisonError::into_inner).iter() {
        if shown.contains(secret) {
            shown = Cow::Owned(shown.replace(secret, HIDDEN));
        }
    }
    let cuts = in_addresses(&shown);
    for cut in cuts.into_iter().rev() {
        shown.to_mut().replace_range(cut, HIDDEN);
    }
    shown
}

/// Where users with their passwords, and values of [`OPENERS`], stand in addresses, from left to right.
fn in_addresses(text: &str) -> Vec<Range<usize>> {
    let end_of = |from: usize, ends: &[char]| {
        let rest = &text[from..];
        let ends =
            |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '<' | '>') || ends.contains(&c);
        from + rest.find(ends).unwrap_or(rest.len())
    };
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for (at, found) in text.match_indices([':', '?', '&']) {
        if cuts.last().is_some_and(|last| at < last.end) {
            // An address in the value of another's parameter, which goes as a whole.
            continue;
        }
        if found == ":" {
            let Some(rest) = text[at..].strip_prefix("://") else { continue };
            let begin = text.len() - rest.len();
            let authority = &text[begin..end_of(begin, &['/', '?', '#'])];
            cuts.extend(authority.rfind('@').map(|length| begin..begin + length));
        } else {
            let begin = at + 1;
            let parameter = &text[begin..end_of(begin, &['&', '?'])];
            let Some((name, value)) = parameter.split_once('=') else { continue };
            if OPENERS.iter().any(|opener| name.eq_ignore_ascii_case(opener)) && !value.is_empty() {
                cuts.push(begin + name.len() + 1..begin + parameter.len());
            }
        }
    }
    cuts
}

/// Takes the secrets out of a text.
pub(crate) fn redact_in_place(text: &mut String) {
    if let Cow::Owned(hidden) = redact(text) {
        *text = hidden;
    }
}

/// Takes the secrets out of every text in `value`, the names of fields excepted.
pub(crate) fn redact_json(value: &mut Value) {
    match value {
        Value::String(text) => redact_in_place(text),
        Value::Array(items) => items.iter_mut().for_each(redact_json),
        Value::Object(fields) => fields.values_mut().for_each(redact_json),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A secret that is known as long as this lives.
#[derive(Debug)]
#[must_use = "dropped, the secret is shown again"]
pub(crate) struct KeptSecret(Vec<String>);

/// Has a secret replaced from now on, in every form that it is likely to be seen in.
pub(crate) fn keep_secret(secret: &SecretString) -> KeptSecret {
    let forms = forms(secret.expose_secret());
    keep(&forms);
    KeptSecret(forms)
}

impl Drop for KeptSecret {
    fn drop(&mut self) {
        let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
        for form in &self.0 {
            if let Some(at) = known.iter().position(|known| known == form) {
                known.remove(at);
            }
        }
    }
}

fn keep(secrets: &[String]) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    known.extend_from_slice(secrets);
    known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
}

/// Has the secrets of this configuration and of the process's environment replaced from now on.
pub(super) fn keep_those_of(config: &Config) {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let secrets =
        of_config(config).into_iter().chain(environment.flat_map(|(name, value)| of_variable(&name, &value)));
    keep(&secrets.flat_map(|secret| forms(&secret)).collect::<Vec<_>>());
}

fn of_config(config: &Config) -> Vec<String> {
    let mut secrets = Vec::new();
    let urls = [Some(&config.amqp.url), config.amqp.management_url.as_ref()];
    for url in urls.into_iter().flatten().filter_map(|url| Url::parse(url.expose_secret()).ok()) {
        let Some(password) = url.password() else { continue };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        // As HTTP has them.
        secrets.push(STANDARD.encode(format!("{}:{}", decoded(url.username()), decoded(password))));
        secrets.push(password.to_owned());
        secrets.push(decoded(password));
    }
    secrets.extend(config.admin.token.iter().map(|token| token.expose_secret().to_owned()));
    secrets.extend(config.comfyui.env.0.iter().flat_map(|(name, value)| of_variable(name, value)));
    secrets
}

/// What of a variable must not be seen.
fn of_variable(name: &str, value: &str) -> Vec<String> {
    let name = name.to_ascii_uppercase();
    if name.starts_with("OTEL_EXPORTER_OTLP") && name.ends_with("HEADERS") {
        let values = value.split(',').filter_map(|header| Some(header.split_once('=')?.1.trim()));
        let decoded = |value: &str| percent_decode_str(value).decode_utf8_lossy().into_owned();
        // `authorization=Bearer%20…`: the words that follow the first are the secret, too.
        return values
            .map(decoded)
            .flat_map(|value| {
                let rest = value.split_once(' ').map(|(_, rest)| rest.to_owned());
                [Some(value), rest].into_iter().flatten().collect::<Vec<_>>()
            })
            .collect();
    }
    // A place where a secret lies is none.
    let place = ["_FILE", "_PATH", "_DIR", "_URI", "_URL"].iter().any(|end| name.ends_with(end));
    if is_credential(&name) && !place { vec![value.to_owned()] } else { Vec::new() }
}

/// How a secret may be written: as it is, in a query, in JSON.
fn forms(secret: &str) -> Vec<String> {
    let secret = secret.trim();
    if secret.len() < SHORTEST {
        return Vec::new();
    }
    let query = utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string();
    let json = Value::from(secret).to_string();
    let json = json.get(1..json.len() - 1).unwrap_or_default().to_owned();
    let mut forms = vec![secret.to_owned(), query, json];
    forms.sort();
    forms.dedup();
    forms
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::config::Sources;

    #[test]
    fn addresses_are_shown_without_what_opens_them() {
        for (text, shown) in [
            (
                "at amqp://worker:a-Long.pass@broker:5672/%2f today",
                "at amqp://[redacted]@broker:5672/%2f today",
            ),
            ("https://user@host/x", "https://[redacted]@host/x"),
            ("https://host/x@y and me@example.org", "https://host/x@y and me@example.org"),
            (
                r#"{"url":"https://h/x?X-Amz-Date=1&X-Amz-Signature=0a1b&X-Amz-Expires=60"}"#,
                r#"{"url":"https://h/x?X-Amz-Date=1&X-Amz-Signature=[redacted]&X-Amz-Expires=60"}"#,
            ),
            ("https://h/x?sig=a%2Fb&se=1", "https://h/x?sig=[redacted]&se=1"),
            ("https://h/x?TOKEN=abc", "https://h/x?TOKEN=[redacted]"),
            ("https://h/x?page=2&design=3", "https://h/x?page=2&design=3"),
            ("nothing = to see", "nothing = to see"),
            ("https://h/?token=https://u:p@h&x=1", "https://h/?token=[redacted]&x=1"),
            ("://é@x ?é &sig=é&", "://[redacted]@x ?é &sig=[redacted]&"),
            ("a://b:c://d@e?token=x?sig=y", "a://b:c://[redacted]@e?token=[redacted]?sig=[redacted]"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn whatever_stands_there_is_cut_in_one_piece() {
        let pieces = [":", "/", "?", "&", "=", "@", "é", "sig", "://"];
        let all = |texts: Vec<String>| {
            texts.iter().flat_map(|text| pieces.map(|piece| format!("{text}{piece}"))).collect::<Vec<_>>()
        };
        let mut texts = vec![String::new()];
        for _ in 0..5 {
            texts = all(texts);
            for text in &texts {
                let shown = redact(text);
                assert!(text.len() >= shown.replace(HIDDEN, "").len(), "{text}: {shown}");
                assert_eq!(redact(&shown), shown, "{text}");
            }
        }
    }

    #[test]
    fn a_kept_secret_is_hidden_in_every_form_until_it_is_dropped() {
        let kept = keep_secret(&"pl/ant\"ed-1".to_owned().into());
        let longer = keep_secret(&"pl/ant\"ed-1-and-more".to_owned().into());
        let text = r#"pl/ant"ed-1 pl%2Fant%22ed%2D1 {"a":"pl/ant\"ed-1"} pl/ant"ed-1-and-more"#;
        assert_eq!(redact(text), r#"[redacted] [redacted] {"a":"[redacted]"} [redacted]"#);
        drop((kept, longer));
        assert_eq!(redact(text), text);
        let _short = keep_secret(&"guest".to_owned().into());
        assert_eq!(redact("a guest"), "a guest");
    }

    #[test]
    fn a_configurations_secrets_are_known() {
        let flags = [
            ("amqp.url", "amqp://worker:plant%2Fed-a@broker/"),
            ("amqp.management_url", "http://worker:planted-m@broker/"),
            ("admin.token", "planted-admin-token"),
            ("comfyui.env", "HF_TOKEN=planted-e,CUDA_VISIBLE_DEVICES=none-at-all"),
        ];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        let config = Config::load(&Sources { flags, ..Sources::default() }).unwrap();
        let basic = STANDARD.encode("worker:plant/ed-a");
        let secrets = of_config(&config);
        for secret in ["plant%2Fed-a", "plant/ed-a", &basic, "planted-m", "planted-admin-token", "planted-e"]
        {
            assert!(secrets.iter().any(|known| known == secret), "{secret}: {secrets:?}");
        }
        assert!(!secrets.iter().any(|secret| secret == "none-at-all" || secret == "worker"));
    }

    #[test]
    fn a_variables_name_says_whether_its_value_is_a_secret() {
        for (name, value, secrets) in [
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t", vec!["s3cr3t"]),
            ("AWS_ACCESS_KEY_ID", "AKIA", vec!["AKIA"]),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token", vec![]),
            ("AWS_REGION", "eu-central-1", vec![]),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Bearer%20abc, x-api-key=def",
                vec!["Bearer abc", "abc", "def"],
            ),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "key=a=b", vec!["a=b"]),
            ("OTEL_SERVICE_NAME", "render-farm", vec![]),
        ] {
            assert_eq!(of_variable(name, value), secrets, "{name}");
        }
    }
}
