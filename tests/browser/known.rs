//! What is known or ready beforehand: conversions by content, a spare page.

use std::{collections::HashSet, time::Instant};

use connector::browser::ConvertError;
use serde_json::{Value, json};

use crate::{
    frontends,
    started::Started,
    workflows::{busy, nested, simple},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_known_workflow_is_not_converted_again() {
    let started = Started::new().await;
    let large = busy();
    let first = started.browser.convert(&large).await.unwrap();
    // Chromium could not answer: it is stopped.
    let stopped = started.stop_chromium();
    let again = started.browser.convert(&large).await.unwrap();
    drop(stopped);
    assert_eq!(first, again);

    // One letter more is another workflow.
    let other = started.prompt(&simple(&json!(8))).await;
    assert_eq!(other["1"]["inputs"]["color"], json!(8));
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"]["inputs"]["color"], json!(7));
    // What belongs to the source, not to the answer, is told each time.
    for _ in 0..2 {
        let rounded = started.browser.convert(&simple(&json!(u64::MAX))).await.unwrap();
        assert_eq!(rounded.warnings.len(), 1);
    }
    started.browser.shutdown().await;
    assert!(started.browser.convert(&large).await.is_err(), "a browser that is shut down converts nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dynamic_prompt_is_drawn_anew_each_time() {
    let started = Started::on(frontends::pinned().await).await;
    let mut workflow = simple(&json!(7));
    let many: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    workflow["nodes"].as_array_mut().unwrap().push(json!({
        "id": 9, "type": "CLIPTextEncode", "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 9, "mode": 0,
        "inputs": [{"name": "clip", "type": "CLIP", "link": null}],
        "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": []}], "properties": {},
        "widgets_values": [format!("number {{{}}}", many.join("|"))]}));
    let mut seen = HashSet::new();
    for _ in 0..4 {
        let prompt = started.prompt(&workflow).await;
        let Value::String(text) = &prompt["9"]["inputs"]["text"] else { panic!("{prompt}") };
        assert!(text.strip_prefix("number ").is_some_and(|drawn| many.contains(&drawn.to_owned())), "{text}");
        seen.insert(text.clone());
    }
    assert!(seen.len() > 1, "the same number of a thousand four times: {seen:?}");
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_error_a_spare_page_converts() {
    let started = Started::new().await;
    started.prompt(&simple(&json!(1))).await;
    started.wait_for_spare().await;
    match started.browser.convert(&nested("Unknown")).await {
        Err(ConvertError::MissingNodes(types)) => assert_eq!(types, ["Unknown"]),
        other => panic!("{other:?}"),
    }
    let clock = Instant::now();
    started.prompt(&simple(&json!(2))).await;
    let taken = clock.elapsed();
    println!("converted {taken:?} after an error; a new page took {:?}", started.ready_after);
    assert!(taken < started.ready_after / 2, "{taken:?}");
    // And there will be another one.
    started.wait_for_spare().await;
    started.browser.shutdown().await;
}
