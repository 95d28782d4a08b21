#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A web server on loopback that answers what it is told to, one request a connection.
struct Site {
    address: SocketAddr,
    /// The heads of all requests.
    asked: Arc<Mutex<Vec<String>>>,
    _server: AbortOnDropHandle<()>,
}

impl Site {
    /// `answer` gets the head of a request and its number, from 0.
    async fn start(answer: impl Fn(&str, usize) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heads = Arc::clone(&asked);
        let server = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else { break };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                let answer = answer(&head, heads.lock().unwrap().len());
                heads.lock().unwrap().push(head);
                let _ = socket.write_all(&answer).await;
            }
        });
        Self { address, asked, _server: AbortOnDropHandle::new(server) }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads `path` from a worker that is allowed to read `in/` here.
    async fn read(&self, path: &str) -> Result<String, OpenError> {
        read(&self.url(path), &[self.url("in/")]).await
    }

    async fn refusal(&self, path: &str) -> Failure {
        match self.read(path).await {
            Err(OpenError::Failed(failure)) => failure,
            other => panic!("{path}: {other:?}"),
        }
    }
}

async fn read(url: &str, allow: &[String]) -> Result<String, OpenError> {
    let mut object = Web::default().open(url, allow, 0, None).await?;
    let mut text = Vec::new();
    while let Some(chunk) = crate::stage::fetch::next(&mut object, url).await? {
        text.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8(text).unwrap())
}

fn answer(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = if headers.contains("Content-Length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n{headers}\r\n{body}").into_bytes()
}

fn redirect(to: &str) -> Vec<u8> {
    answer("302 Found", &format!("Location: {to}\r\nSet-Cookie: a=b\r\n"), "")
}

#[tokio::test]
async fn a_request_says_nothing_but_what_it_wants() {
    let site = Site::start(|head, _| match head.split(' ').nth(1) {
        Some("/in/x?key=secret") => redirect("y"),
        _ => answer("200 OK", "", "content"),
    })
    .await;
    assert_eq!(site.read("in/x?key=secret").await.unwrap(), "content");
    let asked = site.asked();
    assert_eq!(asked.len(), 2);
    for head in asked {
        let head = head.to_lowercase();
        assert!(head.contains("\r\naccept-encoding: identity\r\n"), "{head}");
        for header in ["cookie", "referer", "authorization", "range"] {
            assert!(!head.contains(&format!("\r\n{header}:")), "{head}");
        }
    }
}

#[tokio::test]
async fn redirects_lead_only_to_where_inputs_may_come_from() {
    let canary = Site::start(|_, _| answer("200 OK", "", "secret")).await;
    let to = canary.url("in/x");
    let port = canary.address.port();
    let site = Site::start(move |head, _| {
        let path = head.split([' ', '?']).nth(1).unwrap();
        match path.trim_start_matches("/in/") {
            "canary" => redirect(&to),
            "relative" => redirect("/in/end"),
            "twice" => redirect("relative"),
            "up" => redirect("../closed/x"),
            "encoded" => redirect("..%2fclosed/x"),
            "metadata" => redirect("http://169.254.169.254/latest/meta-data/"),
            "loopback" => redirect(&format!("http://localhost:{port}/in/x")),
            "user" => redirect(&format!("//user:pw@127.0.0.1:{port}/in/x")),
            "file" => redirect("file:///etc/passwd"),
            "nowhere" => answer("301 Moved Permanently", "", ""),
            "loop" => redirect("loop"),
            _ => answer("200 OK", "", "end"),
        }
    })
    .await;
    assert_eq!(site.read("in/relative").await.unwrap(), "end");
    assert_eq!(site.read("in/twice").await.unwrap(), "end");
    for path in ["canary", "up", "encoded", "metadata", "loopback", "user", "file", "nowhere", "loop"] {
        let failure = site.refusal(&format!("in/{path}?token=secret")).await;
        assert!(matches!(failure, Failure::InputForbidden(_)), "{path}: {failure:?}");
        let told = failure.to_string();
        assert!(told.starts_with(&site.url(&format!("in/{path}: "))), "{told}");
        // Neither the link's secret nor what it led to.
        assert!(
            !["secret", "pw", &port.to_string(), "169.254"].iter().any(|word| told.contains(word)),
            "{told}"
        );
    }
    assert!(canary.asked().is_empty(), "{:?}", canary.asked());
    assert!(!site.asked().iter().any(|head| head.contains("closed")));
    let loops = site
        .asked()
        .iter()
        .filter(|head| !head.contains("/in/loopback") && head.contains("/in/loop"))
        .count();
    assert_eq!(loops, 6, "the first one and 5 redirects");
}

