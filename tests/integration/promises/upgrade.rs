//! An upgrade: what stood in the ledger before it mirrored its source keeps its meaning.

use anyhow::Result;
use processes::database::{Template, apply, migrations};

use super::migrations::database;

/// Writes rows as the first three migrations leave them: what counts, what did not and why, an account that was replaced,
/// what was told.
const BEFORE: &str = "
    insert into auth.users (id, email) values ('00000000-0000-0000-0000-000000000001', 'a@example.test');
    insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id, is_active)
        values ('00000000-0000-0000-0000-000000000001', 'stripe', 'aa:bb', 'acct_new', true);
    insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted, last_success_to)
        select '00000000-0000-0000-0000-000000000001', p, a, 'Prestation de services', '2026-09-01', '{[2026-09-01,)}',
            '2026-11-18T10:00:00Z'
        from (values ('stripe', 'acct_new'), ('shopify', 'one.myshopify.com')) s (p, a);
    update jobs.integration_state set trouble_mails = 2, trouble_mailed_at = '2026-11-17T10:00:00Z' where provider = 'stripe';
    insert into jobs.threshold_alerts (user_id, year, threshold, step, run_id)
        values ('00000000-0000-0000-0000-000000000001', 2026, 'vat_base_services', 80, gen_random_uuid());
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, settled_at)
        select 'integration_trouble/00000000-0000-0000-0000-000000000001/stripe/' || status, 'integration_trouble',
            '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000001', gen_random_uuid(), status, at::timestamptz
        from (values ('sent', '2026-11-10T10:00:00Z'), ('expired', '2026-11-17T10:00:00Z')) d (status, at);
    insert into jobs.integration_transactions
        (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, excluded)
        select '00000000-0000-0000-0000-000000000001', provider, id, account, kind, at::timestamptz, amount, currency,
            refs, excluded
        from (values
            ('stripe', 'txn_1', 'acct_new', 'payment', '2026-11-02T09:00:00Z', 10000, 'EUR', array['ch_1'], null),
            ('stripe', 'txn_2', 'acct_new', 'refund', '2026-11-03T09:00:00Z', -2000, 'EUR', array['ch_1'], null),
            ('stripe', 'txn_3', 'acct_new', 'payment', '2026-11-04T09:00:00Z', 500, 'USD', array['ch_3'], null),
            ('stripe', 'txn_4', 'acct_old', 'payment', '2026-09-20T09:00:00Z', 700, 'EUR', array['ch_4'], null),
            ('stripe', 'txn_6', 'acct_new', 'payment', '2026-09-25T09:00:00Z', 2000, 'EUR', array['py_6'], null),
            ('stripe', 'txn_7', 'acct_new', 'charge_failure', '2026-10-05T09:00:00Z', -2000, 'EUR', array['py_6'], null),
            ('stripe', 'txn_8', 'acct_new', 'payment', '2026-12-02T09:00:00Z', 1000000000000, 'EUR', array['ch_8'], null),
            ('stripe', 'txn_5', 'acct_new', 'partial_capture', '2026-11-05T09:00:00Z', -100, 'EUR', array['ch_1'], null),
            ('shopify', 't_1', 'one.myshopify.com', 'payment', '2026-11-02T09:00:00Z', 10000, 'EUR', array['ch_1'], null),
            ('shopify', 't_2', 'one.myshopify.com', 'payment', '2026-11-06T09:00:00Z', 300, 'EUR', array['gid://shopify/Order/2'], null),
            ('shopify', 't_3', 'one.myshopify.com', 'payment', '2026-11-06T09:00:00Z', 900, 'EUR', '{}', 'gift_card'),
            ('shopify', 't_4', 'one.myshopify.com', 'payment', '2026-11-06T09:00:00Z', 800, 'EUR', '{}', 'store_credit'),
            ('shopify', 't_5', 'one.myshopify.com', 'payment', '2026-11-06T09:00:00Z', 600, 'EUR', '{}', 'unresolved_currency'),
            ('shopify', 't_6', 'one.myshopify.com', 'dispute', '2026-11-07T09:00:00Z', -50, 'EUR', '{}', null)
        ) r (provider, id, account, kind, at, amount, currency, refs, excluded);";

const COUNTED: &str = "select coalesce(string_agg(format('%s %s %s', month, provider, amount), ', ' order by month, provider), '') from (
    select month::text, provider, sum(amount_minor) as amount from jobs.countable_movements(
        '00000000-0000-0000-0000-000000000001', '{2026-09-01,2026-10-01,2026-11-01}', true) group by 1, 2) s";

