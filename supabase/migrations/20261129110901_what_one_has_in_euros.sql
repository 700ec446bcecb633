-- What one provider has in euros is missing on none.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- The rules that decide what a month's figure is and what it is worth, as a fingerprint of their functions: another one means
-- that figures from before may be others now. Nobody has to remember to raise a number.
create or replace function jobs.rules_in_force() returns text language sql stable set search_path = '' as $$
    select md5(string_agg(p.prosrc, '' order by p.proname)) from pg_catalog.pg_proc p
    where p.pronamespace = 'jobs'::regnamespace and p.proname in ('paid_before', 'why_excluded', 'countable_movements',
        'movements_reported_twice', 'recompute_totals', 'movements_in_books', 'is_uncounted', 'uncounted_movements', 'told_in_euros',
        'month_flaws', 'month_sources', 'month_worth');
$$;

-- Movements of these users that are in no total, since they are in another currency, and that the other provider tells in
-- euros, and counts or follows: nothing is missing for them. One movement explains one: a payment by the name of its charge, a
-- refund by its own, or by the charge, or the order that names it, and the same amount in the money of one of the two.
create or replace function jobs.told_in_euros(p_users uuid[]) returns table (user_id uuid, provider text, external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    asked uuid[] := array(      -- almost always none
        select f.user_id from (select distinct t.user_id, t.provider from jobs.integration_transactions t
            where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')) f
        where exists (select from jobs.integration_transactions x
            where x.user_id = f.user_id and x.provider = case f.provider when 'stripe' then 'shopify' else 'stripe' end));
begin
    if asked = '{}' then
        return;
    end if;
    return query
    with judged as materialized (
        select t.user_id, t.provider, t.external_id, t.amount_minor > 0 as is_in, t.occurred_at, t.refs,
            coalesce(t.excluded in ('currency', 'unresolved_currency'), false) as is_foreign,
            t.currency || t.amount_minor as money, (t.original ->> 'currency') || (t.original ->> 'amount_minor') as bought
        from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = any (asked) and t.kind in ('payment', 'partial_capture', 'refund')
            and (t.excluded in ('currency', 'unresolved_currency') or t.excluded is null
                or t.provider = 'stripe' and t.excluded in ('pending', 'failed'))
            and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
    ), of_orders as materialized (      -- by which names an order was paid
        select distinct p.user_id, o as of_order, n as name
        from judged p cross join unnest(p.refs) o cross join unnest(p.refs) n
        where p.provider = 'shopify' and p.is_in and o ~ '^gid:' and n ~ '^(ch|py|pi)_'
    ), keys as materialized (
        select j.user_id, j.provider, j.external_id, j.is_in, j.is_foreign, j.occurred_at, n as key
        from judged j cross join unnest(j.refs) n
        where case when j.is_in then n ~ '^(ch|py|pi)_' else n ~ '^(re|pyr)_' end
        union
        select j.user_id, j.provider, j.external_id, j.is_in, j.is_foreign, j.occurred_at, n || ' ' || m.money
        from (select r.*, n from judged r cross join unnest(r.refs) n where not r.is_in and n ~ '^(ch|py|pi)_'
            union
            select r.*, o.name from judged r cross join unnest(r.refs) g
            join of_orders o on o.user_id = r.user_id and o.of_order = g where not r.is_in) j (
                user_id, provider, external_id, is_in, occurred_at, refs, is_foreign, money, bought, n)
        cross join unnest(array[j.money, j.bought]) m (money) where m.money is not null
    ), numbered as materialized (
        select k.*, row_number() over (partition by k.user_id, k.provider, k.is_foreign, k.is_in, k.key
            order by k.occurred_at, k.external_id) as nth
        from keys k
    )
    select distinct f.user_id, f.provider, f.external_id
    from numbered f join numbered c using (user_id, is_in, key, nth)
    where f.is_foreign and not c.is_foreign and f.provider <> c.provider;
end $$;

-- Months of these users with money in currencies that no total has. Our mails ask to type it, so that what was typed for
-- such a month is not what was imported: an answer for every month that it is the same is not about these.
create or replace function jobs.foreign_months(p_users uuid[]) returns table (user_id uuid, month date)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    return query
    select distinct t.user_id, t.paris_month
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')
        and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
        and (t.user_id, t.provider, t.external_id) not in (
            select e.user_id, e.provider, e.external_id from jobs.told_in_euros(p_users) e);
end $$;

-- Money that the figure of a user's month lacks, or may lack: what is_uncounted names, of the accounts whose books have the
-- month (movements_in_books), but for what another row explains. One row explains one:
--   a refund a dispute that was prevented, by order and amount;
--   a movement in euros the same one in another currency (told_in_euros);
--   a movement at Stripe a payment that only an order tells, by amount, within an hour, where no tender is left for it: as
--   many as can be brought together, whichever month they lie in.
create or replace function jobs.uncounted_movements(p_user_id uuid, p_month date) returns setof jobs.integration_transactions
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    has_prevented boolean;
    has_unlisted boolean;
    has_foreign boolean;
begin
    select coalesce(bool_or(t.excluded = 'prevented'), false), coalesce(bool_or(t.excluded = 'unlisted_payment'), false),
        coalesce(bool_or(t.excluded in ('currency', 'unresolved_currency')), false)
    into has_prevented, has_unlisted, has_foreign
    from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t);
    if not has_prevented and not has_unlisted and not has_foreign then
        return query select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t);
        return;
    end if;
    return query
    with found as materialized (
        select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t)
    ), of_orders as materialized (     -- of all months: a refund explains one dispute, whichever month that lies in
        select t.external_id, t.kind, (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order,
            t.currency, t.amount_minor, t.occurred_at
        from jobs.integration_transactions t
        where has_prevented and t.user_id = p_user_id and t.provider = 'shopify'
            and (t.excluded = 'prevented' or t.kind = 'refund')
    ), in_order as materialized (
        select o.*, row_number() over (partition by o.kind, o.of_order, o.currency, o.amount_minor
            order by o.occurred_at, o.external_id) as nth
        from of_orders o
    ), paid_back as (
        select d.external_id from in_order d
        join in_order r using (of_order, currency, amount_minor, nth)
        where d.kind = 'dispute' and r.kind = 'refund'
    ), names as materialized (      -- of what the shop's list has
        select distinct n as name from jobs.integration_transactions s cross join unnest(s.refs) n
        where has_unlisted and s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and n !~ '^gid:'
    ), days as (                    -- the month's, and those beside it with which they can be brought together
        select (p_month - 1)::timestamp at time zone 'Europe/Paris' as first,
            (p_month + interval '1 month 1 day') at time zone 'Europe/Paris' as last
    ), at_stripe as materialized (
        select t.external_id, t.refs, t.kind, t.currency, t.amount_minor,
            coalesce(t.listed_at, t.occurred_at) as at
        -- A debit counts later than it was sent.
        from jobs.movements_in_books(p_user_id, array[(p_month - interval '1 month')::date, p_month,
            (p_month + interval '1 month')::date, (p_month + interval '2 months')::date]) t cross join days d
        where has_unlisted and t.provider = 'stripe' and t.kind in ('payment', 'refund')
            and (t.excluded is null or t.excluded = 'pending')
            and coalesce(t.listed_at, t.occurred_at) >= d.first and coalesce(t.listed_at, t.occurred_at) < d.last
    ), named as materialized (
        select distinct t.external_id from (
            select p.external_id, unnest(p.refs) as name from at_stripe p where p.kind = 'payment') t join names using (name)
    ), in_shop as materialized (        -- an order's own, and what the list has without the name of a charge
        select t.external_id, t.excluded is not null as is_unlisted, t.currency, t.amount_minor, t.occurred_at as at
        from jobs.movements_in_books(p_user_id, array[(p_month - interval '1 month')::date, p_month,
            (p_month + interval '1 month')::date]) t cross join days d
        where has_unlisted and t.provider = 'shopify' and (t.excluded = 'unlisted_payment'
            or t.excluded is null and t.method is distinct from 'cash' and (t.kind = 'refund'
                or t.kind = 'payment' and not exists (select from unnest(t.refs) r where r !~ '^gid:')))
            and t.occurred_at >= d.first and t.occurred_at < d.last
    ), told as (
        select currency, amount_minor, at, external_id, is_unlisted, false as is_free from in_shop
        union all
        select t.currency, t.amount_minor, t.at, null, null, true
        from at_stripe t where not exists (select from named x where x.external_id = t.external_id)
    ), chained as (                 -- more than an hour apart, nothing can be brought together
        select t.*, case when t.at - lag(t.at) over w <= interval '1 hour' then 0 else 1 end as is_first
        from told t join (select distinct currency, amount_minor from in_shop where is_unlisted) m using (currency, amount_minor)
        window w as (partition by currency, amount_minor order by t.at)
    ), numbered as (
        select c.*, sum(c.is_first) over (partition by currency, amount_minor order by c.at) as chain from chained c
    ), chains as materialized (
        select array_agg(n.external_id order by n.at, n.external_id) filter (where not n.is_free) as ids,
            array_agg(n.is_unlisted order by n.at, n.external_id) filter (where not n.is_free) as are_unlisted,
            array_agg(n.at order by n.at, n.external_id) filter (where not n.is_free) as sold,
            coalesce(array_agg(n.at order by n.at) filter (where not n.is_free and not n.is_unlisted), '{}') as listed,
            coalesce(array_agg(n.at order by n.at) filter (where n.is_free), '{}') as free
        from numbered n group by n.currency, n.amount_minor, n.chain having bool_or(n.is_unlisted)
    ), met as (                     -- the list's come first: so many are left for the others
        select c.*, m.places, cardinality(m.places)
            - cardinality(jobs.meet_within(c.listed, c.free, interval '1 hour')) as left_over
        from chains c cross join lateral (select jobs.meet_within(c.sold, c.free, interval '1 hour') as places offset 0) m
    ), listed as (
        select x.external_id from (
            select m.ids[p.place] as external_id, m.left_over, row_number() over (partition by m.ids[1] order by p.place) as nth
            from met m cross join unnest(m.places) p (place) where m.are_unlisted[p.place]) x
        where x.nth <= x.left_over
    ), explained as (
        select external_id from paid_back union select external_id from listed
    )
    select t.* from found t
    where not (t.provider = 'shopify' and t.excluded in ('prevented', 'unlisted_payment')
            and t.external_id in (select e.external_id from explained e))
        and not (has_foreign and t.excluded in ('currency', 'unresolved_currency') and (t.provider, t.external_id) in (
            select e.provider, e.external_id from jobs.told_in_euros(array[p_user_id]) e));
end $$;

-- Currencies of a user's movements in some months that no total has.
create or replace function jobs.uncounted_currencies(p_user_id uuid, p_months date[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(distinct left(t.currency, 10)), '[]')
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months) and t.excluded in ('currency', 'unresolved_currency')
        and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
        and (t.provider, t.external_id) not in (
            select e.provider, e.external_id from jobs.told_in_euros(array[p_user_id]) e);
$$;

-- What an alert tells beside its steps, for users who are to get one: what movements of some months add up to on each day
-- (as far as they are in the books, and not too many), what the year has in other currencies, and of which integrations
-- the activity was never said by anybody.
-- p_asked: [{user_id, year, months: [YYYY-MM-01]}]
--   [{user_id, year, days: [{day, activity, amount}], uncounted: [{currency, amount}], assumed: [{provider, activity}]}]
create or replace function public.threshold_details(p_asked jsonb) returns jsonb
language sql security definer stable set search_path = '' set statement_timeout = '28s' set jit = off as $$
    select coalesce(jsonb_agg(jsonb_build_object('user_id', a.user_id, 'year', a.year,
        'days', coalesce(d.days, '[]'), 'uncounted', coalesce(c.uncounted, '[]'),
        'assumed', jobs.assumed_activities(a.user_id))), '[]')
    from jsonb_to_recordset(p_asked) as a (user_id uuid, year integer, months date[])
    left join lateral (
        -- Three activities on 31 days are 93.
        select jsonb_agg(jsonb_build_object('day', m.day, 'activity', m.activity, 'amount', m.amount)) as days
        from (select x.day, left(x.activity, 80) as activity, sum(x.amount_minor)::bigint as amount
              from jobs.countable_movements(a.user_id, a.months, true) x
              where cardinality(a.months) > 0 and x.activity is not null group by 1, 2) m
        having count(*) <= 100 * cardinality(a.months)
    ) d on true
    left join lateral (
        select jsonb_agg(jsonb_build_object('currency', m.currency, 'amount', m.amount) order by m.currency) as uncounted
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.integration_transactions t
              join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
              left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
              where t.user_id = a.user_id and t.excluded in ('currency', 'unresolved_currency')
                  and t.paris_month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
                  and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
                  and (t.provider, t.external_id) not in (
                      select e.provider, e.external_id from jobs.told_in_euros(array[a.user_id]) e)
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;

revoke all on function jobs.told_in_euros from public, anon, authenticated, service_role;

commit;
