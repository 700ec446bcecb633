//! Answers of the database are bounded by bytes. The table in `docs/ARCHITECTURE.md` says by what and up to how many;
//! here each function has its row, and the worst that we can think of stays within it.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use jobs::{providers::OUTAGE, supabase::FUNCTIONS};
use serde_json::{Value, json};
use uuid::Uuid;

use super::write;
use crate::world::World;

/// Returns the documented bound of each function, in bytes.
pub(super) fn bounds() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md"))
        .expect("readable");
    let (_, section) = text.split_once("\n## How large an answer of the database is\n").expect("the section");
    let section = section.split_once("\n## ").expect("a next section").0;
    let mut bounds = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let (number, unit) = cells[2].split_once(' ').expect("a number and a unit");
        let unit = if unit == "MiB" { 1024 * 1024 } else { 1024 };
        for name in cells[0].split(',') {
            let bound = number.parse::<usize>().expect("a number") * unit;
            let before = bounds.insert(name.trim().trim_matches('`').to_owned(), bound);
            assert_eq!(before, None, "{name} has two rows");
        }
    }
    bounds
}

/// Whoever adds a function says what bounds its answer.
#[test]
fn the_answer_of_every_function_has_a_bound() {
    let known: Vec<String> = bounds().into_keys().collect();
    assert_eq!(known, FUNCTIONS);
    assert!(bounds().values().all(|bound| *bound <= 16 * 1024 * 1024), "what our client takes");
}

/// Returns what a function answers, as it comes over the network.
pub(super) async fn answer(world: &World, function: &str, arguments: &Value) -> Result<String> {
    let gateway = &world.environment.gateway;
    let url = format!("{}/rest/v1/rpc/{function}", gateway.url());
    let request = jobs::http::client()?.post(url).header("apikey", &gateway.keys().secret).json(arguments);
    let response = request.send().await?;
    let status = response.status();
    let text = response.text().await?;
    ensure!(status.is_success(), "{function}: {status} {}", text.chars().take(300).collect::<String>());
    Ok(text)
}

/// This is the worst that the database may hold: 100,000 failed items with long errors, results
/// that are larger than any of ours, mails that were skipped for as many reasons, texts of 17 MB,
/// accounts and activities as long as they are read; `$run` is a run of the database.
const WORST: [&str; 12] = [
    "insert into auth.users (id, email, email_confirmed_at, created_at) select lpad(n::text, 32, '0')::uuid, \
     'somebody' || n || '@' || repeat('d', 200) || '.example.test', '2020-01-01', '2020-01-01' from generate_series(1, 300) n",
    "insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, started_at) values \
     ('$run', 'sync_integrations', '2026-11-18T06Z', 'cron', '/test', '$now', '$now')",
    "insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, settled_at, error, result) \
     select '$run', 'stripe', 'sync_integration', md5('i' || n)::uuid, lpad((1 + n % 300)::text, 32, '0')::uuid, 'failed', '$now', \
     jsonb_build_object('code', 'code' || n || repeat('c', 300), 'message', n || ' of ' || repeat('x', 480) || ' secret.person@hidden.example ' || repeat('y ', 2000)), \
     case when n <= 2000 then jsonb_build_object('records', 1, 'status', 'error', 'details', n || repeat('z', case when n <= 500 then 20000 else 15000 end)) \
     else '{\"records\": 1}' end from generate_series(1, 100000) n",
    "insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, settled_at, result) \
     select '$run', 'recaps', 'monthly_recap', md5('m' || n)::uuid, lpad((1 + n % 300)::text, 32, '0')::uuid, 'skipped', '$now', \
     jsonb_build_object('mail', 'skipped', 'reason', n || repeat('r', 10000)) from generate_series(1, 3000) n",
    "insert into jobs.email_deliveries (dedupe_key, kind, run_id, status, reason, settled_at) \
     select 'k' || n, 'monthly_recap', '$run', 'skipped', n || repeat('r', 10000), '$now' from generate_series(1, 3000) n",
    "insert into public.sync_logs (user_id, provider, sync_type, status, error_message, metadata, synced_at) \
     select null, 'jobs', 'cron', 'error', n || repeat('e', 20000) || 'secret.person@hidden.example', jsonb_build_object('route', '/api/' || n || repeat('p', 2000), \
     'answer', jsonb_build_object('problems', jsonb_build_array(jsonb_build_object('code', 'own_credentials', 'message', n || repeat('q', 20000))))), '$now' \
     from generate_series(1, 2000) n",
    "insert into public.integration_tokens (user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain) \
     select lpad(n::text, 32, '0')::uuid, p, case when n = 300 then repeat('a', 17000000) else repeat('a', 2048) end, repeat('b', 2048), repeat('c', 2048), \
     repeat('d', 2000) \
     from generate_series(1, 300) n, unnest(array['stripe', 'shopify']) p",
    "insert into jobs.integration_state (user_id, provider, failures, failed_at, failure) select lpad(n::text, 32, '0')::uuid, 'stripe', n, '$now', \
     jsonb_build_object('code', repeat('c', 5000), 'message', n || repeat('m', 1000000)) from generate_series(1, 60) n",
    "insert into jobs.unreadable_input (user_id, part, flaw, since) select lpad(n::text, 32, '0')::uuid, 'books', 'unreadable_amount', '$now' \
     from generate_series(1, 300) n",
    "insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source) \
     select lpad(n::text, 32, '0')::uuid, 2026, m, a || repeat('\u{1f4b6}', 90), 1000, s from generate_series(1, 40) n, generate_series(1, 12) m, \
     generate_series(10, 98) a, unnest(array['manual', 'auto_sync']) s",
    "insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, source_kind, state, method, original) \
     select lpad('1', 32, '0')::uuid, 'stripe', n || repeat(E'\\x02', 300), repeat(E'\\x02', 300), 'payment', '$now', 900000000000, 'EUR', repeat(E'\\x02', 300), \
     'succeeded', repeat(E'\\x02', 300), jsonb_build_object('amount', repeat(E'\\x02', 300), 'currency', repeat(E'\\x02', 300)) from generate_series(1, 25000) n",
    "update jobs.integration_state set account = repeat(E'\\x02', 300), counted = '{(,)}' where user_id = lpad('1', 32, '0')::uuid",
];

