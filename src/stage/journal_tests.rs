#![allow(clippy::unwrap_used)]
use std::os::unix::fs::symlink;

use super::*;

/// A journal as a killed worker leaves it: its lock is gone, its drops never ran.
fn killed(journal: Arc<Journal>) -> PathBuf {
    let path = journal.path.clone();
    journal.file.lock().unwrap().unlock().unwrap();
    std::mem::forget(journal);
    path
}

fn kill_owner(owned: Owned) {
    std::mem::forget(owned);
}

struct Bed {
    _folder: tempfile::TempDir,
    state: PathBuf,
    input: PathBuf,
}

fn bed() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let (state, input) = (folder.path().join("state"), folder.path().join("input"));
    fs::create_dir(&input).unwrap();
    Bed { _folder: folder, state, input }
}

fn journals(bed: &Bed) -> usize {
    fs::read_dir(bed.state.join("journal")).unwrap().count()
}

#[tokio::test]
async fn the_next_start_sweeps_what_a_dead_worker_left_and_nothing_else() {
    let bed = bed();
    fs::write(bed.input.join("theirs.png"), "theirs").unwrap();
    let journal = Journal::open(&bed.state).unwrap();
    let kept = journal.create_folder(&bed.input, "done").await.unwrap();
    drop(kept);
    let folder = journal.create_folder(&bed.input, "job-1").await.unwrap();
    fs::write(folder.path().join("cat.png"), "ours").unwrap();
    let output = journal.own_random(bed.input.join("comfy-worker-0123"));
    fs::create_dir(output.path()).unwrap();
    symlink("/", output.path().join("link")).unwrap();
    kill_owner(folder);
    kill_owner(output);
    killed(journal);

    let next = Journal::open(&bed.state).unwrap();
    let left: Vec<_> = fs::read_dir(&bed.input).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["theirs.png"]);
    assert_eq!(journals(&bed), 1, "only the new one");
    drop(next);
    assert_eq!(journals(&bed), 0);
}

#[tokio::test]
async fn a_live_owners_files_stay() {
    let bed = bed();
    let live = Journal::open(&bed.state).unwrap();
    let folder = live.create_folder(&bed.input, "job-1").await.unwrap();
    let other = Journal::open(&bed.state).unwrap();
    assert!(folder.path().is_dir());
    assert_eq!(journals(&bed), 2);
    drop(other);
    drop(folder);
    assert!(!bed.input.join("job-1").exists());
    drop(live);
    assert_eq!(journals(&bed), 0);
}

#[tokio::test]
async fn what_took_the_name_since_is_not_ours() {
    let bed = bed();
    let journal = Journal::open(&bed.state).unwrap();
    let folder = journal.create_folder(&bed.input, "job-1").await.unwrap();
    kill_owner(folder);
    let part = journal.own_random(bed.input.join(".part"));
    fs::write(part.path(), "ours").unwrap();
    let file = journal.adopt(part, &bed.input.join("cat.png")).unwrap();
    kill_owner(file);
    killed(journal);
    // Made before the old ones go, so that no inode is given twice.
    fs::create_dir(bed.input.join("folder")).unwrap();
    fs::write(bed.input.join("file"), "theirs").unwrap();
    fs::remove_dir(bed.input.join("job-1")).unwrap();
    fs::rename(bed.input.join("folder"), bed.input.join("job-1")).unwrap();
    fs::rename(bed.input.join("file"), bed.input.join("cat.png")).unwrap();

    let _next = Journal::open(&bed.state).unwrap();
    assert!(bed.input.join("job-1").is_dir());
    assert_eq!(fs::read_to_string(bed.input.join("cat.png")).unwrap(), "theirs");
    assert_eq!(journals(&bed), 1);
}

/// Death between the line and the rename: the name is somebody else's, and stays theirs.
#[tokio::test]
async fn a_name_that_was_never_taken_is_not_swept() {
    let bed = bed();
    let theirs = bed.input.join("job-1");
    fs::write(&theirs, "theirs").unwrap();
    let journal = Journal::open(&bed.state).unwrap();
    assert_eq!(
        journal.create_folder(&bed.input, "job-1").await.unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    let part = journal.own_random(bed.input.join(".part"));
    fs::write(part.path(), "ours").unwrap();
    journal.write(&Line::Owned { path: theirs.clone(), inode: Some(Inode::of(part.path()).unwrap()) });
    kill_owner(part);
    killed(journal);

    let _next = Journal::open(&bed.state).unwrap();
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
    assert_eq!(fs::read_dir(&bed.input).unwrap().count(), 1, "the part is gone");
}

#[tokio::test]
async fn a_last_line_that_was_cut_is_passed_by() {
    let bed = bed();
    let journal = Journal::open(&bed.state).unwrap();
    kill_owner(journal.create_folder(&bed.input, "job-1").await.unwrap());
    let path = killed(journal);
    // In the middle of a character.
    let mut cut = serde_json::to_vec(&Line::Owned { path: bed.input.join("größer"), inode: None }).unwrap();
    let middle = cut.iter().position(|byte| *byte == 0xc3).unwrap();
    cut.truncate(middle + 1);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(&cut).unwrap();

    let _next = Journal::open(&bed.state).unwrap();
    assert_eq!(fs::read_dir(&bed.input).unwrap().count(), 0);
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_removed_is_tried_again_by_the_next_start() {
    let bed = bed();
    let journal = Journal::open(&bed.state).unwrap();
    // Nobody, root included, can remove what the kernel shows there.
    let parent = bed.input.join("parent");
    symlink("/proc/self", &parent).unwrap();
    drop(journal.own_random(parent.join("fdinfo")));
    drop(journal);
    assert_eq!(journals(&bed), 1);

    fs::remove_file(&parent).unwrap();
    fs::create_dir_all(parent.join("fdinfo")).unwrap();
    drop(Journal::open(&bed.state).unwrap());
    assert!(parent.exists() && !parent.join("fdinfo").exists());
    assert_eq!(journals(&bed), 0);
}

#[test]
fn starts_side_by_side_keep_their_journals() {
    let bed = bed();
    let state = &bed.state;
    let all: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16).map(|_| scope.spawn(|| Journal::open(state).unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(all.iter().all(|journal| journal.path.exists()));
    drop(all);
    assert_eq!(journals(&bed), 0);
}
