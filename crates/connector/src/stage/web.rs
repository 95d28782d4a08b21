//! Inputs from the web: only under `inputs.allow`, at every step of a redirect, and by name only from
//! public addresses.
//!
//! A web address may be a signed link, which is a secret: messages and logs show it without its query.

mod address;
mod download;
mod prefixes;

use std::{
    error::Error,
    sync::{Arc, OnceLock},
    time::Duration,
};

use contract::{failure::Failure, text::one_line};
use reqwest::{Client, Response, StatusCode, header, redirect::Policy};
use tokio::time::{sleep, timeout};
use url::Url;

use super::fetch::OpenError;
use crate::store::Object;
use address::{NotPublic, PublicResolver};
use download::WebDownload;
use prefixes::Prefixes;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// From a request to the head of its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 5;
const TRIES: u32 = 5;
/// The first pause between tries; they double.
const BACKOFF: Duration = Duration::from_millis(200);
/// The longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a source is read by [`Web`].
pub(super) fn is_web(source: &str) -> bool {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"))
}

/// Whether a source is a web address that jobs may read.
pub(super) fn is_open(source: &str, allow: &[String]) -> bool {
    is_web(source) && source.parse().is_ok_and(|url| Prefixes::of(allow).check(&url).is_ok())
}

/// A web address without what may be a secret: user, password, query and fragment.
pub(super) fn shown(source: &str) -> String {
    source.parse().map_or_else(|_| "a web address".to_owned(), |url| shown_url(&url))
}

fn shown_url(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    one_line(&format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path()), 300)
}

/// Reads web addresses. Clones share their connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Web {
    /// Made when it is first used: most workers read nothing from the web.
    client: Arc<OnceLock<Result<Client, String>>>,
}

/// What ended one try.
#[derive(Debug)]
enum FetchError {
    Refused(Failure),
    /// Not the version that was asked for.
    Changed,
    /// Worth another try, after this pause at least.
    Unavailable {
        reason: String,
        pause: Duration,
    },
}

impl Web {
    /// Opens `source` from byte `offset` on, in this version, where one is given.
    pub(super) async fn open(
        &self,
        source: &str,
        allow: &[String],
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, OpenError> {
        let asked = self.asked(source, allow)?;
        Ok(WebDownload::start(asked, offset, version).await?.into_object())
    }

    /// What [`Web::open`] would call the version, without the body. Asks for the first byte of it: a
    /// signed link opens a GET only.
    pub(super) async fn version(&self, source: &str, allow: &[String]) -> Result<Option<String>, OpenError> {
        let answer = self.asked(source, allow)?.answer("bytes=0-0", None).await?;
        Ok(version_of(&answer))
    }

    fn asked(&self, source: &str, allow: &[String]) -> Result<WebRequest, Failure> {
        let url: Url = source.parse().map_err(|error: url::ParseError| {
            Failure::UnsupportedUri(format!("a web address that cannot be read: {error}"))
        })?;
        let client = self.client.get_or_init(client).clone().map_err(Failure::Local)?;
        let asked = WebRequest { client, prefixes: Prefixes::of(allow), url };
        asked.check(&asked.url)?;
        Ok(asked)
    }
}

fn client() -> Result<Client, String> {
    let client = Client::builder()
        // A proxy would look the names up itself, past the check of their addresses.
        .no_proxy()
        .dns_resolver(Arc::new(PublicResolver))
        // Followed by hand: each step is checked.
        .redirect(Policy::none())
        .referer(false)
        .no_gzip()
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(concat!("comfy-worker/", env!("CARGO_PKG_VERSION")));
    client.build().map_err(|error| format!("no client for web inputs: {}", innermost(&error)))
}

/// A web address that a job asks for, and what may be read on its behalf.
#[derive(Debug)]
struct WebRequest {
    client: Client,
    prefixes: Prefixes,
    url: Url,
}

impl WebRequest {
    fn shown(&self) -> String {
        shown_url(&self.url)
    }

    fn check(&self, url: &Url) -> Result<(), Failure> {
        let closed = match self.prefixes.check(url) {
            Ok(()) => return Ok(()),
            Err(closed) => closed,
        };
        if *url == self.url {
            return Err(Failure::InputForbidden(format!("{}: {}", self.shown(), closed.reason())));
        }
        // Where it leads is for the operator to see: the publisher may be a stranger to that network.
        tracing::warn!(
            from = self.shown(),
            to = shown_url(url),
            "an input redirects to where none may come from"
        );
        Err(Failure::InputForbidden(format!(
            "{}: redirects to where inputs may not come from (inputs.allow)",
            self.shown()
        )))
    }

