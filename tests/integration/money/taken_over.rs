//! A row that the user took over stands for the money that it was made of, and for no other: whatever becomes of the
//! activities, no money counts twice and none is kept out.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use sqlx::AssertSqlSafe;
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::{accounts::connect, books, said, source::Dice, world_at};
use crate::{clock::at, world::World};

const SHOP: &str = "taken.myshopify.com";
const ACCOUNT: &str = "acct_taken";
const SERVICES: &str = "Prestation de services";
const GOODS: &str = "Vente de marchandises";
/// The seed is written into the failure.
const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Makes a user with 100 € of Stripe, and 500 € of a shop that is connected or not.
async fn seller(has_shop: bool) -> Result<(World, Uuid)> {
    let world = world_at("2026-11-18T12:00:00Z").await?;
    let user = world.stripe_user(ACCOUNT).await?;
    world.stripe.payment(ACCOUNT, at("2026-11-10T09:00:00Z"), 10_000, "eur");
    world.shopify.add_shop(SHOP, "EUR", "shpat_taken");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-11T09:00:00Z"), "500.0", "EUR").method("cash"));
    if has_shop {
        world.connect_shopify(user, SHOP, "shpat_taken", None).await?;
    }
    read(&world).await?;
    Ok((world, user))
}

async fn read(world: &World) -> Result<()> {
    let told = world.post("sync-integrations", "").await?;
    ensure!(told["errors"] == 0, "{told}");
    Ok(())
}

async fn is_said(world: &World, provider: &str, activity: &str) -> Result<()> {
    let sql = "update public.integration_tokens set activity_type = $2 where provider = $1";
    sqlx::query(sql).bind(provider).bind(activity).execute(world.pool()).await?;
    Ok(())
}

/// Returns the sum of the imported rows, in cents.
async fn cents(world: &World, user: Uuid) -> Result<i64> {
    let sql = "select (coalesce(sum(amount_eur), 0) * 100)::bigint from public.ca_records where user_id = $1 and source = 'auto_sync'";
    Ok(sqlx::query_scalar(sql).bind(user).fetch_one(world.pool()).await?)
}

/// The user corrects the activity of Stripe's row, or its amount, or deletes it, and then types goods, which moves Stripe's
/// money to goods: the shop's row does not take it, too.
#[tokio::test(flavor = "multi_thread")]
async fn money_that_a_users_row_stands_for_is_in_no_other_row() -> Result<()> {
    for (edit, expected, is_left_alone) in [
        (
            "update public.ca_records set activity_type = 'Vente de marchandises' where amount_eur = 100",
            60_000,
            false,
        ),
        ("update public.ca_records set amount_eur = 120 where amount_eur = 100", 62_000, true),
        ("delete from public.ca_records where amount_eur = 100", 50_000, true),
    ] {
        let (world, user) = seller(true).await?;
        assert_eq!(cents(&world, user).await?, 60_000);
        world.run(edit).await?;
        sqlx::query("insert into public.ca_records (user_id, year, month, activity_type, amount_eur) values ($1, 2026, 10, $2, 1)")
            .bind(user)
            .bind(GOODS)
            .execute(world.pool())
            .await?;
        for activity in [None, Some(SERVICES), Some(GOODS)] {
            if let Some(activity) = activity {
                is_said(&world, "stripe", activity).await?;
            }
            let told = world.post("sync-integrations", "").await?;
            assert_eq!(cents(&world, user).await?, expected, "{edit} {activity:?}");
            assert_eq!(told["results"][0]["left_alone"].is_array(), is_left_alone, "{edit}: {told}");
        }
        let computed: String =
            world.value("select sum(computed_eur)::text from jobs.auto_sync_totals").await?;
        assert_eq!(computed, "600.00", "what the movements say, once");
    }
    Ok(())
}

/// Stripe's row is the user's and its money is of another activity by now: a shop that is connected later has its own row.
#[tokio::test(flavor = "multi_thread")]
async fn other_money_is_not_kept_out_for_a_users_row() -> Result<()> {
    let (world, user) = seller(false).await?;
    world.run("update public.ca_records set amount_eur = 120").await?;
    is_said(&world, "stripe", GOODS).await?;
    read(&world).await?;
    assert_eq!(cents(&world, user).await?, 12_000);
    world.connect_shopify(user, SHOP, "shpat_taken", None).await?;
    for stripe in [GOODS, SERVICES] {
        is_said(&world, "stripe", stripe).await?;
        read(&world).await?;
        assert_eq!(cents(&world, user).await?, 62_000, "{stripe}");
    }
    Ok(())
}

