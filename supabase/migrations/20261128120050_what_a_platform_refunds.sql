-- What a platform takes back of a payment of which it had a fee is named: it is a refund that it made.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of uncounted_movements:
--   pending: a payment that is still on its way, where the month is over
--   platform_reversal: what a platform took back of a payment, where it is no fee of hers: all of it, or a part of one of
--     which she had an application fee
--   refund_of_unknown_sale: a refund of an order whose payment was never read, or of no order any more beside one at Stripe
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
    has_excluded boolean;
    has_nameless boolean;
begin
    -- One look first: most months have none of what the queries below are about.
    select count(*) filter (where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where starts_with(r, 'tr_'))),
        coalesce(bool_or(t.excluded is not null), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
            and not exists (select from unnest(t.refs) r where r !~ '^gid:')), false)
    into passed_on, has_excluded, has_nameless
    from jobs.movements_in_books(p_user_id, array[p_month]) t;

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
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            where t.excluded in ('pending', 'platform_reversal')
        ), flaws as (
            select t.excluded as reason, count(*) as n from jobs.uncounted_movements(p_user_id, p_month) t group by 1
            union all
            select 'pending', count(*) from found t
            where t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            union all
            select 'platform_reversal', count(*) from found t
            where t.excluded = 'platform_reversal' and not exists (
                select from jobs.integration_transactions p
                where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                    and p.amount_minor > -t.amount_minor
                    and not exists (select from unnest(p.refs) r where starts_with(r, 'fee_')))
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
        ), flaws as (
            select 'refund_of_unknown_sale' as reason, (select count(*) from (
                select o from found t cross join unnest(t.refs) o where t.kind = 'refund'
                except   -- not by loops: see movements_reported_twice
                select o from jobs.integration_transactions p cross join unnest(p.refs) o
                where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0) r)
                + (select count(*) from doubted d where d.kind = 'refund') as n
            union all
            select 'maybe_twice', count(*) from doubted d where d.kind = 'payment'
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;
    return answer;
end $$;

commit;
