//! DevTools over a pipe that only Chromium and this process hold.
//!
//! A DevTools port is open to every user of the machine and to every program beside the worker,
//! ComfyUI's nodes included. chromiumoxide speaks websocket only: it gets an address that is good for
//! one connection and holds a secret, and what passes there goes on through the pipe.

use std::{
    io,
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use command_fds::{CommandFdExt, FdMapping};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::Command,
    sync::Mutex,
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
/// Bytes of a file that are held at a time; a multiple of three, so that their texts fit together.
const PIECE: usize = 96 << 10;
/// Commands beside chromiumoxide's have numbers that it does not come to. Chromium's are 32 bits wide.
const FIRST_ID: u32 = 1 << 30;
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

/// A way beside the bridge for large commands: chromiumoxide would hold each several times over.
#[derive(Clone, Debug)]
pub(super) struct RawPipeWriter {
    pipe: Arc<Mutex<OwnedWriteHalf>>,
    sent: Arc<AtomicU32>,
}

impl RawPipeWriter {
    /// Sends the command `method` of a session with the content of `file`, in base64, as its parameter
    /// `body`, beside `params`. Nobody hears of the answer.
    pub(super) fn send_file(&self, session: &str, method: &str, params: &Value, file: std::fs::File) {
        let id = FIRST_ID + self.sent.fetch_add(1, Ordering::Relaxed);
        let Ok(Value::Object(params)) = serde_json::to_value(params) else { return };
        let mut params = params.iter().map(|(key, value)| format!("{}:{value},", json!(key)));
        let head = format!(
            "{{\"id\":{id},\"sessionId\":{},\"method\":{},\"params\":{{{}\"body\":\"",
            json!(session),
            json!(method),
            params.by_ref().collect::<String>(),
        );
        let pipe = Arc::clone(&self.pipe);
        // A task that nobody aborts: half a command would spoil all that follow.
        tokio::spawn(async move {
            let mut pipe = pipe.lock().await;
            if let Err(error) = stream_file(&mut pipe, &head, file).await {
                tracing::debug!(%error, "cannot write a file for DevTools");
            }
        });
    }
}

async fn stream_file(pipe: &mut OwnedWriteHalf, head: &str, file: std::fs::File) -> io::Result<()> {
    let mut file = tokio::fs::File::from_std(file);
    pipe.write_all(head.as_bytes()).await?;
    let mut chunk = Vec::with_capacity(PIECE);
    loop {
        chunk.clear();
        // One that cannot be read on ends there: the command must end in any case.
        let read = (&mut file).take(PIECE as u64).read_to_end(&mut chunk).await.unwrap_or_default();
        if read == 0 {
            break;
        }
        pipe.write_all(BASE64.encode(&chunk).as_bytes()).await?;
    }
    pipe.write_all(b"\"}}\0").await
}

/// An address at which one client that knows it gets what is at the other end of `pipe`; ends with
/// the task.
pub(super) async fn bridge(pipe: StdStream) -> io::Result<(String, RawPipeWriter, AbortOnDropHandle<()>)> {
    let (from_chromium, to_chromium) = UnixStream::from_std(pipe)?.into_split();
    let to_chromium = Arc::new(Mutex::new(to_chromium));
    let side_door = RawPipeWriter { pipe: Arc::clone(&to_chromium), sent: Arc::default() };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let path = format!("/{}", Uuid::new_v4().simple());
    let address = format!("ws://{}{path}", listener.local_addr()?);
    let task = tokio::spawn(async move {
        let Ok(client) = admit(listener, &path).await else { return };
        if let Err(error) = pass(client, from_chromium, &to_chromium).await {
            tracing::debug!(%error, "DevTools' pipe");
        }
    });
    Ok((address, side_door, AbortOnDropHandle::new(task)))
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
async fn pass(
    client: WebSocketStream<TcpStream>,
    from_chromium: OwnedReadHalf,
    to_chromium: &Mutex<OwnedWriteHalf>,
) -> io::Result<()> {
    let (mut answers, mut commands) = client.split();
    let mut from_chromium = BufReader::new(from_chromium);
    let down = async {
        while let Some(message) = commands.next().await {
            if let Message::Text(text) = message.map_err(io::Error::other)? {
                let mut command = Vec::from(text.as_str());
                command.push(0);
                to_chromium.lock().await.write_all(&command).await?;
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
        let (address, side_door, task) = bridge(ours).await.unwrap();
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
        // A file passes beside it, in pieces.
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..PIECE + 100).map(|byte| byte as u8).collect();
        io::Write::write_all(&mut file, &content).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        side_door.send_file("S", "Fetch.fulfillRequest", &json!({"responseCode": 200}), file);
        let mut command = Vec::new();
        BufReader::new(&mut chromium).read_until(0, &mut command).await.unwrap();
        let command: Value = serde_json::from_slice(command.strip_suffix(&[0]).unwrap()).unwrap();
        let params = json!({"responseCode": 200, "body": BASE64.encode(&content)});
        let expected =
            json!({"id": FIRST_ID, "sessionId": "S", "method": "Fetch.fulfillRequest", "params": params});
        assert!(command == expected, "{command}");

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
