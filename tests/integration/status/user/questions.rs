//! Questions that an operator is asked, of a company in which each has its reason: the answer is in the JSON.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use stand_ins::shopify::Tender;
use uuid::Uuid;

use super::look;
use crate::{
    clock::at,
    mails::given::{about, turnover},
    world::{Function, World},
};

/// What the page says of a mail whose address refused it.
const BOUNCED: &str = "L’adresse n’existe pas ou refuse les courriels. Corrigée par l’utilisateur, elle reçoit ce qui est encore vrai.";

const SHOP: &str = "questions.myshopify.com";
const RUN: &str = "00000000-0000-4000-8000-000000000001";

/// The company, at noon of 28 November, with the monthly run of October behind it and no reminders.
struct Company {
    world: World,
    function: Function,
}

impl Company {
    async fn new() -> Result<Self> {
        let world = World::at(at("2026-11-28T12:00:00Z")).await?;
        world
            .run(
                "insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at) values \
                 ('00000000-0000-4000-8000-000000000001', 'monthly_sync', '2026-10', 'cron', '/', '2026-10-31T07:00:00Z', 'success', '2026-10-31T07:00:00Z', '2026-10-31T07:01:00Z')",
            )
            .await?;
        let function = world.function("status").await?;
        Ok(Self { world, function })
    }

    /// Somebody with an account at Stripe that was read an hour ago.
    async fn seller(&self, name: &str) -> Result<Uuid> {
        let user = self.world.user(&format!("{name}@example.test")).await?;
        self.world.connect_stripe(user, &format!("acct_{name}"), "t").await?;
        self.about(
            user,
            "insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted, last_success_at) \
             select user_id, provider, stripe_account_id, 'Prestation de services', '2026-10-01', '{[2026-10-01,)}', $now - interval '1 hour' \
             from public.integration_tokens where user_id = $1",
        )
        .await?;
        Ok(user)
    }

    async fn about(&self, user: Uuid, sql: &str) -> Result<()> {
        about(&self.world, user, sql).await
    }

    /// Their October was read on its last day, with this end.
    async fn october(&self, user: Uuid, status: &str, error: &str) -> Result<()> {
        let sql = format!(
            "insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, status, error, created_at, waiting_since, settled_at) \
             values ('{RUN}', 'months', 'sync_month', $1, $1, '{{\"month\": \"2026-10\", \"recap\": true}}', '{status}', {error}, \
             '2026-10-31T07:00:00Z', '2026-10-31T07:00:00Z', '2026-10-31T07:01:00Z')"
        );
        self.about(user, &sql).await
    }

    async fn sale(&self, user: Uuid, id: &str, month: &str) -> Result<()> {
        let sql = format!(
            "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency) \
             select $1, 'stripe', '{id}', s.account, 'payment', '{month}-10T09:00:00Z', 4200, 'EUR' from jobs.integration_state s where s.user_id = $1"
        );
        self.about(user, &sql).await
    }

    async fn look(&self, user: Uuid, more: &str) -> Result<Value> {
        look(&self.function, user, more).await
    }
}

