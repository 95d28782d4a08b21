//! Which web addresses a job may read: those under a prefix of `inputs.allow`.

use std::{net::IpAddr, sync::Arc};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::address::is_never_open;

/// The web addresses among the prefixes of `inputs.allow`.
#[derive(Clone, Debug)]
pub(super) struct Prefixes(Arc<[Url]>);

/// Why a web address is not read, fit for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WebRefusal {
    /// A user name or password: what is sent where is the operator's to say.
    User,
    /// Not under a prefix.
    Elsewhere,
    /// An address that no configuration opens.
    Never,
}

impl WebRefusal {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::User => "a web address must hold neither user nor password",
            Self::Elsewhere => "inputs may not come from there (inputs.allow)",
            Self::Never => "inputs never come from such an address",
        }
    }
}

impl Prefixes {
    pub(super) fn of(allow: &[String]) -> Self {
        let web = allow.iter().filter(|prefix| prefix.starts_with("http"));
        Self(web.filter_map(|prefix| prefix.parse().ok()).collect())
    }

    /// Whether `url` may be asked for. Invariant: a host that is written as an address passes only where
    /// the operator has written that very address.
    pub(super) fn check(&self, url: &Url) -> Result<(), WebRefusal> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebRefusal::User);
        }
        if climbs(url.path()) || !self.0.iter().any(|prefix| lies_beneath(url, prefix)) {
            return Err(WebRefusal::Elsewhere);
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::from(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::from(address)),
            _ => None,
        };
        if address.is_some_and(is_never_open) { Err(WebRefusal::Never) } else { Ok(()) }
    }
}

fn lies_beneath(url: &Url, prefix: &Url) -> bool {
    url.scheme() == prefix.scheme()
        && url.host() == prefix.host()
        && url.port_or_known_default() == prefix.port_or_known_default()
        && url.path().starts_with(prefix.path())
}

/// The parser has resolved `..` and `%2e%2e`; a server may still take `..%2f` for a way up.
fn climbs(path: &str) -> bool {
    let decoded: Vec<u8> = percent_decode_str(path).collect();
    decoded.split(|byte| matches!(byte, b'/' | b'\\')).any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn check(allow: &[&str], url: &str) -> Result<(), WebRefusal> {
        let allow: Vec<String> = allow.iter().map(|prefix| (*prefix).to_owned()).collect();
        Prefixes::of(&allow).check(&url.parse().unwrap())
    }

    #[test]
    fn beneath_a_prefix_and_nowhere_else() {
        let allow = ["s3://", "https://models.example/", "http://files.example:8080/in/", "file://"];
        for url in [
            "https://models.example/x",
            "https://models.example",
            "HTTPS://MODELS.example:443/a/b?token=x#y",
            "http://files.example:8080/in/x",
            "http://files.example:8080/other/../in/x",
        ] {
            assert_eq!(check(&allow, url), Ok(()), "{url}");
        }
        for url in [
            "http://models.example/x",
            "https://models.example:8443/x",
            "https://models.example.evil/x",
            "https://evil/https://models.example/",
            "https://models.example./x",
            "http://files.example/in/x",
            "http://files.example:8080/internal",
            "http://files.example:8080/in/../x",
            "http://files.example:8080/in/%2e%2e/x",
            "http://files.example:8080/in/..%2fx",
            "http://files.example:8080/in/%2e%2e%5cx",
        ] {
            assert_eq!(check(&allow, url), Err(WebRefusal::Elsewhere), "{url}");
        }
    }

    #[test]
    fn users_are_refused() {
        for url in ["https://user@host/x", "https://user:secret@host/x", "https://:secret@host/x"] {
            assert_eq!(check(&["https://host/"], url), Err(WebRefusal::User), "{url}");
        }
    }

    #[test]
    fn addresses_only_where_they_are_written() {
        assert_eq!(check(&["http://127.0.0.1:9000/"], "http://127.0.0.1:9000/x"), Ok(()));
        // Other ways to write the same address.
        assert_eq!(check(&["http://127.0.0.1:9000/"], "http://0x7f.1:9000/x"), Ok(()));
        assert_eq!(check(&["http://[::1]/"], "http://[0:0::1]/x"), Ok(()));
        for url in [
            "http://127.0.0.1/x",
            "http://127.0.0.2:9000/x",
            "http://localhost:9000/x",
            "http://[::1]:9000/x",
        ] {
            assert_eq!(check(&["http://127.0.0.1:9000/"], url), Err(WebRefusal::Elsewhere), "{url}");
        }
        let metadata = "http://169.254.169.254/";
        assert_eq!(check(&[metadata], metadata), Err(WebRefusal::Never));
    }
}
