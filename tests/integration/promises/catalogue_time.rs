//! What decides takes the function's instant: read from the catalogue, which functions and which columns go by the
//! database's own time, and why they may.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::world::World;

/// Selects our functions, with their comments cut out of their text.
const OURS: &str = "(select p.oid, p.proname::text as name, p.pronargdefaults as defaults, \
    regexp_replace(p.prosrc, '--[^\\n]*', '', 'g') as source from pg_proc p \
    where p.pronamespace = 'jobs'::regnamespace or (p.pronamespace = 'public'::regnamespace \
    and p.proname ~ '^(jobs|integration|mail|threshold)_'))";

/// Matches everything by which SQL asks what time it is.
const CLOCK: &str = "'(clock_timestamp|transaction_timestamp|statement_timestamp|timeofday)|\\mnow\\s*\\(|\
    \\m(current|local)_?(date|time|timestamp)\\M|''(now|today|tomorrow|yesterday)'''";

/// Somebody else may hold it until an instant: holders on several machines agree on one clock.
const LEASE: &str = "lease";
/// It is for turns, for all instances together.
const RATE: &str = "rate";
/// A message is visible at once, as pgmq sees it.
const VISIBLE: &str = "visible";
/// It measures how long something took, within a call.
const MEASURE: &str = "measure";
/// It notes when a row was written, read by people only.
const NOTE: &str = "note";
/// It finds what this very transaction wrote, by the transaction's own time.
const OWN_WRITES: &str = "own writes";
/// It serves a row that somebody inserts by hand: every function names the instant, see [`NAMED`].
const BY_HAND: &str = "by hand";

/// Lists the functions that may use the database's time, and what for.
const FUNCTIONS: &[(&str, &[&str])] = &[
    ("hold_mails", &[LEASE]),
    ("hold_trouble_mails", &[LEASE]),
    ("integration_prove", &[NOTE]),
    ("integration_refresh_begin", &[LEASE]),
    ("integration_refresh_store", &[NOTE]),
    ("jobs_claim", &[LEASE, MEASURE]),
    ("jobs_close_runs", &[MEASURE]),
    ("jobs_heartbeat", &[LEASE]),
    ("jobs_hold_chain", &[LEASE]),
    ("jobs_hold_turns", &[RATE]),
    ("jobs_lanes", &[LEASE]),
    ("jobs_learn_pace", &[RATE]),
    ("jobs_lease_turns", &[RATE]),
    ("jobs_plan_sync", &[LEASE]),
    ("jobs_prune", &[NOTE]),
    ("jobs_report", &[LEASE]),
    ("jobs_retry", &[LEASE]),
    ("jobs_run_waits", &[LEASE]),
    ("mail_claim", &[LEASE]),
    ("mail_give_back", &[NOTE]),
    ("mail_settle", &[NOTE]),
    ("mail_split", &[NOTE]),
    ("mail_unsubscribe", &[NOTE]),
    ("recompute_totals", &[NOTE]),
    ("restore_messages", &[LEASE, VISIBLE]),
    ("send_messages", &[VISIBLE]),
    ("settle_figures", &[NOTE]),
    ("status_queue", &[LEASE]),
    ("store_movements", &[NOTE]),
    ("write_mail_outcomes", &[NOTE]),
];

/// Lists the columns of our tables whose default is the database's time, and what for.
const DEFAULTS: &[(&str, &str)] = &[
    ("auto_sync_totals.updated_at", NOTE),
    ("email_deliveries.planned_at", NOTE),
    ("email_suppressions.created_at", NOTE),
    ("integration_state.updated_at", NOTE),
    ("integration_transactions.first_seen_at", NOTE),
    ("integration_transactions.updated_at", NOTE),
    ("job_items.created_at", BY_HAND),
    ("job_items.waiting_since", BY_HAND),
    ("job_runs.started_at", MEASURE),
    ("threshold_alerts.created_at", NOTE),
    ("threshold_checks_due.since", OWN_WRITES),
];

/// Lists columns that something is decided by: each insert of ours gives the function's instant.
const NAMED: &[(&str, &str)] = &[
    ("jobs.job_items", "created_at"),
    ("jobs.job_items", "waiting_since"),
    ("jobs.job_slots", "claimed_at"),
    ("jobs.job_answers", "answered_at"),
    ("jobs.email_batches", "sealed_at"),
    ("jobs.email_events", "received_at"),
    ("jobs.found_alerts", "found_at"),
    ("jobs.book_confirmations", "confirmed_at"),
    ("jobs.job_sign_ins", "tried_at"),
    ("public.marketing_emails", "sent_at"),
    ("public.sync_logs", "synced_at"),
];

async fn rows<T>(world: &World, sql: String) -> Result<Vec<T>>
where
    T: Send + Unpin + for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow>,
{
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(world.pool()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_databases_time_is_for_leases_rates_and_notes() -> Result<()> {
    let world = World::new().await?;
    let found: Vec<(String,)> =
        rows(&world, format!("select name from {OURS} f where source ~* {CLOCK} order by 1")).await?;
    let found: BTreeSet<&str> = found.iter().map(|(name,)| name.as_str()).collect();
    let expected: BTreeSet<&str> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, expected, "a function that decides takes p_now");

    let found: Vec<(String,)> = rows(
        &world,
        format!(
            "select format('%s.%s', c.relname, a.attname) from pg_attrdef d \
             join pg_class c on c.oid = d.adrelid join pg_attribute a on (a.attrelid, a.attnum) = (d.adrelid, d.adnum) \
             where c.relnamespace = 'jobs'::regnamespace and pg_get_expr(d.adbin, d.adrelid) ~* {CLOCK} order by 1"
        ),
    )
    .await?;
    let found: BTreeSet<&str> = found.iter().map(|(name,)| name.as_str()).collect();
    let expected: BTreeSet<&str> = DEFAULTS.iter().map(|(column, _)| *column).collect();
    assert_eq!(found, expected, "a column that something is decided by has no default");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_insert_dates_what_is_decided_by() -> Result<()> {
    let world = World::new().await?;
    let inserts: Vec<(String, String, String)> = rows(
        &world,
        format!(
            "select f.name, m[1], m[2] from {OURS} f, lateral regexp_matches(f.source, \
             'insert into ([a-z_.]+)(?: as [a-z]+)?\\s*\\(([^)]*)\\)', 'g') m"
        ),
    )
    .await?;
    let mut unnamed = Vec::new();
    for (table, column) in NAMED {
        let of_table: Vec<_> = inserts.iter().filter(|(_, into, _)| into == table).collect();
        assert!(!of_table.is_empty(), "nothing is inserted into {table}");
        for (function, ..) in
            of_table.iter().filter(|(.., columns)| !columns.split(',').any(|name| name.trim() == *column))
        {
            unnamed.push((function.as_str(), *table, *column));
        }
    }
    assert!(unnamed.is_empty(), "left to the column's default: {unnamed:?}");
    Ok(())
}

/// A parameter that is forgotten is an error, never a default: least of all an instant.
#[tokio::test(flavor = "multi_thread")]
async fn no_parameter_has_a_default() -> Result<()> {
    let world = World::new().await?;
    let found: Vec<(String,)> =
        rows(&world, format!("select name from {OURS} f where defaults > 0 order by 1")).await?;
    assert_eq!(found, []);
    Ok(())
}
