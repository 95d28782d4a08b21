//! How the page looks, to eyes, to keys, and to anyone who would write into it.

use anyhow::{Result, ensure};
use contract::{
    event::EventKind,
    result::{Code, Kind, Output, Stage},
};

use comfy_worker::admin::{Phase, Resources, Usage};
use serde_json::{Value, json};

use super::{
    board::{Desk, Job, TOKEN, error, output},
    browser::{DESK, PHONE, Page, keep},
};

/// Every part of the page with something in it.
pub(super) fn fill(desk: &Desk) -> Result<Vec<Job>> {
    desk.board.ready("0.3.64");
    desk.board.converts_with(Some("1.27.10"), "Chrome/156.0.8078.108");
    let usage = |name: &str, used: u64, total: Option<u64>| Usage { name: name.into(), used, total };
    desk.board.resources(Resources {
        memory: vec![
            usage("worker", 33 << 20, None),
            usage("ComfyUI", 9 << 30, Some(48 << 30)),
            usage("Chromium", 410 << 20, None),
        ],
        devices: vec![usage("cuda:0 NVIDIA H100 80GB HBM3", 77 << 30, Some(80 << 30))],
    });
    desk.job("portrait-0037")?.succeed(vec![desk.output("portrait_00001_.png")]);
    let mut failed = error(
        Code::ExecutionError,
        "node 3 (KSampler): RuntimeError: mat1 and mat2 shapes cannot be multiplied (77x2048 and 768x320)",
    );
    failed.node = Some("3".into());
    failed.traceback = Some(
        [
            "  File \"/opt/ComfyUI/execution.py\", line 496, in execute\n    output_data = await get_output_data(obj, input_data_all)\n",
            "  File \"/opt/ComfyUI/nodes.py\", line 1525, in sample\n    return common_ksampler(model, seed, steps, cfg, sampler_name)\n",
        ]
        .map(str::to_owned)
        .into(),
    );
    let job = desk.job_since("portrait-0038", 9_000)?;
    job.run(7);
    job.node(300, ("3", "KSampler"), (2.0, 20.0), 0.3);
    job.fail(failed);
    desk.job("portrait-0039")?.fail(error(Code::Cancelled, "cancelled"));
    let many = (0..7).map(|number| desk.output(&format!("batch_{number:05}_.png"))).collect();
    desk.job("catalogue-spring-2")?.succeed(many);
    let mut refused = error(Code::InvalidPrompt, "Prompt outputs failed validation");
    refused.stage = Stage::Post;
    refused.node_errors = Some(
        json!({"4": {"errors": [{"type": "value_not_in_list", "details": "ckpt_name: 'x.safetensors' not in []"}]}}),
    );
    desk.job("portrait-0040")?.fail(refused);
    let video = Output {
        kind: Kind::Video,
        ..output("clip_00001.mp4", "s3://renders/clip/1/outputs/clip_00001.mp4", "video/mp4", 48 << 20)
    };
    let text = Output {
        kind: Kind::Text,
        text: Some("a red fox in the snow".into()),
        file: None,
        ..output("", "", "", 0)
    };
    desk.job("clip-12")?.succeed(vec![video, text]);
    drop(desk.job("portrait-0041")?);

    let running = desk.job_since("portrait-0042", 9_000)?;
    running.run(7);
    for (ms, node, title, fraction) in [
        (240, "4", "Load Checkpoint", 0.14),
        (3_100, "5", "Empty Latent Image", 0.28),
        (3_110, "6", "Positive prompt", 0.42),
        (3_600, "7", "Negative prompt", 0.57),
    ] {
        running.node(ms, (node, title), (0.0, 1.0), fraction);
    }
    running.node(4_000, ("3", "KSampler"), (13.0, 20.0), 0.66);
    running.preview(1);
    let next = desk.job_since("portrait-0043", 700)?;
    next.event(EventKind::Staged { files: 2, bytes: 9 });
    Ok(vec![running, next])
}

/// What does not fit the page's width.
pub(super) const WIDE: &str = "document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll('body *')]
    .some((element) => element.getBoundingClientRect().right > innerWidth + 1 && element.getBoundingClientRect().width > 0
        && !element.closest('pre, .nodes, .unseen, .stages'))";

