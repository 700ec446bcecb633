-- Imported turnover: the movements read from Stripe and Shopify, what is known of each integration, and the
-- monthly totals written into ca_records from them.
--
-- Proofs, cursors, leases and ledgers live here, where only our own functions reach them: what a user may
-- write (integration_tokens, ca_records) is never trusted for a decision.
--
-- Months and days are Europe/Paris. Amounts are minor units (cents), signed. Only EUR is counted.

-- What a means of payment is whose money came in before, when the card was sold or the credit given; null: any other. The one
-- place that knows them by their letters, for movements and for what orders tell (note_unlisted_payments).
create function jobs.paid_before(p_method text) returns text language sql immutable as $$
    select case
        -- Not taken apart unless its letters may say so: almost none does.
        when lower(p_method) like '%g%i%f%t%c%a%r%d%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%giftcard%' then 'gift_card'
        when lower(p_method) like '%s%t%o%r%e%c%r%e%d%i%t%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%storecredit%' then 'store_credit' end;
$$;

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see told_by_both). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"), nor is what has a state that nobody knows. A payment that failed was never received, so the
-- row that takes it back does not count either. A refund is pending as long as there is no money to pay it with; one that
-- fails then was never paid, and what takes it back does not count either. What goes back of a payment that was not received
-- (charge_pending, charge_failed: see follow_movements) takes nothing off that has counted. An amount that no book could
-- hold is not believed: it would keep everything else of its owner's from being written. (Newer ones are not even stored:
-- providers::movement::is_credible.)
create function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null or p_amount_minor not between -1000000000000000 and 1000000000000000
            or p_currency = 'EUR' and p_amount_minor not between -999999999999 and 999999999999 then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'payment' and p_state <> 'succeeded' then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_state = 'charge_pending' then 'pending'
        when p_state = 'charge_failed' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- The ledger: one row for each money movement that a provider told of, as it told it last, with what is known beyond
-- that (a conversion, the order, the payment). A refund or a lost dispute is its own negative row on its own date. What
-- cannot be understood or does not count is kept, too, and says why (excluded).
create table jobs.integration_transactions (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    external_id text not null,                   -- txn_… (Stripe), the number of the tender or dispute (Shopify)
    account text not null,                       -- acct_… or name.myshopify.com, as proven
    kind text not null,                     -- payment, refund, …; unknown: this version does not know source_kind
    occurred_at timestamptz,                     -- when it counts; null where the provider says no date
    amount_minor bigint,                         -- null: not readable
    currency text,                               -- as amount_minor; null: not told
    refs text[] not null default '{}',      -- ch_…, pi_…, re_…: the payment behind it, as both providers name
                                                 -- it; gid://shopify/Order/…: the order it belongs to;
                                                 -- tr_…: the transfer by which a platform passed it on
    first_seen_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    source_kind text,                            -- the provider's own name of the kind
    state text,                                  -- of the payment or dispute behind it; null: not told, or has none
    method text,                                 -- how it was paid, in the provider's words
    listed_at timestamptz,                       -- the date under which the provider lists it
    converted boolean not null default true,     -- false: amount and currency are the buyer's, not the account's
    original jsonb,                              -- as read, where that differs: {amount, currency, rate_from}
    paris_month date not null generated always as
        (date_trunc('month', coalesce(occurred_at, first_seen_at) at time zone 'Europe/Paris')::date) stored,
    excluded text generated always as
        (jobs.why_excluded(kind, state, method, occurred_at, amount_minor, currency, converted)) stored,
    primary key (user_id, provider, external_id)
);
create index integration_transactions_month on jobs.integration_transactions (user_id, paris_month);
-- What is looked at again at every sync: payments on their way, rows that a later version may understand, failures.
create index integration_transactions_open on jobs.integration_transactions (user_id, provider)
    where excluded in ('pending', 'failed', 'unknown_kind', 'platform_reversal');
-- What only an order tells, which is looked for in the list again.
create index integration_transactions_unlisted on jobs.integration_transactions (user_id, provider)
    where excluded = 'unlisted_payment';
-- What an alert names: money in other currencies.
create index integration_transactions_currencies on jobs.integration_transactions (user_id, paris_month)
    where excluded in ('currency', 'unresolved_currency');

