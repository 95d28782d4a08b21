//! What the broker sends, made fit for lapin's parser before it gets there.
//!
//! Anyone who may publish may put any bytes into a message's headers and routing key: RabbitMQ passes them on.
//! lapin (4.12, amq-protocol 10.6) reads nested tables by recursion, without a limit: 3,500 levels, 17 kB, end
//! the process. A name that is not UTF-8 it takes for a broken connection. Either one message stops every worker
//! that it is delivered to. <https://github.com/amqp-rs/amq-protocol> has no limit to set; once it has one,
//! this module can go.
//!
//! Both are put right in place, without a byte more or less: tables, arrays and strings all begin with a length of
//! four bytes, so what lies too deep becomes a string of the same bytes; what is no UTF-8 in a name becomes `?`.
//!
//! Headers that fill a frame are worse: the broker adds `x-delivery-count` and `x-death` to them, and sends a frame that is
//! larger than both sides agreed on, which ends the connection, each time again. Of large headers only those of the broker
//! and of workers are left.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{Tokio, traits::Reactor, util::RuntimeParts};
use bytes::{Buf as _, BytesMut};
use futures_util::{AsyncRead, AsyncWrite, Stream};
use lapin::tcp::AsyncTcpStream;

/// `x-death` and `CC` need two.
const DEEPEST_TABLE: usize = 16;
/// Larger headers are cut: what a broker or a worker adds to them must still fit a frame.
const LARGEST_HEADERS: usize = 96 * 1024;
/// What is left of them: headers that begin like these, none of them longer.
const NEEDED: [&[u8]; 3] = [b"x-", b"comfy-", b"trace"];
const LONGEST_NEEDED: usize = 4 * 1024;
/// Brokers cut frames at 128 KiB unless told otherwise. Larger ones pass as they are.
const LARGEST_FRAME: usize = 16 * 1024 * 1024;
const READ: usize = 64 * 1024;
/// Type, channel and size before, the end's mark behind.
const FRAME_HEAD: usize = 7;
const FRAME_END: usize = 1;

/// A connection to the broker, with or without TLS.
type Socket = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio, with connections whose frames are looked through.
pub(super) type FilteredTokio = RuntimeParts<Tokio, FrameFilter>;

pub(super) fn runtime() -> async_rs::Runtime<FilteredTokio> {
    async_rs::Runtime::new(RuntimeParts::new(Tokio::current(), FrameFilter(Tokio::current())))
}

#[derive(Clone, Debug)]
pub(super) struct FrameFilter(Tokio);

impl FrameFilter {
    async fn connect(tokio: Tokio, address: SocketAddr) -> io::Result<FilteredConnection> {
        Ok(FilteredConnection::new(AsyncTcpStream::Plain(tokio.tcp_connect_addr(address).await?)))
    }
}

impl Reactor for FrameFilter {
    type TcpStream = FilteredConnection;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        Self::connect(self.0.clone(), address)
    }
}

/// A connection whose incoming frames are looked through.
pub(super) struct FilteredConnection {
    socket: Socket,
    frames: Frames,
    read: Box<[u8]>,
}

impl FilteredConnection {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, frames: Frames::default(), read: vec![0; READ].into() }
    }
}

impl AsyncRead for FilteredConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.frames.ready == 0 {
            let read = ready!(Pin::new(&mut this.socket).poll_read(context, &mut this.read))?;
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            this.frames.push(&this.read[..read]);
        }
        Poll::Ready(Ok(this.frames.take(buffer)))
    }
}

impl AsyncWrite for FilteredConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(context)
    }
}

/// Bytes as they came, of which the first `ready` have been looked through.
#[derive(Default)]
struct Frames {
    bytes: BytesMut,
    ready: usize,
    /// What passes unseen until the next frame begins: message bodies.
    unseen: usize,
}

impl Frames {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        loop {
            let passing = self.unseen.min(self.bytes.len() - self.ready);
            self.ready += passing;
            self.unseen -= passing;
            let rest = &mut self.bytes[self.ready..];
            let [kind, _, _, a, b, c, d, ..] = *rest else { return };
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            let mut whole = FRAME_HEAD + size + FRAME_END;
            let sanitize: fn(&mut Fields<'_>) -> Option<()> = match kind {
                1 => sanitize_method,
                2 => sanitize_properties,
                _ => |_| None,
            };
            if matches!(kind, 1 | 2) && size <= LARGEST_FRAME {
                if rest.len() < whole {
                    return;
                }
                // `None`: it ends early, which is lapin's to complain of.
                let payload = &mut rest[FRAME_HEAD..FRAME_HEAD + size];
                let _ = sanitize(&mut Fields(payload));
                if kind == 2
                    && size > LARGEST_HEADERS
                    && let Some(short) = without_foreign_headers(payload)
                {
                    whole = self.replace_payload(size, &short);
                }
            }
            self.unseen = whole;
        }
    }

    /// Puts another payload into the frame that is next; how long the frame is then.
    fn replace_payload(&mut self, size: usize, payload: &[u8]) -> usize {
        let behind = self.bytes.split_off(self.ready + FRAME_HEAD + size);
        self.bytes.truncate(self.ready + FRAME_HEAD - 4);
        // It is shorter than the old one, whose length fits.
        self.bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or_default().to_be_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.unsplit(behind);
        FRAME_HEAD + payload.len() + FRAME_END
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let taken = self.ready.min(buffer.len());
        self.bytes.copy_to_slice(&mut buffer[..taken]);
        self.ready -= taken;
        taken
    }
}

