-- A withdrawn alert is said by a mail that can say it, once no doubt is left; an alert that another one has told since is
-- not sent to a corrected address; the integration's own word goes before what is typed. A refund that was never paid counts
-- in no month, nor does what takes it back; a shop's orders are compared as far as its list was read.
--
-- Locks nothing but the catalogue, and rows of integration_state and former_accounts. One transaction, lock_timeout 5 s.
-- Safe to run twice.

begin;
set local lock_timeout = '5s';

comment on column public.integration_tokens.activity_type is
    'Vente de marchandises, Prestation de services or Activité libérale; null: what the user types says it, else the jobs assume one';

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice; providers/shopify/transaction.rs leaves gift cards
-- and store credit out of what orders tell, by the same letters). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"). A payment that failed was never received, so the row that takes it back does not count
-- either. A refund is pending as long as there is no money to pay it with; one that fails then was never paid, and what
-- takes it back does not count either.
create or replace function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('pending', 'unknown') then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        -- Not taken apart unless its letters may say so: almost none does.
        when lower(p_method) like '%g%i%f%t%c%a%r%d%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%giftcard%' then 'gift_card'
        when lower(p_method) like '%s%t%o%r%e%c%r%e%d%i%t%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%storecredit%' then 'store_credit'
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- What a proof is a proof of: this token for this account. Another token or account has to be proven anew. What is too long
-- to be a token or an account is never proven, and not read. Without a setting of its own: see claimed_account; stable, as what it calls.
create or replace function jobs.token_fingerprint(t public.integration_tokens) returns text
language sql stable as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(jobs.readable_identifier(t.stripe_account_id), '') || '|'
            || coalesce(jobs.readable_identifier(t.shop_domain), '') || '|'
            || coalesce(jobs.readable_identifier(t.access_token), ''), 'UTF8')), 'hex');
$$;

