//! What an operator may have done for one user: looked at first, done once, logged, by a form of their own.

use anyhow::Result;
use serde_json::json;

use super::{
    super::{Browser, eventually, post},
    look,
};
use crate::{clock::at, mails, world::World};

/// An id that was mistyped is no success, confirmed or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_done_for_nobody_is_refused() -> Result<()> {
    let world = World::at(at("2026-11-18T12:00:00Z")).await?;
    let function = world.function("status").await?;
    for action in [("read-again", "days"), ("lift-suppression", "of"), ("resend-mails", "of")] {
        let nobody = uuid::Uuid::new_v4().to_string();
        let asked = [("action", action.0), ("user", &nobody), (action.1, "3")];
        for confirmed in [asked.to_vec(), [asked.as_slice(), &[("confirm", "true")]].concat()] {
            let answer = post(&function, &confirmed).await?;
            assert_eq!(answer.status, 404, "{confirmed:?}: {}", answer.text);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_leaves_the_books_and_comes_back() -> Result<()> {
    let world = World::at(at("2026-11-18T12:00:00Z")).await?;
    let user = world.stripe_user("acct_wrong").await?;
    world.stripe.payment("acct_wrong", at("2026-11-10T09:00:00Z"), 4_200, "eur");
    world.post("sync-integrations", "").await?;
    let function = world.function("status").await?;
    let id = user.to_string();
    let out = [("action", "leave-out"), ("user", &id), ("provider", "stripe"), ("account", "acct_wrong")];
    let seen = post(&function, &out).await?;
    assert_eq!(
        (seen.status.as_u16(), &seen.json()["would"]["counted"]),
        (200, &json!(4_200)),
        "{}",
        seen.text
    );
    assert_eq!(world.imported(user).await?.len(), 1, "a look changes nothing");
    let logged = "select count(*) from public.sync_logs where metadata ->> 'action' is not null";
    assert_eq!(world.value::<i64>(logged).await?, 0);

    // A browser sees it, and confirms it with the form that it is given.
    let mut browser = Browser::signed_in(&function).await?;
    let page = browser.own_form(&out).await?;
    assert_eq!(page.status, 200, "{}", page.text);
    assert!(
        page.text.contains("Retirer ce compte des livres") && page.text.contains("42,00"),
        "{}",
        page.text
    );
    for (name, value) in out {
        assert!(page.text.contains(&format!("name=\"{name}\" value=\"{value}\"")), "{name}: {}", page.text);
    }
    let confirmed = [out.as_slice(), &[("confirm", "true")]].concat();
    let refused = browser.form(&confirmed).await?;
    assert_eq!(refused.status, 403, "without the session's token");
    for _ in 0..2 {
        let answer = browser.own_form(&confirmed).await?;
        let place = format!("/api/status?user={user}&fait=retire");
        assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str()?), (303, place.as_str()));
    }
    assert_eq!(world.imported(user).await?.len(), 0);
    assert_eq!(world.value::<i64>(logged).await?, 2);
    let told = look(&function, user, "&month=2026-11").await?;
    assert_eq!(told["month"]["uncounted"][0]["reason"]["code"], "left_out", "{told:#}");
    assert_eq!(told["accounts"][0]["leftOut"], true);

    let back = [
        ("action", "take-back"),
        ("user", &id),
        ("provider", "stripe"),
        ("account", "acct_wrong"),
        ("confirm", "true"),
    ];
    assert_eq!(post(&function, &back).await?.status, 202);
    assert_eq!(world.imported(user).await?.len(), 1);
    let other = [
        ("action", "leave-out"),
        ("user", &id),
        ("provider", "stripe"),
        ("account", "acct_of_another"),
        ("confirm", "true"),
    ];
    assert_eq!(post(&function, &other).await?.status, 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_read_again_by_days_or_by_month() -> Result<()> {
    let world = World::at(at("2026-11-18T12:00:00Z")).await?;
    let user = world.stripe_user("acct_again").await?;
    world.stripe_user("acct_other").await?;
    world.stripe.payment("acct_again", at("2026-11-10T09:00:00Z"), 4_200, "eur");
    let function = world.function("status").await?;
    let id = user.to_string();
    let days = [("action", "read-again"), ("user", id.as_str()), ("days", "40")];
    let seen = post(&function, &days).await?;
    assert_eq!((seen.status.as_u16(), &seen.json()["would"]["items"]), (200, &json!(1)), "{}", seen.text);
    assert_eq!(world.value::<i64>("select count(*) from jobs.job_runs").await?, 0);
    assert_eq!(post(&function, &[days.as_slice(), &[("confirm", "true")]].concat()).await?.status, 202);
    eventually(
        &world,
        "select count(*) = 1 from public.sync_logs where metadata ->> 'action' = 'read-again'",
    )
    .await?;
    assert_eq!(world.imported(user).await?.len(), 1);
    let items: i64 = world.value("select count(*) from jobs.job_items").await?;
    assert_eq!(items, 1, "nobody else was read");

    let month = [("action", "read-again"), ("user", id.as_str()), ("month", "2026-10")];
    let seen = post(&function, &month).await?;
    assert!(seen.text.contains("même s’il précède la connexion"), "{}", seen.text);
    assert_eq!(post(&function, &[month.as_slice(), &[("confirm", "true")]].concat()).await?.status, 202);
    eventually(
        &world,
        "select count(*) = 2 from public.sync_logs where metadata ->> 'action' = 'read-again'",
    )
    .await?;
    let told = look(&function, user, "").await?;
    assert_eq!(
        (&told["reads"][0]["month"], &told["reads"][0]["status"]),
        (&json!("2026-10"), &json!("done")),
        "{told:#}"
    );
    let later = [("action", "read-again"), ("user", id.as_str()), ("month", "2026-12")];
    assert_eq!(post(&function, &later).await?.status, 400);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_and_is_still_true_is_sent_once() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    let user = mails::signed_up(&world, "wrong@example.test", "Camille", 4).await?;
    let other = mails::signed_up(&world, "other@example.test", "Sasha", 4).await?;
    for address in ["wrong@example.test", "other@example.test"] {
        world.resend.refuse_address(address);
    }
    world.cron("daily-tasks", "").await?;
    world
        .run("update auth.users set email = 'right@example.test' where email = 'wrong@example.test'")
        .await?;
    let function = world.function("status").await?;
    let id = user.to_string();
    let resend = [("action", "resend-mails"), ("user", id.as_str())];
    let seen = post(&function, &resend).await?.json();
    assert_eq!(
        (&seen["would"]["mails"][0]["reason"], &seen["would"]["queued"]),
        (&json!(null), &json!(0)),
        "{seen:#}"
    );
    let confirmed = [resend.as_slice(), &[("confirm", "true")]].concat();
    let gateway = world.environment.gateway.faults();
    // The answer is lost on its way back: it is asked again, and queues nothing more.
    gateway
        .add(stand_ins::faults::Rule::on("jobs_resend_mails", stand_ins::faults::Fault::CutAfter).times(1));
    assert_eq!(post(&function, &confirmed).await?.json()["queued"], 1);
    eventually(&world, "select count(*) = 1 from jobs.email_deliveries where status = 'sent'").await?;
    assert_eq!(mails::received(&world).len(), 1, "not the other's");
    assert_eq!(post(&function, &confirmed).await?.json()["queued"], 0);

    // What is not wanted any more does not leave.
    mails::given::about(
        &world,
        other,
        "insert into public.email_preferences (user_id, marketing_email) values ($1, false)",
    )
    .await?;
    let seen = post(&function, &[("action", "resend-mails"), ("user", &other.to_string())]).await?.json();
    assert_eq!(seen["would"]["mails"][0]["reason"]["code"], "refused_by_user", "{seen:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suppression_is_lifted_here_and_the_rest_is_said() -> Result<()> {
    let world = World::new().await?;
    let user = world.user("camille@example.test").await?;
    world.run("insert into jobs.email_suppressions (address_hash, reason) select jobs.address_hash('Camille@Example.test'), 'complained'").await?;
    let function = world.function("status").await?;
    let told = look(&function, user, "").await?;
    assert_eq!(
        (&told["person"]["unreachable"]["code"], &told["person"]["suppressedFor"]["code"]),
        (&json!("suppressed"), &json!("complained"))
    );
    let mut browser = Browser::signed_in(&function).await?;
    let id = user.to_string();
    let lift = [("action", "lift-suppression"), ("user", id.as_str())];
    let page = browser.own_form(&lift).await?.text;
    assert!(page.contains("Resend") && page.contains("plainte"), "{page}");
    let confirmed = [lift.as_slice(), &[("confirm", "true")]].concat();
    let answer = browser.own_form(&confirmed).await?;
    assert_eq!(answer.status, 303, "{}", answer.text);
    assert_eq!(look(&function, user, "").await?["person"]["unreachable"], json!(null));
    let again = browser.own_form(&lift).await?.text;
    assert!(again.contains("Rien ne retient") && !again.contains("name=\"confirm\""), "{again}");
    Ok(())
}
