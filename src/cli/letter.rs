//! A dead letter for people and programs: nothing in it reaches a terminal as it came.

use base64::Engine;
use contract::{JobId, text::is_treacherous};
use serde_json::{Value, json};

use super::dead::moment;
use crate::queue::DeadLetter;

/// Bodies up to here are shown whole.
const WHOLE_BYTES: usize = 1 << 20;
/// Of larger ones so much.
const HEAD_BYTES: usize = 16 << 10;
/// Fields of a job that hold a credential, ours and RunPod's.
const CREDENTIALS: [&str; 2] = ["/api_key_comfy_org", "/input/comfy_org_api_key"];

/// One line's worth.
pub(super) fn summary(id: &JobId, letter: &DeadLetter) -> Value {
    let message = &letter.message;
    let death = message.death.as_ref();
    json!({
        "id": id,
        "at": death.and_then(|death| death.at).map(moment),
        "reason": death.map(|death| &death.reason),
        "count": death.map(|death| death.count),
        "bytes": message.body.len(),
        "reply_to": message.reply_to,
    })
}

/// All of it; a body that is no JSON, or too large, in base64, and of a large one the head.
pub(super) fn whole(id: &JobId, letter: &DeadLetter) -> Value {
    let mut value = summary(id, letter);
    value["properties"] = letter.properties();
    match Body::of(&letter.message.body) {
        Body::Json(body) => value["body"] = body,
        Body::Raw(bytes) => {
            value["body_base64"] = json!(base64::engine::general_purpose::STANDARD.encode(bytes));
            value["truncated"] = json!(bytes.len() < letter.message.body.len());
        }
    }
    value
}

/// The same as a page of text.
pub(super) fn page(id: &JobId, letter: &DeadLetter) -> String {
    let size = letter.message.body.len();
    let death = letter.message.death.as_ref().map_or_else(
        || "unknown".to_owned(),
        |death| {
            let at = death.at.map_or_else(|| "?".to_owned(), moment);
            format!("{} in {}, {} time(s), last at {at}", death.reason, death.queue, death.count)
        },
    );
    let (body, note) = match Body::of(&letter.message.body) {
        Body::Json(body) => (pretty(&body), String::new()),
        Body::Raw(bytes) if bytes.len() < size => {
            (String::from_utf8_lossy(bytes).into_owned(), format!(", the first {} of them", bytes.len()))
        }
        Body::Raw(bytes) => (String::from_utf8_lossy(bytes).into_owned(), ", no JSON".to_owned()),
    };
    let properties = pretty(&letter.properties());
    format!("job {id}\nreason: {death}\nproperties: {properties}\nbody ({size} bytes{note}):\n{body}\n")
}

enum Body<'a> {
    /// Without credentials.
    Json(Value),
    Raw(&'a [u8]),
}

impl<'a> Body<'a> {
    fn of(body: &'a [u8]) -> Self {
        if body.len() > WHOLE_BYTES {
            return Self::Raw(body.get(..HEAD_BYTES).unwrap_or(body));
        }
        let Ok(mut json) = serde_json::from_slice::<Value>(body) else { return Self::Raw(body) };
        for field in CREDENTIALS {
            if let Some(credential) = json.pointer_mut(field) {
                *credential = json!("(not shown)");
            }
        }
        Self::Json(json)
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// What steers a terminal is escaped as JSON does it, so that JSON stays JSON; lines stay.
pub(super) fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut all, c| {
        if c != '\n' && is_treacherous(c) {
            all.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            all.push(c);
        }
        all
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_is_printed_steers_no_terminal_and_stays_json() {
        let hostile = "\u{1b}]0;x\u{7}\u{9b}31m\u{7f}\u{202e}\r\tend";
        let printed = printable(&pretty(&json!({"a": hostile})));
        assert!(!printed.chars().any(|c| c != '\n' && is_treacherous(c)), "{printed:?}");
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), json!({"a": hostile}));
        assert_eq!(printable("\u{1b}[2J\nä"), "\\u001b[2J\nä");
    }

    #[test]
    fn bodies_are_shown_whole_or_by_their_head_and_without_credentials() {
        let key = |body: Value| match Body::of(body.to_string().as_bytes()) {
            Body::Json(json) => json.to_string(),
            Body::Raw(_) => String::new(),
        };
        for body in [
            json!({"id": "j", "api_key_comfy_org": "hunter2"}),
            json!({"input": {"comfy_org_api_key": "hunter2"}}),
        ] {
            let shown = key(body);
            assert!(shown.contains("not shown") && !shown.contains("hunter2"), "{shown}");
        }
        assert!(matches!(Body::of(b"no json"), Body::Raw(b"no json")));
        let large = vec![b' '; WHOLE_BYTES + 1];
        assert!(matches!(Body::of(&large), Body::Raw(head) if head.len() == HEAD_BYTES));
    }
}
