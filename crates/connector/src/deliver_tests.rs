#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::symlink, sync::Mutex};

use contract::request::FolderType;
use serde_json::{Value, json};

use super::*;
use crate::{checksum, comfy::events::Image, stage::FileName, store::LocalStore};

const OWN: &str = "comfy-worker-1";

struct Bed {
    root: tempfile::TempDir,
    folders: Folders,
    own: OwnFolder,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::new(root.path().join("comfy"));
        let own = OwnFolder::create(&folders.of(FolderType::Output).join(OWN)).unwrap();
        Self { root, folders, own }
    }

    /// Writes a file under ComfyUI's folder.
    fn write(&self, place: &str, content: &str) -> PathBuf {
        let path = self.root.path().join("comfy").join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn find(&self, outputs: Value, request: &OutputRequest) -> Result<FoundOutputs, MissingOutputs> {
        let history = History::find(&json!({"p": {"outputs": outputs}}), "p").unwrap();
        find(&self.folders, &self.own, request, &history, Vec::new(), 10)
    }

    fn plain(&self, outputs: Value) -> Result<FoundOutputs, MissingOutputs> {
        self.find(outputs, &OutputRequest::default())
    }

    async fn upload(&self, findings: FoundOutputs) -> Vec<Output> {
        let base = ObjectUri::File(self.root.path().join("store"));
        let destination =
            Destination { store: &LocalStore, root: base.clone(), base, own: true, presign: None };
        findings.upload(&destination, &self.early(), |_, _, _, _| {}).await.unwrap()
    }

    fn early(&self) -> EagerUploads {
        let limits = OutputsConfig { allow: Vec::new(), max_files: 10, max_bytes: 1000 };
        let base = ObjectUri::File(self.root.path().join("store"));
        let request = OutputRequest::default();
        EagerUploads::new(Arc::new(LocalStore), base, self.folders.clone(), self.own.clone(), request, limits)
    }

    fn stored(&self, place: &str) -> Option<String> {
        fs::read_to_string(self.root.path().join("store/outputs").join(place)).ok()
    }
}

fn file(filename: &str, subfolder: &str, folder: &str) -> Value {
    json!({"filename": filename, "subfolder": subfolder, "type": folder})
}

/// Each number was once tried from the first one on.
#[test]
fn many_files_of_one_name_are_named_in_no_time() {
    let mut places = ObjectNames::default();
    let given: BTreeSet<_> = (0..100_000).map(|file| places.give("a/x.png", &format!("{file}"))).collect();
    assert_eq!(given.len(), 100_000);
    assert!(given.contains("a/x.png") && given.contains("a/100000-x.png"));
    assert_eq!(places.give("a/x.png", "7"), "a/8-x.png", "the same file again");
}

fn places(findings: &FoundOutputs) -> Vec<&str> {
    findings.files.iter().map(|found| found.place.as_str()).collect()
}

