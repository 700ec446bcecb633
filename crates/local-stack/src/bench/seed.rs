//! Inserts very many users at once: one statement each, whatever their number.

use std::iter;

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike, Utc};
use jobs::schedule::paris;
use uuid::Uuid;

use crate::seed::TokenKey;
use processes::database::Database;

/// Inserts users who signed up long ago, but for `newcomers`, who did four days ago.
pub(super) async fn people(db: &Database, count: i32, newcomers: i32, now: DateTime<Utc>) -> Result<()> {
    sqlx::query(
        "insert into auth.users (email, email_confirmed_at, raw_user_meta_data, created_at)
         select 'user-' || n || '@exemple.fr', t.at, '{\"full_name\": \"Camille Moreau\"}', t.at
         from generate_series(1, $1) n,
             lateral (select $3 - case when n <= $2 then interval '4 days' else interval '300 days' end as at) t",
    )
    .bind(count)
    .bind(newcomers)
    .bind(now)
    .execute(db.pool())
    .await
    .context("cannot make users")?;
    Ok(())
}

/// Inserts 24 records for each user, of this year and the last. One user in a hundred is above every ceiling this year.
pub(super) async fn records(db: &Database, now: DateTime<Utc>) -> Result<()> {
    let mut transaction = db.pool().begin().await?;
    // As a restored dump: without the checks of foreign keys, one by one.
    sqlx::query("set local session_replication_role = replica").execute(&mut *transaction).await?;
    sqlx::query(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur)
         select u.id, $1 - m / 12, m % 12 + 1, 'Prestation de services',
             case when u.n % 100 = 0 and m < 12 then 9000 else 1000 end
         from (select id, row_number() over (order by id) as n from auth.users) u, generate_series(0, 23) m",
    )
    .bind(paris::date(now).year())
    .execute(&mut *transaction)
    .await
    .context("cannot make records")?;
    transaction.commit().await?;
    Ok(())
}

/// Represents an integration for each user: a Stripe account for every other one, a shop for the rest.
pub(super) struct Integrations {
    pub(super) accounts: Vec<(String, String)>,
    pub(super) shops: Vec<(String, String)>,
}

impl Integrations {
    pub(super) fn named(count: usize) -> Self {
        let stripe =
            (0..count.div_ceil(2)).map(|n| (format!("acct_bench{n:06}"), format!("sk_acct_bench{n:06}")));
        let shops =
            (0..count / 2).map(|n| (format!("bench-{n:06}.myshopify.com"), format!("shpat_bench{n:06}")));
        Self { accounts: stripe.collect(), shops: shops.collect() }
    }

    /// Connects them to the users, `since` so long.
    pub(super) async fn connect(&self, db: &Database, key: &TokenKey, since: DateTime<Utc>) -> Result<()> {
        let users: Vec<Uuid> =
            sqlx::query_scalar("select id from auth.users order by id").fetch_all(db.pool()).await?;
        let all = iter::repeat("stripe").zip(&self.accounts).chain(iter::repeat("shopify").zip(&self.shops));
        let (mut providers, mut names, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for (provider, (name, token)) in all {
            providers.push(provider);
            names.push(name.as_str());
            tokens.push(key.encrypt(token)?);
        }
        sqlx::query(
            "insert into public.integration_tokens
                 (user_id, provider, access_token, stripe_account_id, shop_domain, connected_at)
             select t.user_id, t.provider, t.token, case t.provider when 'stripe' then t.name end,
                 case t.provider when 'shopify' then t.name end, $5
             from unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) as t (user_id, provider, name, token)
             where t.user_id is not null and t.provider is not null",
        )
        .bind(users)
        .bind(providers)
        .bind(names)
        .bind(tokens)
        .bind(since)
        .execute(db.pool())
        .await
        .context("cannot connect integrations")?;
        Ok(())
    }
}

/// Brings statistics and visibility up to date, as a database has them that was not filled a moment ago.
pub(super) async fn settle(db: &Database) -> Result<()> {
    sqlx::query("vacuum analyze").execute(db.pool()).await.context("cannot vacuum")?;
    sqlx::query("checkpoint").execute(db.pool()).await.context("cannot write a checkpoint")?;
    Ok(())
}
