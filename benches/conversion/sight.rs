//! Conversions of workflows that were never seen, and of known ones.

use std::time::Instant;

use connector::browser::Browser;
use serde_json::Value;

use crate::{page::LonePage, templates::Template};

/// Medians over all templates that convert, in milliseconds.
pub(crate) struct Sight {
    pub(crate) ours: f64,
    /// What the page itself needed.
    pub(crate) page: f64,
    pub(crate) ratio: f64,
    pub(crate) templates: Vec<Template>,
}

/// Milliseconds.
pub(crate) struct Known {
    pub(crate) median: f64,
    pub(crate) most: f64,
    pub(crate) of: usize,
}

/// Every template once here and once in a page of its own, in turn; those that convert.
pub(crate) async fn first_sight(browser: &Browser, url: &str, most: usize) -> Sight {
    let page = LonePage::open(url).await;
    let (mut ours, mut pages, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut templates = Vec::new();
    for template in Template::all(most) {
        let clock = Instant::now();
        let Ok(conversion) = browser.convert(&template.workflow).await else { continue };
        let taken = milliseconds(clock);
        let (prompt, needed) = page.convert(&template.workflow).await;
        assert_eq!(prompt, Value::Object(conversion.prompt), "{}", template.name);
        ours.push(taken);
        pages.push(needed);
        ratios.push(taken / needed);
        templates.push(template);
    }
    page.close().await;
    assert!(!templates.is_empty(), "no template converts");
    Sight { ours: median(&mut ours), page: median(&mut pages), ratio: median(&mut ratios), templates }
}

pub(crate) async fn known(browser: &Browser, templates: &[Template]) -> Known {
    let mut times = Vec::new();
    for template in templates.iter().filter(|template| !template.is_dynamic()) {
        let clock = Instant::now();
        browser.convert(&template.workflow).await.unwrap();
        times.push(milliseconds(clock));
    }
    Known { median: median(&mut times), most: times.iter().copied().fold(0.0, f64::max), of: times.len() }
}

pub(crate) fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

pub(crate) fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
