//! What the tests of the mails put into the database, and how they read what left.

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike, Days, NaiveDate, TimeDelta, Utc};
use jobs::schedule::{Month, paris};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::Value;
use stand_ins::resend::Mail;
use uuid::Uuid;

pub(super) use crate::clock::at;
use crate::world::{Answer, Function, World};

/// Returns the 2nd of the month after this one, at noon: reminders about this month are due, and
/// their time is not over.
pub(super) fn second_of_next_month(world: &mut World) -> (Month, DateTime<Utc>) {
    let month = world.month();
    let noon = paris::start_of(month.next().first_day() + Days::new(1)) + TimeDelta::hours(12);
    world.set_now(noon);
    (month, noon)
}

/// Returns the last day of the month before this one, in the afternoon of Paris.
pub(super) fn last_day(world: &mut World) -> (Month, DateTime<Utc>) {
    let month = world.month().previous();
    let at = paris::start_of(month.last_day()) + TimeDelta::hours(15);
    world.set_now(at);
    (month, at)
}

/// Returns the last Sunday of a month: in March and October the clocks change.
pub(super) fn last_sunday(year: i32, month: u32) -> NaiveDate {
    let last = Month::new(year, month).expect("a month").last_day();
    last - Days::new(last.weekday().num_days_from_sunday().into())
}

/// Runs a statement about one user, `$1`; `$now` is the world's instant.
pub(crate) async fn about(world: &World, user: Uuid, sql: &str) -> Result<()> {
    let query = sqlx::query(sqlx::AssertSqlSafe(world.dated(sql))).bind(user);
    query.execute(world.pool()).await.with_context(|| sql.to_owned())?;
    Ok(())
}

/// Writes a row of turnover: `source` is `manual` or `auto_sync`.
pub(crate) async fn turnover(
    world: &World,
    user: Uuid,
    month: &str,
    activity: &str,
    euros: &str,
    source: &str,
) -> Result<()> {
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id) \
         values ($1, left($2, 4)::integer, right($2, 2)::integer, $3, $4::numeric, $5, \
             case $5 when 'auto_sync' then $2 || '/' || $3 end)",
    )
    .bind(user)
    .bind(month)
    .bind(activity)
    .bind(euros)
    .bind(source)
    .execute(world.pool())
    .await?;
    Ok(())
}

/// Returns what one address got, oldest first.
pub(super) fn mails_to(world: &World, address: &str) -> Vec<Mail> {
    let accepted = world.resend.accepted();
    let theirs = accepted.iter().filter(|accepted| accepted.mail.to == [address]);
    theirs.map(|accepted| accepted.mail.clone()).collect()
}

/// Returns the only mail that one address got.
pub(super) fn mail_to(world: &World, address: &str) -> Mail {
    let mut mails = mails_to(world, address);
    assert_eq!(mails.len(), 1, "mails to {address}");
    mails.remove(0)
}

/// Returns the addresses that got anything, each as often as it did, sorted.
pub(super) fn recipients(world: &World) -> Vec<String> {
    super::received(world).into_iter().map(|(to, _)| to).collect()
}

/// Returns the text part, on one line.
pub(super) fn text(mail: &Mail) -> String {
    plain(mail.text.as_deref().expect("a text part"))
}

/// On one line with plain spaces, wherever the lines were broken.
pub(super) fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Asserts that a text says all of these.
#[track_caller]
pub(super) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// Asserts that a text says none of these.
#[track_caller]
pub(super) fn says_not(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(!text.contains(part), "{part:?} is in\n{text}");
    }
}

/// Returns the query of the link that stops a mail's kind.
pub(super) fn unsubscribe_query(mail: &Mail) -> String {
    let link = mail.headers.get("List-Unsubscribe").expect("a link to unsubscribe");
    let link = link.trim_start_matches('<').trim_end_matches('>');
    assert!(link.starts_with("https://jobs.comptalyze.example/api/unsubscribe?"), "{link}");
    link.split_once('?').expect("a query").1.to_owned()
}

/// Returns the query of the link in a mail's text that leads to the confirmation.
pub(super) fn confirm_query(mail: &Mail) -> String {
    let text = mail.text.as_deref().expect("a text part");
    let link = text.lines().find(|line| line.starts_with("https://jobs.comptalyze.example/api/confirm?"));
    link.expect("a link to confirm").split_once('?').expect("a query").1.to_owned()
}

/// Returns the message of a reported problem.
#[track_caller]
pub(super) fn problem<'a>(part: &'a Value, code: &str) -> &'a Value {
    let problems = part["problems"].as_array().unwrap_or_else(|| panic!("no problems in {part}"));
    problems.iter().find(|problem| problem["code"] == code).unwrap_or_else(|| panic!("no {code} in {part}"))
}

/// Makes a cron's call, whatever its status.
pub(super) async fn cron(world: &World, name: &str, query: &str) -> Result<Answer> {
    world.call(Method::GET, name, query).await
}

/// What a link leads to.
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// On one line.
    pub(super) text: String,
}

/// What follows a link: a browser, a mail program. Redirects are not followed.
pub(super) async fn visit(
    function: &Function,
    method: Method,
    query: &str,
    body: Option<(&str, &str)>,
) -> Result<Page> {
    let mut request = jobs::http::client()?.request(method, format!("{}?{query}", function.url()));
    if let Some((content_type, body)) = body {
        request = request.header("content-type", content_type).body(body.to_owned());
    }
    let Answer { status, headers, text } = function.send(request).await?;
    Ok(Page { status, headers, text: plain(&text) })
}
