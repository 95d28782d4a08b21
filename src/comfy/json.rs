//! JSON as Python writes it: bare `NaN`, `Infinity` and lone surrogates, which strict parsers refuse.

use serde_json::Value;

/// Reads JSON, taking what only Python writes for `null` and U+FFFD.
///
/// # Errors
/// When it is no JSON in that wider sense either.
pub(super) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|_| serde_json::from_str(&strict(text)))
}

/// The same text with what strict parsers refuse replaced.
fn strict(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(first) = rest.chars().next() {
        if in_string && first == '\\' {
            let (escape, length) = escape(rest);
            out.push_str(&escape);
            rest = rest.get(length..).unwrap_or_default();
            continue;
        }
        if first == '"' {
            in_string = !in_string;
        } else if !in_string && let Some(word) = NOT_JSON.iter().find(|word| rest.starts_with(**word)) {
            out.push_str("null");
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        out.push(first);
        rest = rest.get(first.len_utf8()..).unwrap_or_default();
    }
    out
}

const NOT_JSON: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// The escape that `text` begins with, made strict, and its length in bytes.
fn escape(text: &str) -> (String, usize) {
    let unit = |at: usize| {
        let digits = text.get(at..).and_then(|rest| rest.strip_prefix("\\u")).and_then(|rest| rest.get(..4));
        digits.and_then(|digits| u16::from_str_radix(digits, 16).ok())
    };
    match (unit(0), unit(6)) {
        (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (text.get(..12).unwrap_or_default().to_owned(), 12),
        (Some(0xD800..=0xDFFF), _) => ("\\ufffd".to_owned(), 6),
        _ => {
            let length = text.chars().take(2).map(char::len_utf8).sum();
            (text.get(..length).unwrap_or_default().to_owned(), length)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::parse;

    #[test]
    fn strict_json_is_untouched() {
        let text = r#"{"a": "NaN \" \\ \u00e9 \ud83d\ude00", "b": [1.5, null]}"#;
        assert_eq!(parse(text).ok(), Some(json!({"a": "NaN \" \\ é 😀", "b": [1.5, null]})));
    }

    #[test]
    fn what_only_python_writes_is_read() {
        let text = r#"{"a": NaN, "b": [Infinity, -Infinity], "c": "NaN\"", "d": "x\ud800y\ude00"}"#;
        let expected = json!({"a": null, "b": [null, null], "c": "NaN\"", "d": "x\u{fffd}y\u{fffd}"});
        assert_eq!(parse(text).ok(), Some(expected));
    }

    #[test]
    fn broken_json_stays_broken() {
        for text in ["", "{", "{\"a\": }", "\"\\", "\"\\u12"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_strict_json_means_the_same(text in "\\PC{0,20}", number in proptest::num::f64::NORMAL, flag: bool) {
            let value = json!({text.as_str(): [number, flag, null, {"NaN": text.as_str()}], "Infinity": "-Infinity"});
            for written in [value.to_string(), format!("{value:#}")] {
                let expected: serde_json::Value = serde_json::from_str(&written).unwrap_or_default();
                proptest::prop_assert_eq!(parse(&written).ok(), Some(expected.clone()));
                // Also by way of the repair, which strict text never takes.
                proptest::prop_assert_eq!(serde_json::from_str(&super::strict(&written)).ok(), Some(expected));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let strict = serde_json::from_str::<serde_json::Value>(&text).ok();
            let read = parse(&text).ok();
            proptest::prop_assert!(strict.is_none() || read == strict);
        }
    }
}
