//! Files and folders in places where ComfyUI's nodes, too, can put something: a FIFO in the place of a file, folders
//! without end.

use std::{
    ffi::{CStr, CString},
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};

/// How often a folder is gone through into which somebody writes meanwhile.
const PASSES: usize = 5;

/// Opens a regular file; what is none is an error.
pub fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    // O_NONBLOCK: opening a FIFO, or reading it, would wait for somebody without end. Regular files do not know it.
    let file = options.custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"))
    }
}

/// As [`fs::remove_dir_all`], which calls itself for each level and so overflows the stack of a thread at some 20,000: here
/// what lies deep comes to the top first.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    for _ in 1..PASSES {
        match remove_once(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            outcome => return outcome,
        }
    }
    remove_once(path)
}

fn remove_once(path: &Path) -> io::Result<()> {
    let root = open_folder(CWD, path)?;
    let mut left = remove_files(&root)?;
    let mut number = 0_u64;
    while let Some(name) = left.pop() {
        let folder = match open_folder(&root, name.as_c_str()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        for deeper in remove_files(&folder)? {
            // Nobody could move a folder that may not be written, and an empty one need not be moved.
            if unlinkat(&folder, deeper.as_c_str(), AtFlags::REMOVEDIR).is_ok() {
                continue;
            }
            left.push(loop {
                number += 1;
                let top = CString::new(format!(".removing-{number}"))?;
                match renameat(&folder, deeper.as_c_str(), &root, top.as_c_str()) {
                    Ok(()) => break top,
                    Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            });
        }
        match unlinkat(&root, name.as_c_str(), AtFlags::REMOVEDIR) {
            // Somebody writes into it: the next pass finds it.
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_dir(path)
}

fn open_folder(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    // Never through a link, whatever takes the folder's place meanwhile.
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Removes what is no folder; the names of the folders.
fn remove_files(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => folders.push(name.to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use rustix::fs::{FileType, mkdirat, mknodat};

    use super::*;

    #[test]
    fn folders_of_any_depth_are_removed_and_no_link_is_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (theirs, ours) = (scratch.path().join("theirs"), scratch.path().join("ours"));
        fs::create_dir_all(ours.join("a/b/.removing-1")).unwrap();
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("kept"), "").unwrap();
        symlink(&theirs, ours.join("a/link")).unwrap();
        fs::write(ours.join(".removing-2"), "").unwrap();
        fs::create_dir(ours.join("closed")).unwrap();
        fs::set_permissions(ours.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
        let mut folder = open_folder(CWD, ours.as_path()).unwrap();
        for _ in 0..30_000 {
            mkdirat(&folder, c"d", Mode::RWXU).unwrap();
            folder = open_folder(&folder, c"d").unwrap();
        }
        remove_folder(&ours).unwrap();
        assert!(!ours.exists() && theirs.join("kept").exists());
        assert_eq!(remove_folder(&ours).unwrap_err().kind(), io::ErrorKind::NotFound);
        symlink(&theirs, &ours).unwrap();
        assert!(remove_folder(&ours).is_err() && theirs.join("kept").exists());
    }

    #[test]
    fn a_fifo_is_no_file() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        for options in [File::options().read(true), File::options().write(true).create(true)] {
            assert!(open_regular(options, &path).is_err());
        }
        assert!(open_regular(File::options().read(true).append(true), &path).is_err());
        assert!(open_regular(File::options().read(true), scratch.path()).is_err());
        fs::write(scratch.path().join("file"), "x").unwrap();
        assert!(open_regular(File::options().read(true), &scratch.path().join("file")).is_ok());
    }
}
