//! A ComfyUI is given up on proof only, whatever it looks like; and what jobs do to it does not end the worker.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Worker, alive, wait_for};

use super::{
    BOOT, SOON,
    bed::{Bed, slow_job},
    site::{Site, child, end, status, wait_running},
};

/// What the stand-in has and a real ComfyUI needs: a thread of a custom node that is there at boot and ends
/// later, nodes that end the prompt thread, or hold Python's lock.
const NODES: &str = r#"
import collections, ctypes, itertools, os, threading, time
fifo = os.environ.get("STANDIN_STARTUP_THREAD")
if fifo:
    threading.Thread(target=lambda: open(fifo).close(), daemon=True).start()
class Base:
    RETURN_TYPES = ()
    FUNCTION = "run"
    CATEGORY = "standin"
    OUTPUT_NODE = True
class StandinKillPromptThread(Base):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}, "optional": {"how": (["exit", "exception"],), "seed": ("INT", {"default": 0})}}
    def run(self, how="exit", seed=0):
        raise SystemExit if how == "exit" else BaseException("told to")
def hold_lock(seconds, how):
    if how == "wait":
        return ctypes.PyDLL(None).sleep(round(seconds))
    rounds, took = 1_000_000, 0.0
    while took < 0.05:
        begin = time.perf_counter()
        collections.deque(itertools.repeat(None, rounds), maxlen=0)
        took, rounds = time.perf_counter() - begin, rounds * 2
    collections.deque(itertools.repeat(None, int(rounds / 2 / took * seconds)), maxlen=0)
class StandinHoldLock(Base):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seconds": ("FLOAT", {"default": 1.0, "max": 86400.0}), "how": (["work", "wait"],)},
                "optional": {"later": ("BOOLEAN", {"default": False}), "seed": ("INT", {"default": 0})}}
    def run(self, seconds, how, later=False, seed=0):
        if later:
            threading.Timer(1.0, hold_lock, (seconds, how)).start()
        else:
            hold_lock(seconds, how)
        return ()
class StandinSlowDescription(Base):
    @classmethod
    def INPUT_TYPES(cls):
        path = os.environ.get("STANDIN_SLOW_DESCRIPTION", "")
        if os.path.exists(path):
            with open(path) as file:
                time.sleep(float(file.read()))
        return {"required": {}, "optional": {"seed": ("INT", {"default": 0})}}
    def run(self, seed=0):
        return ()
NODE_CLASS_MAPPINGS = {each.__name__: each for each in (StandinKillPromptThread, StandinHoldLock, StandinSlowDescription)}
"#;

/// A job of that one test node.
fn job(id: &str, class: &str, inputs: Value) -> Value {
    json!({"version": 1, "id": id, "workflow": {"1": {"class_type": class, "inputs": inputs}}})
}

fn hold_lock(id: &str, seconds: f64, how: &str, later: bool) -> Value {
    job(id, "StandinHoldLock", json!({"seconds": seconds, "how": how, "later": later, "seed": 1}))
}

