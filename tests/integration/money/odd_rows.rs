//! Rows that no vendor should send: each is one strange row, whatever is odd in it, and counts once it can be read.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Dispute, Tender},
    stripe::Entry,
};

use super::{books, said, sync_at, world_at, worth};
use crate::clock::at;

/// Says what is odd, and as what the month names it.
type Odd = (Value, &'static str);

fn named(flaw: &str) -> Value {
    json!({"status": "partial", "flaws": {flaw: 1}})
}

/// At Stripe: 42 € and 1 € that are sound, 9 € of which something is odd, on the list's second page; later 1 cent, and the
/// odd row can be read.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_row_at_stripe_costs_nobody_else_anything() -> Result<()> {
    let odd: Vec<Odd> = vec![
        (json!({"amount": "1e3"}), "amount_not_read"),
        (json!({"amount": 1000.0}), "amount_not_read"),
        (json!({"amount": null}), "amount_not_read"),
        // More than the books can hold, and than anybody sells.
        (json!({"amount": 2_000_000_000_000_i64}), "amount_not_read"),
        (json!({"amount": i64::MAX}), "amount_not_read"),
        (json!({"amount": i64::MIN}), "amount_not_read"),
        (json!({"currency": "EURO"}), "amount_not_read"),
        (json!({"currency": 5}), "no_currency"),
        (json!({"created": null}), "no_date"),
        (json!({"created": "2026"}), "no_date"),
        // In the year 2286.
        (json!({"created": 10_000_000_000_i64}), "no_date"),
        (json!({"created": -62_135_596_800_i64}), "no_date"),
        (json!({"reporting_category": null}), "unknown_kind"),
        (json!({"reporting_category": ""}), "unknown_kind"),
        (json!({"reporting_category": "a b\u{0}c"}), "unknown_kind"),
        (json!({"balance_type": "weird"}), "unknown_kind"),
        (json!({"balance_type": 5}), "unknown_kind"),
        (json!({"id": null}), "unknown_kind"),
        (json!({"id": 12}), "unknown_kind"),
        (json!({"id": "txn_\u{0}"}), "unknown_kind"),
    ];
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let mut users = Vec::new();
    for (number, (fields, flaw)) in odd.iter().enumerate() {
        let account = format!("acct_odd{number}");
        let user = world.stripe_user(&account).await?;
        world.stripe.payment(&account, at("2026-11-09T09:00:00Z"), 4_200, "eur");
        let row = Entry::new(at("2026-11-10T09:00:00Z"), 900, "eur").oddities(fields.clone());
        let row = world.stripe.add(&account, row);
        // What is no turnover fills a page.
        for _ in 0..100 {
            world.stripe.fee(&account, at("2026-11-10T10:00:00Z"), 10, "eur");
        }
        world.stripe.payment(&account, at("2026-11-11T09:00:00Z"), 100, "eur");
        users.push((user, account, row, format!("{fields}"), named(flaw)));
    }
    for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z"] {
        let part = sync_at(&mut world, now).await?;
        assert_eq!(part["errors"], 0, "{part}");
        for (user, _, _, fields, flawed) in &users {
            assert_eq!(books(&world, *user).await?, said(&[("2026-11", "43.00")]), "{fields}");
            assert_eq!(worth(&world, *user, 11).await?, *flawed, "{fields}");
        }
    }
    for (_, account, row, ..) in &users {
        world.stripe.payment(account, at("2026-11-18T19:00:00Z"), 1, "eur");
        world.stripe.show(account, &row.transaction, json!({}));
    }
    sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
    for (user, _, _, fields, _) in &users {
        assert_eq!(books(&world, *user).await?, said(&[("2026-11", "52.01")]), "{fields}");
        assert_eq!(worth(&world, *user, 11).await?, json!({"status": "provisional"}), "{fields}");
    }
    Ok(())
}

