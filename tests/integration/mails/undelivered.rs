//! Accepted is not delivered: what the mail service reports afterwards counts, and what did not arrive comes back, once.

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    resend::webhooks::{
        Bounce, bounced, delayed, delivered, failed, suppressed, suppression_removed, svix_headers,
    },
};
use uuid::Uuid;

use super::{
    given::{about, last_day, mail_to, recipients, second_of_next_month, turnover},
    kind, signed_up_at,
};
use crate::world::World;

/// Reports an event as the mail service does.
async fn report(world: &World, event: &Value) -> Result<()> {
    let (body, id) = (event.to_string(), Uuid::new_v4().to_string());
    let headers = svix_headers(world.var("RESEND_WEBHOOK_SECRET"), &id, world.now().timestamp(), &body)?;
    let function = world.function("resend").await?;
    let answer =
        function.send(jobs::http::client()?.post(function.url()).headers(headers).body(body)).await?;
    assert_eq!((answer.status.as_u16(), answer.json()["new"].clone()), (200, json!(true)), "{}", answer.text);
    Ok(())
}

/// Any call that works on mails.
async fn next_run(world: &mut World, at: DateTime<Utc>) -> Result<()> {
    world.set_now(at);
    world.post("sync-integrations", "").await?;
    Ok(())
}

async fn premium(world: &World, name: &str) -> Result<Uuid> {
    let signed_up = world.now() - TimeDelta::days(100);
    let user = signed_up_at(world, &format!("{name}@example.test"), name, signed_up).await?;
    let subscribed =
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')";
    about(world, user, subscribed).await?;
    about(world, user, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await?;
    Ok(user)
}

/// Sends the reminders of the month to these users.
async fn reminded(names: &[&str]) -> Result<(World, DateTime<Utc>, Vec<Uuid>)> {
    let mut world = World::new().await?;
    let (_, now) = second_of_next_month(&mut world);
    let mut users = Vec::new();
    for name in names {
        users.push(premium(&world, name).await?);
    }
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!(answer["sent"], json!(names.len()), "{answer}");
    Ok((world, now, users))
}

/// What failed for a reason of ours leaves once more, half an hour later, then it is the operator's; what came back from a
/// full mailbox leaves once more on the next day.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_after_its_200_leaves_once_more() -> Result<()> {
    let (mut world, now, _) = reminded(&["quota", "full", "slow", "well", "typo"]).await?;
    let id = |world: &World, name: &str| mail_to(world, &format!("{name}@example.test")).id;
    let address = |name: &str| format!("{name}@example.test");
    let has_no_room =
        |world: &World| bounced(&id(world, "full"), &address("full"), Bounce::Transient, "MailboxFull");
    report(&world, &failed(&id(&world, "quota"), &address("quota"), "reached_daily_quota")).await?;
    report(&world, &has_no_room(&world)).await?;
    report(&world, &failed(&id(&world, "typo"), &address("typo"), "invalid_recipient")).await?;
    report(&world, &delayed(&id(&world, "slow"), &address("slow"))).await?;
    report(&world, &delivered(&id(&world, "slow"), &address("slow"))).await?;
    report(&world, &delivered(&id(&world, "well"), &address("well"))).await?;
    world.resend.clear().await?;
    next_run(&mut world, now + TimeDelta::minutes(20)).await?;
    assert_eq!(recipients(&world), Vec::<String>::new(), "what has just failed would fail again");
    next_run(&mut world, now + TimeDelta::minutes(31)).await?;
    assert_eq!(recipients(&world), [address("quota")]);
    // Nor does it leave a third time.
    report(&world, &failed(&id(&world, "quota"), &address("quota"), "reached_daily_quota")).await?;
    next_run(&mut world, now + TimeDelta::hours(2)).await?;
    assert_eq!(world.resend.accepted_count(), 1);

    world.set("OPERATOR_EMAIL", "operator@example.test");
    world.cron("daily-orchestrator", "").await?;
    let digest = mail_to(&world, "operator@example.test").text.unwrap_or_default().replace('\u{a0}', " ");
    assert!(digest.contains("Non remis : rappels mensuels"), "{digest}");
    for said in ["deux fois de suite", "Corrigée par l’utilisateur"] {
        assert!(digest.contains(said), "{said}: {digest}");
    }

    world.resend.clear().await?;
    next_run(&mut world, now + TimeDelta::hours(23)).await?;
    assert_eq!(recipients(&world), Vec::<String>::new());
    next_run(&mut world, now + TimeDelta::hours(25)).await?;
    assert_eq!(recipients(&world), [address("full")]);
    report(&world, &has_no_room(&world)).await?;
    next_run(&mut world, now + TimeDelta::hours(50)).await?;
    assert_eq!(world.resend.accepted_count(), 1);
    Ok(())
}

