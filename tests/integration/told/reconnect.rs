//! A user whose integration was refused three times in a row is asked to connect it again; once more after 30 days.

use anyhow::Result;

use crate::{mails::received, world::World};

const SUBJECT: &str = "Votre connexion à Stripe est à refaire";

/// Returns how many such mails have left.
fn asked(world: &World) -> usize {
    received(world).iter().filter(|(_, subject)| subject == SUBJECT).count()
}

async fn sync(world: &World, times: usize) -> Result<()> {
    for _ in 0..times {
        world.post("sync-integrations", "").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_refusal_is_told_once_and_again_after_thirty_days() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_refused").await?;
    sync(&world, 1).await?;
    world.stripe.revoke("acct_refused");
    sync(&world, 2).await?;
    assert_eq!(asked(&world), 0, "twice may be a misunderstanding");
    sync(&world, 1).await?;
    assert_eq!(asked(&world), 1);
    let mails = world.resend.accepted();
    let mail = &mails.last().expect("a mail").mail;
    let text = mail.text.clone().unwrap_or_default();
    assert!(
        text.contains("/dashboard/compte/integrations") && text.contains("Tout a été lu jusqu’au"),
        "{text}"
    );
    assert!(!mail.headers.contains_key("List-Unsubscribe"));
    sync(&world, 4).await?;
    assert_eq!(asked(&world), 1, "nobody is told the same every six hours");

    world.run("update jobs.integration_state set trouble_mailed_at = $now - interval '31 days'").await?;
    sync(&world, 2).await?;
    assert_eq!(asked(&world), 2);
    world.run("update jobs.integration_state set trouble_mailed_at = $now - interval '31 days'").await?;
    sync(&world, 2).await?;
    assert_eq!(asked(&world), 2, "twice is enough");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_between_begins_the_count_anew() -> Result<()> {
    let world = World::new().await?;
    world.stripe_user("acct_back").await?;
    for _ in 0..2 {
        world.stripe.revoke("acct_back");
        sync(&world, 2).await?;
        world.stripe.reconnect("acct_back", "sk_acct_token_acct_back");
        sync(&world, 1).await?;
    }
    assert_eq!(asked(&world), 0);
    Ok(())
}

/// What nobody but us can mend is not asked of users.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_faults_are_not_told_to_users() -> Result<()> {
    let mut world = World::new().await?;
    world.stripe_user("acct_ours").await?;
    let right = world.replace("STRIPE_SECRET_KEY", Some("sk_test_rolled_over".into()));
    sync(&world, 4).await?;
    world.replace("STRIPE_SECRET_KEY", right);
    world.replace("ENCRYPTION_KEY", Some("ffffffffffffffffffffffffffffffff".into()));
    sync(&world, 4).await?;
    assert_eq!(asked(&world), 0);
    Ok(())
}
