//! The shop or the account at Stripe is in another currency than euros: what one of them has in euros, the other does not
//! lack.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;

use super::{sync_at, world_at};
use crate::clock::at;

const DAY: &str = "2026-11-10T09:00:00Z";
const BACK: &str = "2026-11-12T09:00:00Z";

/// A payment and half of it back, told by a shop in the one currency and by Stripe in the other: nothing is missing of
/// them, and one payment more in a foreign currency is.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_has_in_euros_is_missing_on_none() -> Result<()> {
    for (currency, more) in [("USD", false), ("USD", true), ("EUR", false), ("EUR", true)] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.stripe_user("acct_euros").await?;
        let shop = "euros.myshopify.com";
        world.shopify.add_shop(shop, currency, "shpat_euros");
        world.connect_shopify(user, shop, "shpat_euros", None).await?;
        // The shop's money is the buyer's; the account's is the other one.
        let (sold, half, settled, back) = match currency {
            "USD" => (10_000, "-50.0", (9_200, "eur"), 4_600),
            _ => (9_200, "-46.0", (10_000, "usd"), 5_000),
        };
        let bought = (sold, if currency == "USD" { "usd" } else { "eur" });
        let paid = world.stripe.converted_payment("acct_euros", at(DAY), bought, settled);
        let amount = format!("{}.0", sold / 100);
        let sale =
            world.shopify.tender(shop, Tender::new(at(DAY), &amount, currency).reference(&paid.charge));
        let refund = world.stripe.refund("acct_euros", &paid.charge, at(BACK), back);
        let name = refund.source;
        world.shopify.tender(shop, Tender::new(at(BACK), half, currency).reference(&name).same_order(&sale));
        if more && currency == "USD" {
            world.shopify.tender(shop, Tender::new(at(DAY), "30.0", "USD").method("paypal"));
        } else if more {
            world.stripe.converted_payment("acct_euros", at(DAY), (1_000, "eur"), (1_100, "usd"));
        }
        for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z"] {
            sync_at(&mut world, now).await?;
        }
        let sql = "select jobs.month_flaws($1, '2026-11-01', $2), jobs.uncounted_currencies($1, array['2026-11-01'::date]), \
            (select count(*) from jobs.foreign_months(array[$1])), \
            public.threshold_details(jsonb_build_array(jsonb_build_object(\
                'user_id', $1, 'year', 2026, 'months', '[]'::jsonb))) -> 0 -> 'uncounted'";
        let (flaws, currencies, months, uncounted): (Value, Value, i64, Value) =
            sqlx::query_as(sql).bind(user).bind(world.now()).fetch_one(world.pool()).await?;
        let case = format!("{currency} {more}: {uncounted}");
        assert_eq!(flaws, if more { json!({"currency": 1}) } else { json!({}) }, "{case}");
        assert_eq!(currencies, if more { json!(["USD"]) } else { json!([]) }, "{case}");
        assert_eq!(months, i64::from(more), "{case}");
        let amount = if currency == "USD" { 3_000 } else { 1_100 };
        let one = json!([{"currency": "USD", "amount": amount}]);
        assert_eq!(uncounted, if more { one } else { json!([]) }, "{case}");
    }
    Ok(())
}