/// What an account has sold is told apart from what the one in its place sells.
#[tokio::test(flavor = "multi_thread")]
async fn a_users_row_stands_for_its_account_alone() -> Result<()> {
    let (world, user) = seller(false).await?;
    world.run("update public.ca_records set amount_eur = 120").await?;
    read(&world).await?;
    connect(&world, user, "acct_inplace", "2026-11-17T08:00:00Z").await?;
    is_said(&world, "stripe", GOODS).await?;
    world.stripe.payment("acct_inplace", at("2026-11-17T09:00:00Z"), 3_000, "eur");
    read(&world).await?;
    world.run("update jobs.former_accounts set activity = 'Vente de marchandises'").await?;
    read(&world).await?;
    assert_eq!(books(&world, user).await?, said(&[("2026-11", "120.00"), ("2026-11", "30.00")]));
    Ok(())
}

/// A total that was kept out once comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_never_had_a_row_gets_one() -> Result<()> {
    let (mut world, user) = seller(true).await?;
    world
        .run(
            "with r as (delete from public.ca_records where amount_eur = 500) \
             update jobs.auto_sync_totals set record_id = null, written_eur = null, locked_at = $now where computed_eur = 500",
        )
        .await?;
    world.set_now(at("2027-01-18T12:00:00Z"));
    read(&world).await?;
    assert_eq!(cents(&world, user).await?, 60_000, "no window reaches November any more");
    Ok(())
}

/// Holds what the user sees, as the test believes it.
#[derive(Default)]
struct Model {
    /// Holds cents by source.
    money: BTreeMap<&'static str, i64>,
    activities: BTreeMap<&'static str, &'static str>,
    /// Holds rows of the user's: by the activity that they had, of what they were made and what they say.
    theirs: BTreeMap<&'static str, (BTreeSet<&'static str>, i64)>,
}

impl Model {
    /// Returns our rows: by activity, of what they are made.
    fn ours(&self) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let mut ours: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (source, activity) in &self.activities {
            let is_taken = self.theirs.values().any(|(made_of, _)| made_of.contains(source));
            if self.money.contains_key(source) && !is_taken && !self.theirs.contains_key(activity) {
                ours.entry(*activity).or_default().insert(*source);
            }
        }
        ours
    }

    fn total(&self) -> i64 {
        let ours = self.ours();
        let ours: i64 = ours.values().flatten().map(|source| self.money[source]).sum();
        ours + self.theirs.values().map(|(_, recorded)| recorded).sum::<i64>()
    }
}

/// Random lives: money comes, activities change, the user edits and deletes rows.
#[tokio::test(flavor = "multi_thread")]
async fn no_money_counts_twice_and_none_is_kept_out() -> Result<()> {
    for seed in SEEDS {
        live(seed).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

async fn live(seed: u64) -> Result<()> {
    let mut dice = Dice(seed);
    let (world, user) = seller(true).await?;
    let mut model = Model::default();
    for (provider, cents, activity) in [("stripe", 10_000, SERVICES), ("shopify", 50_000, GOODS)] {
        model.money.insert(provider, cents);
        model.activities.insert(provider, activity);
    }
    for step in 0..14_i64 {
        let provider = ["stripe", "shopify"][usize::try_from(dice.below(2))?];
        let cents_in = 100 * (1 + i64::try_from(dice.below(90))?);
        let hour = at("2026-11-12T00:00:00Z") + chrono::TimeDelta::hours(step);
        let mut steps = format!("{step}: ");
        match dice.below(6) {
            0 | 1 => {
                if provider == "stripe" {
                    world.stripe.payment(ACCOUNT, hour, cents_in, "eur");
                } else {
                    let amount = format!("{}.0", cents_in / 100);
                    world.shopify.tender(SHOP, Tender::new(hour, &amount, "EUR").method("cash"));
                }
                *model.money.entry(provider).or_default() += cents_in;
                steps += "money";
            }
            2 | 3 => {
                let activity = [SERVICES, GOODS, "Activité libérale"][usize::try_from(dice.below(3))?];
                is_said(&world, provider, activity).await?;
                model.activities.insert(provider, activity);
                steps += activity;
            }
            // Edits one of ours.
            kind => {
                let ours = model.ours();
                let Some((activity, made_of)) = ours.first_key_value() else { continue };
                let (edit, recorded) = if kind == 4 {
                    ("update public.ca_records set amount_eur = 7", 700)
                } else {
                    ("delete from public.ca_records", 0)
                };
                // At most two rows of the user's, so that something is left to play with.
                if model.theirs.len() < 2 {
                    let key = format!("{edit} where external_id = '2026-11/{activity}'");
                    sqlx::query(AssertSqlSafe(key)).execute(world.pool()).await?;
                    model.theirs.insert(*activity, (made_of.clone(), recorded));
                }
                steps += edit;
            }
        }
        read(&world).await?;
        ensure!(
            cents(&world, user).await? == model.total(),
            "{steps}: {} is not {}",
            cents(&world, user).await?,
            model.total()
        );
        let differing: String = world
            .value("select coalesce(sum(l.computed_eur), 0) - (select sum(amount_minor) / 100.0 from jobs.integration_transactions) || '' from jobs.auto_sync_totals l")
            .await?;
        ensure!(differing.parse::<f64>()? == 0.0, "{steps}: totals differ from the ledger by {differing}");
    }
    Ok(())
}
