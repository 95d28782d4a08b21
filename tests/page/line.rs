//! The line to the worker is lost, and found again.

use anyhow::{Result, ensure};
use testbed::{Fault, Gate};

use super::{
    board::Desk,
    browser::{Page, keep},
    looks::fill,
};

#[tokio::test]
async fn a_page_says_that_it_is_out_of_date_and_finds_the_next_worker() -> Result<()> {
    let desk = Desk::at("127.0.0.1:0".parse()?, "first", None).await?;
    let (address, _jobs) = (desk.admin.address, fill(&desk)?);
    let page = Page::open(&desk.url()).await?;
    page.wait("document.querySelectorAll('#ended > li').length === 7").await?;
    ensure!(page.ask::<bool>("document.getElementById('stale').hidden").await?);
    drop(desk.admin);
    page.wait_text("#stale", "Out of date").await?;
    // What was known is there still, and time stands still in it.
    page.wait("document.querySelectorAll('.card.job').length === 2").await?;
    let shown =
        "[...document.querySelectorAll('.card .time, #facts')].map((element) => element.textContent).join()";
    let before: String = page.ask(shown).await?;
    page.ask::<bool>("new Promise((done) => setTimeout(() => done(true), 2200))").await?;
    ensure!(page.ask::<String>(shown).await? == before, "{before}");
    keep("out-of-date.png", &page.picture(false).await?)?;

    let next = Desk::at(address, "second", None).await?;
    page.wait_text("#worker", "second").await?;
    page.wait("document.getElementById('stale').hidden && document.querySelectorAll('.job').length === 0")
        .await?;
    page.wait("document.title === 'booting · second'").await?;
    next.job("again")?.succeed(vec![next.output("x.png")]);
    page.wait_text("#ended", "again").await?;
    page.excuse(&["net::ERR_"])
}

/// What somebody reads stays open when the same worker is found again.
#[tokio::test]
async fn a_short_loss_closes_nothing() -> Result<()> {
    let desk = Desk::new(None).await?;
    let _jobs = fill(&desk)?;
    let gate = Gate::start(desk.admin.address).await?;
    let page = Page::open(&format!("http://{}/", gate.address())).await?;
    page.wait("document.querySelectorAll('#ended > li').length === 7").await?;
    page.click("[data-id=\"portrait-0038\"] summary").await?;
    page.wait("document.querySelector('[data-id=\"portrait-0038\"] details').open").await?;
    gate.set(Fault::Reset, "");
    page.wait_text("#stale", "Out of date").await?;
    desk.job("meanwhile")?.succeed(Vec::new());
    gate.lift();
    page.wait_text("#ended", "meanwhile").await?;
    page.wait("document.querySelector('[data-id=\"portrait-0038\"] details').open").await?;
    page.wait("document.querySelectorAll('#ended > li').length === 8 && document.querySelectorAll('.card.job').length === 2").await?;
    page.excuse(&["net::ERR_"])
}

/// A machine on the way dies without a word: nothing ends, nothing comes.
#[tokio::test]
async fn silence_is_noticed() -> Result<()> {
    let desk = Desk::new(None).await?;
    let gate = Gate::start(desk.admin.address).await?;
    let page = Page::open(&format!("http://{}/", gate.address())).await?;
    page.wait_text("#state-word", "booting").await?;
    gate.set(Fault::Swallow, "");
    page.wait_text("#stale", "Out of date").await?;
    gate.lift();
    desk.board.ready("0.3.64");
    page.wait_text("#state-word", "ready").await?;
    page.wait("document.getElementById('stale').hidden").await?;
    page.excuse(&["net::ERR_"])
}
