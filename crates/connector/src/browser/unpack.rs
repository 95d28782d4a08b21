//! A zip archive into a folder, and nothing outside it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path, PathBuf},
};

use zip::{ZipArchive, read::ZipFile};

/// Bytes that an archive may hold unpacked; Chrome for Testing's whole browser has 0.4 GB.
const LIMIT: u64 = 4 << 30;

/// Unpacks the zip file `archive` into the empty folder `into`. Links are left out. Blocks.
///
/// # Errors
/// One line: it is no whole zip archive, it names files outside the folder, it is too large, or it
/// cannot be written.
pub(super) fn unpack(archive: File, into: &Path) -> Result<(), String> {
    let broken = |error: &dyn std::fmt::Display| format!("it is no whole zip archive: {error}");
    let mut archive = ZipArchive::new(archive).map_err(|error| broken(&error))?;
    let mut left = LIMIT;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| broken(&error))?;
        let name = entry.name().map_err(|error| broken(&error))?.into_owned();
        let path = into.join(inside(&name)?);
        if entry.is_dir() {
            fs::create_dir_all(&path).map_err(|error| cannot_write(&path, &error))?;
        } else if entry.is_file() {
            let written = write(&mut entry, &path, left)?;
            left = left.checked_sub(written).filter(|left| *left > 0).ok_or_else(too_large)?;
        } else {
            tracing::debug!(name, "skipping an archive entry that is not a regular file");
        }
    }
    Ok(())
}

/// The name as a path below a folder.
fn inside(name: &str) -> Result<PathBuf, String> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain && !name.is_empty() && !name.contains(['\\', '\0']) {
        Ok(path.to_owned())
    } else {
        Err(format!("it holds {name:?}, a file outside of its folder"))
    }
}

fn write(entry: &mut ZipFile<'_, File>, path: &Path, left: u64) -> Result<u64, String> {
    let is_program = entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0);
    let mode = if is_program { 0o755 } else { 0o644 };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| cannot_write(parent, &error))?;
    }
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.map_err(|error| cannot_write(path, &error))?;
    io::copy(&mut entry.take(left), &mut file).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            format!("it is no whole zip archive: {error}")
        }
        _ => cannot_write(path, &error),
    })
}

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

fn too_large() -> String {
    format!("it holds more than {} GiB", LIMIT >> 30)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use zip::{ZipWriter, write::SimpleFileOptions};

    use super::*;

    fn archive(entries: &[(&str, u32)]) -> File {
        let mut writer = ZipWriter::new(tempfile::tempfile().unwrap());
        for (name, mode) in entries {
            writer.start_file(*name, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
            writer.write_all(name.as_bytes()).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn files_keep_names_content_and_being_programs() {
        let into = tempfile::tempdir().unwrap();
        unpack(archive(&[("a/chrome", 0o755), ("a/deep/er/data.pak", 0o600)]), into.path()).unwrap();
        let read = |name: &str| {
            let path = into.path().join(name);
            (
                fs::read_to_string(&path).unwrap(),
                fs::metadata(&path).unwrap().permissions().mode() & 0o111 != 0,
            )
        };
        assert_eq!(read("a/chrome"), ("a/chrome".into(), true));
        assert_eq!(read("a/deep/er/data.pak"), ("a/deep/er/data.pak".into(), false));
    }

    #[test]
    fn nothing_leads_out() {
        for name in ["../evil", "a/../../evil", "/tmp/evil", r"..\evil", ""] {
            let root = tempfile::tempdir().unwrap();
            let into = root.path().join("into");
            fs::create_dir(&into).unwrap();
            let message = unpack(archive(&[("fine", 0o644), (name, 0o644)]), &into).unwrap_err();
            assert!(message.contains("outside of its folder"), "{name}: {message}");
            assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "{name}");
        }
        // A link is not made, so nothing can be written through it.
        let mut writer = ZipWriter::new(tempfile::tempfile().unwrap());
        writer.add_symlink("out", "/tmp", SimpleFileOptions::default()).unwrap();
        writer.start_file("out/evil-of-the-worker", SimpleFileOptions::default()).unwrap();
        let into = tempfile::tempdir().unwrap();
        unpack(writer.finish().unwrap(), into.path()).unwrap();
        assert!(into.path().join("out").symlink_metadata().unwrap().is_dir());
        assert!(into.path().join("out/evil-of-the-worker").is_file());
    }

    #[test]
    fn what_is_cut_off_or_no_archive_is_told() {
        let whole = archive(&[("a", 0o644), ("b", 0o644)]);
        whole.set_len(whole.metadata().unwrap().len() / 2).unwrap();
        for file in [whole, tempfile::tempfile().unwrap()] {
            let into = tempfile::tempdir().unwrap();
            let message = unpack(file, into.path()).unwrap_err();
            assert!(message.starts_with("it is no whole zip archive"), "{message}");
        }
    }
}
