-- What is not said to have succeeded was not received; what less is told of stays; what an inquiry, a platform or an account
-- that was replaced leaves behind is said.
--
-- The index reads the ledger once while writes to it wait (about a second per million rows); the update finds nothing, or
-- the few payments of a state that nobody knows. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"), nor is what has a state that nobody knows. A payment that failed was never received, so the
-- row that takes it back does not count either. A refund is pending as long as there is no money to pay it with; one that
-- fails then was never paid, and what takes it back does not count either.
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
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'payment' and p_state <> 'succeeded' then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- Stored columns follow their function when their row is written.
update jobs.integration_transactions set updated_at = clock_timestamp()
where kind = 'payment' and state not in ('succeeded', 'pending', 'unknown', 'failed', 'canceled') and excluded is null;

-- What only an order tells, which is looked for in the list again.
create index if not exists integration_transactions_unlisted on jobs.integration_transactions (user_id, provider)
    where excluded = 'unlisted_payment';

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to, deep_read_to, books_from: the first month's first instant,
--     covered_from: since when everything was read up to the month that is asked for; null: nothing before it was,
--     open: [{id, listed_at}]: payments on their way, the oldest hundred; what only an order told, the latest twenty}]
create or replace function public.integration_context(p_items bigint[]) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'item_id', i.item_id, 'integration_id', t.id, 'user_id', t.user_id, 'provider', t.provider,
        'access_token', coalesce(jobs.readable_identifier(t.access_token), ''),
        'refresh_token', jobs.readable_identifier(t.refresh_token),
        'stripe_account_id', jobs.readable_identifier(t.stripe_account_id),
        'shop_domain', jobs.readable_identifier(t.shop_domain),
        'proven_account', case when s.proof = jobs.token_fingerprint(t) then s.account end,
        'token_expires_at', case when s.proof = jobs.token_fingerprint(t) then s.token_expires_at end,
        -- Another account than the one read before has a history of its own: nothing of it was read yet.
        'last_success_to', case when s.account = jobs.claimed_account(t) then s.last_success_to end,
        'deep_read_to', case when s.account = jobs.claimed_account(t) then s.deep_read_to end,
        'books_from', coalesce(case when s.account = jobs.claimed_account(t) then s.first_month end,
            jobs.first_month(t.connected_at, least(s.claimed_at, r.as_of), r.as_of))::timestamp at time zone 'Europe/Paris',
        'covered_from', (select min(lower(c)) from unnest(s.covered) c
            cross join lateral (select case when i.payload ->> 'month' ~ '^\d{4}-(0[1-9]|1[0-2])$' then
                to_date(i.payload ->> 'month', 'YYYY-MM')::timestamp at time zone 'Europe/Paris' end as starts) m
            where i.kind = 'sync_month' and s.account = jobs.claimed_account(t)
                and lower(c) < m.starts and upper(c) >= m.starts),
        'open', (select coalesce(jsonb_agg(jsonb_build_object('id', o.external_id, 'listed_at', o.listed_at)), '[]') from (
            (select x.external_id, coalesce(x.listed_at, x.occurred_at) as listed_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'pending' and x.account = s.account
            order by 2, 1 limit 100)
            union all
            (select x.external_id, x.occurred_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'unlisted_payment'
                and x.account = s.account
            order by 2 desc, 1 limit 20)) o)) order by i.item_id, t.provider), '[]')
    from jobs.job_items i
    join jobs.job_runs r on r.run_id = i.run_id
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select k.id from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select k.id from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) f
    join public.integration_tokens t on t.id = f.id
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    -- A row that is another's by now is read for its owner, by an item of theirs.
    where i.item_id = any (p_items) and t.is_active and t.user_id = i.user_id;
