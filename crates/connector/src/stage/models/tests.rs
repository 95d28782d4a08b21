#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    process::Command,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use contract::ObjectUri;
use futures_util::stream::{self, StreamExt};
use tokio::sync::Notify;

use super::*;
use crate::{
    stage::web::Web,
    store::{Content, Creation, Object, ObjectStore, StoreError, Stored},
};

/// Objects in memory, whose transfers break off when that is said.
#[derive(Debug, Default)]
struct Bucket {
    objects: Mutex<BTreeMap<String, (Vec<u8>, String)>>,
    /// Bytes after which the next transfers break off, or stay forever.
    breaks: Mutex<Vec<(usize, bool)>>,
    /// Offset and version of each transfer.
    opened: Mutex<Vec<(u64, Option<String>)>>,
    asked: Mutex<usize>,
    stuck: Arc<Notify>,
}

impl Bucket {
    fn put(&self, key: &str, content: impl Into<Vec<u8>>, version: &str) {
        let object = (content.into(), version.to_owned());
        self.objects.lock().unwrap().insert(format!("s3://models/{key}"), object);
    }

    fn opened(&self) -> Vec<(u64, Option<String>)> {
        std::mem::take(&mut self.opened.lock().unwrap())
    }
}

#[async_trait::async_trait]
impl ObjectStore for Bucket {
    async fn open_from(
        &self,
        uri: &ObjectUri,
        offset: u64,
        version: Option<&str>,
    ) -> Result<Object, StoreError> {
        self.opened.lock().unwrap().push((offset, version.map(str::to_owned)));
        let uri = uri.to_string();
        let Some((content, found)) = self.objects.lock().unwrap().get(&uri).cloned() else {
            return Err(StoreError::NotFound { uri });
        };
        if version.is_some_and(|version| version != found) {
            return Err(StoreError::Changed { uri });
        }
        let rest = content[usize::try_from(offset).unwrap()..].to_vec();
        let mut breaks = self.breaks.lock().unwrap();
        let body = match (!breaks.is_empty()).then(|| breaks.remove(0)) {
            None => stream::iter([Ok(Bytes::from(rest))]).boxed(),
            Some((after, stays)) => {
                let stuck = Arc::clone(&self.stuck);
                let end = async move {
                    if stays {
                        stuck.notify_one();
                        std::future::pending::<()>().await;
                    }
                    Err(io::Error::other("broken off"))
                };
                let start = Bytes::copy_from_slice(&rest[..after]);
                stream::iter([Ok(start)]).chain(stream::once(end)).boxed()
            }
        };
        Ok(Object { size: Some(content.len() as u64), version: Some(found), body })
    }

    async fn version(&self, uri: &ObjectUri) -> Result<Option<String>, StoreError> {
        *self.asked.lock().unwrap() += 1;
        Ok(self.objects.lock().unwrap().get(&uri.to_string()).map(|(_, version)| version.clone()))
    }

    async fn put(&self, uri: &ObjectUri, _: Content, _: &str) -> Result<Stored, StoreError> {
        Err(StoreError::NotFound { uri: uri.to_string() })
    }

    async fn create(&self, uri: &ObjectUri, _: Bytes, _: &str) -> Result<Creation, StoreError> {
        Err(StoreError::NotFound { uri: uri.to_string() })
    }

    async fn delete(&self, _: &ObjectUri) -> Result<(), StoreError> {
        Ok(())
    }

    async fn presign_get(&self, _: &ObjectUri, _: Duration) -> Result<Option<url::Url>, StoreError> {
        Ok(None)
    }

    async fn probe(&self, _: &ObjectUri) -> Result<(), StoreError> {
        Ok(())
    }
}

