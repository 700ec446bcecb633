//! Runs `cargo stack demo`: the whole product on one machine, with people in it, called as in production.

mod call;
mod changes;
mod inbox;
mod round;
mod verdict;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::round::Round;
use crate::seed::{
    TokenKey,
    calendar::Calendar,
    people::{PRICE_PREMIUM, PRICE_PRO, People, Town},
};
use processes::{
    npm::{self, Set},
    vercel::{self, Dev},
};
use stand_ins::{
    Environment, Stack,
    clock::Clock,
    resend::{Resend, webhooks},
    shopify, stripe,
};

/// Holds everything that runs during a demonstration; it stops when this is dropped.
struct Demo {
    // First, so that it goes before what it talks to.
    dev: Dev,
    secret: String,
    calendar: Calendar,
    people: People,
    environment: Environment,
    resend: Resend,
    stripe: stripe::StandIn,
    shopify: shopify::StandIn,
    // Last: the others' data and logs are in here.
    _stack: Stack,
}

/// Runs a demonstration: one round of calls, then everything stays up until Ctrl-C, unless `once`. Answers
/// whether every answer was what it must be. With `played` it takes place at that instant instead of `now`.
pub async fn run(once: bool, now: DateTime<Utc>, played: Option<DateTime<Utc>>) -> Result<bool> {
    let started = Instant::now();
    let demo = Demo::start(now, played).await?;
    println!("\nEverything is up after {:.1} s.", started.elapsed().as_secs_f32());
    demo.introduce();
    let problems = Round::new(&demo)?.run().await?;
    match &problems[..] {
        [] => println!("\n✓ Every answer was what it must be."),
        problems => {
            println!("\n✗ Not what it must be:");
            for problem in problems {
                println!("  - {problem}");
            }
        }
    }
    if !once {
        demo.say_where();
        tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
        println!();
    }
    Ok(problems.is_empty())
}

/// Does one step of the start, and says so before and after.
async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    println!("· {what} …");
    let started = Instant::now();
    let done = work.await?;
    let took = started.elapsed();
    if took > Duration::from_millis(500) {
        println!("    {:.1} s", took.as_secs_f32());
    }
    Ok(done)
}

/// Installs an npm set without holding up the runtime.
async fn install(set: &'static Set) -> Result<std::path::PathBuf> {
    tokio::task::spawn_blocking(move || npm::install(set)).await?
}

impl Demo {
    async fn start(now: DateTime<Utc>, played: Option<DateTime<Utc>>) -> Result<Self> {
        let checkout = vercel::checkout()?;
        step("npm: PostgreSQL, PostgREST, the Resend emulator", install(&npm::STACK)).await?;
        let parts = step("npm: the Vercel CLI", install(&npm::VERCEL)).await?;
        step("cargo: the functions", vercel::build(&checkout)).await?;
        let stack = step("PostgreSQL, with the migrations", Stack::start()).await?;
        let environment = step("PostgREST and the Supabase gateway", stack.environment()).await?;
        let resend = step("Resend", stack.resend()).await?;
        let (key, today) = (TokenKey::generate()?, Calendar::new(played.unwrap_or(now)));
        let (calendar, clock) = (today.not_before_the_second(), Clock::default());
        if calendar.now() != now {
            clock.set(calendar.now());
        }
        let (stripe, shopify) = (stripe::StandIn::start().await?, shopify::StandIn::start_at(clock).await?);
        let town = Town { db: &environment.db, stripe: &stripe, shopify: &shopify, key: &key, calendar };
        let people = step("ten users, with Stripe and Shopify", town.settle()).await?;

        let secret = Uuid::new_v4().simple().to_string();
        let mut env = vec![
            ("CRON_SECRET", secret.clone()),
            ("STRIPE_SECRET_KEY", stripe.secret_key()),
            ("STRIPE_API_BASE", stripe.url()),
            ("SHOPIFY_CLIENT_ID", shopify.client_id()),
            ("SHOPIFY_CLIENT_SECRET", shopify.client_secret()),
            ("SHOPIFY_API_BASE", shopify.api_base()),
            ("ENCRYPTION_KEY", key.as_str().into()),
            ("COMPANY_FROM_EMAIL", "Comptalyze <bonjour@comptalyze.exemple.fr>".into()),
            ("SENDER_IDENTITY", "Comptalyze, 1 rue de la Paix, 75002 Paris".into()),
            ("RESEND_WEBHOOK_SECRET", webhooks::signing_secret()),
            ("NEXT_PUBLIC_BASE_URL", "http://localhost:3000".into()),
            ("STRIPE_PRICE_PRO", PRICE_PRO.into()),
            ("STRIPE_PRICE_PREMIUM", PRICE_PREMIUM.into()),
        ];
        env.extend(environment.env_vars());
        env.extend(resend.env_vars());
        if calendar.now() != now {
            if calendar.now() != today.now() {
                println!("    it is the 1st, and reminders are due on the 2nd");
            }
            println!("    the functions' clock stands at {}", calendar.now().to_rfc3339());
            env.push(("JOBS_NOW", calendar.now().to_rfc3339()));
        }
        let at = |own: String| {
            let mut env = env.clone();
            env.push(("JOBS_BASE_URL", own));
            env
        };
        let dev = step("vercel dev --local", Dev::start(&parts, &checkout, at)).await?;
        Ok(Self { dev, secret, calendar, people, environment, resend, stripe, shopify, _stack: stack })
    }

    /// Prints who is there.
    fn introduce(&self) {
        for (id, shows) in &self.people.list {
            println!("  {id}  {:<16} {shows}", self.people.names[id]);
        }
    }

    /// Prints where everything is, and how to call it.
    fn say_where(&self) {
        println!("\nUp until Ctrl-C:");
        let gateway = &self.environment.gateway;
        for (what, place) in [
            ("functions", self.dev.url()),
            ("  their secret", self.secret.clone()),
            ("  their log", self.dev.log().display().to_string()),
            ("database", self.environment.db.url().into()),
            ("Supabase gateway", gateway.url()),
            ("  its secret key", gateway.keys().secret.clone()),
            ("mail inbox", self.resend.inbox_url()),
            ("Stripe stand-in", self.stripe.url()),
            ("Shopify stand-in", self.shopify.url()),
        ] {
            println!("  {what:<17} {place}");
        }
        println!(
            "\nFor instance:\n  curl -X POST -H 'Authorization: Bearer {}' {}/api/manual/sync-integrations",
            self.secret,
            self.dev.url()
        );
    }
}
