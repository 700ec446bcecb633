//! What a recap waits for, and until when: another chance of what could not be read, and never beyond its own time.

use anyhow::Result;
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use jobs::schedule::Month;
use reqwest::Method;
use stand_ins::{
    faults::{Fault, Rule},
    shopify::{Tender, graphql_error},
};

use super::given::{at, mails_to, plain, says, says_not, text};
use crate::world::World;

const LIST: &str = "/v1/balance_transactions";

fn answer(status: u16, body: &str) -> Fault {
    Fault::Answer { status, headers: Vec::new(), body: body.into() }
}

/// Returns the crons of some days from seven o'clock of a last day on, as `vercel.json` has them.
fn crons(last: NaiveDate, days: u64) -> Vec<(&'static str, DateTime<Utc>)> {
    let all = (0..days).flat_map(|day| [0, 6, 7, 12, 18].map(|hour| (last + Days::new(day), hour)));
    all.skip(2)
        .map(|(day, hour)| {
            let route = if hour == 7 { "monthly-orchestrator" } else { "daily-orchestrator" };
            (route, day.and_hms_opt(hour, 2, 0).expect("an hour").and_utc())
        })
        .collect()
}

/// Calls one of them, after all pauses of the queues.
async fn call(world: &mut World, (route, at): (&str, DateTime<Utc>)) -> Result<()> {
    world.set_now(at);
    for lane in ["months", "stripe", "shopify"] {
        let wake = format!("update pgmq.q_jobs_{lane} set vt = '-infinity'");
        sqlx::query(sqlx::AssertSqlSafe(wake)).execute(world.pool()).await?;
    }
    let answer = world.call(Method::GET, route, "").await?;
    anyhow::ensure!(answer.status == 200, "{route} {at} {}", answer.text);
    Ok(())
}

fn recaps(world: &World, address: &str) -> Vec<String> {
    let mails = mails_to(world, address).into_iter();
    mails.filter(|mail| plain(&mail.subject).contains("récapitulatif")).map(|mail| text(&mail)).collect()
}

/// Connects somebody to an account with 42 € and a shop with 8 €.
async fn with_both(world: &World, name: &str, paid: DateTime<Utc>) -> Result<()> {
    let (account, shop) = (format!("acct_{name}"), format!("{name}.myshopify.com"));
    let user = world.stripe_user(&account).await?;
    let token = format!("shpat_{name}");
    world.shopify.add_shop(&shop, "EUR", &token);
    world.connect_shopify(user, &shop, &token, None).await?;
    world.stripe.payment(&account, paid, 4_200, "eur");
    world.shopify.tender(&shop, Tender::new(paid, "8.0", "EUR"));
    Ok(())
}

