//! Messages that no client library makes: any bytes as headers and routing key.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::RabbitMq;

/// The broker's limit, less what is around it.
const LARGEST_FRAME: usize = 128 * 1024 - 8;

/// A message, in the bytes of the protocol.
#[derive(Clone, Debug, Default)]
pub struct RawMessage {
    /// The exchange; empty: the default one.
    pub exchange: String,
    /// At most 255 bytes, UTF-8 or not.
    pub routing_key: Vec<u8>,
    /// The fields of the headers' table, without its length.
    pub headers: Vec<u8>,
    /// Where answers go; none when empty.
    pub reply_to: String,
    /// The body.
    pub body: Vec<u8>,
}

impl RawMessage {
    /// Headers nested that deep: tables within tables, 7 bytes each.
    #[must_use]
    pub fn nested_headers(levels: usize) -> Vec<u8> {
        (0..levels).fold(vec![1, b'n', b'V'], |inside, _| [&[1, b'n', b'F'][..], &long(&inside)].concat())
    }
}

impl RabbitMq {
    /// Publishes it, and waits for the confirm.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub async fn publish_raw(&self, message: &RawMessage) -> Result<()> {
        let mut wire = Wire(TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.amqp)).await?);
        wire.0.write_all(b"AMQP\x00\x00\x09\x01").await?;
        wire.expect(10, 10).await?;
        let login = [&long(&[])[..], &short(b"PLAIN"), &long(b"\0guest\0guest"), &short(b"en_US")];
        wire.method(0, 10, 11, &login.concat()).await?;
        let tune = wire.expect(10, 30).await?;
        let sizes = tune.get(..6).context("connection.tune is too short")?;
        wire.method(0, 10, 31, &[sizes, &[0, 0]].concat()).await?;
        wire.method(0, 10, 40, &[&short(b"/")[..], &[0, 0]].concat()).await?;
        wire.expect(10, 41).await?;
        wire.method(1, 20, 10, &[0]).await?;
        wire.expect(20, 11).await?;
        wire.method(1, 85, 10, &[0]).await?;
        wire.expect(85, 11).await?;

        let place = [&[0, 0][..], &short(message.exchange.as_bytes()), &short(&message.routing_key), &[0]];
        wire.method(1, 60, 40, &place.concat()).await?;
        let size = (message.body.len() as u64).to_be_bytes();
        let mut flags: u16 = 1 << 13 | 1 << 12;
        let mut properties = [&long(&message.headers)[..], &[2]].concat();
        if !message.reply_to.is_empty() {
            flags |= 1 << 9;
            properties.extend(short(message.reply_to.as_bytes()));
        }
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), &properties];
        wire.frame(2, 1, &header.concat()).await?;
        for part in message.body.chunks(LARGEST_FRAME) {
            wire.frame(3, 1, part).await?;
        }
        wire.expect(60, 80).await?;
        wire.method(0, 10, 50, &[0, 200, 0, 0, 0, 0, 0]).await?;
        wire.expect(10, 51).await.map(drop)
    }
}

struct Wire(TcpStream);

impl Wire {
    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) -> Result<()> {
        let frame = [&[kind, 0, channel][..], &long(payload), &[0xCE]].concat();
        Ok(self.0.write_all(&frame).await?)
    }

    async fn method(&mut self, channel: u8, class: u8, method: u8, arguments: &[u8]) -> Result<()> {
        self.frame(1, channel, &[&[0, class, 0, method][..], arguments].concat()).await
    }

    /// The arguments of the next method, which must be this one.
    async fn expect(&mut self, class: u8, method: u8) -> Result<Vec<u8>> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.0.read_exact(&mut payload).await?;
        let text = String::from_utf8_lossy(&payload);
        ensure!(head[0] == 1 && payload.starts_with(&[0, class, 0, method]), "no {class}.{method}: {text:?}");
        payload.truncate(size);
        Ok(payload.split_off(4))
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap_or(u8::MAX)], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes(), bytes].concat()
}
