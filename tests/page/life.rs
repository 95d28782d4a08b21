//! A worker's life as its page shows it: the real worker, broker, store and Chromium, on the stand-in.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use testbed::{Fault, Gate, Signal, free_port, png, wait_for};

use super::{
    BOOT, ENDING, JOB, SOON,
    bed::Bed,
    browser::{DESK, PHONE, Page, Screen, keep},
    site::{Site, status, wait_running},
};

const TOKEN: &str = "a-long-random-text";
/// What a README's reader should not wait for.
const LARGEST_PICTURE: usize = 200 << 10;
const HOSTILE: &str = "<img src=x onerror=\"window.hurt=1\">\u{202e}";

/// A prompt with titles: a photo from the store is painted in so many steps, twice, and saved with its negative.
fn job(id: &str, photo: &str, steps: u32, seconds: f64) -> Value {
    let node = |class: &str, title: &str, inputs: Value| json!({"class_type": class, "inputs": inputs, "_meta": {"title": title}});
    let paint = |from: &str, steps: u32, seconds: f64| json!({"image": [from, 0], "steps": steps, "seconds": seconds, "previews": true, "text": "", "seed": 1});
    let save = |from: &str, name: String| json!({"images": [from, 0], "filename_prefix": name});
    json!({"version": 1, "id": id, "inputs": {"1.image": format!("s3://inputs/{photo}")}, "workflow": {
        "1": node("LoadImage", "Load the photo", json!({"image": "none.png"})),
        "2": node("ImageScale", "Scale to 512 × 320", json!(
            {"image": ["1", 0], "upscale_method": "lanczos", "width": 512, "height": 320, "crop": "center"})),
        "3": node("StandinProgress", "Paint", paint("2", 8, 0.4)),
        "4": node("StandinProgress", "Refine", paint("3", steps, seconds)),
        "5": node("ImageInvert", "Invert", json!({"image": ["4", 0]})),
        "6": node("SaveImage", "Save", save("4", id.to_owned())),
        "7": node("SaveImage", "Save the negative", save("5", format!("{id}-negative"))),
    }})
}

fn failing(id: &str, title: &str, message: &str) -> Value {
    let mut job = job(id, "cat.png", 2, 0.2);
    job["workflow"]["5"] = json!({"class_type": "StandinFail", "_meta": {"title": title}, "inputs":
        {"image": ["4", 0], "message": message, "exception_type": "RuntimeError", "seed": 1}});
    job
}

/// A photo that is not the landscape.
fn sunset() -> Vec<u8> {
    let byte = |value: u32| u8::try_from(value.min(255)).unwrap_or(255);
    png(320, 200, |x, y| {
        let (dx, dy) = (x.abs_diff(160), y.abs_diff(110));
        if dx * dx + dy * dy < 45 * 45 && y < 132 {
            [255, byte(150 + y / 2), 80]
        } else if y < 132 {
            [byte(90 + y), byte(40 + y / 2), byte(120 - y / 3)]
        } else {
            [byte(60 + (x + y * 7) % 40), 40, byte(80 + y / 4)]
        }
    })
}

async fn command(worker: &testbed::Worker, path: &str, token: Option<&str>) -> Result<u16> {
    let request = reqwest::Client::new().post(worker.admin_url(path));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    Ok(request.send().await?.status().as_u16())
}

/// Of the job in hand and all that is known, by people with any screen.
async fn pictures(page: &Page) -> Result<()> {
    for (screen, dark, name) in [(DESK, true, "dark"), (PHONE, false, "phone"), (PHONE, true, "phone-dark")] {
        page.look(screen, dark).await?;
        keep(&format!("life-{name}.png"), &page.picture(true).await?)?;
    }
    page.look(DESK, false).await?;
    keep("life-light.png", &page.picture(true).await?)?;
    // The README's: down to the failure, and no larger than it has to be.
    page.look(Screen { width: 1000, ..DESK }, false).await?;
    let last = "document.querySelector('[data-id=poster-0007]')";
    let height: f64 = page.ask(&format!("Math.ceil({last}.getBoundingClientRect().bottom)")).await?;
    #[expect(clippy::cast_possible_truncation, reason = "some hundreds")]
    page.look(Screen { width: 1000, height: height as i64, ..DESK }, false).await?;
    let picture = page.picture(false).await?;
    ensure!(picture.len() < LARGEST_PICTURE, "{} bytes", picture.len());
    if std::env::var_os("STATUS_PAGE_PICTURE").is_some() {
        std::fs::write(testbed::checkout().join("docs/status-page.png"), &picture)?;
    }
    page.look(DESK, false).await
}

