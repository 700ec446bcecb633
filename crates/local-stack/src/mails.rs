//! Runs `cargo stack mails`: every mail in its variants, and a year of one user's mails in order, for a person to look at.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jobs::email::{Rendered, samples};

use processes::chrome::{self, Chrome, Scheme};

/// These are a small phone and a window on a desk.
const WIDTHS: [u32; 2] = [320, 640];

/// Returns the Chromium of this machine: the one that `CHROME` names, or one on the `PATH`.
pub fn browser() -> Option<PathBuf> {
    chrome::find()
}

/// Writes each sample as HTML and text, pictures of it where there is a browser, and an index of them all.
pub fn write(folder: &Path, browser: Option<&Path>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let mails = samples::mails()?;
    for (name, mail) in &mails {
        fs::write(folder.join(format!("{name}.html")), &mail.html)?;
        fs::write(folder.join(format!("{name}.txt")), format!("{}\n\n{}", mail.subject, mail.text))?;
    }
    if let Some(browser) = browser {
        let mut chrome = Chrome::start(browser)
            .with_context(|| format!("{} does not serve as a browser", browser.display()))?;
        for (name, _) in &mails {
            pictures(&mut chrome, &folder, name).with_context(|| format!("no pictures of {name}"))?;
        }
    } else {
        println!("No pictures: no Chromium on the PATH, and CHROME is not set.");
    }
    fs::write(folder.join("index.html"), index(&mails, browser.is_some()))?;
    tell_story(&folder)?;
    println!("{} mails: {}", mails.len(), folder.join("index.html").display());
    Ok(())
}

/// Prints a year of one user's mails in order, and writes them whole into one file.
fn tell_story(folder: &Path) -> Result<()> {
    let mut whole = String::new();
    for page in samples::story()? {
        let heading = format!("{}  {}", page.day, page.event);
        println!("{heading}");
        whole.extend(["\n", &"=".repeat(72), "\n", &heading, "\n"]);
        if let Some(mail) = page.mail {
            println!("            {}", mail.subject);
            whole.extend(["\n", &mail.subject, "\n\n", &mail.text]);
        }
    }
    let file = folder.join("story.txt");
    fs::write(&file, whole)?;
    println!("A year of mails: {}", file.display());
    Ok(())
}

fn pictures(chrome: &mut Chrome, folder: &Path, name: &str) -> Result<()> {
    let page = folder.join(format!("{name}.html"));
    for (width, scheme) in views() {
        let picture = chrome.picture(&page, width, scheme)?;
        if picture.width > width {
            println!("{name} is {} px wide in a window of {width} px", picture.width);
        }
        fs::write(folder.join(picture_name(name, width, scheme)), picture.png)?;
    }
    Ok(())
}

fn views() -> impl Iterator<Item = (u32, Scheme)> {
    WIDTHS.into_iter().flat_map(|width| Scheme::ALL.map(|scheme| (width, scheme)))
}

fn picture_name(name: &str, width: u32, scheme: Scheme) -> String {
    format!("{name}-{width}-{}.png", scheme.as_str())
}

/// Writes a page that shows them all.
fn index(mails: &[(String, Rendered)], pictures: bool) -> String {
    let mut page = vec![HEAD.to_owned()];
    for (name, mail) in mails {
        let subject = mail.subject.replace('&', "&amp;").replace('<', "&lt;");
        page.push(format!("<h2>{subject}</h2>"));
        page.push(format!(
            "<p>{name}\u{a0}: <a href=\"{name}.html\">HTML</a>, <a href=\"{name}.txt\">texte</a></p>"
        ));
        for (width, scheme) in views().filter(|_| pictures) {
            let picture = picture_name(name, width, scheme);
            page.push(format!("<img src=\"{picture}\" width=\"{width}\" alt=\"{picture}\">"));
        }
    }
    page.join("\n") + "\n"
}

const HEAD: &str = "\
<!doctype html>
<html lang=\"fr\">
<meta charset=\"utf-8\">
<title>Les mails de Comptalyze</title>
<style>
body{font:16px/1.5 sans-serif;margin:2rem}
img{vertical-align:top;margin:0 1rem 2rem 0;border:1px solid #999}
</style>
<h1>Les mails de Comptalyze</h1>";