#[tokio::test]
async fn files_under_any_key_and_texts_are_delivered() {
    let bed = Bed::new();
    bed.write(&format!("output/{OWN}/x_1.png"), "png");
    bed.write(&format!("output/{OWN}/sub/v.mp4"), "video!");
    let outputs = json!({
        "9": {"images": [file("x_1.png", OWN, "output")], "animated": [false]},
        "10": {"gifs": [file("v.mp4", &format!("{OWN}/sub"), "output")], "text": ["hello"]},
        "11": {"images": [file("uploaded.png", "", "input")]},
    });
    let findings = bed.plain(outputs).unwrap();
    assert_eq!((places(&findings), findings.files()), (vec!["x_1.png", "sub/v.mp4"], 2));
    let told = Mutex::new(Vec::new());
    let base = ObjectUri::File(bed.root.path().join("store"));
    let destination = Destination { store: &LocalStore, root: base.clone(), base, own: true, presign: None };
    let each = |name: &str, size, done, of| told.lock().unwrap().push((name.to_owned(), size, done, of));
    let outputs = findings.upload(&destination, &bed.early(), each).await.unwrap();
    let shown: Vec<_> = outputs.iter().map(|o| (o.node.as_str(), o.key.as_str(), o.index, o.kind)).collect();
    let expected =
        [("9", "images", 0, Kind::Image), ("10", "gifs", 0, Kind::Video), ("10", "text", 0, Kind::Text)];
    assert_eq!(shown, expected);
    let picture = outputs[0].file.as_ref().unwrap();
    assert_eq!(
        (picture.filename.as_str(), picture.size, picture.content_type.as_str()),
        ("x_1.png", 3, "image/png")
    );
    assert_eq!(picture.sha256, checksum::of_bytes(b"png"));
    assert_eq!((picture.url.as_ref(), picture.temp), (None, false));
    let stored = bed.root.path().join("store/outputs");
    assert_eq!(fs::read_to_string(stored.join("x_1.png")).unwrap(), "png");
    assert_eq!(fs::read_to_string(stored.join("sub/v.mp4")).unwrap(), "video!");
    assert_eq!(outputs[2].text.as_deref(), Some("hello"));
    let mut told = told.into_inner().unwrap();
    told.sort_by_key(|(_, _, done, _)| *done);
    assert_eq!(told.iter().map(|(_, _, done, of)| (*done, *of)).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
}

#[tokio::test]
async fn a_file_listed_twice_is_one_object_and_two_of_one_name_are_two() {
    let bed = Bed::new();
    bed.write(&format!("output/{OWN}/x.png"), "own");
    bed.write("output/x.png", "beside");
    bed.write("temp/x.png", "temp");
    let request = OutputRequest { include_temp: true, ..OutputRequest::default() };
    let own = file("x.png", OWN, "output");
    let outputs = json!({"1": {"images": [own, file("x.png", "", "output")]}, "2": {"images": [own, file("x.png", "", "temp")]}});
    let findings = bed.find(outputs, &request).unwrap();
    assert_eq!(places(&findings), ["x.png", "2-x.png", "x.png", "3-x.png"]);
    let outputs = bed.upload(findings).await;
    let temp: Vec<bool> = outputs.iter().map(|output| output.file.as_ref().unwrap().temp).collect();
    assert_eq!(temp, [false, false, false, true]);
    for (place, content) in [("x.png", "own"), ("2-x.png", "beside"), ("3-x.png", "temp")] {
        assert_eq!(fs::read_to_string(bed.root.path().join("store/outputs").join(place)).unwrap(), content);
    }
    let uris: Vec<&str> = outputs.iter().map(|output| output.file.as_ref().unwrap().uri.as_str()).collect();
    assert!(uris[0] == uris[2] && uris[0] != uris[1]);
}

#[tokio::test]
async fn temp_files_are_left_out_and_removed() {
    let bed = Bed::new();
    let preview = bed.write("temp/p/preview.png", "p");
    let findings = bed.plain(json!({"1": {"images": [file("preview.png", "p", "temp")]}})).unwrap();
    assert_eq!(findings.files(), 0);
    assert!(bed.upload(findings).await.is_empty());
    settled().await;
    assert!(!preview.exists());
}

/// Whether it is missing beside others, too much, or nobody uploads it.
#[tokio::test]
async fn what_is_not_uploaded_is_removed_too() {
    let bed = Bed::new();
    let written = || [bed.write("output/x.png", "x"), bed.write("temp/p.png", "p")];
    let listed = [file("x.png", "", "output"), file("p.png", "", "temp")];
    let outputs = json!({"1": {"images": listed}});

    let paths = written();
    drop(bed.plain(outputs.clone()).unwrap());
    settled().await;
    assert!(paths.iter().all(|path| !path.exists()), "found, and not wanted");

    let paths = written();
    let limits = OutputsConfig { allow: Vec::new(), max_files: 0, max_bytes: 0 };
    assert!(bed.plain(outputs.clone()).unwrap().within(&limits).is_err());
    settled().await;
    assert!(paths.iter().all(|path| !path.exists()), "too large");

    let paths = written();
    let more = json!({"1": {"images": listed}, "2": {"images": [file("none.png", "", "output")]}});
    assert!(bed.plain(more).is_err());
    settled().await;
    assert!(paths.iter().all(|path| !path.exists()), "another is missing");

    let paths = written();
    let history = History::find(&json!({"p": {"outputs": outputs}}), "p").unwrap();
    discard(&bed.folders, &bed.own, Arc::new(history)).await;
    settled().await;
    assert!(paths.iter().all(|path| !path.exists()), "of a job that failed");
}

/// An execution that is cancelled has no history: what its nodes told while it ran is all there is.
#[tokio::test]
async fn what_nodes_wrote_before_a_cancel_is_removed() {
    let bed = Bed::new();
    let paths = [bed.write("output/x.png", "x"), bed.write("temp/p.png", "p")];
    let own = bed.write(&format!("output/{OWN}/own.png"), "own");
    let theirs = bed.write("input/theirs.png", "theirs");
    let mut early = bed.early();
    let listed = [
        file("x.png", "", "output"),
        file("p.png", "", "temp"),
        file("own.png", OWN, "output"),
        file("theirs.png", "", "input"),
    ];
    early.begin("1", &json!({"images": listed}));
    early.settle().await;
    drop(early);
    settled().await;
    assert!(paths.iter().all(|path| !path.exists()));
    assert!(own.exists() && theirs.exists(), "goes with its folder; is nothing that a node made");
}

/// The next job has written it again, under the same name, before the removal came to it.
#[tokio::test]
async fn what_the_next_job_wrote_under_the_same_name_stays() {
    let bed = Bed::new();
    let path = bed.write("output/fixed.png", "first");
    let findings = bed.plain(json!({"1": {"images": [file("fixed.png", "", "output")]}})).unwrap();
    fs::write(&path, "the second one's").unwrap();
    bed.upload(findings).await;
    settled().await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "the second one's");
}

