-- What a month's figure is worth: what was read of it, and what it lacks or may have twice.

-- A user's movements of some months that are in the books, those that do not count too: of the accounts whose books have
-- the month; where nobody's have it, of the present ones. Whoever says what a month lacks asks here, so that an account's
-- rows say nothing of another one's month. Without a setting of its own, so that it becomes part of the query that uses it.
create function jobs.movements_in_books(p_user_id uuid, p_months date[]) returns setof jobs.integration_transactions
language sql stable as $$
    select t.* from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months) and not coalesce(f.left_out, s.left_out, false)
        and (coalesce(f.counted, s.counted) @> t.paris_month or f.account is null
            and not exists (select from jobs.integration_state o
                where o.user_id = p_user_id and o.counted @> t.paris_month)
            and not exists (select from jobs.former_accounts o
                where o.user_id = p_user_id and o.counted @> t.paris_month));
$$;

-- Brings instants of two lists together that lie at most so far apart, as many as can be, each with one of the other list.
-- Both lists are in order of time. The answer: the places in the first one of those that found one.
create function jobs.meet_within(p_first timestamptz[], p_second timestamptz[], p_most interval) returns integer[]
language plpgsql immutable set search_path = '' as $$
declare
    found integer[] := '{}';
    i integer := 1;
    j integer := 1;
begin
    while i <= cardinality(p_first) and j <= cardinality(p_second) loop
        if p_first[i] < p_second[j] - p_most then
            i := i + 1;
        elsif p_second[j] < p_first[i] - p_most then
            j := j + 1;
        else
            found := found || i;
            i := i + 1;
            j := j + 1;
        end if;
    end loop;
    return found;
end $$;

-- Money that the figure of a user's month lacks, or may lack: what is_uncounted names, of the accounts whose books have the
-- month (movements_in_books), but for what another row explains. One row explains one:
--   a refund a dispute that was prevented, by order and amount;
--   a movement that counts the same money in another currency, where both providers tell it (told_by_both);
--   a movement at Stripe a payment that only an order tells, by amount, within an hour, where no tender is left for it: as
--   many as can be brought together, whichever month they lie in.
create function jobs.uncounted_movements(p_user_id uuid, p_month date) returns setof jobs.integration_transactions
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
    has_foreign := has_foreign
        and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'shopify')
        and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'stripe');
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
            or t.excluded is null and not jobs.paid_by_hand(t.method) and (t.kind = 'refund'
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
    ), in_euros as (
        select b.external_id from jobs.told_by_both(p_user_id, true, true) b
        where has_foreign and b.is_sure and b.provider = 'shopify'
        union
        select b.external_id from jobs.told_by_both(p_user_id, true, false) b
        where has_foreign and b.is_sure and b.provider = 'stripe'
    ), explained as (
        select external_id from paid_back union select external_id from listed
    )
    select t.* from found t
    where not (t.provider = 'shopify' and t.excluded in ('prevented', 'unlisted_payment')
            and t.external_id in (select e.external_id from explained e))
        and not (t.excluded in ('currency', 'unresolved_currency') and t.external_id in (select e.external_id from in_euros e));
end $$;

-- Up to when a user's books know what was read: a replay of an earlier instant takes nothing back of it.
create function jobs.known_up_to(p_user_id uuid, p_as_of timestamptz) returns timestamptz
language sql stable set search_path = '' as $$
    select greatest(p_as_of, max(s.last_success_to)) from jobs.integration_state s where s.user_id = p_user_id;
$$;

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of uncounted_movements:
--   pending: a payment that is still on its way, where the month is over; or one that was sent in the month and would come
--     in a later one, from an account that was replaced since: nobody can ask for it
--   platform_reversal: what a platform took back of a payment, where it is no fee of hers: what leaves nothing of it, at once
--     or in pieces, or a part of one of which she had an application fee
--   refund_of_unknown_sale: a refund of an order of which a payment was never read, or is told by the order alone and Stripe's
--     refunds do not explain it; or of no order any more beside one at Stripe of the same amount within ten days, or of a sale
--     that names no charge beside one of the same amount and day, which may be of that sale: Stripe may report it, too
--   maybe_twice: a payment in the shop that names no charge, or one that Stripe does not know, and one at Stripe of the same
--     amount, or the same of the buyer's money, on the same day or within an hour, or, where the shop may only have marked
--     it as paid, in the week before; of a debit, on the day on which it was sent, or counts; besides, what may be Stripe's
--     by its order or the name of its charge (told_by_both)
--   beyond_scope: days that lay more than 60 days back when the shop was read, with a scope that reaches no further: 1
--   passed_on: a payment that a platform passed on, which may have kept a part of what the buyer paid
--   doubted_list: days of a list that lacked what it had shown before: 1 for each provider
create function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer jsonb;
    passed_on bigint;
    left_behind bigint := 0;
    has_excluded boolean;
    has_nameless boolean;
    has_named boolean;
    known_to constant timestamptz := jobs.known_up_to(p_user_id, p_as_of);
