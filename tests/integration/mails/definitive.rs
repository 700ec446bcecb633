//! A recap is provisional; the month's definitive total reaches whoever got one: by the reminder of the 2nd, or by one
//! short mail.

use anyhow::Result;
use chrono::{DateTime, Days, TimeDelta, Utc};
use jobs::schedule::{Month, paris};
use serde_json::{Value, json};
use stand_ins::stripe::PassedOn;
use uuid::Uuid;

use super::given::{
    about, last_day, mail_to, mails_to, plain, recipients, says, says_not, text, unsubscribe_query, visit,
};
use crate::world::World;

fn address(account: &str) -> String {
    format!("{account}@example.test")
}

/// Returns the morning of the 2nd of the month after.
fn second_after(month: Month) -> DateTime<Utc> {
    paris::start_of(month.next().first_day() + Days::new(1)) + TimeDelta::hours(8)
}

/// Makes a user with 1 000 € on the 3rd of the month, who has the provisional recap of its last day.
async fn seller(world: &World, account: &str, month: Month) -> Result<Uuid> {
    let user = world.stripe_user(account).await?;
    world.stripe.payment(account, month.start() + TimeDelta::hours(60), 100_000, "eur");
    Ok(user)
}

async fn makes_premium(world: &World, user: Uuid) -> Result<()> {
    for sql in [
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
    ] {
        about(world, user, sql).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_got_a_provisional_total_is_told_the_definitive_one_once() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    for account in ["acct_more", "acct_less", "acct_same", "acct_refuses", "acct_reminded", "acct_unchanged"]
    {
        let user = seller(&world, account, month).await?;
        if ["acct_reminded", "acct_unchanged"].contains(&account) {
            makes_premium(&world, user).await?;
        }
    }
    let answer = world.cron("monthly-orchestrator", "").await?;
    assert_eq!(answer["results"]["monthlySync"]["recaps"], json!({"sent": 6, "errors": 0}), "{answer}");
    world.resend.clear().await?;

    // The evening of the last day.
    let evening = now + TimeDelta::hours(5);
    for account in ["acct_more", "acct_refuses", "acct_reminded"] {
        world.stripe.payment(account, evening, 25_550, "eur");
    }
    let charge = world.stripe.payment("acct_less", month.start() + TimeDelta::hours(70), 1, "eur");
    world.stripe.refund("acct_less", &charge.charge, evening, 30_001);
    world
        .run(
            "insert into public.email_preferences (user_id, monthly_reminder, monthly_recap_email) \
             select id, false, false from auth.users where email = 'acct_refuses@example.test'",
        )
        .await?;
    world.set_now(second_after(month) - TimeDelta::hours(2));
    world.post("sync-integrations", "").await?;

    world.set_now(second_after(month));
    let tried = world.cron("send-reminders", "dry_run=true").await?;
    assert_eq!(
        (&tried["dryRun"]["items"], &tried["dryRun"]["definitive"]),
        (&json!(2), &json!(2)),
        "{tried}"
    );
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(2), &json!(0)), "{answer}");
    assert_eq!(answer["recaps"], json!({"sent": 2, "errors": 0}), "{answer}");
    let expected = ["acct_less", "acct_more", "acct_reminded", "acct_unchanged"].map(address);
    assert_eq!(recipients(&world), expected);

    let mail = mail_to(&world, &address("acct_more"));
    says(&plain(&mail.subject), &["Le total définitif", &month.french(), "1 255,50 €"]);
    let said = text(&mail);
    says(
        &said,
        &[
            "Total importé, définitif : 1 255,50 €",
            &format!("Annoncé le {} : 1 000,00 €", paris::french(paris::date(now))),
            "Différence : 255,50 € de plus",
            "avant midi",
        ],
    );
    says_not(&said, &["/pricing"]);
    let link = unsubscribe_query(&mail);
    says(
        &text(&mail_to(&world, &address("acct_less"))),
        &["Total importé, définitif : 700,00 €", "Différence : 300,00 € de moins"],
    );
    says(
        &text(&mail_to(&world, &address("acct_reminded"))),
        &[
            "Le total importé est définitif",
            "annonçait un total importé provisoire de 1 000,00 €",
            "est de 1 255,50 €, soit 255,50 € de plus",
        ],
    );
    says(
        &text(&mail_to(&world, &address("acct_unchanged"))),
        &["annonçait 1 000,00 €, provisoirement : rien n’a changé depuis"],
    );

    // Once, whoever calls, and whatever changes afterwards.
    world.stripe.payment("acct_same", evening, 9_900, "eur");
    world.post("sync-integrations", "").await?;
    world.run("delete from jobs.job_slots").await?;
    world.cron("monthly-orchestrator", "").await?;
    assert_eq!(mails_to(&world, &address("acct_more")).len(), 1);
    assert_eq!(mails_to(&world, &address("acct_same")).len(), 1, "its total has changed only now");

    // Its link stops recaps, and nothing else.
    let function = world.function("unsubscribe").await?;
    let page = visit(&function, reqwest::Method::POST, &link, None).await?;
    says(&page.text, &["Vous ne recevrez plus le récapitulatif mensuel"]);
    let preferences: Value = world
        .value(
            "select jsonb_build_array(monthly_recap_email, marketing_email, threshold_alert_email) \
             from public.email_preferences e join auth.users u on u.id = e.user_id where u.email = 'acct_more@example.test'",
        )
        .await?;
    assert_eq!(preferences, json!([false, true, true]));
    Ok(())
}

