//! Large files sent in parts, to a real server.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use comfy_worker::store::{Content, ObjectStore, StoreError, Stores};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::{
    fake::{Fake, Reply},
    files_beneath,
    server::{PartFault, S3Server},
    stores, uri,
};

const OBJECT: &str = "s3://bucket/large.bin";
const MIB: u64 = 1 << 20;

/// A part that hangs holds memory that all uploads of this process share.
static ALONE: Mutex<()> = Mutex::const_new(());

struct Bed {
    _alone: MutexGuard<'static, ()>,
    folder: TempDir,
    sources: TempDir,
    server: S3Server,
    store: Stores,
}

impl Bed {
    async fn with_fault(fault: PartFault) -> Self {
        let alone = ALONE.lock().await;
        let (folder, sources) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let server = S3Server::with_fault(folder.path(), fault).await;
        server.create_bucket("bucket");
        let store = stores(&server.endpoint(), server.access_key(), server.secret_key()).await;
        Self { _alone: alone, folder, sources, server, store }
    }

    /// A file whose content differs in every word, so that parts in the wrong order are noticed.
    fn source(&self, size: u64) -> (PathBuf, Content) {
        let path = self.sources.path().join(format!("{size}.bin"));
        let content: Vec<u8> = (0..u32::MAX).flat_map(u32::to_le_bytes).take(size as usize).collect();
        fs::write(&path, content).unwrap();
        (path.clone(), Content::File { path, size })
    }

    fn stored(&self) -> Vec<u8> {
        fs::read(self.server.path("bucket", "large.bin")).unwrap()
    }
}

