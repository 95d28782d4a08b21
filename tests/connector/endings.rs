//! Programs that end without a shutdown: by a panic, an exit, SIGKILL. Each is a process of its own;
//! they start at the same moment, from the same port.

use std::{collections::BTreeSet, env, net::TcpListener, path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use comfy_worker::Config;
use connector::ComfyConnector;
use testbed::{Signal, free_port};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use super::{
    bed::{Bed, LIMIT, my_turn, signal},
    uploads::ephemeral,
};

const CONFIG: &str = "TEST_CONFIG";
const PICTURE: &str = "TEST_PICTURE";
const ENDING: &str = "TEST_ENDING";

struct Embedder {
    bed: Bed,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Embedder {
    fn start(port: u16, ending: &str) -> Result<Self> {
        let bed = Bed::new()?;
        let mut child = Command::new(env::current_exe()?)
            .args(["--exact", "endings::embedder", "--ignored", "--nocapture"])
            .env(CONFIG, bed.config_file(&[("comfyui.port", &port.to_string())])?)
            .env(PICTURE, bed.picture("ours.png")?)
            .env(ENDING, ending)
            .env("TMPDIR", bed.dir.join("t"))
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        std::fs::write(bed.folder("input/theirs.png"), "theirs")?;
        Ok(Self { bed, child, output })
    }

    /// Its ComfyUI's address, once all is up.
    async fn ready(&mut self) -> Result<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).await? > 0 {
            if let Some((_, address)) = line.trim_end().split_once("ready at ") {
                return Ok(address.to_owned());
            }
            line.clear();
        }
        bail!("it ended: {}", self.child.wait().await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_survives_and_no_port_is_shared() -> Result<()> {
    let port = free_port()?;
    let _taken = TcpListener::bind(("127.0.0.1", port)).context("the port was taken meanwhile")?;
    let endings = ["panic", "exit", "kill"];
    let mut embedders =
        endings.into_iter().map(|ending| Embedder::start(port, ending)).collect::<Result<Vec<_>>>()?;
    let mut addresses = BTreeSet::new();
    for embedder in &mut embedders {
        addresses.insert(timeout(LIMIT, embedder.ready()).await??);
        ensure!(embedder.bed.folder("input/ours.png").is_file() && !embedder.bed.processes().is_empty());
    }
    println!("{addresses:?}");
    ensure!(addresses.len() == 3 && !addresses.contains(&format!("http://127.0.0.1:{port}")));

    for (Embedder { bed, mut child, .. }, ending) in embedders.into_iter().zip(endings) {
        // It waits for the end of its input before it ends itself.
        drop(child.stdin.take());
        let status = timeout(Duration::from_secs(60), child.wait()).await??;
        println!("{ending}: {status}");
        ensure!(!status.success());
        bed.wait_nothing_runs().await?;
        // A panic drops the connector on its way, which may get so far.
        ensure!(ending == "panic" || bed.folder("input/ours.png").is_file(), "who removed it?");
        next_start_sweeps(&bed).await?;
        ensure!(bed.names("input")? == ["theirs.png"]);
    }
    Ok(())
}

/// The start sweeps before it boots: here there is nothing to boot.
async fn next_start_sweeps(bed: &Bed) -> Result<()> {
    let _turn = my_turn().await;
    let config = bed.config(&[("comfyui.command", "no-such-program")])?;
    ensure!(ComfyConnector::create(config.connector().await).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "nothing_survives_… runs it, in processes of its own"]
async fn embedder() -> Result<()> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from).context("not started by the test");
    let connector = ComfyConnector::create(Config::from_file(&path(CONFIG)?)?.connector().await).await?;
    connector.upload_data(&path(PICTURE)?, &ephemeral()).await?;
    println!("ready at {}", connector.server_address().context("no address")?);
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    match env::var(ENDING)?.as_str() {
        "panic" => panic!("as asked"),
        "exit" => std::process::exit(7),
        _ => signal(std::process::id(), Signal::KILL),
    }
}
