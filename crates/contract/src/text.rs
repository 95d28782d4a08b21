//! Text from outside, made fit for a message: on one line, quoted, or with the names that it may have meant.

/// Names longer than this, and more of them, are not compared: a hostile job could have both.
const COMPARED_CHARACTERS: usize = 64;
const COMPARED_NAMES: usize = 2000;

/// `; did you mean a, b?` for the known names nearest to `name`, or nothing.
#[must_use]
pub fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> String {
    let short = |name: &str| name.chars().nth(COMPARED_CHARACTERS).is_none();
    if !short(name) {
        return String::new();
    }
    let mut scored: Vec<(f64, String)> = known
        .into_iter()
        .filter(|candidate| short(candidate))
        .take(COMPARED_NAMES)
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = scored.into_iter().take(3).map(|(_, candidate)| candidate).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(", ")) }
}

/// Whether a character breaks a line, steers a terminal, or reorders text so that it shows as another.
#[must_use]
pub fn is_treacherous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Outside text on one line: treacherous characters escaped, cut at `limit` characters.
#[must_use]
pub fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::new();
    let mut left = text.chars();
    for c in left.by_ref().take(limit) {
        if is_treacherous(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    if left.next().is_some() {
        line.push('…');
    }
    line
}

/// Outside text that keeps its lines: other treacherous characters escaped, cut at `limit` characters with
/// a word that says so.
#[must_use]
pub fn many_lines(text: &str, limit: usize) -> String {
    let plain = |c: char| matches!(c, '\n' | '\t') || !is_treacherous(c);
    let mut shown = String::new();
    for c in text.chars().take(limit) {
        if plain(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    if text.chars().nth(limit).is_some() {
        shown += &format!("\n… (cut here: {} characters in all)", text.chars().count());
    }
    shown
}

/// Outside text on one line and in quotes, cut at `limit` characters.
#[must_use]
pub fn quoted(text: &str, limit: usize) -> String {
    let shown: String = text.chars().take(limit).collect();
    let cut = if shown.len() < text.len() { "…" } else { "" };
    format!("{shown:?}{cut}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_few_and_the_nearest_first() {
        let near = |name: &str, known: &[&str]| nearest(name, known.iter().map(|name| (*name).to_owned()));
        assert_eq!(near("sed", &["steps", "seed", "model"]), "; did you mean seed?");
        assert_eq!(near("amqp.qeue", &["amqp.url", "amqp.queue"]), "; did you mean amqp.queue, amqp.url?");
        assert_eq!(near("zzz", &["seed"]), "");
        let long = "a".repeat(65);
        assert_eq!((near(&long, &["aaaa"]), near("aaaa", &[&long])), (String::new(), String::new()));
        assert_eq!(near("aaaa", &["aaaa1", "aaaa2", "aaaa3", "aaaa4"]).matches("aaaa").count(), 3);
    }

    #[test]
    fn outside_text_stays_on_its_line() {
        assert_eq!(
            one_line("a\nb\u{1b}[31mc\0\u{202e}d\u{2028}", 99),
            "a\\nb\\u{1b}[31mc\\u{0}\\u{202e}d\\u{2028}"
        );
        assert_eq!((one_line("äöü", 3).as_str(), one_line("äöü", 2).as_str()), ("äöü", "äö…"));
        assert_eq!(many_lines("a\n\tb\r\u{1b}[31m\u{202e}c", 99), "a\n\tb\\r\\u{1b}[31m\\u{202e}c");
        assert_eq!(many_lines("äöü", 3), "äöü");
        assert_eq!(many_lines("äöü", 2), "äö\n… (cut here: 3 characters in all)");
        assert_eq!(quoted("a\"\n\u{202e}", 9), r#""a\"\n\u{202e}""#);
        assert_eq!((quoted("äöü", 3).as_str(), quoted("äöü", 2).as_str()), ("\"äöü\"", "\"äö\"…"));
    }
}
