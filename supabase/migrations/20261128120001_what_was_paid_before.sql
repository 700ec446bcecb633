-- What counts as a gift card or store credit is decided in one place, for movements and for what orders tell.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- What a means of payment is whose money came in before, when the card was sold or the credit given; null: any other. The one
-- place that knows them by their letters, for movements and for what orders tell (note_unlisted_payments).
create or replace function jobs.paid_before(p_method text) returns text language sql immutable as $$
    select case
        -- Not taken apart unless its letters may say so: almost none does.
        when lower(p_method) like '%g%i%f%t%c%a%r%d%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%giftcard%' then 'gift_card'
        when lower(p_method) like '%s%t%o%r%e%c%r%e%d%i%t%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%storecredit%' then 'store_credit' end;
$$;


-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"). A payment that failed was never received, so the row that takes it back does not count
-- either. A refund is pending as long as there is no money to pay it with; one that fails then was never paid, and what
-- takes it back does not count either.
create or replace function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('pending', 'unknown') then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;


-- Compares what orders tell (p_payments: [{order, id, at, amount_minor, currency, method}], all payments of each order) with the
-- movements that the list has shown, as far as the list was ever read (p_read): both know the same of an order then. A payment that no movement of its order explains is
-- kept as unlisted_payment: it does not count, and its month says so. One that was kept and is explained now is
-- none any more. The Paris months that this touches.
--
-- One movement explains one payment, by order, amount and currency; of equal ones the nearest. What is left of an order is explained where its
-- payments and movements are the same money in other pieces (cash and its change), or nothing is left of them within a day,
-- to ten cents (rounding at the till).
-- Where a movement of the order is not readable in the shop's currency, its month says so already.
create or replace function jobs.note_unlisted_payments(
    p_user_id uuid, p_account text, p_payments jsonb, p_read tstzmultirange, p_now timestamptz
) returns date[] language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    first_month date;
    last_month date;
    answer date[];
begin
    -- A movement may bear another date than its order's transaction, and so belong to the month beside it.
    select (date_trunc('month', min(x.at) at time zone 'Europe/Paris') - interval '1 month')::date,
        (date_trunc('month', max(x.at) at time zone 'Europe/Paris') + interval '1 month')::date
    into first_month, last_month
    from jsonb_to_recordset(p_payments) as x (at timestamptz, method text)
    where p_read @> x.at and jobs.paid_before(x.method) is null;
    if first_month is null then
        return '{}';
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
        where t.user_id = p_user_id and t.provider = 'shopify' and t.account = p_account
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
    from (select paris_month from written union all select paris_month from found) m;
    return answer;
end $$;


revoke all on function
    jobs.paid_before
from public, anon, authenticated, service_role;

commit;
