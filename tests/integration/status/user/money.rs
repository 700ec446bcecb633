//! Months and their movements: what counts, what does not and why, what stands beside it, and the ledger as a file.

use anyhow::Result;
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{ask, look};
use crate::{clock::at, mails::given::turnover, world::World};

const SHOP: &str = "ledger.myshopify.com";
const DAY: &str = "2026-11-10T09:00:00Z";

/// A user with a shop and an account: one payment that both report, one refund, a debit on its way, a gift card, dollars.
async fn a_month() -> Result<(World, Uuid)> {
    let world = World::at(at("2026-11-18T12:00:00Z")).await?;
    let user = world.stripe_user("acct_ledger").await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_ledger");
    world.connect_shopify(user, SHOP, "shpat_ledger", None).await?;
    let both = world.stripe.payment("acct_ledger", at(DAY), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(at(DAY), "100.0", "EUR").reference(&both.charge));
    world.stripe.refund("acct_ledger", &both.charge, at("2026-11-12T09:00:00Z"), 2_000);
    world.stripe.debit("acct_ledger", at("2026-11-15T09:00:00Z"), 5_000, at("2026-11-25T09:00:00Z"));
    world.stripe.payment("acct_ledger", at("2026-11-16T09:00:00Z"), 700, "usd");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-17T09:00:00Z"), "30.0", "EUR").method("gift_card"));
    world.shopify.tender(SHOP, Tender::new(at("2026-11-17T10:00:00Z"), "12.5", "EUR").method("cash"));
    world.post("sync-integrations", "").await?;
    Ok((world, user))
}

fn reasons(told: &Value) -> Vec<(String, i64)> {
    let groups = told["month"]["uncounted"].as_array().expect("groups").iter();
    let mut all: Vec<_> = groups
        .map(|group| (group["reason"]["code"].as_str().unwrap().to_owned(), group["count"].as_i64().unwrap()))
        .collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn each_movement_says_whether_it_counts_and_why_not() -> Result<()> {
    let (world, user) = a_month().await?;
    let function = world.function("status").await?;
    let told = look(&function, user, "&month=2026-11").await?;
    let month = &told["month"];
    assert_eq!((&month["total"], &month["counted"]), (&json!(9_250), &json!(3)), "{month:#}");
    assert_eq!(month["recorded"]["imported"], 9_250, "{month:#}");
    let expected = [("currency", 1), ("gift_card", 1), ("pending", 1), ("reported_twice", 1)];
    let pending = world
        .value::<String>("select to_char(paris_month, 'YYYY-MM') from jobs.integration_transactions where excluded = 'pending'")
        .await?;
    assert_eq!(pending, "2026-11", "the debit is due in this month");
    assert_eq!(reasons(&told), expected.map(|(reason, n)| (reason.to_owned(), n)), "{month:#}");
    let movements = month["movements"].as_array().unwrap();
    let twice = movements.iter().find(|one| one["reason"]["code"] == "reported_twice").unwrap();
    let twin = movements.iter().find(|one| one["provider"] == "stripe" && one["amount"] == 10_000).unwrap();
    assert_eq!(twice["twin"], twin["id"], "{twice}");
    assert_eq!(twice["reason"]["said"], "même argent que chez Stripe, où il est compté");
    assert!(movements.iter().all(|one| one["account"] == SHOP || one["account"] == "acct_ledger"));
    // What is shown as counted is what the totals are made of.
    let counted: i64 = world
        .value("select sum(c.amount_minor)::bigint from auth.users u, jobs.countable_movements(u.id, array['2026-11-01'::date], true) c")
        .await?;
    assert_eq!(counted, 9_250);
    // Only those that do not count.
    let told = look(&function, user, "&month=2026-11&only=uncounted").await?;
    assert_eq!((&told["month"]["movementsTotal"], &told["month"]["total"]), (&json!(4), &json!(9_250)));
    assert!(
        told["month"]["movements"].as_array().unwrap().iter().all(|one| one["reason"]["code"] != Value::Null)
    );
    let row = &told["months"]["shown"][0];
    assert_eq!(
        (&row["month"], &row["movements"], &row["uncounted"], &row["computed"], &row["worth"]),
        (&json!("2026-11"), &json!(7), &json!(3), &json!(9_250), &json!("partial")),
        "{row:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_typed_or_edited_stands_beside_it() -> Result<()> {
    let (world, user) = a_month().await?;
    turnover(&world, user, "2026-11", "Prestation de services", "250", "manual").await?;
    world.run("update public.ca_records set amount_eur = 1000 where source = 'auto_sync' and activity_type <> 'Vente de marchandises'").await?;
    world.post("sync-integrations", "").await?;
    let told = look(&world.function("status").await?, user, "&month=2026-11").await?;
    let month = &told["month"];
    assert_eq!(month["recorded"]["typed"], 25_000, "{month:#}");
    let edited =
        month["totals"].as_array().unwrap().iter().find(|total| !total["editedAt"].is_null()).unwrap();
    assert_eq!(
        (&edited["computed"], &edited["recorded"], &edited["isGone"]),
        (&json!(8_000), &json!(100_000), &json!(false))
    );
    assert_eq!(told["months"]["shown"][0]["isEdited"], true, "{told:#}");
    let rows = month["rows"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["isImported"] == false).count(), 1, "{rows:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_a_file_of_what_counts() -> Result<()> {
    let (world, user) = a_month().await?;
    sqlx::query("update jobs.integration_transactions set method = '=cmd|calc;\"x\"' where method = 'cash'")
        .execute(world.pool())
        .await?;
    let function = world.function("status").await?;
    let expected = "\u{feff}Date;Référence;Nature;Mode de règlement;Montant\r\n";
    for (query, name) in [("csv=2026-11", "recettes-2026-11.csv"), ("csv=2026", "recettes-2026.csv")] {
        let answer = ask(&function, &format!("user={user}&{query}"), "*/*").await?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.headers["content-type"], "text/csv; charset=utf-8");
        assert_eq!(
            answer.headers["content-disposition"].to_str()?,
            format!("attachment; filename=\"{name}\"")
        );
        let lines: Vec<&str> =
            answer.text.strip_prefix(expected).expect("a mark and a head").lines().collect();
        assert_eq!(lines.len(), 3, "{}", answer.text);
        assert!(
            lines[0].starts_with("10/11/2026;txn_")
                && lines[0].ends_with(";Encaissement;Carte bancaire (Stripe);100,00"),
            "{}",
            lines[0]
        );
        assert!(lines[1].ends_with(";Remboursement;Stripe;-20,00"), "{}", lines[1]);
        assert!(lines[2].ends_with(";Encaissement;\"'=cmd|calc;\"\"x\"\" (Shopify)\";12,50"), "{}", lines[2]);
    }
    // Nothing counts before the connection, and there is no second part.
    for query in ["csv=2025", "csv=2026&part=2"] {
        assert_eq!(ask(&function, &format!("user={user}&{query}"), "*/*").await?.text, expected, "{query}");
    }
    Ok(())
}
