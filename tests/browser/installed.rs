//! A machine without Chromium: the worker downloads one, once, and converts with it.

use std::{
    fs,
    io::{Cursor, Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use testbed::{Engine, Worker, WorkerBuilder, scratch_root};
use tokio::time::timeout;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    started::{Started, plain},
    workflows::{empty_image, simple},
};

const LIMIT: Duration = Duration::from_secs(180);

/// Serves `file` at every path: its address, and how often it was asked for.
fn serve(file: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", file.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&file));
        }
    });
    (format!("http://{address}/chrome-headless-shell-linux64.zip"), served)
}

/// Converts `workflow.json` in `folder`: what went to standard output and error.
async fn convert(builder: &WorkerBuilder, folder: &std::path::Path) -> (String, String) {
    let mut command = builder.command(&["convert", "workflow.json"]).unwrap();
    let empty = folder.join("empty");
    fs::create_dir_all(&empty).unwrap();
    command.current_dir(folder).env("PATH", &empty).env("HOME", &empty).kill_on_drop(true);
    command.env_remove("CHROME").env_remove("PLAYWRIGHT_BROWSERS_PATH");
    let output = timeout(LIMIT, command.output()).await.expect("the command does not end").unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (out, err)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_chromium_is_downloaded_once_and_converts() {
    let started = Started::new().await;
    let real = started.program();
    started.browser.shutdown().await;

    let folder = tempfile::tempdir_in(scratch_root().unwrap()).unwrap();
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let program = "chrome-headless-shell-linux64/chrome-headless-shell";
    archive.start_file(program, SimpleFileOptions::default().unix_permissions(0o755)).unwrap();
    writeln!(archive, "#!/bin/sh\nexec '{}' \"$@\"", real.display()).unwrap();
    let (source, served) = serve(archive.finish().unwrap().into_inner());

    let engine = Engine::standin(&folder.path().join("comfyui")).unwrap();
    let builder = Worker::builder(env!("CARGO_BIN_EXE_comfy-worker"), folder.path()).unwrap().engine(&engine);
    let builder = builder.set("browser.download", source);
    let workflow = simple(&json!(7));
    fs::write(folder.path().join("workflow.json"), workflow.to_string()).unwrap();

    let (_, told) = convert(&builder, folder.path()).await;
    assert!(told.contains("there is no Chromium") && told.contains("browser.auto_install = true"), "{told}");
    assert_eq!(served.load(Ordering::SeqCst), 0, "nobody allowed it");

    let builder = builder.set("browser.auto_install", "true");
    for _ in 0..2 {
        let (out, err) = convert(&builder, folder.path()).await;
        let prompt: Value =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"));
        assert_eq!(plain(prompt)["1"], empty_image());
        assert_eq!(served.load(Ordering::SeqCst), 1);
    }
}
