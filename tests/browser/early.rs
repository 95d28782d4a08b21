//! A page that is opened before ComfyUI answers.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use comfy_worker::config::BrowserConfig;
use connector::browser::Browser;
use testbed::RunningEngine;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use url::Url;

use crate::{
    frontends::{newest, newest_files, pinned},
    started::{my_turn, plain},
    workflows::simple,
};

/// Where nobody answers until it is opened; then the server behind it does, and what is asked of it
/// is written down.
struct Door {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<u8>>>,
}

impl Door {
    fn closed() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { address: listener.local_addr().unwrap(), asked: Arc::default() }
    }

    fn url(&self) -> Url {
        format!("http://{}/", self.address).parse().unwrap()
    }

    async fn open(&self, server: &RunningEngine) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let behind = server.url().trim_start_matches("http://").trim_end_matches('/').to_owned();
        let asked = Arc::clone(&self.asked);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&behind).await.unwrap();
                let (mut questions, mut answers) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut answers).await });
                let asked = Arc::clone(&asked);
                tokio::spawn(async move {
                    let mut chunk = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = questions.read(&mut chunk).await {
                        asked.lock().unwrap().extend(&chunk[..length]);
                        if to_server.write_all(&chunk[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
    }

    /// The paths that were asked for and begin like that.
    fn asked_for(&self, path: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        String::from_utf8_lossy(&asked)
            .lines()
            .filter(|line| line.starts_with(&format!("GET {path}")))
            .count()
    }
}

async fn convert_behind(door: &Door, server: &RunningEngine, root: PathBuf) {
    let _turn = my_turn().await;
    let limit = Duration::from_secs(60);
    let config = BrowserConfig::default().with_convert_timeout(limit);
    let browser = Browser::launch(config, door.url()).await.unwrap();
    browser.foresee(root).await;
    door.open(server).await;
    browser.attach().await.unwrap();
    let prompt = browser.convert(&simple(&serde_json::json!(7))).await.unwrap().prompt;
    let at_once = {
        let direct = Browser::start(
            BrowserConfig::default().with_convert_timeout(limit),
            server.url().parse().unwrap(),
        );
        let direct = direct.await.unwrap();
        let prompt = direct.convert(&simple(&serde_json::json!(7))).await.unwrap().prompt;
        direct.shutdown().await;
        prompt
    };
    assert_eq!(plain(prompt.into()), plain(at_once.into()));
    browser.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_frontends_files_come_from_the_disk_and_all_else_from_comfyui() {
    let door = Door::closed();
    convert_behind(&door, newest().await, newest_files()).await;
    assert_eq!(door.asked_for("/assets/index-"), 0);
    assert!(door.asked_for("/api/object_info") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_frontend_than_was_foreseen_is_loaded_from_comfyui() {
    let door = Door::closed();
    convert_behind(&door, pinned().await, newest_files()).await;
    assert!(door.asked_for("/assets/index-") > 0);
}