/// The mailbox had no room, and the mail arrived all the same before its second attempt: there is none.
#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_meanwhile_needs_no_second_attempt() -> Result<()> {
    let (mut world, now, _) = reminded(&["full"]).await?;
    let (address, id) = ("full@example.test", mail_to(&world, "full@example.test").id);
    report(&world, &bounced(&id, address, Bounce::Transient, "MailboxFull")).await?;
    report(&world, &delivered(&id, address)).await?;
    world.resend.clear().await?;
    next_run(&mut world, now + TimeDelta::hours(25)).await?;
    assert_eq!(recipients(&world), Vec::<String>::new());
    Ok(())
}

/// An out-of-office note comes back as a bounce, before or after the delivery is reported: nobody gets a mail twice for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_automatic_reply_sends_nothing_again() -> Result<()> {
    let (mut world, now, _) = reminded(&["away", "replies", "full", "lost"]).await?;
    let reported = |name: &str, sub_kind: &str| {
        let address = format!("{name}@example.test");
        let id = mail_to(&world, &address).id;
        (delivered(&id, &address), bounced(&id, &address, Bounce::Transient, sub_kind))
    };
    let (arrived, replied) = reported("away", "General");
    let (arrived_later, replied_first) = reported("replies", "General");
    let (taken, forwarded) = reported("full", "MailboxFull");
    let (_, returned) = reported("lost", "General");
    for event in [arrived, replied, replied_first, arrived_later, taken, forwarded, returned] {
        report(&world, &event).await?;
    }
    world.resend.clear().await?;
    next_run(&mut world, now + TimeDelta::hours(1)).await?;
    assert_eq!(recipients(&world), Vec::<String>::new());
    let noted = "select array_agg(d.feedback || ' ' || d.address) from jobs.email_deliveries d where feedback = 'returned'";
    let noted: Vec<String> = world.value(noted).await?;
    assert_eq!(noted, ["returned lost@example.test"], "only what nobody has seen arrive is told");
    Ok(())
}

/// Whoever corrects their address gets what is still true, once; whoever does not, nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrected_address_gets_what_is_still_true_once() -> Result<()> {
    let (mut world, now, users) = reminded(&["moves", "stays", "lifted", "late"]).await?;
    for name in ["moves", "stays", "lifted", "late"] {
        let address = format!("{name}@example.test");
        let id = mail_to(&world, &address).id;
        report(&world, &bounced(&id, &address, Bounce::Permanent, "General")).await?;
    }
    let correct = "update auth.users set email = 'right.' || email where id = $1";
    about(&world, users[0], correct).await?;
    report(&world, &suppression_removed("LIFTED@example.test")).await?;
    world.resend.clear().await?;
    for hours in 1..=3 {
        next_run(&mut world, now + TimeDelta::hours(hours)).await?;
    }
    assert_eq!(recipients(&world), ["lifted@example.test", "right.moves@example.test"]);
    // The month is over: a reminder of it is no news.
    about(&world, users[3], correct).await?;
    next_run(&mut world, now + TimeDelta::days(31)).await?;
    assert_eq!(world.resend.accepted_count(), 2);
    Ok(())
}

/// An alert and a recap are told when they are not refused: the same holds for both.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_recaps_come_back_too() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    let seller = world.stripe_user("acct_gone").await?;
    world.stripe.payment("acct_gone", now - TimeDelta::days(3), 4_200, "eur");
    let rich = signed_up_at(&world, "rich@example.test", "Rich", now - TimeDelta::days(300)).await?;
    turnover(&world, rich, &month.to_string(), "services", "50000", "manual").await?;
    world.cron("monthly-orchestrator", "").await?;
    world.post("check-thresholds", "").await?;
    for address in ["acct_gone@example.test", "rich@example.test"] {
        report(&world, &suppressed(&mail_to(&world, address).id, address)).await?;
    }
    for user in [seller, rich] {
        about(&world, user, "update auth.users set email = 'right.' || email where id = $1").await?;
    }
    world.resend.clear().await?;
    for hours in 1..=2 {
        next_run(&mut world, now + TimeDelta::hours(hours)).await?;
        world.post("check-thresholds", "").await?;
    }
    let mut again: Vec<_> =
        world.resend.accepted().iter().map(|mail| (kind(mail), mail.mail.to.join(","))).collect();
    again.sort();
    assert_eq!(
        again,
        [
            ("monthly_recap", "right.acct_gone@example.test".to_owned()),
            ("threshold_alert", "right.rich@example.test".to_owned()),
        ]
    );
    Ok(())
}

