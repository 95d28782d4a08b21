#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::json;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

/// A web server on loopback.
struct Site {
    url: Url,
    served: Arc<AtomicUsize>,
}

impl Site {
    /// Answers by path: a whole HTTP response without its `Connection` header.
    fn start(pages: impl FnOnce(&Url) -> BTreeMap<&'static str, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let (pages, served) = (pages(&url), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&served);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                let page = request.split(' ').nth(1).and_then(|path| pages.get(path));
                count.fetch_add(usize::from(page.is_some()), Ordering::SeqCst);
                let _ = stream.write_all(
                    page.map_or(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", |page| page),
                );
            }
        });
        Self { url, served }
    }

    fn at(&self, path: &str) -> Url {
        self.url.join(path).unwrap()
    }
}

fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())
            .into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn moved(to: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .into_bytes()
}

fn archive(name: &str) -> Vec<u8> {
    let mut writer = ZipWriter::new(io::Cursor::new(Vec::new()));
    writer.start_file(name, SimpleFileOptions::default()).unwrap();
    writer.write_all(b"#!/bin/sh\n").unwrap();
    writer.finish().unwrap().into_inner()
}

/// What a folder holds, without the lock.
fn names(folder: &TempDir) -> Vec<String> {
    let entries =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name != ".lock").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_names_an_archive_that_is_fetched_once() {
    let site = Site::start(|url| {
        let builds = json!([
            {"platform": "mac-arm64", "url": url.join("mac.zip").unwrap().as_str()},
            {"platform": "linux64", "url": url.join("moved.zip").unwrap().as_str()},
        ]);
        let index = json!({"channels": {"Stable": {"downloads": {"chrome-headless-shell": builds}}}});
        let zip = archive("chrome-headless-shell-linux64/chrome-headless-shell");
        [
            ("/index.json", ok(index.to_string().as_bytes())),
            ("/moved.zip", moved("/real.zip")),
            ("/real.zip", ok(&zip)),
        ]
        .into()
    });
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(".unpack-left")).unwrap();
    fs::write(folder.path().join("download.part"), "left").unwrap();
    let source = site.at("index.json");
    // Two at once: one of them waits and finds it there.
    let (one, other) = tokio::join!(installed(folder.path(), &source), installed(folder.path(), &source));
    let program = one.unwrap();
    assert_eq!(program, other.unwrap());
    assert!(
        find::is_program(&program)
            && program.ends_with("chrome-headless-shell-linux64/chrome-headless-shell")
    );
    assert_eq!(names(&folder).len(), 1, "{:?}", names(&folder));
    assert_eq!(site.served.load(Ordering::SeqCst), 3);
    assert_eq!(installed(folder.path(), &source).await.unwrap(), program);
    assert_eq!(site.served.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_and_leaves_nothing() {
    let site = Site::start(|_| {
        let whole = archive("chrome");
        let mut cut_off = ok(&whole);
        cut_off.truncate(cut_off.len() - 10);
        let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", ARCHIVE_BYTES + 1);
        [
            ("/short.zip", cut_off),
            ("/half.zip", ok(&whole[..whole.len() / 2])),
            ("/text.zip", ok(b"<html>")),
            ("/evil.zip", ok(&archive("../chrome"))),
            ("/other.zip", ok(&archive("firefox"))),
            ("/large.zip", large.into_bytes()),
            ("/loop.zip", moved("/loop.zip")),
            ("/text", ok(b"<html>")),
            ("/empty", ok(b"{}")),
        ]
        .into()
    });
    let folder = tempfile::tempdir().unwrap();
    for (path, word) in [
        ("gone.zip", "404"),
        ("short.zip", "end of file"),
        ("half.zip", "no whole zip archive"),
        ("text.zip", "no whole zip archive"),
        ("evil.zip", "outside of its folder"),
        ("other.zip", "holds none of chrome-headless-shell"),
        ("large.zip", "more than 1 GiB"),
        ("loop.zip", "too many redirects"),
        ("text", "the index is no JSON"),
        ("empty", "the index names no chrome-headless-shell for linux64"),
    ] {
        let message = installed(folder.path(), &site.at(path)).await.unwrap_err();
        println!("{path}: {message}");
        assert!(message.contains(word), "{path}: {message}");
        assert!(names(&folder).is_empty(), "{path}: {:?}", names(&folder));
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let message =
        installed(folder.path(), &format!("http://{nobody}/x.zip").parse().unwrap()).await.unwrap_err();
    assert!(message.contains("refused"), "{message}");
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let site = Site::start(|_| [("/chrome.zip", ok(&archive("chrome")))].into());
    let client = Client::new();
    let url = site.at("chrome.zip");
    let response = get(&client, &url).await.unwrap();
    let message = save(response, &url, Path::new("/dev/full")).await.unwrap_err();
    assert!(message.starts_with("cannot write /dev/full: No space left on device"), "{message}");
}
