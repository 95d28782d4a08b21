//! Lines of programs for people, and JSON for the store.

use bytes::Bytes;
use contract::text::one_line;
use serde::Serialize;

/// A line that a program wrote for a terminal, as it would stand there: without colours, of what a
/// progress bar wrote over itself the last. Nothing in it steers the reader's terminal.
pub fn plain(line: &str) -> String {
    let line = console::strip_ansi_codes(line);
    let last = line.rsplit('\r').map(str::trim_end).find(|part| !part.is_empty()).unwrap_or_default();
    one_line(last, usize::MAX)
}

/// What `make` makes as JSON. Neither the making nor the writing is done by a thread of the runtime: a history may be
/// megabytes. In one line: indented, what lies 64 levels deep takes a hundred times its size.
pub async fn json_of<T: Serialize>(make: impl FnOnce() -> T + Send + 'static) -> std::io::Result<Bytes> {
    Ok(tokio::task::spawn_blocking(move || serde_json::to_vec(&make())).await??.into())
}

/// Whether a variable, by its name, holds a credential.
pub fn is_credential(variable: &str) -> bool {
    let name = variable.to_ascii_uppercase();
    let words =
        ["SECRET", "PASSWORD", "PASSWD", "TOKEN", "CREDENTIAL", "API_KEY", "PRIVATE_KEY", "ACCESS_KEY"];
    words.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use contract::text::is_treacherous;

    use super::*;

    #[tokio::test]
    async fn json_is_written_by_another_thread() {
        let here = std::thread::current().id();
        let make = move || {
            assert_ne!(std::thread::current().id(), here);
            serde_json::json!({"a": [1]})
        };
        assert_eq!(json_of(make).await.ok().as_deref(), Some(&br#"{"a":[1]}"#[..]));
        assert!(json_of(|| -> u8 { panic!("a bug") }).await.is_err());
    }

    #[test]
    fn a_line_for_a_terminal_is_as_it_would_stand_there() {
        assert_eq!(plain("\u{1b}[32mgot\u{1b}[0m it\t1 \r\n"), "got it\\t1");
        assert_eq!(plain("\r 0%|  \r50%|# \r\r"), "50%|#");
        assert!(!plain("a\u{1b}]0;title\u{7}\u{9b}31mb").contains(is_treacherous));
        assert_eq!(plain(" \r\n"), "");
    }
}
