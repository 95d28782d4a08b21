//! An HTTP proxy in front of the S3 server that spoils answers on command.
//!
//! Rules are used up one after the other: each spoils the next so many requests that match it. A
//! request passes as it came, its `Host` too, or its signature would not hold.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

use crate::background;

/// More than any body of a test.
const LARGEST_BODY: usize = 256 << 20;

/// How a request is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// Not passed on; answered with this status and S3's code for it: 503 `SlowDown`, 500, 409
    /// `ConditionalRequestConflict`, 412 `PreconditionFailed`, 403 `AccessDenied`, 404 …
    Refuse(u16),
    /// Passed on and carried out, but answered `500`: the next try finds its own work.
    LoseAnswer,
    /// The answer's body breaks off after so many bytes.
    Truncate(usize),
    /// One byte of the answer's body is another: its checksum is wrong.
    Corrupt,
    /// Answered so much later.
    Delay(Duration),
}

#[derive(Clone, Debug)]
struct Rule {
    /// The beginning of `METHOD /bucket/key`.
    says: String,
    spoil: Spoil,
    left: usize,
}

/// The proxy; it ends when this is dropped.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    rules: Arc<Mutex<Vec<Rule>>>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Passage {
    upstream: SocketAddr,
    client: reqwest::Client,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl Front {
    /// A proxy on a free loopback port to the HTTP server at `upstream`, without a rule.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        let listener = background::run(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .await?
            .context("no loopback port for the store's front")?;
        let address = listener.local_addr()?;
        let rules = Arc::<Mutex<Vec<Rule>>>::default();
        let client = reqwest::Client::builder().no_gzip().redirect(reqwest::redirect::Policy::none());
        let passage = Passage { upstream, client: client.build()?, rules: Arc::clone(&rules) };
        let routes = Router::new().fallback(answer).with_state(passage);
        let server = background::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        })?;
        Ok(Self { address, rules, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spoils the next `count` requests whose `METHOD /bucket/key?query` begins with `says`.
    pub fn spoil(&self, says: impl Into<String>, spoil: Spoil, count: usize) {
        let rule = Rule { says: says.into(), spoil, left: count };
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// How many requests are still to be spoilt.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|rule| rule.left).sum()
    }

    /// Forgets the rules that spoil like this, and no others.
    pub fn lift_all(&self, spoil: Spoil) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).retain(|rule| rule.spoil != spoil);
    }

    /// Forgets every rule.
    pub fn lift(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Passage {
    fn spoil(&self, request: &str) -> Option<Spoil> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && request.starts_with(&rule.says))?;
        rule.left -= 1;
        Some(rule.spoil)
    }

    async fn forward(&self, method: Method, path: &str, headers: HeaderMap, body: Bytes) -> Result<Response> {
        let url = format!("http://{}{path}", self.upstream);
        let answer = self.client.request(method, url).headers(headers).body(body).send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let mut response = answer.bytes().await?.into_response();
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        Ok(response)
    }
}

async fn answer(State(passage): State<Passage>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let spoil = passage.spoil(&format!("{} {path}", head.method));
    // Read to its end in every case: an answer before that resets the connection under the sender.
    let Ok(body) = to_bytes(body, LARGEST_BODY).await else { return StatusCode::BAD_REQUEST.into_response() };
    if let Some(Spoil::Refuse(status)) = spoil {
        return refusal(status);
    }
    let mut headers = head.headers;
    headers.remove(header::TRANSFER_ENCODING);
    let Ok(answer) = passage.forward(head.method, &path, headers, body).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    match spoil {
        None | Some(Spoil::Refuse(_)) => answer,
        Some(Spoil::LoseAnswer) => refusal(500),
        Some(Spoil::Delay(time)) => {
            sleep(time).await;
            answer
        }
        Some(Spoil::Truncate(bytes)) => {
            with_body(answer, |body| {
                let start = body.slice(..bytes.min(body.len()));
                // A moment later: an error at once would go out in place of what was to come before.
                let broken = stream::once(async {
                    tokio::task::yield_now().await;
                    Err(std::io::Error::other("the answer breaks off"))
                });
                Body::from_stream(stream::iter([Ok(start)]).chain(broken))
            })
            .await
        }
        Some(Spoil::Corrupt) => {
            with_body(answer, |body| {
                let mut bytes = body.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                bytes.into()
            })
            .await
        }
    }
}

/// The same answer, its head unchanged, with another body.
async fn with_body(answer: Response, spoil: impl FnOnce(Bytes) -> Body) -> Response {
    let (head, body) = answer.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    Response::from_parts(head, spoil(body))
}

fn refusal(status: u16) -> Response {
    let code = match status {
        403 => "AccessDenied",
        404 => "NoSuchKey",
        409 => "ConditionalRequestConflict",
        412 => "PreconditionFailed",
        503 => "SlowDown",
        _ => "InternalError",
    };
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>told to by a test</Message></Error>"
    );
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}
