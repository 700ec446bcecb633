//! Random histories of a source, read by random windows, of the past, too, with answers lost and functions killed on the way,
//! and with accounts that replace each other and leave the books: in the end the books equal the source's truth, and a
//! source that does not change is read without a write.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use futures_util::stream::{self, StreamExt};
use reqwest::Method;
use serde_json::Value;
use stand_ins::faults::{Fault, Rule};
use uuid::Uuid;

use super::{
    source::{Dice, Place, SHOP, Source},
    switches::{ACCOUNTS, token},
    world_at,
};
use crate::{
    chaos::killed_at,
    clock::at,
    world::{World, encrypt},
};

const BEGIN: &str = "2026-09-21T00:10:00Z";
const DAYS: u64 = 60;
/// The seed is written into the failure: `HISTORY_SEED` plays one history again, or several, separated by commas.
const SEEDS: [u64; 3] = [1, 20, 300];

#[tokio::test(flavor = "multi_thread")]
async fn the_books_equal_the_source() -> Result<()> {
    let seeds: Vec<u64> = match std::env::var("HISTORY_SEED") {
        Ok(seeds) => seeds.split(',').map(str::parse).collect::<Result<_, _>>()?,
        Err(_) => SEEDS.to_vec(),
    };
    let played =
        seeds.into_iter().map(|seed| async move { play(seed).await.with_context(|| format!("seed {seed}")) });
    // A few at a time, all to their end: the failure names each that went wrong.
    let played: Vec<Result<()>> = stream::iter(played).buffer_unordered(SEEDS.len()).collect().await;
    let wrong: Vec<String> =
        played.into_iter().filter_map(|one| one.err().map(|error| format!("{error:#}"))).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn play(seed: u64) -> Result<()> {
    let mut world = world_at(BEGIN).await?;
    let (mut dice, mut source) = (Dice(seed), Source::new(world.month().to_string()));
    let user = world.stripe_user(ACCOUNTS[0]).await?;
    world.stripe.reconnect(ACCOUNTS[0], &token(ACCOUNTS[0]));
    world.stripe.add_account(ACCOUNTS[1], &token(ACCOUNTS[1]));
    sqlx::query("update public.integration_tokens set access_token = $1 where provider = 'stripe'")
        .bind(encrypt(&token(ACCOUNTS[0])))
        .execute(world.pool())
        .await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_history");
    world.connect_shopify(user, SHOP, "shpat_history", None).await?;
    world.run("update public.integration_tokens set connected_at = $now").await?;
    world.cron("daily-orchestrator", "").await?;

    let (mut day, mut reads) = (0, 0_u32);
    while day < DAYS {
        let morning = at(BEGIN) + TimeDelta::days(i64::try_from(day)?);
        for hour in 1..=3 + dice.below(4) {
            let now = morning + TimeDelta::hours(i64::try_from(hour)?);
            world.set_now(now);
            source.moves(&world, &mut dice, now);
        }
        // 12 or 18 o'clock of this day, after what has happened, or 0 o'clock of the next one.
        world.set_now(morning + TimeDelta::hours(12 + 6 * i64::try_from(dice.below(3))?));
        if dice.below(7) == 0 {
            // All that there is of this account is read before another one takes its place.
            deep(&world).await?;
            source.was_read();
            source.accounts.switch(&world, user).await?;
            // The new one is seen on the day of its connection, whatever becomes of that read.
            loses_an_answer(&world, &mut dice);
            world.post("sync-integrations", &format!("days={}", 1 + dice.below(40))).await?;
            clear(&world);
        }
        if dice.below(6) == 0 {
            let account = usize::try_from(dice.below(2))?;
            source.accounts.turn(&world, user, account).await?;
        }
        let is_lost = if dice.below(5) == 0 {
            is_killed(&world, &mut dice).await?;
            true
        } else {
            let is_lost = loses_an_answer(&world, &mut dice);
            read(&world, &mut dice, source.accounts.since()).await?;
            clear(&world);
            is_lost
        };
        if !is_lost {
            world.cron("daily-orchestrator", "").await?;
        }
        if reads_are_good(&world).await? {
            source.was_read();
        }
        reads += 1;
        day += 1 + dice.below(4);
    }

    world.set_now(at(BEGIN) + TimeDelta::days(i64::try_from(DAYS + 4)?) + TimeDelta::hours(12));
    deep(&world).await?;
    source.accounts.all_in(&world, user).await?;
    ensure!(
        books(&world, user).await? == source.books(),
        "{reads} reads: {:#?} is not {:#?}",
        books(&world, user).await?,
        source.books()
    );

    let before = versions(&world).await?;
    world.set_now(world.now() + TimeDelta::hours(6));
    deep(&world).await?;
    let written: Vec<_> = versions(&world).await?.into_iter().filter(|row| !before.contains(row)).collect();
    ensure!(written.is_empty(), "a source that did not change was written again: {written:#?}");
    Ok(())
}

/// Reads all that there is, to its end.
async fn deep(world: &World) -> Result<()> {
    let told = world.post("sync-integrations", "days=90").await?;
    ensure!(told["errors"] == 0 && told["resultsTotal"] == 2, "{told}");
    world.cron("daily-orchestrator", "").await?;
    Ok(())
}

/// Makes one read of some window by some road; whether it succeeds is not its matter.
///
/// Months from before the present connection (`since`) would enter the books by a request, and are not asked for.
async fn read(world: &World, dice: &mut Dice, since: &str) -> Result<Value> {
    match dice.below(6) {
        0 => world.post("sync-integrations", &format!("days={}", 1 + dice.below(60))).await,
        1 | 2 => {
            let month = world.months_ago(usize::try_from(dice.below(3))?).to_string();
            let month = if month.as_str() < since { world.month().to_string() } else { month };
            world.post("monthly-sync", &format!("month={month}")).await
        }
        3 => {
            let at = world.now() - TimeDelta::days(i64::try_from(1 + dice.below(20))?);
            let at = at.max(crate::clock::at(BEGIN) + TimeDelta::hours(6)).format("%Y-%m-%dT%H:00:00Z");
            world.cron("daily-orchestrator", &format!("at={at}")).await
        }
        _ => world.cron("daily-orchestrator", "").await,
    }
}

/// Kills a function in the middle of a read, before a step is done or after it.
async fn is_killed(world: &World, dice: &mut Dice) -> Result<()> {
    let query = format!("days={}", 1 + dice.below(60));
    let (before, after) = (Fault::Delay(Duration::from_mins(5)), Fault::Late(Duration::from_mins(5)));
    let step = match dice.below(4) {
        0 => ("balance_transactions", before),
        1 => ("graphql", before),
        2 => ("integration_settle", before),
        _ => ("integration_settle", after),
    };
    killed_at(world, (Method::POST, "sync-integrations", &query), step).await
}

/// Sometimes an answer is lost, at the source or at the settlement, or is no answer.
fn loses_an_answer(world: &World, dice: &mut Dice) -> bool {
    let garbled = || Fault::Answer { status: 200, headers: Vec::new(), body: "<html>".to_owned() };
    let settlement = world.environment.gateway.faults();
    let (faults, on, fault) = match dice.below(10) {
        0 | 1 => (settlement, "integration_settle", Fault::CutAfter),
        2 => (settlement, "integration_settle", Fault::CutBefore),
        3 => (world.stripe.faults(), "balance_transactions", Fault::CutAfter),
        4 => (world.stripe.faults(), "balance_transactions", garbled()),
        5 => (world.shopify.faults(), "graphql", garbled()),
        _ => return false,
    };
    faults.add(Rule::on(on, fault).times(1));
    true
}

fn clear(world: &World) {
    for faults in [world.environment.gateway.faults(), world.stripe.faults(), world.shopify.faults()] {
        faults.clear();
    }
}

/// Returns whether the shop and the account were read to their end up to now.
async fn reads_are_good(world: &World) -> Result<bool> {
    world.value("select coalesce(bool_and(last_success_to >= $now), false) from jobs.integration_state").await
}

async fn books(world: &World, user: Uuid) -> Result<BTreeMap<Place, i64>> {
    let mut books = BTreeMap::new();
    for (month, activity, euros) in world.imported(user).await? {
        let activity =
            ["Vente de marchandises", "Prestation de services"].into_iter().find(|a| **a == activity);
        let cents: i64 = euros.replace('.', "").parse()?;
        *books.entry((month, activity.context("another activity")?)).or_default() += cents;
    }
    books.retain(|_, cents| *cents != 0);
    Ok(books)
}

/// Returns the versions of all rows of the books and of the ledger.
async fn versions(world: &World) -> Result<Vec<String>> {
    let sql = "select array_agg(v order by v) from (\
        select format('%s/%s %s %s %s', year, month, amount_eur, metadata, xmin) as v from public.ca_records \
        union all \
        select format('%s %s %s %s %s %s', external_id, source_kind, state, refs, original, xmin) \
        from jobs.integration_transactions) v";
    world.value(sql).await
}