-- What is known of a user's integration. Outlives a reconnection, so that its history and activity do too.
create table jobs.integration_state (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    account text,                                -- proven: the stored token opens exactly this account or shop
    proof text,                                  -- fingerprint of what was proven; another token is another proof
    proven_at timestamptz,
    activity text,                               -- what its money is: see activity_said_by
    first_month date,                            -- Paris month of the connection: earlier months are the user's own
    counted datemultirange not null default '{}',-- days whose movements are written into ca_records
    covered tstzmultirange not null default '{}',-- what was read from the provider to its end
    last_success_at timestamptz,
    last_success_to timestamptz,                 -- end of the last window that was read to its end
    failures integer not null default 0,         -- runs in a row that ended in an error
    failed_at timestamptz,
    failure jsonb,                               -- {code, message} of the last one
    refusals integer not null default 0,         -- how often in a row the connection itself was refused
    trouble_mails integer not null default 0,    -- how many mails have told the user since it was good
    trouble_mailed_at timestamptz,               -- when the last one was sent
    token_expires_at timestamptz,
    refresh_token_expires_at timestamptz,
    refresh_lease uuid,                          -- one token refresh at a time
    refresh_lease_until timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    claimed text,                                -- the account that the row named when a run first planned it …
    claimed_at timestamptz,                      -- … and when that was
    deep_read_to timestamptz,                    -- end of the last one that reached far back for rows that show late
    all_orders boolean,                          -- false: the scope reaches 60 days back only; null: not told
    left_out boolean not null default false,     -- taken out of the books: see leave_account_out
    -- What was read of a list that lacked movements which were known from before, or was empty ever since.
    doubted tstzmultirange not null default '{}',
    counted_before datemultirange,               -- counted, before it was taken out of the books
    -- Who has said the activity: integration (its row in integration_tokens), entries (what the user has typed); null:
    -- nobody, it is assumed.
    activity_said_by text check (activity_said_by in ('integration', 'entries')),
    totals_by text,                              -- rules_in_force when all of the user's months were added up last
    primary key (user_id, provider)
);

-- The rules that decide what a month's figure is and what it is worth, as a fingerprint of their functions: another one means
-- that figures from before may be others now. Nobody has to remember to raise a number.
create function jobs.rules_in_force() returns text language sql stable set search_path = '' as $$
    select md5(string_agg(p.prosrc, '' order by p.proname)) from pg_catalog.pg_proc p
    where p.pronamespace = 'jobs'::regnamespace and p.proname in ('paid_before', 'paid_by_hand', 'why_excluded',
        'countable_movements', 'told_by_both', 'movements_reported_twice', 'recompute_totals', 'movements_in_books', 'is_uncounted',
        'foreign_movements', 'uncounted_movements', 'meet_within', 'month_flaws', 'month_sources', 'known_up_to', 'late_after',
        'month_worth');
$$;

-- The books of accounts that a user had connected before the present one. Their movements go on counting in the months
-- in which they were connected; connected again, an account finds its books here. A movement whose account has no row
-- here belongs to the present books (integration_state).
create table jobs.former_accounts (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    account text not null,
    activity text,
    first_month date,
    counted datemultirange not null,
    covered tstzmultirange not null,
    last_success_to timestamptz,
    replaced_at timestamptz not null,            -- when another account was proven in its place
    left_out boolean not null default false,     -- taken out of the books: see leave_account_out
    counted_before datemultirange,               -- counted, before it was taken out of the books
    activity_said_by text check (activity_said_by in ('integration', 'entries')),    -- as in integration_state
    primary key (user_id, provider, account)
);

-- What we wrote into ca_records, and what we would write: a row the user has edited since is theirs (locked).
create table jobs.auto_sync_totals (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date not null,
    activity text not null,
    record_id uuid,
    written_eur numeric(12, 2),                  -- what ca_records holds from us; null when it never did
    computed_eur numeric(12, 2) not null,        -- what the movements say
    locked_at timestamptz,                       -- since when the row is the user's
    updated_at timestamptz not null default clock_timestamp(),
    -- What the row's other columns hold from us (see write_estimates); null: nothing yet.
    written_contrib_eur numeric(12, 2),
    written_net_eur numeric(12, 2),
    written_ir_mode text,
    written_ir_eur numeric(12, 2),
    -- Whose money the row is made of, in order: provider/account. Of a locked one: what it was made of when it was ours.
    made_of text[] not null default '{}',
    primary key (user_id, month, activity)
);

-- The rates by which imported rows were last estimated, as the code has them: one row. See write_estimates.
create table jobs.rates_in_use (
    is_only boolean primary key default true check (is_only),
    -- [{activity, from: YYYY-MM, full, acre_half, acre_three_quarters, flat_tax}]: 1230 is 12.3 %
    rates jsonb not null
);

-- Whether a movement is money that its month's figure lacks, or may lack: not readable, of an unknown kind, not known
-- in euros, told by an order alone. Without a setting of its own, so that it becomes part of the query that uses it. It
-- names no table.
create function jobs.is_uncounted(t jobs.integration_transactions) returns boolean
language sql immutable as $$
    select t.excluded is not null and t.excluded in ('unknown_kind', 'no_date', 'no_currency', 'amount_not_read', 'prevented',
        'unresolved_currency', 'currency', 'unlisted_payment');
$$;

-- Integrations whose list lacks, at the last read, what it has shown before, or is empty ever since (see settle_figures).
create function jobs.doubted_lists() returns bigint language sql stable set search_path = '' as $$
    select count(*) from jobs.integration_state s
    join public.integration_tokens t on t.user_id = s.user_id and t.provider = s.provider
    where s.doubted <> '{}' and t.is_active and not s.left_out
        and upper(s.doubted) >= coalesce(s.last_success_to, '-infinity');
$$;

