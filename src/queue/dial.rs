//! Opens a connection: name resolution, TCP, TLS and the AMQP handshake, within a time limit.

use std::{
    io,
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    tcp::{AsyncTcpStream, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use secrecy::ExposeSecret;
use tokio::{
    net::lookup_host,
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::{BrokerError, QueueError},
    frames::{self, FilteredConnection},
    refusal,
};
use crate::config::AmqpConfig;

/// TCP and TLS; within the whole.
const SOCKET_LIMIT: Duration = Duration::from_secs(8);
const DIAL_LIMIT: Duration = Duration::from_secs(12);
/// Seconds; lapin gives a silent broker up after two of them.
const HEARTBEAT: u16 = 10;

/// A second hold on the connection's socket, to end it when nothing else can.
///
/// Invariant: once cut, no socket is ever kept in it, so that anyone who dialled may give up at any
/// moment, also while lapin's thread is still connecting.
#[derive(Clone, Debug, Default)]
pub(super) struct Socket(Arc<Mutex<Hold>>);

#[derive(Debug, Default)]
enum Hold {
    #[default]
    Dialling,
    Open(TcpStream),
    Cut,
}

impl Socket {
    fn keep(&self, socket: impl AsFd) -> io::Result<()> {
        let copy = socket.as_fd().try_clone_to_owned()?;
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hold::Cut = *hold {
            return Err(io::Error::new(
                io::ErrorKind::Interrupted,
                "nobody waits for the connection any more",
            ));
        }
        *hold = Hold::Open(copy.into());
        Ok(())
    }

    /// Ends the connection at once, and with it lapin's thread, which waits for a silent peer
    /// without a limit during the handshake.
    pub(super) fn cut(&self) {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hold::Open(socket) = std::mem::replace(&mut *hold, Hold::Cut) {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Cuts the socket unless the handshake ended well, also when the dialling is dropped.
struct Dialling(Option<Socket>);

impl Drop for Dialling {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            socket.cut();
        }
    }
}

/// Connects once. `name` is what the broker's connection list shows.
pub(super) async fn dial(config: &AmqpConfig, name: &str) -> Result<(Connection, Socket), QueueError> {
    let address = config.address();
    let mut uri = uri(config)?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT);
    let vhost = uri.vhost.clone();
    let tls = tls(config)?;
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let socket = Socket::default();
    let mut dialling = Dialling(Some(socket.clone()));
    let tokio = async_rs::Runtime::tokio_current();
    let handshake = {
        let socket = socket.clone();
        Connection::connector(
            uri,
            frames::runtime(),
            async move |uri: AMQPUri, _| {
                // The caller may have given up already: this runs on lapin's own thread.
                let deadline = Instant::now() + SOCKET_LIMIT;
                let place = (uri.authority.host.as_str(), uri.authority.port);
                let addresses = timeout_at(deadline, lookup_host(place)).await.map_err(timed_out)??;
                let mut refused = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
                for address in addresses {
                    let stream = match timeout_at(deadline, AsyncTcpStream::connect(&tokio, address)).await {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => {
                            refused = error;
                            continue;
                        }
                        Err(elapsed) => return Err(timed_out(elapsed).into()),
                    };
                    if let AsyncTcpStream::Plain(plain) = &stream {
                        // A small ack must not wait for the peer's delayed TCP acknowledgement.
                        plain.get_ref().set_nodelay(true)?;
                        socket.keep(plain.get_ref())?;
                    }
                    let stream = if uri.scheme == AMQPScheme::AMQP {
                        stream
                    } else {
                        let secured = stream.into_tls(&uri.authority.host, tls.as_ref());
                        timeout_at(deadline, secured).await.map_err(timed_out)??
                    };
                    return Ok(AsyncTcpStream::Plain(FilteredConnection::new(stream)));
                }
                Err(refused.into())
            },
            properties,
        )
    };
    match timeout(DIAL_LIMIT, handshake).await {
        Ok(Ok(connection)) => {
            dialling.0 = None;
            Ok((connection, socket))
        }
        Ok(Err(error)) => Err(explain(&address, &vhost, config.ca_file.as_deref(), error)),
        Err(_) => Err(QueueError::Unavailable(format!("{address} does not answer within {DIAL_LIMIT:?}"))),
    }
}

pub(super) fn uri(config: &AmqpConfig) -> Result<AMQPUri, QueueError> {
    // lapin's own message repeats the URL, password and all.
    let parsed = config.url.expose_secret().parse();
    parsed.map_err(|_| QueueError::Misconfigured(format!("amqp.url ({}): not an AMQP URL", config.address())))
}

fn timed_out(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {SOCKET_LIMIT:?}"))
}

/// Whom to trust beside the system's authorities. Read again for each connection: certificates are renewed.
pub(super) fn tls(config: &AmqpConfig) -> Result<OwnedTLSConfig, QueueError> {
    let read = |file: &PathBuf| {
        std::fs::read_to_string(file).map_err(|error| {
            QueueError::Misconfigured(format!("amqp.ca_file: cannot read {}: {error}", file.display()))
        })
    };
    let cert_chain = config.ca_file.as_ref().map(read).transpose()?;
    Ok(OwnedTLSConfig { cert_chain, ..OwnedTLSConfig::default() })
}

/// Sorts a failed handshake into "change something" and "try again".
fn explain(address: &str, vhost: &str, authority: Option<&Path>, error: lapin::Error) -> QueueError {
    if let ErrorKind::IOError(io) = error.kind() {
        let text = io.to_string();
        return if text.contains("certificate") {
            let hint = match authority {
                None => "name the file of the broker's authority in amqp.ca_file, or trust it in the system's store"
                    .to_owned(),
                Some(file) => format!(
                    "amqp.ca_file ({}) must hold the authority that signed the broker's certificate, and amqp.url \
                     the host name that is in it",
                    file.display()
                ),
            };
            QueueError::Misconfigured(format!("{address}: {text}: {hint}"))
        } else if text.contains("InvalidContentType") {
            QueueError::Misconfigured(format!(
                "{address} does not speak TLS: write amqp:// in amqp.url, or the broker's TLS port"
            ))
        } else if io.kind() == io::ErrorKind::ConnectionAborted {
            // What a TLS listener does with a plain greeting, and a broker that is starting with any.
            QueueError::Unavailable(format!("{address} hangs up (does it want amqps://?)"))
        } else {
            QueueError::Unavailable(format!("cannot reach {address}: {text}"))
        };
    }
    match BrokerError::from(error.clone()).refusal() {
        Some((403, _)) => QueueError::Misconfigured(format!(
            "{address} refuses the user name or the password: correct them in amqp.url"
        )),
        Some((530, text)) if !refusal::is_passing(&text) => {
            let hint = if vhost.is_empty() {
                ": an URL that ends in / names the empty one, leave the / away or write %2f for the default"
            } else {
                ": correct the path of amqp.url, or create it and give the user its permissions"
            };
            QueueError::Misconfigured(format!("{address}: no access to the virtual host {vhost:?}{hint}"))
        }
        Some((_, text)) => QueueError::Unavailable(format!("{address}: {text}")),
        None => QueueError::Unavailable(format!("cannot reach {address}: {error}")),
    }
}
