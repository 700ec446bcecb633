//! What a shop's scope does not reach was not read, and another version of its interface is never silent.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;

use super::{books, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "reach.myshopify.com";

/// Without `read_all_orders`, an empty list of days that lie further back than 60 days proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_beyond_the_scope_is_not_complete() -> Result<()> {
    for is_cut in [true, false] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.shopify_user(SHOP).await?;
        for day in ["2026-09-02T09:00:00Z", "2026-09-28T09:00:00Z", "2026-10-05T09:00:00Z"] {
            world.shopify.tender(SHOP, Tender::new(at(day), "10.0", "EUR"));
        }
        if is_cut {
            world.shopify.cut_at_sixty_days(SHOP);
        }
        sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        for month in ["month=2026-08", "month=2026-09", "month=2026-10"] {
            let told = world.post("monthly-sync", month).await?;
            let expected = if is_cut && month != "month=2026-10" { "partial" } else { "complete" };
            assert_eq!(told["results"][0]["month_status"], expected, "{month} {told}");
        }
        let flaws: Value = world
            .value("select jobs.month_flaws(user_id, '2026-08-01', $now) from jobs.integration_state")
            .await?;
        assert_eq!(flaws, if is_cut { json!({"beyond_scope": 1}) } else { json!({}) });
        let september = if is_cut { "10.00" } else { "20.00" };
        assert_eq!(books(&world, user).await?, said(&[("2026-09", september), ("2026-10", "10.00")]));
        assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    }
    Ok(())
}

/// A list that lacks what it has shown before, or is empty ever since, makes no month of 0 €: the doubt is said until
/// the list is whole again.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_lacks_what_it_has_shown_is_a_doubt() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    for day in ["2026-11-04T09:00:00Z", "2026-11-17T09:00:00Z"] {
        world.shopify.tender(SHOP, Tender::new(at(day), "10.0", "EUR"));
    }
    sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}));

    // Without approval the shop answers with an empty list.
    world.shopify.hide_tenders_before(SHOP, Some(at("2027-01-01T00:00:00Z")));
    let part = sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
    assert_eq!((&part["partial"], &part["errors"]), (&json!(1), &json!(0)), "{part}");
    let lacking: Value = world
        .value("select metadata -> 'unlisted_movements' from public.sync_logs where provider = 'shopify' order by synced_at desc limit 1")
        .await?;
    assert_eq!(lacking, json!(1));
    let doubted = "select jobs.doubted_lists()";
    assert_eq!(world.value::<i64>(doubted).await?, 1, "the operator is told");
    let page = crate::status::json(&world.function("status").await?).await?;
    let attention = page["attention"].to_string();
    assert!(attention.contains("liste ne montre plus ce qui y était connu"), "{attention}");
    let doubt = json!({"status": "partial", "flaws": {"doubted_list": 1}});
    assert_eq!(worth(&world, user, 11).await?, doubt);
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "20.00")]), "what was read stays");
    // Windows in which nothing is known are as doubtful, however long it lasts.
    for now in
        ["2026-11-25T06:10:00Z", "2026-12-10T06:10:00Z", "2026-12-29T06:10:00Z", "2027-01-02T06:10:00Z"]
    {
        sync_at(&mut world, now).await?;
    }
    assert_eq!(worth(&world, user, 11).await?, doubt);
    let told = world.post("monthly-sync", "month=2026-12").await?;
    assert_eq!(told["results"][0]["month_status"], "partial", "{told}");

    world.shopify.hide_tenders_before(SHOP, None);
    world.shopify.tender(SHOP, Tender::new(at("2026-12-20T09:00:00Z"), "5.0", "EUR"));
    for month in ["month=2026-11", "month=2026-12"] {
        let told = world.post("monthly-sync", month).await?;
        assert_eq!(told["results"][0]["month_status"], "complete", "{told}");
    }
    world.shopify.tender(SHOP, Tender::new(at("2027-01-02T08:00:00Z"), "5.0", "EUR"));
    sync_at(&mut world, "2027-01-02T12:10:00Z").await?;
    assert_eq!(world.value::<i64>(doubted).await?, 0);
    Ok(())
}

/// What was sold while the list was empty is read by the crons alone, however long that was.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_empty_list_lacked_is_read_once_it_is_whole() -> Result<()> {
    let mut world = world_at("2026-09-29T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-09-28T09:00:00Z"), "10.0", "EUR"));
    sync_at(&mut world, "2026-09-29T12:10:00Z").await?;
    world.shopify.hide_tenders_before(SHOP, Some(at("2027-01-01T00:00:00Z")));
    for day in
        ["2026-09-30T12:10:00Z", "2026-10-12T06:10:00Z", "2026-10-30T06:10:00Z", "2026-11-19T06:10:00Z"]
    {
        sync_at(&mut world, day).await?;
    }
    world.shopify.hide_tenders_before(SHOP, None);
    world.shopify.tender(SHOP, Tender::new(at("2026-10-05T09:00:00Z"), "5.0", "EUR"));
    sync_at(&mut world, "2026-11-20T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-09", "10.00"), ("2026-10", "5.00")]));
    assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    Ok(())
}

/// A version that is retired is not refused: another one answers. The data are read, and the operator is told.
#[tokio::test(flavor = "multi_thread")]
async fn another_version_that_answers_is_told() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(at("2026-11-10T09:00:00Z"), "10.0", "EUR"));
    world.shopify.answer_with_version("2027-01");
    let part = sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
    assert_eq!((&part["synced"], &part["errors"]), (&json!(1), &json!(0)), "{part}");
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]));
    let told: String = world
        .value("select metadata -> 'notes' ->> 'version' from public.sync_logs where provider = 'shopify'")
        .await?;
    assert!(told.contains("2027-01"), "{told}");
    Ok(())
}