-- Gives a user's money of Stripe the activity of their entries, where its integration does not say any, now or when it was
-- read: that of accounts which were replaced, too. Answers the months that have to be added up again. Call only under the
-- user's lock.
create or replace function jobs.follow_typed_activity(p_user_id uuid) returns date[]
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

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
--
-- p_movements: one list for each field that any of them has; or, as long as a call of an older version is under way, one
-- object for each movement.
--
-- Known stays known: an answer that says less changes nothing. A payment that has succeeded is not pending again, one
-- that has failed (another row may have said so) is nothing else again, nor is a refund that failed while it waited for
-- money (never_paid); an amount that was known in the account's
-- currency stays, as long as the amount that was told is the same; so do the state, the references, a debit's date.
--
-- Call only under the user's lock: what is not there yet is inserted, what differs is updated, and a row that says
-- the same is not even locked.
create or replace function jobs.store_movements(
    p_user_id uuid, p_provider text, p_account text, p_movements jsonb, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    answer jsonb;
begin
    with told as (
        select u.external_id, u.kind, u.occurred_at, u.amount_minor, u.currency, u.source_kind, u.state, u.method, u.listed_at,
            u.converted, u.original, array_remove(array[u.reference_1, u.reference_2], null)
                || case when u.more_references is not null
                    then array(select jsonb_array_elements_text(u.more_references -> 'ids')) end as refs
        from jsonb_to_record(case jsonb_typeof(p_movements) when 'object' then p_movements else '{}' end) as f (
            external_id text[], kind text[], occurred_at timestamptz[], amount_minor bigint[], currency text[],
            source_kind text[], state text[], method text[], listed_at timestamptz[], converted boolean[], original jsonb[],
            reference_1 text[], reference_2 text[], more_references jsonb[])
        cross join unnest(f.external_id, f.kind, f.occurred_at, f.amount_minor, f.currency, f.source_kind, f.state, f.method,
            f.listed_at, f.converted, f.original, f.reference_1, f.reference_2, f.more_references) as u (
            external_id, kind, occurred_at, amount_minor, currency, source_kind, state, method,
            listed_at, converted, original, reference_1, reference_2, more_references)
        union all
        select m.external_id, m.kind, m.occurred_at, m.amount_minor, m.currency, m.source_kind, m.state,
            coalesce(m.method, nullif(m.excluded, 'unresolved_currency')), m.listed_at,
            coalesce(m.converted, m.excluded is distinct from 'unresolved_currency'), m.original, m."references"
        from jsonb_to_recordset(case jsonb_typeof(p_movements) when 'array' then p_movements else '[]' end) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            source_kind text, state text, method text, listed_at timestamptz, converted boolean, original jsonb,
            "references" text[], excluded text)
    ), incoming as (
        select distinct on (m.external_id) m.external_id, m.kind, m.occurred_at, m.amount_minor, left(m.currency, 20) as currency,
            coalesce(m.refs, '{}') as refs, m.source_kind, m.state, m.listed_at, m.original, m.method,
            coalesce(m.converted, true) as converted
        from told m
    ), merged as materialized (
        select n.external_id, t.external_id is null as is_new, t.paris_month as month_before,
            case when n.kind = 'unknown' or (n.kind = 'refund' and t.kind = 'platform_reversal')
                then coalesce(t.kind, n.kind) else n.kind end as kind,
            case when n.kind = 'dispute' and n.state is distinct from t.state then n.occurred_at
                when t.occurred_at <> t.listed_at and n.occurred_at = n.listed_at and n.listed_at = t.listed_at
                then t.occurred_at else coalesce(n.occurred_at, t.occurred_at) end as occurred_at,
            case when k.keep then t.amount_minor else n.amount_minor end as amount_minor,
            case when k.keep then t.currency else n.currency end as currency,
            case when k.keep then true else n.converted end as converted,
            case when k.keep then coalesce(t.original, n.original) when t.amount_minor is null then n.original
                else coalesce(n.original, t.original) end as original,
            case when t.refs @> n.refs then t.refs
                -- Most rows are new, and name one or two things in order.
                when t.refs is null and (cardinality(n.refs) < 2 or cardinality(n.refs) = 2 and n.refs[1] < n.refs[2])
                    then n.refs
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            coalesce(n.source_kind, t.source_kind) as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
                when n.kind = 'refund' and (t.state = 'never_paid'
                    or t.state = 'pending' and n.state in ('failed', 'canceled')) then 'never_paid'
                when n.state in ('pending', 'unknown') and t.state = 'succeeded' then t.state
                when n.state = 'unknown' then coalesce(t.state, n.state)
                else coalesce(n.state, t.state) end as state,
            coalesce(n.method, t.method) as method,
            coalesce(n.listed_at, t.listed_at) as listed_at
        from incoming n
        left join jobs.integration_transactions t
            on t.user_id = p_user_id and t.provider = p_provider and t.external_id = n.external_id
        cross join lateral (
            select coalesce(t.converted and t.amount_minor is not null and (not n.converted or n.amount_minor is null)
                and (t.original is null or (t.original -> 'amount', t.original -> 'currency')
                    is not distinct from (n.original -> 'amount', n.original -> 'currency')), false) as keep) k
    ), inserted as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        from merged m where m.is_new order by m.external_id
        returning t.paris_month, t.paris_month as month_before
    ), updated as (
        update jobs.integration_transactions t set
            account = p_account, kind = m.kind, occurred_at = m.occurred_at, amount_minor = m.amount_minor,
            currency = m.currency, refs = m.refs, source_kind = m.source_kind, state = m.state, method = m.method,
            listed_at = m.listed_at, converted = m.converted, original = m.original, updated_at = clock_timestamp()
        from merged m
        where t.user_id = p_user_id and t.provider = p_provider and t.external_id = m.external_id and not m.is_new
            and (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs, m.source_kind, m.state, m.method,
                m.listed_at, m.converted, m.original)
        returning t.paris_month, m.month_before
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct s.month_before) filter (where s.month_before <> s.paris_month), '[]'))
    into answer
    from (select * from inserted union all select * from updated) s;
    return answer;
end $$;

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), payments of which another row says that they failed, and what took back a
-- refund that was never paid. The months that this touches.
create or replace function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language plpgsql set search_path = '' as $$
declare
    answer date[];
begin
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
            and exists (select from failures f where f.r = any (t.refs))
        returning t.paris_month, t.refs
    ), unpaid as materialized (
        select r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'refund'
            and r ~ '^(re|pyr)_'
    ), undone as (
        update jobs.integration_transactions t set state = 'never_paid', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'refund_failure'
            and t.state is distinct from 'never_paid'
            and exists (select from unpaid)
            and exists (select from unpaid u where u.r = any (t.refs))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        union all select paris_month from undone
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from failed p join failures f on f.r = any (p.refs)) m;
    return answer;