#[tokio::test]
async fn what_a_node_lists_falsely_is_neither_read_nor_removed() {
    let bed = Bed::new();
    let canary = bed.root.path().join("canary");
    fs::write(&canary, "canary").unwrap();
    let input = bed.write("input/other-job/x.png", "other's");
    bed.write("temp/x", "");
    bed.write("output/x", "");
    symlink(bed.root.path(), bed.root.path().join("comfy/temp/link")).unwrap();
    symlink(bed.root.path(), bed.root.path().join("comfy/output/link")).unwrap();
    symlink(&canary, bed.root.path().join("comfy/output/file-link")).unwrap();
    fs::hard_link(&canary, bed.root.path().join("comfy/output/hard")).unwrap();
    let lies = [
        ("canary", "../..", ""),
        ("../../canary", "", ""),
        ("x.png", "../input/other-job", ""),
        (canary.to_str().unwrap(), "", ""),
        ("canary", bed.root.path().to_str().unwrap(), ""),
        ("canary", "link", ""),
        ("file-link", "", "output"),
        ("hard", "", "output"),
        ("link", "", "output"),
        ("", "", ""),
        ("none", "", "output"),
        ("x\n\u{1b}[31m", "", "output"),
    ];
    for (filename, subfolder, only) in lies {
        for folder in ["temp", "output"].into_iter().filter(|folder| only.is_empty() || *folder == only) {
            for include_temp in [false, true] {
                let request = OutputRequest { include_temp, ..OutputRequest::default() };
                let outputs = json!({"7": {"images": [file(filename, subfolder, folder)]}});
                match bed.find(outputs, &request) {
                    Ok(findings) => {
                        assert!(folder == "temp" && !include_temp, "{filename:?} {subfolder:?} {folder}");
                        assert!(findings.written().is_empty(), "{:?}", findings.written());
                    }
                    Err(missing) => {
                        assert_eq!(missing.nodes, BTreeSet::from(["7".to_owned()]));
                        assert!(missing.message.starts_with("node 7 lists \""), "{}", missing.message);
                        assert!(!missing.message.contains(['\n', '\u{1b}']), "{:?}", missing.message);
                    }
                }
            }
        }
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "canary");
    assert_eq!(fs::read_to_string(input).unwrap(), "other's");
}

