//! What changes between planning and sending: a mail goes only to those who want it then, where they are then.

use anyhow::Result;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{
    BATCH, add, address, all, assert_each_once, come_back, drain, key, noted, plan, requests, rpc, signed_up,
    states, until, world_of,
};
use crate::{promises::prune, world::World};

/// Each of these happens to the user of this name; and why they get nothing (`None`: they do).
const CHANGES: [(&str, &str, Option<&str>); 9] = [
    ("nothing", "select 1 where $1::uuid is not null", None),
    ("moved", "update auth.users set email = 'elsewhere@example.test' where id = $1", None),
    ("unsubscribed", "select public.mail_unsubscribe($1, 'marketing_day3')", Some("refused_by_user")),
    (
        "bounced",
        "select public.mail_feedback('event', 'email.bounced', null, 'bounced', upper(email), created_at) from auth.users where id = $1",
        Some("suppressed"),
    ),
    (
        "bought",
        "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
        Some("paid_plan"),
    ),
    (
        "told",
        "insert into public.marketing_emails (user_id, email_type) values ($1, 'upgrade_day3')",
        Some("already_sent"),
    ),
    ("unconfirmed", "update auth.users set email_confirmed_at = null where id = $1", Some("unconfirmed")),
    (
        "banned",
        "update auth.users set banned_until = $now + interval '1 day' where id = $1",
        Some("user_banned"),
    ),
    ("deleted", "delete from auth.users where id = $1", None),
];

async fn people(world: &World) -> Result<Vec<Uuid>> {
    let mut users = Vec::new();
    for (name, ..) in CHANGES {
        users.push(signed_up(world, &format!("{name}@example.test"), "Camille Moreau", 4).await?);
    }
    Ok(users)
}

async fn change(world: &World, connection: &mut PgConnection, users: &[Uuid]) -> Result<()> {
    for ((_, sql, _), user) in CHANGES.iter().zip(users) {
        sqlx::query(AssertSqlSafe(world.dated(sql))).bind(user).execute(&mut *connection).await?;
    }
    Ok(())
}

fn check(world: &World, part: &Value) {
    assert_each_once(world, ["nothing@example.test", "elsewhere@example.test"].map(String::from));
    assert_eq!((&part["sent"], &part["errors"]), (&json!(2), &json!(0)), "{part}");
    assert!(part.get("remaining").is_none(), "{part}");
    let reasons: Vec<&str> = CHANGES.iter().filter_map(|(_, _, reason)| *reason).collect();
    for reason in &reasons {
        assert_eq!(part["unsent"][reason], 1, "{reason}: {part}");
    }
    assert_eq!(part["unsent"].as_object().map(serde_json::Map::len), Some(reasons.len()), "{part}");
}

#[tokio::test(flavor = "multi_thread")]
async fn between_planning_and_the_claim() -> Result<()> {
    let world = world_of(0).await?;
    let users = people(&world).await?;
    plan(&world).await?;
    change(&world, &mut *world.pool().acquire().await?, &users).await?;
    check(&world, &drain(&world).await?);
    Ok(())
}

/// The claim has seen everybody as they were; then the seal waits for whoever changes them.
#[tokio::test(flavor = "multi_thread")]
async fn between_the_claim_and_the_seal() -> Result<()> {
    let world = world_of(0).await?;
    let users = people(&world).await?;
    plan(&world).await?;
    let mut held = world.pool().begin().await?;
    sqlx::query("select from auth.users for update").execute(&mut *held).await?;
    let meanwhile = async {
        until("the seal waits", async || {
            let waiting = "select count(*) from pg_stat_activity where datname = current_database() \
                           and wait_event_type = 'Lock' and query like '%mail_seal%'";
            Ok(world.value::<i64>(waiting).await? == 1)
        })
        .await?;
        change(&world, &mut held, &users).await?;
        Ok(held.commit().await?)
    };
    let (part, changed) = tokio::join!(drain(&world), meanwhile);
    changed.and(part).map(|part| check(&world, &part))
}

