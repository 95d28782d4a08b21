//! A web server on loopback: files with versions and ranges, and what misbehaves.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::contract::sha256;

/// What lies at an address.
#[derive(Clone, Debug)]
pub(crate) enum Page {
    File(Vec<u8>),
    /// Each answer breaks off after so many bytes, while the list lasts.
    Broken(Vec<u8>, Vec<usize>),
    /// The first answer stops after so many bytes and says no more.
    Stuck(Vec<u8>, Option<usize>),
    Redirect(String),
    Status(u16),
}

/// The server; it ends when this is dropped.
pub(crate) struct Website {
    address: SocketAddr,
    state: Shared,
    _server: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    pages: BTreeMap<String, Page>,
    asked: Vec<String>,
}

impl Website {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Shared::default();
        let routes = Router::new().fallback(answer).with_state(state.clone());
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { address, state, _server: AbortOnDropHandle::new(server) })
    }

    /// `http://127.0.0.1:PORT/path`
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Puts a page there; its address.
    pub(crate) fn put(&self, path: &str, page: Page) -> String {
        self.known(|known| known.pages.insert(path.to_owned(), page));
        self.url(path)
    }

    /// Requests for a path: its query and its range each.
    pub(crate) fn asked(&self, path: &str) -> Vec<String> {
        let of_path = |asked: &&String| asked.split(['?', ' ']).next() == Some(path);
        self.known(|known| known.asked.iter().filter(of_path).cloned().collect())
    }

    /// All requests.
    pub(crate) fn all_asked(&self) -> Vec<String> {
        self.known(|known| known.asked.clone())
    }

    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.state.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn answer(State(state): State<Shared>, request: Request) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut known = state.0.lock().unwrap_or_else(PoisonError::into_inner);
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    known.asked.push(format!("{path}{query} {}", header(header::RANGE)));
    let Some(page) = known.pages.get_mut(&path) else { return StatusCode::NOT_FOUND.into_response() };
    let (content, end) = match page {
        Page::File(content) => (content, End::Good),
        Page::Broken(content, after) if after.is_empty() => (content, End::Good),
        Page::Broken(content, after) => (content, End::Breaks(after.remove(0))),
        Page::Stuck(content, after) => (content, after.take().map_or(End::Good, End::Stays)),
        Page::Redirect(to) => return (StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response(),
        Page::Status(status) => {
            return StatusCode::from_u16(*status).unwrap_or(StatusCode::IM_A_TEAPOT).into_response();
        }
    };
    let etag = format!("\"{}\"", sha256(content));
    let same = ["", etag.as_str()].contains(&header(header::IF_RANGE));
    let from =
        header(header::RANGE).strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
    let from = from.filter(|from| same && *from < content.len());
    let rest = content[from.unwrap_or(0)..].to_vec();
    let length = rest.len();
    let body = match end {
        End::Good => Body::from(rest),
        End::Breaks(after) => {
            let start = Bytes::copy_from_slice(&rest[..after.min(length)]);
            // A moment later: an error at once would go out in place of what was to come before.
            let broken = stream::once(async {
                tokio::task::yield_now().await;
                Err(std::io::Error::other("told to"))
            });
            Body::from_stream(stream::iter([Ok(start)]).chain(broken))
        }
        End::Stays(after) => {
            let start = Bytes::copy_from_slice(&rest[..after.min(length)]);
            let nothing = stream::once(std::future::pending::<std::io::Result<Bytes>>());
            Body::from_stream(stream::iter([Ok(start)]).chain(nothing))
        }
    };
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut answer = (status, [(header::ETAG, etag)], body).into_response();
    answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if let Some(from) = from {
        let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
        answer.headers_mut().extend(range.parse().ok().map(|range| (header::CONTENT_RANGE, range)));
    }
    answer
}

enum End {
    Good,
    Breaks(usize),
    Stays(usize),
}
