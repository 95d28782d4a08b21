//! JSON that is nearly what is expected.

use proptest::{collection, prelude::*, sample};
use serde_json::{Map, Number, Value};

/// Any value, a few levels deep, with the words that mean something as keys and texts.
pub(crate) fn value(words: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        3 => sample::select(words).prop_map(str::to_owned),
        1 => "\\PC{0,12}",
        1 => any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| Number::from_f64(number).map_or(Value::Null, Value::Number)),
        text.clone().prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 16, 4, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            collection::vec((text.clone(), inner), 0..4)
                .prop_map(|entries| Value::Object(Map::from_iter(entries))),
        ]
    })
}

/// `original` with some of its values replaced, added or taken away.
pub(crate) fn near(original: Value, words: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let change = (
        any::<sample::Index>(),
        prop_oneof![
            3 => value(words).prop_map(Some),
            1 => Just(None),
        ],
    );
    collection::vec(change, 0..4).prop_map(move |changes| {
        let mut changed = original.clone();
        for (at, new) in changes {
            let mut places = Vec::new();
            pointers(&changed, String::new(), &mut places);
            let place = at.get(&places).clone();
            match (changed.pointer_mut(&place), new) {
                (Some(found), Some(new)) => *found = new,
                (Some(_), None) => remove(&mut changed, &place),
                (None, _) => {}
            }
        }
        changed
    })
}

fn pointers(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(entries) => {
            for (key, inner) in entries {
                pointers(inner, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                pointers(inner, format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
    found.push(at);
}

fn remove(value: &mut Value, place: &str) {
    let Some((parent, key)) = place.rsplit_once('/') else { return };
    let key = key.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(entries)) => drop(entries.remove(&key)),
        Some(Value::Array(items)) => {
            if let Some(index) = key.parse::<usize>().ok().filter(|index| *index < items.len()) {
                items.remove(index);
            }
        }
        _ => {}
    }
}
