#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::store::LocalStore;

struct Bed {
    root: tempfile::TempDir,
    stager: Stager,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::new(root.path().join("comfy"));
        let journal =
            Journal::open(&root.path().join("state"), &Folders::new(root.path().join("comfy"))).unwrap();
        let stager = Stager::new(folders, journal, Arc::new(LocalStore), Vec::new(), 1000);
        let kinds = ["unet", "diffusion_models"].map(|kind| root.path().join("comfy/models").join(kind));
        stager.model_folders().set([("diffusion_models".to_owned(), kinds.to_vec())].into());
        Self { root, stager }
    }

    async fn stage(&self, fields: Value) -> Result<Staged, Failure> {
        let mut body = json!({"id": "job", "workflow": {"nodes": []}});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let job = JobRequest::parse(body.to_string().as_bytes(), None).unwrap();
        self.stager.stage_inputs(&job).await
    }

    fn path(&self, place: &str) -> PathBuf {
        self.root.path().join("comfy").join(place)
    }

    fn read(&self, place: &str) -> String {
        fs::read_to_string(self.path(place)).unwrap()
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

#[tokio::test]
async fn inputs_lie_in_the_jobs_own_folder_until_its_end() {
    let bed = Bed::new();
    let staged = bed
        .stage(json!({"inputs": {"1.image": {"source": "data:,a", "name": "a.png"}, "2.seed": 7}}))
        .await
        .unwrap();
    let value = |address: &str| staged.values[&address.parse::<NodeInput>().unwrap()].clone();
    let folder = bed.names("input").concat();
    // Not to be guessed: another job's `LoadImage` would read what lies there.
    assert!(folder.strip_prefix("job-").is_some_and(|random| random.len() == 32), "{folder}");
    // ComfyUI lists that folder to everybody, and has nodes that read a folder and those in it.
    let inner = bed.names(&format!("input/{folder}")).concat();
    assert_eq!((inner.len(), bed.names(&format!("input/{folder}/{inner}"))), (32, vec!["in".to_owned()]));
    let place = format!("{folder}/{inner}/in/a.png");
    assert_eq!((value("1.image"), value("2.seed")), (json!(place), json!(7)));
    assert_eq!((staged.files, staged.bytes), (1, 1));
    assert_eq!(bed.read(&format!("input/{place}")), "a");
    drop(staged);
    bed.stager.journal().settled().await;
    assert!(bed.names("input").is_empty());
}

#[tokio::test]
async fn sources_never_share_a_name_or_a_part_file() {
    let bed = Bed::new();
    let names = ["x", "X", "2-x", "2-X", "3-x", "x.part", "x.part.part"];
    let inputs: serde_json::Map<String, Value> = names
        .iter()
        .enumerate()
        .map(|(node, name)| {
            (format!("{node}.image"), json!({"source": format!("data:,{name}"), "name": name}))
        })
        .collect();
    let staged = bed.stage(json!({"inputs": inputs})).await.unwrap();
    for (address, place) in &staged.values {
        let wanted = names[address.node.parse::<usize>().unwrap()];
        assert_eq!(bed.read(&format!("input/{}", place.as_str().unwrap())), wanted);
    }
    let places: std::collections::HashSet<_> = staged.values.values().collect();
    assert_eq!(places.len(), names.len());
}

/// Each name was once tried from the first number on: 20,000 took half a minute, in which nothing ended the job.
#[test]
fn many_inputs_of_one_name_are_named_in_no_time() {
    let bare = FileName::parse("x.png").unwrap();
    let mut names = names::UniqueNames::default();
    let taken: std::collections::HashSet<_> = (0..200_000).map(|_| names.take(&bare)).collect();
    assert_eq!(taken.len(), 200_000);
    assert!(taken.contains("x.png") && taken.contains("200000-x.png"));
}

#[tokio::test]
async fn somebody_elses_folder_is_left_alone() {
    let bed = Bed::new();
    fs::create_dir_all(bed.path("input/job")).unwrap();
    fs::write(bed.path("input/job/canary"), "canary").unwrap();
    let staged = bed.stage(json!({"inputs": {"1.image": "data:,a"}})).await.unwrap();
    assert_eq!(bed.names("input").len(), 2);
    drop(staged);
    bed.stager.journal().settled().await;
    assert_eq!(
        (bed.names("input"), bed.read("input/job/canary")),
        (vec!["job".to_owned()], "canary".to_owned())
    );
}

#[tokio::test]
async fn a_failed_stage_leaves_nothing() {
    let bed = Bed::new();
    let inputs = json!({"1.a": "data:,a", "2.b": {"source": "s3://bucket/x", "name": "b"}});
    assert!(matches!(bed.stage(json!({"inputs": inputs})).await, Err(Failure::InputForbidden(_))));
    bed.stager.journal().settled().await;
    assert!(bed.names("input").is_empty());
}

fn file(content: &str, folder: &str, subfolder: &str, more: Value) -> Value {
    let mut file =
        json!({"source": format!("data:,{content}"), "folder": folder, "subfolder": subfolder, "name": "x"});
    file.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    file
}

/// A file that the job before has let go of, and that is not removed yet, is none that is there.
#[tokio::test]
async fn an_ephemeral_file_has_the_name_of_the_last_jobs() {
    let bed = Bed::new();
    for content in ["a", "b", "c", "d"] {
        let files = json!([file(content, "input", "sub", json!({"ephemeral": true}))]);
        let staged = bed.stage(json!({"files": files})).await.unwrap();
        assert_eq!(bed.read("input/sub/x"), content);
        drop(staged);
    }
    bed.stager.journal().settled().await;
    assert!(bed.names("input").is_empty(), "its folder goes with it");
}

/// Never the worker's fault: such a job would be handed back forever.
#[tokio::test]
async fn files_that_cannot_be_placed_are_the_jobs_fault() {
    let bed = Bed::new();
    fs::create_dir_all(bed.path("models/loras/x")).unwrap();
    fs::create_dir_all(bed.path("input/x")).unwrap();
    fs::write(bed.path("models/put_here"), "").unwrap();
    fs::create_dir_all(bed.path("models/diffusion_models/sub")).unwrap();
    fs::write(bed.path("models/diffusion_models/sub/x"), "theirs").unwrap();
    let (first, second) = (file("a", "input", "sub", json!({})), file("b", "input", "sub", json!({})));
    for files in [
        json!([file("a", "models", "put_here", json!({}))]),
        json!([file("a", "models", "loras", json!({}))]),
        json!([file("a", "models", "loras", json!({"overwrite": true}))]),
        json!([file("a", "input", "", json!({}))]),
        json!([file("a", "input", "../x", json!({}))]),
        json!([first, second]),
        // It would stand in for the operator's: ComfyUI looks for a model under both names of its kind.
        json!([file("theirs", "models", "unet/sub", json!({}))]),
        json!([file("theirs", "models", "unet/sub", json!({"ephemeral": true}))]),
    ] {
        let outcome = bed.stage(json!({"files": files})).await;
        assert!(
            matches!(&outcome, Err(Failure::Invalid(why)) if why.starts_with("files: ")),
            "{files}: {outcome:?}"
        );
    }
    assert_eq!(bed.names("models/loras"), ["x"]);
}

/// An operator's models and inputs are not a publisher's to replace.
#[tokio::test]
async fn what_no_job_has_brought_is_replaced_only_where_that_is_allowed() {
    let mut bed = Bed::new();
    let places = [("models", "loras"), ("input", ""), ("output", "a"), ("temp", "")];
    let overwriting = |content: &str, ephemeral| {
        let files = places.map(|(folder, subfolder)| {
            file(content, folder, subfolder, json!({"overwrite": true, "ephemeral": ephemeral}))
        });
        files.map(|file| json!({"files": [file]}))
    };
    let path = |(folder, subfolder): (&str, &str)| format!("{folder}/{subfolder}/x").replace("//", "/");
    for place in places {
        fs::create_dir_all(bed.path(&path(place)).parent().unwrap()).unwrap();
        fs::write(bed.path(&path(place)), "theirs").unwrap();
    }
    for job in overwriting("a", false).into_iter().chain(overwriting("a", true)) {
        let outcome = bed.stage(job).await;
        assert!(
            matches!(&outcome, Err(Failure::Invalid(why)) if why.contains("inputs.replace_foreign")),
            "{outcome:?}"
        );
    }
    for place in places {
        assert_eq!(bed.read(&path(place)), "theirs");
        fs::remove_file(bed.path(&path(place))).unwrap();
    }
    // What jobs have brought they replace.
    for content in ["a", "b"] {
        for (job, place) in overwriting(content, false).into_iter().zip(places) {
            bed.stage(job).await.unwrap();
            assert_eq!(bed.read(&path(place)), content);
        }
    }
    for place in places {
        fs::write(bed.path(&path(place)), "theirs, now").unwrap();
    }
    bed.stager = bed.stager.clone().replacing_foreign(true);
    for (job, place) in overwriting("c", false).into_iter().zip(places) {
        bed.stage(job).await.unwrap();
        assert_eq!(bed.read(&path(place)), "c");
    }
}

/// A job that is tried again brings its files again.
#[tokio::test]
async fn a_file_that_the_same_source_has_brought_is_no_obstacle() {
    let bed = Bed::new();
    let job = json!({"files": [file("a", "input", "", json!({}))]});
    for _ in 0..2 {
        bed.stage(job.clone()).await.unwrap();
        assert_eq!(bed.read("input/x"), "a");
    }
    let other = json!({"files": [file("b", "input", "", json!({}))]});
    assert!(matches!(bed.stage(other).await, Err(Failure::Invalid(_))));
}

/// They once stayed forever, whatever jobs brought.
#[tokio::test]
async fn files_that_jobs_leave_have_a_limit() {
    let mut bed = Bed::new();
    bed.stager = bed.stager.clone().with_file_cache(10);
    for number in 0..6 {
        let name = json!({"name": format!("x{number}")});
        drop(bed.stage(json!({"files": [file("four", "input", "", name)]})).await.unwrap());
    }
    assert_eq!(bed.names("input"), [".comfy-worker", "x4", "x5"]);
}

#[tokio::test]
async fn a_model_is_fetched_once_and_shared() {
    let bed = Bed::new();
    let sum = crate::checksum::of_bytes(b"model");
    let model = file("model", "models", "loras", json!({"sha256": sum}));
    assert!(bed.stage(json!({"files": [model, model, model]})).await.is_ok());
    let (first, again) =
        tokio::join!(bed.stage(json!({"files": [model]})), bed.stage(json!({"files": [model]})));
    assert!(first.is_ok() && again.is_ok());
    assert_eq!(
        (bed.names("models/loras"), bed.read("models/loras/x")),
        (vec!["x".to_owned()], "model".to_owned())
    );
    // The same name for another file is refused, and replaced when that is said.
    let other = |overwrite| {
        let sum = crate::checksum::of_bytes(b"other");
        file("other", "models", "loras", json!({"sha256": sum, "overwrite": overwrite}))
    };
    assert!(matches!(bed.stage(json!({"files": [other(false)]})).await, Err(Failure::Invalid(_))));
    assert_eq!(bed.read("models/loras/x"), "model");
    assert!(bed.stage(json!({"files": [other(true)]})).await.is_ok());
    assert_eq!(bed.read("models/loras/x"), "other");
}
