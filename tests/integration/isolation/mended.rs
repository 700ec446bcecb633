//! Who is left out is named, and served as soon as the books can be read again.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{ORDINARY_DAY, busy_user, call, write};
use crate::world::World;

/// Returns whom the database names, and for what.
async fn named(world: &World) -> Result<Vec<(Uuid, String)>> {
    let sql = "select user_id, flaw from jobs.unreadable_input order by flaw";
    Ok(sqlx::query_as(sql).fetch_all(world.pool()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_left_out_is_named_and_served_once_mended() -> Result<()> {
    let mut world = World::new().await?;
    let amount = busy_user(&world, "amount", true).await?;
    let date = busy_user(&world, "date", true).await?;
    busy_user(&world, "sound", true).await?;
    let sound_amount = "update public.ca_records set amount_eur = 20000 where user_id = ";
    write(
        &world,
        format!("update public.ca_records set amount_eur = 'NaN' where month = 1 and user_id = '{amount}'"),
    )
    .await?;
    write(
        &world,
        format!("update public.user_onboarding_data set company_creation_date = 'infinity' where user_id = '{date}'"),
    )
    .await?;
    let left_out = [(amount, "unreadable_amount".to_owned()), (date, "unreadable_creation_date".to_owned())];

    // A look names nobody for good.
    world.set_now(crate::clock::at(ORDINARY_DAY));
    let dry = world.post("check-thresholds", "dry_run=true").await?;
    assert_eq!(
        dry["dryRun"]["left_out"],
        json!({"unreadable_amount": 1, "unreadable_creation_date": 1}),
        "{dry}"
    );
    assert_eq!(named(&world).await?, []);

    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], &told["errors"]), (&json!(1), &json!(0)), "{told}");
    let problem = &told["problems"][0];
    assert_eq!((&problem["code"], &problem["warning"]), (&json!("unreadable_books"), &json!(true)), "{told}");
    assert!(problem["message"].as_str().unwrap_or_default().contains("2 utilisateurs"), "{told}");
    assert_eq!(named(&world).await?, left_out);

    write(&world, format!("{sound_amount}'{amount}'")).await?;
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!(told["sent"], 1, "{told}");
    assert_eq!(named(&world).await?, left_out[1..]);

    write(
        &world,
        format!(
            "update public.user_onboarding_data set company_creation_date = null where user_id = '{date}'"
        ),
    )
    .await?;
    let told = call(&mut world, ORDINARY_DAY, Method::POST, "check-thresholds").await?;
    assert_eq!((&told["sent"], told.get("problems")), (&json!(1), None), "{told}");
    assert_eq!(named(&world).await?, []);
    Ok(())
}

/// An account with metadata or a name that nobody can read costs its owner nothing, and is named: in the run, on the
/// status page, in the digest, until it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_cannot_be_read_is_named_and_served() -> Result<()> {
    let mut world = World::new().await?;
    world.set("OPERATOR_EMAIL", "operator@example.test");
    let mut users = Vec::new();
    for (name, sql) in [
        ("list", "update auth.users set raw_user_meta_data = '[\"pro\"]' where id = "),
        ("plan", "update auth.users set raw_user_meta_data = '{\"plan\": {\"a\": 1}}' where id = "),
        (
            "huge",
            "update auth.users set raw_user_meta_data = jsonb_build_object('x', repeat('y', 17000000)) where id = ",
        ),
        ("name", "update public.user_profiles set full_name = E'\\x01Camille' where id = "),
    ] {
        let user = busy_user(&world, name, false).await?;
        write(&world, format!("{sql}'{user}'")).await?;
        users.push(user);
    }
    busy_user(&world, "sound", false).await?;
    let flaws = ["unreadable_metadata", "unreadable_metadata", "unreadable_metadata", "unreadable_name"];

    world.set_now(crate::clock::at(ORDINARY_DAY));
    let dry = world.cron("daily-tasks", "dry_run=true").await?;
    assert_eq!(dry["results"]["upgradeEmails"]["dryRun"]["unreadable"], 4, "{dry}");
    assert_eq!(named(&world).await?, []);

    let told = call(&mut world, ORDINARY_DAY, Method::GET, "daily-tasks").await?;
    let told = &told["results"]["upgradeEmails"];
    assert_eq!((&told["sent"], &told["errors"]), (&json!(5), &json!(0)), "everybody is served: {told}");
    let problem = &told["problems"][0];
    assert_eq!(
        (&problem["code"], &problem["warning"]),
        (&json!("unreadable_account"), &json!(true)),
        "{told}"
    );
    assert!(problem["message"].as_str().unwrap_or_default().contains("4 comptes"), "{told}");
    let found = named(&world).await?;
    assert_eq!(found.iter().map(|(_, flaw)| flaw.as_str()).collect::<Vec<_>>(), flaws);

    let page = world.function("status").await?;
    let request = jobs::http::client()?.get(page.url()).bearer_auth(crate::world::SECRET);
    let page = page.send(request.header("accept", "text/html")).await?.text;
    assert!(
        page.contains("Saisies illisibles") && page.contains("Métadonnées du compte illisibles"),
        "{page}"
    );
    assert!(
        page.contains("4\u{a0}utilisateurs aux saisies illisibles") && page.contains("Nom illisible"),
        "{page}"
    );
    world.cron("daily-orchestrator", "").await?;
    let mails = world.resend.accepted();
    let digest = mails
        .iter()
        .filter_map(|mail| mail.mail.text.clone())
        .find(|text| text.contains("Saisies illisibles"));
    assert!(digest.is_some(), "the operator is told");

    // Mended: the next plan that looks at them takes the note away.
    write(
        &world,
        "update auth.users set raw_user_meta_data = '{\"plan\": \"free\", \"is_pro\": false}'".to_owned(),
    )
    .await?;
    let told = call(&mut world, ORDINARY_DAY, Method::GET, "daily-tasks").await?;
    assert_eq!(told["results"]["upgradeEmails"]["skipped"], true, "{told}");
    let next = "2026-11-25T10:00:00Z";
    call(&mut world, next, Method::GET, "daily-tasks").await?;
    assert_eq!(named(&world).await?, [(users[3], "unreadable_name".to_owned())]);
    Ok(())
}