#[test]
fn never_from_https_to_http() {
    let allow = ["https://host/".to_owned(), "http://host/".to_owned()];
    let asked = Web::default().asked("https://host/x?token=secret", &allow).unwrap();
    let location = |to: &str| {
        let answer = axum::http::Response::builder().status(302).header("location", to).body("").unwrap();
        asked.next(&asked.url, &answer.into())
    };
    assert_eq!(location("https://host/y").unwrap().unwrap().as_str(), "https://host/y");
    assert_eq!(location("//host/y").unwrap().unwrap().as_str(), "https://host/y");
    assert_eq!(
        location("http://host/y").unwrap_err(),
        Failure::InputForbidden("https://host/x: redirects away from https".into())
    );
}

#[tokio::test]
async fn names_that_lead_to_this_machine_are_refused() {
    let canary = Site::start(|_, _| answer("200 OK", "", "secret")).await;
    let port = canary.address.port();
    // Allowed by name: an attacker may have that name lead here.
    let allow = [format!("http://localhost:{port}/")];
    let outcome = read(&format!("http://localhost:{port}/x?token=secret"), &allow).await;
    let expected = format!("http://localhost:{port}/x: the name leads to no public address");
    assert!(
        matches!(&outcome, Err(OpenError::Failed(Failure::InputForbidden(told))) if *told == expected),
        "{outcome:?}"
    );
    assert!(canary.asked().is_empty());
}

#[tokio::test]
async fn users_and_other_places_are_refused_before_anything_is_sent() {
    let site = Site::start(|_, _| answer("200 OK", "", "x")).await;
    for url in [
        site.url("other/x"),
        site.url("in/../other/x"),
        site.url("in/x").replace("127.0.0.1", "user:hunter2@127.0.0.1"),
        site.url("in/x").replace("127.0.0.1", "localhost"),
        "https://example.org/x".to_owned(),
    ] {
        let outcome = read(&url, &[site.url("in/")]).await;
        let told = match &outcome {
            Err(OpenError::Failed(Failure::InputForbidden(told))) => told,
            other => panic!("{url}: {other:?}"),
        };
        assert!(!told.contains("hunter2"), "{told}");
    }
    assert!(site.asked().is_empty());
    let broken = read("http://[::1/secret", &[]).await;
    assert!(
        matches!(&broken, Err(OpenError::Failed(Failure::UnsupportedUri(told))) if !told.contains("secret"))
    );
}

#[tokio::test]
async fn what_a_status_means() {
    let site = Site::start(|head, _| {
        let status = head.split(['/', '?']).nth(2).unwrap();
        answer(&format!("{status} Told"), "", "a body with a secret")
    })
    .await;
    type Kind = fn(String) -> Failure;
    let cases: [(u16, Kind); 8] = [
        (404, Failure::InputNotFound),
        (410, Failure::InputNotFound),
        (401, Failure::InputForbidden),
        (403, Failure::InputForbidden),
        (400, Failure::Invalid),
        (418, Failure::Invalid),
        (204, Failure::Invalid),
        (304, Failure::Invalid),
    ];
    for (status, kind) in cases {
        let failure = site.refusal(&format!("in/{status}?token=secret")).await;
        assert_eq!(failure.code(), kind(String::new()).code(), "{status}: {failure}");
        assert!(failure.to_string().contains(&format!("/in/{status}: ")), "{failure}");
        assert!(!failure.to_string().contains("secret"), "{failure}");
    }
    assert_eq!(site.asked().len(), 8, "none of them is asked for again");
}

#[tokio::test]
async fn what_may_pass_is_asked_for_again() {
    let site = Site::start(|_, number| match number {
        0 => answer("503 Busy", "", ""),
        1 => answer("429 Too Many", "Retry-After: 0\r\n", ""),
        2 => Vec::new(),
        _ => answer("200 OK", "", "content"),
    })
    .await;
    assert_eq!(site.read("in/x").await.unwrap(), "content");

    let down = Site::start(|_, _| answer("500 Down", "", "")).await;
    let failure = down.refusal("in/x?token=secret").await;
    assert!(matches!(&failure, Failure::InputUnavailable(told) if told.contains("500")), "{failure:?}");
    assert!(!failure.to_string().contains("secret"));
    assert_eq!(down.asked().len(), TRIES as usize);
    let address = down.address;
    drop(down);
    let gone = read(&format!("http://{address}/in/x?token=secret"), &[format!("http://{address}/")]).await;
    assert!(
        matches!(&gone, Err(OpenError::Failed(Failure::InputUnavailable(told)))
            if told == &format!("http://{address}/in/x: no connection to the server")),
        "{gone:?}"
    );
}

