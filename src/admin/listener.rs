//! Connections to the endpoint: a bounded number, each with a limit for the head of a request. Half a request, or
//! thousands of them, must stop neither probes nor jobs.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

/// A reader that takes nothing of what was sent to it for so long is cut off.
const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// For the head of a request, since its connection came or since the answer before.
const HEAD_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });
/// Bytes of it.
const LARGEST_HEAD: usize = 32 << 10;
/// Open at a time, pages that listen among them. For one more one goes.
const MAX_CONNECTIONS: usize = 128;
/// So many of them may be silent: nothing has been asked by them yet. More make room themselves, the oldest first; so few
/// are never in the way of a probe that has only just connected.
const MAX_SILENT: usize = 64;
/// After a connection could not be taken: there may be no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers by `routes` until `closed`, which ends open connections too.
pub(super) async fn answer(listener: TcpListener, routes: Router, closed: CancellationToken) {
    let open = Open::default();
    loop {
        let accepted = tokio::select! {
            () = closed.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => open.take(stream, Peer(peer), &routes, &closed),
            Err(error) => {
                tracing::debug!(%error, "the admin endpoint cannot take a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The open connections, the oldest first.
#[derive(Default)]
struct Open(Mutex<VecDeque<Connection>>);

struct Connection {
    from: IpAddr,
    task: AbortHandle,
    /// Whether a whole request has come by it.
    asked: Arc<AtomicBool>,
}

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

impl Open {
    fn take(&self, stream: TcpStream, peer: Peer, routes: &Router, closed: &CancellationToken) {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| !connection.task.is_finished());
        if connections.len() >= MAX_CONNECTIONS {
            let at = dispensable(&connections);
            if let Some(dispensable) = connections.remove(at) {
                dispensable.task.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let serving = serve(stream, peer, routes.clone(), Arc::clone(&asked), closed.clone());
        let from = peer.0.ip();
        connections.push_back(Connection { from, task: tokio::spawn(serving).abort_handle(), asked });
    }
}

/// Which of them goes: the oldest silent one where many are; else the oldest of the address that has most, so that nobody
/// can take all and keep others out.
fn dispensable(connections: &VecDeque<Connection>) -> usize {
    let is_silent = |connection: &Connection| !connection.asked.load(Ordering::Relaxed);
    let mut by_peer = HashMap::<_, Vec<usize>>::new();
    let (mut silent, mut oldest_silent) = (0, 0);
    for (at, connection) in connections.iter().enumerate().rev() {
        if is_silent(connection) {
            (silent, oldest_silent) = (silent + 1, at);
        } else {
            by_peer.entry(connection.from).or_default().push(at);
        }
    }
    let greedy = by_peer.into_values().max_by_key(Vec::len);
    greedy.filter(|_| silent <= MAX_SILENT).and_then(|of_it| of_it.last().copied()).unwrap_or(oldest_silent)
}

async fn serve(
    stream: TcpStream,
    peer: Peer,
    routes: Router,
    asked: Arc<AtomicBool>,
    closed: CancellationToken,
) {
    let silence = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
    if let Err(error) = set_tcp_user_timeout(&stream, silence) {
        tracing::debug!(%error, "cannot set a send timeout on an admin connection");
    }
    let answer = service_fn(move |mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(peer);
        routes.clone().call(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin endpoint ended");
    }
}
