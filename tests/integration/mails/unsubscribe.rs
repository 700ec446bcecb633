//! The link in a mail: it shows a page, its button stops one kind of mail, and nothing else comes of it.

use anyhow::Result;
use chrono::TimeDelta;
use jobs::mail_kind::MailKind;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::given::{
    about, mail_to, recipients, says, says_not, second_of_next_month, unsubscribe_query, visit,
};
use super::signed_up_at;
use crate::world::World;

/// What a kind of mail is refused by, each kind on its own; a kind that nobody knows is an error and no consent.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_can_be_refused_and_an_unknown_one_is_an_error() -> Result<()> {
    let world = World::new().await?;
    let refusal = async |user: Uuid, kind: &str| -> sqlx::Result<Option<String>> {
        sqlx::query_scalar("select jobs.mail_refusal(p, $2, $3) from jobs.mail_people p where p.user_id = $1")
            .bind(user)
            .bind(kind)
            .bind(world.now())
            .fetch_one(world.pool())
            .await
    };
    let stop = async |user: Uuid, kind: &str| -> sqlx::Result<bool> {
        sqlx::query_scalar("select public.mail_unsubscribe($1, $2)")
            .bind(user)
            .bind(kind)
            .fetch_one(world.pool())
            .await
    };
    for kind in MailKind::ALL {
        let user = world.user(&format!("{}@example.test", kind.as_str())).await?;
        if !kind.is_for_users() {
            assert!(refusal(user, kind.as_str()).await.is_err(), "{kind:?} is no user's to refuse");
        } else if kind == MailKind::IntegrationTrouble {
            assert_eq!(refusal(user, kind.as_str()).await?, None, "{kind:?}");
            assert!(stop(user, kind.as_str()).await.is_err(), "{kind:?} is not stopped by a preference");
        } else {
            assert!(stop(user, kind.as_str()).await?, "{kind:?}");
            assert_eq!(refusal(user, kind.as_str()).await?.as_deref(), Some("refused_by_user"), "{kind:?}");
        }
    }
    let user = world.user("camille@example.test").await?;
    assert!(refusal(user, "weekly_news").await.is_err());
    assert!(stop(user, "weekly_news").await.is_err());
    Ok(())
}

const ONE_CLICK: (&str, &str) = ("application/x-www-form-urlencoded", "List-Unsubscribe=One-Click");
const MULTIPART: (&str, &str) = (
    "multipart/form-data; boundary=b",
    "--b\r\nContent-Disposition: form-data; name=\"List-Unsubscribe\"\r\n\r\nOne-Click\r\n--b--\r\n",
);

