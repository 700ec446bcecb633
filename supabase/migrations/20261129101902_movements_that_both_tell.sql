-- What a shop and Stripe both tell is paired in one place, for what counts, for what is in another currency, and for what may
-- be counted twice.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- What a means of payment is whose money comes by no provider: from hand to hand, or from bank to bank. The one place that
-- knows them by their letters.
create or replace function jobs.paid_by_hand(p_method text) returns boolean language sql immutable as $$
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
create or replace function jobs.told_by_both(p_user_id uuid, p_written boolean, p_is_counted boolean)
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
create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable set search_path = '' as $$
    select b.external_id from jobs.told_by_both(p_user_id, p_written, true) b
    where b.provider = 'shopify' and b.is_sure and b.paris_month = any (p_months);
$$;

-- Movements of these users that are in other currencies, and in no total: of accounts whose books have their month, but for
-- what the other provider has in euros (a shop in dollars whose account at Stripe is in euros, or the other way round).
create or replace function jobs.foreign_movements(p_users uuid[])
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

-- Months of these users with money in currencies that no total has. Our mails ask to type it, so that what was typed for
-- such a month is not what was imported: an answer for every month that it is the same is not about these.
create or replace function jobs.foreign_months(p_users uuid[]) returns table (user_id uuid, month date)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    return query
    select distinct t.user_id, t.month from jobs.foreign_movements(p_users) t;
end $$;

-- Currencies of a user's movements in some months that no total has.
create or replace function jobs.uncounted_currencies(p_user_id uuid, p_months date[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(distinct left(t.currency, 10)), '[]')
    from jobs.foreign_movements(array[p_user_id]) t where t.month = any (p_months);
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
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.foreign_movements(array[a.user_id]) t
              where t.month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;

-- Money that the figure of a user's month lacks, or may lack: what is_uncounted names, of the accounts whose books have the
-- month (movements_in_books), but for what another row explains. One row explains one:
--   a refund a dispute that was prevented, by order and amount;
--   a movement that counts the same money in another currency, where both providers tell it (told_by_both);
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
create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
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

-- Each movement of some of a user's months, with why it does not count in the books (null: it counts):
--   left_out: its account was taken out of the books; before_connection: the month is the user's own;
--   reported_twice: Stripe reports the same money, and that counts; else see why_excluded
create or replace function jobs.judged_movements(p_user_id uuid, p_months date[])
returns table (
    provider text, external_id text, account text, kind text, source_kind text, occurred_at timestamptz,
    first_seen_at timestamptz, updated_at timestamptz, amount_minor bigint, currency text, state text, method text,
    refs text[], original jsonb, reason text)
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with twice as materialized (
        select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, true) w
        where exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'stripe')
            and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'shopify')
    )
    select t.provider, t.external_id, t.account, t.kind, t.source_kind, t.occurred_at, t.first_seen_at, t.updated_at,
        t.amount_minor, t.currency, t.state, t.method, t.refs, t.original,
        case
            when coalesce(f.left_out, s.left_out) then 'left_out'
            when coalesce(f.counted, s.counted) @> t.paris_month is not true then 'before_connection'
            -- What was told in another currency, too.
            when w.external_id is not null and (t.excluded is null or t.excluded in ('currency', 'unresolved_currency'))
                then 'reported_twice'
            when t.excluded is not null then t.excluded end
    from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    left join twice w on t.provider = 'shopify' and w.external_id = t.external_id
    where t.user_id = p_user_id and t.paris_month = any (p_months);
$$;

revoke all on function jobs.paid_by_hand, jobs.told_by_both, jobs.foreign_movements from public, anon, authenticated, service_role;

commit;
