//! UI workflows to prompts: beside the page's own time, and the second time.

use std::{panic::AssertUnwindSafe, time::Duration};

use anyhow::{Result, anyhow};
use comfy_worker::config::BrowserConfig;
use connector::browser::Browser;
use futures_util::FutureExt as _;

use crate::{
    bed::{Bed, On},
    figure::Figure,
    sight::{first_sight, known},
    templates,
};

const ROW: &str = "conversion";

pub(crate) async fn measure(bed: &Bed, on: On) -> Result<Vec<Figure>> {
    let mut engine = bed.engine(on, &format!("conversion-{}", on.name().to_lowercase()))?;
    if on == On::Standin {
        engine.command.extend(["--standin-extra-nodes".into(), templates::node_types()]);
    }
    let server = engine.start().await?;
    let config = BrowserConfig::default().with_convert_timeout(Duration::from_secs(60));
    let browser = Browser::start(config, server.url().parse()?).await?;
    let url = server.url();
    let measured = AssertUnwindSafe(async {
        let sight = first_sight(&browser, &url, bed.sizes.templates).await;
        let known = known(&browser, &sight.templates).await;
        (sight, known)
    });
    let measured = measured.catch_unwind().await;
    browser.shutdown().await;
    server.stop().await?;
    let (sight, known) = measured.map_err(|_| anyhow!("the conversions broke off, see above"))?;
    let first = Figure::new(ROW, "conversion, first sight ÷ the page", sight.ratio, "")
        .on(on.name())
        .at_most(1.3)
        .beside(format!(
            "{:.0} ms, the page itself {:.0} ms (medians of {} templates)",
            sight.ours,
            sight.page,
            sight.templates.len()
        ))
        .bound("texts go to the page and back through DevTools, and the prompt is asked for twice to know chance");
    let again = Figure::new(ROW, "conversion, known", known.median, " ms")
        .on(on.name())
        .at_most(2.0)
        .beside(format!("at most {:.1} ms", known.most))
        .bound("the workflow is hashed whole");
    Ok(vec![first, again])
}
