//! What Shopify and a shop can do to us.

use anyhow::Result;
use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Dispute, Misbehaviour, PaymentsAccess, Tender, graphql_error, http_error},
};
use uuid::Uuid;

use super::{SYNC, Told, ask, heal, last_error, turnover};
use crate::world::World;

const SHOP: &str = "trouble.myshopify.com";

/// Makes a shop with 42.00 that nobody has read yet.
async fn world_with_shop() -> Result<(World, Uuid)> {
    let world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.tender(SHOP, Tender::new(world.earlier(90), "42.0", "EUR"));
    Ok((world, user))
}

async fn healed(world: &World, user: Uuid) -> Result<()> {
    assert_eq!(heal(world).await?, 1);
    assert_eq!(last_error(world, user).await?, None);
    assert_eq!(turnover(world, user).await?.as_deref(), Some("42.00"));
    Ok(())
}

async fn failed(world: &World, told: &Told, user: Uuid, code: &str, words: &str) -> Result<()> {
    assert_eq!((told.status, &told.body["errors"]), (200, &json!(1)), "{}", told.text);
    let message = told.problem(code).unwrap_or_else(|| panic!("no {code} in {}", told.text));
    assert!(message.contains(words), "{message}");
    assert_eq!(last_error(world, user).await?.as_deref(), Some(message), "the user sees the same");
    Ok(())
}

/// A token sent to any other host is a token given away.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_that_is_no_shops() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    for domain in [
        "evil.example/x.myshopify.com",
        "evil.example#.myshopify.com",
        "evil.example?.myshopify.com",
        "user@evil.example",
        "evil.example",
        "127.0.0.1",
        "x.myshopify.com.evil.example",
        "x.myshopify.com/../evil",
        "https://trouble.myshopify.com",
        "TROUBLE.myshopify.com",
        "a.b.myshopify.com",
        " trouble.myshopify.com",
        "trouble.myshopify.com\n",
        ".myshopify.com",
        "",
        "trouble.myshopify.com.",
        "trouble.myshopify.com:443",
        "trouble.myshopify.com@127.0.0.1",
        "user:pass@trouble.myshopify.com",
        "127.0.0.1:9100#.myshopify.com",
        "169.254.169.254/latest/meta-data?.myshopify.com",
        "[::1]",
        "[::ffff:127.0.0.1].myshopify.com",
        "0x7f000001",
        "2130706433",
        "trоuble.myshopify.com", // a Cyrillic letter
        "trouble。myshopify。com",
        "trouble.myshopify.com%00",
        "%74rouble.myshopify.com",
        "//127.0.0.1/.myshopify.com",
        "..\\..\\.myshopify.com",
        "trouble.myshopify.com\u{200b}",
        "trouble.myshopify.com\tx",
        "file:///etc/passwd",
        "localhost",
    ] {
        sqlx::query("update public.integration_tokens set shop_domain = $1")
            .bind(domain)
            .execute(world.pool())
            .await?;
        let told = ask(&world, Method::POST, SYNC, "").await?;
        failed(&world, &told, user, "bad_shop_domain", "n’est pas une adresse myshopify.com").await?;
    }
    assert!(world.shopify.faults().seen().is_empty(), "no request left");
    sqlx::query("update public.integration_tokens set shop_domain = $1")
        .bind(SHOP)
        .execute(world.pool())
        .await?;
    healed(&world, user).await
}

/// Our user's token does not open somebody else's shop.
#[tokio::test(flavor = "multi_thread")]
async fn another_users_shop() -> Result<()> {
    let (world, owner) = world_with_shop().await?;
    let thief = world.shopify_user("thief.myshopify.com").await?;
    sqlx::query("update public.integration_tokens set shop_domain = $1 where user_id = $2")
        .bind(SHOP)
        .bind(thief)
        .execute(world.pool())
        .await?;
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, thief, "token_rejected", "doit être refaite").await?;
    assert_eq!(turnover(&world, thief).await?, None);
    assert_eq!(turnover(&world, owner).await?.as_deref(), Some("42.00"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_that_is_frozen_closed_or_locked() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    for (status, code, words) in [
        (402, "frozen_shop", "gelée ou fermée"),
        (423, "frozen_shop", "gelée ou fermée"),
        (404, "unknown_account", "ne connaît pas"),
        (401, "token_rejected", "doit être refaite"),
        (403, "missing_scope", "autorisation"),
    ] {
        world.shopify.set_status(SHOP, Some(status));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        failed(&world, &told, user, code, words).await?;
        world.shopify.set_status(SHOP, None);
    }
    world.shopify.faults().add(Rule::on("", graphql_error("SHOP_INACTIVE")));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, user, "frozen_shop", "gelée ou fermée").await?;
    world.shopify.faults().clear();
    healed(&world, user).await
}

#[tokio::test(flavor = "multi_thread")]
async fn throttles_pass_within_the_run() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    let faults = world.shopify.faults();
    let throttled = json!({"errors": [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}],
        "extensions": {"cost": {"requestedQueryCost": 604, "actualQueryCost": null,
            "throttleStatus": {"maximumAvailable": 2000.0, "currentlyAvailable": 500, "restoreRate": 100.0}}}});
    let bare = Fault::Answer { status: 429, headers: Vec::new(), body: String::new() };
    for fault in [http_error(429), Fault::json(200, &throttled)] {
        faults.add(Rule::on("graphql", fault).times(1));
    }
    healed(&world, user).await?;
    for fault in [bare, graphql_error("THROTTLED")] {
        faults.add(Rule::on("graphql", fault).times(1));
    }
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