/// Makes a Premium user who has an offer and a reminder in the mailbox, and returns the queries of
/// both links.
async fn with_mails(world: &mut World) -> Result<(Uuid, String, String)> {
    let (_, noon) = second_of_next_month(world);
    let user =
        signed_up_at(world, "camille@example.test", "Camille Moreau", noon - TimeDelta::days(4)).await?;
    world.cron("daily-tasks", "").await?;
    let offer = unsubscribe_query(&mail_to(world, "camille@example.test"));
    world.resend.clear().await?;
    about(
        world,
        user,
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
    )
    .await?;
    about(world, user, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await?;
    world.cron("send-reminders", "").await?;
    let mail = mail_to(world, "camille@example.test");
    assert_eq!(mail.headers["List-Unsubscribe-Post"], "List-Unsubscribe=One-Click");
    world.resend.clear().await?;
    Ok((user, offer, unsubscribe_query(&mail)))
}

/// Returns (reminder, recap, offers, alerts); null without a row.
async fn preferences(world: &World) -> Result<Value> {
    world
        .value(
            "select coalesce((select jsonb_build_array(monthly_reminder, monthly_recap_email, marketing_email, \
             threshold_alert_email) from public.email_preferences), 'null')",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_shows_a_page_and_its_button_stops_one_kind() -> Result<()> {
    let mut world = World::new().await?;
    let (user, offer, reminder) = with_mails(&mut world).await?;
    let function = world.function("unsubscribe").await?;
    let gateway = world.environment.gateway.faults();
    gateway.forget();
    let page = visit(&function, Method::GET, &reminder, None).await?;
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].to_str()?.starts_with("text/html"));
    let policy = page.headers["content-security-policy"].to_str()?;
    says(policy, &["default-src 'none'", "form-action 'self'", "frame-ancestors 'none'"]);
    assert_eq!(page.headers["cache-control"], "no-store");
    assert_eq!(page.headers["referrer-policy"], "no-referrer");
    says(&page.text, &["<html lang=\"fr\">", "<form method=\"post\">", "le rappel mensuel", "Me désabonner"]);
    assert_eq!(page.text.matches("<button").count(), 1);
    says_not(&page.text, &["camille", "Camille", "<script", &user.to_string()]);
    let head = visit(&function, Method::HEAD, &reminder, None).await?;
    assert!(head.status.is_success() && head.text.is_empty());
    assert_eq!(
        preferences(&world).await?,
        json!([true, true, true, true]),
        "links are opened by scanners, too"
    );
    assert_eq!(gateway.seen().len(), 0, "nothing is even asked");

    // A browser's button, a mail program's two forms, and none at all: each the same, again and again.
    for body in [Some(ONE_CLICK), Some(MULTIPART), None, Some(("text/plain", "n’importe quoi"))] {
        let page = visit(&function, Method::POST, &reminder, body).await?;
        assert_eq!(page.status, 200, "{}", page.text);
        assert_eq!(page.headers.get("location"), None);
        says(&page.text, &["C’est noté", "le rappel mensuel"]);
        says_not(&page.text, &["camille", "<form", "<script"]);
        assert_eq!(preferences(&world).await?, json!([false, true, true, true]));
    }
    let page = visit(&function, Method::POST, &offer, Some(ONE_CLICK)).await?;
    assert_eq!(page.status, 200);
    assert_eq!(preferences(&world).await?, json!([false, true, false, true]));
    // It has its effect.
    world.run("delete from jobs.job_slots").await?;
    world.run("delete from jobs.email_deliveries").await?;
    assert_eq!(world.cron("send-reminders", "").await?["sent"], 0);
    assert!(recipients(&world).is_empty());
    Ok(())
}

/// A missing row means "no reminder": making it for another reason must not start one.
#[tokio::test(flavor = "multi_thread")]
async fn without_preferences_no_reminder_begins() -> Result<()> {
    let mut world = World::new().await?;
    let (user, offer, reminder) = with_mails(&mut world).await?;
    let function = world.function("unsubscribe").await?;
    for (query, expected) in
        [(&offer, json!([false, true, false, true])), (&reminder, json!([false, true, true, true]))]
    {
        about(&world, user, "delete from public.email_preferences where user_id = $1").await?;
        assert_eq!(visit(&function, Method::POST, query, Some(ONE_CLICK)).await?.status, 200);
        assert_eq!(preferences(&world).await?, expected);
    }
    // Whoever has gone gets no mail, and no error.
    about(&world, user, "delete from auth.users where id = $1").await?;
    assert_eq!(visit(&function, Method::POST, &offer, Some(ONE_CLICK)).await?.status, 200);
    assert_eq!(preferences(&world).await?, Value::Null);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_we_have_not_signed_changes_nothing() -> Result<()> {
    let mut world = World::new().await?;
    let (user, offer, reminder) = with_mails(&mut world).await?;
    let other = world.user("other@example.test").await?;
    let function = world.function("unsubscribe").await?;
    world.environment.gateway.faults().forget();
    let cut = &reminder[..reminder.len() - 3];
    let forged = [
        String::new(),
        "t=".to_owned(),
        "x=1".to_owned(),
        cut.to_owned(),
        reminder.replace(&user.to_string(), &other.to_string()),
        reminder.replace("monthly_reminder", "marketing_day3"),
        reminder.replace("monthly_reminder", "threshold_alert"),
        offer.replace("t=1.", "t=2."),
        reminder.rsplit_once('.').map(|(front, _)| format!("{front}.")).unwrap_or_default(),
        "t=%3Cscript%3Ealert(1)%3C/script%3E".to_owned(),
        format!("t=1.{user}.%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E.AAAA"),
        format!("t={}", "é".repeat(3_000)),
    ];
    for query in &forged {
        for (method, body) in [(Method::GET, None), (Method::POST, Some(ONE_CLICK))] {
            let page = visit(&function, method, query, body).await?;
            assert_eq!(page.status, 400, "{query}");
            assert!(page.headers["content-type"].to_str()?.starts_with("text/html"));
            says(&page.text, &["Ce lien n’est pas valable"]);
            says_not(&page.text, &["<form", "<script", "onerror", "camille", &user.to_string()]);
        }
    }
    assert!(world.environment.gateway.faults().seen().is_empty(), "a wrong link reaches no database");
    for method in [Method::PUT, Method::DELETE, Method::PATCH] {
        let page = visit(&function, method.clone(), &reminder, Some(ONE_CLICK)).await?;
        assert_eq!(page.status, 405, "{method}");
        says(page.headers["allow"].to_str()?, &["GET", "POST"]);
    }
    assert_eq!(preferences(&world).await?, json!([true, true, true, true]));
    let log = function.log();
    for query in [&reminder, &offer] {
        says_not(&log, &[query.rsplit_once('.').map_or("", |(_, signature)| signature), "camille"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_is_said_and_the_link_stays_good() -> Result<()> {
    let mut world = World::new().await?;
    let (_, _, reminder) = with_mails(&mut world).await?;
    world.set("JOB_BUDGET_SECONDS", "1");
    let function = world.function("unsubscribe").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_unsubscribe", Fault::json(503, &json!({"message": "secret detail"}))));
    let page = visit(&function, Method::POST, &reminder, Some(ONE_CLICK)).await?;
    assert_eq!(page.status, 503, "{}", page.text);
    says(&page.text, &["n’a pas pu être enregistrée", "il reste valable"]);
    says_not(&page.text, &["secret detail", "camille"]);
    assert_eq!(preferences(&world).await?, json!([true, true, true, true]));
    gateway.clear();
    assert_eq!(visit(&function, Method::POST, &reminder, Some(ONE_CLICK)).await?.status, 200);
    assert_eq!(preferences(&world).await?, json!([false, true, true, true]));
    Ok(())
}

/// It is written down, and the database's answer is lost: the reader is told that it is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_of_the_database_stops_it_all_the_same() -> Result<()> {
    let mut world = World::new().await?;
    let (_, _, reminder) = with_mails(&mut world).await?;
    let function = world.function("unsubscribe").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_unsubscribe", Fault::CutAfter).times(1));
    let page = visit(&function, Method::POST, &reminder, Some(ONE_CLICK)).await?;
    assert_eq!((page.status.as_u16(), gateway.count("mail_unsubscribe")), (200, 2), "{}", page.text);
    says(&page.text, &["C’est noté", "le rappel mensuel"]);
    assert_eq!(preferences(&world).await?, json!([false, true, true, true]));
    Ok(())
}