/// Returns the arguments of a dry run of the J+3 mail that looks at everybody.
fn dry_offers(now: DateTime<Utc>) -> Value {
    json!({
        "p_run_id": Uuid::new_v4(), "p_task": "marketing_day3", "p_kind": "marketing_day3", "p_slot": null,
        "p_trigger": "manual", "p_route": "/test", "p_as_of": now, "p_parameters": {}, "p_user_id": null,
        "p_dry_run": true, "p_prices": {}, "p_first_day": 0, "p_last_day": 5000, "p_month": null,
        "p_expires_at": null, "p_now": now,
    })
}

/// A call about the first user, of whom there is the most.
fn of_one_user(function: &'static str, now: DateTime<Utc>) -> (&'static str, Value) {
    let (user, today) = (format!("{:032}", 1), jobs::schedule::paris::date(now));
    let month = |month: &str| today.format(month).to_string();
    let arguments = if function == "jobs_user" {
        json!({
            "p_user_id": user, "p_month": month("%Y-%m-01"), "p_uncounted": false, "p_offset": 0, "p_limit": 100, "p_prices": {},
            "p_late_before": now, "p_first_day": 3, "p_last_day": 6, "p_kept_since": now, "p_now": now,
        })
    } else {
        json!({
            "p_user_id": user, "p_first": month("%Y-01-01"), "p_last": month("%Y-12-01"), "p_offset": 0, "p_limit": 20_000,
        })
    };
    (function, arguments)
}

