//! 20,000 movements of one user in one month, told by two providers: how large and how fast the page is, and how often it asks
//! the database. Printed (`--nocapture`); the size and the number of requests are judged, the time is not: machines differ.

use std::time::Instant;

use anyhow::Result;

use super::{super::Browser, ask, look};
use crate::{clock::at, mails::given::about, world::World};

const MANY: [&str; 3] = [
    "insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted, last_success_at) \
     select $1, p, case p when 'stripe' then 'acct_many' else 'many.myshopify.com' end, 'Vente de marchandises', '2026-01-01', \
     '{[2026-01-01,)}', $now from unnest(array['stripe', 'shopify']) p",
    "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind) \
     select $1, 'stripe', 'txn_' || n, 'acct_many', 'payment', timestamptz '2026-11-01 08:00+00' + make_interval(mins => n * 3), \
     1000 + n % 500, 'EUR', array['ch_' || n, 'pi_' || n], 'charge' from generate_series(1, 10000) n",
    "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, method) \
     select $1, 'shopify', n::text, 'many.myshopify.com', 'payment', timestamptz '2026-11-01 08:00+00' + make_interval(mins => n * 3), \
     1000 + n % 500, 'EUR', array['ch_' || n, 'gid://shopify/Order/' || n], 'tender', 'shopify_payments' from generate_series(1, 10000) n",
];

#[tokio::test(flavor = "multi_thread")]
async fn measured_with_twenty_thousand_movements() -> Result<()> {
    let world = World::at(at("2026-11-28T12:00:00Z")).await?;
    let user = world.user("many@example.test").await?;
    for sql in MANY {
        about(&world, user, sql).await?;
    }
    world.run("analyze").await?;
    let function = world.function("status").await?;
    let mut browser = Browser::signed_in(&function).await?;
    let gateway = world.environment.gateway.faults();
    for (what, query) in [
        ("closed", String::new()),
        ("opened", "&month=2026-11".to_owned()),
        ("last page", "&month=2026-11&page=200".to_owned()),
        ("uncounted", "&month=2026-11&only=uncounted".to_owned()),
    ] {
        let before = gateway.seen().len();
        let (mut times, mut size) = (Vec::new(), 0);
        for _ in 0..3 {
            let begun = Instant::now();
            let page = browser.get(&format!("?user={user}{query}")).await?;
            times.push(begun.elapsed());
            assert_eq!(page.status, 200, "{}", page.text);
            size = page.text.len();
        }
        times.sort_unstable();
        let requests = (gateway.seen().len() - before) / 3;
        println!("{what}: {size} bytes, median {:?}, {requests} requests to the database", times[1]);
        assert!(size < 160_000 && requests == 3, "{what}: {size} bytes, {requests} requests");
    }
    let told = look(&function, user, "&month=2026-11").await?;
    assert_eq!(told["month"]["total"], 12_495_000, "{}", told["month"]["uncounted"]);
    assert_eq!(told["month"]["uncounted"][0]["count"], 10_000);
    assert!(told["month"]["movements"].as_array().unwrap().len() == 100 && told["pages"] == 200);
    let begun = Instant::now();
    let file = ask(&function, &format!("user={user}&csv=2026"), "*/*").await?;
    println!("ledger: {} bytes in {:?}", file.text.len(), begun.elapsed());
    assert_eq!(file.text.lines().count(), 10_001);
    Ok(())
}
