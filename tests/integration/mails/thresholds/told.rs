//! What a correction does to what was told: withdrawn, told once more, and never a third time.

use anyhow::Result;
use jobs::schedule::Task;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    SALES, SERVICES, about, books, held, mails_to, message, recorded, says, says_not, text, turnover, world,
};
use crate::{
    promises::rpc,
    world::{SECRET, World},
};

/// (what stands, what is withdrawn), in rows.
async fn rows(world: &World, user: Uuid) -> Result<(i64, i64)> {
    let sql = "select count(*) filter (where withdrawn_at is null), count(*) filter (where withdrawn_at is not null) \
               from jobs.threshold_alerts where user_id = $1";
    Ok(sqlx::query_as(sql).bind(user).fetch_one(world.pool()).await?)
}

/// Sets what a user has typed for March, and checks.
async fn typed(world: &World, user: Uuid, euros: &str) -> Result<u64> {
    let sql = format!("update public.ca_records set amount_eur = {euros} where user_id = $1");
    about(world, user, &sql).await?;
    let answer = world.post("check-thresholds", &format!("user_id={user}")).await?;
    assert_eq!(answer["errors"], 0, "{answer}");
    Ok(answer["sent"].as_u64().unwrap_or(99))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_typing_mistake_does_not_silence_the_year() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "typo", &[(SALES, "800000")]).await?;
    assert_eq!(typed(&world, user, "800000").await?, 1);
    assert_eq!(rows(&world, user).await?, (7, 0));
    assert_eq!(typed(&world, user, "8000").await?, 0);
    assert_eq!(
        rows(&world, user).await?,
        (0, 7),
        "nobody is above a ceiling, and what was told is taken back"
    );
    assert_eq!(typed(&world, user, "86000").await?, 1, "it is true now");
    assert_eq!(typed(&world, user, "86000").await?, 0);
    assert_eq!(rows(&world, user).await?, (3, 4));
    let mails = mails_to(&world, "typo@example.test");
    says(&text(&mails[1]), &["86 000,00 €", "Vous êtes redevable de la TVA à partir du 1er janvier 2027"]);
    // A second mistake is withdrawn, too, and what was told twice is not told again.
    assert_eq!(typed(&world, user, "8000").await?, 0);
    assert_eq!(typed(&world, user, "86000").await?, 0);
    // Everything is deleted: a user without books.
    assert_eq!(typed(&world, user, "95000").await?, 1, "the increased threshold, for the second time");
    about(&world, user, "delete from public.ca_records where user_id = $1").await?;
    assert_eq!(world.post("check-thresholds", "").await?["sent"], 0);
    assert_eq!(rows(&world, user).await?.0, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn swinging_around_a_ceiling_sends_once() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "swing", &[(SERVICES, "37500.01")]).await?;
    let mut sent = 0;
    for euros in ["37500.01", "37499.99", "37500.01", "34000", "41000", "33750", "37500.01"] {
        sent += typed(&world, user, euros).await?;
    }
    assert_eq!((sent, rows(&world, user).await?), (1, (3, 0)));
    Ok(())
}

/// Whoever refuses alerts is not told; what they were told before is withdrawn all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_hold_is_withdrawn_for_whoever_refuses_alerts() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "refuses", &[(SERVICES, "38000")]).await?;
    assert_eq!(typed(&world, user, "38000").await?, 1);
    let refuse = "insert into public.email_preferences (user_id, threshold_alert_email) values ($1, false)";
    about(&world, user, refuse).await?;
    assert_eq!(typed(&world, user, "100").await?, 0);
    assert_eq!(typed(&world, user, "38000").await?, 0);
    about(
        &world,
        user,
        "update public.email_preferences set threshold_alert_email = true where user_id = $1",
    )
    .await?;
    assert_eq!(typed(&world, user, "38000").await?, 1);
    Ok(())
}

/// To be verified, then certain: two tellings. What turns out to be the same money is withdrawn.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_to_be_verified_is_told_again_once_it_is_certain() -> Result<()> {
    let world = world().await?;
    let user = recorded(&world, "doubt", &[("2026-03", SERVICES, "25000")]).await?;
    turnover(&world, user, "2026-03", SERVICES, "15000", "auto_sync").await?;
    let check = async || -> Result<u64> {
        let answer = world.post("check-thresholds", &format!("user_id={user}")).await?;
        Ok(answer["sent"].as_u64().unwrap_or(99))
    };
    assert_eq!((check().await?, check().await?), (1, 0));
    let confirm = "insert into jobs.book_confirmations (user_id, month, verdict, confirmed_at) values ($1, null, 'distinct', $now)";
    about(&world, user, confirm).await?;
    assert_eq!((check().await?, check().await?), (1, 0));
    let mails: Vec<String> = mails_to(&world, "doubt@example.test").iter().map(text).collect();
    says(&mails[0], &["À vérifier", "Si ce sont les mêmes, le seuil n’est pas dépassé"]);
    says(&mails[1], &["Dépassé", "Vous êtes redevable de la TVA à partir du 1er janvier 2027"]);
    about(&world, user, "update jobs.book_confirmations set verdict = 'same' where user_id = $1").await?;
    assert_eq!(check().await?, 0);
    assert_eq!(rows(&world, user).await?.0, 0, "25 000 € reach nothing");
    Ok(())
}

