-- Each month is told what it lacks by the rows of its own accounts; one row explains one; a debit, a buyer's own currency and
-- a refund of no order any more may be counted twice, which is said.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

drop function if exists jobs.movements_in_books(uuid, date);

-- A user's Shopify movements of some months that Stripe reports, too. Each Stripe movement explains one of them.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order). Then
-- amount and currency decide, in euros or in the buyer's currency. A payment that names its charge is that charge,
-- whatever it is worth there (another rate, a part captured); a refund is not: what was paid back in another way, or
-- beside a chargeback, is money of its own. p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
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
    ), of_names as materialized (   -- a row that names no order, or none any more, belongs to the sale of its names
        select n.external_id, min(a.sale) as sale
        from (select s.external_id, unnest(s.names) as name from shop s where s.shop_order is null) n
        join sales a using (name) group by 1
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            coalesce(s.shop_order, o.sale, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s left join of_names o using (external_id)
        where s.excluded is null and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
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

-- A user's movements of some months that are in the books, those that do not count too: of the accounts whose books have
-- the month; where nobody's have it, of the present ones. Whoever says what a month lacks asks here, so that an account's
-- rows say nothing of another one's month. Without a setting of its own, so that it becomes part of the query that uses it.
create or replace function jobs.movements_in_books(p_user_id uuid, p_months date[]) returns setof jobs.integration_transactions
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

-- Money that the figure of a user's month lacks, or may lack: what is_uncounted names, of the accounts whose books have the
-- month (movements_in_books), but for what another row explains. One row explains one:
--   a refund a dispute that was prevented, by order and amount;
--   a movement at Stripe a payment that only an order tells, by amount and day, where no tender is left for it.
create or replace function jobs.uncounted_movements(p_user_id uuid, p_month date) returns setof jobs.integration_transactions
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    has_prevented boolean;
    has_unlisted boolean;
begin
    select coalesce(bool_or(t.excluded = 'prevented'), false), coalesce(bool_or(t.excluded = 'unlisted_payment'), false)
    into has_prevented, has_unlisted
    from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t);
    if not has_prevented and not has_unlisted then
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
    ), at_stripe as materialized (
        select t.external_id, t.refs, t.kind, t.currency, t.amount_minor,
            (coalesce(t.listed_at, t.occurred_at) at time zone 'Europe/Paris')::date as day
        -- A debit counts later than its day.
        from jobs.movements_in_books(p_user_id, array[p_month, (p_month + interval '1 month')::date,
            (p_month + interval '2 months')::date]) t
        where has_unlisted and t.provider = 'stripe' and t.kind in ('payment', 'refund')
            and (t.excluded is null or t.excluded in ('pending', 'failed'))
    ), named as materialized (
        select distinct t.external_id from (
            select p.external_id, unnest(p.refs) as name from at_stripe p where p.kind = 'payment') t join names using (name)
    ), free as materialized (
        select t.currency, t.amount_minor, t.day, count(*) as n
        from at_stripe t where not exists (select from named x where x.external_id = t.external_id)
        group by 1, 2, 3
    ), in_shop as materialized (        -- what the list has, and names no charge, comes first
        select t.external_id, t.currency, t.amount_minor, t.day, row_number() over (
            partition by t.currency, t.amount_minor, t.day order by t.kind = 'unlisted_payment', t.external_id) as nth
        from (
            select t.external_id, t.kind, t.currency, t.amount_minor, t.excluded,
                (t.occurred_at at time zone 'Europe/Paris')::date as day
            from jobs.movements_in_books(p_user_id, array[p_month]) t
            where has_unlisted and t.provider = 'shopify' and (t.excluded = 'unlisted_payment'
                or t.excluded is null and t.method is distinct from 'cash' and (t.kind = 'refund'
                    or t.kind = 'payment' and not exists (select from unnest(t.refs) r where r !~ '^gid:')))) t
    ), listed as (
        select s.external_id from in_shop s join free f using (currency, amount_minor, day) where s.nth <= f.n
    ), explained as (
        select external_id from paid_back union select external_id from listed
    )
    select t.* from found t
    where not (t.provider = 'shopify' and t.excluded in ('prevented', 'unlisted_payment')
        and t.external_id in (select e.external_id from explained e));
