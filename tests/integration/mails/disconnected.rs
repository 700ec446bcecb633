//! What mails say of a month in which a source was disconnected.

use anyhow::Result;

use super::given::{about, at, mail_to, plain, says, says_not, text};
use crate::world::World;

const SHOP: &str = "disconnected.myshopify.com";

/// One user goes on with a shop, another one has nothing else and removes the account. The recap of the month and its
/// reminder name the source and since when nothing was read of it; the next month's say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_disconnected_is_named_in_its_month() -> Result<()> {
    let mut world = World::at(at("2026-11-02T12:00:00Z")).await?;
    let both = world.stripe_user("acct_both").await?;
    let gone = world.stripe_user("acct_gone").await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_disconnected");
    world.connect_shopify(both, SHOP, "shpat_disconnected", None).await?;
    for user in [both, gone] {
        for sql in [
            "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')",
            "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)",
        ] {
            about(&world, user, sql).await?;
        }
    }
    for account in ["acct_both", "acct_gone"] {
        world.stripe.payment(account, at("2026-11-05T10:00:00Z"), 120_000, "eur");
    }
    world.set_now(at("2026-11-10T12:10:00Z"));
    world.cron("daily-orchestrator", "").await?;
    about(
        &world,
        both,
        "update public.integration_tokens set is_active = false where user_id = $1 and provider = 'stripe'",
    )
    .await?;
    about(&world, gone, "delete from public.integration_tokens where user_id = $1").await?;

    let whose = |account: &str| format!("{account}@example.test");
    world.set_now(at("2026-11-30T16:00:00Z"));
    world.cron("monthly-orchestrator", "").await?;
    let recap = mail_to(&world, &whose("acct_both"));
    let missing = "Stripe n’est plus relié à Comptalyze et n’a pas été lu depuis le 10 novembre 2026";
    for said in [text(&recap), plain(recap.html.as_deref().unwrap_or_default())] {
        says(&said, &["Le total est incomplet", missing, "Comparez ce total avec ce que vous avez reçu"]);
        says_not(&said, &["Vérifiez que cette source", "Des opérations manquent"]);
    }

    world.set_now(at("2026-12-01T06:10:00Z"));
    world.cron("daily-orchestrator", "").await?;
    world.resend.clear().await?;
    world.set_now(at("2026-12-02T07:30:00Z"));
    world.cron("send-reminders", "").await?;
    for account in ["acct_both", "acct_gone"] {
        let said = text(&mail_to(&world, &whose(account)));
        says(
            &said,
            &[
                "Novembre 2026 est incomplet",
                &format!(
                    "{missing} : ces montants sont incomplets. Ajoutez ce qui manque avant de déclarer."
                ),
            ],
        );
        says_not(&said, &["bien reliée"]);
    }

    world.resend.clear().await?;
    for now in ["2026-12-31T18:10:00Z", "2027-01-02T06:10:00Z"] {
        world.set_now(at(now));
        world.cron("daily-orchestrator", "").await?;
    }
    world.resend.clear().await?;
    world.set_now(at("2027-01-02T07:30:00Z"));
    world.cron("send-reminders", "").await?;
    for account in ["acct_both", "acct_gone"] {
        let said = text(&mail_to(&world, &whose(account)));
        says(&said, &["Novembre 2026 est incomplet"]);
        says_not(&said, &["Décembre 2026 est incomplet"]);
    }
    Ok(())
}
