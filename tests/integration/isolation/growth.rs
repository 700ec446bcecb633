//! How large answers are does not depend on how many users there are, nor on how many of them are above a ceiling.
//!
//! `JOBS_TEST_USERS=20000 cargo test --test integration -- isolation::growth --nocapture` measures it for so many.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    answers::{answer, bounds},
    write,
};
use crate::{
    clock::at,
    world::{SECRET, World},
};

/// Half of them, as many as one page holds, have a typed and an imported row in each of eleven months, far above every
/// ceiling.
const USERS: u32 = 4_000;
/// So many calls of each function are repeated, of the others but those that read books.
const REPEATED: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn answers_do_not_grow_with_the_number_of_users() -> Result<()> {
    let users = match std::env::var("JOBS_TEST_USERS") {
        Ok(number) => number.parse().context("JOBS_TEST_USERS")?,
        Err(_) => USERS,
    };
    let mut world = World::new().await?;
    world.set_now(at(super::ORDINARY_DAY));
    world.set("OPERATOR_EMAIL", "operator@example.test");
    world.resend.drop_contents();
    for sql in [
        format!(
            "insert into auth.users (id, email, email_confirmed_at, created_at) select lpad(n::text, 32, '0')::uuid, \
             'user' || n || '@example.test', '2020-01-01', '2020-01-01' from generate_series(1, {users}) n"
        ),
        format!(
            "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id) \
             select lpad(n::text, 32, '0')::uuid, 2026, m, 'Prestation de services', 9000, s, \
             case s when 'auto_sync' then n || '/' || m end from generate_series(2, {users}, 2) n, generate_series(1, 11) m, \
             unnest(array['manual', 'auto_sync']) s"
        ),
        "analyze".to_owned(),
    ] {
        write(&world, sql).await?;
    }
    let gateway = world.environment.gateway.faults();
    let told = world.post("check-thresholds", "").await?;
    assert_eq!(told["checked"], users, "{told}");
    world.cron("monthly-orchestrator", "").await?;
    let page = world.function("status").await?;
    page.send(jobs::http::client()?.get(page.url()).bearer_auth(SECRET)).await?;

    // Every call may be repeated, and answers what it answered: these are the real ones, asked again.
    let (mut sizes, mut calls) = (BTreeMap::new(), BTreeMap::new());
    for seen in gateway.seen() {
        let Some(function) = seen.target.rsplit('/').next().map(str::to_owned) else { continue };
        let count = calls.entry(function.clone()).or_insert(0);
        *count += 1;
        if *count > REPEATED && function != "threshold_books" {
            continue;
        }
        let arguments: Value = serde_json::from_str(&seen.body).context("arguments")?;
        let bytes = answer(&world, &function, &arguments).await?.len();
        let largest = sizes.entry(function).or_insert(0);
        *largest = bytes.max(*largest);
    }
    let bounds = bounds();
    for (function, bytes) in &sizes {
        println!("{users} users: {function}: {} calls, at most {bytes} bytes", calls[function]);
        assert!(*bytes <= bounds[function], "{function}: {bytes} bytes");
    }
    assert!(sizes.contains_key("threshold_books") && sizes.contains_key("jobs_status"), "{sizes:?}");
    Ok(())
}
