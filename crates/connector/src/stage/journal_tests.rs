#![allow(clippy::unwrap_used)]
use std::{
    collections::VecDeque,
    fs::OpenOptions,
    io::Write,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::FutureExt;

use super::{file::JournalLine, *};

fn open(state: &Path) -> io::Result<Arc<Journal>> {
    Journal::open(state, &Folders::new(state.parent().unwrap().to_owned()))
}

/// A journal as a killed worker leaves it: its lock is gone, its drops never ran.
async fn killed(journal: Arc<Journal>) -> PathBuf {
    // It had time for what it let go of before.
    journal.settled().await;
    let path = journal.book().unlock();
    std::mem::forget(journal);
    path
}

/// An orderly end.
async fn end(journal: Arc<Journal>) {
    journal.settled().await;
    drop(journal);
}

fn kill_owner(owned: EphemeralPath) {
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
    let journal = open(&bed.state).unwrap();
    let kept = journal.create_folder(&bed.input, "done").await.unwrap();
    drop(kept);
    journal.settled().await;
    assert!(!bed.input.join("done").exists());
    let folder = journal.create_folder(&bed.input, "job-1").await.unwrap();
    fs::write(folder.path().join("cat.png"), "ours").unwrap();
    let output = journal.own_now(bed.input.join("comfy-worker-0123")).unwrap();
    fs::create_dir(output.path()).unwrap();
    symlink("/", output.path().join("link")).unwrap();
    kill_owner(folder);
    kill_owner(output);
    killed(journal).await;

    let next = open(&bed.state).unwrap();
    let left: Vec<_> = fs::read_dir(&bed.input).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["theirs.png"]);
    assert_eq!(journals(&bed), 1, "only the new one");
    end(next).await;
    assert_eq!(journals(&bed), 0);
}

#[tokio::test]
async fn a_live_owners_files_stay() {
    let bed = bed();
    let live = open(&bed.state).unwrap();
    let folder = live.create_folder(&bed.input, "job-1").await.unwrap();
    let other = open(&bed.state).unwrap();
    assert!(folder.path().is_dir());
    assert_eq!(journals(&bed), 2);
    end(other).await;
    drop(folder);
    live.settled().await;
    assert!(!bed.input.join("job-1").exists());
    end(live).await;
    assert_eq!(journals(&bed), 0);
}

#[tokio::test]
async fn what_took_the_name_since_is_not_ours() {
    let bed = bed();
    let journal = open(&bed.state).unwrap();
    let folder = journal.create_folder(&bed.input, "job-1").await.unwrap();
    kill_owner(folder);
    let part = journal.own_now(bed.input.join(".part")).unwrap();
    fs::write(part.path(), "ours").unwrap();
    let file = journal.adopt(part, &bed.input.join("cat.png")).unwrap();
    kill_owner(file);
    killed(journal).await;
    // Made before the old ones go, so that no inode is given twice.
    fs::create_dir(bed.input.join("folder")).unwrap();
    fs::write(bed.input.join("file"), "theirs").unwrap();
    fs::remove_dir(bed.input.join("job-1")).unwrap();
    fs::rename(bed.input.join("folder"), bed.input.join("job-1")).unwrap();
    fs::rename(bed.input.join("file"), bed.input.join("cat.png")).unwrap();

    let _next = open(&bed.state).unwrap();
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
    let journal = open(&bed.state).unwrap();
    assert_eq!(
        journal.create_folder(&bed.input, "job-1").await.unwrap_err().kind(),
        io::ErrorKind::AlreadyExists
    );
    let part = journal.own_now(bed.input.join(".part")).unwrap();
    fs::write(part.path(), "ours").unwrap();
    let inode = Some(Inode::of(part.path()).unwrap());
    journal.book().list(&Entry { path: theirs.clone(), inode }).unwrap();
    kill_owner(part);
    killed(journal).await;

    let _next = open(&bed.state).unwrap();
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
    assert_eq!(fs::read_dir(&bed.input).unwrap().count(), 1, "the part is gone");
}

#[tokio::test]
async fn a_last_line_that_was_cut_is_passed_by() {
    let bed = bed();
    let journal = open(&bed.state).unwrap();
    kill_owner(journal.create_folder(&bed.input, "job-1").await.unwrap());
    let path = killed(journal).await;
    // In the middle of a character.
    let mut cut =
        serde_json::to_vec(&JournalLine::Owned(Entry { path: bed.input.join("größer"), inode: None }))
            .unwrap();
    let middle = cut.iter().position(|byte| *byte == 0xc3).unwrap();
    cut.truncate(middle + 1);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(&cut).unwrap();

    let _next = open(&bed.state).unwrap();
    assert_eq!(fs::read_dir(&bed.input).unwrap().count(), 0);
    assert!(!path.exists());
}