end $$;

drop function if exists jobs.note_unlisted_payments(uuid, text, jsonb, timestamptz);
-- Compares what orders tell (p_payments: [{order, id, at, amount_minor, currency}], all payments of each order) with the
-- movements that the list has shown, as far as the list was ever read (p_read): both know the same of an order then. A payment that no movement of its order explains is
-- kept as unlisted_payment: it does not count, and its month says so. One that was kept and is explained now is
-- none any more. The Paris months that this touches.
--
-- One movement explains one payment, by order, amount and currency; of equal ones the nearest. What is left of an order is explained where its
-- payments and movements are the same money in other pieces (cash and its change), or nothing is left of them within a day,
-- to ten cents (rounding at the till).
-- Where a movement of the order is not readable in the shop's currency, its month says so already.
create or replace function jobs.note_unlisted_payments(
    p_user_id uuid, p_account text, p_payments jsonb, p_read tstzmultirange, p_now timestamptz
) returns date[] language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    first_month date;
    last_month date;
    answer date[];
begin
    -- A movement may bear another date than its order's transaction, and so belong to the month beside it.
    select (date_trunc('month', min(x.at) at time zone 'Europe/Paris') - interval '1 month')::date,
        (date_trunc('month', max(x.at) at time zone 'Europe/Paris') + interval '1 month')::date
    into first_month, last_month
    from jsonb_to_recordset(p_payments) as x (at timestamptz) where p_read @> x.at;
    if first_month is null then
        return '{}';
    end if;
    with payments as materialized (
        select distinct on (x.id) x."order" as of_order, x.id, x.at, x.amount_minor, x.currency
        from jsonb_to_recordset(p_payments) as x (
            "order" text, id text, at timestamptz, amount_minor bigint, currency text)
        where p_read @> x.at order by x.id
    ), orders as materialized (
        select d.of_order, min(d.at) - interval '1 day' as since, max(d.at) + interval '1 day' as until
        from payments d group by 1
    ), movements as materialized (
        select (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order, t.external_id,
            t.amount_minor, t.currency, t.converted, t.occurred_at
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.account = p_account
            and t.paris_month between first_month and last_month and t.kind in ('payment', 'refund', 'unknown')
            -- What orders tell is without them, too.
            and coalesce(t.excluded, '') not in ('gift_card', 'store_credit')
    ), apart as materialized (      -- equal ones, as far as they lie from each other
        select p.id, m.external_id, greatest(p.at - m.occurred_at, m.occurred_at - p.at) as time
        from payments p join movements m using (of_order, currency, amount_minor)
    ), told as materialized (
        select p.*, row_number() over (partition by p.of_order, p.currency, p.amount_minor
            order by n.time, p.at, p.id) as nth
        from payments p left join (select a.id, min(a.time) as time from apart a group by 1) n using (id)
    ), listed as materialized (
        select o.of_order, m.amount_minor, m.currency, m.converted, m.occurred_at between o.since and o.until as is_near,
            row_number() over (partition by o.of_order, m.currency, m.amount_minor
                order by n.time, m.occurred_at, m.external_id) as nth
        from movements m join orders o using (of_order)
        left join (select a.external_id, min(a.time) as time from apart a group by 1) n using (external_id)
    ), unlike as materialized (
        select d.* from told d
        left join listed l using (of_order, currency, amount_minor, nth)
        where l.of_order is null
    ), left_over as materialized (
        select l.of_order, sum(l.amount_minor) as amount
        from listed l left join told d using (of_order, currency, amount_minor, nth)
        where d.of_order is null and l.is_near group by 1
    ), explained as materialized (
        select l.of_order from listed l where l.amount_minor is null or not l.converted
        union
        select u.of_order from (
            select of_order, sum(amount_minor) as amount, max(at) - min(at) as took from unlike group by 1) u
        left join left_over l using (of_order)
        where abs(u.amount - coalesce(l.amount, 0)) < 10 and (l.of_order is not null or u.took < interval '1 day')
    ), missing as materialized (
        select u.* from unlike u left join explained e using (of_order) where e.of_order is null
    ), written as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, first_seen_at)
        select p_user_id, 'shopify', m.id, p_account, 'unlisted_payment', m.at, m.amount_minor, m.currency,
            array[m.of_order], 'order_transaction', p_now
        from missing m order by m.id
        on conflict (user_id, provider, external_id) do update set
            kind = excluded.kind, occurred_at = excluded.occurred_at, amount_minor = excluded.amount_minor,
            currency = excluded.currency, updated_at = p_now
        where (t.kind, t.occurred_at, t.amount_minor, t.currency) is distinct from
            (excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency)
        returning t.paris_month
    ), found as (
        update jobs.integration_transactions t set kind = 'no_turnover', updated_at = p_now
        where t.user_id = p_user_id and t.provider = 'shopify' and t.kind = 'unlisted_payment'
            and t.external_id = any (array(select d.id from told d except select m.id from missing m))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from written union all select paris_month from found) m;
    return answer;
