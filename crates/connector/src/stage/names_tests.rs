#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{ErrorKind, Read},
    os::unix::{fs::symlink, net::UnixListener},
};

use proptest::prelude::*;

use super::*;

#[test]
fn plain_names_are_taken_as_they_are() {
    let long = "x".repeat(200);
    for name in [
        "cat.png",
        "-rf",
        "CON",
        "%2e%2e%2f",
        "a b",
        "ä.png",
        "キー",
        "a\u{301}",
        "...",
        "..a",
        "a..",
        ".hidden",
        "x [output] y",
        "~",
        "$HOME",
        "a:b",
        "a*b",
        "a\"b",
        &long,
    ] {
        assert_eq!(FileName::parse(name).unwrap().as_str(), name);
    }
}

#[test]
fn hostile_names_are_refused() {
    let long = "x".repeat(300);
    let just_too_long = "ä".repeat(101);
    for (name, problem) in [
        ("", "is empty"),
        (".", "names a folder"),
        ("..", "names a folder"),
        ("../../etc/passwd", "path separator"),
        ("/etc/passwd", "path separator"),
        ("..\\..\\x", "path separator"),
        ("a/../../b", "path separator"),
        ("a/", "path separator"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("\u{1b}[31mred", "control character"),
        ("\u{7f}", "control character"),
        ("cat\u{202e}gnp.exe", "reorders text"),
        ("x [output]", "ComfyUI takes for a folder"),
        ("x [input] ", "ComfyUI takes for a folder"),
        ("x[temp]", "ComfyUI takes for a folder"),
        (&long, "longer than 200 bytes"),
        (&just_too_long, "longer than 200 bytes"),
    ] {
        let error = FileName::parse(name).unwrap_err();
        assert!(error.problem.contains(problem), "{name:?}: {error}");
        let shown = error.to_string();
        assert!(!shown.contains(is_treacherous) && shown.len() < 300, "{shown:?}");
    }
}

#[test]
fn subfolders() {
    assert!(Subfolder::parse("").unwrap().is_empty());
    let name = FileName::parse("x.png").unwrap();
    assert_eq!(Subfolder::default().join(&name), "x.png");
    assert_eq!(Subfolder::parse("loras/style").unwrap().join(&name), "loras/style/x.png");
    assert!(Subfolder::parse("1/2/3/4/5/6/7/8").is_ok());
    for path in [
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "a/../b",
        "a/..",
        "./a",
        "a\\..\\b",
        "a\0",
        "x [temp]/y",
        "1/2/3/4/5/6/7/8/9",
    ] {
        assert!(Subfolder::parse(path).is_err(), "{path:?}");
    }
}

fn open(root: &Path, relative: &str) -> Result<String, ErrorKind> {
    let mut file = open_beneath(root, Path::new(relative)).map_err(|error| error.kind())?;
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    Ok(text)
}

#[test]
fn files_beneath_the_root_are_opened() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("x"), "x").unwrap();
    fs::write(root.join("a/b/y"), "y").unwrap();
    assert_eq!(open(root, "x"), Ok("x".into()));
    assert_eq!(open(root, "./a/./b/y"), Ok("y".into()));
    assert_eq!(open(root, "none"), Err(ErrorKind::NotFound));
    assert_eq!(open(root, "a/none/y"), Err(ErrorKind::NotFound));
    // The operator may have put the root itself elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(root, elsewhere.path().join("link")).unwrap();
    assert_eq!(open(&elsewhere.path().join("link"), "a/b/y"), Ok("y".into()));
}

#[test]
fn nothing_else_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir_all(outside.join("b")).unwrap();
    fs::write(outside.join("canary"), "canary").unwrap();
    fs::write(outside.join("b/y"), "canary").unwrap();
    fs::write(root.join("a/b/y"), "y").unwrap();
    symlink(&outside, root.join("link")).unwrap();
    symlink("/", root.join("slash")).unwrap();
    symlink(&outside, root.join("a/link")).unwrap();
    symlink(outside.join("canary"), root.join("file-link")).unwrap();
    symlink(root.join("a/b/y"), root.join("inner-link")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::hard_link(outside.join("canary"), root.join("hard")).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    let absolute = outside.join("canary");
    for relative in [
        "",
        ".",
        "a",
        "a/b",
        "link",
        "slash",
        "link/canary",
        "slash/etc/passwd",
        "a/link/canary",
        "a/link/b/y",
        "file-link",
        "inner-link",
        "loop",
        "dangling",
        "hard",
        "fifo",
        "socket",
        "../outside/canary",
        "a/../../outside/canary",
        "a/../a/b/y",
        "a/b/y/z",
        "/etc/passwd",
        absolute.to_str().unwrap(),
    ] {
        assert_eq!(open(&root, relative), Err(ErrorKind::InvalidInput), "{relative:?}");
    }
}

#[test]
fn a_folder_that_becomes_a_link_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("root"), folder.path().join("outside"));
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(root.join("sub/x"), "ours").unwrap();
    fs::write(outside.join("x"), "canary").unwrap();
    let mut opened = open_beneath(&root, Path::new("sub/x")).unwrap();
    fs::rename(root.join("sub"), root.join("moved")).unwrap();
    symlink(&outside, root.join("sub")).unwrap();
    assert_eq!(open(&root, "sub/x"), Err(ErrorKind::InvalidInput));
    // What was opened before stays what it was.
    let mut text = String::new();
    opened.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ours");
}

proptest! {
    #[test]
    fn a_name_is_one_component(name in "(\\.|/|\\\\|\\PC|.){0,12}") {
        if let Ok(parsed) = FileName::parse(&name) {
            let path = Path::new(parsed.as_str());
            prop_assert_eq!(path.components().count(), 1);
            prop_assert!(matches!(path.components().next(), Some(Component::Normal(_))));
        }
    }

    #[test]
    fn a_subfolder_never_climbs(path in "(\\.|/|[a-c]|\\\\){0,16}", name in "[a-c.]{1,3}") {
        if let (Ok(subfolder), Ok(name)) = (Subfolder::parse(&path), FileName::parse(&name)) {
            let joined = subfolder.join(&name);
            prop_assert!(Path::new(&joined).components().all(|part| matches!(part, Component::Normal(_))));
            prop_assert!(Path::new("/root").join(&joined).starts_with("/root"));
        }
    }

    #[test]
    fn an_address_joined_stays_beneath(base in "(s3://bucket(/[a-c]{1,3}){0,2}|file:///[a-c]{1,3})", relative in "(\\.|/|[a-c]|%2e|\\\\| ){0,16}") {
        let base: contract::ObjectUri = base.parse().unwrap();
        if let Ok(joined) = base.join(&relative) {
            prop_assert!(joined.is_beneath(&[format!("{base}/")]), "{joined}");
            prop_assert_eq!(joined.to_string().parse::<contract::ObjectUri>().unwrap(), joined);
        }
    }
}
