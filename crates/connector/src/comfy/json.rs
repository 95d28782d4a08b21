//! JSON as Python writes it: bare `NaN`, `Infinity` and lone surrogates, and nested deeper than strict parsers read.

use serde_json::Value;

/// Levels of objects and lists that are read. `serde_json` stops at 128, by refusing the whole.
const DEEPEST: usize = 120;

/// Reads JSON, taking what only Python writes, and what is nested too deep, for `null` and U+FFFD.
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
    let mut depth = 0;
    while let Some(first) = rest.chars().next() {
        if in_string && first == '\\' {
            let (escape, length) = escape(rest);
            if depth <= DEEPEST {
                out.push_str(&escape);
            }
            rest = rest.get(length..).unwrap_or_default();
            continue;
        }
        if first == '"' {
            in_string = !in_string;
        } else if !in_string && let Some(word) = NOT_JSON.iter().find(|word| rest.starts_with(**word)) {
            if depth <= DEEPEST {
                out.push_str("null");
            }
            rest = rest.get(word.len()..).unwrap_or_default();
            continue;
        }
        if !in_string {
            match first {
                '{' | '[' => {
                    depth += 1;
                    if depth == DEEPEST + 1 {
                        out.push_str("null");
                    }
                }
                '}' | ']' => {
                    depth = depth.saturating_sub(1);
                    if depth == DEEPEST {
                        rest = rest.get(1..).unwrap_or_default();
                        continue;
                    }
                }
                _ => {}
            }
        }
        if depth <= DEEPEST {
            out.push(first);
        }
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
    fn what_is_nested_too_deep_is_left_out_and_the_rest_is_read() {
        let nested = |levels: usize| {
            (0..levels).fold("1".to_owned(), |inside, level| match level % 3 {
                0 => format!(r#"{{"a]": {inside}, "b": "}}\\\""}}"#),
                1 => format!("[NaN, {inside}, []]"),
                _ => format!("[{inside}]"),
            })
        };
        for levels in [1, super::DEEPEST - 1, super::DEEPEST, 127, 128, 129, 3_000] {
            let text = format!(r#"{{"deep": {}, "other": [1, "x"]}}"#, nested(levels));
            let read = parse(&text).unwrap_or_default();
            assert_eq!(read["other"], json!([1, "x"]), "{levels}");
            assert!(!read["deep"].is_null(), "{levels}");
        }
        assert_eq!(parse(&nested(super::DEEPEST)).ok(), parse(&nested(super::DEEPEST)).ok());
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