#[tokio::test]
async fn a_body_that_is_compressed_unasked_is_refused() {
    let site = Site::start(|_, _| answer("200 OK", "Content-Encoding: gzip\r\n", "x")).await;
    assert!(matches!(site.refusal("in/x").await, Failure::Invalid(_)));
}

const CONTENT: &str = "0123456789abcdefghij";

/// [`CONTENT`] from where the request says, 4 bytes a connection.
fn in_pieces(head: &str, etag: &str, ranges: bool) -> Vec<u8> {
    let from = head.split("range: bytes=").nth(1).filter(|_| ranges);
    let from: usize = from.map_or(0, |from| from.split('-').next().unwrap().parse().unwrap());
    let rest = &CONTENT[from..];
    let sent = if ranges { &rest[..rest.len().min(4)] } else { rest };
    let length = rest.len();
    if from == 0 {
        return answer("200 OK", &format!("ETag: {etag}\r\nContent-Length: {length}\r\n"), sent);
    }
    let range = format!("Content-Range: bytes {from}-19/20\r\n");
    answer("206 Part", &format!("ETag: {etag}\r\nContent-Length: {length}\r\n{range}"), sent)
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let site = Site::start(|head, _| in_pieces(head, "\"v1\"", true)).await;
    assert_eq!(site.read("in/x").await.unwrap(), CONTENT);
    let asked = site.asked();
    assert_eq!(asked.len(), 5);
    for (number, head) in asked.iter().enumerate().skip(1) {
        assert!(head.contains(&format!("range: bytes={}-\r\n", number * 4)), "{head}");
        assert!(head.contains("if-range: \"v1\"\r\n"), "{head}");
    }
}

/// A byte now and then is no silence, and once held a worker for `inputs.timeout`, again and again.
#[tokio::test]
async fn a_download_that_drips_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _dripping = AbortOnDropHandle::new(tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = [0; 16];
        socket.read_exact(&mut head).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await.unwrap();
        let mut drops = tokio::time::interval(Duration::from_millis(100));
        while socket.write_all(b"x").await.is_ok() {
            drops.tick().await;
        }
    }));
    let (url, allow) = (format!("http://{address}/x"), [format!("http://{address}/")]);
    let given_up = timeout(Duration::from_secs(30), read(&url, &allow)).await.unwrap();
    assert!(
        matches!(&given_up, Err(OpenError::Failed(Failure::InputUnavailable(told))) if told.contains("too slowly")),
        "{given_up:?}"
    );
}

#[tokio::test]
async fn a_download_never_goes_on_with_something_else() {
    let changed =
        Site::start(|head, number| in_pieces(head, if number == 0 { "\"v1\"" } else { "\"v2\"" }, true))
            .await;
    assert!(matches!(changed.read("in/x").await, Err(OpenError::Changed)));
    // A weak version promises no bytes.
    let weak = Site::start(|head, _| in_pieces(head, "W/\"v1\"", true)).await;
    assert!(matches!(weak.read("in/x").await, Err(OpenError::Failed(Failure::InputUnavailable(_)))));
    // Another part than the one that was asked for.
    let odd = Site::start(|head, number| match number {
        0 => in_pieces(head, "\"v1\"", true),
        _ => answer("206 Part", "ETag: \"v1\"\r\nContent-Range: bytes 0-3/20\r\n", "0123"),
    })
    .await;
    assert!(matches!(odd.read("in/x").await, Err(OpenError::Failed(Failure::InputUnavailable(_)))));
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_the_start() {
    let site = Site::start(|head, number| in_pieces(head, "\"v1\"", number == 0)).await;
    assert_eq!(site.read("in/x").await.unwrap(), CONTENT);
    assert_eq!(site.asked().len(), 2);
}

#[tokio::test]
async fn versions_are_asked_for_without_the_body() {
    let site = Site::start(|head, _| match head.split(' ').nth(1) {
        Some("/in/tagged") => in_pieces(head, "\"v1\"", true),
        Some("/in/dated") => answer("200 OK", "Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT\r\n", "x"),
        _ => answer("200 OK", "", "x"),
    })
    .await;
    let version =
        async |path: &str| Web::default().version(&site.url(path), &[site.url("in/")]).await.unwrap();
    assert_eq!(version("in/tagged").await.as_deref(), Some("\"v1\""));
    assert_eq!(version("in/dated").await.as_deref(), Some("Tue, 15 Nov 1994 12:45:26 GMT"));
    assert_eq!(version("in/x").await, None);
    assert!(
        site.asked().iter().all(|head| head.starts_with("GET ") && head.contains("range: bytes=0-0\r\n"))
    );
}