/// One of two accounts fails: the recap waits for it as long as it may pass, and leaves once, as whole as it can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_recap_waits_for_an_account_that_could_not_be_read() -> Result<()> {
    const STRIPE: bool = true;
    const SHOPIFY: bool = false;
    let theirs = "Vérifiez que cette source est bien reliée";
    let ours = "Votre connexion n’est pas en cause";
    let page = "<html>";
    // Whose account fails, how, for how many crons; with which cron the recap leaves, and what it says.
    let cases: [(&str, bool, Fault, usize, usize, &str); 10] = [
        ("page", SHOPIFY, answer(200, page), 1, 1, "Total importé, provisoire : 50,00 €"),
        ("pages", STRIPE, answer(200, page), 2, 2, "Total importé, provisoire : 50,00 €"),
        ("long", STRIPE, answer(200, "{}"), 5, 6, "Total importé : 50,00 €"),
        ("once", SHOPIFY, answer(401, ""), 1, 1, "Total importé, provisoire : 50,00 €"),
        ("locked", SHOPIFY, answer(423, ""), 1, 1, "Total importé, provisoire : 50,00 €"),
        ("twice", SHOPIFY, answer(403, ""), 2, 2, "Total importé, provisoire : 50,00 €"),
        ("denied", SHOPIFY, graphql_error("ACCESS_DENIED"), 99, 2, theirs),
        ("wrong", SHOPIFY, answer(400, ""), 99, 8, ours),
        ("never", STRIPE, answer(200, page), 99, 8, ours),
        ("known", SHOPIFY, answer(401, ""), 99, 0, theirs),
    ];
    let mut world = World::at(at("2026-11-29T06:02:00Z")).await?;
    let month = Month::new(2026, 11).expect("a month");
    for (name, ..) in &cases {
        with_both(&world, name, month.end() - TimeDelta::days(3)).await?;
    }
    // Also revoked, for long: of two providers that fail, the one that recovers is told of.
    with_both(&world, "half", month.end() - TimeDelta::days(3)).await?;
    for gone in ["known", "half"] {
        world.shopify.faults().add(Rule::on(&format!("{gone}.myshopify.com/"), answer(401, "")));
    }
    for hour in [6, 12, 18] {
        call(&mut world, ("daily-orchestrator", at("2026-11-29T00:02:00Z") + TimeDelta::hours(hour))).await?;
    }
    for (step, cron) in crons(month.last_day(), 3).into_iter().take(10).enumerate() {
        world.stripe.faults().clear();
        world.shopify.faults().clear();
        world.shopify.faults().add(Rule::on("half.myshopify.com/", answer(401, "")));
        if step < 2 {
            world.stripe.faults().add(Rule::on(LIST, answer(200, page)).of("acct_half"));
        }
        for (name, is_stripe, fault, fails, ..) in &cases {
            if step >= *fails {
            } else if *is_stripe {
                world.stripe.faults().add(Rule::on(LIST, fault.clone()).of(&format!("acct_{name}")));
            } else {
                world.shopify.faults().add(Rule::on(&format!("{name}.myshopify.com/"), fault.clone()));
            }
        }
        call(&mut world, cron).await?;
        for (name, .., expected, words) in &cases {
            let recaps = recaps(&world, &format!("acct_{name}@example.test"));
            assert_eq!(recaps.len(), usize::from(step >= *expected), "{name} after {step}: {recaps:?}");
            for recap in &recaps {
                says(recap, &[words]);
            }
        }
        let half = recaps(&world, "acct_half@example.test");
        assert_eq!(half.len(), usize::from(step >= 2), "after {step}: {half:?}");
        for recap in &half {
            says(recap, &["provisoire et incomplet : 42,00 €", "Shopify n’a pas pu être lu", theirs]);
            says_not(recap, &["Stripe n’a pas"]);
        }
    }
    Ok(())
}

/// A refusal that lasted for two crons is over: the cron whose sync finds that out takes the month up.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_comes_back_with_the_cron_that_can_read_it() -> Result<()> {
    let mut world = World::at(at("2028-02-29T06:02:00Z")).await?;
    let month = Month::new(2028, 2).expect("a month");
    let shops = [("s401", 401), ("s402", 402), ("s403", 403), ("s404", 404)];
    for (name, _) in shops {
        let shop = format!("{name}.myshopify.com");
        world.shopify_user(&shop).await?;
        world.shopify.tender(&shop, Tender::new(month.end() - TimeDelta::days(3), "42.0", "EUR"));
    }
    world.stripe_user("acct_proof").await?;
    world.stripe.payment("acct_proof", month.end() - TimeDelta::days(3), 4_200, "eur");
    let crons = crons(month.last_day(), 2);
    for (step, cron) in crons.into_iter().take(5).enumerate() {
        world.stripe.faults().clear();
        for (name, status) in shops {
            world.shopify.set_status(&format!("{name}.myshopify.com"), (step < 2).then_some(status));
        }
        if step < 2 {
            world.stripe.faults().add(Rule::on("/v1/account", answer(401, "")));
        }
        call(&mut world, cron).await?;
        let sent = world.resend.accepted_count();
        assert_eq!(sent, if step < 2 { 0 } else { 5 }, "after {step}");
    }
    Ok(())
}