#[test]
fn everything_that_is_missing_is_named() {
    let bed = Bed::new();
    bed.write("output/there.png", "");
    let missing = bed
        .plain(json!({
            "2": {"images": [file("a.png", OWN, "output"), file("there.png", "", "output")]},
            "10": {"images": [file("b.png", OWN, "output")]},
        }))
        .unwrap_err();
    assert_eq!(missing.nodes, BTreeSet::from(["10".to_owned(), "2".to_owned()]));
    assert!(missing.message.contains("a.png") && missing.message.contains("b.png"), "{}", missing.message);
    assert!(!missing.message.contains("there.png"));
}

#[tokio::test]
async fn pictures_of_the_websocket_stay_apart_whatever_their_nodes_are_called() {
    let bed = Bed::new();
    let image = |content: &'static str| Image {
        node: None,
        content_type: if content == "jpg" { "image/jpeg" } else { "image/png" },
        bytes: Bytes::from_static(content.as_bytes()),
    };
    let images = [("1:2", 0, "a"), ("1-2", 0, "b"), ("1-2", 1, "jpg"), ("../x", 0, "c")];
    let images =
        images.map(|(node, index, content)| OutputImage { node: node.into(), index, image: image(content) });
    let history = History::find(&json!({"p": {"outputs": {}}}), "p").unwrap();
    let found = find(&bed.folders, &bed.own, &OutputRequest::default(), &history, images.into(), 10).unwrap();
    assert_eq!(places(&found), ["1-2_00001_.png", "2-1-2_00001_.png", "1-2_00002_.jpg", "---x_00001_.png"]);
    let outputs = bed.upload(found).await;
    for (output, content) in outputs.iter().zip(["a", "b", "jpg", "c"]) {
        let file = output.file.as_ref().unwrap();
        assert_eq!(file.sha256, checksum::of_bytes(content.as_bytes()));
        assert_eq!((output.key.as_str(), output.kind), ("images", Kind::Image));
        assert!(FileName::parse(&file.filename).is_ok());
    }
}

