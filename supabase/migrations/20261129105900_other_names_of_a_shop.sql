-- What is told again by another name of its shop stays in the books that have its month.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

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
-- What is told again by another name of its shop stays in the books that have its month, as far as they are not out while the
-- present ones have it.
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
    ), former as materialized (
        select f.account, coalesce(f.counted_before, f.counted) - case when f.left_out then s.counted else '{}' end as months
        from jobs.former_accounts f join jobs.integration_state s using (user_id, provider)
        where f.user_id = p_user_id and f.provider = p_provider
    ), merged as materialized (
        select n.external_id, t.external_id is null as is_new, t.paris_month as month_before, t.account as account_before,
            t.first_seen_at,
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
                -- Its payment says when it counts.
                when t.state in ('charge_pending', 'charge_failed')
                    and coalesce(n.state, '') not in ('pending', 'never_paid') then t.state
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
            account = a.account, kind = m.kind, occurred_at = m.occurred_at, amount_minor = m.amount_minor,
            currency = m.currency, refs = m.refs, source_kind = m.source_kind, state = m.state, method = m.method,
            listed_at = m.listed_at, converted = m.converted, original = m.original, updated_at = clock_timestamp()
        from merged m left join former f on f.account = m.account_before
        cross join lateral (select case when f.months @> date_trunc('month',
            coalesce(m.occurred_at, m.first_seen_at) at time zone 'Europe/Paris')::date
            then f.account else p_account end as account) a
        where t.user_id = p_user_id and t.provider = p_provider and t.external_id = m.external_id and not m.is_new
            and (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (a.account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs, m.source_kind, m.state, m.method,
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

-- Compares what orders tell (p_payments: [{order, id, at, amount_minor, currency, method}], all payments of each order) with the
-- movements that the list has shown, as far as the list was ever read (p_read): both know the same of an order then. By which
-- name the shop was asked is no matter: an order's id is its own. A payment that no movement of its order explains is
-- kept as unlisted_payment: it does not count, and its month says so. One that was kept and is explained now is
-- none any more. The Paris months that this touches.
--
-- One movement explains one payment, by order, amount and currency; of equal ones the nearest. What is left of an order is explained where its
-- payments and movements are the same money in other pieces (cash and its change), or nothing is left of them within a day,
-- to ten cents (rounding at the till).
-- Where a movement of the order is not readable in the shop's currency, its month says so already.
--
-- An order also says what was paid with a gift card or a credit, which a tender's way to pay does not: the vendor's list of
-- them ends with `other` and `unknown`. A movement that such a payment explains, and no other one, bears its name from then
-- on (store_movements): its money came in before.
create or replace function jobs.note_unlisted_payments(
    p_user_id uuid, p_account text, p_payments jsonb, p_read tstzmultirange, p_now timestamptz
) returns date[] language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    first_month date;
    last_month date;
    has_cards boolean;
    named date[] := '{}';
    answer date[];
begin
    -- A movement may bear another date than its order's transaction, and so belong to the month beside it.
    select (date_trunc('month', min(x.at) at time zone 'Europe/Paris') - interval '1 month')::date,
        (date_trunc('month', max(x.at) at time zone 'Europe/Paris') + interval '1 month')::date,
        coalesce(bool_or(jobs.paid_before(x.method) is not null), false)
    into first_month, last_month, has_cards
    from jsonb_to_recordset(p_payments) as x (at timestamptz, method text)
    where p_read @> x.at;
    if first_month is null then
        return '{}';
    end if;
    if has_cards then
        with payments as materialized (
            select distinct on (x.id) x."order" as of_order, x.id, x.at, x.amount_minor, x.currency,
                jobs.paid_before(x.method) as card
            from jsonb_to_recordset(p_payments) as x (
                "order" text, id text, at timestamptz, amount_minor bigint, currency text, method text)
            where p_read @> x.at order by x.id
        ), cards as materialized (
            select p.of_order, p.currency, p.amount_minor, count(p.card) as cards, count(*) - count(p.card) as others
            from payments p group by 1, 2, 3 having count(p.card) > 0
        ), movements as materialized (
            select t.external_id, (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order,
                t.amount_minor, t.currency, t.occurred_at, t.method, jobs.paid_before(t.method) as card
            from jobs.integration_transactions t
            where t.user_id = p_user_id and t.provider = 'shopify'
                and t.paris_month between first_month and last_month and t.kind in ('payment', 'refund')
        ), counted as materialized (    -- how many movements are left for cards, when every other payment has one
            select c.of_order, c.currency, c.amount_minor,
                least(c.cards - count(m.card), count(*) - count(m.card) - c.others) as left_over
            from cards c join movements m using (of_order, currency, amount_minor)
            group by c.of_order, c.currency, c.amount_minor, c.cards, c.others
        ), explained as materialized (
            select distinct on (m.external_id) m.external_id, m.of_order, m.currency, m.amount_minor, m.occurred_at, p.card
            from movements m join payments p using (of_order, currency, amount_minor)
            where p.card is not null and m.card is null and coalesce(lower(m.method), 'other') in ('other', 'unknown')
                and m.occurred_at between p.at - interval '1 hour' and p.at + interval '1 hour'
            order by m.external_id, p.id
        ), placed as (
            select e.*, row_number() over (partition by e.of_order, e.currency, e.amount_minor
                order by e.occurred_at, e.external_id) as nth
            from explained e
        ), written as (
            update jobs.integration_transactions t set method = p.card, updated_at = p_now
            from placed p join counted c using (of_order, currency, amount_minor)
            where t.user_id = p_user_id and t.provider = 'shopify' and t.external_id = p.external_id and p.nth <= c.left_over
            returning t.paris_month
        )
        select coalesce(array_agg(distinct w.paris_month), '{}') into named from written w;
    end if;
    with payments as materialized (
        select distinct on (x.id) x."order" as of_order, x.id, x.at, x.amount_minor, x.currency
        from jsonb_to_recordset(p_payments) as x (
            "order" text, id text, at timestamptz, amount_minor bigint, currency text, method text)
        where p_read @> x.at and jobs.paid_before(x.method) is null order by x.id
    ), orders as materialized (
        select d.of_order, min(d.at) - interval '1 day' as since, max(d.at) + interval '1 day' as until
        from payments d group by 1
    ), movements as materialized (
        select (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order, t.external_id,
            t.amount_minor, t.currency, t.converted, t.occurred_at
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify'
            and t.paris_month between first_month and last_month and t.kind in ('payment', 'refund', 'unknown')
            -- The list may leave them out: they are compared on neither side.
            and jobs.paid_before(t.method) is null
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
    from (select paris_month from written union all select paris_month from found
        union all select unnest(named)) m;
    return answer;
end $$;

commit;
