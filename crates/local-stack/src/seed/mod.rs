//! Inserts users with their integrations, as the web application would have stored them.
//!
//! ```no_run
//! # async fn example(db: processes::database::Database, now: chrono::DateTime<chrono::Utc>) -> anyhow::Result<()> {
//! use local_stack::seed::{self, Person, TokenKey};
//!
//! let key = TokenKey::generate()?;
//! let camille = seed::user(&db, &Person::new("Camille Moreau", "camille@exemple.fr", now)).await?;
//! seed::stripe_integration(&db, &key, camille, "acct_camille", "sk_test_camille").await?;
//! // The functions read key.as_str() as ENCRYPTION_KEY.
//! # Ok(())
//! # }
//! ```

pub mod books;
pub mod calendar;
pub mod people;
mod tokens;

use anyhow::{Context, Result};
use chrono::{DateTime, Datelike, NaiveDate, Utc};
use uuid::Uuid;

pub use self::tokens::TokenKey;
use processes::database::Database;

/// Represents somebody who has signed up.
#[derive(Clone, Debug)]
pub struct Person {
    pub name: String,
    pub email: String,
    pub signed_up: DateTime<Utc>,
}

impl Person {
    /// Creates somebody of this name and address who signed up at this instant.
    pub fn new(name: &str, email: &str, signed_up: DateTime<Utc>) -> Self {
        Self { name: name.into(), email: email.into(), signed_up }
    }
}

/// Makes an account with a confirmed address; its profile comes by the application's trigger.
pub async fn user(db: &Database, person: &Person) -> Result<Uuid> {
    sqlx::query_scalar(
        "insert into auth.users (email, email_confirmed_at, raw_user_meta_data, created_at)
         values ($1, $2, jsonb_build_object('full_name', $3::text), $2) returning id",
    )
    .bind(&person.email)
    .bind(person.signed_up)
    .bind(&person.name)
    .fetch_one(db.pool())
    .await
    .with_context(|| format!("cannot make the user {}", person.name))
}

/// Pays for a plan, by the price of its subscription.
pub async fn subscription(db: &Database, user: Uuid, price: &str) -> Result<()> {
    let insert = "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', $2)";
    sqlx::query(insert).bind(user).bind(price).execute(db.pool()).await.context("cannot subscribe a user")?;
    Ok(())
}

/// Has asked for the monthly reminder.
pub async fn wants_reminders(db: &Database, user: Uuid) -> Result<()> {
    let insert = "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)";
    sqlx::query(insert).bind(user).execute(db.pool()).await.context("cannot keep a preference")?;
    Ok(())
}

/// Connects a Stripe account; `token` is the account's own OAuth token.
pub async fn stripe_integration(
    db: &Database,
    key: &TokenKey,
    user: Uuid,
    account: &str,
    token: &str,
) -> Result<Uuid> {
    sqlx::query_scalar(
        "insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id)
         values ($1, 'stripe', $2, $3) returning id",
    )
    .bind(user)
    .bind(key.encrypt(token)?)
    .bind(account)
    .fetch_one(db.pool())
    .await
    .with_context(|| format!("cannot connect {account}"))
}

/// Connects a shop; without a refresh token, the access token is a permanent one.
pub async fn shopify_integration(
    db: &Database,
    key: &TokenKey,
    user: Uuid,
    domain: &str,
    access_token: &str,
    refresh_token: Option<&str>,
) -> Result<Uuid> {
    sqlx::query_scalar(
        "insert into public.integration_tokens (user_id, provider, access_token, refresh_token, shop_domain, store_url)
         values ($1, 'shopify', $2, $3, $4, 'https://' || $4) returning id",
    )
    .bind(user)
    .bind(key.encrypt(access_token)?)
    .bind(refresh_token.map(|token| key.encrypt(token)).transpose()?)
    .bind(domain)
    .fetch_one(db.pool())
    .await
    .with_context(|| format!("cannot connect {domain}"))
}

/// Records turnover that the user has typed.
pub async fn typed_turnover(
    db: &Database,
    user: Uuid,
    month: NaiveDate,
    activity: &str,
    cents: i64,
) -> Result<Uuid> {
    sqlx::query_scalar(
        "insert into public.ca_records (user_id, year, month, activity_type, amount_eur)
         values ($1, $2, $3, $4, $5::numeric / 100) returning id",
    )
    .bind(user)
    .bind(month.year())
    .bind(month.month().cast_signed())
    .bind(activity)
    .bind(cents)
    .fetch_one(db.pool())
    .await
    .context("cannot type turnover")
}