/// Money in dollars and a platform's share never leave a month: its total is definitive all the same, with both beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_total_is_definitive_whatever_its_flaws_which_are_told() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    for account in ["acct_mailed", "acct_reminded"] {
        let user = seller(&world, account, month).await?;
        let first = month.start() + TimeDelta::hours(61);
        world.stripe.payment(account, first, 5_000, "usd");
        world.stripe.passed_on(account, first, 8_500, PassedOn::Part);
        if account == "acct_reminded" {
            makes_premium(&world, user).await?;
        }
    }
    world.cron("monthly-orchestrator", "").await?;
    world.resend.clear().await?;
    for account in ["acct_mailed", "acct_reminded"] {
        world.stripe.payment(account, now + TimeDelta::hours(5), 25_550, "eur");
    }
    world.set_now(second_after(month) - TimeDelta::hours(2));
    world.post("sync-integrations", "").await?;
    world.set_now(second_after(month));
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["recaps"]["sent"]), (&json!(1), &json!(1)), "{answer}");
    for (account, definitive) in
        [("acct_mailed", "Total importé, définitif : "), ("acct_reminded", "Le total importé est définitif")]
    {
        let said = text(&mail_to(&world, &address(account)));
        says(&said, &[definitive, "255,50 € de plus", "Les opérations en USD", "reversé par une plateforme"]);
        says_not(&said, &["est incomplet", "n’a pas été lu"]);
    }
    Ok(())
}

/// A month that was not read to its end has no definitive total, and a total that has come back needs no mail.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_called_definitive_that_is_not() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    seller(&world, "acct_half", month).await?;
    let reminded = seller(&world, "acct_reminded", month).await?;
    makes_premium(&world, reminded).await?;
    world.cron("monthly-orchestrator", "").await?;
    world.resend.clear().await?;
    // Both have sold since; one of them is refused, so that what came after is not known.
    world.stripe.payment("acct_half", now + TimeDelta::minutes(1), 5_000, "eur");
    world.stripe.payment("acct_reminded", now + TimeDelta::minutes(1), 5_000, "eur");
    world.set_now(now + TimeDelta::hours(2));
    world.post("sync-integrations", "").await?;
    world.set_now(second_after(month));
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["recaps"]["sent"]), (&json!(1), &json!(0)), "{answer}");
    assert_eq!(answer["unsent"], json!({"month_incomplete": 1}), "{answer}");
    assert_eq!(recipients(&world), [address("acct_reminded")]);
    says_not(&text(&mail_to(&world, &address("acct_reminded"))), &["définitif"]);
    Ok(())
}
