//! An activity that was only assumed follows what its user types: months, estimates, and what was told.

use anyhow::Result;
use serde_json::json;
use uuid::Uuid;

use super::{SALES, SERVICES, about, at, held, mail_to, mails_to, says, says_not, text, turnover, world};
use crate::world::World;

/// Returns (month, activity, euros, contributions) of the imported rows.
async fn rows(world: &World, user: Uuid) -> Result<Vec<(i32, String, String, String)>> {
    let sql = "select month, activity_type, amount_eur::text, computed_contrib_eur::text from public.ca_records \
               where user_id = $1 and source = 'auto_sync' order by month, activity_type";
    Ok(sqlx::query_as(sql).bind(user).fetch_all(world.pool()).await?)
}

fn row(month: i32, activity: &str, euros: &str, contributions: &str) -> (i32, String, String, String) {
    (month, activity.to_owned(), euros.to_owned(), contributions.to_owned())
}

/// Connects a seller in September, who has typed nothing: 10,000 € then, `november` cents in November.
async fn seller(world: &mut World, account: &str, november: i64) -> Result<Uuid> {
    world.set_now(at("2026-09-20T10:00:00Z"));
    let user = world.stripe_user(account).await?;
    world.stripe.payment(account, at("2026-09-10T10:00:00Z"), 1_000_000, "eur");
    world.post("sync-integrations", &format!("user_id={user}")).await?;
    world.set_now(at("2026-11-24T10:00:00Z"));
    world.stripe.payment(account, at("2026-11-10T10:00:00Z"), november, "eur");
    world.post("sync-integrations", &format!("user_id={user}")).await?;
    Ok(user)
}

/// A seller on Stripe is taken for services, told so, types sales: everything follows, also months out of the window.
#[tokio::test(flavor = "multi_thread")]
async fn an_assumed_activity_follows_what_is_typed() -> Result<()> {
    let mut world = world().await?;
    let user = seller(&mut world, "acct_seller", 2_500_000).await?;
    assert_eq!(
        rows(&world, user).await?,
        [row(9, SERVICES, "10000.00", "2120.00"), row(11, SERVICES, "25000.00", "5300.00")]
    );
    let mail = text(&mail_to(&world, "acct_seller@example.test"));
    says(&mail, &["93,3", "90 % atteints", "Faute d’indication, vos encaissements Stripe"]);
    assert_eq!(held(&world, user, 2026).await?.1, 2);

    turnover(&world, user, "2026-10", SALES, "50", "manual").await?;
    let goods = [row(9, SALES, "10000.00", "1230.00"), row(11, SALES, "25000.00", "3075.00")];
    for _ in 0..2 {
        let answer = world.post("sync-integrations", "days=1").await?;
        assert_eq!((&answer["errors"], &answer["alerts"]), (&json!(0), &json!(null)), "{answer}");
        assert_eq!(rows(&world, user).await?, goods);
    }
    let standing: i64 =
        world.value("select count(*) from jobs.threshold_alerts where withdrawn_at is null").await?;
    assert_eq!(standing, 0, "35 050 € of goods reach nothing");

    // Goods reach their own limits, and nothing is assumed any more.
    world.stripe.payment("acct_seller", at("2026-11-20T10:00:00Z"), 3_500_000, "eur");
    world.post("sync-integrations", "").await?;
    let mails = mails_to(&world, "acct_seller@example.test");
    let last = text(mails.last().expect("an alert"));
    assert_eq!(mails.len(), 2);
    says(&last, &["70 050,00 €", "80 % atteints", "85 000 €"]);
    says_not(&last, &["Faute d’indication", "ervices"]);
    Ok(())
}