/// A corrected address gets what the year says by then: less, the same, or nothing. What nobody has read was not told.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_says_what_is_true_when_the_address_is_corrected() -> Result<()> {
    let mut world = World::new().await?;
    let (month, now) = last_day(&mut world);
    let mut users = Vec::new();
    for (name, euros) in [("less", "50000"), ("none", "50000"), ("same", "50000"), ("more", "31000")] {
        let since = now - TimeDelta::days(300);
        let user = signed_up_at(&world, &format!("{name}@example.test"), name, since).await?;
        turnover(&world, user, &month.to_string(), "services", euros, "manual").await?;
        users.push(user);
    }
    world.post("check-thresholds", "").await?;
    for name in ["less", "none", "same", "more"] {
        let address = format!("{name}@example.test");
        report(&world, &suppressed(&mail_to(&world, &address).id, &address)).await?;
    }
    let mend = async |world: &World, user: Uuid, euros: &str| {
        let sql = format!("update public.ca_records set amount_eur = {euros} where user_id = $1");
        about(world, user, &sql).await
    };
    mend(&world, users[0], "31000").await?;
    mend(&world, users[1], "10000").await?;
    mend(&world, users[3], "50000").await?;
    for user in &users {
        about(&world, *user, "update auth.users set email = 'right.' || email where id = $1").await?;
    }
    world.resend.clear().await?;
    for hours in 1..=2 {
        next_run(&mut world, now + TimeDelta::hours(hours)).await?;
        world.post("check-thresholds", "").await?;
    }
    assert_eq!(
        recipients(&world),
        ["right.less@example.test", "right.more@example.test", "right.same@example.test"]
    );
    // A higher step is another mail's: the first one is not found again and again.
    assert_eq!(world.value::<i64>("select count(*) from jobs.mails_that_would_arrive($now)").await?, 0);
    let text = |world: &World, to: &str| {
        mail_to(world, to).text.unwrap_or_default().replace(['\u{a0}', '\u{202f}'], " ")
    };
    let less = text(&world, "right.less@example.test");
    assert!(less.contains("31 000") && !less.contains("50 000"), "{less}");
    assert!(text(&world, "right.same@example.test").contains("50 000"));
    // What was never read is told when it is true again.
    world.resend.clear().await?;
    mend(&world, users[1], "50000").await?;
    world.post("check-thresholds", "").await?;
    world.post("check-thresholds", "").await?;
    assert_eq!(recipients(&world), ["right.none@example.test"]);
    let twice: i64 = world
        .value("select count(*) from jobs.threshold_alerts where times > 1 or withdrawn_at is not null")
        .await?;
    assert_eq!(twice, 0);
    Ok(())
}

/// The report comes before our note of the mail's id: it is not lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_before_our_note_counts() -> Result<()> {
    let mut world = World::new().await?;
    let (_, now) = second_of_next_month(&mut world);
    premium(&world, "early").await?;
    let gateway = world.environment.gateway.faults();
    gateway.add(Rule::on("mail_settle", Fault::CutBefore));
    world.call(Method::GET, "send-reminders", "").await?;
    let sent = mail_to(&world, "early@example.test");
    report(&world, &failed(&sent.id, "early@example.test", "reached_daily_quota")).await?;
    world.environment.gateway.faults().clear();
    let back =
        "select count(*) from (select pgmq.set_vt('jobs_reminders', msg_id, 0) from pgmq.q_jobs_reminders) v";
    world.value::<i64>(back).await?;
    // The batch is sent again as sealed, which sends nothing; then what failed leaves once more.
    for minutes in [10, 45] {
        next_run(&mut world, now + TimeDelta::minutes(minutes)).await?;
    }
    let kept: Value = world
        .value("select jsonb_agg(jsonb_build_array(status, feedback) order by delivery_id) from jobs.email_deliveries")
        .await?;
    assert_eq!(kept, json!([["sent", "failed"], ["sent", null]]));
    assert_eq!(world.resend.accepted_count(), 2);
    Ok(())
}

/// The service refuses an address at once; corrected, it gets the mail once, and nothing is left to send again by hand.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_address_is_made_up_for_once() -> Result<()> {
    let mut world = World::new().await?;
    let (_, now) = second_of_next_month(&mut world);
    let user = premium(&world, "wrong").await?;
    world.resend.refuse_address("wrong@example.test");
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!((&answer["sent"], &answer["errors"]), (&json!(0), &json!(1)), "{answer}");
    about(&world, user, "update auth.users set email = 'right@example.test' where id = $1").await?;
    for hours in 1..=2 {
        next_run(&mut world, now + TimeDelta::hours(hours)).await?;
    }
    assert_eq!(recipients(&world), ["right@example.test"]);
    let left: i64 = world
        .value("select count(*) from jobs.open_failures($now::timestamptz - interval '1 day') f where f.lane = 'reminders'")
        .await?;
    assert_eq!(left, 0);
    Ok(())
}
