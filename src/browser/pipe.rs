//! DevTools over a pipe that only Chromium and this process hold.
//!
//! A DevTools port is open to every user of the machine and to every program beside the worker,
//! ComfyUI's nodes included. chromiumoxide speaks websocket only: it gets an address that is good for
//! one connection and holds a secret, and what passes there goes on through the pipe.

use std::{io, os::unix::net::UnixStream as StdStream, time::Duration};

use command_fds::{CommandFdExt, FdMapping};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::StatusCode,
        protocol::WebSocketConfig,
    },
};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

/// Where Chromium reads commands and writes answers (`devtools_pipe_handler.cc`).
const READS: i32 = 3;
const WRITES: i32 = 4;
/// Longest answer: a workflow of our largest message, as the frontend saved it, in JSON in JSON.
const LARGEST_ANSWER: u64 = 512 << 20;
/// For the websocket's handshake, all in this process.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// Has the program that `command` starts speak DevTools through the returned end.
pub(super) fn attach(command: &mut Command) -> io::Result<StdStream> {
    let (ours, theirs) = StdStream::pair()?;
    let ends = [(theirs.try_clone()?.into(), READS), (theirs.into(), WRITES)];
    let ends = ends.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
    command.arg("--remote-debugging-pipe").fd_mappings(ends.into()).map_err(io::Error::other)?;
    ours.set_nonblocking(true)?;
    Ok(ours)
}

/// An address at which one client that knows it gets what is at the other end of `pipe`; ends with
/// the task.
pub(super) async fn bridge(pipe: StdStream) -> io::Result<(String, AbortOnDropHandle<()>)> {
    let pipe = UnixStream::from_std(pipe)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let path = format!("/{}", Uuid::new_v4().simple());
    let address = format!("ws://{}{path}", listener.local_addr()?);
    let task = tokio::spawn(async move {
        let Ok(client) = admit(listener, &path).await else { return };
        if let Err(error) = pass(client, pipe).await {
            tracing::debug!(%error, "DevTools' pipe");
        }
    });
    Ok((address, AbortOnDropHandle::new(task)))
}

/// The first client that knows the path. Nobody can connect afterwards.
async fn admit(listener: TcpListener, path: &str) -> io::Result<WebSocketStream<TcpStream>> {
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        #[allow(clippy::result_large_err, reason = "the callback's type is the websocket crate's")]
        let check = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
            if request.uri().path() == path {
                return Ok(response);
            }
            let mut refusal = ErrorResponse::new(None);
            *refusal.status_mut() = StatusCode::NOT_FOUND;
            Err(refusal)
        };
        let unbounded = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let handshake = accept_hdr_async_with_config(client, check, Some(unbounded));
        if let Ok(Ok(client)) = timeout(HANDSHAKE_LIMIT, handshake).await {
            return Ok(client);
        }
    }
}

/// Passes messages both ways until either side ends. In the pipe a zero byte ends each.
async fn pass(client: WebSocketStream<TcpStream>, pipe: UnixStream) -> io::Result<()> {
    let (mut answers, mut commands) = client.split();
    let (from_chromium, mut to_chromium) = pipe.into_split();
    let mut from_chromium = BufReader::new(from_chromium);
    let down = async {
        while let Some(message) = commands.next().await {
            if let Message::Text(text) = message.map_err(io::Error::other)? {
                let mut command = Vec::from(text.as_str());
                command.push(0);
                to_chromium.write_all(&command).await?;
            }
        }
        Ok(())
    };
    let up = async {
        loop {
            let mut answer = Vec::new();
            (&mut from_chromium).take(LARGEST_ANSWER).read_until(0, &mut answer).await?;
            if answer.pop() != Some(0) {
                return Ok(());
            }
            let answer = String::from_utf8(answer).map_err(io::Error::other)?;
            answers.send(Message::text(answer)).await.map_err(io::Error::other)?;
        }
    };
    tokio::select! {
        ended = down => ended,
        ended = up => ended,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio_tungstenite::connect_async;

    use super::*;

    #[tokio::test]
    async fn one_client_that_knows_the_secret_is_connected_and_nobody_else() {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut chromium = UnixStream::from_std(theirs).unwrap();
        let (address, task) = bridge(ours).await.unwrap();
        let (place, _) = address.rsplit_once('/').unwrap();
        for path in ["", "/", "/devtools/browser", "/json/version"] {
            assert!(connect_async(format!("{place}{path}")).await.is_err(), "{path}");
        }

        let (mut client, _) = connect_async(&address).await.unwrap();
        assert!(connect_async(&address).await.is_err());
        client.send(Message::text("to Chromium")).await.unwrap();
        let mut read = [0; 12];
        chromium.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"to Chromium\0");
        chromium.write_all(b"one\0two\0").await.unwrap();
        for answer in ["one", "two"] {
            assert_eq!(client.next().await.unwrap().unwrap().to_text().unwrap(), answer);
        }
        // Its end is the client's end.
        drop(chromium);
        assert!(
            client.next().await.is_none_or(|last| last.is_err() || last.is_ok_and(|last| last.is_close()))
        );
        task.await.unwrap();
    }
}
