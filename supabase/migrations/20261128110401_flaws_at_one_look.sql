-- What a month lacks is looked for where one look at its movements says that there may be something.
--
-- Locks nothing: functions only. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

create function jobs.movements_in_books(p_user_id uuid, p_month date) returns setof jobs.integration_transactions
language sql stable as $$
    select t.* from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = p_month and (f.account is null or f.counted @> p_month)
        and not coalesce(f.left_out, s.left_out, false);
$$;

create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer jsonb;
    passed_on bigint;
    has_excluded boolean;
    has_sales_in_shop boolean;
begin
    -- One look first: most months have none of what the queries below are about.
    select count(*) filter (where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where starts_with(r, 'tr_'))),
        coalesce(bool_or(t.excluded is not null), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null), false)
    into passed_on, has_excluded, has_sales_in_shop
    from jobs.movements_in_books(p_user_id, p_month) t;

    with flaws as (
        select 'passed_on' as reason, passed_on as n
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
            select t.* from jobs.movements_in_books(p_user_id, p_month) t where t.excluded is not null
        ), flaws as (
            select t.excluded as reason, count(*) as n from found t
            where t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
                -- What was prevented was paid back where a refund of the same order says so.
                or t.excluded = 'prevented' and not exists (select from jobs.integration_transactions r
                    where r.user_id = p_user_id and r.provider = t.provider and r.kind = 'refund' and r.refs && t.refs
                        and r.amount_minor = t.amount_minor)
                or t.excluded <> 'prevented' and jobs.is_uncounted(t)
            group by 1
            union all
            select 'platform_reversal', count(*) from found t
            where t.excluded = 'platform_reversal' and not exists (
                select from jobs.integration_transactions p
                where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                    and p.amount_minor > -t.amount_minor)
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;

    if has_sales_in_shop and exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) then
        with found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, p_month) t where t.excluded is null
        ), nameless as materialized (  -- payments in the shop that may have gone through Stripe without saying so
            select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
            from found t
            where t.provider = 'shopify' and t.kind = 'payment' and t.method is distinct from 'cash'
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
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
            where t.provider = 'stripe' and t.kind = 'payment' and exists (select from nameless)
                and not exists (select from explained e where e.external_id = t.external_id)
        ), flaws as (
            select 'refund_of_unknown_sale' as reason, count(*) as n from (
                select o from found t cross join unnest(t.refs) o
                where t.provider = 'shopify' and t.kind = 'refund'
                    and not exists (select from unnest(t.refs) r where r !~ '^gid:')
                except   -- not by loops: see movements_reported_twice
                select o from jobs.integration_transactions p cross join unnest(p.refs) o
                where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0) r
            union all
            select 'maybe_twice', count(*) from nameless d
            where exists (select from unexplained p where (p.amount_minor, p.day) = (d.amount_minor, d.day))
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;
    return answer;
end $$;

revoke all on function jobs.movements_in_books from public, anon, authenticated, service_role;

commit;