/// A small plan's bucket is waited for, not fought with.
#[tokio::test(flavor = "multi_thread")]
async fn a_small_bucket_and_a_low_ceiling() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    let sum = world.shopify.tenders(SHOP, world.earlier(600), TimeDelta::seconds(1), 120);
    // Every page above 100 points is refused: halved until it fits.
    world.shopify.set_max_cost(SHOP, 100);
    world.shopify.set_bucket(SHOP, 400.0, 2_000.0);
    assert_eq!(heal(&world).await?, 120);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    // Not even the smallest page.
    world.shopify.set_max_cost(SHOP, 20);
    world.shopify.tender(SHOP, Tender::new(world.earlier(30), "1.0", "EUR"));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, user, "too_expensive", "trop lourde").await?;
    world.shopify.set_max_cost(SHOP, 1_000);
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", (sum + 100) / 100, sum % 100)));
    Ok(())
}

/// A search term that Shopify drops comes back with everything that ever was: nothing of it is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_search_term() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    let rows = json!({
        "data": {"shop": {"currencyCode": "EUR"}, "tenderTransactions": {
            "nodes": [{"id": "gid://shopify/TenderTransaction/1", "processedAt": "2020-01-01T00:00:00Z", "test": false,
                "paymentMethod": "credit_card", "remoteReference": null,
                "amount": {"amount": "999.0", "currencyCode": "EUR"}, "order": null}],
            "pageInfo": {"hasNextPage": false, "endCursor": null}}},
        "extensions": {"search": [{"path": ["tenderTransactions"], "query": "x", "parsed": {},
            "warnings": [{"field": "processed_at", "message": "Invalid search field for this query.", "code": "invalid_field"}]}]},
    });
    world.shopify.faults().add(Rule::on("graphql", Fault::json(200, &rows)).body("tenderTransactions"));
    let told = ask(&world, Method::POST, SYNC, "").await?;
    failed(&world, &told, user, "search_ignored", "correction du service").await?;
    assert_eq!(world.value::<i64>("select count(*) from jobs.integration_transactions").await?, 0);
    world.shopify.faults().clear();
    healed(&world, user).await
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_lead_nowhere_or_break_off() -> Result<()> {
    let world = World::new().await?;
    let user = world.shopify_user(SHOP).await?;
    world.shopify.set_bucket(SHOP, 100_000.0, 10_000.0);
    let sum = world.shopify.tenders(SHOP, world.earlier(600), TimeDelta::seconds(1), 450);
    let nothing = "select (select count(*) from jobs.integration_transactions) + (select count(*) from public.ca_records)";
    for how in [Misbehaviour::LoopingCursor, Misbehaviour::NoCursor] {
        world.shopify.misbehave(SHOP, Some(how));
        let told = ask(&world, Method::POST, SYNC, "").await?;
        failed(&world, &told, user, "endless_pages", "rien n’en a été compté").await?;
        assert_eq!(world.value::<i64>(nothing).await?, 0);
        world.shopify.misbehave(SHOP, None);
    }
    let faults = world.shopify.faults();
    // The second page of sales, and the disputes behind the last one.
    for (body, skip) in [("tenderTransactions", 1), ("disputes", 0)] {
        for (fault, code) in [
            (Fault::Answer { status: 200, headers: Vec::new(), body: "<html>".into() }, "invalid_answer"),
            (graphql_error("UNHEARD_OF"), "bad_request"),
            (http_error(402), "frozen_shop"),
        ] {
            faults.clear();
            faults.add(Rule::on("graphql", fault).body(body).skip(skip));
            let told = ask(&world, Method::POST, SYNC, "").await?;
            failed(&world, &told, user, code, "Shopify").await?;
            assert_eq!(world.value::<i64>(nothing).await?, 0, "{body} {code}: nothing half-settled");
        }
    }
    // For a moment.
    faults.clear();
    for fault in [http_error(503), graphql_error("INTERNAL_SERVER_ERROR"), Fault::CutAfter] {
        faults.add(Rule::on("graphql", fault).body("tenderTransactions").skip(1).times(1));
    }
    // A page that comes twice is counted once.
    world.shopify.misbehave(SHOP, Some(Misbehaviour::DuplicatePage));
    assert_eq!(heal(&world).await?, 450);
    world.shopify.misbehave(SHOP, None);
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?, Some(format!("{}.{:02}", sum / 100, sum % 100)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn disputes_that_may_not_be_read_are_said_once_and_are_no_failure() -> Result<()> {
    let (world, user) = world_with_shop().await?;
    let sale = world.shopify.tender(SHOP, Tender::new(world.earlier(80), "30.0", "EUR"));
    world.shopify.dispute(
        SHOP,
        Dispute::new(world.earlier(70), "30.0", "EUR").about(&sale).finalized("LOST", world.earlier(60)),
    );
    for (access, synced) in [(PaymentsAccess::NoDisputes, 2), (PaymentsAccess::NoAccount, 0)] {
        world.run("delete from public.sync_logs").await?;
        world.shopify.set_payments_access(SHOP, access);
        assert_eq!(heal(&world).await?, synced);
        assert_eq!(turnover(&world, user).await?.as_deref(), Some("72.00"));
        let notes: Value = world
            .value("select jsonb_agg(metadata -> 'notes' order by xmin::text::bigint) from public.sync_logs where provider = 'shopify'")
            .await?;
        assert_eq!(notes, json!([{"disputes": "non lisibles : autorisation absente"}]));
        assert_eq!(last_error(&world, user).await?, None);
    }
    // Granted at last: the lost dispute is money that went back.
    world.shopify.set_payments_access(SHOP, PaymentsAccess::Granted);
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    world.shopify.set_payments_access(SHOP, PaymentsAccess::NotUsed);
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}