fn sum(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Not every store reads `aws-chunked` bodies with their checksum behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_is_sent_as_it_is_with_its_checksum_before_it() {
    let fake = Fake::start(|asked, _| match asked.path.as_str() {
        path if path.ends_with("?uploads") => Reply::new(
            200,
            "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>",
        ),
        _ if asked.method == "POST" => Reply::new(200, "<CompleteMultipartUploadResult/>"),
        _ => Reply::new(200, "").header("ETag", "\"v1\""),
    })
    .await;
    let store = stores(&fake.endpoint(), "key", "hush-hush").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..u32::MAX).flat_map(u32::to_le_bytes).take(9 * MIB as usize).collect();
    fs::write(file.path(), &content).unwrap();
    let path = file.path().to_owned();
    let _alone = ALONE.lock().await;
    store.put(&uri(OBJECT), Content::Bytes(vec![1; 1000].into()), "x/y").await.unwrap();
    store.put(&uri(OBJECT), Content::File { path: path.clone(), size: 5000 }, "x/y").await.unwrap();
    store.put(&uri(OBJECT), Content::File { path, size: 9 * MIB }, "x/y").await.unwrap();
    store.create(&uri(OBJECT), vec![2; 100].into(), "x/y").await.unwrap();
    let mut puts = fake.asked();
    puts.retain(|asked| asked.method == "PUT");
    puts.sort_by_key(|asked| asked.body.len());
    let (first, second) = content.split_at(5 * MIB as usize);
    for (put, body) in puts.iter().zip([&[2; 100][..], &[1; 1000], &content[..5000], second, first]) {
        assert!(put.body == body && !put.headers.contains_key("content-encoding"), "{:?}", put.headers);
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, body).to_be_bytes();
        assert_eq!(put.headers["x-amz-checksum-crc32"], STANDARD.encode(&sum[4..]));
    }
    assert_eq!(puts.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_tells_the_checksum_of_what_it_sent() {
    let bed = Bed::with_fault(PartFault::None).await;
    // In one request up to 8 MiB, then in parts of 5 MiB.
    for (size, tries) in [(0, 0), (1, 0), (8 * MIB, 0), (8 * MIB + 1, 1), (20 * MIB, 2), (20 * MIB + 3, 3)] {
        let (path, content) = bed.source(size);
        let stored = bed.store.put(&uri(OBJECT), content, "x/y").await.unwrap();
        let sent = fs::read(&path).unwrap();
        assert!(bed.stored() == sent, "{size}");
        assert_eq!((stored.size, stored.sha256), (size, sum(&sent)), "{size}");
        assert_eq!(bed.server.tries.load(Ordering::SeqCst), tries, "{size}");
    }
    // Small and large in memory.
    for size in [3, MIB] {
        let content: Vec<u8> = (0..u32::MAX).flat_map(u32::to_le_bytes).take(size as usize).collect();
        let stored =
            bed.store.put(&uri(OBJECT), Content::Bytes(content.clone().into()), "x/y").await.unwrap();
        assert_eq!((stored.size, stored.sha256), (size, sum(&content)), "{size}");
        assert!(bed.stored() == content);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_fails_once_is_sent_again() {
    let bed = Bed::with_fault(PartFault::Busy).await;
    let (path, content) = bed.source(18 * MIB + 1);
    let stored = bed.store.put(&uri(OBJECT), content, "x/y").await.unwrap();
    let sent = fs::read(&path).unwrap();
    assert!(bed.stored() == sent);
    assert_eq!(stored.sha256, sum(&sent));
    assert_eq!(bed.server.tries.load(Ordering::SeqCst), 2);
    assert_eq!(bed.server.aborts.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_shrinks_while_it_is_sent_is_the_local_sides_fault() {
    let bed = Bed::with_fault(PartFault::Hang).await;
    let (path, content) = bed.source(40 * MIB);
    let object = uri(OBJECT);
    let put = bed.store.put(&object, content, "x/y");
    let shrink = async {
        // With the second part on its way no more than four can have been read.
        bed.server.hanging.notified().await;
        File::options().write(true).open(&path).unwrap().set_len(32 * MIB).unwrap();
        bed.server.released.notify_one();
    };
    let (put, ()) = tokio::join!(put, shrink);
    let error = put.unwrap_err();
    assert!(matches!(&error, StoreError::Local { .. }) && error.to_string().contains("shorter"), "{error}");
    assert_eq!(bed.server.aborts.load(Ordering::SeqCst), 1);
    assert_eq!(files_beneath(&bed.folder.path().join("bucket")), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_upload_gives_its_memory_back() {
    let bed = Bed::with_fault(PartFault::Hang).await;
    let (path, content) = bed.source(20 * MIB);
    // One alone has room for three parts: kept by the cancelled ones, it would be gone.
    for round in 1..=4 {
        let object = uri(OBJECT);
        tokio::select! {
            done = bed.store.put(&object, content.clone(), "x/y") => panic!("{done:?}"),
            () = bed.server.hanging.notified() => {}
        }
        bed.store.settled().await;
        assert_eq!(bed.server.aborts.load(Ordering::SeqCst), round);
    }
    bed.server.released.notify_one();
    let stored = bed.store.put(&uri(OBJECT), content, "x/y").await.unwrap();
    assert_eq!(stored.sha256, sum(&fs::read(&path).unwrap()));
}

/// Together they want six times the memory there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_files_and_small_ones_at_once_all_arrive() {
    let bed = Bed::with_fault(PartFault::None).await;
    let (large, small) = (bed.source(17 * MIB), bed.source(7 * MIB));
    let puts = (0..12).map(|number| {
        let (path, content) = if number % 2 == 0 { large.clone() } else { small.clone() };
        let store = &bed.store;
        async move {
            let object = uri(&format!("s3://bucket/{number}.bin"));
            let stored = store.put(&object, content, "x/y").await.unwrap();
            (number, path, stored)
        }
    });
    for (number, path, stored) in futures_util::future::join_all(puts).await {
        assert!(same(&path, &bed.server.path("bucket", &format!("{number}.bin"))), "{number}");
        assert_eq!(stored.size, fs::metadata(path).unwrap().len());
    }
    let read = bed.store.read(&uri("s3://bucket/0.bin"), 17 * MIB).await.unwrap();
    assert!(read == fs::read(large.0).unwrap());
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}