end $$;

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of uncounted_movements:
--   pending: a payment that is still on its way, where the month is over
--   platform_reversal: a whole payment that a platform took back, as a refund or as a fee
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
                    and p.amount_minor > -t.amount_minor)
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

-- Whether a user's month has anything that a recap would tell of: not a debit on its way, an open dispute, an account whose
-- books do not have the month.
create or replace function jobs.month_has_news(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.movements_in_books(p_user_id, array[p_month]) t
        where coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover'));
$$;

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    is_empty boolean;
    in_books boolean := jobs.is_in_books(p_user_id, p_month);
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active) then
        return;
    end if;
    -- Connected after the month: whoever looks at everybody's month once it is over finds it in no books. A replay of its
    -- last day sees it as it was.
    if not in_books and over and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.movements_in_books(p_user_id, array[p_month]))
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}'
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

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
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted, order_payments: see note_unlisted_payments}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create or replace function jobs.settle_figures(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    hold text;
    i jobs.job_items;
    part record;
    t public.integration_tokens;
    s jobs.integration_state;
    stored jsonb;
    new_activity text;
    said_by text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    unreadable jsonb;   -- why movements could not be understood, with how many
    unlisted jsonb := '{}';     -- how many known movements each provider's list has lacked
    known bigint;
    window_from timestamptz;
    window_to timestamptz;
    fresh tstzmultirange;       -- what this read covers and none before it
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := jobs.hold_item(p_item_id, p_lease_id);
    select * into i from jobs.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result, 'repeated', true);
    elsif hold = 'lost' or i.user_id is distinct from p_user_id then
        return jsonb_build_object('state', 'lost');
    end if;
    if i.progress ->> 'lease' = p_lease_id::text and (i.progress ->> 'chunk')::integer >= p_chunk then
        return jsonb_build_object('state', 'stored');
    end if;
    records := coalesce((i.progress ->> 'records')::bigint, 0);
    by_provider := coalesce(i.progress -> 'by_provider', '{}');
    months := array(select jsonb_array_elements_text(coalesce(i.progress -> 'months', '[]'))::date);

    for part in
        select * from jsonb_to_recordset(p_parts) as x (
            integration_id uuid, provider text, account text, "window" jsonb, movements jsonb, error jsonb,
            count_month boolean, kinds jsonb, deep boolean, listed bigint, order_payments jsonb)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'), p_now);
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);
            months := months || jobs.note_unlisted_payments(
                p_user_id, part.account, coalesce(part.order_payments, '[]'),
                case when s.account = part.account then s.covered else '{}' end + tstzmultirange(tstzrange(
                    (part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz)), p_now);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what stands, else an assumption; what the user has typed
            -- decides below.
            new_activity := coalesce(s.activity,
                case part.provider when 'shopify' then 'Vente de marchandises' else 'Prestation de services' end);
            said_by := s.activity_said_by;
            if t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale') then
                new_activity := t.activity_type;
                said_by := 'integration';
            end if;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
                -- With a connection, other months of this account and of the one before may count than did.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, activity_said_by = said_by, first_month = s.first_month, counted = s.counted,
                updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.activity_said_by, k.first_month, k.counted)
                    is distinct from (new_activity, said_by, s.first_month, s.counted);
        end if;

        continue when not p_final;
        if part.error is not null then
            failed := failed + 1;
            first_error := coalesce(first_error, part.error);
            update public.integration_tokens k
            set last_error = left(part.error ->> 'message', 500), updated_at = clock_timestamp()
            where k.id = part.integration_id and k.last_error is distinct from left(part.error ->> 'message', 500);
            update jobs.integration_state k
            set failures = k.failures + 1, failed_at = p_now, failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            -- Read once, not for each row that is compared with them.
            window_from := part."window" ->> 'from';
            window_to := part."window" ->> 'to';
            fresh := tstzmultirange(tstzrange(window_from, window_to));
            -- What the list showed before it still has to show: rows are never taken back. Both lists go by seconds.
            select count(*) into known from jobs.integration_transactions x
            where x.user_id = p_user_id and x.provider = part.provider and x.account = part.account
                -- By the index. What counts long after it was listed is left out: fewer are known than could be.
                and x.paris_month >= date_trunc('month', window_from at time zone 'Europe/Paris')::date
                and x.paris_month <= (window_to at time zone 'Europe/Paris')::date
                -- Disputes have a list of their own, those of an unknown state too.
                and x.kind <> 'no_turnover'
                and (x.provider = 'stripe' or x.kind <> 'dispute' and coalesce(x.source_kind, '') !~ '^dispute')
                and x.listed_at >= window_from
                and x.listed_at < date_trunc('second', window_to);
            s.doubted := case
                when s.account is distinct from part.account or part.listed is null then s.doubted
                when known > part.listed then s.doubted + (fresh - s.covered)
                when part.listed > 0 then s.doubted - fresh
                -- Nothing is known there and nothing listed: as doubtful as the days before it.
                when s.doubted && fresh then s.doubted + (fresh - s.covered)
                else s.doubted end;
            if known > part.listed then
                unlisted := unlisted || jsonb_build_object(part.provider, known - part.listed);
            end if;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (fresh - s.doubted)
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null))
                    else k.covered end,
                doubted = s.doubted,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not. Nor does an
                -- empty list that is in doubt: what it lacked is read again with what follows.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                        and not coalesce(part.listed = 0 and s.doubted && fresh, false)
                    then greatest(k.last_success_to, window_to) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, window_to) else k.deep_read_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', window_from at time zone 'Europe/Paris'),
                (window_to - interval '1 microsecond') at time zone 'Europe/Paris',
                interval '1 month') m);
        end if;
    end loop;
    months := array(select distinct m from unnest(months) m);

    if not p_final then
        update jobs.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := months || jobs.follow_typed_activity(p_user_id);
    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind
        from unnest(case when p_month is null then months else array[p_month] end) m
        cross join lateral jobs.uncounted_movements(p_user_id, m) x
        where x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
    )
    select
        (select coalesce(jsonb_agg(distinct m.currency), '[]') from missing m
            where m.currency <> 'EUR' or m.reason = 'unresolved_currency'),
        (select coalesce(jsonb_object_agg(k.kind, k.n), '{}') from (
            select coalesce(m.source_kind, m.reason) as kind, count(*) as n from missing m
            where m.reason = 'unknown_kind' group by 1) k),
        (select coalesce(jsonb_object_agg(k.reason, k.n), '{}') from (
            select m.reason, count(*) as n from missing m
            where m.reason not in ('unknown_kind', 'currency', 'unresolved_currency') group by 1) k)
    into not_euro, unknown, unreadable;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}' or unlisted <> '{}';
    outcome := case
        when parts > 0 and failed = parts then 'failed'
        when failed > 0 or flawed then 'partial'
        else 'done' end;
    answer := jsonb_strip_nulls(jsonb_build_object(
        'user_id', case when p_month is null then p_user_id end,
        'provider', case when p_month is null then p_parts -> 0 ->> 'provider' end,
        'records', records,
        'status', case outcome when 'failed' then 'error' when 'partial' then 'partial' else 'success' end,
        'error', first_error, 'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}'),
        'unlisted_movements', nullif(unlisted, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', jobs.month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, synced_at, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message', p_now,
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'unreadable_movements', nullif(unreadable, '{}'), 'unlisted_movements', unlisted -> (e ->> 'provider'),
            'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = jobs.claimed_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform jobs.finish_item(p_item_id, outcome, answer, first_error, p_now);
    return jsonb_build_object('state', 'settled', 'result', answer);
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
            when t.excluded is not null then t.excluded
            when w.external_id is not null then 'reported_twice' end
    from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    left join twice w on t.provider = 'shopify' and w.external_id = t.external_id
    where t.user_id = p_user_id and t.paris_month = any (p_months);
$$;

revoke execute on function jobs.movements_in_books(uuid, date[]) from public;
revoke execute on function jobs.uncounted_movements(uuid, date) from public;

commit;
