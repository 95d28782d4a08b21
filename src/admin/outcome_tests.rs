#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use contract::result::{OutputFile, Timings, WorkerInfo};
use serde_json::{Value, json};

use super::*;

fn result(outputs: Vec<Output>, error: Option<JobError>) -> JobResult {
    JobResult {
        version: 1,
        id: "j".parse().unwrap(),
        status: if error.is_some() { Status::Failed } else { Status::Succeeded },
        outputs,
        history: None,
        prompt: None,
        error,
        warnings: vec!["w".repeat(TEXT + 1); WARNINGS + 2],
        timings: Timings::default(),
        nodes: BTreeMap::new(),
        attempt: 1,
        worker: WorkerInfo::default(),
        metadata: None,
    }
}

fn file(filename: &str, content_type: &str, size: u64) -> Output {
    Output {
        node: "9".into(),
        key: "images".into(),
        index: 0,
        kind: Kind::Image,
        text: None,
        file: Some(OutputFile {
            filename: filename.into(),
            uri: format!("s3://bucket/{filename}"),
            url: Some("https://signed/link".into()),
            content_type: content_type.into(),
            size,
            sha256: String::new(),
            temp: false,
        }),
    }
}

fn error(message: &str, traceback: Vec<String>, node_errors: Option<Value>) -> JobError {
    JobError {
        code: Code::ExecutionError,
        stage: Stage::Run,
        message: message.into(),
        node_errors,
        node: Some("3".into()),
        traceback: Some(traceback),
    }
}

#[test]
fn an_error_is_whole() {
    let traceback = ["  File \"a.py\", line 1, in f\n    raise ValueError\n", "  File \"b.py\""];
    let error = error("two\nlines", traceback.map(str::to_owned).into(), Some(json!({"3": {"errors": []}})));
    let told = serde_json::to_value(Outcome::of(&result(Vec::new(), Some(error)))).unwrap()["error"].take();
    assert_eq!(
        told,
        json!({"code": "execution_error", "stage": "run", "message": "two\nlines", "node": "3",
               "traceback": "  File \"a.py\", line 1, in f\n    raise ValueError\n  File \"b.py\"",
               "node_errors": "{\n  \"3\": {\n    \"errors\": []\n  }\n}"})
    );
}

#[test]
fn what_is_longer_than_anybody_reads_is_cut_and_says_so() {
    let lines = (0..20_000).map(|line| format!("line {line}\n")).chain(["the cause\n".to_owned()]);
    let huge = error(&"é".repeat(MESSAGE * 2), lines.collect(), Some(json!("x".repeat(NODE_ERRORS * 2))));
    let outputs = (0..OUTPUTS + 9).map(|number| file(&format!("{number}.png"), "image/png", 1)).collect();
    let outcome = serde_json::to_value(Outcome::of(&result(outputs, Some(huge)))).unwrap();
    let text = |name: &str| outcome["error"][name].as_str().unwrap().to_owned();
    assert!(
        text("message").ends_with("\n… (cut here: 16000 characters in all)"),
        "{}",
        text("message").len()
    );
    assert!(text("traceback").ends_with("\nthe cause"), "the end is kept");
    assert!(text("traceback").starts_with("(the first ") && text("traceback").len() < TRACEBACK + 200);
    assert!(text("node_errors").contains("(cut here: "));
    assert_eq!(outcome["outputs"].as_array().unwrap().len(), OUTPUTS);
    assert_eq!(outcome["outputs_in_all"], OUTPUTS + 9);
    assert_eq!(
        (outcome["warnings"].as_array().unwrap().len(), &outcome["warnings_in_all"]),
        (WARNINGS, &json!(22))
    );
    assert!(outcome["warnings"][0].as_str().unwrap().contains("cut here"));
    assert!(outcome.to_string().len() < 250_000, "{}", outcome.to_string().len());
}

#[test]
fn only_pictures_without_a_program_and_of_a_size_are_looked_at() {
    let outputs = vec![
        file("a.png", "image/png", 1),
        file("b.svg", "image/svg+xml", 1),
        file("c.html", "text/html", 1),
        file("d.jpg", "IMAGE/JPEG", LARGEST_PICTURE),
        file("e.png", "image/png", LARGEST_PICTURE + 1),
        file("f.png", "image/png; charset=x", 1),
        Output { kind: Kind::File, ..file("g.png", "image/png", 1) },
        Output { text: Some("t".into()), file: None, kind: Kind::Text, ..file("", "", 0) },
    ];
    let result = result(outputs, None);
    let ours = Outcome::of(&result);
    let types: Vec<_> = (0..9).map(|index| ours.picture(index).map(|picture| picture.content_type)).collect();
    assert_eq!(types, [Some("image/png"), None, None, Some("image/jpeg"), None, None, None, None, None]);
    assert_eq!(ours.picture(0).unwrap().uri, "s3://bucket/a.png");
    // What was in the store may list anything.
    let unrun = Outcome::unrun(&result);
    assert!((0..9).all(|index| unrun.picture(index).is_none()));
    // A presigned link opens what it leads to: nobody needs it here.
    assert!(!serde_json::to_string(&ours).unwrap().contains("signed"));
}

#[test]
fn names_cannot_steer_what_shows_them() {
    let evil = "photo\u{202e}gnp.exe\u{1b}[2J\n<img src=x onerror=alert(1)>";
    let outcome =
        Outcome::of(&result(vec![file(evil, "image/png", 1)], Some(error(evil, vec![evil.into()], None))));
    let text = serde_json::to_string(&outcome).unwrap();
    assert!(!text.contains('\u{202e}') && !text.contains('\u{1b}') && !text.contains("\\u001b"), "{text}");
    // The object's own address is as it was.
    assert!(outcome.picture(0).unwrap().uri.contains(evil));
}