/// A batch is sealed, and perhaps accepted: it is sent again as it was, whoever has gone since.
#[tokio::test(flavor = "multi_thread")]
async fn between_the_seal_and_another_try() -> Result<()> {
    for lost in [Fault::CutAfter, Fault::CutBefore] {
        let world = world_of(4).await?;
        world.resend.faults().add(Rule::on(BATCH, lost).times(2));
        drain(&world).await?;
        world.run("delete from auth.users where email = 'user-1@example.test'").await?;
        world
            .run("update auth.users set email = 'elsewhere@example.test' where email = 'user-2@example.test'")
            .await?;
        world
            .run("select public.mail_unsubscribe(id, 'marketing_day3') from auth.users where email = 'user-3@example.test'")
            .await?;
        come_back(&world).await?;
        let part = drain(&world).await?;
        assert_eq!((&part["sent"], &part["errors"]), (&json!(3), &json!(0)), "those who are left: {part}");
        assert_each_once(&world, (0..4).map(address));
        assert_eq!((states(&world).await?, noted(&world).await?), (all("sent", 4), 3));
        let requests = requests(&world);
        assert_eq!(requests.len(), 3);
        for request in &requests {
            assert_eq!((key(request), &request.body), (key(&requests[0]), &requests[0].body));
        }
    }
    Ok(())
}

/// A J+3 mail that could not leave by J+6 expires.
#[tokio::test(flavor = "multi_thread")]
async fn a_mail_that_came_too_late_expires() -> Result<()> {
    let world = world_of(3).await?;
    plan(&world).await?;
    world
        .run(
            "update jobs.email_deliveries set expires_at = '2020-01-01' where user_id = \
             (select id from auth.users where email = 'user-1@example.test')",
        )
        .await?;
    let part = drain(&world).await?;
    assert_eq!(
        (&part["sent"], &part["errors"], &part["unsent"]),
        (&json!(2), &json!(0), &json!({"expired": 1})),
        "{part}"
    );
    assert_each_once(&world, [address(0), address(2)]);
    assert_eq!(noted(&world).await?, 2, "it was not sent");
    Ok(())
}

/// Who is gone takes what is personal with them, wherever their mail had come to, and nothing stays open for them.
#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_are_gone_nothing_personal_stays() -> Result<()> {
    let world = world_of(3).await?;
    let run = plan(&world).await?;
    // A batch of one, sealed, with an outcome that nobody knows; then mails that never were claimed.
    let alerted = add(&world, run, "threshold_alert", "alerted@example.test").await?;
    world.resend.faults().add(Rule::on(BATCH, Fault::CutAfter).times(2).body("alerted@"));
    drain(&world).await?;
    add(&world, run, "monthly_recap", "waiting@example.test").await?;
    add(&world, run, "threshold_alert", "refused@example.test").await?;
    world.run("select public.mail_unsubscribe(id, 'threshold_alert') from auth.users where email = 'refused@example.test'").await?;
    let known = || {
        world.value::<i64>(
            "select count(*) from jobs.email_deliveries where address is not null or facts <> '{}'",
        )
    };
    sqlx::query(
        "delete from auth.users where id = $1 or email in ('waiting@example.test', 'user-0@example.test')",
    )
    .bind(alerted)
    .execute(world.pool())
    .await?;
    // The refused alert is settled without an address.
    drain(&world).await?;
    world.run("delete from auth.users where email = 'refused@example.test'").await?;
    rpc(&world, "jobs_prune", &prune(&world)).await?;
    assert_eq!(
        known().await?,
        3,
        "the sealed one is kept while it may be sent again, and the two who are there"
    );
    world.run("update jobs.email_batches set sealed_at = sealed_at - interval '24 hours 1 second'").await?;
    rpc(&world, "jobs_prune", &prune(&world)).await?;
    assert_eq!(known().await?, 2);
    let expected = [("sent", 3), ("skipped", 2), ("unknown", 1)].map(|(state, n)| (state.to_owned(), n));
    assert_eq!(states(&world).await?, expected.into());
    let open: i64 = world.value("select count(*) from jobs.email_batches where state = 'sealed'").await?;
    assert_eq!(open, 0);
    Ok(())
}

/// What is personal of a mail that never was sealed goes after 13 months, too.
#[tokio::test(flavor = "multi_thread")]
async fn after_thirteen_months_nothing_personal_stays() -> Result<()> {
    let world = world_of(1).await?;
    let run = plan(&world).await?;
    add(&world, run, "threshold_alert", "refused@example.test").await?;
    world.run("select public.mail_unsubscribe(id, 'threshold_alert') from auth.users where email = 'refused@example.test'").await?;
    drain(&world).await?;
    world.run("update jobs.email_deliveries set settled_at = settled_at - interval '14 months'").await?;
    rpc(&world, "jobs_prune", &prune(&world)).await?;
    let kept: i64 = world
        .value("select count(*) from jobs.email_deliveries where address is not null or facts <> '{}'")
        .await?;
    assert_eq!(kept, 0);
    Ok(())
}
