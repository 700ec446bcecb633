//! What it shows: the same to browsers and programs, nothing whole that is personal, nothing unescaped.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::{Browser, json};
use crate::{
    mails,
    world::{ENCRYPTION_KEY, SECRET, World},
};

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> ${{7*7}}";

#[tokio::test(flavor = "multi_thread")]
async fn what_users_write_is_shown_as_text_and_addresses_are_cut() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    let user = mails::signed_up(&world, "camille.moreau@example.test", HOSTILE, 4).await?;
    sqlx::query("update public.user_profiles set full_name = $1").bind(HOSTILE).execute(world.pool()).await?;
    world.connect_stripe(user, "acct_x", "t").await?;
    sqlx::query("update public.integration_tokens set activity_type = $1, last_error = $1, shop_domain = $1")
        .bind(HOSTILE)
        .execute(world.pool())
        .await?;
    world.resend.refuse_address("camille.moreau@example.test");
    world.cron("daily-tasks", "").await?;
    world.post("sync-integrations", "").await?;
    // Whatever a provider may once answer.
    sqlx::query(
        "update jobs.integration_state set failures = 3, failed_at = $2, \
         failure = jsonb_build_object('code', $1::text, 'message', 'camille.moreau@example.test ' || $1)",
    )
    .bind(HOSTILE)
    .bind(world.now())
    .execute(world.pool())
    .await?;
    sqlx::query("update jobs.job_items set error = jsonb_build_object('code', 'x', 'message', 'to: <camille.moreau@example.test>; ' || $1) where status = 'failed'")
        .bind(HOSTILE)
        .execute(world.pool())
        .await?;
    let function = world.function("status").await?;
    let told = json(&function).await?;
    let page = Browser::signed_in(&function).await?.get("").await?.text;
    assert!(page.contains("c…@e…") && page.contains(&user.to_string()), "{page}");
    assert!(
        page.contains("&#60;script&#62;") && !page.contains("<script") && !page.contains("<img"),
        "{page}"
    );
    for text in [page, told.to_string()] {
        for secret in [
            SECRET,
            ENCRYPTION_KEY,
            "camille",
            "example.test",
            world.var("STRIPE_SECRET_KEY"),
            world.var("RESEND_API_KEY"),
            world.var("SUPABASE_SECRET_KEY"),
        ] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_and_programs_are_told_the_same() -> Result<()> {
    let mut world = World::new().await?;
    world.midday();
    world.stripe_user("acct_a").await?;
    world.shopify_user("shop-a.myshopify.com").await?;
    mails::signed_up(&world, "one@example.test", "One", 4).await?;
    world.cron("daily-orchestrator", "").await?;
    world.post("sync-integrations", "").await?;
    world.post("check-thresholds", "").await?;
    let function = world.function("status").await?;
    let (told, page) = (json(&function).await?, Browser::signed_in(&function).await?.get("").await?.text);
    for check in told["health"].as_array().unwrap() {
        for part in ["name", "message"] {
            assert!(page.contains(check[part].as_str().unwrap()), "{check}");
        }
    }
    let states: Vec<(&str, &str)> = told["health"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["name"].as_str().unwrap(), check["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        [
            ("Configuration", "bon"),
            ("Clé Supabase", "bon"),
            ("Base de données Supabase", "bon"),
            ("Migrations", "bon"),
            ("Resend", "bon"),
            ("Stripe", "bon"),
            ("Shopify", "inconnu"),
        ]
    );
    for task in told["tasks"].as_array().unwrap() {
        assert!(page.contains(task["name"].as_str().unwrap()), "{task}");
        for run in task["runs"].as_array().unwrap() {
            let slot =
                run["slot"].as_str().map_or("Sans créneau".to_owned(), |slot| format!("Créneau {slot}"));
            assert!(page.contains(&slot), "{run}");
        }
    }
    for missed in told["missed"].as_array().unwrap() {
        assert!(page.contains(missed["slot"].as_str().unwrap()), "{missed}");
    }
    for month in told["calendar"].as_array().unwrap() {
        assert!(page.contains(month["month"].as_str().unwrap()), "{month}");
    }
    assert_eq!(told["calendar"].as_array().unwrap().len(), 12);
    let sent: u64 =
        told["mails"]["days"].as_array().unwrap().iter().map(|day| day["sent"].as_u64().unwrap()).sum();
    assert_eq!(sent, 1, "{told:#}");
    assert!(page.contains("1\u{a0}envoyé,"), "{page}");
    assert_eq!(told["integrations"]["states"].as_array().unwrap().len(), 2, "{told:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_dependency_says_what_is_wrong_with_it() -> Result<()> {
    let state = async |world: &World, name: &str| -> Result<(String, String)> {
        let told = json(&world.function("status").await?).await?;
        let checks = told["health"].as_array().unwrap().clone();
        let check = checks.iter().find(|check| check["name"] == name).unwrap().clone();
        Ok((check["state"].as_str().unwrap().to_owned(), check.to_string()))
    };
    let mut world = World::new().await?;
    let stripe = world.replace("STRIPE_SECRET_KEY", Some("sk_test_wrong".into()));
    let (told, all) = state(&world, "Stripe").await?;
    assert!(told == "à corriger" && all.contains("STRIPE_SECRET_KEY") && !all.contains("wrong"), "{all}");
    world.replace("STRIPE_SECRET_KEY", stripe);

    let mail = world.replace("RESEND_API_KEY", Some("re_wrong".into()));
    assert_eq!(state(&world, "Resend").await?.0, "à corriger");
    world.replace("RESEND_API_KEY", mail);
    world
        .resend
        .faults()
        .add(stand_ins::faults::Rule::on("/domains", stand_ins::resend::restricted_api_key()));
    let (told, all) = state(&world, "Resend").await?;
    assert!(told == "inconnu" && all.contains("ne peut qu’envoyer"), "{all}");
    world.resend.faults().clear();

    world.unset("SENDER_IDENTITY");
    world.unset("SHOPIFY_CLIENT_ID");
    world.unset("RESEND_WEBHOOK_SECRET");
    let (told, all) = state(&world, "Configuration").await?;
    assert_eq!(told, "à corriger");
    for name in ["SENDER_IDENTITY", "SHOPIFY_CLIENT_ID", "RESEND_WEBHOOK_SECRET"] {
        assert!(all.contains(name), "{all}");
    }
    let url = world.replace("SUPABASE_URL", Some("http://127.0.0.1:1".into()));
    let (told, all) = state(&world, "Base de données Supabase").await?;
    assert!(told == "à corriger" && all.contains("injoignable"), "{all}");
    world.replace("SUPABASE_URL", url);
    world.run("drop function public.mail_feedback").await?;
    let (told, all) = state(&world, "Migrations").await?;
    assert!(told == "à corriger" && all.contains("mail_feedback"), "{all}");
    world.run("drop function public.jobs_status").await?;
    let (told, all) = state(&world, "Migrations").await?;
    assert!(told == "à corriger" && all.contains("migrations"), "{all}");
    Ok(())
}

/// The page asks whether all functions of this version are there: its list is what `service_role` may call.
#[tokio::test(flavor = "multi_thread")]
async fn every_function_of_this_version_is_on_the_list() -> Result<()> {
    let world = World::new().await?;
    let granted: Vec<String> = sqlx::query_scalar(
        "select distinct p.proname::text from pg_proc p where p.pronamespace = 'public'::regnamespace \
         and p.proname ~ '^(jobs|integration|mail|threshold)_' \
         and has_function_privilege('service_role', p.oid, 'execute') order by 1",
    )
    .fetch_all(world.pool())
    .await?;
    assert_eq!(granted, jobs::supabase::FUNCTIONS);
    Ok(())
}

/// 10,000 runs and 1,000 integrations: all of it is told. How large and how fast is printed (`--nocapture`), not
/// judged: machines differ.
#[tokio::test(flavor = "multi_thread")]
async fn measured_with_ten_thousand_runs() -> Result<()> {
    let mut world = World::new().await?;
    world.set("REPLAY_MAX_DAYS", "35");
    for sql in MANY {
        world.run(sql).await?;
    }
    let function = world.function("status").await?;
    let mut browser = Browser::signed_in(&function).await?;
    let mut times = Vec::new();
    let mut size = 0;
    for _ in 0..5 {
        let begun = Instant::now();
        size = browser.get("").await?.text.len();
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let told = json(&function).await?;
    let begun = Instant::now();
    let database: i64 = world
        .value("select length(public.jobs_status(array[]::text[], array['marketing_day3', 'sync_integrations', 'monthly_reminders', 'monthly_sync', 'check_thresholds'], 5, 14, 30, $now - interval '43 days', \
            $now - interval '30 days', $now - interval '36 hours', '{\"least\": 10, \"percent\": 50, \"hours\": 7, \"days\": 7, \"codes\": []}', $now)::text)::bigint")
        .await?;
    println!(
        "page: {size} bytes, median {:?}, slowest {:?}; JSON: {} bytes; database: {:?} for {database} bytes",
        times[times.len() / 2],
        times[times.len() - 1],
        told.to_string().len(),
        begun.elapsed()
    );
    assert_eq!(told["integrations"]["brokenTotal"], json!(50));
    Ok(())
}

/// Makes 90 days of syncs every six hours for 1,000 integrations, the daily and monthly tasks, and
/// enough runs for single users to make 10,000.
const MANY: [&str; 10] = [
    "insert into auth.users (id, email, email_confirmed_at, created_at) \
     select gen_random_uuid(), 'user' || n || '@example.test', $now, $now - interval '100 days' from generate_series(1, 1000) n",
    "insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id, connected_at) \
     select id, 'stripe', 'x', 'acct_' || id, $now - interval '95 days' from auth.users",
    "insert into jobs.integration_state (user_id, provider, last_success_at, failures, failed_at, failure) \
     select user_id, 'stripe', $now, case when n <= 50 then 7 else 0 end, case when n <= 50 then $now end, \
     case when n <= 50 then '{\"code\": \"token_rejected\", \"message\": \"La connexion à Stripe n’est plus valide : elle doit être refaite.\"}'::jsonb end \
     from (select user_id, row_number() over (order by user_id) as n from public.integration_tokens) t",
    "insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at) \
     select gen_random_uuid(), 'sync_integrations', to_char(at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24\"Z\"'), 'cron', '/', at, 'success', at, at + interval '3 minutes' \
     from generate_series(date_trunc('day', $now) - interval '90 days', $now, interval '6 hours') at",
    "insert into jobs.job_runs (run_id, task, trigger, route, as_of, parameters, status, started_at, finished_at) \
     select gen_random_uuid(), 'check_thresholds', 'manual', '/', at, jsonb_build_object('user_id', gen_random_uuid()), 'success', at, at + interval '1 second' \
     from generate_series($now - interval '90 days', $now, interval '13 minutes 30 seconds') at",
    "update jobs.job_runs set took = finished_at - started_at",
    "insert into jobs.job_slots (task, slot, run_id, claimed_at) select task, slot, run_id, started_at from jobs.job_runs where slot is not null",
    "insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, result, error, created_at, settled_at) \
     select r.run_id, 'stripe', 'sync_integration', t.id, t.user_id, case when s.failures > 0 then 'failed' else 'done' end, \
     '{\"records\": 3}', case when s.failures > 0 then s.failure end, r.started_at, r.finished_at \
     from jobs.job_runs r, public.integration_tokens t join jobs.integration_state s using (user_id) where r.slot is not null",
    "insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, reason, planned_at, settled_at) \
     select 'k/' || n || '/' || id, (array['threshold_alert', 'monthly_reminder', 'monthly_recap', 'marketing_day3'])[1 + n % 4], id, id, gen_random_uuid(), \
     case when n = 7 then 'skipped' else 'sent' end, case when n = 7 then 'suppressed' end, $now, $now - make_interval(days => n) \
     from auth.users, generate_series(0, 30) n",
    "analyze",
];
