//! Who is left out is named, and served as soon as the books can be read again.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::{ORDINARY_DAY, busy_user, call, write};
use crate::world::World;

/// Whom the database names, and for what.
async fn named(world: &World) -> Result<Vec<(Uuid, String)>> {
    let sql = "select user_id, flaw from jobs.unreadable_books order by flaw";
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
