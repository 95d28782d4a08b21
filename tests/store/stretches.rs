//! Large objects read in stretches, from a store that answers what a test tells it to.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use comfy_worker::store::{Object, ObjectStore, StoreError, Stores};
use tokio::{
    io::AsyncReadExt,
    sync::{Mutex, MutexGuard},
};

use super::{
    fake::{Asked, Fake, Reply},
    stores, uri,
};

const OBJECT: &str = "s3://bucket/object";
const MIB: usize = 1 << 20;
/// What the first request of a large object brings, and then each stretch.
const STRETCH: usize = 2 * MIB;
/// Stretches on their way at a time: all the memory there is for them.
const AHEAD: usize = 8;
/// More than can be on its way at a time, and a bit.
const LARGE: usize = 24 * MIB + 5;

/// How much of an object is read ahead depends on what other downloads of this process hold.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Content that differs in every word, so that stretches in the wrong order are noticed.
fn content(size: usize) -> Arc<Vec<u8>> {
    Arc::new((0..u32::MAX).flat_map(u32::to_le_bytes).take(size).collect())
}

/// What a request asks for: its first byte, and that behind the last.
fn range(asked: &Asked, size: usize) -> Option<(usize, usize)> {
    let (start, end) = asked.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((start.parse().unwrap(), end.parse().map_or(size, |last: usize| last + 1)))
}

/// As a good store answers.
fn good(content: &[u8], asked: &Asked) -> Reply {
    let reply = match range(asked, content.len()) {
        None => Reply::new(200, content),
        Some((start, end)) => {
            assert_eq!(asked.headers["if-match"], "\"v1\"");
            let range = format!("bytes {start}-{}/{}", end - 1, content.len());
            Reply::new(206, &content[start..end]).header("Content-Range", &range)
        }
    };
    reply.header("ETag", "\"v1\"")
}

async fn reach(fake: &Fake) -> Stores {
    stores(&fake.endpoint(), "key", "hush-hush").await
}

async fn open(fake: &Fake) -> Object {
    reach(fake).await.open(&uri(OBJECT)).await.unwrap()
}

/// The rest of an object.
async fn rest(object: Object) -> Result<Vec<u8>, StoreError> {
    let mut read = Vec::new();
    let outcome = object.into_reader().read_to_end(&mut read).await;
    outcome.map(|_| read).map_err(|error| StoreError::from_read(&uri(OBJECT), error))
}

/// A store, alone in this process, with `content`; `answer` may change what a good one would say.
async fn store_of(
    content: &Arc<Vec<u8>>,
    answer: impl Fn(&Asked, Reply) -> Reply + Send + Sync + 'static,
) -> (Fake, MutexGuard<'static, ()>) {
    let (alone, content) = (ALONE.lock().await, Arc::clone(content));
    (Fake::start(move |asked, _| answer(asked, good(&content, asked))).await, alone)
}