struct Bed {
    root: tempfile::TempDir,
    bucket: Bucket,
    limit: Option<u64>,
    budget: Budget,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { root, bucket: Bucket::default(), limit: None, budget: Budget::new(1 << 30) }
    }

    /// Those of a worker that has just started.
    fn models(&self) -> Models {
        Models::new(&Folders::new(self.root.path().to_owned()), FolderType::Models, self.limit)
    }

    fn order(&self, name: &str) -> ModelRequest {
        ModelRequest {
            name: format!("loras/{name}"),
            target: self.path(name),
            source: format!("s3://models/{name}"),
            sha256: None,
            overwrite: false,
            replace_foreign: false,
            by_name: true,
            searched: None,
        }
    }

    async fn place(&self, order: &ModelRequest) -> Result<Placed, Failure> {
        let fetcher = Fetcher {
            store: &self.bucket,
            web: &Web::default(),
            allow: &["s3://".to_owned()],
            results: None,
        };
        self.models().place(order, fetcher, &self.budget).await
    }

    /// Whether it had to be fetched; the lease is given back.
    async fn is_cold(&self, order: &ModelRequest) -> bool {
        self.place(order).await.unwrap().is_cold
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("models/loras").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.root.path().join("models/loras"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn version(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn jobs_that_want_a_model_at_once_fetch_it_once() {
    let bed = Bed::new();
    bed.bucket.put("x", "model", "1");
    let order = bed.order("x");
    let placed = futures_util::future::join_all((0..8).map(|_| bed.place(&order))).await;
    let cold = placed.iter().filter(|placed| placed.as_ref().unwrap().is_cold).count();
    assert_eq!((cold, bed.bucket.opened().len(), bed.read("x").as_str()), (1, 1, "model"));
    assert!(!bed.is_cold(&order).await, "and a worker that starts later finds it");
    assert_eq!((bed.names(), bed.budget.used()), (vec!["x".to_owned()], 5));
}

/// Anyone who may publish could else hold a model up by a host that sends a byte now and then.
#[tokio::test]
async fn a_source_that_drips_holds_up_nobody_who_has_another() {
    let bed = Bed::new();
    bed.bucket.put("dripping", "from one who waits", "1");
    bed.bucket.put("good", "from the good one", "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(4, true)];
    let dripping = ModelRequest { source: "s3://models/dripping".to_owned(), ..bed.order("x") };
    let good = ModelRequest { source: "s3://models/good".to_owned(), ..bed.order("x") };
    let after = async {
        bed.bucket.stuck.notified().await;
        bed.place(&good).await.unwrap()
    };
    tokio::select! {
        _ = bed.place(&dripping) => panic!("it never ends"),
        placed = after => assert!(placed.is_cold),
    }
    assert_eq!(bed.read("x"), "from the good one");
    // Its part is dropped like any that nobody goes on with.
    assert_eq!(bed.names().len(), 2);
    bed.models().free(&bed.path(""), u64::MAX).await;
    assert_eq!(bed.names(), Vec::<String>::new());
}

#[tokio::test]
async fn what_could_not_be_fetched_leaves_no_folder() {
    let bed = Bed::new();
    fs::create_dir_all(bed.path("")).unwrap();
    let nowhere = ModelRequest { target: bed.path("a/b/c/x"), ..bed.order("a/b/c/x") };
    bed.place(&nowhere).await.unwrap_err();
    assert!(bed.names().is_empty());
    bed.bucket.put("a/b/c/x", "x", "1");
    assert!(bed.is_cold(&nowhere).await && nowhere.target.is_file());
    bed.models().free(&bed.path(""), u64::MAX).await;
    assert!(bed.names().is_empty());
}

#[tokio::test]
async fn a_transfer_that_broke_off_is_gone_on_with() {
    let bed = Bed::new();
    bed.bucket.put("x", "0123456789", "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(4, false), (3, false)];
    let order = ModelRequest { sha256: Some(checksum::of_bytes(b"0123456789")), ..bed.order("x") };
    for _ in 0..2 {
        assert!(matches!(bed.place(&order).await, Err(Failure::InputUnavailable(_))));
        assert_eq!(bed.budget.used(), 0, "what was not kept does not count");
    }
    assert!(bed.is_cold(&order).await);
    assert_eq!(bed.bucket.opened(), [(0, None), (4, version("1")), (7, version("1"))]);
    assert_eq!((bed.read("x").as_str(), bed.names().len(), bed.budget.used()), ("0123456789", 1, 10));
}

/// As when the worker is killed: the caller is gone in the middle.
#[tokio::test]
async fn a_transfer_whose_caller_is_gone_is_gone_on_with() {
    let bed = Bed::new();
    bed.bucket.put("x", "0123456789", "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(6, true)];
    let order = bed.order("x");
    tokio::select! {
        _ = bed.place(&order) => panic!("it was to be stuck"),
        () = bed.bucket.stuck.notified() => {}
    }
    assert!(bed.is_cold(&order).await);
    assert_eq!(bed.bucket.opened(), [(0, None), (6, version("1"))]);
    assert_eq!((bed.read("x").as_str(), bed.names().len()), ("0123456789", 1));
}

#[tokio::test]
async fn a_model_that_changed_meanwhile_is_fetched_from_the_start() {
    let bed = Bed::new();
    bed.bucket.put("x", "0123456789", "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(4, false)];
    assert!(bed.place(&bed.order("x")).await.is_err());
    bed.bucket.put("x", "abc", "2");
    assert!(bed.is_cold(&bed.order("x")).await);
    assert_eq!(bed.bucket.opened(), [(0, None), (4, version("1")), (0, None)]);
    assert_eq!(bed.read("x"), "abc");
    // Another source is another model, whatever its version is called.
    *bed.bucket.breaks.lock().unwrap() = vec![(4, false)];
    bed.bucket.put("y", "0123456789", "1");
    bed.bucket.put("z", "ABCDEFGHIJ", "1");
    assert!(bed.place(&bed.order("y")).await.is_err());
    let other = ModelRequest { source: "s3://models/z".into(), ..bed.order("y") };
    assert!(bed.is_cold(&other).await);
    assert_eq!(bed.read("y"), "ABCDEFGHIJ");
}

#[tokio::test]
async fn a_wrong_checksum_leaves_nothing() {
    let bed = Bed::new();
    bed.bucket.put("x", "model", "1");
    let order = ModelRequest { sha256: Some("0".repeat(64)), ..bed.order("x") };
    assert!(matches!(bed.place(&order).await, Err(Failure::ChecksumMismatch(_))));
    assert!(bed.names().is_empty());
    assert!(matches!(bed.place(&bed.order("none")).await, Err(Failure::InputNotFound(_))));
    assert!(bed.names().is_empty());
    let small = Bed { budget: Budget::new(4), ..bed };
    assert!(matches!(small.place(&small.order("x")).await, Err(Failure::InputTooLarge(_))));
    assert!(small.names().is_empty());
}

#[tokio::test]
async fn overwriting_asks_whether_the_source_has_changed() {
    let bed = Bed::new();
    bed.bucket.put("x", "first", "1");
    let order = ModelRequest { overwrite: true, ..bed.order("x") };
    assert!(bed.is_cold(&order).await);
    assert!(!bed.is_cold(&order).await && !bed.is_cold(&bed.order("x")).await);
    bed.bucket.put("x", "second", "2");
    assert!(!bed.is_cold(&bed.order("x")).await, "what is there is taken as it is");
    assert_eq!((bed.read("x").as_str(), *bed.bucket.asked.lock().unwrap()), ("first", 1));
    assert!(bed.is_cold(&order).await);
    assert_eq!(bed.read("x"), "second");
    // With a checksum nobody needs to be asked.
    let asked = *bed.bucket.asked.lock().unwrap();
    let summed = ModelRequest { sha256: Some(checksum::of_bytes(b"second")), ..order };
    assert!(!bed.is_cold(&summed).await);
    assert_eq!(*bed.bucket.asked.lock().unwrap(), asked);
    let other = ModelRequest { sha256: Some("0".repeat(64)), ..bed.order("x") };
    assert!(matches!(bed.place(&other).await, Err(Failure::Invalid(_))));
}

/// A web host may claim any size, and send nothing: models of others would go for it.
#[tokio::test]
async fn what_a_source_promises_and_does_not_send_evicts_nothing() {
    let bed = Bed { limit: Some(25), ..Bed::new() };
    bed.bucket.put("a", "0123456789", "1");
    assert!(bed.is_cold(&bed.order("a")).await);
    bed.bucket.put("b", "x".repeat(25), "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(0, false), (4, false)];
    for _ in 0..2 {
        bed.place(&bed.order("b")).await.unwrap_err();
        assert!(!bed.is_cold(&bed.order("a")).await);
    }
    assert!(bed.is_cold(&bed.order("b")).await, "once it comes there is room for it");
    assert_eq!(bed.names(), ["b"]);
}

#[tokio::test]
async fn the_least_recently_used_go_and_never_one_in_use() {
    let bed = Bed { limit: Some(25), ..Bed::new() };
    for name in ["a", "b", "c", "d", "e"] {
        bed.bucket.put(name, "0123456789", "1");
    }
    let place = async |name: &str| bed.place(&bed.order(name)).await.unwrap();
    drop(place("a").await);
    let used = place("b").await;
    drop(place("a").await);
    drop(place("c").await);
    // b is older, but in use.
    assert_eq!(bed.names(), ["b", "c"]);
    let also = place("c").await;
    let third = place("d").await;
    assert_eq!(bed.names(), ["b", "c", "d"], "what is in use stays, past the limit");
    drop(used);
    drop(place("e").await);
    assert_eq!(bed.names(), ["c", "d", "e"]);
    drop((also, third));
    assert!(place("b").await.is_cold);
    assert_eq!(bed.names(), ["b", "e"]);
}

#[tokio::test]
async fn empty_files_and_half_ones_count_as_well() {
    let bed = Bed { limit: Some(25), ..Bed::new() };
    for number in 0..30 {
        bed.bucket.put(&number.to_string(), "", "1");
        bed.is_cold(&bed.order(&number.to_string())).await;
    }
    assert!(bed.names().len() <= 20, "{:?}", bed.names());
    let index = bed.models().index.read();
    assert!(index.models.len() <= 20 && index.models.contains_key("loras/29"), "{:?}", index.models.keys());

    let bed = Bed { limit: Some(25), ..Bed::new() };
    bed.bucket.put("half", "0123456789012345678901234567890", "1");
    bed.bucket.put("b", "0123456789", "1");
    *bed.bucket.breaks.lock().unwrap() = vec![(20, false)];
    assert!(bed.place(&bed.order("half")).await.is_err());
    assert_eq!(bed.names().len(), 1, "to go on with");
    assert!(bed.is_cold(&bed.order("b")).await);
    assert_eq!(bed.names(), ["b"]);
}

#[tokio::test]
async fn what_the_cache_did_not_place_is_never_evicted() {
    let bed = Bed { limit: Some(10), ..Bed::new() };
    fs::create_dir_all(bed.path("")).unwrap();
    let sum = checksum::of_bytes(b"0123456789");
    for name in ["theirs", "summed", "replaced"] {
        fs::write(bed.path(name), "0123456789").unwrap();
    }
    for name in ["a", "b", "replaced", "rewritten"] {
        bed.bucket.put(name, "9876543210", "1");
    }
    assert!(!bed.is_cold(&bed.order("theirs")).await);
    let summed = ModelRequest { sha256: Some(sum), ..bed.order("summed") };
    assert!(!bed.is_cold(&summed).await && !bed.is_cold(&summed).await);
    assert!(
        bed.is_cold(&ModelRequest { overwrite: true, replace_foreign: true, ..bed.order("replaced") }).await
    );
    // Placed by the cache, and written by somebody since.
    assert!(bed.is_cold(&bed.order("rewritten")).await);
    let file = fs::File::options().write(true).open(bed.path("rewritten")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    for name in ["a", "b"] {
        assert!(bed.is_cold(&bed.order(name)).await);
    }
    assert_eq!(bed.names(), ["b", "replaced", "rewritten", "summed", "theirs"]);
    assert!(bed.is_cold(&bed.order("a")).await);
    assert_eq!(bed.names(), ["a", "replaced", "rewritten", "summed", "theirs"]);
}

#[tokio::test]
async fn another_files_checksum_is_not_believed() {
    let bed = Bed::new();
    bed.bucket.put("x", "model", "1");
    let order = ModelRequest { sha256: Some(checksum::of_bytes(b"model")), ..bed.order("x") };
    assert!(bed.is_cold(&order).await);
    fs::write(bed.path("x"), "other").unwrap();
    assert!(matches!(bed.place(&order).await, Err(Failure::Invalid(_))));
    // By now it is somebody's.
    let overwriting = ModelRequest { overwrite: true, ..order };
    assert!(matches!(bed.place(&overwriting).await, Err(Failure::Invalid(_))));
    assert!(bed.is_cold(&ModelRequest { replace_foreign: true, ..overwriting }).await);
    assert_eq!(bed.read("x"), "model");
}

#[test]
fn reserved_names() {
    for name in [".comfy-worker", ".Comfy-Worker", ".comfy-worker-x.part", ".comfy-worker.bak"] {
        assert!(is_reserved(name), "{name}");
    }
    for name in ["comfy-worker", "x", "", ".comfy", "äääääääääää", "x.comfy-worker"] {
        assert!(!is_reserved(name), "{name}");
    }
}

/// ENOSPC itself, on a file system that ends with the process that mounts it.
#[test]
fn models_make_room_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m none \"$1\" && TMPDIR=$1 exec \"$2\" --exact \
                  stage::models::tests::with_four_megabytes --ignored";
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .output()
        .expect("unshare is missing: install util-linux");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && said.contains("1 passed"),
        "(a mount must be possible in a new user namespace) {child:?}"
    );
}

#[tokio::test]
#[ignore = "models_make_room_… runs it, on a file system of 4 MiB"]
async fn with_four_megabytes() {
    let bed = Bed::new();
    let large = |byte: u8, kib: usize| vec![byte; kib << 10];
    for (name, content) in
        [("a", large(1, 1200)), ("b", large(2, 1200)), ("c", large(3, 1200)), ("d", large(4, 3000))]
    {
        bed.bucket.put(name, content, "1");
    }
    for name in ["a", "b"] {
        assert!(bed.is_cold(&bed.order(name)).await);
    }
    let used = bed.place(&bed.order("a")).await.unwrap();
    // A part that nobody goes on with goes first, then b, the one that is not in use.
    *bed.bucket.breaks.lock().unwrap() = vec![(1 << 20, false)];
    assert!(bed.place(&bed.order("d")).await.is_err());
    assert!(bed.is_cold(&bed.order("c")).await);
    assert_eq!(bed.names(), ["a", "b", "c"]);
    let full = bed.place(&bed.order("d")).await;
    assert!(matches!(full, Err(Failure::DiskFull(_))), "{full:?}");
    assert!(bed.names().contains(&"a".to_owned()) && bed.path("a").is_file());
    drop(used);
    assert!(bed.is_cold(&bed.order("d")).await);
    assert_eq!(fs::read(bed.path("d")).unwrap(), large(4, 3000));
    assert_eq!(bed.names(), ["d"]);
}
