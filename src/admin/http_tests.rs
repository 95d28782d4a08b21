#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use contract::{
    JobId,
    event::{EventKind, JobEvent},
    result::{JobResult, Kind, Output, OutputFile, Status as Ended, Timings, WorkerInfo},
};
use futures_util::StreamExt;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{events::EventSink, store::LocalStore};

const TOKEN: &str = "a-long-random-text";
/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// Notes what it was told; it has the job `here` in hand.
#[derive(Clone, Debug, Default)]
struct NodeStatus(Arc<Mutex<Vec<String>>>);

impl Commands for NodeStatus {
    fn cancel(&self, job: &JobId) -> bool {
        self.0.lock().unwrap().push(format!("cancel {job}"));
        job.as_str() == "here"
    }

    fn drain(&self) {
        self.0.lock().unwrap().push("drain".into());
    }
}

struct Bed {
    admin: Admin,
    board: StatusBoard,
    told: NodeStatus,
    client: Client,
}

impl Bed {
    async fn with(token: Option<&str>) -> Self {
        let (board, told) = (StatusBoard::new("gpu-7".into()), NodeStatus::default());
        let token = token.map(SecretString::from);
        let admin = serve("127.0.0.1:0".parse().unwrap(), board.clone(), token, told.clone()).await.unwrap();
        let client = Client::builder().no_proxy().timeout(SOON).build().unwrap();
        Self { admin, board, told, client }
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.request(method, format!("http://{}{path}", self.admin.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.ask(Method::GET, path, &[]).await
    }

    fn told(&self) -> Vec<String> {
        self.told.0.lock().unwrap().clone()
    }

    fn event(&self, place: &JobHandle, id: &str, kind: EventKind) {
        place.event(&JobEvent {
            version: 1,
            id: id.parse().unwrap(),
            seq: 0,
            at: 1,
            attempt: 1,
            worker: "w".into(),
            kind,
        });
    }
}

/// The messages of `/events`, and signs of life by their name.
struct Messages {
    body: futures_util::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    text: String,
}

impl Messages {
    async fn open(bed: &Bed) -> Self {
        let answer = bed.get("/events").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "content-type"), "text/event-stream");
        Self { body: answer.bytes_stream().boxed(), text: String::new() }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let message = message.to_owned();
                self.text = rest.to_owned();
                return match message.strip_prefix("data: ") {
                    Some(data) => serde_json::from_str(data).unwrap(),
                    None => Value::from(message),
                };
            }
            self.text += std::str::from_utf8(&self.body.next().await.unwrap().unwrap()).unwrap();
        }
    }
}

fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
    answer.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn every_answer_is_hardened() {
    let bed = Bed::with(None).await;
    for path in [
        "/",
        "/page.js",
        "/page.css",
        "/status",
        "/livez",
        "/readyz",
        "/none",
        "/jobs/a/preview",
        "/jobs/a/outputs/0",
    ] {
        let answer = bed.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(header(&answer, name), value, "{path}");
        }
        let policy = header(&answer, "content-security-policy");
        assert!(policy.starts_with("default-src 'none'; "), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        let is_page = ["/", "/page.js", "/page.css"].contains(&path);
        assert_eq!(policy.contains("script-src 'self'"), is_page, "{path}: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{path}: {policy}");
        assert_eq!(header(&answer, "cache-control"), if is_page { "no-cache" } else { "no-store" }, "{path}");
    }
    assert_eq!(bed.get("/readyz").await.text().await.unwrap(), "booting\n");
}