/// Two checks at the same moment find the same; whoever plans second tells nothing and takes nothing back.
#[tokio::test(flavor = "multi_thread")]
async fn two_checks_at_once_tell_once() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "once", &[(SERVICES, "38000")]).await?;
    assert_eq!(typed(&world, user, "38000").await?, 1);
    assert_eq!(typed(&world, user, "100").await?, 0);
    about(&world, user, "update public.ca_records set amount_eur = 38000 where user_id = $1").await?;
    let steps: Vec<Value> = [80, 90, 100]
        .iter()
        .map(|step| json!({"threshold": "vat_base_services", "step": step, "told_as": "certain"}))
        .collect();
    let alert = json!({
        "user_id": user, "year": 2026, "used_up": steps, "withdrawn": [],
        "facts": {"year": 2026, "unknown_activities": [], "crossings": [
            {"threshold": "vat_base_services", "step": 100, "turnover": 3_800_000, "ceiling": 3_750_000,
             "full_year_ceiling": null, "doubt": null}]},
    });
    let runs = [Uuid::new_v4(), Uuid::new_v4()];
    let mut plans = Vec::new();
    for run in runs {
        let note = json!({"p_run_id": run, "p_alerts": [alert], "p_now": world.now()});
        rpc(&world, "jobs_note_alerts", &note).await?;
        plans.push(json!({
            "p_run_id": run, "p_append": false, "p_task": Task::CheckThresholds.as_str(), "p_slot": null,
            "p_trigger": "manual", "p_route": "/test", "p_as_of": world.now(), "p_parameters": {}, "p_due": [],
            "p_outline": {}, "p_now": world.now(),
        }));
    }
    let (one, other) =
        tokio::join!(rpc(&world, "jobs_plan_alerts", &plans[0]), rpc(&world, "jobs_plan_alerts", &plans[1]));
    let mut items = [one?["plan"]["items"].clone(), other?["plan"]["items"].clone()];
    items.sort_by_key(ToString::to_string);
    assert_eq!(items, [json!(0), json!(1)]);
    assert_eq!(rows(&world, user).await?, (3, 0));

    // A withdrawal of the first telling that was found before the second one takes nothing back.
    let mut stale = alert.clone();
    stale["used_up"] = json!([]);
    stale["facts"] = json!({"crossings": []});
    stale["withdrawn"] = steps
        .iter()
        .map(|step| {
            let mut step = step.clone();
            step["times"] = json!(1);
            step
        })
        .collect();
    let run = Uuid::new_v4();
    let note = json!({"p_run_id": run, "p_alerts": [stale], "p_now": world.now()});
    rpc(&world, "jobs_note_alerts", &note).await?;
    let mut plan = plans[0].clone();
    plan["p_run_id"] = json!(run);
    rpc(&world, "jobs_plan_alerts", &plan).await?;
    assert_eq!(rows(&world, user).await?, (3, 0));
    assert_eq!(held(&world, user, 2026).await?.1, 3);
    Ok(())
}

/// A check that is killed between finding and planning has told nothing; the next one does.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_and_not_planned_is_found_again() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "killed", &[(SERVICES, "38000")]).await?;
    let run = Uuid::new_v4();
    let note = json!({"p_run_id": run, "p_now": world.now(), "p_alerts": [{
        "user_id": user, "year": 2026, "facts": {"crossings": []}, "withdrawn": [],
        "used_up": [{"threshold": "vat_base_services", "step": 100, "told_as": "certain"}]}]});
    rpc(&world, "jobs_note_alerts", &note).await?;
    let told = world.post("check-thresholds", "").await?;
    assert_eq!((&told["message"], &told["sent"]), (&message(1), &json!(1)), "{told}");
    assert_eq!(
        world
            .function("check-thresholds")
            .await?
            .call(reqwest::Method::POST, "", Some(&format!("Bearer {SECRET}")))
            .await?
            .json()["sent"],
        0
    );
    Ok(())
}

/// Rows as they stood before tellings had a kind: they are used up, whatever was told.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_version_told_stays_told() -> Result<()> {
    let world = world().await?;
    let user = books(&world, "older", &[(SERVICES, "38000")]).await?;
    let sql = "insert into jobs.threshold_alerts (user_id, year, threshold, step, run_id) \
               select $1, 2026, 'vat_base_services', s, gen_random_uuid() from unnest(array[80, 90, 100]) s";
    about(&world, user, sql).await?;
    assert_eq!(typed(&world, user, "38000").await?, 0);
    assert_eq!(typed(&world, user, "41250.01").await?, 1, "the increased threshold was not told");
    let mails = mails_to(&world, "older@example.test");
    says(&text(&mails[0]), &["Seuil majoré de TVA"]);
    says_not(&text(&mails[0]), &["Seuil de franchise de TVA –"]);
    Ok(())
}