#[tokio::test]
async fn what_stood_in_the_ledger_keeps_its_meaning() -> Result<()> {
    let database = database(Template::Application).await?;
    let pool = database.pool();
    let files = migrations()?;
    let (first, later) = files.split_at(3);
    for file in first {
        apply(pool, &file.name, &file.sql).await?;
    }
    apply(pool, "rows", BEFORE).await?;
    let before: String = sqlx::query_scalar(COUNTED).fetch_one(pool).await?;
    assert_eq!(
        before,
        "2026-09-01 stripe 2700, 2026-10-01 stripe -2000, 2026-11-01 shopify 250, 2026-11-01 stripe 7900"
    );
    assert!(!later.is_empty(), "forward only, from the third on");
    for file in later {
        apply(pool, &file.name, &file.sql).await?;
    }
    // The first sync after it finds that the debit of September was never received: both of its months change.
    let follow = "select jobs.follow_movements('00000000-0000-0000-0000-000000000001', 'stripe', '{}', '2026-11-18T10:20:00Z')::text";
    let months: String = sqlx::query_scalar(follow).fetch_one(pool).await?;
    assert_eq!(months, "{2026-09-01,2026-10-01}");
    let after: String = sqlx::query_scalar(COUNTED).fetch_one(pool).await?;
    assert_eq!(after, "2026-09-01 stripe 700, 2026-11-01 shopify 250, 2026-11-01 stripe 7900");
    let excluded: Vec<(String, Option<String>)> = sqlx::query_as(
        "select external_id, excluded from jobs.integration_transactions where excluded is not null order by 1",
    )
    .fetch_all(pool)
    .await?;
    let excluded: Vec<_> =
        excluded.iter().map(|(id, why)| (id.as_str(), why.as_deref().unwrap_or_default())).collect();
    assert_eq!(
        excluded,
        [
            ("t_3", "gift_card"),
            ("t_4", "store_credit"),
            ("t_5", "unresolved_currency"),
            ("txn_3", "currency"),
            ("txn_6", "failed"),
            ("txn_7", "failed"),
            ("txn_8", "amount_not_read"),
        ]
    );
    // The books of the account that was replaced stay in its months.
    let former: String =
        sqlx::query_scalar("select format('%s %s', account, counted) from jobs.former_accounts")
            .fetch_one(pool)
            .await?;
    assert_eq!(former, "acct_old {[2026-09-01,2026-10-01)}");
    // What was told stays told for certain, once; a mail that asked nobody does not count.
    let told: String = sqlx::query_scalar(
        "select format('%s %s %s %s', threshold, step, told_as, times) from jobs.threshold_alerts",
    )
    .fetch_one(pool)
    .await?;
    assert_eq!(told, "vat_base_services 80 certain 1");
    let asked: String = sqlx::query_scalar(
        "select format('%s %s', trouble_mails, trouble_mailed_at at time zone 'UTC') from jobs.integration_state \
         where provider = 'stripe'",
    )
    .fetch_one(pool)
    .await?;
    assert_eq!(asked, "1 2026-11-10 10:00:00");
    Ok(())
}

/// Writes a user with Stripe, which was taken for services and is goods by now, and a shop, as they stood before a row that
/// a user took over stood for its own money alone. The user has edited, or deleted, Stripe's row of services; the
/// shop's row took Stripe's money, too, or (October) was kept out.
const TAKEN_OVER: &str = "
    insert into auth.users (id, email) select md5(n::text)::uuid, n || '@example.test' from generate_series(1, 2) n;
    insert into public.integration_tokens (user_id, provider, access_token, stripe_account_id, shop_domain, is_active)
        select id, p, 'aa:bb', 'acct_new', 'one.myshopify.com', true from auth.users, unnest(array['stripe', 'shopify']) p;
    insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted)
        select id, p, a, 'Vente de marchandises', '2026-09-01', '{[2026-09-01,)}'
        from auth.users, (values ('stripe', 'acct_new'), ('shopify', 'one.myshopify.com')) s (p, a);
    insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency)
        select u.id, p, p || m, a, 'payment', make_date(2026, m, 3), c, 'EUR'
        from auth.users u, generate_series(10, 11) m,
            (values ('stripe', 'acct_new', 10000), ('shopify', 'one.myshopify.com', 50000)) s (p, a, c);
    insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select u.id, 2026, m, 'Prestation de services', 120, 'auto_sync', '2026-' || m || '/Prestation de services',
            '{\"sources\": {\"stripe\": 100}}'::jsonb from auth.users u, generate_series(10, 11) m
        union all
        select u.id, 2026, 11, 'Vente de marchandises', 600, 'auto_sync', '2026-11/Vente de marchandises',
            '{\"sources\": {\"stripe\": 100, \"shopify\": 500}}' from auth.users u;
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
        select user_id, make_date(2026, r.month, 1), activity_type, id, case when amount_eur = 120 then 100 else 600 end,
            case when amount_eur = 120 then 0 else 600 end, case when amount_eur = 120 then timestamptz '2026-11-18' end from public.ca_records r
        union all
        select id, '2026-10-01', 'Vente de marchandises', null, null, 600, timestamptz '2026-11-18' from auth.users;
    delete from public.ca_records where user_id = md5('2')::uuid and amount_eur = 120;";

#[tokio::test]
async fn what_a_users_row_had_made_wrong_is_added_up_again() -> Result<()> {
    let database = database(Template::Application).await?;
    let pool = database.pool();
    let files = migrations()?;
    let (before, after) =
        files.split_at(files.iter().position(|f| f.name.contains("what_providers_really_do")).unwrap());
    for file in before {
        apply(pool, &file.name, &file.sql).await?;
    }
    apply(pool, "rows", TAKEN_OVER).await?;
    for file in after {
        apply(pool, &file.name, &file.sql).await?;
    }
    let rows: Vec<String> = sqlx::query_scalar(
        "select format('%s %s %s', u.email, r.month, sum(r.amount_eur)) from public.ca_records r \
         join auth.users u on u.id = r.user_id group by u.email, r.month order by 1",
    )
    .fetch_all(pool)
    .await?;
    let expected = [
        "1@example.test 10 620.00",
        "1@example.test 11 620.00",
        "2@example.test 10 500.00",
        "2@example.test 11 500.00",
    ];
    assert_eq!(rows, expected);
    Ok(())
}
