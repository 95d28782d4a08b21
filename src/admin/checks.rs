//! Checks for all routes: the request's host, and headers that every answer gets.

use std::net::{IpAddr, SocketAddr};

use axum::{
    extract::{Request, State},
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
            X_FRAME_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
/// For whatever says nothing else: it may do nothing, should a browser take it for a page.
const NOTHING: &str =
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox";

/// The names by which the endpoint is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum HostNames {
    /// It listens on loopback: those of this machine. A website that has its own name lead to 127.0.0.1 (DNS
    /// rebinding) would otherwise read everything through a browser here.
    Local,
    /// It listens for others, by names that are not known here.
    Any,
}

impl HostNames {
    /// By where it listens.
    pub(super) fn of(address: SocketAddr) -> Self {
        if address.ip().to_canonical().is_loopback() { Self::Local } else { Self::Any }
    }

    fn fit(self, host: &str) -> bool {
        matches!(self, Self::Any) || is_local(host)
    }
}

/// Whether a `Host` header names this machine, whatever the port: tunnels and port-forwards have others.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Refuses what was sent to another name.
pub(super) async fn check(State(names): State<HostNames>, request: Request, next: Next) -> Response {
    let headers = request.headers().get_all(HOST).into_iter().map(|host| host.to_str().unwrap_or_default());
    let authority = request.uri().authority().map(|authority| authority.as_str());
    // Without any it is HTTP/1.0, which no browser speaks.
    if headers.chain(authority).all(|host| names.fit(host)) {
        return next.run(request).await;
    }
    let told = "this endpoint listens on loopback and answers to localhost and 127.0.0.1 only\n";
    (StatusCode::MISDIRECTED_REQUEST, told).into_response()
}

/// What no answer lacks.
pub(super) async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (X_FRAME_OPTIONS, "DENY"),
        (RESOURCE_POLICY, "same-origin"),
        (OPENER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [(CONTENT_SECURITY_POLICY, NOTHING), (CACHE_CONTROL, "no-store")] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "worker.localhost:1",
            "127.0.0.1",
            "127.8.9.1:9188",
            "[::1]",
            "[::1]:9188",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9188",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "10.0.0.1",
            "0.0.0.0:9188",
            "[::]",
            "[fe80::1]",
            "127.0.0.1@evil.example",
            "evil.example:127.0.0.1",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_public_listener_is_asked_by_any_name() {
        let fits = |address: &str, host| HostNames::of(address.parse().unwrap()).fit(host);
        assert!(fits("0.0.0.0:9188", "worker.example") && fits("[::]:9188", "worker.example"));
        assert!(!fits("127.0.0.1:9188", "worker.example") && !fits("[::1]:9188", "worker.example"));
    }
}
