#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    process::Command,
    time::{Duration, SystemTime},
};

use super::*;

/// A ComfyUI folder, a journal, and a folder of sources.
struct Bed {
    root: tempfile::TempDir,
    folders: Folders,
    journal: Arc<Journal>,
}

impl Bed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::new(root.path().join("comfy"));
        let journal =
            Journal::open(&root.path().join("state"), &Folders::new(root.path().join("comfy"))).unwrap();
        fs::create_dir(root.path().join("sources")).unwrap();
        Self { root, folders, journal }
    }

    fn source(&self, name: &str, content: &str) -> PathBuf {
        let path = self.root.path().join("sources").join(name);
        fs::write(&path, content).unwrap();
        path
    }

    async fn upload(
        &self,
        source: &Path,
        options: &UploadOptions,
    ) -> Result<(PathBuf, Option<EphemeralPath>), PlaceError> {
        upload(&self.folders, &self.journal, source, options).await
    }

    /// Everything under ComfyUI's folder.
    fn files(&self) -> Vec<String> {
        fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, found) } else { found.push(path) }
            }
        }
        let base = self.root.path().join("comfy");
        let mut found = Vec::new();
        walk(&base, &mut found);
        let mut names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(&base).unwrap().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

fn options(folder: FolderType, subfolder: &str) -> UploadOptions {
    UploadOptions { folder, subfolder: Subfolder::parse(subfolder).unwrap(), ..UploadOptions::default() }
}

#[tokio::test]
async fn nothing_is_placed_behind_a_link_but_the_operators_own() {
    let bed = Bed::new();
    let source = bed.source("x.bin", "x");
    let elsewhere = bed.root.path().join("elsewhere");
    for folder in ["elsewhere/sub", "comfy/models", "drive", "kind"] {
        fs::create_dir_all(bed.root.path().join(folder)).unwrap();
    }
    // ComfyUI's folder on another drive, a kind of model on another one; the rest may be a node's work.
    symlink(bed.root.path().join("drive"), bed.root.path().join("comfy/input")).unwrap();
    symlink(bed.root.path().join("kind"), bed.root.path().join("comfy/models/loras")).unwrap();
    for link in ["drive/lead", "kind/lead"] {
        symlink(&elsewhere, bed.root.path().join(link)).unwrap();
    }
    for (folder, subfolder, placed) in [
        (FolderType::Input, "", true),
        (FolderType::Input, "batch", true),
        (FolderType::Input, "lead", false),
        (FolderType::Input, "lead/sub", false),
        (FolderType::Models, "loras", true),
        (FolderType::Models, "loras/style", true),
        (FolderType::Models, "loras/lead/sub", false),
    ] {
        let outcome = bed.upload(&source, &options(folder, subfolder)).await;
        assert_eq!(outcome.is_ok(), placed, "{folder:?} {subfolder}: {outcome:?}");
        assert!(placed || matches!(outcome, Err(PlaceError::Link(_))), "{outcome:?}");
    }
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "something was placed behind a link");
}

#[tokio::test]
async fn every_folder_takes_files() {
    let bed = Bed::new();
    let source = bed.source("x.bin", "x");
    for (folder, subfolder, expected) in [
        (FolderType::Input, "", "input/x.bin"),
        (FolderType::Input, "batch/1", "input/batch/1/x.bin"),
        (FolderType::Output, "", "output/x.bin"),
        (FolderType::Temp, "processing", "temp/processing/x.bin"),
        (FolderType::Models, "checkpoints", "models/checkpoints/x.bin"),
        (FolderType::Models, "gguf", "models/gguf/x.bin"),
    ] {
        let (path, owned) = bed.upload(&source, &options(folder, subfolder)).await.unwrap();
        assert_eq!(path, bed.root.path().join("comfy").join(expected));
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
        assert!(owned.is_none());
    }
    assert_eq!(bed.files().len(), 6);
    assert_eq!(fs::read_to_string(&source).unwrap(), "x");
}

#[tokio::test]
async fn mode_and_times_come_along() {
    let bed = Bed::new();
    let source = bed.source("x.bin", "x");
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let read = changed + Duration::from_millis(86_400_250);
    let file = fs::File::options().write(true).open(&source).unwrap();
    for (mode, folder) in [(0o640, FolderType::Input), (0o444, FolderType::Output)] {
        fs::set_permissions(&source, fs::Permissions::from_mode(mode)).unwrap();
        file.set_times(fs::FileTimes::new().set_modified(changed).set_accessed(read)).unwrap();
        let (path, _) = bed.upload(&source, &options(folder, "")).await.unwrap();
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(metadata.mode() & 0o777, mode);
        assert_eq!(metadata.modified().unwrap(), changed, "{mode:o}");
        assert_eq!(metadata.accessed().unwrap(), read, "{mode:o}");
    }
}

