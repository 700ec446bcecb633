//! Runs `cargo stack status-page`: the status page of a deployment with something of everything in it, for a person to
//! look at.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use jobs::routes::Route;
use sqlx::PgPool;

use processes::{
    chrome::{self, Chrome, Scheme},
    functions::Function,
    vercel,
};
use stand_ins::{Stack, clock::Clock, resend::Resend, shopify, stripe};

const FURNITURE: &str = include_str!("../sql/status_page.sql");
/// These are a small phone and a window on a desk.
const WIDTHS: [u32; 2] = [320, 1200];
const PATH: &str = Route::Status.path();

/// Fills a migrated database with users, integrations, runs and mails, as if crons had come by for the three weeks
/// before this instant.
pub async fn furnish(pool: &PgPool, now: DateTime<Utc>) -> Result<()> {
    let sql = FURNITURE.replace("$now", &format!("timestamptz '{}'", now.to_rfc3339()));
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.context("status_page.sql")?;
    Ok(())
}

/// Signs in with the keyboard alone, from the form of that address.
pub fn sign_in(chrome: &mut Chrome, url: &str, secret: &str) -> Result<()> {
    chrome.visit(url)?;
    // The form takes the focus with the first frame, not with the load.
    let focused = |chrome: &mut Chrome| anyhow::Ok(chrome.eval("document.activeElement.id")? == "secret");
    for _ in 0..100 {
        if focused(chrome)? {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(focused(chrome)?, "the form does not take the focus");
    chrome.type_text(secret)?;
    chrome.press("Enter")?;
    chrome.loaded()?;
    let title = chrome.eval("document.querySelector('#sante') ? document.title : document.body.innerText")?;
    ensure!(title.as_str().is_some_and(|title| title.ends_with("Comptalyze Jobs")), "not signed in: {title}");
    Ok(())
}

/// Returns the address of the page of the user of whom there is something of everything, with this month opened.
pub fn user_page(url: &str, now: DateTime<Utc>) -> String {
    format!("{url}?user=00000000-0000-4000-8000-000000000007&month={}", jobs::schedule::paris::month(now))
}

/// Pictures of the sign-in form, of the page and of a user's, on a phone and on a desk, light and dark; answers where they
/// are.
pub fn pictures(
    chrome: &mut Chrome,
    url: &str,
    secret: &str,
    now: DateTime<Utc>,
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut all = Vec::new();
    for name in ["sign-in", "status", "status-open", "user", "user-open"] {
        if name == "status" {
            sign_in(chrome, url, secret)?;
        }
        for (width, scheme) in WIDTHS.into_iter().flat_map(|width| Scheme::ALL.map(|scheme| (width, scheme)))
        {
            chrome.window(width, scheme)?;
            if name.starts_with("user") {
                chrome.visit(&user_page(url, now))?;
            } else {
                chrome.visit(url)?;
            }
            if name.ends_with("-open") {
                chrome.eval("document.querySelectorAll('details').forEach(d => d.open = true)")?;
            }
            let picture = chrome.shot(width)?;
            ensure!(picture.width <= width, "{name} is {} px wide in a window of {width} px", picture.width);
            let file = folder.join(format!("{name}-{width}-{}.png", scheme.as_str()));
            fs::write(&file, picture.png)?;
            all.push(file);
        }
    }
    Ok(all)
}

/// The pictures are of this instant: a Sunday before noon.
const AT: &str = "2026-11-22T10:40:00Z";

/// Starts what the page needs, and takes pictures of it as it is at an instant, by default always the same.
pub async fn write(folder: &Path, at: Option<DateTime<Utc>>) -> Result<()> {
    let now = at.map_or_else(|| AT.parse(), Ok)?;
    let clock = Clock::default();
    clock.set(now);
    let browser = chrome::find().context("no Chromium on the PATH, and CHROME is not set")?;
    let checkout = vercel::checkout()?;
    vercel::build(&checkout).await?;
    let stack = Stack::start().await?;
    let (environment, resend) = (stack.environment().await?, Resend::bare_at(clock.clone()).await?);
    let (stripe, shopify) = (stripe::StandIn::start().await?, shopify::StandIn::start_at(clock).await?);
    furnish(environment.db.pool(), now).await?;
    let secret = "a-secret-to-look-with";
    let mut env = vec![
        ("CRON_SECRET", secret.to_owned()),
        ("JOBS_NOW", now.to_rfc3339()),
        ("ENCRYPTION_KEY", "0123456789abcdef0123456789abcdef".to_owned()),
        ("STRIPE_SECRET_KEY", stripe.secret_key()),
        ("STRIPE_API_BASE", stripe.url()),
        ("SHOPIFY_CLIENT_ID", shopify.client_id()),
        ("SHOPIFY_CLIENT_SECRET", shopify.client_secret()),
        ("SHOPIFY_API_BASE", shopify.api_base()),
        ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@comptalyze.exemple.fr>".to_owned()),
        ("JOBS_BASE_URL", "https://jobs.comptalyze.exemple.fr".to_owned()),
        ("SENDER_IDENTITY", "Comptalyze, 1 rue de la Paix, 75002 Paris".to_owned()),
        ("STRIPE_PRICE_PRO", "price_pro".to_owned()),
        ("STRIPE_PRICE_PREMIUM", "price_premium".to_owned()),
    ];
    env.extend(environment.env_vars());
    env.extend(resend.env_vars());
    let function = Function::start(&checkout.join("target/debug").join(Route::Status.binary()), &env).await?;
    let (url, folder) = (format!("{}{PATH}", function.url()), folder.to_owned());
    let files = tokio::task::spawn_blocking(move || {
        let mut chrome = Chrome::start(&browser)?;
        pictures(&mut chrome, &url, secret, now, &folder)
    })
    .await??;
    for file in files {
        println!("{}", file.display());
    }
    Ok(())
}