    /// A 200 or 206, after as many tries as that takes.
    async fn answer(&self, range: &str, version: Option<&str>) -> Result<Response, OpenError> {
        let mut tries = 0;
        loop {
            let (reason, pause) = match self.follow(range, version).await {
                Ok(answer) => return Ok(answer),
                Err(FetchError::Changed) => return Err(OpenError::Changed),
                Err(FetchError::Refused(failure)) => return Err(failure.into()),
                Err(FetchError::Unavailable { reason, pause }) => (reason, pause),
            };
            tries += 1;
            if tries == TRIES {
                return Err(Failure::InputUnavailable(format!("{}: {reason}", self.shown())).into());
            }
            tracing::debug!(input = self.shown(), reason, tries, "retrying a web input");
            sleep(pause.max(BACKOFF * (1 << (tries - 1)))).await;
        }
    }

    /// One try, through its redirects. Nothing but the range goes along, wherever it leads.
    async fn follow(&self, range: &str, version: Option<&str>) -> Result<Response, FetchError> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            self.check(&url).map_err(FetchError::Refused)?;
            let mut request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if !range.is_empty() {
                request = request.header(header::RANGE, range);
            }
            if let Some(version) = version {
                request = request.header(header::IF_RANGE, version);
            }
            let answer = match timeout(ANSWER_LIMIT, request.send()).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => return Err(self.unsent(&error)),
                Err(_) => return Err(unavailable(format!("no answer within {ANSWER_LIMIT:?}"))),
            };
            match self.next(&url, &answer).map_err(FetchError::Refused)? {
                Some(next) => url = next,
                None => return self.judge(answer),
            }
        }
        Err(self.refused(Failure::InputForbidden, &format!("more than {REDIRECTS} redirects")))
    }

    /// Where a redirect leads.
    fn next(&self, url: &Url, answer: &Response) -> Result<Option<Url>, Failure> {
        if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let location = answer.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok());
        let next = next.filter(|next| is_web(next.as_str())).ok_or_else(|| {
            Failure::InputForbidden(format!("{}: redirects to no web address", self.shown()))
        })?;
        if url.scheme() == "https" && next.scheme() != "https" {
            return Err(Failure::InputForbidden(format!("{}: redirects away from https", self.shown())));
        }
        Ok(Some(next))
    }

    fn judge(&self, answer: Response) -> Result<Response, FetchError> {
        let status = answer.status();
        match status.as_u16() {
            200 | 206 => {}
            404 | 410 => return Err(self.refused(Failure::InputNotFound, "not found")),
            401 | 403 => {
                return Err(self.refused(Failure::InputForbidden, &format!("access denied ({status})")));
            }
            // A range beyond its end, or a condition that does not hold: not what was begun.
            412 | 416 => return Err(FetchError::Changed),
            408 | 425 | 429 | 500..=599 => {
                let pause = asked_pause(&answer);
                return Err(FetchError::Unavailable {
                    reason: format!("the server answers {status}"),
                    pause,
                });
            }
            _ => return Err(self.refused(Failure::Invalid, &format!("the server answers {status}"))),
        }
        let encoding = answer.headers().get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(self.refused(Failure::Invalid, "the server compresses it, which was not asked for"));
        }
        Ok(answer)
    }

    fn refused(&self, failure: fn(String) -> Failure, reason: &str) -> FetchError {
        FetchError::Refused(failure(format!("{}: {reason}", self.shown())))
    }

    /// A request without an answer.
    fn unsent(&self, error: &reqwest::Error) -> FetchError {
        if causes(error).any(|cause| cause.is::<NotPublic>()) {
            return self.refused(Failure::InputForbidden, &NotPublic.to_string());
        }
        // The causes name addresses within the worker's network.
        tracing::debug!(input = self.shown(), error = innermost(error), "a web input cannot be reached");
        unavailable(broken(error).to_owned())
    }
}

/// How the transfer failed, in words that tell nothing of the network here.
fn broken(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "the server did not answer in time"
    } else if error.is_connect() {
        "no connection to the server"
    } else {
        "the connection broke"
    }
}

fn unavailable(reason: String) -> FetchError {
    FetchError::Unavailable { reason, pause: Duration::ZERO }
}

fn asked_pause(answer: &Response) -> Duration {
    let seconds =
        answer.headers().get(header::RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    seconds.map_or(Duration::ZERO, |seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// What changes when the content does: the ETag, else the time of the last change.
fn version_of(answer: &Response) -> Option<String> {
    let text = |name| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
    text(header::ETAG).or_else(|| text(header::LAST_MODIFIED))
}

fn is_partial(answer: &Response) -> bool {
    answer.status() == StatusCode::PARTIAL_CONTENT
}

fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(Some(error as &(dyn Error + 'static)), |error: &&(dyn Error + 'static)| {
        (*error).source()
    })
}

/// reqwest's own text holds the address that was asked for.
fn innermost(error: &reqwest::Error) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
#[path = "web/tests.rs"]
mod tests;
