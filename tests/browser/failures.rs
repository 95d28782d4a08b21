//! A Chromium or a page that dies, hangs, grows or is too slow.

use std::time::{Duration, Instant};

use connector::browser::ConvertError;
use rustix::process::{Signal, kill_process, kill_process_group};
use serde_json::json;

use crate::{
    processes::{group, ours, pid, until},
    started::Started,
    workflows::{busy, empty_image, simple},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_chromium_costs_no_conversion() {
    let started = Started::new().await;
    let leader = started.leader();
    let profile = started.profile();
    kill_process(leader, Signal::KILL).unwrap();
    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the kill", clock.elapsed());
    assert_ne!(started.leader(), leader);
    until("the first group is gone", Duration::from_secs(2), || group(leader) == 0).await;
    assert!(!profile.exists());
    started.browser.validate().await.unwrap();

    // In the middle of a conversion.
    let leader = started.leader();
    let taken = started.convert_through(|| kill_process_group(leader, Signal::KILL).unwrap()).await;
    println!("converted {taken:?} after the kill halfway");
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_page_costs_no_conversion_and_no_browser() {
    let started = Started::new().await;
    let leader = started.leader();
    let crash = || {
        let renderers: Vec<_> =
            ours().into_iter().filter(|process| process.command.contains("--type=renderer")).collect();
        assert!(!renderers.is_empty());
        for renderer in renderers {
            kill_process(pid(renderer.pid).unwrap(), Signal::KILL).unwrap();
        }
    };
    crash();
    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the crash", clock.elapsed());

    let taken = started.convert_through(crash).await;
    println!("converted {taken:?} after the crash halfway");
    assert_eq!(started.leader(), leader);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_chromium_is_replaced_within_limits() {
    let started = Started::new().await;
    let leader = started.leader();
    kill_process_group(leader, Signal::STOP).unwrap();

    let clock = Instant::now();
    let unhealthy = started.browser.validate().await.unwrap_err();
    assert!(clock.elapsed() < Duration::from_secs(2), "{:?}", clock.elapsed());
    println!("validate: {unhealthy}");

    let clock = Instant::now();
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    println!("converted {:?} after the stop", clock.elapsed());
    assert!(clock.elapsed() < Duration::from_secs(25), "{:?}", clock.elapsed());
    assert_eq!(group(leader), 0);

    // In the middle of a conversion: noticed long before the conversion's own limit.
    let leader = started.leader();
    let taken = started.convert_through(|| kill_process_group(leader, Signal::STOP).unwrap()).await;
    println!("converted {taken:?} after the stop halfway");
    assert!(taken < Duration::from_secs(27), "{taken:?}");
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_and_costs_no_chromium() {
    let started = Started::with(Duration::from_millis(1)).await;
    let leader = started.leader();
    match started.browser.convert(&busy()).await {
        Err(ConvertError::TimedOut(limit)) => assert_eq!(limit, Duration::from_millis(1)),
        other => panic!("{other:?}"),
    }
    // A slow workflow is no reason to replace a Chromium that answers.
    assert_eq!(started.leader(), leader);
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_conversion_leaves_no_trace() {
    let started = Started::new().await;
    let limit = Duration::from_millis(40);
    assert!(tokio::time::timeout(limit, started.browser.convert(&busy())).await.is_err());
    assert_eq!(started.prompt(&simple(&json!(7))).await["1"], empty_image());
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_replaced_before_they_grow() {
    let started = Started::new().await;
    let leader = started.leader();
    started.wait_for_spare().await;
    let renderers = || ours().iter().filter(|process| process.command.contains("--type=renderer")).count();
    let before = renderers();
    let mut times = Vec::new();
    for color in 0..120 {
        let clock = Instant::now();
        assert_eq!(started.prompt(&simple(&json!(color))).await["1"]["inputs"]["color"], json!(color));
        times.push(clock.elapsed());
    }
    times.sort();
    println!("median {:?}, most {:?}", times[60], times[119]);
    assert_eq!(started.leader(), leader);
    started.wait_for_spare().await;
    until("the first page is gone", Duration::from_secs(30), || renderers() <= before).await;
    started.browser.shutdown().await;
}
