//! What imported rows carry beside their amount: by the rates of their month, kept up, and the user's once edited.

use anyhow::Result;
use chrono::NaiveDate;
use jobs::urssaf::{IncomeTax, RowIncomeTax, TaxProfile, row_amounts, row_rates};
use serde_json::Value;
use uuid::Uuid;

use crate::world::World;

const ACTIVITIES: [&str; 3] = ["Vente de marchandises", "Prestation de services", "Activité libérale"];

/// So many users are tried, with one row a month of each activity.
const USERS: usize = 60;

/// Holds contributions, net, mode and income tax of a row.
type Carried = (Option<String>, Option<String>, Option<String>, Option<String>);

/// Holds activity, month and cents of a row, then contributions, net, mode and income tax in cents.
type Estimated = (String, String, i64, Option<i64>, Option<i64>, Option<String>, Option<i64>);

async fn carried(world: &World, user: Uuid) -> Result<Vec<Carried>> {
    let sql = "select computed_contrib_eur::text, computed_net_eur::text, ir_mode, ir_amount_eur::text \
               from public.ca_records where user_id = $1 order by year, month, activity_type";
    Ok(sqlx::query_as(sql).bind(user).fetch_all(world.pool()).await?)
}

fn row(contributions: &str, net: &str, mode: Option<&str>, tax: Option<&str>) -> Carried {
    (Some(contributions.to_owned()), Some(net.to_owned()), mode.map(Into::into), tax.map(Into::into))
}

async fn profile(world: &World, user: Uuid, profile: TaxProfile) -> Result<()> {
    let mode = profile.income_tax.map(|mode| match mode {
        IncomeTax::Flat => "versement_liberatoire",
        IncomeTax::Scale => "bareme",
        IncomeTax::NotSubject => "non_soumis",
    });
    sqlx::query(
        "insert into public.user_onboarding_data (user_id, ir_mode, has_acre, company_creation_date) \
         values ($1, $2, $3, $4) on conflict (user_id) do update set ir_mode = excluded.ir_mode, \
         has_acre = excluded.has_acre, company_creation_date = excluded.company_creation_date",
    )
    .bind(user)
    .bind(mode)
    .bind(profile.has_acre)
    .bind(profile.created)
    .execute(world.pool())
    .await?;
    Ok(())
}

/// Generates numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    /// Draws a number from `from` to `to`, both included.
    fn between(&mut self, from: i64, to: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let span = to.abs_diff(from) + 1;
        from.saturating_add_unsigned((self.0 >> 20) % span)
    }

    fn profile(&mut self) -> Result<TaxProfile> {
        let modes = [None, Some(IncomeTax::Flat), Some(IncomeTax::Scale), Some(IncomeTax::NotSubject)];
        let year = i32::try_from(self.between(2022, 2027))?;
        let created = NaiveDate::from_yo_opt(year, u32::try_from(self.between(1, 365))?);
        Ok(TaxProfile {
            created: created.filter(|_| self.between(0, 4) > 0),
            has_acre: [None, Some(false), Some(true), Some(true)][usize::try_from(self.between(0, 3))?],
            income_tax: modes[usize::try_from(self.between(0, 3))?],
            ..TaxProfile::default()
        })
    }
}

