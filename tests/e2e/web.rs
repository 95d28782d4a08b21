//! Inputs from web hosts: what is allowed works, and nothing else is so much as asked.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, ask},
    contract::sha256,
    picture::{decoded_pattern, pattern},
    prompts::{invert, node},
    suite::Suite,
    website::{Page, Website},
};

/// A signed link's secret part.
const SECRET: &str = "X-Signature=hunter2";

pub(crate) async fn allowed_hosts(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let (bench, site) = (place.bench().await, &place.site);
    let address = site.put("open/cat.png", Page::File(pattern(50)));
    let signed = format!("{address}?{SECRET}");
    let redirected = site.put("open/moved", Page::Redirect("/open/cat.png?key=hunter2".into()));
    for input in [
        json!(signed),
        json!({"source": signed, "sha256": sha256(&pattern(50)), "name": "x.png"}),
        json!({"source": redirected, "name": "y.png"}),
    ] {
        let answer = ask(&bench, json!({"workflow": invert("x"), "inputs": {"1.image": input}})).await?;
        let answer = answer.succeeded().with_context(|| format!("{input}"))?;
        let made = answer.only_picture(&bench).await?;
        made.ensure_is(|value| 255 - value, &decoded_pattern(50)?, bench.tolerance())?;
        keeps_secrets(&answer)?;
    }
    // A file beside the inputs, and the workflow itself.
    let workflow = site.put("open/workflow.json", Page::File(invert("web/cat.png").to_string().into()));
    let file = json!({"source": signed, "folder": "input", "subfolder": "web", "name": "cat.png", "ephemeral": true});
    let answer = ask(&bench, json!({"workflow_uri": workflow, "files": [file]})).await?.succeeded()?;
    answer.only_picture(&bench).await?;
    // An address elsewhere is a text, and so is one that is said to be a value.
    let text = json!({"1": node("PreviewAny", json!({"source": ""}))});
    for (input, shown) in [
        (json!(site.url("closed/x")), site.url("closed/x")),
        (json!({"value": site.url("open/x")}), site.url("open/x")),
    ] {
        let answer =
            ask(&bench, json!({"workflow": text, "inputs": {"1.source": input}})).await?.succeeded()?;
        ensure!(answer.only_output()?["text"] == shown, "{:#}", answer.result);
    }
    ensure!(!bench.whole_log().contains("hunter2"), "the log tells a secret");
    Ok(())
}

pub(crate) async fn broken_transfers(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let (bench, site) = (place.bench().await, &place.site);
    let content = pattern(51);
    let address = site.put("open/cut.png", Page::Broken(content.clone(), vec![9, 10, 11]));
    let input = json!({"source": address, "sha256": sha256(&content)});
    let job = json!({"workflow": invert("x"), "inputs": {"1.image": input}});
    let answer = ask(&bench, job).await?.succeeded()?;
    answer.only_picture(&bench).await?;
    let asked = site.asked("open/cut.png");
    let expected = ["", "bytes=9-", "bytes=19-", "bytes=30-"].map(|range| format!("open/cut.png {range}"));
    ensure!(asked == expected, "{asked:?}");
    Ok(())
}

pub(crate) async fn other_hosts(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let (bench, site) = (place.bench().await, &place.site);
    let canary = Website::start().await?;
    canary.put("open/x.png", Page::File(pattern(52)));
    site.put("closed/x.png", Page::File(pattern(52)));
    let port = canary.port();
    let redirects = [
        canary.url("open/x.png"),
        format!("http://localhost:{port}/open/x.png"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("http://[::ffff:127.0.0.1]:{port}/open/x.png"),
        format!("http://user:hunter2@127.0.0.1:{}/open/cat.png", site.port()),
        site.url("closed/x.png"),
        "../closed/x.png".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    let redirects = redirects.into_iter().enumerate().map(|(number, to)| {
        let address = site.put(&format!("open/redirect-{number}"), Page::Redirect(to));
        format!("{address}?{SECRET}")
    });
    let direct = [
        canary.url("open/x.png"),
        format!("http://localhost:{port}/open/x.png"),
        // Allowed by its name, which leads to this machine.
        format!("http://localhost:{}/open/cat.png?{SECRET}", site.port()),
        format!("http://user:hunter2@127.0.0.1:{}/open/cat.png", site.port()),
        format!("https://127.0.0.1:{}/open/cat.png", site.port()),
        site.url("closed/x.png"),
        site.url("open/..%2fclosed/x.png"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://[::1]:8188/interrupt".to_owned(),
    ];
    for url in redirects.chain(direct) {
        for job in [
            json!({"workflow": invert("x"), "inputs": {"1.image": {"source": url, "name": "x.png"}}}),
            json!({"workflow_uri": url}),
            json!({"workflow": invert("x"), "files": [
                {"source": url, "folder": "models", "subfolder": "loras", "name": "x.safetensors"}]}),
        ] {
            let answer = ask(&bench, job).await?;
            answer.failed("input_forbidden", "stage").with_context(|| url.clone())?;
            keeps_secrets(&answer)?;
        }
    }
    ensure!(canary.all_asked().is_empty(), "{:?}", canary.all_asked());
    let closed = site.all_asked().into_iter().find(|asked| asked.contains("closed"));
    ensure!(closed.is_none(), "{closed:?}");
    ensure!(!bench.whole_log().contains("hunter2"), "the log tells a secret");
    Ok(())
}

pub(crate) async fn refusals(suite: &Suite) -> Result<()> {
    let place = suite.web().await?;
    let (bench, site) = (place.bench().await, &place.site);
    for (status, code) in
        [(404, "input_not_found"), (410, "input_not_found"), (403, "input_forbidden"), (418, "invalid_job")]
    {
        let address = site.put(&format!("open/{status}"), Page::Status(status));
        let input = json!({"source": format!("{address}?{SECRET}"), "name": "x.png"});
        let answer = ask(&bench, json!({"workflow": invert("x"), "inputs": {"1.image": input}})).await?;
        let error = answer.failed(code, "stage")?;
        ensure!(error["message"].as_str().is_some_and(|told| told.starts_with(&address)), "{error}");
        keeps_secrets(&answer)?;
    }
    let address = site.put("open/large", Page::File(vec![b'x'; crate::bench::MAX_INPUT_BYTES + 1]));
    let input = json!({"source": format!("{address}?{SECRET}"), "name": "x.png"});
    let answer = ask(&bench, json!({"workflow": invert("x"), "inputs": {"1.image": input}})).await?;
    answer.failed("input_too_large", "stage")?;
    keeps_secrets(&answer)?;
    let log = bench.whole_log();
    ensure!(log.contains("job failed") && !log.contains("hunter2"), "the log tells a secret");
    Ok(())
}

/// Neither the result nor an event shows what opens a link.
fn keeps_secrets(answer: &Answer) -> Result<()> {
    let told = |value: &Value| value.to_string().contains("hunter2");
    ensure!(
        !told(&answer.result) && !answer.events.iter().any(told),
        "a secret is told: {:#}",
        answer.result
    );
    Ok(())
}