/// A publisher can have a node list any file.
#[tokio::test]
async fn a_file_that_is_older_than_the_job_is_not_its() {
    let bed = Bed::new();
    let theirs = [bed.write("output/operator.txt", "theirs"), bed.write("temp/preview.png", "theirs")];
    bed.write(&format!("output/{OWN}/mine.png"), "mine");
    let since = std::time::Instant::now();
    let own = || OwnFolder::create(&bed.folders.of(FolderType::Output).join("comfy-worker-2")).unwrap();
    // File systems tell the time in steps.
    while own().is_as_young(&fs::metadata(&theirs[1]).unwrap()) {
        assert!(since.elapsed() < Duration::from_secs(10), "time stands still");
        fs::remove_dir(bed.folders.of(FolderType::Output).join("comfy-worker-2")).unwrap();
    }
    let (bed, outputs) = (
        Bed { own: own(), ..bed },
        json!({"1": {"files": [file("operator.txt", "", "output")]}, "2": {"images": [file("preview.png", "", "temp")]}}),
    );
    let request = OutputRequest { include_temp: true, ..OutputRequest::default() };
    let missing = bed.find(outputs.clone(), &request).unwrap_err();
    assert_eq!(missing.nodes, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    assert!(missing.message.contains("it is older than the job"), "{}", missing.message);
    let history = History::find(&json!({"p": {"outputs": outputs}}), "p").unwrap();
    discard(&bed.folders, &bed.own, Arc::new(history)).await;
    settled().await;
    assert!(theirs.iter().all(|path| path.is_file()));
}

/// A prompt of our own that is over within a step of the file system's clock.
#[tokio::test]
async fn a_preview_of_the_clocks_same_step_goes() {
    let bed = Bed::new();
    for round in 0..20 {
        let own = OwnFolder::none(std::time::SystemTime::now());
        let preview = bed.write("temp/preview.png", "ours");
        let outputs = json!({"1": {"images": [file("preview.png", "", "temp")]}});
        let history = History::find(&json!({"p": {"outputs": outputs}}), "p").unwrap();
        discard(&bed.folders, &own, Arc::new(history)).await;
        settled().await;
        assert!(!preview.exists(), "round {round}");
    }
}

#[test]
fn kinds_by_extension() {
    for (name, expected) in [
        ("a.PNG", Kind::Image),
        ("a.webp", Kind::Image),
        ("a.mp4", Kind::Video),
        ("a.flac", Kind::Audio),
        ("a.glb", Kind::Model),
        ("a.latent", Kind::Latent),
        ("a.safetensors", Kind::File),
        ("png", Kind::File),
        ("a", Kind::File),
        ("", Kind::File),
    ] {
        assert_eq!(kind(name), expected, "{name}");
    }
}

/// Waits until a node's files are in the store.
async fn arrival(bed: &Bed, place: &str, content: &str) {
    let since = std::time::Instant::now();
    while bed.stored(place).as_deref() != Some(content) {
        assert!(since.elapsed() < Duration::from_secs(30), "{place} is not uploaded");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_early_upload_stands_for_the_file_that_it_is_of() {
    let bed = Bed::new();
    let (own, mut early) = (format!("output/{OWN}"), bed.early());
    let listed = |name: &str| json!({"images": [file(name, OWN, "output")]});
    for (node, name) in [("1", "same.png"), ("2", "changed.png"), ("3", "unlisted.png")] {
        bed.write(&format!("{own}/{name}"), "early");
        early.begin(node, &listed(name));
        arrival(&bed, name, "early").await;
    }
    early.begin("4", &listed("missing.png"));
    early.settle().await;
    // What shows that the first one is not sent again.
    fs::write(bed.root.path().join("store/outputs/same.png"), "once").unwrap();
    fs::write(bed.folders.of(FolderType::Output).join(OWN).join("changed.png"), "late!").unwrap();
    let findings = bed.plain(json!({"1": listed("same.png"), "2": listed("changed.png")})).unwrap();
    let base = ObjectUri::File(bed.root.path().join("store"));
    let destination = Destination { store: &LocalStore, root: base.clone(), base, own: true, presign: None };
    let outputs = findings.upload(&destination, &early, |_, _, _, _| {}).await.unwrap();
    early.discard().await;
    let sums: Vec<_> = outputs.iter().map(|output| output.file.as_ref().unwrap().sha256.clone()).collect();
    assert_eq!(sums, [checksum::of_bytes(b"early"), checksum::of_bytes(b"late!")]);
    assert_eq!(bed.stored("same.png").as_deref(), Some("once"));
    assert_eq!(bed.stored("changed.png").as_deref(), Some("late!"));
    assert_eq!(bed.stored("unlisted.png"), None);
}

#[tokio::test]
async fn early_uploads_keep_to_the_limits_and_go_when_nobody_wants_them() {
    let bed = Bed::new();
    let mut early = bed.early();
    bed.write(&format!("output/{OWN}/small.png"), "small");
    bed.write(&format!("output/{OWN}/large.png"), &"x".repeat(996));
    bed.write("temp/preview.png", "temp");
    let images =
        [file("small.png", OWN, "output"), file("large.png", OWN, "output"), file("preview.png", "", "temp")];
    early.begin("1", &json!({"images": images, "text": ["x"]}));
    early.settle().await;
    arrival(&bed, "small.png", "small").await;
    assert_eq!((bed.stored("large.png"), bed.stored("preview.png")), (None, None));
    early.discard().await;
    assert_eq!(bed.stored("small.png"), None);
}
