//! What it costs to convert UI workflows: `cargo bench --bench conversion`, after `scripts/setup --tools`.
//!
//! Every figure stands beside another of the same run, on the official templates: what the page itself
//! needs, and the original's way (a new browser and a new page for each conversion). With `COMFYUI_DIR`
//! set (and `COMFYUI_PYTHON`) a real ComfyUI serves the frontend, else the stand-in does.
//! `TEMPLATES=N` takes the first N only, `CONVERSIONS=N` is the length of the long run.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by panicking")]

mod page;
mod resources;
mod sight;
mod templates;

use std::{
    env,
    time::{Duration, Instant},
};

use comfy_worker::config::BrowserConfig;
use connector::browser::Browser;
use page::LonePage;
use resources::{Resources, processor_time};
use sight::{Known, Sight, first_sight, known, median, milliseconds};
use templates::Template;
use testbed::{Engine, folder_of_process, wait_for};
use tokio::time::sleep;

/// How often the original's way is gone: each takes seconds.
const ORIGINALS: usize = 5;
const SIDE_BY_SIDE: usize = 10;

#[tokio::main]
async fn main() {
    let folder = folder_of_process("bench-conversion").unwrap();
    let mut engine = Engine::from_env(&folder).unwrap();
    if !engine.is_real() {
        engine.command.extend(["--standin-extra-nodes".into(), templates::node_types()]);
    }
    println!("{}", engine.describe());
    let server = engine.start().await.unwrap();
    let url = server.url();
    let config = BrowserConfig::default().with_convert_timeout(Duration::from_secs(60));
    let browser = Browser::start(config, url.parse().unwrap()).await.unwrap();
    println!("{}, frontend {}", browser.version().await, browser.frontend_version().unwrap_or_default());

    idle(&browser).await;
    let sight = first_sight(&browser, &url, number("TEMPLATES", usize::MAX)).await;
    show_first_sight(&sight);
    let templates = &sight.templates;
    show_known(&known(&browser, templates).await);
    side_by_side(&browser, templates).await;
    original(&url, templates).await;
    long_run(&browser, templates).await;

    browser.shutdown().await;
    server.stop().await.unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
}

fn number(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |text| text.parse().expect(variable))
}

/// A row of the table.
fn row(figure: &str, measured: &str, goal: &str, holds: bool) {
    println!("{figure:<24} {measured:<64} {goal:<18} {}", if holds { "holds" } else { "DOES NOT HOLD" });
}

/// What two pages that wait for workflows cost.
async fn idle(browser: &Browser) {
    wait_for("the spare page", Duration::from_secs(120), || async { browser.has_spare() }).await.unwrap();
    // What its set-up leaves to be done.
    sleep(Duration::from_secs(3)).await;
    let (clock, before) = (Instant::now(), processor_time());
    sleep(Duration::from_secs(20)).await;
    let share = (processor_time() - before).as_secs_f64() / clock.elapsed().as_secs_f64();
    row("two idle pages", &format!("{:.1} % of a core", share * 100.0), "≤ 5 %", share <= 0.05);
}

fn show_first_sight(sight: &Sight) {
    let Sight { ours, page, ratio, templates } = sight;
    let of = templates.len();
    row(
        "first sight",
        &format!("{ours:.0} ms, the page itself {page:.0} ms: × {ratio:.2} (medians of {of}, all equal)"),
        "≤ × 1.3",
        *ratio <= 1.3,
    );
}

fn show_known(known: &Known) {
    let Known { median, most, of } = known;
    row(
        "known",
        &format!("{median:.2} ms, at most {most:.1} ms (of {of} templates)"),
        "≤ 2 ms",
        *median <= 2.0,
    );
}

async fn side_by_side(browser: &Browser, templates: &[Template]) {
    let mut alone = Vec::new();
    let changed: Vec<_> = templates.iter().cycle().take(SIDE_BY_SIDE).collect();
    let clock = Instant::now();
    for template in &changed {
        alone.push(browser.convert(&template.changed("alone")).await.unwrap().prompt);
    }
    let one_by_one = milliseconds(clock);
    let clock = Instant::now();
    let tasks: Vec<_> = changed
        .iter()
        .map(|template| {
            let (browser, workflow) = (browser.clone(), template.changed("side by side"));
            tokio::spawn(async move { browser.convert(&workflow).await.unwrap().prompt })
        })
        .collect();
    for (task, alone) in tasks.into_iter().zip(&alone) {
        assert_eq!(task.await.unwrap(), *alone);
    }
    let together = milliseconds(clock);
    row(
        "ten at once",
        &format!("{together:.0} ms, one by one {one_by_one:.0} ms: none mixed up"),
        "equal",
        true,
    );
}

async fn original(url: &str, templates: &[Template]) {
    let mut times = Vec::new();
    for template in templates.iter().cycle().take(ORIGINALS) {
        let clock = Instant::now();
        let page = LonePage::open(url).await;
        page.convert(&template.workflow).await;
        page.close().await;
        times.push(milliseconds(clock));
    }
    let median = median(&mut times);
    row("the original's way", &format!("{median:.0} ms a conversion"), "for comparison", true);
}

/// Many conversions that are all new: what they leave behind.
async fn long_run(browser: &Browser, templates: &[Template]) {
    // At least two samples.
    let of = number("CONVERSIONS", 1000).max(200);
    // The smallest ones: this is about what is left, not about speed.
    let mut small: Vec<_> = templates.iter().collect();
    small.sort_by_key(|template| template.workflow.to_string().len());
    small.truncate(40);
    let mut seen = Vec::new();
    for (done, template) in small.iter().cycle().take(of).enumerate() {
        browser.convert(&template.changed(&done.to_string())).await.unwrap();
        // Always at the same age of the page in use.
        if (done + 1) % 100 == 50 {
            seen.push(Resources::now());
            println!("  after {:>5}: {}", done + 1, seen[seen.len() - 1]);
        }
    }
    let half = seen.len() / 2;
    let (before, after) = (Resources::most(&seen[..half]), Resources::most(&seen[half..]));
    row(
        &format!("{of} conversions"),
        &format!("{after}; in the first half {before}"),
        "flat within 10 %",
        after.is_within(&before, 1.1),
    );
}
