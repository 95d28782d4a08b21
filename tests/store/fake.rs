//! A store that answers what a test tells it to.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What the store was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What it answers; `cut` ends the connection after so many bytes of the body, or with `hang` the sending.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub cut: Option<usize>,
    pub hang: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    /// An error as S3 words it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(
            status,
            format!(
                "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message>\
                 <RequestId>1</RequestId></Error>"
            ),
        )
    }

    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// Nothing more comes after so many bytes, until the client closes the connection.
    pub fn hang_after(mut self, bytes: usize) -> Self {
        self.hang = true;
        self.cut_after(bytes)
    }
}

/// The store; it ends when this is dropped.
pub struct Fake {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// How many requests came, and how many answers hang.
    count: watch::Receiver<(usize, usize)>,
    server: JoinHandle<()>,
}

impl Fake {
    /// `answer` sees the request and how many came before it.
    pub async fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        let (counter, count) = watch::channel((0, 0));
        let counter = Arc::new(counter);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let reply = |request: Asked| {
                        let mut seen = seen.lock().unwrap();
                        seen.push(request.clone());
                        counter.send_modify(|count| count.0 = seen.len());
                        answer(&request, seen.len() - 1)
                    };
                    serve(stream, reply, &counter).await
                });
            }
        });
        Self { address, asked, count, server }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until so many requests have come and so many answers hang.
    pub async fn reaches(&self, wanted: impl Fn(usize, usize) -> bool) {
        let mut count = self.count.clone();
        let reached = count.wait_for(|(asked, hanging)| wanted(*asked, *hanging));
        tokio::time::timeout(std::time::Duration::from_secs(30), reached).await.unwrap().unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    reply: impl FnOnce(Asked) -> Reply,
    counter: &watch::Sender<(usize, usize)>,
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let reply = reply(Asked { method, path, headers, body });

    let mut answer = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        reply.status,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    answer.push_str("\r\n");
    stream.write_all(answer.as_bytes()).await.ok()?;
    let end = reply.cut.unwrap_or(reply.body.len());
    stream.write_all(&reply.body[..end]).await.ok()?;
    if reply.hang {
        counter.send_modify(|count| count.1 += 1);
        let closed = stream.read_u8().await;
        counter.send_modify(|count| count.1 -= 1);
        closed.ok()?;
    }
    stream.shutdown().await.ok()
}
