//! Local folders.

use std::{os::unix::fs::PermissionsExt, process::Command, time::Duration};

use bytes::Bytes;
use contract::ObjectUri;

use comfy_worker::store::{Content, Creation, LocalStore, ObjectStore, StoreError};
use tempfile::TempDir;

use super::{files_beneath, uri};

fn text(content: &str) -> Content {
    Content::Bytes(Bytes::from(content.to_owned()))
}

#[tokio::test]
async fn a_failed_write_leaves_the_old_object_and_no_temporary_file() {
    let folder = TempDir::new().unwrap();
    let object = ObjectUri::File(folder.path().join("a.txt"));
    LocalStore.put(&object, text("old"), "text/plain").await.unwrap();
    let short = Content::File { path: folder.path().join("a.txt"), size: 4 };
    assert!(matches!(LocalStore.put(&object, short, "x/y").await, Err(StoreError::Local { .. })));

    // A folder is in the way, or a file where a folder should be.
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    for path in ["folder", "a.txt/b"] {
        let object = ObjectUri::File(folder.path().join(path));
        let error = LocalStore.put(&object, text("x"), "text/plain").await.unwrap_err();
        assert!(matches!(error, StoreError::Local { .. }), "{error}");
    }
    assert_eq!(LocalStore.read(&object, 10).await.unwrap(), "old");
    assert_eq!(files_beneath(folder.path()), ["a.txt"]);
}

/// A limit on the size of files fails a write in its middle, as a full disk does, and needs no mount.
#[test]
fn a_write_that_fails_halfway_is_the_local_sides_fault_and_leaves_nothing() {
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" --exact local::with_little_room --ignored"])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{child:?}");
}

#[tokio::test]
#[ignore = "a_write_that_fails_halfway_… runs it, in a process with a limit"]
async fn with_little_room() {
    let folder = TempDir::new().unwrap();
    let object = ObjectUri::File(folder.path().join("object"));
    LocalStore.put(&object, text("old"), "text/plain").await.unwrap();
    let large = Content::File { path: std::env::current_exe().unwrap(), size: 1 << 20 };
    for content in [large, Content::Bytes(vec![0; 1 << 20].into())] {
        let error = LocalStore.put(&object, content, "x/y").await.unwrap_err();
        assert!(matches!(error, StoreError::Local { .. }), "{error}");
    }
    let new = ObjectUri::File(folder.path().join("new"));
    let created = LocalStore.create(&new, vec![0; 1 << 20].into(), "x/y");
    assert!(matches!(created.await, Err(StoreError::Local { .. })));
    assert_eq!(LocalStore.read(&object, 10).await.unwrap(), "old");
    assert_eq!(files_beneath(folder.path()), ["object"]);
}

#[tokio::test]
async fn later_changes_to_the_source_do_not_reach_the_store() {
    let folder = TempDir::new().unwrap();
    let source = folder.path().join("source");
    std::fs::write(&source, "before").unwrap();
    let object = ObjectUri::File(folder.path().join("store/object"));
    LocalStore.put(&object, Content::File { path: source.clone(), size: 6 }, "x/y").await.unwrap();
    // In place: a link would show it.
    std::fs::write(&source, "after!").unwrap();
    assert_eq!(LocalStore.read(&object, 10).await.unwrap(), "before");
}

#[tokio::test]
async fn results_can_be_read_by_others_as_the_umask_says() {
    let folder = TempDir::new().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let object = ObjectUri::File(folder.path().join("object"));
    assert_eq!(LocalStore.create(&object, Bytes::new(), "x/y").await.unwrap(), Creation::Created);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&folder.path().join("object")), mode(&plain));
}

#[tokio::test]
async fn what_is_no_file_is_refused_at_once() {
    let folder = TempDir::new().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for path in [fifo.as_path(), folder.path()] {
        let object = ObjectUri::File(path.to_owned());
        let opened = tokio::time::timeout(Duration::from_secs(10), LocalStore.open(&object)).await.unwrap();
        assert!(matches!(opened.err().unwrap(), StoreError::Local { .. }), "{object}");
    }
}

#[tokio::test]
async fn there_are_no_links_to_local_files() {
    let link = LocalStore.presign_get(&uri("file:///tmp/x"), Duration::from_secs(60)).await.unwrap();
    assert_eq!(link, None);
}

#[tokio::test]
async fn s3_addresses_are_not_taken_for_files() {
    let error = LocalStore.read(&uri("s3://bucket/x"), 1).await.unwrap_err();
    assert!(matches!(error, StoreError::Misconfigured { .. }), "{error}");
}