$$;

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
--
-- p_movements: one list for each field that any of them has; or, as long as a call of an older version is under way, one
-- object for each movement.
--
-- Known stays known: an answer that says less changes nothing. A payment that has succeeded is not pending again, one
-- that has failed (another row may have said so) is nothing else again, nor is a refund that failed while it waited for
-- money (never_paid); an amount that was known in the account's
-- currency stays, as long as the amount that was told is the same, or none is; so do the state, the references, a debit's
-- date, the day of a loss under another name, that it was paid with a gift card or a credit, and that a row of zero is money
-- at another house.
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
            case when n.kind = 'unknown' or k.elsewhere
                    or (n.kind in ('refund', 'refund_failure') and t.kind = 'platform_reversal')
                then coalesce(t.kind, n.kind) else n.kind end as kind,
            case when n.kind = 'dispute' and n.state is distinct from t.state
                    and not (n.occurred_at is null and n.state in ('lost', 'accepted') and t.state in ('lost', 'accepted'))
                then n.occurred_at
                when t.occurred_at <> t.listed_at and n.occurred_at = n.listed_at and n.listed_at = t.listed_at
                then t.occurred_at else coalesce(n.occurred_at, t.occurred_at) end as occurred_at,
            case when k.keep then t.amount_minor else n.amount_minor end as amount_minor,
            case when k.keep then t.currency else n.currency end as currency,
            case when k.keep then true else n.converted end as converted,
            case when k.keep then coalesce(t.original, case when n.original ->> 'amount' is not null then n.original end)
                when t.amount_minor is null then n.original
                else coalesce(n.original, t.original) end as original,
            case when t.refs @> n.refs then t.refs
                -- Most rows are new, and name one or two things in order.
                when t.refs is null and (cardinality(n.refs) < 2 or cardinality(n.refs) = 2 and n.refs[1] < n.refs[2])
                    then n.refs
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            case when k.elsewhere and (n.kind <> 'unknown' or n.source_kind = 'settled_elsewhere:unknown')
                then t.source_kind else coalesce(n.source_kind, t.source_kind) end as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
                when n.kind = 'refund' and (t.state = 'never_paid'
                    or t.state = 'pending' and n.state in ('failed', 'canceled')) then 'never_paid'
                when t.state = 'succeeded' and (n.state in ('pending', 'unknown')
                    or n.kind = 'payment' and n.state not in ('failed', 'canceled')) then t.state
                -- A payment without a state has counted.
                when n.state = 'unknown' then case when t.kind = 'payment' then t.state else coalesce(t.state, n.state) end
                else coalesce(n.state, t.state) end as state,
            case when jobs.paid_before(t.method) is not null and jobs.paid_before(n.method) is null then t.method
                else coalesce(n.method, t.method) end as method,
            coalesce(n.listed_at, t.listed_at) as listed_at
        from incoming n
        left join jobs.integration_transactions t
            on t.user_id = p_user_id and t.provider = p_provider and t.external_id = n.external_id
        cross join lateral (
            select coalesce(t.converted and t.amount_minor is not null and (not n.converted or n.amount_minor is null)
                and (t.original is null or n.original ->> 'amount' is null
                    or n.original ->> 'amount' = coalesce(t.original ->> 'amount', t.amount_minor::text)
                        and coalesce(n.original ->> 'currency' = t.original ->> 'currency', n.original ->> 'currency' is null)),
                false) as keep,
                -- Settled at another house: the row of zero tells less of it now, and no sale of nothing.
                coalesce(t.kind = 'unknown' and starts_with(t.source_kind, 'settled_elsewhere:') and n.amount_minor = 0
                    and (n.kind in ('payment', 'refund') or starts_with(n.source_kind, 'settled_elsewhere:')),
                false) as elsewhere) k
    ), inserted as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        -- What is no turnover is told for what was kept before.
        from merged m where m.is_new and m.kind <> 'no_turnover' order by m.external_id
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

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of uncounted_movements:
--   pending: a payment that is still on its way, where the month is over; or one that was sent in the month and would come
--     in a later one, from an account that was replaced since: nobody can ask for it
--   platform_reversal: what a platform took back of a payment, where it is no fee of hers: what leaves nothing of it, at once
--     or in pieces, or a part of one of which she had an application fee
--   refund_of_unknown_sale: a refund of an order of which a payment was never read, or is told by the order alone and Stripe's
--     refunds do not explain it; or of no order any more beside one at Stripe
--     of the same amount and day: Stripe may report it, too
--   maybe_twice: a payment in the shop that names no charge, and one at Stripe of the same amount, or the same of the
--     buyer's money, on the same day or within an hour; of a debit, on the day on which it was sent, or counts
--   beyond_scope: days that lay more than 60 days back when the shop was read, with a scope that reaches no further: 1
--   passed_on: a payment that a platform passed on, which may have kept a part of what the buyer paid
--   doubted_list: days of a list that lacked what it had shown before: 1 for each provider
create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer jsonb;
    passed_on bigint;
    left_behind bigint := 0;
    has_excluded boolean;
    has_nameless boolean;