/// Alerts of 100 users that name as many activities as are read, and those activities.
fn alerts() -> (Vec<String>, Vec<Value>) {
    let activities: Vec<String> = (10..110).map(|n| format!("{n}{}", "\u{1}".repeat(78))).collect();
    let alerts: Vec<Value> = (1..=100)
        .map(|n| {
            let crossings: Vec<Value> = (0..8).map(|_| json!({"threshold": "vat_services", "step": 80, "at": "x".repeat(200)})).collect();
            json!({
                "user_id": format!("{n:032}"), "year": 2026, "used_up": [{"threshold": "vat_services", "step": 80}],
                "facts": {"year": 2026, "crossings": crossings, "unknown_activities": activities},
            })
        })
        .collect();
    (activities, alerts)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worst_that_is_written_stays_within_the_bounds() -> Result<()> {
    let world = World::new().await?;
    let (run, now) = (Uuid::new_v4(), world.now());
    for sql in WORST {
        let sql = sql.replace("$run", &run.to_string()).replace("$now", &now.to_rfc3339());
        write(&world, sql.clone()).await.with_context(|| sql)?;
    }
    let sync = Uuid::new_v4();
    let plan = |run_id: Uuid, dry_run: bool| {
        json!({
            "p_run_id": run_id, "p_task": "sync_integrations", "p_kind": "sync_integration", "p_slot": null,
            "p_trigger": "manual", "p_route": "/test", "p_as_of": now, "p_parameters": {},
            "p_payload": {"days": null}, "p_user_id": null, "p_dry_run": dry_run, "p_most_days": jobs::schedule::MOST_DAYS, "p_now": now,
        })
    };
    let (activities, alerts) = alerts();
    let alert_run = Uuid::new_v4();
    let plan_alerts = json!({
        "p_run_id": alert_run, "p_append": false, "p_task": "check_thresholds", "p_slot": null, "p_trigger": "manual",
        "p_route": "/test", "p_as_of": now, "p_parameters": {}, "p_due": [], "p_now": now,
        "p_outline": {"unknown_activities": activities.iter().map(|name| (name.clone(), json!(1))).collect::<serde_json::Map<_, _>>()},
    });
    let day = chrono::TimeDelta::days(1);
    let calls = [
        (
            "jobs_status",
            json!({
                "p_functions": FUNCTIONS.as_slice(), "p_tasks": jobs::schedule::Task::ALL, "p_runs": 5, "p_days": 14,
                "p_broken": 30, "p_since": now - day * 68, "p_failed_since": now - day * 30, "p_late_before": now - day,
                "p_outage": OUTAGE, "p_now": now,
            }),
        ),
        (
            "jobs_troubles",
            json!({
                "p_first_since": now - day * 8, "p_latest_since": now - day, "p_stuck_before": now - day,
                "p_slots_since": now - day * 60, "p_calls_since": now - day * 30,
                "p_outage": OUTAGE, "p_now": now,
            }),
        ),
        ("jobs_report", json!({"p_run_id": run, "p_limit": 1000, "p_bytes": 1024 * 1024, "p_now": now})),
        ("jobs_plan_sync", plan(Uuid::new_v4(), true)),
        ("jobs_plan_sync", plan(sync, false)),
        ("jobs_lanes", json!({})),
        ("jobs_plan_mails", dry_offers(now)),
        (
            "threshold_books",
            json!({
                "p_after": null, "p_limit": 20000, "p_user_id": null, "p_due": false, "p_floors": {"2026": 100},
                "p_bytes": 4 * 1024 * 1024, "p_noted_at": now, "p_now": now,
            }),
        ),
        ("jobs_note_alerts", json!({"p_run_id": alert_run, "p_alerts": alerts, "p_now": now})),
        ("jobs_plan_alerts", plan_alerts),
        (
            "mail_claim",
            json!({
                "p_claim": Uuid::new_v4(), "p_limit": 100, "p_seconds": 60, "p_prices": null, "p_outage": OUTAGE, "p_now": now,
            }),
        ),
        (
            "jobs_claim",
            json!({"p_claim": Uuid::new_v4(), "p_lane": "stripe", "p_limit": 256, "p_seconds": 60}),
        ),
    ];
    let bounds = bounds();
    let mut sizes = BTreeMap::new();
    let of_one_user = ["jobs_user", "jobs_user_receipts"].map(|function| of_one_user(function, now));
    for (function, arguments) in calls.into_iter().chain(of_one_user) {
        let text = answer(&world, function, &arguments).await?;
        println!("{function}: {} bytes of {}", text.len(), bounds[function]);
        assert!(text.len() <= bounds[function], "{function}: {} bytes", text.len());
        for hidden in ["secret.person", "hidden.example"] {
            assert!(
                !["jobs_status", "jobs_troubles"].contains(&function) || !text.contains(hidden),
                "{function}: {hidden}"
            );
        }
        sizes.insert(function, text.len());
    }
    // They do tell of it: each is more than what it answers of nothing.
    for (function, least) in [
        ("jobs_status", 15_000),
        ("jobs_report", 500_000),
        ("jobs_user", 200_000),
        ("jobs_user_receipts", 2_000_000),
        ("jobs_troubles", 10_000),
        ("threshold_books", 1_000_000),
        ("mail_claim", 1_000_000),
    ] {
        assert!(sizes[function] > least, "{function}: {} bytes", sizes[function]);
    }

    let items: Vec<i64> = sqlx::query_scalar(
        "select item_id from jobs.job_items where run_id = $1 order by user_id desc limit 256",
    )
    .bind(sync)
    .fetch_all(world.pool())
    .await?;
    assert_eq!(items.len(), 256);
    let context = answer(&world, "integration_context", &json!({"p_items": items})).await?;
    assert!(context.len() > 1_000_000 && context.len() <= bounds["integration_context"], "{}", context.len());
    Ok(())
}