/// The methods that repeat what a publisher or an operator has written.
fn sanitize_method(fields: &mut Fields<'_>) -> Option<()> {
    let (skip, strings) = match (fields.number()?, fields.number()?) {
        // connection.close, channel.close: the broker cuts its text at 255 bytes, also within a character.
        (10, 50) | (20, 40) => (2, 1),
        // basic.return
        (60, 50) => (2, 3),
        // basic.deliver
        (60, 60) => {
            fields.sanitize_name()?;
            (9, 2)
        }
        // basic.get-ok
        (60, 71) => (9, 2),
        _ => return None,
    };
    fields.take(skip)?;
    (0..strings).try_for_each(|_| fields.sanitize_name())
}

/// A message's properties: one flag each, the highest bit first, and their values in the same order.
fn sanitize_properties(fields: &mut Fields<'_>) -> Option<()> {
    const HEADERS: u16 = 1 << 13;
    const BYTES: u16 = 1 << 12 | 1 << 11; // delivery mode, priority
    const TIMESTAMP: u16 = 1 << 6;
    fields.take(2 + 2 + 8)?; // class, weight, size of the body
    let flags = fields.number()?;
    for flag in (2..16).rev().map(|bit| 1 << bit).filter(|flag| flags & flag != 0) {
        match flag {
            HEADERS => sanitize_table(&mut fields.long()?, 1)?,
            _ if flag & BYTES != 0 => drop(fields.take(1)?),
            TIMESTAMP => drop(fields.take(8)?),
            _ => fields.sanitize_name()?,
        }
    }
    Some(())
}

/// The same properties without headers that neither a broker nor a worker has set; `None`: there are no headers.
fn without_foreign_headers(payload: &mut [u8]) -> Option<Vec<u8>> {
    let old = payload.to_vec();
    let mut fields = Fields(payload);
    let at = |fields: &Fields<'_>| old.len() - fields.0.len();
    fields.take(2 + 2 + 8)?;
    let flags = fields.number()?;
    for flag in [1 << 15, 1 << 14] {
        if flags & flag != 0 {
            fields.sanitize_name()?;
        }
    }
    if flags & 1 << 13 == 0 {
        return None;
    }
    let begin = at(&fields);
    let mut table = fields.long()?;
    let end = at(&fields);
    let (mut kept, mut dropped) = (Vec::new(), 0);
    while !table.0.is_empty() {
        let entry_at = end - table.0.len();
        // What cannot be read ends it.
        if table.sanitize_name().and_then(|()| sanitize_value(&mut table, 1)).is_none() {
            break;
        }
        let entry = &old[entry_at..end - table.0.len()];
        let is_needed =
            entry.len() <= LONGEST_NEEDED && NEEDED.iter().any(|head| entry[1..].starts_with(head));
        if is_needed && kept.len() + entry.len() <= LARGEST_HEADERS / 2 {
            kept.extend_from_slice(entry);
        } else {
            dropped += 1;
        }
    }
    tracing::warn!(
        bytes = end - begin,
        dropped,
        "a message's headers fill a frame: only those of the broker and of workers are read"
    );
    let length = u32::try_from(kept.len()).ok()?.to_be_bytes();
    Some([&old[..begin], &length, &kept, &old[end..]].concat())
}

fn sanitize_table(fields: &mut Fields<'_>, depth: usize) -> Option<()> {
    while !fields.0.is_empty() {
        fields.sanitize_name()?;
        sanitize_value(fields, depth)?;
    }
    Some(())
}

fn sanitize_array(fields: &mut Fields<'_>, depth: usize) -> Option<()> {
    while !fields.0.is_empty() {
        sanitize_value(fields, depth)?;
    }
    Some(())
}

fn sanitize_value(fields: &mut Fields<'_>, depth: usize) -> Option<()> {
    let kind = fields.take(1)?;
    match kind[0] {
        b'F' | b'A' if depth == DEEPEST_TABLE => {
            kind[0] = b'S';
            tracing::debug!(
                "a header is nested deeper than {DEEPEST_TABLE} tables; what lies deeper is left as it came"
            );
            fields.long().map(drop)
        }
        b'F' => sanitize_table(&mut fields.long()?, depth + 1),
        b'A' => sanitize_array(&mut fields.long()?, depth + 1),
        b'S' | b'x' => fields.long().map(drop),
        b't' | b'b' | b'B' => fields.take(1).map(drop),
        b's' | b'U' | b'u' => fields.take(2).map(drop),
        b'I' | b'i' | b'f' => fields.take(4).map(drop),
        b'D' => fields.take(5).map(drop),
        b'L' | b'l' | b'd' | b'T' => fields.take(8).map(drop),
        b'V' => Some(()),
        _ => None,
    }
}

/// What is still to be read of a frame.
struct Fields<'a>(&'a mut [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a mut [u8]> {
        self.0.split_off_mut(..length)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What a length of four bytes precedes.
    fn long(&mut self) -> Option<Self> {
        let length = self.take(4)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        self.take(length as usize).map(Self)
    }

    /// A string whose length is one byte.
    fn sanitize_name(&mut self) -> Option<()> {
        let length = self.take(1)?[0];
        let name = self.take(usize::from(length))?;
        if str::from_utf8(name).is_err() {
            name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
            tracing::debug!(name = %String::from_utf8_lossy(name), "replacing a name that is not UTF-8");
        }
        Some(())
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