/// How often ComfyUI was started again for that reason.
async fn restarts(worker: &Worker, cause: &str) -> Result<f64> {
    let metrics = reqwest::get(worker.admin_url("/metrics")).await?.text().await?;
    let cause = format!("cause=\"{cause}\"");
    let of = |line: &&str| {
        line.starts_with("comfy_worker_child_restarts_total{")
            && line.contains("comfyui")
            && line.contains(&cause)
    };
    Ok(metrics.lines().filter(of).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
}

/// That this ComfyUI has run this job at its first attempt, and lives.
async fn ensure_undisturbed(bed: &Bed, worker: &Worker, comfyui: u32, id: &str) -> Result<()> {
    let result = bed.answer(id).await.with_context(|| worker.log())?;
    ensure!(result["status"] == "succeeded" && result["attempt"] == 1, "{result:#}\n{}", worker.log());
    ensure!(child(worker, "main.py")? == comfyui && alive(comfyui), "ComfyUI was killed\n{}", worker.log());
    Ok(())
}

/// A site whose ComfyUI has a thread of a custom node's, which ends when somebody opens this FIFO.
fn with_startup_thread(bed: &Bed) -> Result<(Site, PathBuf)> {
    let fifo = bed.folder.path().join("startup-thread");
    ensure!(Command::new("mkfifo").arg(&fifo).status()?.success(), "no FIFO");
    let site = Site::new(bed, "a")?.with_nodes("proof.py", NODES)?;
    let site = site.env("STANDIN_STARTUP_THREAD", fifo.display().to_string());
    Ok((site, fifo))
}

/// As the loading of a checkpoint is, while ComfyUI-Manager's start-up thread comes to its end.
#[tokio::test]
async fn a_silent_node_and_an_ended_thread_are_no_reason_to_kill() -> Result<()> {
    let bed = Bed::new("silent").await?;
    let (site, fifo) = with_startup_thread(&bed)?;
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    // A prompt that has run tells which thread runs them; so did the self-test, but there may be luck in that.
    bed.publish(&slow_job("first", 0.1)).await?;
    ensure_undisturbed(&bed, &worker, comfyui, "first").await?;
    bed.publish(&slow_job("silent", 25.0)).await?;
    wait_running(&worker, "silent").await?;
    // Waits until the thread has it open for reading.
    drop(tokio::fs::File::options().write(true).open(&fifo).await?);
    ensure_undisturbed(&bed, &worker, comfyui, "silent").await?;
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// HTTP answers as ever, the prompt is listed as running, and nothing runs. Python says nothing about a
/// thread that exits, and prints an exception.
#[tokio::test]
async fn a_dead_prompt_thread_is_noticed() -> Result<()> {
    let bed = Bed::new("thread").await?;
    // The other thread is there all the time, and asleep.
    let (site, _) = with_startup_thread(&bed)?;
    let worker = site.boot().await?;
    for how in ["exit", "exception"] {
        let killer = format!("killer-{how}");
        bed.publish(&job(&killer, "StandinKillPromptThread", json!({"how": how, "seed": 1}))).await?;
        let result = bed.answer(&killer).await.with_context(|| worker.log())?;
        ensure!(result["error"]["code"] == "engine_crashed", "{result:#}");
        let message = result["error"]["message"].as_str().unwrap_or_default();
        ensure!(
            message.contains("runs no prompts any more: the thread that ran them has ended"),
            "{message}"
        );
        ensure!(bed.attempts(&killer).await? == 1, "tried again here");
    }
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure!(bed.answer("next").await?["status"] == "succeeded");
    ensure!(restarts(&worker, "crashed").await? == 4.0 && restarts(&worker, "lost").await? == 0.0);
    // Where each thread was stands in the log, in the process's own words.
    let log = worker.log();
    ensure!(log.contains("its stacks follow") && log.contains("Fatal Python error: Aborted"), "{log}");
    ensure!(log.contains("most recent call first") && log.contains("main.py"), "{log}");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// As the build of a TensorRT engine does: no call is answered, and the CPU works.
#[tokio::test]
async fn a_node_that_holds_pythons_lock_at_work_is_left_alone() -> Result<()> {
    let bed = Bed::new("lock").await?;
    let site = Site::new(&bed, "a")?
        .with_nodes("proof.py", NODES)?
        .set("amqp.lookahead", "1")
        .env("COMFY_LIMITS", "unreachable=6,post=6");
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    bed.publish(&hold_lock("build", 45.0, "work", false)).await?;
    wait_running(&worker, "build").await?;
    // Posted meanwhile; the second one's cancel cannot reach ComfyUI.
    bed.publish(&slow_job("behind", 600.0)).await?;
    let taken =
        || async { status(&worker).await.is_ok_and(|status| status["next_jobs"][0]["id"] == "behind") };
    wait_for("the job behind", SOON, taken).await?;
    let (code, out, err) = site.command(&["cancel", "behind"]).await?;
    ensure!(code == 0, "{out} {err}\n{}", worker.log());
    let results = bed.answers(&["build", "behind"]).await.with_context(|| worker.log())?;
    ensure!(results["behind"]["status"] == "cancelled", "{results:#?}\n{}", worker.log());
    ensure!(results["build"]["status"] == "succeeded", "{results:#?}\n{}", worker.log());
    ensure!(child(&worker, "main.py")? == comfyui && alive(comfyui), "ComfyUI was killed\n{}", worker.log());
    // One that is left alone is run.
    bed.publish(&hold_lock("again", 15.0, "work", false)).await?;
    wait_running(&worker, "again").await?;
    // It would end the thread of prompts, as ComfyUI would have to say: nothing is posted that was not looked at.
    let mut crooked = slow_job("crooked", 0.1);
    crooked["workflow"]["7"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["8", 7]}});
    crooked["workflow"]["8"] = json!({"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}});
    bed.publish(&crooked).await?;
    let mut results = bed.answers(&["again", "crooked"]).await.with_context(|| worker.log())?;
    let refused = results.remove("crooked").unwrap_or_default();
    ensure!(refused["error"]["code"] == "invalid_prompt", "{refused:#}\n{}", worker.log());
    ensure!(results["again"]["status"] == "succeeded", "{results:#?}\n{}", worker.log());
    ensure!(child(&worker, "main.py")? == comfyui && alive(comfyui), "ComfyUI was killed\n{}", worker.log());
    // Once more while it runs no job.
    bed.publish(&hold_lock("later", 25.0, "work", true)).await?;
    ensure_undisturbed(&bed, &worker, comfyui, "later").await?;
    let silent = || async {
        let stats = format!("http://127.0.0.1:{}/system_stats", port(&worker).unwrap_or_default());
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build();
        match client {
            Ok(client) => client.get(stats).send().await.is_err(),
            Err(_) => false,
        }
    };
    wait_for("the silence", SOON, silent).await?;
    bed.publish(&slow_job("after", 0.1)).await?;
    ensure_undisturbed(&bed, &worker, comfyui, "after").await?;
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// ComfyUI runs what is valid of a refused prompt. One that then holds Python's lock for an hour would hold it for all jobs
/// that come, each of which gives up waiting after a minute.
#[tokio::test]
async fn a_refused_prompt_that_runs_on_ends_its_comfyui_and_the_next_job_runs() -> Result<()> {
    let bed = Bed::new("refused").await?;
    let site = Site::new(&bed, "a")?.with_nodes("proof.py", NODES)?.env("COMFY_LIMITS", "cancel=2");
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    // One that is taken out of the queue before it begins holds nothing.
    for id in ["partly", "again", "once-more"] {
        let mut partly = hold_lock(id, 3_600.0, "work", false);
        partly["workflow"]["2"] = json!({"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}});
        bed.publish(&partly).await?;
        let refused = bed.answers(&[id]).await.with_context(|| worker.log())?;
        ensure!(refused[id]["error"]["code"] == "invalid_prompt", "{refused:#?}");
        if child(&worker, "main.py").ok() != Some(comfyui) {
            break;
        }
    }
    let mut honest = slow_job("honest", 0.1);
    honest["timeout_seconds"] = json!(300);
    bed.publish(&honest).await?;
    let results = bed.answers(&["honest"]).await.with_context(|| worker.log())?;
    ensure!(results["honest"]["status"] == "succeeded", "{results:#?}\n{}", worker.log());
    ensure!(restarts(&worker, "killed").await? >= 1.0, "{}", worker.log());
    site.finish(worker, site.initial()).await
}

/// A custom node that looks through a network share to say what its inputs are. Its job runs, and no other one's time is
/// lost to a restart.
#[tokio::test]
async fn a_node_that_takes_long_to_describe_itself_is_posted_all_the_same() -> Result<()> {
    let bed = Bed::new("description").await?;
    let takes = bed.folder.path().join("takes");
    let site = Site::new(&bed, "a")?.with_nodes("proof.py", NODES)?;
    let site =
        site.env("STANDIN_SLOW_DESCRIPTION", takes.display().to_string()).env("COMFY_LIMITS", "call=1.5");
    let worker = site.boot().await?;
    let comfyui = child(&worker, "main.py")?;
    fs::write(&takes, "2")?;
    bed.publish(&job("slow", "StandinSlowDescription", json!({"seed": 1}))).await?;
    ensure_undisturbed(&bed, &worker, comfyui, "slow").await?;
    ensure!(worker.log().contains("the prompt is posted unchecked"), "{}", worker.log());
    fs::remove_file(&takes)?;
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure_undisturbed(&bed, &worker, comfyui, "next").await?;
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

fn port(worker: &Worker) -> Option<u16> {
    let comfyui = worker.descendants().into_iter().find(|child| child.command.contains("main.py"))?;
    comfyui.command.rsplit_once("--port ")?.1.trim().parse().ok()
}

/// The lock is held and nothing is done: that is proof.
#[tokio::test]
async fn a_comfyui_that_neither_answers_nor_does_anything_is_replaced() -> Result<()> {
    let bed = Bed::new("still").await?;
    let site = Site::new(&bed, "a")?.with_nodes("proof.py", NODES)?.env("COMFY_LIMITS", "unreachable=4");
    let worker = site.boot().await?;
    bed.publish(&hold_lock("deadlock", 86_400.0, "wait", false)).await?;
    let result = bed.answer("deadlock").await.with_context(|| worker.log())?;
    ensure!(result["error"]["code"] == "engine_crashed", "{result:#}");
    let message = result["error"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("its processes do nothing"), "{message}");
    ensure!(worker.log().contains("in hold_lock"), "the stacks say where\n{}", worker.log());
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure!(bed.answer("next").await?["status"] == "succeeded");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn ten_cancels_that_comfyui_ignores_leave_the_worker_alive() -> Result<()> {
    let bed = Bed::new("ten-cancels").await?;
    let site = Site::light(&bed, "a")?.env("COMFY_LIMITS", "cancel=0.5");
    let worker = site.boot().await?;
    for n in 0..10 {
        let id = format!("deaf-{n}");
        bed.publish(&job(&id, "StandinIgnoreInterrupt", json!({"seconds": 600.0, "seed": n}))).await?;
        wait_running(&worker, &id).await?;
        let (code, out, err) = site.command(&["cancel", &id]).await?;
        ensure!(code == 0, "{out} {err}\n{}", worker.log());
        ensure!(bed.answer(&id).await?["status"] == "cancelled");
    }
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure!(bed.answer("next").await.with_context(|| worker.log())?["status"] == "succeeded");
    let (killed, lost) = (restarts(&worker, "killed").await?, restarts(&worker, "lost").await?);
    ensure!((killed, lost) == (10.0, 0.0), "{killed} killed, {lost} lost");
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

#[tokio::test]
async fn ten_jobs_that_crash_comfyui_are_answered_and_the_worker_lives_on() -> Result<()> {
    let bed = Bed::new("ten-crashes").await?;
    let site = Site::light(&bed, "a")?.env("COMFY_LIMITS", "boot_pause=0.2");
    let worker = site.boot().await?;
    for n in 0..10 {
        let id = format!("crash-{n}");
        let how = ["kill", "exit", "abort"][n % 3];
        let inputs = json!({"how": how, "exit_code": 1, "after_seconds": 0.0, "seed": n});
        bed.publish(&job(&id, "StandinCrash", inputs)).await?;
        let result = bed.answer(&id).await.with_context(|| worker.log())?;
        ensure!(result["error"]["code"] == "engine_crashed", "{result:#}");
    }
    bed.publish(&slow_job("next", 0.1)).await?;
    ensure!(bed.answer("next").await.with_context(|| worker.log())?["status"] == "succeeded");
    let (crashed, lost) = (restarts(&worker, "crashed").await?, restarts(&worker, "lost").await?);
    ensure!((crashed, lost) == (20.0, 0.0), "{crashed} crashed, {lost} lost");
    ensure!(worker.log().contains("pause=200ms"), "boots are slowed\n{}", worker.log());
    site.finish(worker, site.initial()).await?;
    bed.wait_queued(0).await
}

/// It is no card that a job has to find.
#[tokio::test]
async fn a_device_that_is_gone_is_found_by_the_self_test() -> Result<()> {
    let bed = Bed::new("no-device").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_DEVICE", "lost");
    let mut worker = site.start().await?;
    let (exit, _) = end(&mut worker, BOOT).await?;
    let log = worker.log();
    ensure!(exit.code() == Some(3), "{exit}\n{log}");
    ensure!(log.contains("self-test: ") && log.contains("no CUDA-capable device"), "{log}");
    Ok(())
}

/// One try of `comfyui.boot_timeout`, and the log says what it was at.
#[tokio::test]
async fn a_comfyui_that_never_answers_ends_the_start() -> Result<()> {
    let bed = Bed::new("boot-hangs").await?;
    let site = Site::standin(&bed, "a")?.env("STANDIN_BOOT", "hang").set("comfyui.boot_timeout", "15s");
    let mut worker = site.start().await?;
    let (exit, took) = end(&mut worker, SOON).await?;
    let log = worker.log();
    ensure!(exit.code() == Some(3), "{exit}\n{log}");
    ensure!(took < Duration::from_secs(60), "{took:?}");
    ensure!(log.contains("did not answer within 15s (comfyui.boot_timeout)"), "{log}");
    ensure!(!log.contains("trying again") && log.contains("most recent call first"), "{log}");
    Ok(())
}

/// Nodes see what a GPU and a Python need, and what `comfyui.env` names.
#[tokio::test]
async fn of_the_workers_environment_comfyui_gets_what_is_listed() -> Result<()> {
    let bed = Bed::new("environment").await?;
    let planted = "planted-secret";
    let withheld = [
        "DATABASE_URL",
        "SENTRY_DSN",
        "MY_SERVICE",
        "GITHUB_TOKEN",
        "HF_HUB_TOKEN",
        "PYTHON_INDEX_PASSWORD",
        "COMFYUI_API_KEY",
        "KUBERNETES_SERVICE_HOST",
        "AWS_PROFILE",
        "PIP_INDEX_URL",
    ];
    let listed = ["HF_HOME", "CUDA_MODULE_LOADING", "TORCHINDUCTOR_CACHE_DIR", "LC_TIME"];
    let mut site = Site::new(&bed, "a")?.set("comfyui.env", "HF_TOKEN=mine,MY_VARIABLE=a\\,b");
    for name in withheld {
        site = site.env(name, planted);
    }
    for name in listed {
        site = site.env(name, "harmless");
    }
    let worker = site.boot().await?;
    let environ = fs::read(format!("/proc/{}/environ", child(&worker, "main.py")?))?;
    let environ = String::from_utf8_lossy(&environ).into_owned();
    ensure!(!environ.contains(planted), "{environ}");
    let has = |pair: &str| environ.split('\0').any(|variable| variable == pair);
    for pair in ["HF_TOKEN=mine", "MY_VARIABLE=a,b", "PYTHONUNBUFFERED=1", "PYTHONFAULTHANDLER=1"] {
        ensure!(has(pair), "{pair}: {environ}");
    }
    for name in listed {
        ensure!(has(&format!("{name}=harmless")), "{name}: {environ}");
    }
    ensure!(environ.split('\0').any(|variable| variable.starts_with("PATH=")), "{environ}");
    site.finish(worker, site.initial()).await
}
