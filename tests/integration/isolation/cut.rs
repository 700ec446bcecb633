//! What is planned, logged or mailed is cut: however long the texts that a user or a vendor wrote, no row of ours, no mail
//! and no line of the log is long.

use anyhow::Result;
use reqwest::Method;
use serde_json::json;
use stand_ins::faults::{Fault, Rule};

use super::{ORDINARY_DAY, busy_user, run_every_route, write};
use crate::world::{SECRET, World};

/// No value of ours is larger; an item's result or a call's answer may be a list.
const MOST_BYTES: i64 = 64 * 1024;
/// No mail and no line of the log is longer.
const MOST_CHARACTERS: usize = 64 * 1024;

/// Selects every column of our tables, and of the log, that holds a text or JSON.
const COLUMNS: &str = "select format('%I.%I', c.table_schema, c.table_name), quote_ident(c.column_name) \
    from information_schema.columns c join information_schema.tables t using (table_schema, table_name) \
    where t.table_type = 'BASE TABLE' and c.udt_name in ('text', 'varchar', 'jsonb') \
    and (c.table_schema = 'jobs' or (c.table_schema = 'public' and c.table_name = 'sync_logs') \
    or (c.table_name, c.column_name) = ('integration_tokens', 'last_error')) order by 1, 2";

#[tokio::test(flavor = "multi_thread")]
async fn no_row_mail_or_line_is_long() -> Result<()> {
    let mut world = World::new().await?;
    for (name, sql) in [
        (
            "activity",
            "update public.ca_records set activity_type = repeat('Troc <b> ', 2000000) where user_id = ",
        ),
        ("name", "update public.user_profiles set full_name = repeat('Camille', 2000000) where id = "),
        (
            "metadata",
            "update auth.users set raw_user_meta_data = jsonb_build_object('plan', repeat('x', 17000000)) where id = ",
        ),
        (
            "account",
            "update public.integration_tokens set stripe_account_id = 'acct_' || repeat('x', 2040) where user_id = ",
        ),
        (
            "token",
            "update public.integration_tokens set access_token = repeat('x', 17000000) where user_id = ",
        ),
        ("vendor", "select 1 from auth.users where id = "),
    ] {
        let user = busy_user(&world, name, true).await?;
        write(&world, format!("{sql}'{user}'")).await?;
    }
    let long = "acct_vendor@example.test ".repeat(40_000);
    // A vendor that quotes what it was sent, at length.
    let refusal =
        json!({"error": {"type": "invalid_request_error", "code": "resource_missing", "message": long}});
    world.stripe.faults().add(Rule::on("balance_transactions", Fault::json(400, &refusal)).times(3));
    let refused = json!({"name": "validation_error", "statusCode": 422, "message": long});
    world.resend.faults().add(Rule::on("/emails", Fault::json(422, &refused)).times(6));

    world.set_now(crate::clock::at(ORDINARY_DAY));
    for name in ["sync-integrations", "check-thresholds"] {
        let function = world.function(name).await?;
        let answer = function.call(Method::POST, "", Some(&format!("Bearer {SECRET}"))).await?;
        assert_eq!(answer.status, 200, "{}", answer.text.chars().take(500).collect::<String>());
        assert!(answer.text.len() < MOST_CHARACTERS, "{name}: {} bytes", answer.text.len());
        let longest = function.log().lines().map(str::len).max().unwrap_or_default();
        assert!(longest > 0 && longest < MOST_CHARACTERS, "{name}: a line of {longest} bytes");
    }
    run_every_route(&mut world).await?;

    let columns: Vec<(String, String)> = sqlx::query_as(COLUMNS).fetch_all(world.pool()).await?;
    assert!(columns.len() > 40, "{columns:?}");
    for (table, column) in &columns {
        let sql = format!("select coalesce(max(octet_length({column}::text)), 0)::bigint from {table}");
        let bytes: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(world.pool()).await?;
        assert!(bytes <= MOST_BYTES, "{table}.{column}: {bytes} bytes");
    }
    let failures: i64 = world.value("select count(*) from jobs.job_items where error is not null").await?;
    let longest: i64 = world
        .value("select max(length(error ->> 'message'))::bigint from jobs.job_items where error is not null")
        .await?;
    assert!(failures > 0 && longest <= 500, "{failures} failures, a message of {longest}");
    for accepted in world.resend.accepted() {
        let mail = &accepted.mail;
        for part in [Some(&mail.subject), mail.text.as_ref(), mail.html.as_ref()].into_iter().flatten() {
            assert!(part.len() < MOST_CHARACTERS, "a part of {} bytes", part.len());
        }
    }
    Ok(())
}
