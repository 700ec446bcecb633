-- What Stripe names side by side is one payment of one order; what was paid back in cash is not Stripe's; the buyer's money
-- decides before euros do. Thousands of equal refunds of one order are not compared with each other.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- A user's Shopify movements of some months that Stripe reports, too. Each Stripe movement explains one of them.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order, unless it
-- was paid back in cash). What Stripe names side by side is one payment, whichever of it the shop names. A refund
-- that names its own id is the one that Stripe calls so, and no other. Then amount and currency decide, in the buyer's currency
-- or in euros; of several that are equal, the next in time. A payment that names its charge is that charge, whatever
-- it is worth there (another rate, a part captured); a refund that names a charge is not: what was paid back in another
-- way, or beside a chargeback, is money of its own. p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with. Nor by
-- merging, which would compare all that is equal in one order before its place in the row.
create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original, t.excluded, t.method,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
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
    ), of_shop as materialized (    -- which order, or payment without one, each name belongs to by the shop
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), of_told as materialized (    -- and each movement at Stripe: to an order before a payment without one
        select distinct on (t.external_id)
            t.external_id, t.kind, t.is_in, t.euros, t.foreign_money, t.occurred_at, o.sale
        from told t join of_shop o using (name) order by t.external_id, not starts_with(o.sale, 'gid:'), o.sale
    ), unplaced as materialized (   -- rows that name no order, or none any more, belong to the sale of their names
        select s.external_id, unnest(s.names) as name from shop s where s.shop_order is null
    ), of_names as materialized (
        select a.external_id, coalesce(min(a.sale) filter (where starts_with(a.sale, 'gid:')), min(a.sale)) as sale
        from (select u.external_id, o.sale from unplaced u join of_shop o using (name)
            union all
            select u.external_id, o.sale from unplaced u join told t using (name)
            join of_told o on o.external_id = t.external_id) a
        group by 1
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            not s.is_in and exists (select from unnest(s.names) n where n ~ '^(re|pyr)_') as names_itself,
            coalesce(s.shop_order, o.sale, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s left join of_names o using (external_id)
        where s.excluded is null and s.kind in ('payment', 'refund') and (s.names <> '{}' or not s.is_in and s.method is distinct from 'cash')
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.occurred_at, n as name from doubted d cross join unnest(d.names) n
    ), whole as materialized (     -- a charge or a refund that the shop tells in several pieces, or Stripe does
        select s.name, s.is_in from (
            select n.name, n.is_in, sum(n.amount_minor) as amount from named n
            where n.is_in or n.name ~ '^(re|pyr)_' group by 1, 2) s
        join (select t.name, t.kind <> 'refund' as is_in, sum(t.amount_minor) as amount from told t
            where t.kind <> 'refund' or t.name ~ '^(re|pyr)_' group by 1, 2) p using (name, is_in, amount)
    ), by_name as materialized (
        select distinct n.external_id from named n join whole w using (name, is_in)
    ), whole_told as materialized (
        select distinct t.external_id from told t join whole w using (name, is_in)
    ), by_own_name as materialized (    -- a refund of one id, worth another sum here and there
        select s.external_id as shop_id, p.external_id as stripe_id from (
            select n.name, n.external_id,
                row_number() over (partition by n.name order by n.occurred_at, n.external_id) as nth
            from named n where not n.is_in and n.name ~ '^(re|pyr)_'
                and not exists (select from by_name b where b.external_id = n.external_id)) s
        join (select t.name, t.external_id,
                row_number() over (partition by t.name order by t.occurred_at, t.external_id) as nth
            from told t where t.kind = 'refund' and t.name ~ '^(re|pyr)_'
                and not exists (select from whole_told w where w.external_id = t.external_id)) p using (name, nth)
    ), paid as materialized (
        select o.* from of_told o where o.kind in ('payment', 'refund')
    ), own_names as materialized (      -- sales of which Stripe names each refund
        select distinct p.sale from paid p join told t using (external_id)
        where t.kind = 'refund' and t.name ~ '^(re|pyr)_'
    ), in_doubt as materialized (       -- what no name has decided, in the shop and at Stripe
        select d.external_id, true as in_shop, d.sale, d.is_in, d.named, d.occurred_at, d.euros, d.foreign_money
        from doubted d
        where not exists (select from by_name n where n.external_id = d.external_id)
            and not exists (select from by_own_name n where n.shop_id = d.external_id)
            and (not d.names_itself or d.sale not in (select o.sale from own_names o))
        union all
        select p.external_id, false, p.sale, p.is_in, false, p.occurred_at, p.euros, p.foreign_money
        from paid p
        where not exists (select from whole_told w where w.external_id = p.external_id)
            and not exists (select from by_own_name n where n.stripe_id = p.external_id)
    ), timed as materialized (          -- with what is the same at Stripe and next in time, before and after
        select d.external_id, d.in_shop, d.sale, d.is_in, d.named, d.occurred_at, m.is_foreign, m.money,
            max(d.occurred_at) filter (where not d.in_shop) over (same order by d.occurred_at) as before,
            -- Backwards: a frame that loses rows would be looked through again for each row.
            min(d.occurred_at) filter (where not d.in_shop) over (same order by d.occurred_at desc) as after
        from in_doubt d cross join lateral (values (false, d.euros), (true, d.foreign_money)) m (is_foreign, money)
        where m.money is not null
        window same as (partition by m.is_foreign, d.sale, d.is_in, m.money)
    ), near as materialized (
        select t.*, abs(extract(epoch from n.at - t.occurred_at)) as distance,
            -- Of those that are next to the same one, one comes before others that are farther from theirs.
            row_number() over (partition by t.is_foreign, t.sale, t.is_in, t.money, t.named, n.at
                order by abs(extract(epoch from n.at - t.occurred_at)), t.external_id) as turn
        from timed t cross join lateral (select case when t.before is null or t.after - t.occurred_at < t.occurred_at - t.before
            then t.after else t.before end as at) n
        where t.in_shop and n.at is not null
    ), by_foreign_money as materialized (      -- first, as both have it without a rate
        select d.external_id as shop_id, p.external_id as stripe_id from (
            select n.*, row_number() over (partition by n.sale, n.is_in, n.money
                order by n.named desc, n.turn, n.distance, n.occurred_at, n.external_id) as nth
            from near n where n.is_foreign) d
        join (select t.*, row_number() over (partition by t.sale, t.is_in, t.money order by t.occurred_at, t.external_id) as nth
            from timed t where not t.in_shop and t.is_foreign) p using (sale, is_in, money, nth)
    ), by_euros as materialized (
        select d.external_id as shop_id, p.external_id as stripe_id from (
            select n.*, row_number() over (partition by n.sale, n.is_in, n.money
                order by n.named desc, n.turn, n.distance, n.occurred_at, n.external_id) as nth
            from near n where not n.is_foreign and not exists (select from by_foreign_money e where e.shop_id = n.external_id)) d
        join (select t.*, row_number() over (partition by t.sale, t.is_in, t.money order by t.occurred_at, t.external_id) as nth
            from timed t where not t.in_shop and not t.is_foreign
                and not exists (select from by_foreign_money e where e.stripe_id = t.external_id)) p using (sale, is_in, money, nth)
    ), by_charge as (                   -- a payment by its charge alone
        select s.external_id from (
            select n.name, n.external_id,
                row_number() over (partition by n.name order by n.occurred_at, n.external_id) as nth
            from named n join in_doubt d using (external_id)
            where n.is_in and d.in_shop and not exists (select from by_euros e where e.shop_id = n.external_id)
                and not exists (select from by_foreign_money f where f.shop_id = n.external_id)) s
        join (select t.name, row_number() over (partition by t.name order by t.occurred_at, t.external_id) as nth
            from told t join in_doubt d using (external_id)
            where t.is_in and not d.in_shop and not exists (select from by_euros e where e.stripe_id = t.external_id)
                and not exists (select from by_foreign_money f where f.stripe_id = t.external_id)) p using (name, nth)
    ), explained as (
        select external_id from by_name
        union select shop_id from by_own_name
        union select shop_id from by_euros
        union select shop_id from by_foreign_money
        union select external_id from by_charge
    )
    select e.external_id from explained e join doubted d using (external_id) where d.paris_month = any (p_months);
end $$;

commit;
