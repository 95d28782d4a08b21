//! Words for people: near misses, and outside text made fit for one line.

/// `; did you mean a, b?` for the known names nearest to `name`, or nothing.
pub(crate) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> String {
    let mut scored: Vec<(f64, String)> = known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, &candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = scored.into_iter().take(3).map(|(_, candidate)| candidate).collect();
    if names.is_empty() { String::new() } else { format!("; did you mean {}?", names.join(", ")) }
}

/// Whether a character breaks a line, steers a terminal, or reorders text so that it shows as another.
pub(crate) fn is_treacherous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Outside text on one line: treacherous characters escaped, cut at `limit` characters.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut line: String = text
        .chars()
        .take(limit)
        .flat_map(|c| if is_treacherous(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.chars().nth(limit).is_some() {
        line.push('…');
    }
    line
}

/// Outside text on one line and in quotes, cut at `limit` characters.
pub(crate) fn quoted(text: &str, limit: usize) -> String {
    let shown: String = text.chars().take(limit).collect();
    let cut = if shown.len() < text.len() { "…" } else { "" };
    format!("{shown:?}{cut}")
}
