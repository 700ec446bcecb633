//! Who is on which plan: the offer goes to free users only, the reminder to Premium only.

use anyhow::{Context, Result};
use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::{
    given::{about, cron, mails_to, problem, recipients, second_of_next_month},
    signed_up_at,
};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Plan {
    Free,
    /// The user is Pro, by whatever way.
    Pro,
    Premium,
    /// The subscription is there and brings nothing: neither the service nor an offer.
    Suspended,
    /// The user is free, and says otherwise of itself.
    Claims,
}

fn subscription(status: &str, price: &str) -> String {
    format!("insert into public.subscriptions (user_id, status, price_id) values ($1, '{status}', '{price}')")
}

fn profile(columns: &str) -> String {
    format!("update public.user_profiles set {columns} where id = $1")
}

fn metadata(column: &str, json: &str) -> String {
    format!("update auth.users set {column} = '{json}' where id = $1")
}

/// Returns every way to a plan, and some that are none.
fn ways(world: &World) -> Vec<(&'static str, Plan, Vec<String>)> {
    use Plan::{Claims, Free, Premium, Pro, Suspended};
    let hours = |hours: i64| {
        let at = world.now() + TimeDelta::hours(hours);
        at.to_rfc3339()
    };
    vec![
        ("nothing", Free, vec![]),
        ("active-pro", Pro, vec![subscription("active", "price_pro")]),
        ("trialing-premium", Premium, vec![subscription("trialing", "price_premium")]),
        ("pro-yearly", Pro, vec![subscription("active", "price_pro_yearly")]),
        ("premium-yearly", Premium, vec![subscription("active", "price_premium_yearly")]),
        ("public-pro", Pro, vec![subscription("active", "price_pro_public")]),
        ("public-premium-yearly", Premium, vec![subscription("trialing", "price_premium_public_yearly")]),
        ("test-pro", Pro, vec![subscription("active", "pro_test")]),
        ("test-premium", Premium, vec![subscription("active", "premium_test")]),
        // Stripe tries again: the service goes on.
        ("past-due", Premium, vec![subscription("past_due", "price_premium")]),
        ("past-due-pro", Pro, vec![subscription("past_due", "price_pro")]),
        ("past-due-in-profile", Premium, vec![profile("plan = 'premium', plan_status = 'past_due'")]),
        ("canceled", Free, vec![subscription("canceled", "price_premium")]),
        ("never-paid", Free, vec![subscription("incomplete_expired", "price_premium")]),
        ("unpaid-unknown", Suspended, vec![subscription("unpaid", "price_unheard_of")]),
        ("paused", Suspended, vec![subscription("paused", "price_premium")]),
        ("incomplete", Suspended, vec![subscription("incomplete", "price_premium")]),
        ("unpaid-in-profile", Suspended, vec![profile("plan = 'pro', plan_status = 'unpaid'")]),
        (
            "paused-in-trial",
            Premium,
            vec![
                subscription("paused", "price_pro"),
                profile(&format!("trial_plan = 'premium', trial_ends_at = '{}'", hours(24 * 60))),
            ],
        ),
        (
            "past-due-profile",
            Premium,
            vec![subscription("past_due", "price_pro"), profile("plan = 'premium', plan_status = 'active'")],
        ),
        (
            "subscription-first",
            Pro,
            vec![subscription("active", "price_pro"), profile("plan = 'premium', plan_status = 'active'")],
        ),
        (
            "trial",
            Premium,
            vec![profile(&format!("trial_plan = 'premium', trial_ends_at = '{}'", hours(24 * 60)))],
        ),
        (
            "trial-pro",
            Pro,
            vec![profile(&format!("trial_plan = 'pro', trial_ends_at = '{}'", hours(24 * 60)))],
        ),
        (
            "trial-over",
            Free,
            vec![profile(&format!("trial_plan = 'premium', trial_ends_at = '{}'", hours(-1)))],
        ),
        (
            "trial-odd",
            Free,
            vec![profile(&format!("trial_plan = 'gold', trial_ends_at = '{}'", hours(24 * 60)))],
        ),
        ("profile-pro", Pro, vec![profile("plan = 'pro', plan_status = 'active'")]),
        ("profile-premium", Premium, vec![profile("plan = 'premium', plan_status = 'active'")]),
        ("profile-canceled", Free, vec![profile("plan = 'premium', plan_status = 'canceled'")]),
        ("no-profile", Free, vec!["delete from public.user_profiles where id = $1".to_owned()]),
        ("claims-plan", Claims, vec![metadata("raw_user_meta_data", r#"{"plan": "premium"}"#)]),
        (
            "claims-subscription",
            Claims,
            vec![metadata("raw_user_meta_data", r#"{"subscription_plan": "pro"}"#)],
        ),
        (
            "claims-both",
            Claims,
            vec![metadata("raw_user_meta_data", r#"{"plan": "free", "is_premium": "true"}"#)],
        ),
        ("claims-flag", Claims, vec![metadata("raw_user_meta_data", r#"{"is_pro": true}"#)]),
        ("claims-app", Claims, vec![metadata("raw_app_meta_data", r#"{"plan": "premium"}"#)]),
        (
            "claims-nothing",
            Free,
            vec![metadata("raw_user_meta_data", r#"{"plan": "free", "is_pro": false}"#)],
        ),
        ("claims-a-list", Free, vec![metadata("raw_user_meta_data", r#"["premium"]"#)]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_a_plan() -> Result<()> {
    let mut world = World::new().await?;
    for (name, value) in [
        ("STRIPE_PRICE_PRO_YEARLY", "price_pro_yearly"),
        ("STRIPE_PRICE_PREMIUM_YEARLY", "price_premium_yearly"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PRO", "price_pro_public"),
        ("NEXT_PUBLIC_STRIPE_PRICE_PREMIUM_YEARLY", "price_premium_public_yearly"),
    ] {
        world.set(name, value);
    }
    let (_, noon) = second_of_next_month(&mut world);
    for (name, _, statements) in ways(&world) {
        let user =
            signed_up_at(&world, &format!("{name}@example.test"), name, noon - TimeDelta::days(4)).await?;
        about(
            &world,
            user,
            "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
        )
        .await?;
        for statement in statements {
            about(&world, user, &statement).await?;
        }
    }
    let of = |wanted: &[Plan]| {
        let mut names: Vec<String> = ways(&world)
            .into_iter()
            .filter(|(_, plan, _)| wanted.contains(plan))
            .map(|(name, ..)| format!("{name}@example.test"))
            .collect();
        names.sort();
        names
    };

    let answer = world.cron("daily-tasks", "").await?;
    let part = &answer["results"]["upgradeEmails"];
    assert_eq!((&part["sent"], &part["errors"]), (&json!(of(&[Plan::Free]).len()), &json!(0)), "{answer}");
    assert_eq!(recipients(&world), of(&[Plan::Free]));

    world.resend.clear().await?;
    let answer = world.cron("send-reminders", "").await?;
    assert_eq!(
        (&answer["sent"], &answer["errors"]),
        (&json!(of(&[Plan::Premium]).len()), &json!(0)),
        "{answer}"
    );
    assert_eq!(recipients(&world), of(&[Plan::Premium]), "metadata grants nothing");
    Ok(())
}

/// Nobody is taken for free, or for Premium, for want of knowing.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_price_is_a_fault_that_names_it() -> Result<()> {
    let mut world = World::new().await?;
    let (_, noon) = second_of_next_month(&mut world);
    let add = async |name: &str, price: Option<&str>| -> Result<Uuid> {
        let user =
            signed_up_at(&world, &format!("{name}@example.test"), name, noon - TimeDelta::days(4)).await?;
        about(
            &world,
            user,
            "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
        )
        .await?;
        sqlx::query("insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', $2)")
            .bind(user)
            .bind(price)
            .execute(world.pool())
            .await?;
        Ok(user)
    };
    let unknown = add("unknown", Some("price_of_last_year")).await?;
    add("same", Some("price_of_last_year")).await?;
    let none = add("none", None).await?;
    let premium = add("premium", Some("price_premium")).await?;
    signed_up_at(&world, "free@example.test", "free", noon - TimeDelta::days(4)).await?;

    for (name, path, recipient) in
        [("daily-tasks", "upgradeEmails", "free"), ("send-reminders", "", "premium")]
    {
        world.resend.clear().await?;
        let answer = world.cron(name, "").await?;
        let part = if path.is_empty() { &answer } else { &answer["results"][path] };
        assert_eq!((&part["sent"], &part["errors"]), (&json!(1), &json!(1)), "{answer}");
        let problem = problem(part, "unknown_price");
        let message = problem["message"].as_str().unwrap_or_default();
        for word in
            ["(aucun, price_of_last_year)", "price_of_last_year", "STRIPE_PRICE_PRO", "STRIPE_PRICE_PREMIUM"]
        {
            assert!(message.contains(word), "{word}: {message}");
        }
        assert_eq!(message.matches("price_of_last_year").count(), 1, "{message}");
        assert_eq!(problem["blocking"], true, "{answer}");
        assert_eq!(recipients(&world), [format!("{recipient}@example.test")]);
        if path == "upgradeEmails" {
            assert_eq!(answer["success"], false, "{answer}");
        }
        // Joined, it is said again.
        let again = world.cron(name, "").await?;
        let part = if path.is_empty() { &again } else { &again["results"][path] };
        assert_eq!((&part["skipped"], &part["errors"]), (&json!(true), &json!(1)), "{again}");
    }
    let logged: i64 = world.value("select count(*) from public.sync_logs where status = 'success'").await?;
    assert_eq!(logged, 0, "a run with a failed part is no success");

    // Once the variable knows the price, the users count as what they are. The slot is taken by then: an operator
    // asks for each of those who were left out.
    world.set("STRIPE_PRICE_PREMIUM_YEARLY", "price_of_last_year");
    world.resend.clear().await?;
    for (user, sent) in [(unknown, 1), (none, 0), (premium, 0)] {
        let answer = world.cron("send-reminders", &format!("user_id={user}")).await?;
        let errors = u64::from(user == none);
        assert_eq!((&answer["sent"], &answer["errors"]), (&json!(sent), &json!(errors)), "{answer}");
    }
    assert_eq!(recipients(&world), ["unknown@example.test"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_price_variables_the_mails_fail_alone() -> Result<()> {
    let mut world = World::new().await?;
    // A sync hour at which the mail is due, too.
    let noon = world.now().date_naive().and_hms_opt(12, 0, 0).context("noon")?.and_utc();
    world.set_now(noon);
    let user = world.stripe_user("acct_prices").await?;
    world.stripe.payment("acct_prices", noon - TimeDelta::minutes(1), 4_200, "eur");
    signed_up_at(&world, "free@example.test", "free", noon - TimeDelta::days(4)).await?;
    for name in ["STRIPE_PRICE_PRO", "STRIPE_PRICE_PREMIUM"] {
        world.unset(name);
    }
    let answer = cron(&world, "daily-orchestrator", "").await?;
    assert_eq!(answer.status, 500, "{}", answer.text);
    let body = answer.json();
    let (mails, sync) = (&body["results"]["marketingEmails"], &body["results"]["syncIntegrations"]);
    assert_eq!((&mails["sent"], &mails["errors"]), (&json!(0), &json!(1)), "{body}");
    let error = mails["error"].as_str().unwrap_or_default();
    assert!(error.contains("STRIPE_PRICE_PRO") && error.contains("STRIPE_PRICE_PREMIUM"), "{body}");
    assert_eq!((&sync["synced"], &sync["errors"]), (&json!(1), &json!(0)), "{body}");
    assert_eq!(world.imported(user).await?.len(), 1);
    assert!(mails_to(&world, "free@example.test").is_empty());
    let slots: i64 = world.value("select count(*) from jobs.job_slots where task = 'marketing_day3'").await?;
    assert_eq!(slots, 0, "the corrected deployment makes up for it");

    let answer = cron(&world, "daily-tasks", "").await?;
    assert_eq!(answer.status, 500, "{}", answer.text);
    assert!(answer.json()["error"].as_str().unwrap_or_default().contains("STRIPE_PRICE_PRO"));

    world.set("STRIPE_PRICE_PRO", "price_pro");
    world.set("STRIPE_PRICE_PREMIUM", "price_premium");
    let answer = world.cron("daily-orchestrator", "").await?;
    assert_eq!(answer["results"]["marketingEmails"]["sent"], 1, "{answer}");
    Ok(())
}
