-- What the orders of a shop say was paid, beside its list of tenders, which is not always whole.

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
create function jobs.note_unlisted_payments(
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