end $$;
revoke execute on function jobs.note_unlisted_payments(uuid, text, jsonb, tstzmultirange, timestamptz) from public;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted, order_payments: see note_unlisted_payments}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create or replace function jobs.settle_figures(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    hold text;
    i jobs.job_items;
    part record;
    t public.integration_tokens;
    s jobs.integration_state;
    stored jsonb;
    new_activity text;
    said_by text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    unreadable jsonb;   -- why movements could not be understood, with how many
    unlisted jsonb := '{}';     -- how many known movements each provider's list has lacked
    known bigint;
    window_from timestamptz;
    window_to timestamptz;
    fresh tstzmultirange;       -- what this read covers and none before it
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := jobs.hold_item(p_item_id, p_lease_id);
    select * into i from jobs.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result, 'repeated', true);
    elsif hold = 'lost' or i.user_id is distinct from p_user_id then
        return jsonb_build_object('state', 'lost');
    end if;
    if i.progress ->> 'lease' = p_lease_id::text and (i.progress ->> 'chunk')::integer >= p_chunk then
        return jsonb_build_object('state', 'stored');
    end if;
    records := coalesce((i.progress ->> 'records')::bigint, 0);
    by_provider := coalesce(i.progress -> 'by_provider', '{}');
    months := array(select jsonb_array_elements_text(coalesce(i.progress -> 'months', '[]'))::date);

    for part in
        select * from jsonb_to_recordset(p_parts) as x (
            integration_id uuid, provider text, account text, "window" jsonb, movements jsonb, error jsonb,
            count_month boolean, kinds jsonb, deep boolean, listed bigint, order_payments jsonb)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'), p_now);
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);
            months := months || jobs.note_unlisted_payments(
                p_user_id, part.account, coalesce(part.order_payments, '[]'),
                case when s.account = part.account then s.covered else '{}' end + tstzmultirange(tstzrange(
                    (part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz)), p_now);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what stands, else an assumption; what the user has typed
            -- decides below.
            new_activity := coalesce(s.activity,
                case part.provider when 'shopify' then 'Vente de marchandises' else 'Prestation de services' end);
            said_by := s.activity_said_by;
            if t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale') then
                new_activity := t.activity_type;
                said_by := 'integration';
            end if;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
                -- With a connection, other months of this account and of the one before may count than did.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, activity_said_by = said_by, first_month = s.first_month, counted = s.counted,
                updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.activity_said_by, k.first_month, k.counted)
                    is distinct from (new_activity, said_by, s.first_month, s.counted);
        end if;

        continue when not p_final;
        if part.error is not null then
            failed := failed + 1;
            first_error := coalesce(first_error, part.error);
            update public.integration_tokens k
            set last_error = left(part.error ->> 'message', 500), updated_at = clock_timestamp()
            where k.id = part.integration_id and k.last_error is distinct from left(part.error ->> 'message', 500);
            update jobs.integration_state k
            set failures = k.failures + 1, failed_at = p_now, failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            -- Read once, not for each row that is compared with them.
            window_from := part."window" ->> 'from';
            window_to := part."window" ->> 'to';
            fresh := tstzmultirange(tstzrange(window_from, window_to));
            -- What the list showed before it still has to show: rows are never taken back. Both lists go by seconds.
            select count(*) into known from jobs.integration_transactions x
            where x.user_id = p_user_id and x.provider = part.provider and x.account = part.account
                -- By the index. What counts long after it was listed is left out: fewer are known than could be.
                and x.paris_month >= date_trunc('month', window_from at time zone 'Europe/Paris')::date
                and x.paris_month <= (window_to at time zone 'Europe/Paris')::date
                and x.kind <> 'no_turnover' and (x.kind <> 'dispute' or x.provider = 'stripe')
                and x.listed_at >= window_from
                and x.listed_at < date_trunc('second', window_to);
            s.doubted := case
                when s.account is distinct from part.account or part.listed is null then s.doubted
                when known > part.listed then s.doubted + (fresh - s.covered)
                when part.listed > 0 then s.doubted - fresh
                -- Nothing is known there and nothing listed: as doubtful as the days before it.
                when s.doubted && fresh then s.doubted + (fresh - s.covered)
                else s.doubted end;
            if known > part.listed then
                unlisted := unlisted || jsonb_build_object(part.provider, known - part.listed);
            end if;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (fresh - s.doubted)
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null))
                    else k.covered end,
                doubted = s.doubted,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not. Nor does an
                -- empty list that is in doubt: what it lacked is read again with what follows.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                        and not coalesce(part.listed = 0 and s.doubted && fresh, false)
                    then greatest(k.last_success_to, window_to) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, window_to) else k.deep_read_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', window_from at time zone 'Europe/Paris'),
                (window_to - interval '1 microsecond') at time zone 'Europe/Paris',
                interval '1 month') m);
        end if;
    end loop;
    months := array(select distinct m from unnest(months) m);

    if not p_final then
        update jobs.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := months || jobs.follow_typed_activity(p_user_id);
    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind from jobs.integration_transactions x
        where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
            and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
            and jobs.is_uncounted(x)
    )
    select
        (select coalesce(jsonb_agg(distinct m.currency), '[]') from missing m
            where m.currency <> 'EUR' or m.reason = 'unresolved_currency'),
        (select coalesce(jsonb_object_agg(k.kind, k.n), '{}') from (
            select coalesce(m.source_kind, m.reason) as kind, count(*) as n from missing m
            where m.reason = 'unknown_kind' group by 1) k),
        (select coalesce(jsonb_object_agg(k.reason, k.n), '{}') from (
            select m.reason, count(*) as n from missing m
            where m.reason not in ('unknown_kind', 'currency', 'unresolved_currency') group by 1) k)
    into not_euro, unknown, unreadable;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}' or unlisted <> '{}';
    outcome := case
        when parts > 0 and failed = parts then 'failed'
        when failed > 0 or flawed then 'partial'
        else 'done' end;
    answer := jsonb_strip_nulls(jsonb_build_object(
        'user_id', case when p_month is null then p_user_id end,
        'provider', case when p_month is null then p_parts -> 0 ->> 'provider' end,
        'records', records,
        'status', case outcome when 'failed' then 'error' when 'partial' then 'partial' else 'success' end,
        'error', first_error, 'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}'),
        'unlisted_movements', nullif(unlisted, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', jobs.month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, synced_at, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message', p_now,
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'unreadable_movements', nullif(unreadable, '{}'), 'unlisted_movements', unlisted -> (e ->> 'provider'),
            'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = jobs.claimed_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform jobs.finish_item(p_item_id, outcome, answer, first_error, p_now);
    return jsonb_build_object('state', 'settled', 'result', answer);
end $$;

-- Notes for these mails, which are about to be written, what they say of earlier ones: that a ceiling is not exceeded, or
-- that something does not follow, which an alert said. What a mail was to say that never left, another one says. Steps below
-- the ceiling need no word: nothing followed from them. A ceiling waits as long as it is perhaps exceeded, or its neighbour (of
-- services, of all turnover) is, or the same follows from the year for another reason.
-- Call only under the ledger's lock.
create or replace function jobs.retract_in_mails(p_deliveries bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    users uuid[];
    mails bigint[];     -- of each of them, the one that says it
begin
    select array_agg(m.user_id), array_agg(m.delivery_id) into users, mails
    from (select d.user_id, min(d.delivery_id) as delivery_id from jobs.email_deliveries d
        where d.delivery_id = any (p_deliveries) and d.status = 'planned' and d.user_id is not null
            and d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') group by 1) m;
    if not exists (select from jobs.threshold_alerts a where a.user_id = any (users) and a.withdrawn_at is not null)
        and not exists (select from jobs.told_consequences a where a.user_id = any (users) and a.withdrawn_at is not null) then
        return;
    end if;
    -- In the order of jobs_plan_alerts.
    perform from jobs.threshold_alerts a where a.user_id = any (users)
    order by a.user_id, a.year, a.threshold, a.step, a.told_as for update;
    perform from jobs.told_consequences a where a.user_id = any (users)
    order by a.user_id, a.year, a.consequence for update;
    update jobs.threshold_alerts a set unsaid_by = m.delivery_id
    from unnest(users, mails) as m (user_id, delivery_id)
    where a.user_id = m.user_id and a.withdrawn_at is not null and a.step = 100 and a.told_as = 'certain'
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and not exists (select from jobs.threshold_alerts v
            where (v.user_id, v.year, v.step) = (a.user_id, a.year, a.step) and v.withdrawn_at is null
                and regexp_replace(v.threshold, '_(services|total)$', '') = regexp_replace(a.threshold, '_(services|total)$', ''))
        and not exists (select from jobs.told_consequences c
            where c.user_id = a.user_id and c.year = a.year and c.withdrawn_at is null
                and (c.consequence = 'vat_due') = (a.threshold like 'vat%'))
        and jobs.was_step_mailed(a);
    update jobs.told_consequences a set unsaid_by = m.delivery_id
    from unnest(users, mails) as m (user_id, delivery_id)
    where a.user_id = m.user_id and a.withdrawn_at is not null
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and exists (select from jobs.email_deliveries e
            where e.user_id = a.user_id and e.run_id = a.run_id and e.kind = 'threshold_alert' and jobs.is_said(e)
                and e.status <> 'planned');
end $$;

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true, and told by no other.
create or replace function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
language sql stable set search_path = '' as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select d.delivery_id, d.kind
    from today t
    cross join (values ('threshold_alert', 400), ('monthly_recap', 62), ('monthly_reminder', 62), ('definitive_month', 62),
        ('integration_trouble', 62)) as k (kind, days)
    join jobs.email_deliveries d on d.kind = k.kind and d.feedback is not null
        and d.feedback_at > p_now - make_interval(days => k.days)
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p
    where d.feedback in ('bounced', 'suppressed', 'refused') and d.status in ('sent', 'refused')
        and d.address is not null and d.facts <> '{}' and d.dedupe_key not like '%/moved'
        and jobs.mail_refusal(p, d.kind, p_now) is null
        and (d.feedback <> 'refused' or lower(btrim(p.address)) <> lower(btrim(d.address)))
        and case d.kind
            when 'monthly_recap' then t.day < to_date(d.facts ->> 'month', 'YYYY-MM') + interval '2 months'
            when 'threshold_alert' then
                (split_part(d.dedupe_key, '/', 3) = to_char(t.day, 'YYYY') or (extract(month from t.day) = 1
                    and split_part(d.dedupe_key, '/', 3) = to_char(t.day - interval '1 year', 'YYYY')))
                and not exists (
                    select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                    where not exists (select from jobs.threshold_alerts a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.threshold = c.threshold and a.step = c.step and a.run_id = d.run_id
                            and a.withdrawn_at is null)
                    union all
                    select from jsonb_array_elements_text(d.facts -> 'consequences') as c (name)
                    where not exists (select from jobs.told_consequences a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.consequence = c.name and a.run_id = d.run_id and a.withdrawn_at is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- What was not services was never assumed of Stripe: somebody had said it, by the integration or by an entry.
update jobs.integration_state set activity_said_by = 'integration'
where provider = 'stripe' and activity_said_by is null and activity <> 'Prestation de services';
update jobs.former_accounts set activity_said_by = 'integration'
where provider = 'stripe' and activity_said_by is null and activity <> 'Prestation de services';
update jobs.former_accounts f set activity_said_by = 'integration'
from public.integration_tokens t
where t.user_id = f.user_id and t.provider = f.provider and f.provider = 'stripe' and f.activity_said_by is null
    and t.activity_type = f.activity;

commit;
