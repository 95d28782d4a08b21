//! Where Chromium is: the setting, `CHROME`, `PATH`, Playwright's cache, in this order.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::ConvertError;

/// Names on `PATH`, best first.
const NAMES: [&str; 9] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "chromium-headless-shell",
    "chrome-headless-shell",
    "headless_shell",
    "google-chrome-beta",
];

/// Where Playwright's archives keep the program, under `chromium-<revision>`.
const PLAYWRIGHT_PROGRAMS: [&str; 6] = [
    "chrome-linux64/chrome",
    "chrome-linux/chrome",
    "chrome-headless-shell-linux64/chrome-headless-shell",
    "chrome-linux/headless_shell",
    "chrome-linux64/headless_shell",
    "chrome-linux/chrome-headless-shell",
];

/// The Chromium of this machine, if it has one.
///
/// # Errors
/// [`ConvertError::Browser`]: a setting or a `CHROME` that names no program. Silently taking another
/// browser would hide the mistake.
pub(super) fn chromium(setting: Option<&Path>) -> Result<Option<PathBuf>, ConvertError> {
    search(setting, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn search(
    setting: Option<&Path>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<PathBuf>, ConvertError> {
    let path = variable("PATH").unwrap_or_default();
    if let Some(program) = setting {
        return if is_program(program) {
            Ok(Some(program.to_owned()))
        } else {
            Err(no_program("browser.executable", program))
        };
    }
    if let Some(named) = variable("CHROME").map(PathBuf::from) {
        return match named.components().count() {
            1 => on_path(&path, named.as_os_str()),
            _ => Some(named.clone()).filter(|program| is_program(program)),
        }
        .map(Some)
        .ok_or_else(|| no_program("CHROME", &named));
    }
    let program = NAMES.iter().find_map(|name| on_path(&path, OsStr::new(name))).or_else(|| {
        let cache = variable("PLAYWRIGHT_BROWSERS_PATH").map(PathBuf::from);
        let home = || variable("HOME").map(|home| PathBuf::from(home).join(".cache/ms-playwright"));
        in_playwright_cache(&cache.or_else(home)?)
    });
    Ok(program)
}

fn no_program(setting: &str, path: &Path) -> ConvertError {
    ConvertError::Browser(format!("{setting} names {path:?}, which is no program that can be started"))
}

fn on_path(path: &OsStr, name: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|program| is_program(program))
}

/// The newest revision, a full Chromium before a headless shell.
fn in_playwright_cache(cache: &Path) -> Option<PathBuf> {
    let mut found: Vec<(bool, u64, PathBuf)> = fs::read_dir(cache)
        .ok()?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let (kind, revision) = name.rsplit_once('-')?;
            let full = match kind {
                "chromium" => true,
                "chromium_headless_shell" => false,
                _ => return None,
            };
            let folder = cache.join(&name);
            let program =
                PLAYWRIGHT_PROGRAMS.iter().map(|program| folder.join(program)).find(|p| is_program(p))?;
            Some((full, revision.parse().ok()?, program))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, _, program)| program)
}

pub(super) fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn program(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_owned()
    }

    #[test]
    fn setting_then_chrome_then_path_then_playwright() {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        let home = root.path().join("home");
        let cache = home.join(".cache/ms-playwright");
        let environment = |chrome: Option<PathBuf>| {
            let (bin, home) = (bin.clone(), home.clone());
            move |name: &str| match name {
                "PATH" => Some(bin.clone().into()),
                "HOME" => Some(home.clone().into()),
                "CHROME" => chrome.clone().map(Into::into),
                _ => None,
            }
        };

        assert_eq!(search(None, environment(None)).unwrap(), None);

        program(&cache.join("chromium_headless_shell-1999/chrome-linux/headless_shell"));
        program(&cache.join("chromium-999/chrome-linux/chrome"));
        let newest = program(&cache.join("chromium-1187/chrome-linux/chrome"));
        assert_eq!(search(None, environment(None)).unwrap().as_ref(), Some(&newest));

        let on_path = program(&bin.join("google-chrome"));
        assert_eq!(search(None, environment(None)).unwrap().as_ref(), Some(&on_path));
        let other = program(&bin.join("other"));
        assert_eq!(search(None, environment(Some("other".into()))).unwrap().as_ref(), Some(&other));
        assert_eq!(search(None, environment(Some(other.clone()))).unwrap().as_ref(), Some(&other));
        assert_eq!(search(Some(&newest), environment(Some(other))).unwrap().as_ref(), Some(&newest));
    }

    #[test]
    fn a_wrong_name_is_no_reason_to_take_another_browser() {
        let root = tempfile::tempdir().unwrap();
        let real = program(&root.path().join("chromium"));
        let plain = root.path().join("plain");
        fs::write(&plain, "").unwrap();
        let environment = |chrome: &'static str| {
            let bin = root.path().to_owned();
            move |name: &str| match name {
                "PATH" => Some(bin.clone().into()),
                "CHROME" => Some(chrome.into()),
                _ => None,
            }
        };
        assert!(search(None, environment("nowhere")).unwrap_err().to_string().contains("CHROME"));
        let message = search(Some(&plain), environment("chromium")).unwrap_err().to_string();
        assert!(message.contains("browser.executable"), "{message}");
        assert_eq!(search(None, environment("chromium")).unwrap().as_ref(), Some(&real));
    }
}
