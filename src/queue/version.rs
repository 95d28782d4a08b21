//! RabbitMQ's version, from its greeting, which lapin does not show. Only for behaviour that cannot be observed.

use std::{io, time::Duration};

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::{
    tcp::AsyncTcpStream,
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::dial::{tls, uri};
use crate::config::AmqpConfig;

const GREETING_LIMIT: Duration = Duration::from_secs(5);
const LARGEST_GREETING: u32 = 1 << 16;

/// Major and minor; `None`: it is another broker, or none answers. Costs a connection that is hung up.
pub(super) async fn version(config: &AmqpConfig) -> Option<(u64, u64)> {
    let uri = uri(config).ok()?;
    let start = timeout(GREETING_LIMIT, greeting(config, &uri)).await.ok()?.ok()?;
    (property(&start, "product")? == "RabbitMQ").then_some(())?;
    numbers(property(&start, "version")?)
}

/// The frame that a server opens with.
async fn greeting(config: &AmqpConfig, uri: &AMQPUri) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
    let mut stream = AsyncTcpStream::Plain(stream.compat());
    if uri.scheme == AMQPScheme::AMQPS {
        let tls = tls(config).map_err(io::Error::other)?;
        stream = stream.into_tls(&uri.authority.host, tls.as_ref()).await?;
    }
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    stream.flush().await?;
    // Type, channel and length.
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let [_, _, _, length @ ..] = head;
    let length = u32::from_be_bytes(length).min(LARGEST_GREETING);
    let mut start = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut start).await?;
    Ok(start)
}

/// A text among the server's properties: the name with its length, the type, the text with its length.
fn property<'a>(start: &'a [u8], name: &str) -> Option<&'a str> {
    let mark = [&[u8::try_from(name.len()).ok()?], name.as_bytes(), b"S"].concat();
    let at = start.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let (length, rest) = start.get(at..)?.split_first_chunk::<4>()?;
    str::from_utf8(rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?).ok()
}

fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_read_and_nothing_else() {
        let start = b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x01\xc8\x0ccapabilitiesF\x00\x00\x00\x00\x07productS\x00\x00\x00\x08RabbitMQ\
            \x07versionS\x00\x00\x00\x0b4.2.0-rc.10";
        assert_eq!(property(start, "product"), Some("RabbitMQ"));
        assert_eq!(property(start, "version").and_then(numbers), Some((4, 2)));
        for odd in [
            b"".as_slice(),
            b"\x07versionS",
            b"\x07versionS\xff\xff\xff\xff3.12",
            b"\x07versionS\x00\x00\x00\x014",
        ] {
            assert_eq!(property(odd, "version").and_then(numbers), None, "{odd:?}");
        }
    }
}
