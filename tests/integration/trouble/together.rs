//! Two sources of one user settle at the same moment, many times, and a process dies among them: no euro is lost.

use std::time::Duration;

use anyhow::Result;
use reqwest::Method;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::Tender,
};

use super::{SYNC, ask_again, eventually, heal, turnover};
use crate::world::{SECRET, World};

#[tokio::test(flavor = "multi_thread")]
async fn stripe_and_shopify_of_one_user_at_once() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_pair").await?;
    let shop = "pair.myshopify.com";
    world.shopify.add_shop(shop, "EUR", "shpat_pair");
    world.connect_shopify(user, shop, "shpat_pair", None).await?;
    // One row of turnover for both.
    world.run("update public.integration_tokens set activity_type = 'Vente de marchandises'").await?;
    let functions = [world.function(SYNC).await?, world.function(SYNC).await?];
    let right = format!("Bearer {SECRET}");
    let (mut cents, mut synced) = (0, 0);
    for round in 1..=12 {
        world.stripe.payment("acct_pair", world.earlier(round), 1_001, "eur");
        world.shopify.tender(shop, Tender::new(world.earlier(round), "20.02", "EUR"));
        if round % 3 == 0 {
            let paid = world.stripe.payment("acct_pair", world.earlier(round), 500, "eur");
            world.stripe.refund("acct_pair", &paid.charge, world.earlier(round), 100);
            cents += 400;
        }
        cents += 3_003;
        // Both lanes of both processes.
        let calls =
            functions.iter().map(|function| ask_again(&world, function, Method::POST, "", Some(&right)));
        for told in futures_util::future::try_join_all(calls).await? {
            assert_eq!((told.status, &told.body["errors"]), (200, &serde_json::json!(0)), "{}", told.text);
            assert!(told.body.get("remaining").is_none(), "{}", told.text);
            synced += told.body["totalSynced"].as_u64().unwrap_or_default();
        }
        let sum = format!("{}.{:02}", cents / 100, cents % 100);
        assert_eq!(turnover(&world, user).await?, Some(sum), "after round {round}");
    }
    assert_eq!(synced, 32, "each movement was new once");
    assert_eq!(world.imported(user).await?.len(), 1, "one row");
    assert_eq!(heal(&world).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_reads() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_killed").await?;
    world.stripe.payment("acct_killed", world.earlier(90), 4_200, "eur");
    world.stripe.faults().add(Rule::on("balance_transactions", Fault::Delay(Duration::from_mins(1))));
    let mut function = world.function(SYNC).await?;
    let request = jobs::http::client()?.post(function.url()).bearer_auth(SECRET);
    let call = tokio::spawn(request.send());
    eventually("the reading", || world.stripe.faults().count("balance_transactions") > 0).await?;
    function.kill().await?;
    assert!(call.await?.is_err(), "no answer came");
    world.stripe.faults().clear();
    // Its item is held for a while yet, and blocks nobody.
    assert_eq!(heal(&world).await?, 1);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    // When the hold is over, the item is worked on like another: nothing is counted twice.
    world.run("update pgmq.q_jobs_stripe set vt = '-infinity'").await?;
    world.run("update jobs.job_items set leased_until = '-infinity' where status = 'queued'").await?;
    assert_eq!(heal(&world).await?, 0);
    assert_eq!(turnover(&world, user).await?.as_deref(), Some("42.00"));
    let open = "select count(*) from jobs.job_items where status = 'queued'";
    assert_eq!(world.value::<i64>(open).await?, 0);
    Ok(())
}