#[tokio::test]
async fn models_need_a_subfolder() {
    let bed = Bed::new();
    let outcome = bed.upload(&bed.source("x", ""), &options(FolderType::Models, "")).await;
    assert!(matches!(outcome, Err(PlaceError::ModelSubfolderMissing)));
    assert!(bed.files().is_empty());
}

#[tokio::test]
async fn what_is_no_file_is_no_source() {
    let bed = Bed::new();
    let sources = bed.root.path().join("sources");
    symlink("nowhere", sources.join("dangling")).unwrap();
    for source in [sources.join("none"), sources.clone(), sources.join("dangling"), "/dev/null".into()] {
        let outcome = bed.upload(&source, &UploadOptions::default()).await;
        assert!(matches!(&outcome, Err(PlaceError::SourceMissing(path)) if *path == source), "{outcome:?}");
    }
    let odd = bed.source("x [output]", "x");
    assert!(matches!(bed.upload(&odd, &UploadOptions::default()).await, Err(PlaceError::Name(_))));
    assert!(bed.files().is_empty());
}

#[tokio::test]
async fn an_existing_file_is_kept_or_replaced_whole() {
    let bed = Bed::new();
    let plain = options(FolderType::Input, "");
    let (path, _) = bed.upload(&bed.source("x", "first"), &plain).await.unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let second = bed.source("x", "second");
    let outcome = bed.upload(&second, &plain).await;
    assert!(matches!(&outcome, Err(PlaceError::Exists(there)) if *there == path), "{outcome:?}");
    assert_eq!(
        (fs::read_to_string(&path).unwrap().as_str(), fs::metadata(&path).unwrap().ino()),
        ("first", inode)
    );

    bed.upload(&second, &UploadOptions { overwrite: true, ..plain.clone() }).await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "second");
    assert_eq!(bed.files(), ["input/x"]);

    // Also a link that leads nowhere is something that is there; replaced, its target is not touched.
    fs::remove_file(&path).unwrap();
    let canary = bed.source("canary", "canary");
    symlink(&canary, &path).unwrap();
    assert!(matches!(bed.upload(&second, &plain).await, Err(PlaceError::Exists(_))));
    bed.upload(&second, &UploadOptions { overwrite: true, ..plain }).await.unwrap();
    assert_eq!(fs::read_to_string(&canary).unwrap(), "canary");
    assert!(!path.is_symlink());
}

#[tokio::test]
async fn a_folder_in_the_way_leaves_nothing_half_written() {
    let bed = Bed::new();
    let source = bed.source("x", "x");
    let plain = options(FolderType::Input, "");
    fs::create_dir_all(bed.root.path().join("comfy/input/x")).unwrap();
    fs::write(bed.root.path().join("comfy/input/x/canary"), "").unwrap();
    assert!(matches!(bed.upload(&source, &plain).await, Err(PlaceError::Exists(_))));
    let overwriting = UploadOptions { overwrite: true, ..plain };
    assert!(matches!(bed.upload(&source, &overwriting).await, Err(PlaceError::Io { .. })));
    let beneath_a_file = options(FolderType::Input, "x/canary");
    assert!(matches!(bed.upload(&source, &beneath_a_file).await, Err(PlaceError::Io { .. })));
    assert_eq!(bed.files(), ["input/x/canary"]);
}

#[tokio::test]
async fn ephemeral_files_go_and_others_stay() {
    let bed = Bed::new();
    let ephemeral = UploadOptions { ephemeral: true, ..UploadOptions::default() };
    let overwriting = UploadOptions { overwrite: true, ..ephemeral.clone() };
    let (path, owned) = bed.upload(&bed.source("gone", "x"), &overwriting).await.unwrap();
    assert!(path.is_file());
    drop(owned);
    bed.journal.settled().await;
    assert!(!path.exists());

    // There before: stays, with its new content.
    let theirs = bed.folders.of(FolderType::Input).join("theirs");
    fs::write(&theirs, "before").unwrap();
    let (_, owned) = bed.upload(&bed.source("theirs", "after"), &overwriting).await.unwrap();
    assert!(owned.is_none());
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "after");

    // Ours, taken away and made again by somebody else meanwhile: his.
    let (path, owned) = bed.upload(&bed.source("mine", "x"), &ephemeral).await.unwrap();
    fs::write(bed.source("his", ""), "his").unwrap();
    fs::rename(bed.root.path().join("sources/his"), &path).unwrap();
    drop(owned);
    bed.journal.settled().await;
    assert_eq!(fs::read_to_string(&path).unwrap(), "his");
}

