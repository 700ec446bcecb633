//! A shop that gets another name at Shopify is the same shop: what was sold under the old one stays in its books.

use anyhow::Result;
use serde_json::json;
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{books, said, sync_at, world_at, worth};
use crate::{
    clock::at,
    world::{World, encrypt},
};

const OLD: &str = "e8548f-63.myshopify.com";
const NEW: &str = "maison-lucie.myshopify.com";

/// Connects the shop by its other name, as its user does on the connections page.
async fn connect(world: &World, shop: &str, token: &str, since: &str) -> Result<()> {
    sqlx::query(
        "update public.integration_tokens set shop_domain = $1, access_token = $2, connected_at = $3",
    )
    .bind(shop)
    .bind(encrypt(token))
    .bind(at(since))
    .execute(world.pool())
    .await?;
    Ok(())
}

async fn leave_out(world: &World, user: Uuid, shop: &str, out: bool) -> Result<()> {
    sqlx::query("select jobs.leave_account_out($1, 'shopify', $2, $3, $4)")
        .bind(user)
        .bind(shop)
        .bind(out)
        .bind(world.now())
        .execute(world.pool())
        .await?;
    Ok(())
}

/// Makes a shop with sales in October and November that has had its other name since 10 November, read by it up to the
/// 13th: 30 days back, with its orders.
async fn renamed() -> Result<(World, Uuid)> {
    let mut world = world_at("2026-09-02T12:00:00Z").await?;
    let user = world.user("lucie@example.test").await?;
    world.shopify.add_shop(OLD, "EUR", "shpat_old");
    world.connect_shopify(user, OLD, "shpat_old", None).await?;
    let october = world.shopify.tender(OLD, Tender::new(at("2026-10-20T09:00:00Z"), "100.0", "EUR"));
    world.shopify.tender(OLD, Tender::new(at("2026-11-05T09:00:00Z"), "40.0", "EUR"));
    for now in
        ["2026-09-02T12:10:00Z", "2026-10-01T06:10:00Z", "2026-11-01T06:10:00Z", "2026-11-09T18:10:00Z"]
    {
        sync_at(&mut world, now).await?;
    }
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "100.00"), ("2026-11", "40.00")]));
    world.shopify.rename(OLD, NEW, "shpat_new");
    world.shopify.tender(NEW, Tender::new(at("2026-11-12T09:00:00Z"), "8.0", "EUR"));
    world.shopify.refund(NEW, &october, at("2026-11-12T10:00:00Z"), "5.0");
    connect(&world, NEW, "shpat_new", "2026-11-10T08:00:00Z").await?;
    sync_at(&mut world, "2026-11-13T12:10:00Z").await?;
    Ok((world, user))
}

/// The first read by the new name tells October's sale again: it stays in October, and nothing is missing or there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_shop_keeps_its_books_under_another_name() -> Result<()> {
    let (mut world, user) = renamed().await?;
    let both = said(&[("2026-10", "100.00"), ("2026-11", "43.00")]);
    assert_eq!(books(&world, user).await?, both);
    assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    assert_eq!(
        worth(&world, user, 11).await?,
        json!({"status": "partial"}),
        "between the names nothing was read"
    );
    let reads = "select count(*) from jobs.integration_transactions where updated_at > first_seen_at + interval '1 hour'";
    let changed: i64 = sqlx::query_scalar(reads).fetch_one(world.pool()).await?;
    sync_at(&mut world, "2026-11-14T06:10:00Z").await?;
    assert_eq!(
        sqlx::query_scalar::<_, i64>(reads).fetch_one(world.pool()).await?,
        changed,
        "and so it stays"
    );
    assert_eq!(books(&world, user).await?, both);

    // Connected by the old name again.
    world.shopify.rename(NEW, OLD, "shpat_older");
    world.shopify.tender(OLD, Tender::new(at("2026-11-15T09:00:00Z"), "2.0", "EUR"));
    connect(&world, OLD, "shpat_older", "2026-11-15T08:00:00Z").await?;
    sync_at(&mut world, "2026-11-15T12:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "100.00"), ("2026-11", "45.00")]));
    assert_eq!(worth(&world, user, 10).await?, json!({"status": "complete"}));
    Ok(())
}

/// The old name is taken out of the books, since the shop seems to be there twice: the months that the new one has are told
/// by it, and the others come back with the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_out_of_the_books_keeps_nothing_from_the_other() -> Result<()> {
    let (mut world, user) = renamed().await?;
    leave_out(&world, user, OLD, true).await?;
    sync_at(&mut world, "2026-11-14T06:10:00Z").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "43.00")]));
    leave_out(&world, user, OLD, false).await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-10", "100.00"), ("2026-11", "43.00")]));
    Ok(())
}