-- The first month of an account's books: the Paris month of the connection. The user may write connected_at: it is
-- believed where it lies at most 31 days before a run first saw the account there, and not after p_latest. A replay
-- sees an account at an instant that may lie before its connection: it reaches no month before that.
create function jobs.first_month(p_connected_at timestamptz, p_seen_at timestamptz, p_latest timestamptz) returns date
language sql immutable as $$
    select date_trunc('month', case when p_connected_at between p_seen_at - interval '31 days' and p_latest
        then p_connected_at else p_seen_at end at time zone 'Europe/Paris')::date;
$$;

-- The account or shop that the user says it is. Without a setting of its own, so that it becomes part of the query that
-- uses it, and no row is read as a whole for it: a user may have stored 100 MB in it.
create function jobs.claimed_account(t public.integration_tokens) returns text
language sql immutable as $$
    select case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end;
$$;

-- What a proof is a proof of: this token for this account. Another token or account has to be proven anew. What is too long
-- to be a token or an account is never proven, and not read. Without a setting of its own: see claimed_account; stable, as what it calls.
create function jobs.token_fingerprint(t public.integration_tokens) returns text
language sql stable as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(jobs.readable_identifier(t.stripe_account_id), '') || '|'
            || coalesce(jobs.readable_identifier(t.shop_domain), '') || '|'
            || coalesce(jobs.readable_identifier(t.access_token), ''), 'UTF8')), 'hex');
$$;

-- How often these users have typed turnover of each activity that we know.
create function jobs.typed_activities(p_users uuid[]) returns table (user_id uuid, activity text, entries bigint)
language sql stable as $$
    select r.user_id, case r.activity_type when 'services' then 'Prestation de services' else r.activity_type end,
        count(*)
    from public.ca_records r
    where r.user_id = any (p_users) and r.source <> 'auto_sync'
        and r.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale', 'services')
    group by 1, 2;
$$;

-- What a user's entries say that the money of Stripe is, which nothing else tells; null: they say nothing. An activity
-- that follows from entries stays as long as one of them says it. Else what was typed most often wins, and among equals
-- what stands already.
create function jobs.activity_by_entries(p_user_id uuid, p_activity text, p_said_by text) returns text
language plpgsql stable set search_path = '' as $$
begin
    return (select t.activity from jobs.typed_activities(array[p_user_id]) t
        order by coalesce(p_said_by = 'entries' and t.activity = p_activity, false) desc, t.entries desc,
            coalesce(t.activity = p_activity, false) desc, t.activity
        limit 1);
end $$;

-- Gives a user's money of Stripe the activity of their entries, where its integration does not say any, now or when it was
-- read: that of accounts which were replaced, too. Answers the months that have to be added up again. Call only under the
-- user's lock.
create function jobs.follow_typed_activity(p_user_id uuid) returns date[]
language plpgsql set search_path = '' as $$
declare
    is_moved boolean;
begin
    with present as (
        update jobs.integration_state s set activity = n.activity, activity_said_by = n.said_by
        from jobs.integration_state k
        left join public.integration_tokens t on t.user_id = k.user_id and t.provider = k.provider
            and t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale')
        cross join lateral (
            select t.activity_type as activity, 'integration' as said_by where t.activity_type is not null
            union all
            select jobs.activity_by_entries(k.user_id, k.activity, k.activity_said_by), 'entries' where t.activity_type is null
        ) n
        where k.user_id = p_user_id and k.provider = 'stripe' and k.activity is not null
            and k.activity_said_by is distinct from 'integration' and n.activity is not null
            and (k.activity, k.activity_said_by) is distinct from (n.activity, n.said_by)
            and s.user_id = k.user_id and s.provider = k.provider
        returning k.activity <> n.activity as is_other
    ), former as (
        update jobs.former_accounts f set activity = n.activity, activity_said_by = 'entries'
        from jobs.former_accounts k
        cross join lateral (select jobs.activity_by_entries(k.user_id, k.activity, k.activity_said_by) as activity) n
        where k.user_id = p_user_id and k.provider = 'stripe' and k.activity is not null
            and k.activity_said_by is distinct from 'integration' and n.activity is not null
            and (k.activity, k.activity_said_by) is distinct from (n.activity, 'entries')
            and (f.user_id, f.provider, f.account) = (k.user_id, k.provider, k.account)
        returning k.activity <> n.activity as is_other
    )
    select coalesce(bool_or(m.is_other), false) into is_moved
    from (select p.is_other from present p union all select f.is_other from former f) m;
    if not is_moved then
        return '{}';
    end if;
    return array(select distinct x.paris_month from jobs.integration_transactions x
        where x.user_id = p_user_id and x.provider = 'stripe');
end $$;

-- Of which of a user's integrations nobody has said the activity.
--   [{provider, activity}]
create function jobs.assumed_activities(p_user_id uuid) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object('provider', k.provider, 'activity', k.activity) order by k.provider), '[]')
    from jobs.integration_state k
    left join public.integration_tokens t on t.user_id = k.user_id and t.provider = k.provider
    where k.user_id = p_user_id and k.activity is not null and not k.left_out
        and k.activity_said_by is null and t.activity_type is distinct from k.activity;
$$;
