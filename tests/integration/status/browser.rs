//! The page in a real browser: signed in, looked at and signed out with the keyboard, on a phone too.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, ensure};
use local_stack::status_page::{furnish, pictures, sign_in};
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
    let url = function.url();
    tokio::task::spawn_blocking(move || {
        let mut chrome = Chrome::start(&program)?;
        chrome.window(320, Scheme::Light)?;
        sign_in(&mut chrome, &url, SECRET)?;
        look_around(&mut chrome)?;
        sign_out(&mut chrome, &url)?;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/status");
        pictures(&mut chrome, &url, SECRET, &folder)?;
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

/// Goes Tab by Tab through the whole page: the skip link first, everything once, in the order of
/// the text, each seen.
fn replay(chrome: &mut Chrome) -> Result<()> {
    chrome.eval("document.querySelectorAll('details').forEach(d => d.open = true)")?;
    let stops = chrome
        .eval("document.querySelectorAll('a, button, summary').length")?
        .as_u64()
        .context("a number")?;
    let (mut seen, mut last, mut missed) = (HashSet::new(), 0, None);
    for stop in 0..stops {
        chrome.press("Tab")?;
        let here = chrome.eval(HERE)?;
        let (text, place) = (here[0].as_str().unwrap_or_default(), here[2].as_u64().unwrap_or_default());
        ensure!(here[1] == true, "{text:?} does not show that it has the focus");
        ensure!(place > last && seen.insert(place), "{text:?} comes out of order");
        ensure!(stop > 0 || text == "Aller au contenu", "first comes {text:?}");
        if text.starts_with("Rejouer") && missed.is_none() {
            missed = Some(stop);
        }
        last = place;
    }
    // And back to that button, by the keyboard again.
    let missed = missed.context("no button to replay with")?;
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