#[tokio::test]
async fn an_ephemeral_file_replaced_by_an_ephemeral_one_goes_too() {
    let bed = Bed::new();
    let overwriting = UploadOptions { ephemeral: true, overwrite: true, ..UploadOptions::default() };
    let mut owned = Vec::new();
    for round in ["1", "2", "3"] {
        let (path, file) = bed.upload(&bed.source("frame", round), &overwriting).await.unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), round);
        owned.extend(file);
    }
    assert_eq!(owned.len(), 3);
    drop(owned);
    bed.journal.settled().await;
    assert!(bed.files().is_empty());
    // Replaced by one that is to stay: stays.
    let (_, first) = bed.upload(&bed.source("kept", "1"), &overwriting).await.unwrap();
    let stays = UploadOptions { ephemeral: false, ..overwriting };
    assert!(bed.upload(&bed.source("kept", "2"), &stays).await.unwrap().1.is_none());
    drop(first);
    bed.journal.settled().await;
    assert_eq!(bed.files(), ["input/kept"]);
    let state = bed.root.path().join("state/journal");
    drop(bed.journal);
    assert_eq!(fs::read_dir(state).unwrap().count(), 0);
}

#[tokio::test]
async fn of_uploads_side_by_side_one_wins() {
    let bed = Bed::new();
    let source = bed.source("x", "x");
    let options = UploadOptions::default();
    let uploads = (0..16).map(|_| bed.upload(&source, &options));
    let outcomes = futures_util::future::join_all(uploads).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for outcome in outcomes {
        assert!(matches!(outcome, Ok(_) | Err(PlaceError::Exists(_))), "{outcome:?}");
    }
    assert_eq!(bed.files(), ["input/x"]);
}

/// ENOSPC itself, on a file system that ends with the process that mounts it.
#[test]
fn a_full_disk_is_told_as_such_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=1m none \"$1\" && TMPDIR=$1 exec \"$2\" --exact \
                  stage::place::tests::with_a_megabyte --ignored";
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
#[ignore = "a_full_disk_… runs it, on a file system of 1 MiB"]
async fn with_a_megabyte() {
    let bed = Bed::new();
    let program = std::env::current_exe().unwrap();
    let ephemeral = UploadOptions { ephemeral: true, ..UploadOptions::default() };
    for options in [UploadOptions::default(), ephemeral, options(FolderType::Models, "loras")] {
        let outcome = bed.upload(&program, &options).await;
        assert!(matches!(outcome, Err(PlaceError::DiskFull(_))), "{outcome:?}");
        assert!(bed.files().is_empty());
    }
    // There is room again, and what was there is still whole.
    let plain = options(FolderType::Input, "");
    let (path, _) = bed.upload(&bed.source("x", "first"), &plain).await.unwrap();
    let large = bed.root.path().join("sources/x");
    fs::remove_file(&large).unwrap();
    symlink(&program, &large).unwrap();
    let outcome = bed.upload(&large, &UploadOptions { overwrite: true, ..plain }).await;
    assert!(matches!(outcome, Err(PlaceError::DiskFull(_))), "{outcome:?}");
    assert_eq!(fs::read_to_string(path).unwrap(), "first");
    assert_eq!(bed.files(), ["input/x"]);
}

/// In a process of its own: its peak is not another test's.
#[test]
fn large_files_pass_in_bounded_memory() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stage::place::tests::a_quarter_of_a_gibibyte", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(child.status.success() && said.contains("1 passed"), "{child:?}");
}

#[tokio::test]
#[ignore = "large_files_… runs it, in a process of its own"]
async fn a_quarter_of_a_gibibyte() {
    const SIZE: u64 = 256 << 20;
    const MAX_KIB: u64 = 16 << 10;
    // Of holes but for these places.
    const MARKS: [u64; 4] = [0, 4095, (SIZE / 2) + 1, SIZE - 4];
    let bed = Bed::new();
    let plain = UploadOptions::default();
    bed.upload(&bed.source("warm", "x"), &plain).await.unwrap();
    let source = bed.source("large", "");
    let file = fs::File::options().write(true).open(&source).unwrap();
    file.set_len(SIZE).unwrap();
    for mark in MARKS {
        file.write_all_at(b"mark", mark).unwrap();
    }
    let before = peak_kib();
    let (path, _) = bed.upload(&source, &plain).await.unwrap();
    let more = peak_kib() - before;
    println!("256 MiB: {more} KiB more than {before} KiB");
    assert!(more < MAX_KIB, "{more} KiB more");
    let copy = fs::File::open(path).unwrap();
    assert_eq!(copy.metadata().unwrap().len(), SIZE);
    let mut piece = vec![0; 1 << 20];
    for start in (0..SIZE).step_by(piece.len()) {
        copy.read_exact_at(&mut piece, start).unwrap();
        for mark in MARKS.into_iter().filter(|mark| (start..start + (1 << 20)).contains(mark)) {
            let at = usize::try_from(mark - start).unwrap();
            assert_eq!(&piece[at..at + 4], b"mark", "{mark}");
            piece[at..at + 4].fill(0);
        }
        assert!(piece.iter().all(|byte| *byte == 0), "something else in the MiB at {start}");
    }
}

/// The most memory that this process ever had resident (`VmHWM`).
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
