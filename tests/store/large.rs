//! Objects far larger than what may be held in memory.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use comfy_worker::store::{Content, ObjectStore};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::{server::S3Server, stores, uri};

const SIZE: u64 = 200 << 20;
/// The most that 200 MiB up and down may add to the peak of the process, in KiB.
const MOST_KIB: u64 = 32 << 10;

/// The client is a process of its own: its peak is not the server's or another test's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_pass_in_bounded_memory() {
    let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = S3Server::start(folder.path()).await;
    server.create_bucket("bucket");
    let source = sources.path().join("large.bin");
    write_large(&source);
    let client = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "large::large_client", "--ignored", "--nocapture"])
        .env("TEST_ENDPOINT", server.endpoint())
        .env("TEST_SOURCE", &source)
        .env("TEST_ACCESS", server.access_key())
        .env("TEST_SECRET", server.secret_key())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let done = tokio::task::spawn_blocking(|| client.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    println!("{said}");
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    assert!(digest(&source) == digest(&server.path("bucket", "large.bin")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "large_files_pass_in_bounded_memory runs it, in a process of its own"]
async fn large_client() {
    let var = |name| std::env::var(name).unwrap();
    let store = stores(&var("TEST_ENDPOINT"), &var("TEST_ACCESS"), &var("TEST_SECRET")).await;
    let object = uri("s3://bucket/large.bin");
    // The code that is needed anyway is in before the measure begins.
    let small = uri("s3://bucket/small");
    store.put(&small, Content::Bytes("warm".into()), "text/plain").await.unwrap();
    store.read(&small, 10).await.unwrap();

    let before = peak_kib();
    let since = Instant::now();
    let source = Content::File { path: var("TEST_SOURCE").into(), size: SIZE };
    store.put(&object, source, "application/octet-stream").await.unwrap();
    let up = (peak_kib() - before, since.elapsed());

    let since = Instant::now();
    let mut body = store.open(&object).await.unwrap().into_reader();
    let mut chunk = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match body.read(&mut chunk).await.unwrap() {
            0 => break,
            read => total += read as u64,
        }
    }
    assert_eq!(total, SIZE);
    let both = peak_kib() - before;
    println!(
        "peak before {before} KiB; 200 MiB up: +{} KiB in {:?}; and down: +{both} KiB in {:?}",
        up.0,
        up.1,
        since.elapsed()
    );
    assert!(both < MOST_KIB, "{both} KiB more");
}

/// The most memory that this process ever had resident (`VmHWM`).
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Content that differs in every block, so that parts in the wrong order are noticed.
fn write_large(path: &Path) {
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    for block in 0..SIZE / 4096 {
        file.write_all(&block.to_le_bytes().repeat(512)).unwrap();
    }
    file.flush().unwrap();
}

fn digest(path: &Path) -> Vec<u8> {
    let mut sum = Sha256::new();
    let mut file = fs::File::open(path).unwrap();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match std::io::Read::read(&mut file, &mut chunk).unwrap() {
            0 => break,
            read => sum.update(&chunk[..read]),
        }
    }
    sum.finalize().to_vec()
}
