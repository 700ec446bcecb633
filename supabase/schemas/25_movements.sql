-- Movements as they are stored: what an answer adds, and what a later one says of them.

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
create function jobs.store_movements(
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

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), payments of which another row says that they failed, what took back a
-- refund that was never paid, rows without an id that are told with theirs now, and what goes back of a payment that was not
-- received: as long as all that is known of a charge is on its way, or failed, a refund or dispute of it takes nothing off.
-- The months that this touches.
create function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language plpgsql set search_path = '' as $$
declare
    answer date[];
    returned date[];
begin
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now,
            -- What a dispute's payment says is no state of the dispute.
            state = case when p_kinds ->> t.source_kind in ('payment', 'refund', 'refund_failure') then t.state end
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), payments as materialized (   -- by their names: joined in one go, not each with each
        select t.external_id, r from jobs.integration_transactions t cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider
            and t.external_id = any (array(select p.external_id from payments p join failures f using (r)))
        returning t.paris_month, t.refs
    ), unpaid as materialized (
        select r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'refund'
            and r ~ '^(re|pyr)_'
    ), returns as materialized (
        select t.external_id, r from jobs.integration_transactions t cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'refund_failure'
            and t.state is distinct from 'never_paid' and exists (select from unpaid)
    ), undone as (
        update jobs.integration_transactions t set state = 'never_paid', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider
            and t.external_id = any (array(select b.external_id from returns b join unpaid u using (r)))
        returning t.paris_month
    ), without_id as materialized (     -- those that were found before, too: one row explains one
        select t.external_id, t.excluded, t.paris_month, t.account, t.listed_at, t.first_seen_at,
            coalesce(t.currency || t.amount_minor, '') as money,
            row_number() over (partition by t.paris_month, t.account, t.listed_at, t.currency, t.amount_minor
                order by t.first_seen_at, t.external_id) as nth
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider
            and t.source_kind in ('row_without_id', 'dispute:without_id')
    ), with_id as materialized (        -- told later, in the same second
        select x.paris_month, x.account, x.listed_at, x.first_seen_at, w.money,
            row_number() over (partition by x.paris_month, x.account, x.listed_at, w.money
                order by x.first_seen_at, x.external_id) as nth
        from (select o.paris_month, o.account, o.listed_at, o.money, min(o.first_seen_at) as since
            from without_id o group by 1, 2, 3, 4 having bool_or(o.excluded = 'unknown_kind')) w
        join jobs.integration_transactions x on x.user_id = p_user_id and x.provider = p_provider
            and x.paris_month = w.paris_month and x.account = w.account and x.listed_at = w.listed_at
            and coalesce(x.currency || x.amount_minor, '') = w.money and x.first_seen_at > w.since
        where x.excluded is distinct from 'unknown_kind'
            and coalesce(x.source_kind, '') not in ('row_without_id', 'dispute:without_id')
    ), named as (
        update jobs.integration_transactions t set kind = 'no_turnover', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and t.external_id = any (array(select o.external_id from without_id o
                join with_id x using (paris_month, account, listed_at, money, nth)
                where x.first_seen_at > o.first_seen_at))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        union all select paris_month from undone
        union all select paris_month from named
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from (select unnest(p.refs) as r from failed p) p join failures f using (r)) m;

    -- In a statement of its own: it sees what has failed by now.
    with unreceived as materialized (       -- by the index of what is looked at again
        select r as name, t.excluded, t.listed_at from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded in ('pending', 'failed')
            and t.kind = 'payment' and r ~ '^(ch|py)_'
    ), back as materialized (       -- what goes back, from the month on in which the first of them was sent; and what was held
        select t.external_id, t.kind, t.state, r as name
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and exists (select from unreceived)
            and t.paris_month >= (select date_trunc('month', min(u.listed_at) at time zone 'Europe/Paris')::date from unreceived u)
            and t.kind in ('refund', 'refund_failure', 'dispute', 'dispute_reversal') and r ~ '^(ch|py)_'
            and coalesce(t.state, '') not in ('pending', 'never_paid')
        union
        select t.external_id, t.kind, t.state, r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded in ('pending', 'failed')
            and t.state in ('charge_pending', 'charge_failed') and r ~ '^(ch|py)_'
    ), asked as materialized (      -- almost always none
        select name from back join unreceived using (name)
        union
        select name from back where state in ('charge_pending', 'charge_failed')
    ), received as materialized (
        select distinct r as name from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and exists (select from asked)
            and t.kind = 'payment' and coalesce(t.excluded, '') not in ('pending', 'failed')
            and r in (select name from asked)
    ), judged as materialized (
        select b.external_id, b.kind, b.state, case
            when bool_or(u.excluded = 'pending') and not bool_or(v.name is not null) then 'charge_pending'
            when bool_or(u.excluded = 'failed') and not bool_or(v.name is not null) then 'charge_failed'
            when b.state is null or b.state not in ('charge_pending', 'charge_failed') then b.state
            when b.kind = 'refund' then 'succeeded' end as now
        from back b left join unreceived u using (name) left join received v using (name)
        group by 1, 2, 3
    ), held as (
        update jobs.integration_transactions t set state = j.now, updated_at = p_now
        from judged j
        where t.user_id = p_user_id and t.provider = p_provider and t.external_id = j.external_id
            and t.state is distinct from j.now
        returning t.paris_month
    )
    select coalesce(array_agg(distinct h.paris_month), '{}') into returned from held h;
    return array(select distinct m from unnest(answer || returned) m);
end $$;
