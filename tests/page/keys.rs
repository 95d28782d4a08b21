//! All that a mouse can do, without one.

use anyhow::{Result, ensure};

use super::{
    board::{Desk, TOKEN},
    browser::{PHONE, Page, keep},
    looks::fill,
};

/// What has the focus, and whether that can be seen.
const FOCUS: &str = "(() => { const element = document.activeElement; const style = getComputedStyle(element);
    return [element.id || element.className || element.tagName,
        element === document.body || style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; })()";

#[tokio::test]
async fn the_keyboard_reaches_and_opens_everything() -> Result<()> {
    let desk = Desk::new(Some(TOKEN)).await?;
    let _jobs = fill(&desk)?;
    let page = Page::open(&desk.url()).await?;
    page.wait("document.querySelectorAll('#ended > li').length === 7").await?;
    let wanted: usize = page
        .ask("[...document.querySelectorAll('a[href], button, summary, [tabindex=\"0\"]')].filter((element) => element.checkVisibility()).length")
        .await?;
    let mut reached = Vec::new();
    loop {
        page.press(&["Tab"]).await?;
        let (what, seen): (String, bool) = page.ask(FOCUS).await?;
        if what == "BODY" || reached.len() > wanted {
            break;
        }
        ensure!(seen, "{what} has the focus and does not show it");
        reached.push(what);
    }
    ensure!(reached.len() == wanted, "{} of {wanted}: {reached:?}", reached.len());
    ensure!(reached.first().is_some_and(|first| first == "skip"), "{reached:?}");

    // Opens a failure; its traceback can be reached, to be scrolled.
    page.run("document.querySelector('[data-id=\"portrait-0038\"] summary').focus()").await?;
    page.press(&["Enter"]).await?;
    page.wait("document.querySelector('[data-id=\"portrait-0038\"] .traceback')?.textContent.includes('common_ksampler')").await?;
    page.press(&["Tab", "Tab"]).await?;
    ensure!(page.ask::<String>("document.activeElement.className").await? == "traceback");

    // Only failures.
    page.run("document.getElementById('only-failed').focus()").await?;
    page.press(&["Space"]).await?;
    page.wait(
        "[...document.querySelectorAll('#ended > li')].filter((row) => row.checkVisibility()).length === 2",
    )
    .await?;
    page.press(&["Space"]).await?;

    // A question is closed by Escape and nothing is done.
    page.run("document.getElementById('drain').focus()").await?;
    page.press(&["Enter"]).await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.press(&["Escape"]).await?;
    page.wait("!document.getElementById('ask-sure').open && document.activeElement.id === 'drain'").await?;
    ensure!(desk.told.all().is_empty(), "{:?}", desk.told.all());

    // Asked for the token, once.
    page.press(&["Enter"]).await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.press(&["Tab", "Enter"]).await?;
    page.wait("document.getElementById('ask-token').open && document.activeElement.id === 'token'").await?;
    page.look(PHONE, true).await?;
    keep("token.png", &page.picture(false).await?)?;
    page.write("wrong").await?;
    page.press(&["Enter"]).await?;
    page.wait_text("#ask-token-title", "refused").await?;
    page.wait("document.activeElement.id === 'token' && document.activeElement.value === ''").await?;
    page.write(TOKEN).await?;
    page.press(&["Enter"]).await?;
    page.wait("!document.querySelector('dialog[open]')").await?;
    page.wait("sessionStorage.length === 1 && localStorage.length === 0 && document.cookie === ''").await?;
    ensure!(desk.told.all() == ["drain"], "{:?}", desk.told.all());
    page.run("document.querySelector('.card button').focus()").await?;
    page.press(&["Enter"]).await?;
    page.wait("document.getElementById('ask-sure').open").await?;
    page.press(&["Tab", "Enter"]).await?;
    page.wait_text(".card button", "Cancelling").await?;
    ensure!(desk.told.all() == ["drain", "cancel portrait-0042"], "{:?}", desk.told.all());
    // The refusal of the wrong token is all that was to complain of.
    page.excuse(&["401 (Unauthorized)"])
}

#[tokio::test]
async fn without_a_token_there_is_nothing_to_press() -> Result<()> {
    let desk = Desk::new(None).await?;
    let _jobs = fill(&desk)?;
    let page = Page::open(&desk.url()).await?;
    page.wait("document.querySelectorAll('.card.job').length === 2").await?;
    let commands: usize = page
        .ask("[...document.querySelectorAll('.command')].filter((button) => button.checkVisibility()).length")
        .await?;
    ensure!(commands == 0, "{commands} buttons");
    page.ensure_no_complaint()
}