/// Random users have a row for each month from 2022 to 2027 and each activity, which says to the
/// cent what `row_amounts` says.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_estimates_as_the_code_does() -> Result<()> {
    let world = World::new().await?;
    let mut numbers = Numbers(13);
    sqlx::query("select jobs.take_rates($1)")
        .bind(serde_json::to_value(row_rates())?)
        .execute(world.pool())
        .await?;
    let mut compared = 0;
    for number in 0..USERS {
        let user = world.user(&format!("estimates{number}@example.org")).await?;
        let taxed = numbers.profile()?;
        profile(&world, user, taxed).await?;
        let amounts: Vec<i64> = (0..216).map(|_| numbers.between(-2_000_000, 20_000_000)).collect();
        sqlx::query(
            "with rows as (insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, \
             external_id) select $1, 2022 + (n - 1) / 36, (n - 1) % 36 / 3 + 1, ($3::text[])[(n - 1) % 3 + 1], \
             c / 100.0, 'auto_sync', n::text from unnest($2::bigint[]) with ordinality as u (c, n) returning *) \
             insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur) \
             select user_id, make_date(year, month, 1), activity_type, id, amount_eur, amount_eur from rows",
        )
        .bind(user)
        .bind(&amounts)
        .bind(ACTIVITIES.as_slice())
        .execute(world.pool())
        .await?;
        sqlx::query("select jobs.write_estimates($1)").bind(user).execute(world.pool()).await?;
        let rows: Vec<Estimated> = sqlx::query_as(
            "select activity_type, year || '-' || lpad(month::text, 2, '0'), (amount_eur * 100)::bigint, \
                 (computed_contrib_eur * 100)::bigint, (computed_net_eur * 100)::bigint, ir_mode, \
                 (ir_amount_eur * 100)::bigint from public.ca_records where user_id = $1",
        )
        .bind(user)
        .fetch_all(world.pool())
        .await?;
        assert_eq!(rows.len(), 216);
        for (activity, month, cents, contributions, net, mode, tax) in rows {
            let expected = row_amounts(&activity, cents, month.parse()?, taxed);
            let expected_mode = expected.and_then(|row| row.income_tax_mode).map(|mode| match mode {
                RowIncomeTax::Vl => "vl".to_owned(),
                RowIncomeTax::Bareme => "bareme".to_owned(),
            });
            assert_eq!(
                (contributions, net, mode, tax),
                (
                    expected.map(|row| row.contributions),
                    expected.map(|row| row.net),
                    expected_mode,
                    expected.and_then(|row| row.income_tax)
                ),
                "{activity} {month} {cents} {taxed:?}"
            );
            compared += 1;
        }
    }
    assert_eq!(compared, USERS * 216);
    Ok(())
}

/// From the payment to the row, estimates are written with it, follow the profile at the next sync,
/// fill what an older version wrote, rewrite nothing where nothing changed, and are the user's once
/// one of them is edited.
#[tokio::test(flavor = "multi_thread")]
async fn estimates_come_with_the_row_and_are_kept_up() -> Result<()> {
    let world = World::new().await?;
    let user = world.stripe_user("acct_estimates").await?;
    world.stripe.payment("acct_estimates", world.earlier(90), 100_000, "eur");
    world.post("sync-integrations", "").await?;
    assert_eq!(carried(&world, user).await?, [row("212.00", "788.00", None, None)]);

    let flat = TaxProfile { income_tax: Some(IncomeTax::Flat), ..TaxProfile::default() };
    profile(&world, user, flat).await?;
    world.post("sync-integrations", "").await?;
    let with_flat_tax = [row("212.00", "771.00", Some("vl"), Some("17.00"))];
    assert_eq!(carried(&world, user).await?, with_flat_tax);

    let version =
        "select (select xmin::text from public.ca_records) || (select xmin::text from jobs.auto_sync_totals)";
    let before: String = world.value(version).await?;
    world.post("sync-integrations", "").await?;
    assert_eq!(world.value::<String>(version).await?, before, "no row was rewritten");

    // As a version wrote it that did not estimate.
    world.value::<i64>(
        "with r as (update public.ca_records set computed_contrib_eur = null, computed_net_eur = null, ir_mode = null, \
         ir_amount_eur = null), l as (update jobs.auto_sync_totals set written_contrib_eur = null, \
         written_net_eur = null, written_ir_mode = null, written_ir_eur = null) select 1::bigint",
    ).await?;
    world.post("sync-integrations", "").await?;
    assert_eq!(carried(&world, user).await?, with_flat_tax);

    sqlx::query("update public.ca_records set computed_contrib_eur = 1 where user_id = $1")
        .bind(user)
        .execute(world.pool())
        .await?;
    world.stripe.payment("acct_estimates", world.earlier(80), 5_000, "eur");
    let answer = world.post("sync-integrations", "").await?;
    assert_eq!(answer["results"][0]["left_alone"], Value::Null, "{answer}");
    assert_eq!(carried(&world, user).await?, [row("1.00", "771.00", Some("vl"), Some("17.00"))]);
    assert_eq!(
        world.value::<String>("select amount_eur::text from public.ca_records").await?,
        "1050.00",
        "the amount stays ours"
    );
    Ok(())
}