begin
    -- One look first: most months have none of what the queries below are about.
    select count(*) filter (where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where starts_with(r, 'tr_'))
            and not exists (select from unnest(t.refs) r where starts_with(r, 'fee_'))),
        coalesce(bool_or(t.excluded is not null), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
            and not exists (select from unnest(t.refs) r where r !~ '^gid:')), false)
    into passed_on, has_excluded, has_nameless
    from jobs.movements_in_books(p_user_id, array[p_month]) t;

    if exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month) then
        select count(*) into left_behind
        from jobs.integration_transactions t
        join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.excluded = 'pending' and f.counted @> p_month and not f.counted @> t.paris_month
            and (t.listed_at at time zone 'Europe/Paris')::date >= p_month
            and (t.listed_at at time zone 'Europe/Paris')::date < p_month + interval '1 month';
    end if;

    with flaws as (
        select 'passed_on' as reason, passed_on as n
        union all
        select 'pending', left_behind
        union all
        select 'beyond_scope', count(*) from jobs.integration_state s
        cross join lateral (select tstzrange(p_month::timestamp at time zone 'Europe/Paris', least(
            (p_month + interval '1 month') at time zone 'Europe/Paris',
            greatest(p_as_of - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
        where s.user_id = p_user_id and s.all_orders is false and s.counted @> p_month and not s.covered @> old.days
        union all
        select 'doubted_list', count(*) from jobs.integration_state s
        where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
            and s.doubted && tstzrange(p_month::timestamp at time zone 'Europe/Paris',
                (p_month + interval '1 month') at time zone 'Europe/Paris')
    )
    select coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;

    if has_excluded then
        with found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            where t.excluded in ('pending', 'platform_reversal')
        ), named as materialized (      -- payments and what was taken back of them, one row for each name
            select t.external_id, t.kind, t.excluded, t.amount_minor, t.occurred_at, n as name,
                exists (select from unnest(t.refs) r where starts_with(r, 'fee_')) as has_fee
            from jobs.integration_transactions t cross join unnest(t.refs) n
            where t.user_id = p_user_id and t.provider = 'stripe'
                and exists (select from found f where f.excluded = 'platform_reversal')
                and (t.kind = 'payment' or t.excluded = 'platform_reversal' or t.kind = 'refund' and t.excluded is null)
                and n ~ '^(ch|py|pi)_'
        ), taken_back as materialized (
            select distinct p.external_id as payment, p.has_fee, p.amount_minor as paid, r.external_id, r.excluded,
                r.amount_minor, r.occurred_at
            from named p join named r using (name) where p.kind = 'payment' and r.kind <> 'payment'
        ), left_of as materialized (    -- what each of them left of its payment
            select r.external_id, r.has_fee, r.excluded, r.paid + sum(r.amount_minor) over (
                partition by r.payment order by r.occurred_at, r.external_id) as amount
            from taken_back r
        ), is_fee as materialized (
            select l.external_id from left_of l where l.excluded = 'platform_reversal' and l.amount > 0 and not l.has_fee
        ), flaws as (
            select t.excluded as reason, count(*) as n from jobs.uncounted_movements(p_user_id, p_month) t group by 1
            union all
            select 'pending', left_behind + count(*) from found t
            where t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            union all
            select 'platform_reversal', count(*) from found t
            where t.excluded = 'platform_reversal' and t.external_id not in (select i.external_id from is_fee i)
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;

    if has_nameless and exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) then
        with found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            where t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
        ), nameless as materialized (  -- movements in the shop that may have gone through Stripe without saying so
            select t.external_id, t.kind, t.occurred_at, (t.occurred_at at time zone 'Europe/Paris')::date as day,
                t.currency || t.amount_minor as euros,
                (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money
            from found t where t.method is distinct from 'cash' and (t.kind = 'payment' or t.refs = '{}')
        ), asked as materialized (     -- one row for each money and day: joined in one go
            select distinct n.external_id, n.kind, n.occurred_at, n.day as own_day, m.money,
                ((n.occurred_at + d.lag) at time zone 'Europe/Paris')::date as day
            from nameless n cross join unnest(array[n.euros, n.foreign_money]) m (money)
            cross join unnest(array[interval '-1 hour', interval '0', interval '1 hour']) d (lag)
            where m.money is not null
        ), at_stripe as materialized (
            select t.external_id, t.kind, t.refs, t.listed_at, t.occurred_at, t.currency || t.amount_minor as euros,
                (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money
            -- The month before has its last hour; a debit of this month may count in one of the next.
            from jobs.movements_in_books(p_user_id, array[(p_month - interval '1 month')::date, p_month,
                (p_month + interval '1 month')::date, (p_month + interval '2 months')::date]) t
            where t.provider = 'stripe' and t.kind in ('payment', 'refund') and exists (select from nameless)
                and (t.excluded is null or t.excluded in ('pending', 'failed'))
        ), shop_names as materialized (
            select distinct n as name from jobs.integration_transactions s cross join unnest(s.refs) n
            where s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and exists (select from nameless)
        ), explained as materialized (  -- payments at Stripe that a payment in the shop names
            select distinct p.external_id from (
                select t.external_id, unnest(t.refs) as name from at_stripe t where t.kind = 'payment') p
            join shop_names using (name)
        ), told as materialized (
            select distinct t.kind, m.money, d.at, (d.at at time zone 'Europe/Paris')::date as day
            from at_stripe t cross join unnest(array[t.euros, t.foreign_money]) m (money)
            cross join unnest(array[t.listed_at, t.occurred_at]) d (at)
            where not exists (select from explained e where e.external_id = t.external_id)
                and m.money is not null and d.at is not null
        ), doubted as materialized (
            select a.kind, a.external_id from asked a
            where a.day = a.own_day
                and exists (select from told p where (p.kind, p.money, p.day) = (a.kind, a.money, a.day))
            union
            select a.kind, a.external_id from asked a join told p using (kind, money, day)
            where a.day <> a.own_day
                and p.at between a.occurred_at - interval '1 hour' and a.occurred_at + interval '1 hour'
        ), of_orders as materialized (
            select t.external_id, o from found t cross join unnest(t.refs) o where t.kind = 'refund'
        ), sold as materialized (
            select distinct p.kind = 'unlisted_payment' as is_unlisted, o
            from jobs.integration_transactions p cross join unnest(p.refs) o
            where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0 and exists (select from of_orders)
        ), listed_sales as (
            select o from sold where not is_unlisted
        ), unlisted_sales as (
            select o from sold where is_unlisted
        ), flaws as (
            select 'refund_of_unknown_sale' as reason, (select count(*) from (
                (select o from of_orders except select o from listed_sales)      -- not by loops: see movements_reported_twice
                union
                select o from of_orders join unlisted_sales using (o)
                where external_id not in (select w.external_id
                    from jobs.movements_reported_twice(p_user_id, array[p_month], true) w)) r)
                + (select count(*) from doubted d where d.kind = 'refund') as n
            union all
            select 'maybe_twice', count(*) from doubted d where d.kind = 'payment'
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;
    return answer;
end $$;

commit;