#[tokio::test]
async fn a_workers_life() -> Result<()> {
    let bed = Bed::new("page").await?;
    bed.s3.put("inputs", "sunset.png", sunset()).await?;
    // A store that is slow to answer: the boot lasts as long as the test wants.
    let gate = Gate::start(bed.s3.address()).await?;
    gate.set(Fault::Hold, "");
    let admin = format!("127.0.0.1:{}", free_port()?);
    let site = Site::standin(&bed, "gpu-7")?
        .set("store.endpoint", format!("http://{}", gate.address()))
        .set("admin.listen", admin.as_str())
        .set("admin.token", TOKEN)
        .set("amqp.lookahead", "1");
    let mut worker = site.start().await?;
    let alive = worker.admin_url("/livez");
    wait_for("the endpoint", SOON, || async { reqwest::get(&alive).await.is_ok() }).await?;

    let page = Page::open(&worker.admin_url("/")).await?;
    page.look(DESK, false).await?;
    page.wait("document.title === 'booting · gpu-7'").await?;
    keep("booting.png", &page.picture(false).await?)?;
    gate.lift();
    page.wait_within("document.title === 'ready · gpu-7'", BOOT).await.with_context(|| worker.log())?;
    page.wait_text("#facts", "Chromium").await?;
    page.wait_text("#idle", "waits for jobs").await?;

    // Failures in full: a node's, one of a job that never ran, and one that would write into the page.
    bed.publish(&json!({"version": 1, "id": HOSTILE, "workflow": {}})).await?;
    bed.publish(&failing("hostile", HOSTILE, HOSTILE)).await?;
    bed.publish(&failing(
        "poster-0007",
        "Sharpen",
        "mat1 and mat2 shapes cannot be multiplied (77x2048 and 768x320)",
    ))
    .await?;
    page.wait_within("document.querySelectorAll('.end.failed').length === 3", JOB).await?;
    page.wait_text("#ended .tag", "not run").await?;
    page.click("[data-id=poster-0007] summary").await?;
    page.wait("document.querySelector('[data-id=poster-0007] .traceback')").await?;
    let result: Value =
        serde_json::from_slice(&bed.s3.get("results", "jobs/poster-0007/result.json").await?)?;
    let lines = result["error"]["traceback"].as_array().context("no traceback")?;
    let whole: String = lines.iter().filter_map(Value::as_str).collect();
    ensure!(whole.contains("nodes_faults.py") && whole.lines().count() > 2, "{whole}");
    let shown: String =
        page.ask("document.querySelector('[data-id=poster-0007] .traceback').textContent").await?;
    ensure!(shown == whole.trim_end(), "shown:\n{shown}\nin the result:\n{whole}");
    page.wait_text("[data-id=poster-0007] pre.message", "node 5 (StandinFail): RuntimeError: mat1 and mat2")
        .await?;
    page.click("[data-id=poster-0007] summary").await?;
    page.wait_text("[data-id=hostile] .line", "<img src=x onerror=\"window.hurt=1\">\\u{202e}").await?;
    ensure!(page.ask::<bool>("window.hurt === undefined").await?);

    // Two that succeed, with pictures to look at.
    bed.publish(&job("portrait-0040", "sunset.png", 6, 1.2)).await?;
    bed.publish(&job("portrait-0041", "cat.png", 4, 0.6)).await?;
    for id in ["portrait-0040", "portrait-0041"] {
        page.wait_within(&format!("document.querySelector('[data-id=\"{id}\"] .end.succeeded')"), JOB)
            .await?;
        page.run(&format!("document.querySelector('[data-id=\"{id}\"]').scrollIntoView()")).await?;
        page.wait(&format!("[...document.querySelectorAll('[data-id=\"{id}\"] .thumbs img')].map((image) => image.naturalWidth).join() === '512,512'")).await?;
    }

    // One in hand, node by node with its preview, and the next one behind it.
    bed.publish(&job("portrait-0042", "cat.png", 400, 240.0)).await?;
    wait_running(&worker, "portrait-0042").await?;
    bed.publish(&job("portrait-0043", "sunset.png", 20, 600.0)).await?;
    page.wait_text("[data-id=portrait-0043] .word", "waiting for ComfyUI").await?;
    let nodes = "[...document.querySelectorAll('[data-id=portrait-0042] .nodes li')].map((row) => [row.querySelector('.label .name').textContent, row.classList.contains('runs')])";
    page.wait(&format!("{nodes}.length === 4")).await?;
    let told: Vec<(String, bool)> = page.ask(nodes).await?;
    let expected =
        [("Load the photo", false), ("Scale to 512 × 320", false), ("Paint", false), ("Refine", true)];
    ensure!(told.iter().map(|(title, runs)| (title.as_str(), *runs)).eq(expected), "{told:?}");
    let steps = "parseInt(document.querySelector('[data-id=portrait-0042] .runs .steps').textContent)";
    page.wait(&format!("{steps} > 0")).await?;
    let before: f64 = page.ask(steps).await?;
    let preview = "document.querySelector('[data-id=portrait-0042] .preview img')";
    page.wait(&format!("{preview}.naturalWidth === 256")).await?;
    let first: String = page.ask(&format!("{preview}.src")).await?;
    page.wait(&format!("{steps} > {before} && {preview}.src !== {first:?}")).await?;
    page.wait(&format!("{steps} >= 15")).await?;
    // The worker looks at its memory every 15 s.
    for who in ["worker", "ComfyUI", "Chromium", "cpu"] {
        page.wait_text("#resources", who).await?;
    }
    page.run("scrollTo(0, 0)").await?;
    pictures(&page).await?;
    page.ensure_no_complaint()?;

    // Commands: only with the token.
    for token in [None, Some("wrong")] {
        ensure!(command(&worker, "/jobs/portrait-0042/cancel", token).await? == 401);
        ensure!(command(&worker, "/drain", token).await? == 401);
    }
    ensure!(status(&worker).await?["job"]["id"] == "portrait-0042");
    page.click("[data-id=portrait-0042] button").await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.click("#sure-yes").await?;
    page.wait("document.getElementById('ask-token').open").await?;
    page.write("wrong").await?;
    page.click("#token-ok").await?;
    page.wait_text("#ask-token-title", "refused").await?;
    page.write(TOKEN).await?;
    page.click("#token-ok").await?;
    page.wait_within("document.querySelector('[data-id=portrait-0042] .end.cancelled')", JOB).await?;
    page.excuse(&["401 (Unauthorized)"])?;

    // A drain lets what runs go on; it is cancelled, too.
    page.wait_text("[data-id=portrait-0043] .word", "running").await?;
    page.click("#drain").await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.click("#sure-yes").await?;
    page.wait("document.title === 'draining · gpu-7' && document.getElementById('drain').hidden").await?;
    keep("draining.png", &page.picture(false).await?)?;
    page.click("[data-id=portrait-0043] button").await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.click("#sure-yes").await?;
    site.wait_drained(&mut worker, site.initial(), ENDING).await?;
    page.wait_text("#stale", "Out of date").await?;
    for id in ["portrait-0042", "portrait-0043"] {
        let result: Value =
            serde_json::from_slice(&bed.s3.get("results", &format!("jobs/{id}/result.json")).await?)?;
        ensure!(result["status"] == "cancelled", "{result:#}");
    }

    // Started again, it is found again.
    let mut again = site.start().await?;
    page.wait_within("document.title === 'ready · gpu-7' && document.getElementById('stale').hidden", BOOT)
        .await?;
    page.wait("document.querySelectorAll('#ended > li').length === 0").await?;
    page.excuse(&["net::ERR_"])?;
    again.signal(Signal::TERM)?;
    site.wait_drained(&mut again, site.initial(), ENDING).await.map(drop)
}
