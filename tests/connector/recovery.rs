//! Parts that are lost: `validate_resources` names them, the next call fixes them.

use std::{fs, net::TcpListener, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use comfy_worker::Config;
use connector::{
    ComfyConnector, ConnectorError, HealthError, Payload, State,
    comfy::{BootError, ExecuteError},
};
use serde_json::json;
use testbed::{Engine, Signal, wait_for, wait_for_value};

use super::bed::{Bed, LIMIT, color, invert, my_turn, signal};

/// The original's file, with blanks in every path, a quoted command, and a first port that somebody
/// holds who answers nothing.
struct Spaced {
    bed: Bed,
    config: Config,
    /// What the command runs. Without it no start succeeds.
    script: PathBuf,
    taken: TcpListener,
}

impl Spaced {
    fn new() -> Result<Self> {
        let bed = Bed::with(|dir| Engine::from_env(&dir.join("Comfy UI's folder")))?;
        let taken = TcpListener::bind(("127.0.0.1", 0))?;
        let port = taken.local_addr()?.port();
        let script = bed.dir.join("start comfy.sh");
        let file = bed.dir.join("comfy_serverless.json");
        let text = json!({
            "API_COMMAND_LINE": format!("sh '{}' --listen 0.0.0.0", script.display()),
            "API_WORKING_DIRECTORY": bed.engine.workdir,
            "API_URL": "localhost",
            "INITIAL_PORT": port,
            "MAX_COMFY_START_ATTEMPTS": 300,
            "COMFYUI_PATH": bed.engine.path,
        });
        fs::write(&file, text.to_string())?;
        let mut config = Config::from_file(&file)?;
        config.worker.state_dir = bed.dir.join("state");
        config.comfyui.max_restarts = 10;
        config.browser.args.push(bed.mark());
        let spaced = Self { bed, config, script, taken };
        spaced.write_script()?;
        Ok(spaced)
    }

    fn write_script(&self) -> Result<()> {
        Ok(fs::write(&self.script, format!("exec {} \"$@\"\n", self.bed.engine.command_line()))?)
    }
}

fn comfyui(connector: &ComfyConnector) -> Result<u32> {
    Ok(connector.running().context("nothing runs")?.server().pid())
}

async fn wait_ill(connector: &ComfyConnector, expected: impl Fn(&HealthError) -> bool) -> Result<()> {
    let unhealthy = wait_for_value("an unhealthy part", LIMIT, || async {
        connector.validate_resources().await.err().filter(|unhealthy| expected(unhealthy))
    })
    .await?;
    println!("{unhealthy}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unhealthy_part_is_named_and_replaced_by_the_next_call() -> Result<()> {
    let _turn = my_turn().await;
    let spaced = Spaced::new()?;
    let bed = &spaced.bed;
    let connector = ComfyConnector::create(spaced.config.connector().await).await?;
    let first_port = spaced.taken.local_addr()?.port();
    let port = |connector: &ComfyConnector| {
        let address = connector.server_address().context("no address")?;
        Ok::<u16, anyhow::Error>(address.rsplit_once(':').context("no port")?.1.parse()?)
    };
    ensure!(port(&connector)? > first_port);
    connector.upload_data(&bed.picture("example.png")?, &super::uploads::ephemeral()).await?;
    ensure!(bed.folder("input/example.png").is_file());

    // ComfyUI is killed, and missed.
    signal(comfyui(&connector)?, Signal::KILL)?;
    wait_ill(&connector, |unhealthy| matches!(unhealthy, HealthError::Process(_))).await?;
    ensure!(connector.state() == State::Ready);
    let mut states = connector.watch_state();
    let two_states = async {
        states.changed().await?;
        let first = *states.borrow_and_update();
        states.changed().await?;
        Ok((first, *states.borrow_and_update()))
    };
    let restarting = async { Ok::<_, anyhow::Error>(connector.run_workflow(invert()?.into()).await?) };
    let (_, states) = tokio::try_join!(restarting, two_states)?;
    ensure!(states == (State::Initializing, State::Ready), "{states:?}");

    // Killed just before a call.
    signal(comfyui(&connector)?, Signal::KILL)?;
    connector.run_workflow(Payload::Prompt(color(1))).await?;

    // It lives and does not answer.
    let stopped = comfyui(&connector)?;
    signal(stopped, Signal::STOP)?;
    wait_ill(&connector, |unhealthy| matches!(unhealthy, HealthError::Http(_))).await?;
    ensure!(connector.prompt_from_workflow(&invert()?).await?.prompt.len() == 3);
    let alive = comfyui(&connector)?;
    ensure!(alive != stopped && !testbed::alive(stopped));

    signal(bed.chromium().context("no Chromium")?, Signal::KILL)?;
    wait_ill(&connector, |unhealthy| matches!(unhealthy, HealthError::Browser(_))).await?;
    ensure!(connector.prompt_from_workflow(&invert()?).await?.prompt.len() == 3);
    ensure!(comfyui(&connector)? == alive, "ComfyUI was well");

    if !bed.engine.is_real() {
        cut_websocket(&connector).await?;
        // The prompt is what kills it.
        let crash = json!({"1": {"class_type": "StandinCrash", "inputs": {"how": "kill", "exit_code": 1, "after_seconds": 0.2}}});
        let died = connector.run_workflow(Payload::Prompt(crash)).await;
        ensure!(matches!(&died, Err(ConnectorError::Execute(ExecuteError::Died(_)))), "{died:?}");
        ensure!(connector.running().is_none() && connector.state() == State::Initializing);
        connector.run_workflow(Payload::Prompt(color(2))).await?;
    }
    wait_for("all to be well", LIMIT, || async { connector.validate_resources().await.is_ok() }).await?;

    error_is_final(&spaced, connector).await
}

/// It connects again within a moment: cut until somebody has seen it.
async fn cut_websocket(connector: &ComfyConnector) -> Result<()> {
    let faults = format!("{}/standin/faults", connector.server_address().context("no address")?);
    let http = reqwest::Client::new();
    let before = connector.client_id().context("no client id")?;
    wait_for("the websocket's loss to be seen", LIMIT, || async {
        let cut = http.post(&faults).json(&json!({"drop_ws": true})).send().await;
        for _ in 0..20 {
            if connector.validate_resources().await == Err(HealthError::Websocket) {
                return true;
            }
        }
        cut.is_err()
    })
    .await?;
    let after = wait_for_value("a new websocket", LIMIT, || async { connector.client_id() }).await?;
    ensure!(after != before);
    connector.run_workflow(Payload::Prompt(color(2))).await?;
    Ok(())
}

/// What cannot be started again is no use any more; a new connector is.
async fn error_is_final(spaced: &Spaced, connector: ComfyConnector) -> Result<()> {
    fs::remove_file(&spaced.script)?;
    signal(comfyui(&connector)?, Signal::KILL)?;
    let failed = connector.run_workflow(Payload::Prompt(color(3))).await;
    ensure!(matches!(&failed, Err(ConnectorError::Boot(BootError::Exited(_)))), "{failed:?}");
    ensure!(connector.state() == State::Error);
    spaced.write_script()?;
    let again = connector.run_workflow(Payload::Prompt(color(3))).await.err().context("it ran")?;
    println!("{again}");
    ensure!(matches!(&again, ConnectorError::Unusable(_)), "{again:?}");
    ensure!(connector.validate_resources().await == Err(HealthError::NotRunning));
    spaced.bed.wait_nothing_runs().await?;

    let fresh = ComfyConnector::create(spaced.config.connector().await).await?;
    ensure!(connector.state() == State::Error && fresh.state() == State::Ready);
    connector.shutdown().await;
    ensure!(connector.state() == State::Killed);
    fresh.run_workflow(Payload::Prompt(color(4))).await?;
    fresh.shutdown().await;
    spaced.bed.wait_nothing_runs().await?;
    ensure!(!spaced.bed.folder("input/example.png").exists());
    Ok(())
}
