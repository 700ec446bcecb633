//! Gift cards and credits whose tender does not say what it is: the vendor's list of a tender's ways to pay ends with `other` and
//! `unknown` (<https://shopify-dev.shopifycloud.com/docs/api/admin-rest/latest/resources/tendertransaction>). Whether there is
//! a tender at all is open; the order's own transaction names it.

use anyhow::Result;
use serde_json::json;
use stand_ins::shopify::Tender;

use super::{books, excluded, said, sync_at, world_at, worth};
use crate::clock::at;

const SHOP: &str = "cartes.myshopify.com";

/// A card of 50 is sold and redeemed; a return is credited; an order is paid half with a card and half otherwise, in equal parts.
#[tokio::test(flavor = "multi_thread")]
async fn money_counts_when_the_card_is_sold() -> Result<()> {
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.shopify_user(SHOP).await?;
    let tender =
        |day: &str, amount: &str| Tender::new(at(&format!("2026-11-{day}T09:00:00Z")), amount, "EUR");
    world.shopify.tender(SHOP, tender("06", "50.0"));
    let redeemed = world.shopify.tender(SHOP, tender("10", "50.0").method("other").gateway("gift_card"));
    let sold = world.shopify.tender(SHOP, tender("11", "30.0"));
    let credited = tender("12", "-30.0").method("unknown").gateway("shopify_store_credit").same_order(&sold);
    let credited = world.shopify.tender(SHOP, credited);
    let half = world.shopify.tender(SHOP, tender("13", "20.0").method("other").gateway("gift_card"));
    let other =
        world.shopify.tender(SHOP, tender("13", "20.0").method("other").gateway("sumup").same_order(&half));
    let last = world.shopify.tender(SHOP, tender("14", "7.0").method("other").gateway("manual"));
    for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z", "2026-11-19T06:10:00Z"] {
        sync_at(&mut world, now).await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "107.00")]), "{now}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}), "{now}");
        assert_eq!(excluded(&world, &redeemed.id).await?.as_deref(), Some("gift_card"));
        assert_eq!(excluded(&world, &credited.id).await?.as_deref(), Some("store_credit"));
        let halves = [excluded(&world, &half.id).await?, excluded(&world, &other.id).await?];
        assert_eq!(halves.iter().flatten().count(), 1, "{halves:?}");
        assert_eq!(excluded(&world, &last.id).await?, None);
    }
    // An order that is deleted takes nothing back that was known.
    world.shopify.delete_order(SHOP, &redeemed);
    world.set_now(at("2026-12-02T10:00:00Z"));
    world.post("monthly-sync", "month=2026-11").await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "107.00")]));
    Ok(())
}