/// The policy would refuse such parts, and only a browser says so.
#[test]
fn the_page_is_plain() {
    let html = include_str!("page/index.html");
    assert!(!html.contains("style=") && !html.contains("<style") && !html.contains(" on"), "inline parts");
    assert_eq!(
        html.matches("<script").count(),
        html.matches("<script type=\"module\" src=\"page.js\"></script>").count()
    );
    for (name, text) in [
        ("index.html", html),
        ("page.css", include_str!("page/page.css")),
        ("page.js", include_str!("page/page.js")),
        ("hand.js", include_str!("page/hand.js")),
        ("ended.js", include_str!("page/ended.js")),
        ("stages.js", include_str!("page/stages.js")),
        ("elements.js", include_str!("page/elements.js")),
        ("words.js", include_str!("page/words.js")),
    ] {
        for word in [
            "http:",
            "https:",
            "//cdn",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "@import",
            "url(",
        ] {
            assert!(!text.contains(word), "{name} holds {word}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_this_machines_is_refused() {
    let bed = Bed::with(Some(TOKEN)).await;
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/", "/status", "/events", "/livez"] {
        let answer = bed.ask(Method::GET, path, &[("host", "evil.example:9188")]).await;
        assert_eq!(answer.status(), 421, "{path}");
        assert!(answer.text().await.unwrap().contains("localhost"), "{path}");
    }
    let answer =
        bed.ask(Method::POST, "/drain", &[("host", "evil.example"), ("authorization", &bearer)]).await;
    assert_eq!((answer.status().as_u16(), bed.told()), (421, vec![]));
    assert_eq!(bed.ask(Method::GET, "/livez", &[("host", "localhost:4711")]).await.status(), 200);
}

#[tokio::test]
async fn without_a_token_nobody_gives_commands() {
    let bed = Bed::with(None).await;
    for path in ["/drain", "/jobs/here/cancel"] {
        for headers in [&[][..], &[("authorization", "Bearer ")], &[("authorization", "Bearer x")]] {
            let answer = bed.ask(Method::POST, path, headers).await;
            assert_eq!(answer.status(), 403, "{path}");
            let text = answer.text().await.unwrap();
            assert!(text.contains("admin.token") && text.matches('\n').count() == 1, "{text}");
        }
    }
    assert_eq!(bed.told(), Vec::<String>::new());
    assert_eq!(Messages::open(&bed).await.next().await["commands"], false);
}

#[tokio::test]
async fn commands_need_the_token_whole() {
    let bed = Bed::with(Some(TOKEN)).await;
    let wrong = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer a-long-random-tex",
        "Bearer a-long-random-text2",
        "Bearer A-LONG-RANDOM-TEXT",
        "Basic a-long-random-text",
        "a-long-random-text",
    ];
    for given in wrong {
        for path in ["/drain", "/jobs/here/cancel"] {
            let answer = bed.ask(Method::POST, path, &[("authorization", given)]).await;
            assert_eq!(
                (answer.status().as_u16(), header(&answer, "www-authenticate")),
                (401, "Bearer"),
                "{given:?}"
            );
            assert!(!answer.text().await.unwrap().contains(TOKEN));
        }
    }
    // In an address it would stand in logs; a form of another site can send neither.
    assert_eq!(bed.ask(Method::POST, &format!("/drain?token={TOKEN}"), &[]).await.status(), 401);
    assert_eq!(bed.ask(Method::GET, "/drain", &[]).await.status(), 405);
    assert_eq!(bed.told(), Vec::<String>::new());

    let bearer = format!("bearer {TOKEN}");
    let command =
        async |path: &str| bed.ask(Method::POST, path, &[("authorization", &bearer)]).await.status();
    assert_eq!(command("/jobs/here/cancel").await, 202);
    assert_eq!(command("/jobs/elsewhere/cancel").await, 404);
    assert_eq!(command("/jobs/..%2F..%2Fhere/cancel").await, 404);
    assert_eq!(command("/drain").await, 202);
    assert_eq!(bed.told(), ["cancel here", "cancel elsewhere", "drain"]);
}

#[tokio::test]
async fn a_page_hears_everything_then_changes_then_signs_of_life() {
    let bed = Bed::with(Some(TOKEN)).await;
    let place = bed.board.take_job();
    bed.event(&place, "a", EventKind::Accepted);
    let mut messages = Messages::open(&bed).await;
    let first = messages.next().await;
    assert_eq!(
        (&first["reset"], &first["commands"], &first["in_hand"]),
        (&json!(true), &json!(true), &json!([1]))
    );
    assert_eq!((&first["worker"]["id"], &first["worker"]["state"]), (&json!("gpu-7"), &json!("booting")));
    bed.board.ready("0.3.64");
    let second = messages.next().await;
    assert_eq!(
        (&second["worker"]["state"], &second["worker"]["versions"]["comfyui"]),
        (&json!("ready"), &json!("0.3.64"))
    );
    assert_eq!((&second["jobs"], second.get("reset")), (&json!([]), None));
    // What happens at once is told at once.
    for value in 0..100 {
        let progress = EventKind::Progress {
            node: "1".into(),
            title: "T".into(),
            value: f64::from(value),
            max: 100.0,
            fraction: 0.1,
        };
        bed.event(&place, "a", progress);
    }
    let third = messages.next().await;
    assert_eq!(third["jobs"][0]["node_list"][0]["value"], 99.0, "{third}");
    assert_eq!(third.get("worker"), None);
    assert_eq!(messages.next().await, "event: alive\ndata: .", "the worker is silent");
}

/// They once took all of the worker's descriptors, from probes and jobs alike.
#[tokio::test]
async fn half_requests_by_the_thousand_keep_no_probe_from_its_answer() {
    let bed = Bed::with(None).await;
    let mut pages = Messages::open(&bed).await;
    pages.next().await;
    let mut half = Vec::new();
    for _ in 0..1_000 {
        let mut stream = TcpStream::connect(bed.admin.address).await.unwrap();
        // Cut off already, should the machine be slow.
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: loc").await;
        half.push(stream);
    }
    let begin = Instant::now();
    let live = bed.ask(Method::GET, "/livez", &[]).await;
    assert_eq!(live.status(), StatusCode::OK);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let place = bed.board.take_job();
    bed.event(&place, "a", EventKind::Accepted);
    assert_eq!(pages.next().await["jobs"][0]["id"], "a", "a page that listens has lost its place");
    // In their time all are cut off, the last ones too.
    for mut stream in half {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a half request stays open");
    }
}

/// A probe need not ask in the moment in which it has connected.
#[tokio::test]
async fn connections_that_are_kept_open_keep_no_probe_out() {
    const GET: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let bed = Bed::with(None).await;
    let connect = || async { TcpStream::connect(bed.admin.address).await.unwrap() };
    let answers = async |stream: &mut TcpStream| {
        stream.write_all(GET).await.is_ok()
            && tokio::time::timeout(SOON, stream.read(&mut [0; 4096]))
                .await
                .unwrap()
                .is_ok_and(|read| read > 0)
    };
    let (mut kept, mut silent) = (Vec::new(), Vec::new());
    for _ in 0..128 {
        let mut stream = connect().await;
        assert!(answers(&mut stream).await);
        kept.push(stream);
    }
    for _ in 0..5 {
        let mut probe = connect().await;
        for _ in 0..30 {
            silent.push(connect().await);
        }
        assert!(answers(&mut probe).await, "{} silent connections kept a probe out", silent.len());
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_holds_nobody_up() {
    let bed = Bed::with(None).await;
    let mut deaf = TcpStream::connect(bed.admin.address).await.unwrap();
    deaf.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut begin = [0; 15];
    deaf.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    let place = bed.board.take_job();
    bed.event(&place, "a", EventKind::Accepted);
    let begin = Instant::now();
    for number in 0..20_000 {
        let node = number.to_string();
        bed.event(
            &place,
            "a",
            EventKind::Progress { title: "x".repeat(120), node, value: 1.0, max: 2.0, fraction: 0.5 },
        );
    }
    // A microsecond or two each on an idle machine.
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let told = Messages::open(&bed).await.next().await;
    assert_eq!(told["jobs"][0]["nodes_begun"], 20_000);
    assert_eq!(told["jobs"][0]["node_list"].as_array().unwrap().len(), 300);
    // Once the line is full it is cut off: the place is somebody else's.
    let begin = Instant::now();
    let mut number = 0;
    while bed.admin.site.listeners.count() > 0 {
        assert!(begin.elapsed() < SOON * 2, "it holds its place");
        for _ in 0..300 {
            number += 1;
            let (node, title) = (format!("{number} again"), "x".repeat(120));
            bed.event(&place, "a", EventKind::Progress { title, node, value: 1.0, max: 2.0, fraction: 0.5 });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(deaf);
}

#[tokio::test]
async fn so_many_pages_and_no_more_and_all_end_with_the_endpoint() {
    let bed = Bed::with(None).await;
    let mut pages = Vec::new();
    for _ in 0..events::MAX_OF_ONE {
        pages.push(Messages::open(&bed).await);
    }
    let refused = bed.get("/events").await;
    assert_eq!((refused.status().as_u16(), header(&refused, "retry-after")), (503, "10"));
    assert!(refused.text().await.unwrap().contains("at most 16 of an address"));
    // Anyone who comes from elsewhere is not kept out.
    let elsewhere = Client::builder().local_address(std::net::IpAddr::from([127, 0, 0, 2])).build().unwrap();
    let elsewhere = elsewhere.get(format!("http://{}/events", bed.admin.address)).send().await.unwrap();
    assert_eq!(elsewhere.status(), 200);
    pages.pop();
    // Its end is noticed with the next message to it.
    let begin = Instant::now();
    let again = loop {
        bed.board.ready("0.3.64");
        let answer = bed.get("/events").await;
        if answer.status() == 200 {
            break answer;
        }
        assert!(begin.elapsed() < SOON, "{}", answer.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    drop(bed.admin);
    let mut rest = again.bytes_stream();
    while let Some(part) = rest.next().await {
        part.unwrap();
    }
}

fn picture(folder: &std::path::Path, name: &str, content_type: &str, size: u64) -> Output {
    Output {
        node: "9".into(),
        key: "images".into(),
        index: 0,
        kind: Kind::Image,
        text: None,
        file: Some(OutputFile {
            filename: name.into(),
            uri: format!("file://{}", folder.join(name).display()),
            url: None,
            content_type: content_type.into(),
            size,
            sha256: String::new(),
            temp: false,
        }),
    }
}

#[tokio::test]
async fn pictures_come_from_the_store_in_a_sandbox() {
    let bed = Bed::with(None).await;
    let folder = tempfile::tempdir().unwrap();
    let whole = vec![7; 300_000];
    std::fs::write(folder.path().join("a.png"), &whole).unwrap();
    std::fs::write(folder.path().join("b.svg"), "<svg/>").unwrap();
    // It has grown since it was uploaded.
    std::fs::write(folder.path().join("c.png"), vec![0; (8 << 20) + 1]).unwrap();
    let place = bed.board.take_job();
    bed.event(&place, "a", EventKind::Accepted);
    let outputs = vec![
        picture(folder.path(), "a.png", "image/png", 300_000),
        picture(folder.path(), "b.svg", "image/svg+xml", 6),
        picture(folder.path(), "c.png", "image/png", 1),
        picture(folder.path(), "gone.png", "image/png", 1),
    ];
    place.ended(&JobResult {
        version: 1,
        id: "a".parse().unwrap(),
        status: Ended::Succeeded,
        outputs,
        history: None,
        prompt: None,
        error: None,
        warnings: Vec::new(),
        timings: Timings::default(),
        nodes: BTreeMap::new(),
        attempt: 1,
        worker: WorkerInfo::default(),
        metadata: None,
    });
    drop(place);
    assert_eq!(bed.get("/jobs/a/outputs/0").await.status(), 404, "no store yet");
    bed.admin.shows_outputs_of(Arc::new(LocalStore));
    for _ in 0..3 * pictures::MAX_PICTURES {
        let answer = bed.get("/jobs/a/outputs/0?attempt=1").await;
        assert_eq!((answer.status().as_u16(), header(&answer, "content-type")), (200, "image/png"));
        assert_eq!(
            header(&answer, "content-security-policy"),
            "default-src 'none'; frame-ancestors 'none'; sandbox"
        );
        assert_eq!(header(&answer, "x-content-type-options"), "nosniff");
        assert_eq!(answer.bytes().await.unwrap(), whole);
    }
    for (path, status) in [
        ("/jobs/a/outputs/1", 404),
        ("/jobs/a/outputs/2", 502),
        ("/jobs/a/outputs/3", 404),
        ("/jobs/a/outputs/4", 404),
        ("/jobs/a/outputs/-1", 404),
        ("/jobs/b/outputs/0", 404),
        ("/jobs/..%2Fa/outputs/0", 404),
        ("/jobs/a/outputs/..%2F..%2Fa.png", 404),
    ] {
        assert_eq!(bed.get(path).await.status(), status, "{path}");
    }
    // Those who begin and go leave their place to others.
    for _ in 0..3 * pictures::MAX_PICTURES {
        drop(bed.get("/jobs/a/outputs/0").await);
    }
    assert_eq!(bed.get("/jobs/a/outputs/0").await.bytes().await.unwrap(), whole);
}