#[tokio::test]
async fn a_small_object_takes_one_request() {
    for size in [0, 1, 16 * MIB] {
        let content = content(size);
        let (fake, _alone) = store_of(&content, |_, reply| reply).await;
        assert!(rest(open(&fake).await).await.unwrap() == *content, "{size}");
        let asked = fake.asked();
        assert!(asked.len() == 1 && !asked[0].headers.contains_key("range"), "{size}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_object_comes_in_stretches() {
    let content = content(LARGE);
    let (fake, _alone) = store_of(&content, |_, reply| reply).await;
    let object = open(&fake).await;
    assert_eq!((object.size, object.version.as_deref()), (Some(LARGE as u64), Some("\"v1\"")));
    assert!(rest(object).await.unwrap() == *content);
    let mut ranges: Vec<_> = fake.asked().iter().map(|asked| range(asked, LARGE)).collect();
    assert_eq!(ranges.remove(0), None);
    ranges.sort_unstable();
    let starts = (STRETCH..LARGE).step_by(STRETCH);
    let expected = starts.map(|start| Some((start, LARGE.min(start + STRETCH))));
    assert_eq!(ranges, expected.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_of_a_large_object_comes_in_stretches() {
    let (content, offset) = (content(LARGE), 3 * MIB + 1);
    let (fake, _alone) = store_of(&content, |_, reply| reply).await;
    let store = reach(&fake).await;
    let object = store.open_from(&uri(OBJECT), offset as u64, Some("\"v1\"")).await.unwrap();
    assert_eq!(object.size, Some(LARGE as u64));
    assert!(rest(object).await.unwrap() == content[offset..]);
    let asked = fake.asked();
    assert_eq!(asked[0].headers["range"], format!("bytes={offset}-"));
    assert_eq!(asked.len(), (LARGE - offset).div_ceil(STRETCH), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stretch_goes_on_where_it_ended() {
    let content = content(LARGE);
    let broken = (8 * MIB, 8 * MIB + STRETCH);
    let (fake, _alone) = store_of(&content, move |asked, reply| match range(asked, LARGE) {
        Some(range) if range == broken => reply.cut_after(MIB),
        _ => reply,
    })
    .await;
    assert!(rest(open(&fake).await).await.unwrap() == *content);
    let ranges: Vec<_> = fake.asked().iter().filter_map(|asked| range(asked, LARGE)).collect();
    // Of what was cut off the client may have seen less than was sent.
    let resumed: Vec<_> = ranges.iter().filter(|range| **range != broken && range.1 == broken.1).collect();
    assert_eq!(resumed.len(), 1, "{ranges:?}");
    assert!(resumed[0].0 > broken.0 && resumed[0].0 <= broken.0 + MIB, "{ranges:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stretches_of_two_versions_are_never_mixed() {
    let content = content(LARGE);
    let replaced: [fn(Reply) -> Reply; 2] = [
        |_| Reply::error(412, "PreconditionFailed", "changed"),
        // A store that passes over If-Match.
        |mut reply| {
            reply.headers.retain(|(name, _)| *name != "ETag");
            reply.header("ETag", "\"v2\"")
        },
    ];
    for replaced in replaced {
        let (fake, _alone) = store_of(&content, move |asked, reply| match range(asked, LARGE) {
            Some((start, _)) if start >= 12 * MIB => replaced(reply),
            _ => reply,
        })
        .await;
        let error = rest(open(&fake).await).await.unwrap_err();
        assert!(matches!(error, StoreError::Changed { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_ignores_ranges_is_read_in_one_stream() {
    let content = content(LARGE);
    let whole = Arc::clone(&content);
    let (fake, _alone) =
        store_of(&content, move |_, _| Reply::new(200, &**whole).header("ETag", "\"v1\"")).await;
    assert!(rest(open(&fake).await).await.unwrap() == *content);
    let unranged = fake.asked().iter().filter(|asked| range(asked, LARGE).is_none()).count();
    assert_eq!(unranged, 1);
}

#[tokio::test]
async fn without_a_version_an_object_is_read_in_one_stream() {
    for etag in [None, Some("W/\"v1\"")] {
        let content = content(LARGE);
        let (fake, _alone) = store_of(&content, move |_, mut reply| {
            reply.headers.retain(|(name, _)| *name != "ETag");
            etag.map_or(reply.clone(), |etag| reply.header("ETag", etag))
        })
        .await;
        assert!(rest(open(&fake).await).await.unwrap() == *content);
        assert_eq!(fake.asked().len(), 1, "{etag:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checksum_of_the_whole_is_checked() {
    let content = content(LARGE);
    let crc = |algorithm| crc_fast::checksum(algorithm, &content).to_be_bytes();
    let crc32 = STANDARD.encode(&crc(crc_fast::CrcAlgorithm::Crc32IsoHdlc)[4..]);
    let crc64 = STANDARD.encode(crc(crc_fast::CrcAlgorithm::Crc64Nvme));
    for (name, claimed, holds) in [
        ("x-amz-checksum-crc32", crc32.as_str(), true),
        ("x-amz-checksum-crc64nvme", crc64.as_str(), true),
        ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=", false),
        ("x-amz-checksum-crc32", "AAAAAA==", false),
        // Of the parts' checksums: says nothing of the whole.
        ("x-amz-checksum-crc32", "AAAAAA==-5", true),
    ] {
        let header = claimed.to_owned();
        let (fake, _alone) = store_of(&content, move |_, reply| reply.header(name, &header)).await;
        let read = rest(open(&fake).await).await;
        assert!(fake.asked().len() > 4, "in stretches");
        match read {
            Ok(read) => assert!(holds && read == *content, "{name} {claimed}"),
            Err(error) => assert!(!holds && error.to_string().contains("checksum"), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_waits_holds_up_no_other() {
    let content = content(LARGE);
    let (fake, _alone) = store_of(&content, |_, reply| reply).await;
    let mut first = open(&fake).await.into_reader();
    let begin = first.read_u32_le().await.unwrap();
    // It holds all the memory there is to read ahead.
    fake.reaches(|asked, _| asked == 1 + AHEAD).await;
    for _ in 0..2 {
        assert!(rest(open(&fake).await).await.unwrap() == *content);
    }
    // They had one stream each.
    assert_eq!(fake.asked().len(), 1 + AHEAD + 2);
    assert_eq!(begin, 0);
    let mut read = Vec::new();
    first.read_to_end(&mut read).await.unwrap();
    assert!(read == content[4..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_large_objects_at_once_all_arrive() {
    let content = content(LARGE);
    let (fake, _alone) = store_of(&content, |_, reply| reply).await;
    let reads = (0..6).map(|_| async { rest(open(&fake).await).await.unwrap() == *content });
    assert_eq!(futures_util::future::join_all(reads).await, [true; 6]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_body_ends_its_transfers() {
    let content = content(LARGE);
    let (fake, _alone) = store_of(&content, |asked, reply| match range(asked, LARGE) {
        None => reply,
        Some(_) => reply.hang_after(MIB),
    })
    .await;
    let mut object = open(&fake).await.into_reader();
    object.read_u32_le().await.unwrap();
    fake.reaches(|_, hanging| hanging == AHEAD).await;
    drop(object);
    fake.reaches(|_, hanging| hanging == 0).await;
    // The memory is there again.
    let reply = |_: &Asked, reply| reply;
    drop(_alone);
    let (fake, _alone) = store_of(&content, reply).await;
    assert!(rest(open(&fake).await).await.unwrap() == *content);
    assert_eq!(fake.asked().len(), LARGE.div_ceil(STRETCH));
}
