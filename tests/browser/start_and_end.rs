//! Chromium's start and end.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use comfy_worker::config::BrowserConfig;
use connector::browser::{Browser, ConvertError};
use rustix::process::{Signal, getpgid, kill_process_group};
use serde_json::json;
use url::Url;

use crate::{
    processes::{group, listeners, ours, pid},
    started::{Started, my_turn, server},
    workflows::simple,
};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_shutdown_or_drop() {
    for dropped in [false, true] {
        let started = Started::new().await;
        started.browser.validate().await.unwrap();
        let leader = started.leader();
        let profile = started.profile();
        assert!(profile.is_dir() && group(leader) > 1);
        let clock = Instant::now();
        if dropped {
            drop(started);
        } else {
            started.browser.shutdown().await;
            let taken = clock.elapsed();
            started.browser.shutdown().await;
            assert!(started.browser.validate().await.is_err());
            assert!(matches!(started.browser.convert(&simple(&json!(7))).await, Err(ConvertError::Stopped)));
            println!("shut down in {taken:?}");
            assert!(taken < Duration::from_secs(3));
        }
        assert_eq!(group(leader), 0, "dropped: {dropped}");
        assert!(!profile.exists(), "dropped: {dropped}");
        println!("gone after {:?}, dropped: {dropped}", clock.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chromium_that_hangs_is_killed_by_the_shutdown() {
    let started = Started::new().await;
    let (leader, profile) = (started.leader(), started.profile());
    kill_process_group(leader, Signal::STOP).unwrap();
    let clock = Instant::now();
    started.browser.shutdown().await;
    println!("shut down in {:?}", clock.elapsed());
    // Asked for one second; then dying and removing its files.
    assert!(clock.elapsed() < Duration::from_secs(3), "{:?}", clock.elapsed());
    assert_eq!(group(leader), 0);
    assert!(!profile.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_connect_to_devtools() {
    let started = Started::new().await;
    let leader = started.leader();
    let chromium: Vec<_> = ours()
        .into_iter()
        .filter(|process| pid(process.pid).and_then(|pid| getpgid(Some(pid)).ok()) == Some(leader))
        .map(|process| process.pid)
        .collect();
    assert!(chromium.len() > 1, "{chromium:?}");
    for process in chromium {
        assert_eq!(listeners(process), Vec::<String>::new(), "process {process}");
    }
    started.browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_is_named() {
    let _turn = my_turn().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let config = BrowserConfig::default().with_convert_timeout(Duration::from_secs(5));
    let error = Browser::start(config, nobody.clone()).await.unwrap_err().to_string();
    println!("{error}");
    assert!(
        error.contains(nobody.as_str()) && error.contains("ERR_CONNECTION_REFUSED") && !error.contains('\n')
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_executable_is_one_clear_line() {
    let mut config = BrowserConfig::default().with_convert_timeout(Duration::from_secs(5));
    config.executable = Some("/bin/false".into());
    let error = Browser::start(config, server().await).await.unwrap_err().to_string();
    println!("{error}");
    assert!(error.ends_with("/bin/false did not start: it ended and said nothing") && !error.contains('\n'));
}