/// Texts whose contrast with what is behind them is below WCAG's AA, measured.
const FAINT: &str = r"(() => {
    const parse = (color) => { const [r, g, b, a = 1] = color.match(/[\d.]+/g).map(Number); return { r, g, b, a }; };
    const over = (top, below) => Object.fromEntries(['r', 'g', 'b'].map((k) => [k, top[k] * top.a + below[k] * (1 - top.a)]));
    const behind = (element) => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            layers.push(color);
            if (color.a === 1) break;
        }
        return layers.reverse().reduce((below, top) => over(top, below), { r: 255, g: 255, b: 255 });
    };
    const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const light = ({ r, g, b }) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const faint = new Set();
    let seen = 0;
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, .unseen, .skip')) continue;
        seen += 1;
        const below = behind(element);
        const [a, b] = [light(over(parse(getComputedStyle(element).color), below)), light(below)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) faint.add(`${element.tagName}.${element.className} ${texts.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
    }
    return { seen, faint: [...faint] };
})()";

#[tokio::test]
async fn it_can_be_read_dark_and_light_on_a_desk_and_on_a_phone() -> Result<()> {
    let desk = Desk::new(Some(TOKEN)).await?;
    let _jobs = fill(&desk)?;
    let page = Page::open(&desk.url()).await?;
    page.wait("document.querySelectorAll('#ended > li').length === 7 && document.querySelectorAll('.card.job').length === 2").await?;
    page.wait("document.querySelector('.preview img').naturalWidth === 128").await?;
    for (screen, name) in [(DESK, "desk"), (PHONE, "phone")] {
        for dark in [false, true] {
            page.look(screen, dark).await?;
            let scheme = if dark { "dark" } else { "light" };
            page.run("document.querySelectorAll('details').forEach((details) => { details.open = false; }); scrollTo(0, 0)").await?;
            keep(&format!("{name}-{scheme}.png"), &page.picture(true).await?)?;
            page.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
                .await?;
            page.wait("document.querySelectorAll('.more').length === 7").await?;
            ensure!(!page.ask::<bool>(WIDE).await?, "{name}: it is wider than the screen");
            keep(&format!("{name}-{scheme}-open.png"), &page.picture(true).await?)?;
            let contrast: Value = page.ask(FAINT).await?;
            ensure!(contrast["seen"].as_u64() > Some(80), "{contrast}");
            ensure!(contrast["faint"] == json!([]), "{name}, {scheme}: {contrast:#}");
        }
    }
    // The other states have colours of their own.
    desk.board.enter(Phase::DiskFull);
    page.wait_text("#state-word", "disk full").await?;
    for dark in [false, true] {
        page.look(PHONE, dark).await?;
        let contrast: Value = page.ask(FAINT).await?;
        ensure!(contrast["faint"] == json!([]), "{contrast:#}");
    }
    page.ensure_no_complaint()
}

#[tokio::test]
async fn the_last_fifty_are_shown_the_newest_first() -> Result<()> {
    let desk = Desk::new(None).await?;
    desk.job("first")?.succeed(Vec::new());
    let page = Page::open(&desk.url()).await?;
    page.wait_text("#ended", "first").await?;
    page.wait("document.getElementById('machine').hidden").await?;
    for number in 0..60 {
        desk.job(&format!("job-{number}"))?.succeed(Vec::new());
    }
    let ids = "[...document.querySelectorAll('#ended > li')].map((row) => row.dataset.id)";
    page.wait(&format!("{ids}[0] === 'job-59'")).await?;
    let ids: Vec<String> = page.ask(ids).await?;
    let expected: Vec<String> = (10..60).rev().map(|number| format!("job-{number}")).collect();
    ensure!(ids == expected, "{ids:?}");
    page.wait_text("#counts", "61 done · the last 50").await?;
    page.ensure_no_complaint()
}

#[tokio::test]
async fn figures_are_written_for_people() -> Result<()> {
    let desk = Desk::new(None).await?;
    let page = Page::open(&desk.url()).await?;
    let figures = "import('./words.js').then(({ span, running, uptime, bytes, plural }) => [
        [0, 31.4, 999, 1000, 59_940, 59_951, 64_000, 11_529_000, -1, NaN, null].map(span),
        [0, -5, 900, 59_999, 60_000].map(running),
        [0, 59_999, 60_000, 12_000_000, 180_000_000].map(uptime),
        [0, 1023, 1024, 10_240, 150_000_000, 85_899_345_920].map(bytes),
        [plural(1, 'job', 'jobs'), plural(2, 'job', 'jobs')],
    ])";
    let figures: Vec<Vec<String>> = page.ask(figures).await?;
    let expected: [&[&str]; 5] = [
        &["0 ms", "31 ms", "999 ms", "1.0 s", "59.9 s", "0:59", "1:04", "3:12:09", "0 ms", "0 ms", "0 ms"],
        &["0 s", "0 s", "0 s", "59 s", "1:00"],
        &["0 s", "59 s", "1 min", "3 h 20 min", "2 d 2 h"],
        &["0 B", "1023 B", "1.0 KiB", "10.0 KiB", "143 MiB", "80.0 GiB"],
        &["1 job", "2 jobs"],
    ];
    for (written, expected) in figures.iter().zip(expected) {
        ensure!(written == expected, "{written:?} instead of {expected:?}");
    }
    Ok(())
}
