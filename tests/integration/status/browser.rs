//! The page in a real browser: signed in, looked at and signed out with the keyboard, on a phone too.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, ensure};
use local_stack::status_page::{furnish, pictures, sign_in, user_page};
use processes::chrome::{self, Chrome, Scheme};

use crate::world::{SECRET, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_keyboard_a_phone_and_no_script_are_enough() -> Result<()> {
    let Some(program) = chrome::find() else {
        ensure!(std::env::var_os("CI").is_none(), "no Chromium here: CI must have one");
        eprintln!("SKIPPED: no Chromium on the PATH, and CHROME is not set");
        return Ok(());
    };
    let world = World::new().await?;
    furnish(world.pool(), world.now()).await?;
    let function = world.function("status").await?;
    let (url, now) = (function.url(), world.now());
    tokio::task::spawn_blocking(move || {
        let mut chrome = Chrome::start(&program)?;
        chrome.window(320, Scheme::Light)?;
        sign_in(&mut chrome, &url, SECRET)?;
        look_around(&mut chrome)?;
        chrome.visit(&user_page(&url, now))?;
        look_around(&mut chrome)?;
        tab_through(&mut chrome)?;
        open_the_user(&mut chrome, &url)?;
        sign_out(&mut chrome, &url)?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/status");
        pictures(&mut chrome, &url, SECRET, now, &folder)?;
        chrome.window(320, Scheme::Dark)?;
        chrome.visit(&url)?;
        replay(&mut chrome)?;
        let complaints = chrome.complaints();
        ensure!(complaints.is_empty(), "{complaints:#?}");
        Ok(())
    })
    .await?
}

/// Checks what a page is for its readers: no script, names for everything, nothing beyond the
/// window.
fn look_around(chrome: &mut Chrome) -> Result<()> {
    for (what, expression) in [
        ("no script", "document.scripts.length === 0"),
        ("French", "document.documentElement.lang === 'fr'"),
        ("one h1", "document.querySelectorAll('h1').length === 1"),
        (
            "no heading skips a level",
            "[...document.querySelectorAll('h1,h2,h3')].every((h, i, all) => i === 0 || h.tagName[1] - all[i - 1].tagName[1] <= 1)",
        ),
        ("tables have captions", "[...document.querySelectorAll('table')].every(t => t.caption)"),
        ("head cells have a scope", "[...document.querySelectorAll('th')].every(t => t.scope)"),
        (
            "buttons say what they do",
            "new Set([...document.querySelectorAll('button')].map(b => b.textContent)).size === document.querySelectorAll('button').length",
        ),
        (
            "ids are unique",
            "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size === document.querySelectorAll('[id]').length",
        ),
        (
            "links lead somewhere",
            "[...document.querySelectorAll('a[href^=\"#\"]')].every(a => document.querySelector(a.hash))",
        ),
        ("nothing beyond the window", "document.documentElement.scrollWidth <= 320"),
        ("the secret is nowhere", &format!("!document.documentElement.outerHTML.includes('{SECRET}')")),
        ("nor can a script read the cookie", "document.cookie === ''"),
    ] {
        ensure!(chrome.eval(expression)? == true, "{what}");
    }
    for _ in 0..2 {
        chrome.eval("document.querySelectorAll('details').forEach(d => d.open = true)")?;
        ensure!(
            chrome.eval("document.documentElement.scrollWidth <= 320")? == true,
            "opened, it is too wide"
        );
    }
    Ok(())
}

/// Asks what has the focus: its text, whether that shows, its place on the page.
const HERE: &str = "(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect(); \
    return [e.textContent.trim(), s.outlineStyle !== 'none' && r.width > 1 && r.height > 1, \
    [...document.querySelectorAll('*')].indexOf(e)]; })()";

/// Goes Tab by Tab through the whole page: the skip link comes first, everything once, in the order of the text, and each
/// shows that it has the focus. Answers the texts.
fn tab_through(chrome: &mut Chrome) -> Result<Vec<String>> {
    chrome.eval("document.querySelectorAll('details').forEach(d => d.open = true)")?;
    let stops = chrome
        .eval("document.querySelectorAll('a, button, summary, input:not([type=hidden])').length")?
        .as_u64()
        .context("a number")?;
    let (mut seen, mut last, mut texts) = (HashSet::new(), 0, Vec::new());
    for stop in 0..stops {
        chrome.press("Tab")?;
        let here = chrome.eval(HERE)?;
        let (text, place) = (here[0].as_str().unwrap_or_default(), here[2].as_u64().unwrap_or_default());
        ensure!(here[1] == true, "{text:?} does not show that it has the focus");
        ensure!(place > last && seen.insert(place), "{text:?} comes out of order");
        ensure!(stop > 0 || text == "Aller au contenu", "first comes {text:?}");
        texts.push(text.to_owned());
        last = place;
    }
    Ok(texts)
}

/// Replays a missed slot by the keyboard alone.
fn replay(chrome: &mut Chrome) -> Result<()> {
    let texts = tab_through(chrome)?;
    let missed =
        texts.iter().position(|text| text.starts_with("Rejouer")).context("no button to replay with")?;
    chrome.eval("document.activeElement.blur()")?;
    chrome.eval("document.querySelector('.skip').focus()")?;
    for _ in 0..missed {
        chrome.press("Tab")?;
    }
    chrome.press("Enter")?;
    chrome.loaded()?;
    let said = chrome.eval("document.querySelector('[role=status]').textContent")?;
    ensure!(said.as_str().is_some_and(|said| said.contains("rejeu est lancé")), "{said}");
    Ok(())
}

/// Opens a user's page by the form and the keyboard alone.
fn open_the_user(chrome: &mut Chrome, url: &str) -> Result<()> {
    chrome.visit(url)?;
    chrome.eval("document.querySelector('#who').focus()")?;
    chrome.type_text("00000000-0000-4000-8000-000000000007")?;
    chrome.press("Enter")?;
    chrome.loaded()?;
    let place = chrome.eval("location.search")?;
    ensure!(place == "?user=00000000-0000-4000-8000-000000000007", "{place}");
    Ok(())
}

fn sign_out(chrome: &mut Chrome, url: &str) -> Result<()> {
    chrome.eval(
        "[...document.querySelectorAll('button')].find(b => b.textContent === 'Se déconnecter').focus()",
    )?;
    chrome.press("Enter")?;
    chrome.loaded()?;
    for _ in 0..2 {
        let form = chrome
            .eval("!!document.querySelector('input[type=password]') && !document.querySelector('#sante')")?;
        ensure!(form == true, "still signed in");
        chrome.visit(url)?;
    }
    Ok(())
}