begin
    -- One look first: most months have none of what the queries below are about.
    select count(*) filter (where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where starts_with(r, 'tr_'))
            and not exists (select from unnest(t.refs) r where starts_with(r, 'fee_'))),
        coalesce(bool_or(t.excluded is not null), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
            and not exists (select from unnest(t.refs) r where r !~ '^gid:')), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null and t.kind = 'payment'
            and exists (select from unnest(t.refs) r where r !~ '^gid:')), false)
    into passed_on, has_excluded, has_nameless, has_named
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
            greatest(known_to - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
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
            where t.excluded = 'pending' and known_to >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            union all
            select 'platform_reversal', count(*) from found t
            where t.excluded = 'platform_reversal' and t.external_id not in (select i.external_id from is_fee i)
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;

    if (has_nameless or has_named) and not exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) then
        return answer;
    end if;
    if has_named and not has_nameless then
        -- A name that Stripe does not know says as little as none; one that stands twice may say too much.
        with names as materialized (
            select n as name from jobs.movements_in_books(p_user_id, array[p_month]) t cross join unnest(t.refs) n
            where t.provider = 'shopify' and t.excluded is null and t.kind = 'payment' and n !~ '^gid:'
        ), known as materialized (
            select r as name from jobs.integration_transactions t cross join unnest(t.refs) r
            where t.user_id = p_user_id and t.provider = 'stripe' and t.kind = 'payment'
        )
        select exists (select from names group by name having count(*) > 1)
            or exists (select name from names except select name from known)
        into has_nameless;
    end if;

    if has_nameless then
        with twins as materialized (
            select b.provider, b.external_id, b.is_sure from jobs.told_by_both(p_user_id, true, true) b
        ), found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            left join twins w on w.provider = 'shopify' and w.is_sure and w.external_id = t.external_id
            where t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund') and w.external_id is null
        ), of_orders as materialized (
            select t.external_id, o from found t cross join unnest(t.refs) o
            where t.kind = 'refund' and not exists (select from unnest(t.refs) r where r !~ '^gid:')
        ), sold as materialized (      -- what their orders were paid with, whenever
            select p.kind = 'unlisted_payment' as is_unlisted, o, p.external_id, p.method, p.occurred_at,
                exists (select from unnest(p.refs) n where n !~ '^gid:') as is_named, p.currency || p.amount_minor as euros,
                (p.original ->> 'currency') || (p.original ->> 'amount_minor') as foreign_money
            from jobs.integration_transactions p cross join unnest(p.refs) o
            join (select distinct o from of_orders) asked using (o)
            where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0 and exists (select from of_orders)
        ), nameless_sales as materialized (
            select o from sold group by o
            having not bool_or(is_unlisted or is_named) and bool_or(not jobs.paid_by_hand(method))
        ), nameless_refunds as materialized (
            select external_id from of_orders join nameless_sales using (o)
        ), nameless as materialized (  -- movements in the shop that may have gone through Stripe without saying so
            select t.external_id, t.kind, r.external_id is not null as is_of_sale, t.occurred_at, (t.occurred_at at time zone 'Europe/Paris')::date as day,
                t.currency || t.amount_minor as euros,
                (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money,
                t.kind = 'payment' and coalesce(lower(t.method) in ('other', 'manual', 'unknown'), false) as is_marked
            from found t left join nameless_refunds r using (external_id)
            where not jobs.paid_by_hand(t.method) and (t.kind = 'payment' or t.refs = '{}' or r.external_id is not null)
        ), asked as materialized (     -- one row for each money and day: joined in one go
            select distinct n.external_id, n.kind, n.is_of_sale, n.occurred_at, n.day as own_day, m.money,
                ((n.occurred_at + d.lag) at time zone 'Europe/Paris')::date as day
            from nameless n cross join unnest(array[n.euros, n.foreign_money]) m (money)
            cross join unnest(array[interval '-1 hour', interval '0', interval '1 hour']) d (lag)
            where m.money is not null
            union      -- a refund of an order that is gone, and what was marked as paid: nothing but the amount tells whose it is
            select n.external_id, n.kind, false, n.occurred_at, n.day + d.lag, m.money, n.day + d.lag
            from nameless n cross join unnest(array[n.euros, n.foreign_money]) m (money)
            cross join generate_series(-10, 10) d (lag)
            where m.money is not null and (n.kind = 'refund' and not n.is_of_sale or n.is_marked and d.lag between -7 and 0)
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
            union
            select w.external_id from twins w where w.provider = 'stripe'
        ), told as materialized (
            select distinct t.kind, m.money, d.at, (d.at at time zone 'Europe/Paris')::date as day
            from at_stripe t cross join unnest(array[t.euros, t.foreign_money]) m (money)
            cross join unnest(array[t.listed_at, t.occurred_at]) d (at)
            where not exists (select from explained e where e.external_id = t.external_id)
                and m.money is not null and d.at is not null
        ), doubted as materialized (
            select a.kind, a.external_id from asked a
            where not a.is_of_sale and a.day = a.own_day
                and exists (select from told p where (p.kind, p.money, p.day) = (a.kind, a.money, a.day))
            union
            select a.kind, a.external_id from asked a join told p using (kind, money, day)
            where not a.is_of_sale and a.day <> a.own_day
                and p.at between a.occurred_at - interval '1 hour' and a.occurred_at + interval '1 hour'
        ), returned as materialized (  -- refunds of such sales, each with those at Stripe that it may be
            select distinct a.external_id, p.external_id as at_stripe
            from asked a
            join (select t.external_id, m.money, d.at, (d.at at time zone 'Europe/Paris')::date as day
                from at_stripe t cross join unnest(array[t.euros, t.foreign_money]) m (money)
                cross join unnest(array[t.listed_at, t.occurred_at]) d (at)
                where t.kind = 'refund' and m.money is not null and d.at is not null
                    and exists (select from nameless_refunds)) p using (money, day)
            where a.is_of_sale and (a.day = a.own_day
                or p.at between a.occurred_at - interval '1 hour' and a.occurred_at + interval '1 hour')
        ), charges as materialized (   -- whose refunds those are
            select t.external_id as at_stripe, r as name
            from at_stripe t join (select distinct at_stripe from returned) x on x.at_stripe = t.external_id
            cross join unnest(t.refs) r where r ~ '^(ch|py|pi)_'
        ), paid as materialized (
            select distinct c.at_stripe, m.money, d.at
            from jobs.integration_transactions p cross join unnest(p.refs) r join charges c on c.name = r
            cross join unnest(array[p.currency || p.amount_minor,
                (p.original ->> 'currency') || (p.original ->> 'amount_minor')]) m (money)
            cross join unnest(array[p.listed_at, p.occurred_at]) d (at)
            where p.user_id = p_user_id and p.provider = 'stripe' and p.kind = 'payment' and exists (select from charges)
        ), alike as (                  -- the sale may be that payment
            select distinct o.external_id, p.at_stripe
            from of_orders o join sold s using (o) cross join unnest(array[s.euros, s.foreign_money]) m (money)
            join paid p using (money)
            where not jobs.paid_by_hand(s.method)
                and ((s.occurred_at at time zone 'Europe/Paris')::date = (p.at at time zone 'Europe/Paris')::date
                    or p.at between s.occurred_at - interval '1 hour' and s.occurred_at + interval '1 hour')
        ), open_returns as (           -- a payment that is another sale's has its refunds there
            select r.external_id, r.at_stripe from returned r
            except
            select r.external_id, r.at_stripe from returned r join charges c using (at_stripe) join shop_names n using (name)
        ), doubted_returns as (
            select distinct r.external_id from open_returns r
            left join (select distinct at_stripe from paid) k using (at_stripe)
            left join alike a using (external_id, at_stripe)
            where k.at_stripe is null or a.at_stripe is not null
        ), listed_sales as (
            select o from sold where not is_unlisted
        ), unlisted_sales as (
            select o from sold where is_unlisted
        ), flaws as (
            select 'refund_of_unknown_sale' as reason, (select count(*) from (
                (select o from of_orders except select o from listed_sales)      -- not by loops: see told_by_both
                union
                select o from of_orders join unlisted_sales using (o)) r)
                + (select count(*) from doubted d where d.kind = 'refund') + (select count(*) from doubted_returns) as n
            union all
            select 'maybe_twice', count(*) from (
                select d.external_id from doubted d where d.kind = 'payment'
                union
                select t.external_id from found t join twins w on w.external_id = t.external_id
                where w.provider = 'shopify' and not w.is_sure) m
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;
    return answer;
end $$;

-- Of what a month's figure is made, with what was read of it: each account whose books have the month; every active
-- integration where none has, or that was never read. is_owed: its money belongs into the books of the month. is_former: the
-- account was replaced; is_disconnected: it was disconnected. Neither is read any further.
create function jobs.month_sources(p_user_id uuid, p_month date, p_as_of timestamptz)
returns table (provider text, covered tstzmultirange, is_former boolean, is_owed boolean, is_disconnected boolean)
language sql stable as $$
    with former as materialized (
        select f.provider, f.covered from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month
    )
    select t.provider, coalesce(s.covered, '{}'), false, coalesce(s.counted @> p_month, false) or (s.first_month is null
        and jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_as_of) <= p_month), false
    from public.integration_tokens t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.is_active and s.left_out is not true
        and (s.first_month is null or s.counted @> p_month or (not exists (select from former)
            and not exists (select from jobs.integration_state o where o.user_id = p_user_id and o.counted @> p_month)))
    union all
    -- The month in which an account was replaced holds what was read of it until then, which may not be all.
    select f.provider, f.covered, true, true, false from former f
    union all
    -- What came in before an account was disconnected, and after it was last read, nobody has read. When that was nobody
    -- tells: the months go up to the one in which it was read, or could not be, for the last time.
    select s.provider, s.covered, false, true, true
    from jobs.integration_state s
    where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
        and p_month <= greatest(s.last_success_to, s.last_success_at, s.failed_at) at time zone 'Europe/Paris'
        and not exists (select from public.integration_tokens t
            where t.user_id = p_user_id and t.provider = s.provider and t.is_active);
$$;

-- A source that was read longer ago than this is late: some reads in a row have failed or never began. The status page calls
-- it so, too (`LATE_AFTER`).
create function jobs.late_after() returns interval language sql immutable set search_path = '' as $$
    select interval '36 hours';
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up to
-- now, no later than late_after), partial (something of it was never read, or it has flaws). It follows from the ledger and
-- from what was read, of each account whose books have the month; of every active integration where none has, or that was
-- never read.
--   {status, flaws?: see month_flaws}
create function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    answer jsonb;
    known_to constant timestamptz := jobs.known_up_to(p_user_id, p_as_of);
    late_at constant timestamptz := known_to - jobs.late_after();
begin
    with flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    ), bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as materialized (
        select s.covered, s.covered * tstzmultirange(tstzrange(b.starts, b.ends)) as of_month,
            s.is_former or s.is_disconnected as has_ended
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    )
    select jsonb_strip_nulls(jsonb_build_object('flaws', nullif(f.found, '{}'), 'status', case
        when f.found <> '{}' then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when known_to < b.ends and coalesce(bool_and(not s.has_ended and case
            -- One piece from the first instant on: no hole before what was read last.
            when s.covered @> b.starts then upper(s.of_month) >= late_at
                and (select count(*) = 1 from unnest(s.of_month) piece)
            -- The month has just begun.
            else isempty(s.of_month) and late_at < b.starts and coalesce(upper(s.covered) >= late_at, false) end), false)
            then 'provisional'
        else 'partial' end))
    into answer
    from flaws f cross join bounds b left join sources s on true
    group by f.found, b.starts, b.ends;
    return answer;
end $$;

-- The status alone.
create function jobs.month_status(p_user_id uuid, p_month date, p_as_of timestamptz) returns text
language sql stable set search_path = '' as $$
    select jobs.month_worth(p_user_id, p_month, p_as_of) ->> 'status';
$$;