/// The same in a shop, for tenders and for disputes.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_row_in_a_shop_costs_nobody_else_anything() -> Result<()> {
    let money = |amount: Value, code: &str| json!({"amount": {"amount": amount, "currencyCode": code}});
    let tenders: Vec<Odd> = vec![
        (money(json!("1e3"), "EUR"), "amount_not_read"),
        (money(json!("NaN"), "EUR"), "amount_not_read"),
        (money(json!(" 12.0 "), "EUR"), "amount_not_read"),
        (money(json!(12.5), "EUR"), "amount_not_read"),
        (money(json!("20000000000.00"), "EUR"), "amount_not_read"),
        (money(json!("9.0"), "EURO"), "amount_not_read"),
        (json!({"amount": {"amount": "9.0", "currencyCode": null}}), "no_currency"),
        (json!({"processedAt": null}), "no_date"),
        (json!({"processedAt": "2026-11-10T09:00:00"}), "no_date"),
        (json!({"processedAt": "2126-11-10T09:00:00Z"}), "no_date"),
        (json!({"processedAt": "0001-01-01T00:00:00Z"}), "no_date"),
        (json!({"test": "true"}), "unknown_kind"),
        (json!({"id": null}), "unknown_kind"),
        (json!({"id": "123"}), "unknown_kind"),
        (json!({"id": "gid://shopify/TenderTransaction/1\u{0}"}), "unknown_kind"),
    ];
    let disputes: Vec<Odd> = vec![
        (json!({"amount": null}), "no_currency"),
        (json!({"status": null}), "unknown_kind"),
        (json!({"initiatedAt": null}), "no_date"),
        (json!({"finalizedOn": "soon", "status": "LOST"}), "no_date"),
        (json!({"finalizedOn": "2126-11-12T09:00:00Z", "status": "LOST"}), "no_date"),
        (money(json!("20000000000.00"), "EUR"), "amount_not_read"),
        (json!({"id": null}), "unknown_kind"),
    ];
    let mut world = world_at("2026-11-18T12:00:00Z").await?;
    let mut users = Vec::new();
    let rows = tenders.iter().map(|odd| (odd, true)).chain(disputes.iter().map(|odd| (odd, false)));
    for (number, ((fields, flaw), is_tender)) in rows.enumerate() {
        let shop = format!("odd{number}.myshopify.com");
        let user = world.shopify_user(&shop).await?;
        let day = at("2026-11-10T09:00:00Z");
        world.shopify.tender(&shop, Tender::new(day, "42.0", "EUR"));
        let row = if is_tender {
            world.shopify.tender(&shop, Tender::new(day, "9.0", "EUR")).id
        } else {
            world.shopify.dispute(&shop, Dispute::new(day, "9.0", "EUR"))
        };
        world.shopify.show(&shop, &row, fields.clone());
        world.shopify.tender(&shop, Tender::new(day, "1.0", "EUR"));
        let later = if is_tender { "52.01" } else { "43.01" };
        users.push((user, shop, row, format!("{fields} {is_tender}"), named(flaw), later));
    }
    for now in ["2026-11-18T12:10:00Z", "2026-11-18T18:10:00Z"] {
        let part = sync_at(&mut world, now).await?;
        assert_eq!(part["errors"], 0, "{part}");
        for (user, _, _, fields, flawed, _) in &users {
            assert_eq!(books(&world, *user).await?, said(&[("2026-11", "43.00")]), "{fields}");
            assert_eq!(worth(&world, *user, 11).await?, *flawed, "{fields}");
        }
    }
    for (_, shop, row, ..) in &users {
        world.shopify.tender(shop, Tender::new(at("2026-11-18T19:00:00Z"), "0.01", "EUR"));
        world.shopify.show(shop, row, json!({}));
    }
    sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
    for (user, _, _, fields, _, later) in &users {
        assert_eq!(books(&world, *user).await?, said(&[("2026-11", later)]), "{fields}");
        assert_eq!(worth(&world, *user, 11).await?, json!({"status": "provisional"}), "{fields}");
    }
    Ok(())
}

/// A page has two rows under one id, which say different things: nobody knows which is true, and what was known before
/// stays.
#[tokio::test(flavor = "multi_thread")]
async fn two_rows_under_one_id_are_one_strange_row() -> Result<()> {
    for is_known in [false, true] {
        let mut world = world_at("2026-11-18T12:00:00Z").await?;
        let user = world.stripe_user("acct_two").await?;
        if is_known {
            world.stripe.payment("acct_two", at("2026-11-10T09:00:00Z"), 4_200, "eur");
        }
        let row = |id: &str, amount: i64| {
            json!({
                "id": id, "object": "balance_transaction", "amount": amount, "currency": "eur", "type": "charge",
                "created": at("2026-11-10T09:00:00Z").timestamp(), "reporting_category": "charge", "source": null,
            })
        };
        let list = json!({
            "object": "list", "url": "/v1/balance_transactions", "has_more": false,
            "data": [row("txn_a", 900), row("txn_b", 100), row("txn_a", 800)],
        });
        let garbled = Rule::on("/v1/balance_transactions", Fault::json(200, &list));
        if is_known {
            let once =
                json!({"object": "list", "has_more": false, "data": [row("txn_b", 100), row("txn_a", 900)]});
            world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &once)).times(1));
            sync_at(&mut world, "2026-11-18T12:10:00Z").await?;
        }
        world.stripe.faults().add(garbled.times(1));
        sync_at(&mut world, "2026-11-18T18:10:00Z").await?;
        let (euros, flawed) = if is_known {
            ("10.00", json!({"status": "provisional"}))
        } else {
            ("1.00", named("unknown_kind"))
        };
        assert_eq!(books(&world, user).await?, said(&[("2026-11", euros)]), "{is_known}");
        assert_eq!(worth(&world, user, 11).await?, flawed, "{is_known}");
        let sound =
            json!({"object": "list", "has_more": false, "data": [row("txn_b", 100), row("txn_a", 900)]});
        world.stripe.faults().add(Rule::on("/v1/balance_transactions", Fault::json(200, &sound)).times(1));
        sync_at(&mut world, "2026-11-19T06:10:00Z").await?;
        assert_eq!(books(&world, user).await?, said(&[("2026-11", "10.00")]), "{is_known}");
        assert_eq!(worth(&world, user, 11).await?, json!({"status": "provisional"}), "{is_known}");
    }
    Ok(())
}