/// Two crons at once, an operator's calls and a kill between: each recap leaves once, as whole as it is by then.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_between_makes_a_second_recap() -> Result<()> {
    let mut world = World::at(at("2026-12-31T06:02:00Z")).await?;
    let month = Month::new(2026, 12).expect("a month");
    world.stripe_user("acct_one").await?;
    world.stripe.payment("acct_one", month.end() - TimeDelta::days(3), 4_200, "eur");
    with_both(&world, "both", month.end() - TimeDelta::days(3)).await?;
    call(&mut world, ("daily-orchestrator", at("2026-12-31T06:02:00Z"))).await?;
    world.stripe.faults().add(Rule::on(LIST, answer(200, "<html>")));
    let crons = crons(month.last_day(), 2);
    call(&mut world, crons[0]).await?;
    world.set_now(crons[0].1 + TimeDelta::hours(1));
    for manual in ["sync-integrations", "drain-queue"] {
        let answer = world.call(Method::POST, manual, "").await?;
        assert!(answer.status.is_success(), "{manual} {}", answer.text);
    }
    assert_eq!(world.resend.accepted_count(), 0);

    // The next cron is killed while it reads the months.
    world.set_now(crons[1].1);
    let faults = world.stripe.faults().clone();
    faults.clear();
    faults.add(Rule::on(LIST, Fault::Held));
    faults.forget();
    let mut function = world.function("daily-orchestrator").await?;
    let bearer = format!("Bearer {}", crate::world::SECRET);
    {
        let killed = function.call(Method::GET, "", Some(&bearer));
        let begun = async {
            while faults.count(LIST) < 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = killed => panic!("answered: {answer:?}"),
            () = begun => {}
        }
    }
    function.kill().await?;
    faults.clear();
    assert_eq!(world.resend.accepted_count(), 0);

    world.set_now(crons[2].1);
    world.run("update pgmq.q_jobs_months set vt = '-infinity'").await?;
    let routes = ["daily-orchestrator", "daily-orchestrator", "monthly-orchestrator"];
    let at_once = routes.map(|route| world.call(Method::GET, route, ""));
    for answer in futures_util::future::try_join_all(at_once).await? {
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    for cron in &crons[3..] {
        call(&mut world, *cron).await?;
    }
    for (name, total) in [("acct_one", "42,00 €"), ("acct_both", "50,00 €")] {
        let recaps = recaps(&world, &format!("{name}@example.test"));
        assert_eq!(recaps.len(), 1, "{name}: {recaps:?}");
        says(&recaps[0], &[&format!("Total importé, provisoire : {total}")]);
    }
    Ok(())
}

/// A month that waited for us is read up to the instant at which it is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_month_that_waited_is_read_up_to_now() -> Result<()> {
    let mut world = World::at(at("2027-10-31T05:02:00Z")).await?;
    let month = Month::new(2027, 10).expect("a month");
    for (name, paid) in [("morning", at("2027-10-31T05:00:00Z")), ("noon", at("2027-10-31T12:00:00Z"))] {
        let account = format!("acct_{name}");
        world.stripe_user(&account).await?;
        world.stripe.payment(&account, paid, 4_200, "eur");
    }
    world.stripe.faults().add(Rule::on(LIST, Fault::CutBefore));
    let crons = crons(month.last_day(), 1);
    for cron in &crons[..2] {
        call(&mut world, *cron).await?;
    }
    world.stripe.faults().clear();
    call(&mut world, crons[2]).await?;
    for name in ["morning", "noon"] {
        let recaps = recaps(&world, &format!("acct_{name}@example.test"));
        assert_eq!(recaps.len(), 1, "{name}");
        says(&recaps[0], &["provisoire : 42,00 €", "Provisoire au 31 octobre 2027 à 19 h 02"]);
    }
    Ok(())
}

/// A month that is read late is told late, and not at all once its time is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_recap_beyond_its_time_is_not_sent() -> Result<()> {
    for (healed, left) in [("2026-12-20T12:02:00Z", 1), ("2027-01-03T12:02:00Z", 0)] {
        let mut world = World::at(at("2026-11-29T12:02:00Z")).await?;
        let month = Month::new(2026, 11).expect("a month");
        world.stripe_user("acct_late").await?;
        world.stripe.payment("acct_late", month.end() - TimeDelta::hours(3), 4_200, "eur");
        let right = world.replace("STRIPE_SECRET_KEY", Some("sk_test_rolled".into()));
        for cron in crons(month.last_day(), 1) {
            call(&mut world, cron).await?;
        }
        world.replace("STRIPE_SECRET_KEY", right);
        let healed = at(healed);
        for hours in [0, 6] {
            call(&mut world, ("daily-orchestrator", healed + TimeDelta::hours(hours))).await?;
        }
        let recaps = recaps(&world, "acct_late@example.test");
        assert_eq!(recaps.len(), left, "{healed}: {recaps:?}");
        for recap in recaps {
            says(&recap, &["Total importé : 42,00 €"]);
        }
        let status: String = world
            .value("select status from jobs.email_deliveries where kind = 'monthly_recap' and facts ->> 'month' = '2026-11'")
            .await?;
        assert_eq!(status, if left == 1 { "sent" } else { "expired" });
    }
    Ok(())
}
