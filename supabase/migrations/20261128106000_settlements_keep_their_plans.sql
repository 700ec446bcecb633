-- What every settlement calls keeps its plan for as long as its connection lives; and nothing that goes without nested
-- loops is compiled first: the planner takes their price for a long query, and compiling costs a thousand times the
-- query. Locks nothing. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

do $$ begin
    if exists (select from pg_proc p join pg_language l on l.oid = p.prolang
            where p.oid = 'jobs.month_flaws(uuid, date, timestamptz)'::regprocedure and l.lanname = 'plpgsql') then
        raise exception 'this file has been applied already';
    end if;
end $$;

create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original, t.excluded,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), sales as materialized (     -- which order, or payment without one, each name belongs to
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            coalesce(s.shop_order, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s where s.excluded is null and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.occurred_at, n as name from doubted d cross join unnest(d.names) n
    ), told as materialized (
        select t.external_id, t.kind, t.amount_minor > 0 as is_in, t.amount_minor, t.currency || t.amount_minor as euros,
            (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money, t.occurred_at, r as name
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR'
            -- A debit on its way, or one that failed, is the same payment in the shop: it was not received there either.
            and (t.excluded is null or t.excluded in ('pending', 'failed'))
            and t.kind in ('payment', 'partial_capture', 'refund') and not coalesce(f.left_out, k.left_out)
            and (not p_written or coalesce(f.counted, k.counted) @> t.paris_month)
    ), whole as materialized (     -- a charge that the shop tells in several pieces, or Stripe does
        select s.name from (
            select n.name, sum(n.amount_minor) as amount from named n where n.is_in group by 1) s
        join (select t.name, sum(t.amount_minor) as amount from told t
            where t.kind in ('payment', 'partial_capture') group by 1) p using (name, amount)
    ), by_name as materialized (
        select distinct n.external_id from named n join whole w using (name) where n.is_in
    ), whole_paid as materialized (
        select distinct t.external_id from told t join whole w using (name) where t.is_in
    ), paid as materialized (
        select distinct on (t.external_id) t.*, s.sale from told t join sales s using (name)
        where t.kind in ('payment', 'refund') order by t.external_id, s.sale
    ), d1 as materialized (
        select d.*, row_number() over (partition by d.sale, d.is_in, d.euros
            order by d.named desc, d.occurred_at, d.external_id) as nth
        from doubted d where not exists (select from by_name n where n.external_id = d.external_id)
    ), p1 as materialized (
        select p.*, row_number() over (partition by p.sale, p.is_in, p.euros order by p.occurred_at, p.external_id) as nth
        from paid p
        where not exists (select from whole_paid w where w.external_id = p.external_id)
    ), by_euros as materialized (
        select d1.external_id as shop_id, p1.external_id as stripe_id
        from d1 join p1 using (sale, is_in, euros, nth)
    ), d2 as materialized (
        select d.sale, d.is_in, d.foreign_money, d.external_id, row_number() over (
            partition by d.sale, d.is_in, d.foreign_money order by d.named desc, d.occurred_at, d.external_id) as nth
        from d1 d where not exists (select from by_euros e where e.shop_id = d.external_id)
    ), p2 as materialized (
        select p.sale, p.is_in, p.foreign_money, p.external_id, row_number() over (
            partition by p.sale, p.is_in, p.foreign_money order by p.occurred_at, p.external_id) as nth
        from p1 p where not exists (select from by_euros e where e.stripe_id = p.external_id)
    ), by_foreign_money as materialized (
        select d2.external_id as shop_id, p2.external_id as stripe_id
        from d2 join p2 using (sale, is_in, foreign_money, nth)
    ), d3 as (                     -- by name alone: a payment by its charge, a refund by its own id
        select n.name, n.is_in, n.external_id,
            row_number() over (partition by n.name, n.is_in order by n.occurred_at, n.external_id) as nth
        from named n join d2 using (external_id)
        where (n.is_in or n.name ~ '^(re|pyr)_')
            and not exists (select from by_foreign_money f where f.shop_id = n.external_id)
    ), p3 as (
        select t.name, t.is_in,
            row_number() over (partition by t.name, t.is_in order by t.occurred_at, t.external_id) as nth
        from told t join p2 using (external_id)
        where not exists (select from by_foreign_money f where f.stripe_id = t.external_id)
    ), explained as (
        select external_id from by_name
        union select shop_id from by_euros
        union select shop_id from by_foreign_money
        union select d3.external_id from d3 join p3 using (name, is_in, nth)
    )
    select e.external_id from explained e join doubted d using (external_id) where d.paris_month = any (p_months);
end $$;

create or replace function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    select t.provider, t.paris_month, case when f.account is null then s.activity else f.activity end, t.amount_minor
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.excluded is null and not coalesce(f.left_out, s.left_out)
        and (not p_written or coalesce(f.counted, s.counted) @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
end $$;

create or replace function jobs.months_reported_twice(p_user_id uuid, p_months date[]) returns date[]
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer date[];
begin
    with named as materialized (
        select t.provider, t.external_id, t.paris_month, r as ref
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'shopify')
            and (exists (select from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = 'stripe')
                or exists (select from jobs.integration_state x
                    where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null))
    ), touched as (   -- the shop's side of what Stripe reports, and the shop's own
        select s.external_id from named s where s.provider = 'shopify' and s.paris_month = any (p_months)
        union
        select s.external_id from named p join named s on s.ref = p.ref and s.provider = 'shopify'
        where p.provider = 'stripe' and p.paris_month = any (p_months)
    )
    select coalesce(array_agg(distinct o.paris_month), '{}')
    into answer
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
    return answer;
end $$;

create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
begin
    return (
    with found as materialized (
        select t.* from jobs.integration_transactions t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.paris_month = p_month and (f.account is null or f.counted @> p_month)
            and not coalesce(f.left_out, s.left_out, false)
    ), sides as materialized (
        select exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) as have_stripe
    ), nameless as materialized (  -- payments in the shop that may have gone through Stripe without saying so
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t cross join sides b
        where b.have_stripe and t.provider = 'shopify' and t.kind = 'payment' and t.excluded is null
            and t.method is distinct from 'cash' and not exists (select from unnest(t.refs) r where r !~ '^gid:')
    ), paid_names as materialized (
        select p.external_id, r as name from found p cross join unnest(p.refs) r
        where p.provider = 'stripe' and exists (select from nameless)
    ), shop_names as materialized (
        select n as name from jobs.integration_transactions s cross join unnest(s.refs) n
        where s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and exists (select from nameless)
    ), explained as materialized (
        select distinct p.external_id from paid_names p join shop_names s using (name)
    ), unexplained as materialized (  -- payments at Stripe that no payment in the shop names
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t
        where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from nameless)
            and not exists (select from explained e where e.external_id = t.external_id)
    ), flaws as (
        select t.excluded as reason, count(*) as n from found t
        where t.excluded is not null and (
            t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            -- What was prevented was paid back where a refund of the same order says so.
            or t.excluded = 'prevented' and not exists (select from jobs.integration_transactions r
                where r.user_id = p_user_id and r.provider = t.provider and r.kind = 'refund' and r.refs && t.refs
                    and r.amount_minor = t.amount_minor)
            or t.excluded <> 'prevented' and jobs.is_uncounted(t))
        group by 1
        union all
        select 'platform_reversal', count(*) from found t
        where t.excluded = 'platform_reversal' and not exists (
            select from jobs.integration_transactions p
            where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                and p.amount_minor > -t.amount_minor)
        union all
        select 'refund_of_unknown_sale', count(*) from (
            select o from found t cross join sides b, unnest(t.refs) o
            where b.have_stripe and t.provider = 'shopify' and t.kind = 'refund' and t.excluded is null
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
            except   -- not by loops: see movements_reported_twice
            select o from jobs.integration_transactions p cross join sides b, unnest(p.refs) o
            where b.have_stripe and p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0) r
        union all
        select 'maybe_twice', count(*) from nameless d
        where exists (select from unexplained p where (p.amount_minor, p.day) = (d.amount_minor, d.day))
        union all
        select 'beyond_scope', count(*) from jobs.integration_state s
        cross join lateral (select tstzrange(p_month::timestamp at time zone 'Europe/Paris', least(
            (p_month + interval '1 month') at time zone 'Europe/Paris',
            greatest(p_as_of - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
        where s.user_id = p_user_id and s.all_orders is false and s.counted @> p_month and not s.covered @> old.days
        union all
        select 'passed_on', count(*) from found t
        where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where r ~ '^tr_')
        union all
        select 'doubted_list', count(*) from jobs.integration_state s
        where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
            and s.doubted && tstzrange(p_month::timestamp at time zone 'Europe/Paris',
                (p_month + interval '1 month') at time zone 'Europe/Paris')
    )
    select coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') from flaws f);
end $$;

create or replace function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    answer jsonb;
begin
    with flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    ), bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), former as materialized (
        select f.covered from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month
    ), sources as (
        select coalesce(s.covered, '{}') as covered, false as is_former
        from public.integration_tokens t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.user_id = p_user_id and t.is_active and s.left_out is not true
            and (s.first_month is null or s.counted @> p_month or (not exists (select from former)
                and not exists (select from jobs.integration_state o where o.user_id = p_user_id and o.counted @> p_month)))
        union all
        -- The month in which an account was replaced holds what was read of it until then, which may not be all.
        select f.covered, true from former f
    )
    select jsonb_strip_nulls(jsonb_build_object('flaws', nullif(f.found, '{}'), 'status', case
        when f.found <> '{}' then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(not s.is_former and s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end))
    into answer
    from flaws f cross join bounds b left join sources s on true
    group by f.found, b.starts, b.ends;
    return answer;
end $$;

create or replace function jobs.write_estimates(p_user_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
    with rates as materialized (
        select x.* from jobs.rates_in_use u cross join jsonb_to_recordset(u.rates) as x (
            activity text, "from" text, "full" numeric, acre_half numeric, acre_three_quarters numeric, flat_tax numeric)
    ), ours as materialized (
        select l.month, l.activity, l.record_id, r.amount_eur as amount,
            l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur
        from jobs.auto_sync_totals l join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
        where l.user_id = p_user_id and l.locked_at is null and r.source = 'auto_sync' and r.amount_eur = l.written_eur
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur)
    ), profile as materialized (
        select p.* from (select) one left join jobs.tax_profiles(array[p_user_id]) p on true
    ), shares as (
        select o.*,
            case when p.income_tax = 'versement_liberatoire' then 'vl' when p.income_tax = 'bareme' then 'bareme' end as mode,
            round(o.amount * 0.0001 * case
                -- ACRE: until the end of the third quarter after the one of the creation.
                when p.has_acre and date_trunc('month', p.created) <= o.month
                    and o.month < date_trunc('quarter', p.created) + interval '1 year'
                then case when p.created < '2026-07-01' then x.acre_half else x.acre_three_quarters end
                else x."full" end, 2) as contrib,
            case when p.income_tax = 'versement_liberatoire' then round(o.amount * 0.0001 * x.flat_tax, 2) end as tax
        from ours o cross join profile p
        cross join lateral (
            select t.* from rates t where t.activity = o.activity and t."from" <= to_char(o.month, 'YYYY-MM')
            order by t."from" desc limit 1) x
    ), wanted as materialized (
        select s.*, s.amount - s.contrib - coalesce(s.tax, 0) as net from shares s
        where (s.contrib, s.amount - s.contrib - coalesce(s.tax, 0), s.mode, s.tax) is distinct from
            (s.written_contrib_eur, s.written_net_eur, s.written_ir_mode, s.written_ir_eur)
    ), written as (
        update public.ca_records r
        set computed_contrib_eur = w.contrib, computed_net_eur = w.net, ir_mode = w.mode, ir_amount_eur = w.tax
        from wanted w
        where r.id = w.record_id and r.user_id = p_user_id and r.source = 'auto_sync'
            and r.amount_eur = w.amount                                          -- not edited in this very moment
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (w.written_contrib_eur, w.written_net_eur, w.written_ir_mode, w.written_ir_eur)
        returning r.id
    )
    update jobs.auto_sync_totals l
    set written_contrib_eur = w.contrib, written_net_eur = w.net, written_ir_mode = w.mode, written_ir_eur = w.tax
    from wanted w join written n on n.id = w.record_id
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity;
end $$;

create or replace function jobs.take_rates(p_rates jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    insert into jobs.rates_in_use as u (rates)
    select p_rates
    where jsonb_typeof(p_rates) = 'array' and not exists (select from jobs.rates_in_use k where k.rates = p_rates)
    on conflict (is_only) do update set rates = excluded.rates;
end $$;

create or replace function jobs.store_movements(
    p_user_id uuid, p_provider text, p_account text, p_movements jsonb, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    answer jsonb;
begin
    with incoming as (
        select distinct on (m.external_id) m.external_id, m.kind, m.occurred_at, m.amount_minor, left(m.currency, 20) as currency,
            coalesce(m."references", '{}') as refs, m.source_kind, m.state, m.listed_at, m.original,
            -- As the version before this one told it, as long as one of its calls is under way.
            coalesce(m.method, nullif(m.excluded, 'unresolved_currency')) as method,
            coalesce(m.converted, m.excluded is distinct from 'unresolved_currency') as converted
        from jsonb_to_recordset(p_movements) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            "references" text[], source_kind text, state text, method text, listed_at timestamptz, converted boolean,
            original jsonb, excluded text)
    ), before as (
        select t.external_id, t.paris_month from jobs.integration_transactions t join incoming using (external_id)
        where t.user_id = p_user_id and t.provider = p_provider
    ), merged as (
        select n.external_id,
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
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            coalesce(n.source_kind, t.source_kind) as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
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
    ), stored as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        from merged m order by m.external_id
        on conflict (user_id, provider, external_id) do update set
            account = excluded.account, kind = excluded.kind, occurred_at = excluded.occurred_at,
            amount_minor = excluded.amount_minor, currency = excluded.currency, refs = excluded.refs,
            source_kind = excluded.source_kind, state = excluded.state, method = excluded.method,
            listed_at = excluded.listed_at, converted = excluded.converted, original = excluded.original,
            updated_at = clock_timestamp()
        where (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (excluded.account, excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency, excluded.refs,
                excluded.source_kind, excluded.state, excluded.method, excluded.listed_at, excluded.converted,
                excluded.original)
        returning t.external_id, t.paris_month
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct b.paris_month) filter (where b.paris_month <> s.paris_month), '[]'))
    into answer
    from stored s left join before b using (external_id);
    return answer;
end $$;

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
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from failed p join failures f on f.r = any (p.refs)) m;
    return answer;
end $$;

alter function jobs.books(uuid[], integer, integer) set jit = off;

commit;
