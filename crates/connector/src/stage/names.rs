//! Names from jobs and from ComfyUI: checked before they are joined to a path, opened under
//! their root without following links.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    path::{Component, Path},
};

use contract::text::{is_treacherous, quoted};
use rustix::fs::{CWD, Mode, OFlags, openat};

/// Room for our own prefixes and suffixes within a file system's 255 bytes.
const LONGEST_NAME: usize = 200;
const DEEPEST_SUBFOLDER: usize = 8;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name {name} {problem}")]
pub struct NameError {
    /// The name, in quotes and fit for a log.
    pub name: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// One component of a path: cannot leave its folder, cannot trick a terminal, cannot be taken for
/// one of ComfyUI's annotated names (`x.png [output]`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileName(String);

impl FileName {
    /// Checks a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        match problem(name) {
            None => Ok(Self(name.to_owned())),
            Some(problem) => Err(NameError { name: quoted(name, 80), problem }),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn problem(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("is empty")
    } else if matches!(name, "." | "..") {
        Some("names a folder")
    } else if name.len() > LONGEST_NAME {
        Some("is longer than 200 bytes")
    } else if name.contains(['/', '\\']) {
        Some("holds a path separator")
    } else if name.contains(is_treacherous) {
        Some("holds a control character or one that reorders text")
    } else if ["[input]", "[output]", "[temp]"].iter().any(|mark| name.trim_end().ends_with(mark)) {
        Some("ends in a mark that ComfyUI takes for a folder")
    } else {
        None
    }
}

/// Folders under one of ComfyUI's; empty for the folder itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subfolder(Vec<FileName>);

impl Subfolder {
    /// Checks a path such as `loras/style`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(path: &str) -> Result<Self, NameError> {
        if path.is_empty() {
            return Ok(Self::default());
        }
        let parts = path.split('/').map(FileName::parse).collect::<Result<Vec<_>, _>>()?;
        if parts.len() > DEEPEST_SUBFOLDER {
            return Err(NameError { name: quoted(path, 80), problem: "is deeper than 8 folders" });
        }
        Ok(Self(parts))
    }

    /// Whether it names no folder.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its folders, outermost first.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(FileName::as_str)
    }

    /// `subfolder/name`, relative.
    #[must_use]
    pub fn join(&self, name: &FileName) -> String {
        let parts = self.0.iter().chain([name]).map(FileName::as_str);
        parts.collect::<Vec<_>>().join("/")
    }
}

/// Gives files of one folder names of their own.
#[derive(Debug, Default)]
pub(super) struct UniqueNames {
    /// In lower case, with the next number: names that differ in case only are one on some file systems.
    taken: HashMap<String, u32>,
}

impl UniqueNames {
    /// That name, or `<number>-<name>` from the second one on.
    pub(super) fn take(&mut self, bare: &FileName) -> String {
        let key = bare.as_str().to_lowercase();
        let mut name = bare.to_string();
        while self.taken.contains_key(&name.to_lowercase()) {
            let number = self.taken.entry(key.clone()).or_insert(2);
            name = format!("{number}-{bare}");
            *number += 1;
        }
        self.taken.insert(name.to_lowercase(), 2);
        name
    }
}

/// Opens a regular file under `root` by names that come from outside: no link is followed at any
/// step, nothing that blocks (a FIFO) or has side effects (a device) is opened, and a file with
/// several names is refused, since one of them may be somebody else's.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when there is none; [`io::ErrorKind::InvalidInput`] when there is
/// something that must not be read.
pub fn open_beneath(root: &Path, relative: &Path) -> io::Result<File> {
    use std::os::unix::fs::MetadataExt;
    let refuse = |reason: &str| io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned());
    let mut parts = Vec::new();
    for part in relative.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir => {}
            _ => return Err(refuse("the path leaves its folder")),
        }
    }
    let (name, folders) = parts.split_last().ok_or_else(|| refuse("the name is empty"))?;
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The root itself may be a link: the operator's choice.
    let mut folder = openat(CWD, root, directory, Mode::empty())?;
    for part in folders {
        folder = openat(&folder, *part, directory | OFlags::NOFOLLOW, Mode::empty()).map_err(as_refusal)?;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(&folder, *name, flags, Mode::empty()).map_err(as_refusal)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refuse("not a regular file"));
    }
    if metadata.nlink() > 1 {
        return Err(refuse("the file has a second name somewhere else"));
    }
    Ok(file)
}

fn as_refusal(error: rustix::io::Errno) -> io::Error {
    match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR | rustix::io::Errno::NXIO => {
            io::Error::new(io::ErrorKind::InvalidInput, "a link or not a regular file")
        }
        other => other.into(),
    }
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