#[test]
fn what_cannot_be_removed_is_tried_again_by_the_next_start() {
    let bed = bed();
    let journal = open(&bed.state).unwrap();
    // Nobody, root included, can remove what the kernel shows there.
    let parent = bed.input.join("parent");
    symlink("/proc/self", &parent).unwrap();
    drop(journal.own_now(parent.join("fdinfo")).unwrap());
    drop(journal);
    assert_eq!(journals(&bed), 1);

    fs::remove_file(&parent).unwrap();
    fs::create_dir_all(parent.join("fdinfo")).unwrap();
    drop(open(&bed.state).unwrap());
    assert!(!parent.exists(), "its folder, which is empty then, goes with it");
    assert_eq!(journals(&bed), 0);
}

#[test]
fn starts_side_by_side_keep_their_journals() {
    let bed = bed();
    let state = &bed.state;
    let all: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16).map(|_| scope.spawn(|| open(state).unwrap())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(all.iter().all(|journal| journal.book().path().exists()));
    drop(all);
    assert_eq!(journals(&bed), 0);
}

/// SIGKILL at any moment of a life in which files come and go and the journal is compacted every few of them.
#[test]
fn a_worker_that_is_killed_at_any_moment_leaves_nothing() {
    let bed = bed();
    fs::write(bed.input.join("theirs.png"), "theirs").unwrap();
    for moment in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stage::journal::tests::files_come_and_go", "--ignored"])
            .env("TMPDIR", bed.state.parent().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        // So many that their lines alone, without a compaction, are more than is allowed below.
        while !fs::read_dir(&bed.input).unwrap().flatten().any(|file| job_number(&file.path()) > 100) {
            assert!(child.try_wait().unwrap().is_none() && since.elapsed() < Duration::from_secs(30));
        }
        std::thread::sleep(Duration::from_micros(moment * 2733));
        child.kill().unwrap();
        child.wait().unwrap();
        let longest = fs::read_dir(bed.state.join("journal")).unwrap().flatten();
        let longest =
            longest.map(|journal| fs::read_to_string(journal.path()).unwrap().lines().count()).max();
        assert!(longest.is_some_and(|lines| lines < 200), "{longest:?} lines");
        let next = open(&bed.state).unwrap();
        let left: Vec<_> =
            fs::read_dir(&bed.input).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["theirs.png"]);
        assert_eq!(journals(&bed), 1);
        drop(next);
    }
    assert_eq!(journals(&bed), 0);
}

fn job_number(path: &Path) -> u32 {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.strip_prefix("job-").map_or(0, |number| number.parse().unwrap())
}

#[tokio::test]
#[ignore = "a_worker_that_is_killed_… runs it, in a process of its own"]
async fn files_come_and_go() {
    let place = std::env::temp_dir();
    let (journal, input) = (open(&place.join("state")).unwrap(), place.join("input"));
    let mut kept = VecDeque::new();
    for job in 0.. {
        let folder = journal.create_folder(&input, &format!("job-{job}")).await.unwrap();
        fs::write(folder.path().join("cat.png"), "ours").unwrap();
        kept.push_back(folder);
        kept.truncate(5);
        if job % 8 == 0 {
            kept.clear();
            journal.settled().await;
        }
    }
}

/// The owner that lets go of something goes on at once, and waits only for a name that is to be used again.
#[allow(clippy::await_holding_lock, reason = "nothing here waits for it but the removal")]
#[tokio::test]
async fn a_removal_that_takes_long_holds_nobody_up() {
    let bed = bed();
    let journal = open(&bed.state).unwrap();
    let part = journal.own_now(bed.input.join(".part")).unwrap();
    fs::write(part.path(), "ours").unwrap();
    let path = part.path().to_owned();
    // What a removal of a file waits for; its end is that of a slow one.
    let slow = journal.placing();
    drop(part);
    let next = journal.own(bed.input.join("next")).await.unwrap();
    drop(next);
    let mut gone = Box::pin(journal.gone(&path));
    assert!(gone.as_mut().now_or_never().is_none() && path.exists());
    assert!(journal.settled().now_or_never().is_none());
    journal.gone(&bed.input.join("other")).await;
    drop(slow);
    gone.as_mut().await;
    drop(gone);
    assert!(!path.exists());
    end(journal).await;
    assert_eq!(journals(&bed), 0);
}

/// A thread that serves nobody else waits: at the end of a program what it let go of is gone.
#[test]
fn without_a_runtime_the_journals_end_waits_for_removals() {
    let bed = bed();
    let journal = open(&bed.state).unwrap();
    let folder = journal.own_now(bed.input.join("folder")).unwrap();
    for number in 0..2_000 {
        fs::create_dir_all(folder.path().join(number.to_string())).unwrap();
    }
    drop((folder, journal));
    assert_eq!(fs::read_dir(&bed.input).unwrap().count(), 0);
    assert_eq!(journals(&bed), 0);
}