/// Asserts that some element of a list has these values at these places.
#[track_caller]
fn has(list: &Value, expected: &[(&str, Value)]) {
    let fits = |one: &Value| expected.iter().all(|(place, value)| one.pointer(place) == Some(value));
    assert!(list.as_array().expect("a list").iter().any(fits), "{expected:?} is not in {list:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn about_money() -> Result<()> {
    let Company { world, function } = Company::new().await?;
    let user = world.stripe_user("acct_money").await?;
    world.shopify.add_shop(SHOP, "EUR", "shpat_questions");
    world.connect_shopify(user, SHOP, "shpat_questions", None).await?;
    let day = "2026-11-10T09:00:00Z";
    let both = world.stripe.payment("acct_money", at(day), 10_000, "eur");
    world.shopify.tender(SHOP, Tender::new(at(day), "100.0", "EUR").reference(&both.charge));
    world.stripe.debit("acct_money", at("2026-11-26T09:00:00Z"), 5_000, at("2026-11-30T09:00:00Z"));
    world.stripe.payment("acct_money", at("2026-11-16T09:00:00Z"), 700, "usd");
    world.stripe.payment("acct_money", at("2026-10-31T09:00:00Z"), 900, "eur");
    world.shopify.tender(SHOP, Tender::new(at("2026-11-17T09:00:00Z"), "30.0", "EUR").method("gift_card"));
    world.post("sync-integrations", "").await?;
    turnover(&world, user, "2026-11", "Prestation de services", "250", "manual").await?;
    about(
        &world,
        user,
        "update public.ca_records set amount_eur = 120 where user_id = $1 and source = 'auto_sync'",
    )
    .await?;
    world.post("sync-integrations", "").await?;
    let told = look(&function, user, "&month=2026-11").await?;
    let month = &told["month"];

    // 1. "My November is wrong": it is not whole, and says why.
    assert_eq!(
        (&month["worth"]["status"], &month["worth"]["flaws"]["currency"]),
        (&json!("partial"), &json!(1)),
        "{month:#}"
    );
    // 2. "A sale in dollars is missing."
    has(&month["movements"], &[("/currency", json!("USD")), ("/reason/code", json!("currency"))]);
    // 3. "A sale of my shop is not counted": Stripe has it.
    let twin = &month["movements"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["amount"] == 10_000 && one["provider"] == "stripe")
        .unwrap()["id"];
    has(&month["movements"], &[("/reason/code", json!("reported_twice")), ("/twin", twin.clone())]);
    // 4. "A direct debit is missing": it has not come.
    has(
        &month["movements"],
        &[("/amount", json!(5_000)), ("/reason/said", json!("paiement ou remboursement en attente"))],
    );
    // 5. "What was paid with a gift card is missing."
    has(&month["movements"], &[("/amount", json!(3_000)), ("/reason/code", json!("gift_card"))]);
    // 6. "Your figure is not mine": the row is the user's by now.
    has(&month["totals"], &[("/computed", json!(10_000)), ("/recorded", json!(12_000))]);
    // 7. "It is in my books twice": typed beside imported.
    assert_eq!(
        (&month["recorded"]["typed"], &month["recorded"]["imported"]),
        (&json!(25_000), &json!(12_000))
    );
    // 8. "October is missing": it lies before the connection.
    let october = look(&function, user, "&month=2026-10").await?;
    has(
        &october["month"]["movements"],
        &[("/amount", json!(900)), ("/reason/code", json!("before_connection"))],
    );
    // 9. "My shop will stop": its token is permanent.
    has(&told["connections"], &[("/provider", json!("shopify")), ("/isPermanent", json!(true))]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn about_mails() -> Result<()> {
    let company = Company::new().await?;
    let recap = |reason: &str| {
        [("/kind", json!("monthly_recap")), ("/month", json!("2026-10")), ("/reason/code", json!(reason))]
    };

    // 10. "Why did she get no recap in October?": she refuses them.
    let refuses = company.seller("refuses").await?;
    company.october(refuses, "done", "null").await?;
    company.sale(refuses, "t1", "2026-10").await?;
    company
        .about(
            refuses,
            "insert into public.email_preferences (user_id, monthly_recap_email) values ($1, false)",
        )
        .await?;
    let told = company.look(refuses, "").await?;
    has(&told["expected"], &recap("refused_by_user"));
    assert_eq!(told["person"]["wants"]["monthlyRecap"], false);
    // 11. "And he?": nothing was sold.
    let idle = company.seller("idle").await?;
    company.october(idle, "done", "null").await?;
    has(&company.look(idle, "").await?["expected"], &recap("no_movement"));
    // 12. "And they?": the month could not be read.
    let failed = company.seller("failed").await?;
    company
        .october(failed, "failed", "'{\"code\": \"frozen_shop\", \"message\": \"La boutique est gelée.\"}'")
        .await?;
    let told = company.look(failed, "").await?;
    has(
        &told["expected"],
        &[recap("month_failed").as_slice(), &[("/message", json!("La boutique est gelée."))]].concat(),
    );
    // 13. "And she?": nothing is connected.
    let alone = company.world.user("alone@example.test").await?;
    has(&company.look(alone, "").await?["expected"], &recap("no_connection"));
    // 14. "No reminder": it is for Premium.
    let reminder = |reason: &str| {
        [("/kind", json!("monthly_reminder")), ("/month", json!("2026-10")), ("/reason/code", json!(reason))]
    };
    company
        .about(alone, "insert into public.email_preferences (user_id, monthly_reminder) values ($1, true)")
        .await?;
    has(&company.look(alone, "").await?["expected"], &reminder("not_premium"));
    // 15. "I am Premium, and got none": nobody's were sent that month.
    company.about(alone, "insert into public.subscriptions (user_id, status, price_id) values ($1, 'active', 'price_premium')").await?;
    let told = company.look(alone, "").await?;
    has(&told["expected"], &reminder("run_missed"));
    // 16. "Why no offer?": it is for who pays nothing.
    has(&told["expected"], &[("/kind", json!("marketing_day3")), ("/reason/code", json!("paid_plan"))]);
    // 17. "I saw a mail announced, and it never came": it came back, and nothing goes there any more.
    company
        .about(
            idle,
            "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, feedback, provider_id, settled_at) \
             values ('monthly_recap/' || $1 || '/2026-09', 'monthly_recap', $1, $1, gen_random_uuid(), 'sent', 'bounced', 're_1', $now - interval '28 days')",
        )
        .await?;
    company.world.run("insert into jobs.email_suppressions (address_hash, reason) values (jobs.address_hash('idle@example.test'), 'bounced')").await?;
    let told = company.look(idle, "").await?;
    has(&told["mails"]["shown"], &[("/about", json!("2026-09")), ("/feedback/said", json!(BOUNCED))]);
    assert_eq!(told["person"]["unreachable"]["code"], "suppressed");
    has(&told["expected"], &recap("suppressed"));
    Ok(())
}

/// What a recap said was put right, or there was nothing to put right.
#[tokio::test(flavor = "multi_thread")]
async fn about_definitive_totals() -> Result<()> {
    let company = Company::new().await?;
    let definitive = |code: &str| {
        [("/kind", json!("definitive_month")), ("/month", json!("2026-10")), ("/reason/code", json!(code))]
    };
    // Without a recap there is no total to put right: nobody expects the mail.
    let seller = company.seller("totals").await?;
    let told = company.look(seller, "").await?;
    let kinds = told["expected"].as_array().context("a list")?.iter().map(|one| one["kind"].clone());
    assert!(!kinds.collect::<Vec<_>>().contains(&json!("definitive_month")), "{told:#}");
    // 24. "My October is not what the recap said": the 2nd has not come by.
    company
        .about(
            seller,
            "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, facts, settled_at) \
             values ('monthly_recap/' || $1 || '/2026-10', 'monthly_recap', $1, $1, gen_random_uuid(), 'sent', '{\"total\": 4200}', '2026-10-31T07:05:00Z')",
        )
        .await?;
    company
        .about(
            seller,
            "insert into jobs.auto_sync_totals (user_id, month, activity, computed_eur) \
             values ($1, '2026-10-01', 'Prestation de services', 50)",
        )
        .await?;
    has(&company.look(seller, "").await?["expected"], &definitive("run_missed"));
    // 25. The total is the same again: there is nothing to put right.
    company.about(seller, "update jobs.auto_sync_totals set computed_eur = 42 where user_id = $1").await?;
    has(&company.look(seller, "").await?["expected"], &definitive("month_unchanged"));
    // 26. It was said in the reminder, whose reader gets no second mail.
    company
        .about(
            seller,
            "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, settled_at) \
             values ('monthly_reminder/' || $1 || '/2026-10', 'monthly_reminder', $1, $1, gen_random_uuid(), 'sent', '2026-11-02T07:05:00Z')",
        )
        .await?;
    has(&company.look(seller, "").await?["expected"], &definitive("told_by_reminder"));
    // 27. It was planned, and left out when it was to leave.
    company
        .about(
            seller,
            "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, reason, settled_at) \
             values ('definitive_month/' || $1 || '/2026-10', 'definitive_month', $1, $1, gen_random_uuid(), 'skipped', 'month_incomplete', '2026-11-02T07:05:00Z')",
        )
        .await?;
    let told = company.look(seller, "").await?;
    has(
        &told["expected"],
        &[definitive("month_incomplete").as_slice(), &[("/status/code", json!("skipped"))]].concat(),
    );
    Ok(())
}

/// 28. "I said that it is the same money": the answer is there, and since when.
#[tokio::test(flavor = "multi_thread")]
async fn about_confirmations() -> Result<()> {
    let company = Company::new().await?;
    let user = company.world.user("confirms@example.test").await?;
    let told = company.look(user, "").await?;
    assert_eq!(told["confirmations"], json!({"every": null, "months": []}), "{told:#}");
    let answer = "insert into jobs.book_confirmations (user_id, month, verdict, confirmed_at) values \
                  ($1, null, 'same', '2026-11-03T09:00:00Z'), ($1, '2026-10-01', 'distinct', '2026-11-04T09:00:00Z')";
    company.about(user, answer).await?;
    let told = company.look(user, "").await?;
    assert_eq!(
        told["confirmations"],
        json!({"every": {"verdict": "same", "at": "2026-11-03T09:00:00Z"},
            "months": [{"month": "2026-10", "verdict": "distinct", "at": "2026-11-04T09:00:00Z"}]}),
        "{told:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn about_thresholds_and_connections() -> Result<()> {
    let company = Company::new().await?;
    let earns = async |name: &str, euros: &str| -> Result<Uuid> {
        let user = company.world.user(&format!("{name}@example.test")).await?;
        turnover(&company.world, user, "2026-05", "Prestation de services", euros, "manual").await?;
        Ok(user)
    };
    // 18. "Why no alert?": not there yet.
    let below = earns("below", "20000").await?;
    let told = company.look(below, "").await?;
    has(
        &told["law"]["years"][0]["ceilings"],
        &[("/threshold", json!("vat_base_services")), ("/percent", json!(53))],
    );
    assert_eq!(told["law"]["years"][0]["wouldTell"], json!([]), "{:#}", told["law"]);
    // 19. "Above, and no alert": refused; but the next check would tell it.
    let above = earns("above", "36000").await?;
    company
        .about(
            above,
            "insert into public.email_preferences (user_id, threshold_alert_email) values ($1, false)",
        )
        .await?;
    let told = company.look(above, "").await?;
    assert_eq!(told["law"]["keptFromThem"]["code"], "refused_by_user", "{:#}", told["law"]);
    has(
        &told["law"]["years"][0]["wouldTell"],
        &[("/threshold", json!("vat_base_services")), ("/step", json!(90))],
    );
    // 20. "Above, and no alert": it was told before.
    company
        .about(above, "update public.email_preferences set threshold_alert_email = true where user_id = $1")
        .await?;
    company.world.post("check-thresholds", "").await?;
    let told = company.look(above, "").await?;
    has(&told["told"], &[("/threshold", json!("vat_base_services")), ("/step", json!(90))]);
    assert_eq!(told["law"]["years"][0]["wouldTell"], json!([]), "{:#}", told["law"]);
    has(&told["mails"]["shown"], &[("/kind", json!("threshold_alert")), ("/status/code", json!("sent"))]);
    // 21. "Above, and no alert": an amount is no number.
    company.about(below, "update public.ca_records set amount_eur = 'NaN' where user_id = $1").await?;
    let told = company.look(below, "&month=2026-05").await?;
    assert_eq!(told["law"]["unreadable"]["code"], "unreadable_amount", "{:#}", told["law"]);
    assert_eq!(told["month"]["recorded"]["flaw"]["code"], "unreadable_amount", "{:#}", told["month"]);

    // 22. "Nothing comes in any more": the connection is refused, and who has to act is said.
    let refused = company.seller("refused").await?;
    company
        .about(
            refused,
            "update jobs.integration_state set failures = 4, failed_at = $now, failure = \
             '{\"code\": \"token_rejected\", \"message\": \"La connexion à Stripe n’est plus valide.\"}' where user_id = $1",
        )
        .await?;
    let told = company.look(refused, "").await?;
    let to_do = json!(["L’utilisateur refait la connexion dans l’application."]);
    has(
        &told["connections"],
        &[("/state", json!("failing")), ("/code", json!("token_rejected")), ("/toDo", to_do)],
    );
    // 23. "My first account still counts": its books are there.
    company
        .about(
            refused,
            "insert into jobs.former_accounts (user_id, provider, account, first_month, counted, covered, replaced_at) \
             values ($1, 'stripe', 'acct_first', '2026-06-01', '{[2026-06-01,2026-11-01)}', '{}', '2026-10-05T09:00:00Z')",
        )
        .await?;
    has(
        &company.look(refused, "").await?["accounts"],
        &[("/account", json!("acct_first")), ("/leftOut", json!(false))],
    );
    Ok(())
}
