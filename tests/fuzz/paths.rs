//! Names and addresses: what is accepted stays under its root.

use std::path::{Component, Path};

use contract::ObjectUri;

use connector::{
    Subfolder,
    stage::{FileName, open_beneath},
};
use proptest::{collection, prelude::*, sample};

use super::fuzz;

/// Parts that mean something to somebody, put together.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => sample::select(vec![
            "..", ".", "/", "//", "\\", "a", "b.png", "%2e%2e", "%2f", "\0", "\n", "\u{202e}", " ", "[output]", "~", "-rf",
            "CON", "é", "e\u{301}", "s3://", "file://", "s3:", "bucket", "?", "#", ":", "localhost", "data:", "..%2f", "…",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

fn stays(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

#[test]
fn names_and_addresses() {
    let Ok(folder) = tempfile::tempdir() else { panic!("no folder") };
    let root = folder.path().join("root");
    let plant = || -> std::io::Result<()> {
        std::fs::create_dir_all(root.join("a"))?;
        std::fs::write(folder.path().join("b.png"), "canary")?;
        std::fs::write(root.join("a/b.png"), "inside")?;
        std::os::unix::fs::symlink(folder.path(), root.join("b"))
    };
    assert!(plant().is_ok());
    fuzz("names and addresses", &(path(), path()), |(one, other)| {
        if let Ok(name) = FileName::parse(&one) {
            prop_assert!(
                stays(name.as_str()) && Path::new(name.as_str()).components().count() == 1,
                "{name}"
            );
            if let Ok(folder) = Subfolder::parse(&other) {
                let joined = folder.join(&name);
                prop_assert!(stays(&joined), "{joined}");
            }
        }
        if let Ok(mut file) = open_beneath(&root, Path::new(&one)) {
            let mut content = String::new();
            let read = std::io::Read::read_to_string(&mut file, &mut content);
            prop_assert!(read.is_err() || content == "inside", "{one:?} leads to {content:?}");
        }
        if let Ok(uri) = one.parse::<ObjectUri>() {
            let shown = uri.to_string();
            prop_assert_eq!(
                &shown.parse::<ObjectUri>().map_err(|error| TestCaseError::fail(error.to_string()))?,
                &uri
            );
            if let Ok(inner) = uri.join(&other) {
                prop_assert!(
                    inner.is_beneath(&[format!("{shown}/")]) || shown.ends_with('/'),
                    "{inner} of {shown}"
                );
                prop_assert!(!inner.to_string().contains("/../"), "{inner}");
            }
        }
        Ok(())
    });
}