/// Months that the user has edited stay; what somebody has said stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_edited_and_what_was_said_stays() -> Result<()> {
    let mut world = world().await?;
    let edited = seller(&mut world, "acct_edited", 100_000).await?;
    let edit = "update public.ca_records set amount_eur = 9000 where user_id = $1 and month = 9";
    about(&world, edited, edit).await?;
    let said = seller(&mut world, "acct_stated", 100_000).await?;
    let state =
        "update public.integration_tokens set activity_type = 'Prestation de services' where user_id = $1";
    about(&world, said, state).await?;
    for user in [edited, said] {
        turnover(&world, user, "2026-10", SALES, "50", "manual").await?;
    }
    world.post("sync-integrations", "").await?;
    let activities = async |user| -> Result<Vec<(i32, String, String)>> {
        Ok(rows(&world, user)
            .await?
            .into_iter()
            .map(|(month, activity, euros, _)| (month, activity, euros))
            .collect())
    };
    let row = |month, activity: &str, euros: &str| (month, activity.to_owned(), euros.to_owned());
    assert_eq!(activities(edited).await?, [row(9, SERVICES, "9000.00"), row(11, SALES, "1000.00")]);
    assert_eq!(activities(said).await?, [row(9, SERVICES, "10000.00"), row(11, SERVICES, "1000.00")]);

    // Said once, it stays said, also where the row that said it is replaced by one that says nothing.
    about(&world, said, "update public.integration_tokens set activity_type = null where user_id = $1")
        .await?;
    world.post("sync-integrations", "").await?;
    assert_eq!(activities(said).await?, [row(9, SERVICES, "10000.00"), row(11, SERVICES, "1000.00")]);
    Ok(())
}

/// Where both were typed, the one typed most often wins; of equals the one that stands. From then on it stays.
#[tokio::test(flavor = "multi_thread")]
async fn where_both_are_typed() -> Result<()> {
    let mut world = world().await?;
    let (more, equal) =
        (seller(&mut world, "acct_more", 100).await?, seller(&mut world, "acct_equal", 100).await?);
    for (user, month, activity) in [
        (more, "2026-08", SALES),
        (more, "2026-10", SALES),
        (more, "2026-10", SERVICES),
        (equal, "2026-10", SALES),
        (equal, "2026-10", SERVICES),
    ] {
        turnover(&world, user, month, activity, "50", "manual").await?;
    }
    let activity = async |user| -> Result<String> { Ok(rows(&world, user).await?[1].1.clone()) };
    world.post("sync-integrations", "").await?;
    assert_eq!((activity(more).await?.as_str(), activity(equal).await?.as_str()), (SALES, SERVICES));
    for user in [more, equal] {
        for month in ["2026-05", "2026-06", "2026-07"] {
            let other = if user == more { SERVICES } else { SALES };
            turnover(&world, user, month, other, "50", "manual").await?;
        }
    }
    world.post("sync-integrations", "").await?;
    assert_eq!((activity(more).await?.as_str(), activity(equal).await?.as_str()), (SALES, SERVICES));
    Ok(())
}

/// Whoever is not synced any more is corrected by the check itself, also in the months of an account that was replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_corrects_what_no_sync_reads() -> Result<()> {
    let mut world = world().await?;
    let user = seller(&mut world, "acct_gone", 2_500_000).await?;
    world.stripe.add_account("acct_next", "sk_next");
    about(&world, user, "delete from public.integration_tokens where user_id = $1").await?;
    world.connect_stripe(user, "acct_next", "sk_next").await?;
    world.stripe.payment("acct_next", at("2026-11-22T10:00:00Z"), 100_000, "eur");
    world.post("sync-integrations", "").await?;
    about(&world, user, "update public.integration_tokens set is_active = false where user_id = $1").await?;
    turnover(&world, user, "2026-10", SALES, "50", "manual").await?;
    world.post("check-thresholds", "dry_run=true").await?;
    assert_eq!(rows(&world, user).await?[0].1, SERVICES, "a dry run writes nothing");
    for _ in 0..2 {
        let answer = world.post("check-thresholds", "").await?;
        assert_eq!(answer["sent"], 0, "{answer}");
        let expected = [row(9, SALES, "10000.00", "1230.00"), row(11, SALES, "26000.00", "3198.00")];
        assert_eq!(rows(&world, user).await?, expected);
    }
    let standing: i64 =
        world.value("select count(*) from jobs.threshold_alerts where withdrawn_at is null").await?;
    assert_eq!(standing, 0);
    Ok(())
}

/// What the integration says goes before what is typed, also where it is not synced any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_integrations_own_word_goes_first() -> Result<()> {
    let mut world = world().await?;
    let user = seller(&mut world, "acct_word", 100_000).await?;
    let say = "update public.integration_tokens set activity_type = 'Vente de marchandises', is_active = false \
               where user_id = $1";
    about(&world, user, say).await?;
    turnover(&world, user, "2026-10", "Activité libérale", "50", "manual").await?;
    for _ in 0..2 {
        world.post("check-thresholds", "").await?;
        let goods = [row(9, SALES, "10000.00", "1230.00"), row(11, SALES, "1000.00", "123.00")];
        assert_eq!(rows(&world, user).await?, goods);
    }
    Ok(())
}
