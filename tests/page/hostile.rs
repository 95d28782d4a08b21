//! Texts that come with jobs are texts, wherever they stand.

use anyhow::{Result, ensure};
use contract::{
    event::EventKind,
    result::{Code, Kind, Output},
};

use comfy_worker::admin::{Phase, Resources, Usage};
use serde_json::json;

use super::{
    board::{Desk, error, output},
    browser::{DESK, PHONE, Page, keep},
    looks::WIDE,
};

/// Runs where markup is taken for markup; turns what follows it around; is longer than any line.
fn evil() -> Vec<String> {
    vec![
        "<img src=x onerror=\"window.hurt='img'\">".into(),
        "</script><script>window.hurt='script'</script>".into(),
        "\" onmouseover=\"window.hurt='attribute'\" x=\"".into(),
        "javascript:window.hurt='link'//".into(),
        "<svg onload=window.hurt='svg'><style>*{display:none}</style>".into(),
        "photo\u{202e}gnp.exe\u{2066}\u{200f}".into(),
        "\u{1b}[2J\u{0}\r\nhidden\u{2028}line".into(),
        "W".repeat(5000),
        "ש".repeat(300),
        "a\u{0301}\u{0301}\u{0301}\u{0301}\u{0301}".repeat(60),
        "%2e%2e%2f../../etc/passwd?x#y".into(),
        "{{7*7}}${7*7}`window.hurt`".into(),
    ]
}

#[tokio::test]
async fn hostile_texts_are_shown_and_do_nothing() -> Result<()> {
    let desk = Desk::at("127.0.0.1:0".parse()?, &evil()[0], Some("t")).await?;
    desk.board.ready(&evil()[0]);
    desk.board.converts_with(Some(&evil()[1]), &evil()[4]);
    let usage = |name: String| Usage { name, used: 9, total: Some(10) };
    desk.board.resources(Resources { memory: evil().into_iter().map(usage).collect(), devices: Vec::new() });
    let long_id = "j".repeat(128);
    for (number, text) in evil().into_iter().enumerate() {
        let job = desk.job(&format!("made-{number}"))?;
        let text = || text.clone();
        job.succeed(vec![
            desk.output(&text()),
            output(&text(), &format!("s3://bucket/{}", text()), &text(), u64::MAX),
            Output {
                kind: Kind::Text,
                text: Some(text()),
                file: None,
                node: text(),
                ..output("", "", "", 0)
            },
        ]);
        let job = desk.job(if number == 0 { &long_id } else { "failed" })?;
        job.run(3);
        job.node(300, (&text(), &text()), (1.0, 2.0), 0.5);
        let mut failure = error(Code::ExecutionError, &text());
        failure.node = Some(text());
        failure.traceback = Some(vec![text(), text()]);
        failure.node_errors = Some(json!({ text(): [text()] }));
        job.fail(failure);
    }
    let mut endless = error(Code::ExecutionError, &"L".repeat(50_000));
    endless.traceback =
        Some((0..20_000).map(|line| format!("line {line}\n")).chain(["the cause".to_owned()]).collect());
    desk.job("endless")?.fail(endless);
    let running = desk.job(&long_id)?;
    running.event(EventKind::Converted { nodes: usize::MAX });
    for (number, text) in evil().iter().enumerate() {
        running.node(number as u64, (text, text), (f64::INFINITY, f64::NAN), f64::NAN);
    }
    running.node(99, ("9", "the last"), (1e300, 2e300), 0.5);
    running.preview(1);

    let page = Page::open(&desk.url()).await?;
    page.wait("document.querySelectorAll('#ended > li').length === 25").await?;
    page.run("document.querySelectorAll('details').forEach((details) => { details.open = true; })").await?;
    page.wait("document.querySelectorAll('.more').length === 25").await?;
    for (screen, name) in [(DESK, "desk"), (PHONE, "phone")] {
        page.look(screen, false).await?;
        let wide: bool = page.ask(WIDE).await?;
        keep(&format!("hostile-{name}.png"), &page.picture(false).await?)?;
        ensure!(!wide, "{name}: the layout is broken");
    }
    // They are there, as texts: in the list of outputs, in the error, as nodes.
    for (part, least) in
        [("#worker", 1), (".nodes .name", 2), (".outputs .name", 2), ("pre.message", 1), ("pre.traceback", 1)]
    {
        let found = format!(
            "[...document.querySelectorAll('{part}')].filter((element) => element.textContent.includes('<img src=x onerror')).length"
        );
        ensure!(page.ask::<usize>(&found).await? >= least, "{part}");
    }
    // What is cut says so, and keeps what matters.
    page.wait_text("[data-id=endless] pre.message", "(cut here: 50000 characters in all)").await?;
    page.wait_text("[data-id=endless] pre.traceback", "characters are cut here, result.json has them")
        .await?;
    page.wait_text("[data-id=endless] pre.traceback", "the cause").await?;
    // Every element is one of ours, and so is every address.
    let foreign = "[...document.querySelectorAll('*')].filter((element) => element.closest('body') && (
            ['SCRIPT', 'STYLE', 'SVG', 'IFRAME', 'OBJECT', 'FORM', 'svg'].includes(element.tagName)
            || [...element.attributes].some(({ name }) => name.startsWith('on') || name === 'style' && !element.matches('.stage, .meter span'))
            || ['src', 'href'].some((name) => element.hasAttribute(name) && !/^(jobs\\/[\\w.-]+\\/(preview|outputs\\/\\d+)\\?|#work$)/.test(element.getAttribute(name)))
        )).map((element) => element.outerHTML.slice(0, 200))";
    let foreign: Vec<String> = page.ask(foreign).await?;
    ensure!(foreign.is_empty(), "{foreign:#?}");
    // No text turns its surroundings around.
    let turned: Vec<String> = page
        .ask("document.body.innerText.match(/.{0,20}[\\u202a-\\u202e\\u2066-\\u2069\\u0000-\\u0008\\u001b].{0,20}/g) ?? []")
        .await?;
    ensure!(turned.is_empty(), "{turned:?}");
    desk.board.enter(Phase::Draining);
    page.wait_text("#state-word", "draining").await?;
    ensure!(page.ask::<bool>("window.hurt === undefined").await?, "a text was run");
    page.ensure_no_complaint()
}
