-- Which movements of a shop and of Stripe are the same money (docs/adr/0006).

-- What a means of payment is whose money comes by no provider: from hand to hand, or from bank to bank. The one place that
-- knows them by their letters.
create function jobs.paid_by_hand(p_method text) returns boolean language sql immutable as $$
    select coalesce(lower(p_method) in ('cash', 'check', 'cheque')
        or lower(p_method) ~ '(bank|wire).*(deposit|transfer)|money.?order|on.?delivery|\mcod\M|virement|cheque|chèque|esp[eè]ces', false);
$$;

-- A user's movements that Stripe and the shop both tell. Each Stripe movement explains one of the shop's.
--   is_sure: it is the same money; else it may be: a payment that names a charge of which Stripe tells less than the shop, a
--     refund of an order of which Stripe has a refund of another amount
-- p_is_counted: what Stripe counts, or follows, explains the shop's, in whichever currency that is told. Else: what the
-- account is paid in another currency than euros, and no total has, is explained by the shop's that counts.
-- p_written: only among days of Stripe's that go into ca_records.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order). A refund
-- that names its own id is the one that Stripe calls so, and no other. What Stripe names side by side is one payment, whichever
-- of it the shop names. Then amount and currency decide, in the buyer's money or in the account's; of several that are equal,
-- the next in time. A payment that names its charge is that charge,
-- whatever it is worth there (another rate, a part captured, several pieces that are not more than the charge); a refund that
-- names a charge is not: what was paid back in another way, by hand, or beside a chargeback, is money of its own. What is left of an order's
-- refunds on both sides is the same where it adds up to the same.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with. Nor by
-- merging, which would compare all that is equal in one order before its place in the row.
create function jobs.told_by_both(p_user_id uuid, p_written boolean, p_is_counted boolean)
returns table (provider text, external_id text, paris_month date, is_sure boolean)
language plpgsql stable set search_path = '' set enable_nestloop = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.method, t.original ->> 'currency' as bought_in, (t.original ->> 'amount_minor')::bigint as bought_for, t.excluded,
            coalesce(f.counted, k.counted) @> t.paris_month and not coalesce(f.left_out, k.left_out) as in_books,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), told as materialized (
        select t.external_id, t.kind, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original ->> 'currency' as bought_in, (t.original ->> 'amount_minor')::bigint as bought_for,
            t.currency || t.amount_minor as euros,
            (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money, t.occurred_at, r as name
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe'
            -- A debit on its way, or one that failed, is the same payment in the shop: it was not received there either.
            and case when p_is_counted then t.currency = 'EUR' and (t.excluded is null or t.excluded in ('pending', 'failed'))
                else t.excluded = 'currency' end
            and t.kind in ('payment', 'partial_capture', 'refund') and not coalesce(f.left_out, k.left_out)
            and (not p_written or coalesce(f.counted, k.counted) @> t.paris_month)
    ), of_shop_names as materialized (  -- which order, or payment without one, each name belongs to by the shop
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), of_told as materialized (    -- and each movement at Stripe: to an order before a payment without one
        select distinct on (t.external_id) t.external_id, t.kind, t.is_in, t.amount_minor, t.currency, t.bought_in, t.bought_for,
            t.euros, t.foreign_money, t.occurred_at, o.sale
        from told t join of_shop_names o using (name) order by t.external_id, not starts_with(o.sale, 'gid:'), o.sale
    ), unplaced as materialized (   -- rows that name no order, or none any more, belong to the sale of their names
        select s.external_id, unnest(s.names) as name from shop s where s.shop_order is null
    ), of_names as materialized (
        select a.external_id, coalesce(min(a.sale) filter (where starts_with(a.sale, 'gid:')), min(a.sale)) as sale
        from (select u.external_id, o.sale from unplaced u join of_shop_names o using (name)
            union all
            select u.external_id, o.sale from unplaced u join told t using (name)
            join of_told o on o.external_id = t.external_id) a
        group by 1
    ), ways as materialized (       -- how an order was paid as far as it names its payments
        select distinct s.shop_order, s.method from shop s where s.is_in and s.names <> '{}' and s.shop_order is not null
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.currency, s.bought_in, s.bought_for, s.names,
            s.names <> '{}' as named, not s.is_in and exists (select from unnest(s.names) n where n ~ '^(re|pyr)_') as names_itself,
            coalesce(s.shop_order, o.sale, s.names[1]) as sale,
            s.currency || s.amount_minor as euros, s.bought_in || s.bought_for as foreign_money, s.occurred_at,
            s.method is null or w.method is not null as is_paid_alike
        from shop s left join of_names o using (external_id)
        left join ways w on w.shop_order = s.shop_order and w.method = s.method
        where case when p_is_counted then s.excluded is null or s.excluded in ('currency', 'unresolved_currency')
                else s.excluded is null and s.in_books end
            and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
            and (s.is_in or s.names <> '{}' or w.method is not null
                or not (jobs.paid_by_hand(s.method) or coalesce(lower(s.method) in ('other', 'manual'), false)))
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.currency, d.bought_in, d.bought_for, d.occurred_at, n as name
        from doubted d cross join unnest(d.names) n
    ), pieces as materialized (     -- what the shop tells of a charge, and what Stripe does: of the account's money, or the buyer's
        select m.name, m.currency, sum(m.amount) as amount, count(*) as n from (
            select n.name, n.external_id, n.currency, n.amount_minor as amount from named n where n.is_in
            union
            select n.name, n.external_id, n.bought_in, n.bought_for from named n
            where n.is_in and n.bought_in is not null and n.bought_for is not null) m
        group by 1, 2
    ), charged as materialized (
        select m.name, m.currency, sum(m.amount) as amount from (
            select t.name, t.external_id, t.currency, t.amount_minor as amount from told t
            where t.kind in ('payment', 'partial_capture')
            union
            select t.name, t.external_id, t.bought_in, t.bought_for from told t
            where t.kind in ('payment', 'partial_capture') and t.bought_in is not null and t.bought_for is not null) m
        group by 1, 2
    ), whole as materialized (      -- a charge that the shop tells in pieces, none of them in vain; a refund that either does
        select distinct p.name, true as is_in
        from pieces p join charged c using (name, currency)
        join (select n.name, count(*) as n from named n where n.is_in group by 1) a on a.name = p.name and a.n = p.n
        where p.amount <= c.amount
        union
        select s.name, false from (
            select n.name, sum(n.amount_minor) as amount from named n
            where not n.is_in and n.name ~ '^(re|pyr)_' group by 1) s
        join (select t.name, sum(t.amount_minor) as amount from told t
            where t.kind = 'refund' and t.name ~ '^(re|pyr)_' group by 1) p using (name, amount)
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
        select d.external_id, true as in_shop, d.sale, d.is_in, d.named, d.is_paid_alike, d.occurred_at, d.euros, d.foreign_money,
            d.amount_minor, d.currency, d.bought_in, d.bought_for
        from doubted d
        where not exists (select from by_name n where n.external_id = d.external_id)
            and not exists (select from by_own_name n where n.shop_id = d.external_id)
            and (not d.names_itself or d.sale not in (select o.sale from own_names o))
        union all
        select p.external_id, false, p.sale, p.is_in, false, false, p.occurred_at, p.euros, p.foreign_money,
            p.amount_minor, p.currency, p.bought_in, p.bought_for
        from paid p
        where not exists (select from whole_told w where w.external_id = p.external_id)
            and not exists (select from by_own_name n where n.stripe_id = p.external_id)
    ), timed as materialized (          -- with what is the same at Stripe and next in time, before and after
        select d.external_id, d.in_shop, d.sale, d.is_in, d.named, d.is_paid_alike, d.occurred_at, m.is_foreign, m.money,
            max(d.occurred_at) filter (where not d.in_shop) over (same order by d.occurred_at) as before,
            -- Backwards: a frame that loses rows would be looked through again for each row.
            min(d.occurred_at) filter (where not d.in_shop) over (same order by d.occurred_at desc) as after
        from in_doubt d cross join lateral (values (false, d.euros), (true, d.foreign_money)) m (is_foreign, money)
        where m.money is not null
        window same as (partition by m.is_foreign, d.sale, d.is_in, m.money)
    ), near as materialized (
        select t.*, abs(extract(epoch from n.at - t.occurred_at)) as distance,
            -- Of those that are next to the same one, one comes before others that are farther from theirs.
            row_number() over (partition by t.is_foreign, t.sale, t.is_in, t.money, t.named, t.is_paid_alike, n.at
                order by abs(extract(epoch from n.at - t.occurred_at)), t.external_id) as turn
        from timed t cross join lateral (select case when t.before is null or t.after - t.occurred_at < t.occurred_at - t.before
            then t.after else t.before end as at) n
        where t.in_shop and n.at is not null
    ), by_foreign_money as materialized (      -- first, as both have it without a rate
        select d.external_id as shop_id, p.external_id as stripe_id from (
            select n.*, row_number() over (partition by n.sale, n.is_in, n.money
                order by n.named desc, n.is_paid_alike desc, n.turn, n.distance, n.occurred_at, n.external_id) as nth
            from near n where n.is_foreign) d
        join (select t.*, row_number() over (partition by t.sale, t.is_in, t.money order by t.occurred_at, t.external_id) as nth
            from timed t where not t.in_shop and t.is_foreign) p using (sale, is_in, money, nth)
    ), by_euros as materialized (
        select d.external_id as shop_id, p.external_id as stripe_id from (
            select n.*, row_number() over (partition by n.sale, n.is_in, n.money
                order by n.named desc, n.is_paid_alike desc, n.turn, n.distance, n.occurred_at, n.external_id) as nth
            from near n where not n.is_foreign and not exists (select from by_foreign_money e where e.shop_id = n.external_id)) d
        join (select t.*, row_number() over (partition by t.sale, t.is_in, t.money order by t.occurred_at, t.external_id) as nth
            from timed t where not t.in_shop and not t.is_foreign
                and not exists (select from by_foreign_money e where e.stripe_id = t.external_id)) p using (sale, is_in, money, nth)
    ), settled as materialized (
        select true as in_shop, shop_id as external_id from by_euros
        union select false, stripe_id from by_euros
        union select true, shop_id from by_foreign_money
        union select false, stripe_id from by_foreign_money
    ), open_still as materialized (
        select d.* from in_doubt d
        where not exists (select from settled e where e.in_shop = d.in_shop and e.external_id = d.external_id)
    ), crosswise as materialized (  -- the shop's own money is the buyer's at Stripe, or the other way round
        select d.shop_id, p.stripe_id from (
            select d.external_id as shop_id, d.sale, d.is_in, m.money, row_number() over (
                partition by d.sale, d.is_in, m.money order by d.occurred_at, d.external_id) as nth
            from open_still d cross join unnest(array[d.euros, d.foreign_money]) m (money)
            where d.in_shop and m.money is not null) d
        join (
            select p.external_id as stripe_id, p.sale, p.is_in, m.money, row_number() over (
                partition by p.sale, p.is_in, m.money order by p.occurred_at, p.external_id) as nth
            from open_still p cross join unnest(array[p.foreign_money, p.euros]) m (money)
            where not p.in_shop and m.money is not null) p
        using (sale, is_in, money, nth)
    ), by_charge as materialized (      -- a payment by its charge alone
        select s.external_id as shop_id, p.external_id as stripe_id from (
            select n.name, n.external_id,
                row_number() over (partition by n.name order by n.occurred_at, n.external_id) as nth
            from named n join open_still d using (external_id)
            where n.is_in and d.in_shop and not exists (select from crosswise c where c.shop_id = n.external_id)) s
        join (select t.name, t.external_id,
                row_number() over (partition by t.name order by t.occurred_at, t.external_id) as nth
            from told t join open_still d using (external_id)
            where t.is_in and not d.in_shop and not exists (select from crosswise c where c.stripe_id = t.external_id)) p
        using (name, nth)
    ), pairs as materialized (
        select shop_id, stripe_id from by_own_name
        union select shop_id, stripe_id from by_euros
        union select shop_id, stripe_id from by_foreign_money
        union select shop_id, stripe_id from crosswise
        union select shop_id, stripe_id from by_charge
    ), left_shop as materialized (  -- refunds for which no single one stands on the other side
        select d.* from open_still d
        where d.in_shop and not d.is_in and not exists (select from pairs e where e.shop_id = d.external_id)
    ), left_stripe as materialized (
        select d.* from open_still d
        where not d.in_shop and not d.is_in and not exists (select from pairs e where e.stripe_id = d.external_id)
    ), in_pieces as materialized (
        select s.sale from (
            select sale, currency, sum(amount_minor) as amount from left_shop group by 1, 2) s
        join (select sale, currency, sum(amount_minor) as amount from left_stripe group by 1, 2) p using (sale, currency, amount)
        union
        select s.sale from (
            select sale, bought_in, sum(bought_for) as amount from left_shop group by 1, 2) s
        join (select sale, bought_in, sum(bought_for) as amount from left_stripe group by 1, 2) p using (sale, bought_in, amount)
    ), of_shop as materialized (
        select external_id from by_name
        union select shop_id from pairs
        union select l.external_id from left_shop l join in_pieces using (sale)
    ), of_stripe as (
        select external_id from whole_told
        union select stripe_id from pairs
        union select l.external_id from left_stripe l join in_pieces using (sale)
    ), not_sure as (
        select n.external_id from named n join (select distinct t.name from told t where t.is_in) t using (name) where n.is_in
        union
        select l.external_id from left_shop l join (select distinct p.sale from left_stripe p) p using (sale)
        where l.is_paid_alike
    )
    select 'shopify', d.external_id, d.paris_month, true from doubted d join of_shop using (external_id)
    union all
    select 'stripe', e.external_id, null, true from of_stripe e
    union all
    select 'shopify', d.external_id, d.paris_month, false from doubted d join not_sure using (external_id)
    where not exists (select from of_shop e where e.external_id = d.external_id);
end $$;

-- A user's Shopify movements of some months that Stripe reports, too (told_by_both).
create function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable set search_path = '' as $$
    select b.external_id from jobs.told_by_both(p_user_id, p_written, true) b
    where b.provider = 'shopify' and b.is_sure and b.paris_month = any (p_months);
$$;

-- Movements of these users that are in other currencies, and in no total: of accounts whose books have their month, but for
-- what the other provider has in euros (a shop in dollars whose account at Stripe is in euros, or the other way round).
create function jobs.foreign_movements(p_users uuid[])
returns table (user_id uuid, provider text, external_id text, month date, currency text, amount_minor bigint)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with found as materialized (
        select t.user_id, t.provider, t.external_id, t.paris_month, t.currency, t.amount_minor
        from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')
            and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
    ), of_both as materialized (    -- who has both providers
        select n.user_id, array_agg(distinct n.provider) as has from found n
        where exists (select from jobs.integration_transactions x where x.user_id = n.user_id and x.provider = 'shopify')
            and exists (select from jobs.integration_transactions x where x.user_id = n.user_id and x.provider = 'stripe')
        group by 1
    ), counted as materialized (
        select b.user_id, e.provider, e.external_id from of_both b
        cross join lateral jobs.told_by_both(b.user_id, true, true) e
        where 'shopify' = any (b.has) and e.provider = 'shopify' and e.is_sure
        union
        select b.user_id, e.provider, e.external_id from of_both b
        cross join lateral jobs.told_by_both(b.user_id, true, false) e
        where 'stripe' = any (b.has) and e.provider = 'stripe' and e.is_sure
    )
    select n.user_id, n.provider, n.external_id, n.paris_month, n.currency, n.amount_minor
    from found n left join counted e using (user_id, provider, external_id) where e.external_id is null;
end $$;
