-- What providers really do: rows without an id or a category, states that nobody knows, refunds that came back, cards that only
-- orders name, sales that name no charge, accounts that are replaced or taken up again, rows that a user took over, recaps that
-- wait; and what a version decides otherwise than the one before reaches every month of a user, once.
--
-- Reads the ledger a few times, some seconds for a million rows, while writes to it wait. Totals that are wrong by a row that a
-- user took over are added up again. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

alter table jobs.auto_sync_totals add column if not exists made_of text[] not null default '{}';
-- What only an order tells, which is looked for in the list again.
create index if not exists integration_transactions_unlisted on jobs.integration_transactions (user_id, provider)
    where excluded = 'unlisted_payment';
alter table jobs.integration_state add column if not exists totals_by text;

drop function if exists jobs.plan_recap(bigint, uuid, date, timestamptz, jsonb, timestamptz);
drop function if exists jobs.countable_movements(uuid, date[], boolean);
drop function if exists jobs.month_sources(uuid, date, timestamptz);

-- Claims up to p_limit visible messages of a lane for p_seconds; fewer only where no more are visible. A repeated claim
-- gives the same items again. Null: only messages without an item were seen so far, ask again.
--   [{item_id, run_id, version, kind, subject, user_id, payload, progress, attempts, as_of, is_replay: its run works for an
--     instant before the one at which it was planned}]
create or replace function public.jobs_claim(p_claim uuid, p_lane text, p_limit integer, p_seconds integer)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
    begun constant timestamptz := clock_timestamp();
    wanted integer := p_limit;
    emptied boolean := false;
    message record;
    read_ids bigint[];
    read_items bigint[];
    alive bigint[];
    orphans bigint[];
begin
    if exists (select from jobs.job_items where lease_id = p_claim and status = 'queued') then
        wanted := 0;
    end if;
    while wanted > 0 and clock_timestamp() < begun + interval '10 s' loop
        -- After a round with orphans there are probably more of them: look at many at once.
        select array_agg(m.msg_id order by m.msg_id), array_agg((m.message ->> 'item_id')::bigint order by m.msg_id)
        into read_ids, read_items
        from pgmq.read('jobs_' || p_lane, p_seconds, case when orphans is null then wanted else 1000 end) m;
        emptied := read_ids is null;
        exit when emptied;

        -- Without a condition on the status, which statistics may not know of yet: by the primary key.
        select array_agg(l.item_id) filter (where l.status = 'queued') into alive from (
            select i.item_id, i.status from jobs.job_items i
            where i.item_id = any (read_items) order by i.item_id for update) l;
        update jobs.job_items i
        set lease_id = p_claim, msg_id = p.msg_id, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from (select * from unnest(read_ids, read_items) as t (msg_id, item_id)
              where item_id = any (alive) order by msg_id limit wanted) p
        where i.item_id = p.item_id;

        -- Seen while looking for orphans, and more than wanted: visible again.
        for message in
            select t.msg_id from unnest(read_ids, read_items) as t (msg_id, item_id)
            where t.item_id = any (alive) order by t.msg_id offset wanted
        loop
            perform pgmq.set_vt('jobs_' || p_lane, message.msg_id, 0);
        end loop;
        wanted := wanted - coalesce(cardinality(alive), 0);

        -- Their item is settled, superseded, or gone with its user.
        select array_agg(t.msg_id) into orphans from unnest(read_ids, read_items) as t (msg_id, item_id)
        where alive is null or t.item_id <> all (alive);
        exit when orphans is null;
        perform pgmq.delete('jobs_' || p_lane, orphans);
    end loop;
    if not emptied and wanted = p_limit and p_limit > 0 then
        return 'null'::jsonb;
    end if;

    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'item_id', i.item_id, 'run_id', i.run_id, 'version', i.version, 'kind', i.kind, 'subject', i.subject,
            'user_id', i.user_id, 'payload', i.payload, 'progress', i.progress, 'attempts', i.attempts,
            'as_of', r.as_of, 'is_replay', r.as_of < i.created_at) order by i.item_id)
        from jobs.job_items i join jobs.job_runs r using (run_id)
        where i.lease_id = p_claim and i.status = 'queued'), '[]');
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

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see told_by_both). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"), nor is what has a state that nobody knows. A payment that failed was never received, so the
-- row that takes it back does not count either. A refund is pending as long as there is no money to pay it with; one that
-- fails then was never paid, and what takes it back does not count either. What goes back of a payment that was not received
-- (charge_pending, charge_failed: see follow_movements) takes nothing off that has counted. An amount that no book could
-- hold is not believed: it would keep everything else of its owner's from being written. (Newer ones are not even stored:
-- providers::movement::is_credible.)
create or replace function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null or p_amount_minor not between -1000000000000000 and 1000000000000000
            or p_currency = 'EUR' and p_amount_minor not between -999999999999 and 999999999999 then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'payment' and p_state <> 'succeeded' then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_state = 'charge_pending' then 'pending'
        when p_state = 'charge_failed' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- The rules that decide what a month's figure is and what it is worth, as a fingerprint of their functions: another one means
-- that figures from before may be others now. Nobody has to remember to raise a number.
create or replace function jobs.rules_in_force() returns text language sql stable set search_path = '' as $$
    select md5(string_agg(p.prosrc, '' order by p.proname)) from pg_catalog.pg_proc p
    where p.pronamespace = 'jobs'::regnamespace and p.proname in ('paid_before', 'paid_by_hand', 'why_excluded',
        'countable_movements', 'told_by_both', 'movements_reported_twice', 'recompute_totals', 'movements_in_books', 'is_uncounted',
        'foreign_movements', 'uncounted_movements', 'meet_within', 'month_flaws', 'month_sources', 'known_up_to', 'late_after',
        'month_worth');
$$;

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to, deep_read_to, books_from: the first month's first instant,
--     covered_from: since when everything was read up to the month that is asked for; null: nothing before it was,
--     open: [{id, listed_at}]: payments on their way, the oldest hundred; what only an order told, the latest twenty}]
create or replace function public.integration_context(p_items bigint[]) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'item_id', i.item_id, 'integration_id', t.id, 'user_id', t.user_id, 'provider', t.provider,
        'access_token', coalesce(jobs.readable_identifier(t.access_token), ''),
        'refresh_token', jobs.readable_identifier(t.refresh_token),
        'stripe_account_id', jobs.readable_identifier(t.stripe_account_id),
        'shop_domain', jobs.readable_identifier(t.shop_domain),
        'proven_account', case when s.proof = jobs.token_fingerprint(t) then s.account end,
        'token_expires_at', case when s.proof = jobs.token_fingerprint(t) then s.token_expires_at end,
        -- Another account than the one read before has a history of its own: nothing of it was read yet.
        'last_success_to', case when s.account = jobs.claimed_account(t) then s.last_success_to end,
        'deep_read_to', case when s.account = jobs.claimed_account(t) then s.deep_read_to end,
        'books_from', coalesce(case when s.account = jobs.claimed_account(t) then s.first_month end,
            jobs.first_month(t.connected_at, least(case when s.claimed =
                    case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end then s.claimed_at end,
                r.as_of), r.as_of))::timestamp at time zone 'Europe/Paris',
        -- Not within the query: there the row would be read as a whole.
        'covered_from', case when i.kind = 'sync_month' and s.account = jobs.claimed_account(t) then (
            select min(lower(c)) from unnest(s.covered) c
            cross join lateral (select case when i.payload ->> 'month' ~ '^\d{4}-(0[1-9]|1[0-2])$' then
                to_date(i.payload ->> 'month', 'YYYY-MM')::timestamp at time zone 'Europe/Paris' end as starts) m
            where lower(c) < m.starts and upper(c) >= m.starts) end,
        'open', (select coalesce(jsonb_agg(jsonb_build_object('id', o.external_id, 'listed_at', o.listed_at)), '[]') from (
            (select x.external_id, coalesce(x.listed_at, x.occurred_at) as listed_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'pending' and x.account = s.account
            order by 2, 1 limit 100)
            union all
            (select x.external_id, x.occurred_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'unlisted_payment'
                and x.account = s.account
            order by 2 desc, 1 limit 20)) o)) order by i.item_id, t.provider), '[]')
    from jobs.job_items i
    join jobs.job_runs r on r.run_id = i.run_id
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select k.id from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select k.id from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) f
    join public.integration_tokens t on t.id = f.id
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    -- A row that is another's by now is read for its owner, by an item of theirs.
    where i.item_id = any (p_items) and t.is_active and t.user_id = i.user_id;
$$;

-- Notes that the stored token opens exactly p_account. Where another account was connected before, its books are put
-- aside, and those of this one taken up again, should it have been connected once. p_all_orders: whether the token
-- reads orders of any age; null where the provider did not tell.
create or replace function public.integration_prove(
    p_integration_id uuid, p_access_token text, p_account text, p_all_orders boolean
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    f jobs.former_accounts;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state k where k.user_id = t.user_id and k.provider = t.provider for update;
    if s.account is distinct from p_account then
        s.claimed_at := case when s.claimed = p_account then s.claimed_at end;
        -- Proven again and not read since, it has its books from before.
        s.first_month := coalesce(s.first_month, lower(coalesce(s.counted_before, s.counted)));
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out, activity_said_by, counted_before)
            -- Until the month in which the other account was connected, as far as that is believed (see first_month), which
            -- is none before this one was last read.
            select t.user_id, t.provider, s.account, s.activity, s.first_month, s.counted * m.until, s.covered,
                s.last_success_to, r.at, s.left_out, s.activity_said_by, s.counted_before * m.until
            from (select greatest(case when t.connected_at between s.claimed_at - interval '31 days' and s.claimed_at
                    then t.connected_at else s.claimed_at end,
                s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
            cross join lateral (select datemultirange(daterange(null, (date_trunc('month', r.at at time zone 'Europe/Paris')
                + interval '1 month')::date)) as until) m
            on conflict (user_id, provider, account) do update set
                activity = excluded.activity, first_month = excluded.first_month, counted = excluded.counted,
                covered = excluded.covered, last_success_to = excluded.last_success_to, replaced_at = excluded.replaced_at,
                left_out = excluded.left_out, activity_said_by = excluded.activity_said_by,
                counted_before = excluded.counted_before;
        end if;
        delete from jobs.former_accounts k
        where k.user_id = t.user_id and k.provider = t.provider and k.account = p_account returning * into f;
        update jobs.integration_state k set
            account = p_account, activity = f.activity, activity_said_by = f.activity_said_by, left_out = false,
            -- Connected again, one that was out of the books has the months that it had.
            first_month = null, counted = coalesce(f.counted_before, f.counted, '{}'),
            covered = coalesce(f.covered, '{}'), last_success_to = f.last_success_to, deep_read_to = null, all_orders = null,
            doubted = '{}', counted_before = null, token_expires_at = null, refresh_token_expires_at = null
        where k.user_id = t.user_id and k.provider = t.provider;
    end if;
    update jobs.integration_state k set
        proof = jobs.token_fingerprint(t), all_orders = coalesce(p_all_orders, k.all_orders),
        proven_at = clock_timestamp(), updated_at = clock_timestamp()
    where k.user_id = t.user_id and k.provider = t.provider;
    return jsonb_build_object('proven', true);
end $$;

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

-- A user's countable movements of some months, one row for each movement: what counts by its row (why_excluded), and a
-- payment that Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create or replace function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint, day date, account text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    select t.provider, t.paris_month, case when f.account is null then s.activity else f.activity end, t.amount_minor,
        (t.occurred_at at time zone 'Europe/Paris')::date, t.account
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.excluded is null and not coalesce(f.left_out, s.left_out)
        and (not p_written or coalesce(f.counted, s.counted) @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
end $$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on, and stands for the
-- money that it was made of, as long as that is in the month: whatever activity that money has by now, it is in no other
-- row, and other money is not kept out for it. Where a total changes, comes or goes, thresholds are due to be checked.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create or replace function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    months date[];
    wanted jsonb;       -- [{month, activity, amount, metadata, made_of}]
    differing jsonb;
    is_changed boolean;
begin
    -- 1. Rows that are no longer as we wrote them: theirs. What never had a row is nobody's, and is tried again.
    with again as (
        delete from jobs.auto_sync_totals l
        where l.user_id = p_user_id and l.record_id is null and l.written_eur is null returning l.month
    )
    select array(select unnest(p_months) union select a.month from again a) into months;
    update jobs.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));
    is_changed := found;

    with sums as materialized (
        select c.month, c.activity, c.provider, c.provider || '/' || c.account as source, sum(c.amount_minor)::numeric as minor
        from jobs.countable_movements(p_user_id, months, true) c
        where c.activity is not null
        group by 1, 2, 3, 4
    ), theirs as (
        select distinct on (s.month, s.source) s.month, s.source, l.activity
        from sums s join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = s.month and s.source = any (l.made_of)
        where l.locked_at is not null
        order by s.month, s.source, l.activity = s.activity desc, l.locked_at, l.activity
    ), placed as materialized (
        select s.month, coalesce(t.activity, s.activity) as activity, s.provider, s.source, s.minor
        from sums s left join theirs t using (month, source)
    ), worth as materialized (
        select p.month, jobs.month_worth(p_user_id, p.month, p_as_of) as worth from (select distinct month from placed) p
    )
    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select t.month, t.activity, b.amount,
            -- A sum beyond the column's bound is said as that bound, and is no figure.
            case when b.amount = b.exact then o.worth else o.worth || jsonb_build_object('status', 'partial',
                'flaws', coalesce(o.worth -> 'flaws', '{}') || '{"amount_not_read": 1}') end
            || jsonb_build_object('sources', t.sources) as metadata,
            (select array_agg(distinct p.source order by p.source) from placed p
                where p.month = t.month and p.activity = t.activity) as made_of
        from (
            select s.month, s.activity, sum(s.minor) as minor,
                jsonb_object_agg(s.provider, round(s.minor / 100, 2)) as sources
            from (select month, activity, provider, sum(minor) as minor from placed group by 1, 2, 3) s group by 1, 2) t
        join worth o using (month)
        cross join lateral (select round(t.minor / 100, 2) as exact,
            least(greatest(t.minor / 100, -9999999999.99), 9999999999.99)::numeric(12, 2) as amount) b) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
            where w.month = l.month and w.activity = l.activity);
    delete from jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
            where w.month = l.month and w.activity = l.activity);
    is_changed := is_changed or found;
    update jobs.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from jobs.auto_sync_totals k
    left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2))
        on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);
    is_changed := is_changed or found;

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update jobs.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, made_of = w.made_of, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), made_of text[])
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and (l.written_eur, l.made_of) is distinct from (w.amount, w.made_of);
    is_changed := is_changed or found;

    -- 4. New rows. One that is already there under our key was not written by us: theirs.
    with missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key
        from jsonb_to_recordset(wanted) as w (
            month date, activity text, amount numeric(12, 2), metadata jsonb, made_of text[])
        where not exists (select from jobs.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, made_of, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        m.made_of, case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;
    is_changed := is_changed or found;

    if is_changed then
        insert into jobs.threshold_checks_due as d (user_id) values (p_user_id)
        on conflict (user_id) do update set since = excluded.since;
    end if;

    perform jobs.write_estimates(p_user_id);

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
--
-- p_movements: one list for each field that any of them has; or, as long as a call of an older version is under way, one
-- object for each movement.
--
-- Known stays known: an answer that says less changes nothing. A payment that has succeeded is not pending again, one
-- that has failed (another row may have said so) is nothing else again, nor is a refund that failed while it waited for
-- money (never_paid); an amount that was known in the account's
-- currency stays, as long as the amount that was told is the same, or none is; so do the state, the references, a debit's
-- date, the day of a loss under another name, that it was paid with a gift card or a credit, and that a row of zero is money
-- at another house.
--
-- What is told again by another name of its shop stays in the books that have its month, as far as they are not out while the
-- present ones have it.
--
-- Call only under the user's lock: what is not there yet is inserted, what differs is updated, and a row that says
-- the same is not even locked.
create or replace function jobs.store_movements(
    p_user_id uuid, p_provider text, p_account text, p_movements jsonb, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    answer jsonb;
begin
    with told as (
        select u.external_id, u.kind, u.occurred_at, u.amount_minor, u.currency, u.source_kind, u.state, u.method, u.listed_at,
            u.converted, u.original, array_remove(array[u.reference_1, u.reference_2], null)
                || case when u.more_references is not null
                    then array(select jsonb_array_elements_text(u.more_references -> 'ids')) end as refs
        from jsonb_to_record(case jsonb_typeof(p_movements) when 'object' then p_movements else '{}' end) as f (
            external_id text[], kind text[], occurred_at timestamptz[], amount_minor bigint[], currency text[],
            source_kind text[], state text[], method text[], listed_at timestamptz[], converted boolean[], original jsonb[],
            reference_1 text[], reference_2 text[], more_references jsonb[])
        cross join unnest(f.external_id, f.kind, f.occurred_at, f.amount_minor, f.currency, f.source_kind, f.state, f.method,
            f.listed_at, f.converted, f.original, f.reference_1, f.reference_2, f.more_references) as u (
            external_id, kind, occurred_at, amount_minor, currency, source_kind, state, method,
            listed_at, converted, original, reference_1, reference_2, more_references)
        union all
        select m.external_id, m.kind, m.occurred_at, m.amount_minor, m.currency, m.source_kind, m.state,
            coalesce(m.method, nullif(m.excluded, 'unresolved_currency')), m.listed_at,
            coalesce(m.converted, m.excluded is distinct from 'unresolved_currency'), m.original, m."references"
        from jsonb_to_recordset(case jsonb_typeof(p_movements) when 'array' then p_movements else '[]' end) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            source_kind text, state text, method text, listed_at timestamptz, converted boolean, original jsonb,
            "references" text[], excluded text)
    ), incoming as (
        select distinct on (m.external_id) m.external_id, m.kind, m.occurred_at, m.amount_minor, left(m.currency, 20) as currency,
            coalesce(m.refs, '{}') as refs, m.source_kind, m.state, m.listed_at, m.original, m.method,
            coalesce(m.converted, true) as converted
        from told m
    ), former as materialized (
        select f.account, coalesce(f.counted_before, f.counted) - case when f.left_out then s.counted else '{}' end as months
        from jobs.former_accounts f join jobs.integration_state s using (user_id, provider)
        where f.user_id = p_user_id and f.provider = p_provider
    ), merged as materialized (
        select n.external_id, t.external_id is null as is_new, t.paris_month as month_before, t.account as account_before,
            t.first_seen_at,
            case when n.kind = 'unknown' or k.elsewhere
                    or (n.kind in ('refund', 'refund_failure') and t.kind = 'platform_reversal')
                then coalesce(t.kind, n.kind) else n.kind end as kind,
            case when n.kind = 'dispute' and n.state is distinct from t.state
                    and not (n.occurred_at is null and n.state in ('lost', 'accepted') and t.state in ('lost', 'accepted'))
                then n.occurred_at
                when t.occurred_at <> t.listed_at and n.occurred_at = n.listed_at and n.listed_at = t.listed_at
                then t.occurred_at else coalesce(n.occurred_at, t.occurred_at) end as occurred_at,
            case when k.keep then t.amount_minor else n.amount_minor end as amount_minor,
            case when k.keep then t.currency else n.currency end as currency,
            case when k.keep then true else n.converted end as converted,
            case when k.keep then coalesce(t.original, case when n.original ->> 'amount' is not null then n.original end)
                when t.amount_minor is null then n.original
                else coalesce(n.original, t.original) end as original,
            case when t.refs @> n.refs then t.refs
                -- Most rows are new, and name one or two things in order.
                when t.refs is null and (cardinality(n.refs) < 2 or cardinality(n.refs) = 2 and n.refs[1] < n.refs[2])
                    then n.refs
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            case when k.elsewhere and (n.kind <> 'unknown' or n.source_kind = 'settled_elsewhere:unknown')
                then t.source_kind else coalesce(n.source_kind, t.source_kind) end as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
                when n.kind = 'refund' and (t.state = 'never_paid'
                    or t.state = 'pending' and n.state in ('failed', 'canceled')) then 'never_paid'
                -- Its payment says when it counts.
                when t.state in ('charge_pending', 'charge_failed')
                    and coalesce(n.state, '') not in ('pending', 'never_paid') then t.state
                when t.state = 'succeeded' and (n.state in ('pending', 'unknown')
                    or n.kind = 'payment' and n.state not in ('failed', 'canceled')) then t.state
                -- A payment without a state has counted.
                when n.state = 'unknown' then case when t.kind = 'payment' then t.state else coalesce(t.state, n.state) end
                else coalesce(n.state, t.state) end as state,
            case when jobs.paid_before(t.method) is not null and jobs.paid_before(n.method) is null then t.method
                else coalesce(n.method, t.method) end as method,
            coalesce(n.listed_at, t.listed_at) as listed_at
        from incoming n
        left join jobs.integration_transactions t
            on t.user_id = p_user_id and t.provider = p_provider and t.external_id = n.external_id
        cross join lateral (
            select coalesce(t.converted and t.amount_minor is not null and (not n.converted or n.amount_minor is null)
                and (t.original is null or n.original ->> 'amount' is null
                    or n.original ->> 'amount' = coalesce(t.original ->> 'amount', t.amount_minor::text)
                        and coalesce(n.original ->> 'currency' = t.original ->> 'currency', n.original ->> 'currency' is null)),
                false) as keep,
                -- Settled at another house: the row of zero tells less of it now, and no sale of nothing.
                coalesce(t.kind = 'unknown' and starts_with(t.source_kind, 'settled_elsewhere:') and n.amount_minor = 0
                    and (n.kind in ('payment', 'refund') or starts_with(n.source_kind, 'settled_elsewhere:')),
                false) as elsewhere) k
    ), inserted as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        -- What is no turnover is told for what was kept before.
        from merged m where m.is_new and m.kind <> 'no_turnover' order by m.external_id
        returning t.paris_month, t.paris_month as month_before
    ), updated as (
        update jobs.integration_transactions t set
            account = a.account, kind = m.kind, occurred_at = m.occurred_at, amount_minor = m.amount_minor,
            currency = m.currency, refs = m.refs, source_kind = m.source_kind, state = m.state, method = m.method,
            listed_at = m.listed_at, converted = m.converted, original = m.original, updated_at = clock_timestamp()
        from merged m left join former f on f.account = m.account_before
        cross join lateral (select case when f.months @> date_trunc('month',
            coalesce(m.occurred_at, m.first_seen_at) at time zone 'Europe/Paris')::date
            then f.account else p_account end as account) a
        where t.user_id = p_user_id and t.provider = p_provider and t.external_id = m.external_id and not m.is_new
            and (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (a.account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs, m.source_kind, m.state, m.method,
                m.listed_at, m.converted, m.original)
        returning t.paris_month, m.month_before
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct s.month_before) filter (where s.month_before <> s.paris_month), '[]'))
    into answer
    from (select * from inserted union all select * from updated) s;
    return answer;
end $$;

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), payments of which another row says that they failed, what took back a
-- refund that was never paid, rows without an id that are told with theirs now, and what goes back of a payment that was not
-- received: as long as all that is known of a charge is on its way, or failed, a refund or dispute of it takes nothing off.
-- The months that this touches.
create or replace function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language plpgsql set search_path = '' as $$
declare
    answer date[];
    returned date[];
begin
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now,
            -- What a dispute's payment says is no state of the dispute.
            state = case when p_kinds ->> t.source_kind in ('payment', 'refund', 'refund_failure') then t.state end
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), payments as materialized (   -- by their names: joined in one go, not each with each
        select t.external_id, r from jobs.integration_transactions t cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider
            and t.external_id = any (array(select p.external_id from payments p join failures f using (r)))
        returning t.paris_month, t.refs
    ), unpaid as materialized (
        select r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'refund'
            and r ~ '^(re|pyr)_'
    ), returns as materialized (
        select t.external_id, r from jobs.integration_transactions t cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'refund_failure'
            and t.state is distinct from 'never_paid' and exists (select from unpaid)
    ), undone as (
        update jobs.integration_transactions t set state = 'never_paid', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider
            and t.external_id = any (array(select b.external_id from returns b join unpaid u using (r)))
        returning t.paris_month
    ), without_id as materialized (     -- those that were found before, too: one row explains one
        select t.external_id, t.excluded, t.paris_month, t.account, t.listed_at, t.first_seen_at,
            coalesce(t.currency || t.amount_minor, '') as money,
            row_number() over (partition by t.paris_month, t.account, t.listed_at, t.currency, t.amount_minor
                order by t.first_seen_at, t.external_id) as nth
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider
            and t.source_kind in ('row_without_id', 'dispute:without_id')
    ), with_id as materialized (        -- told later, in the same second
        select x.paris_month, x.account, x.listed_at, x.first_seen_at, w.money,
            row_number() over (partition by x.paris_month, x.account, x.listed_at, w.money
                order by x.first_seen_at, x.external_id) as nth
        from (select o.paris_month, o.account, o.listed_at, o.money, min(o.first_seen_at) as since
            from without_id o group by 1, 2, 3, 4 having bool_or(o.excluded = 'unknown_kind')) w
        join jobs.integration_transactions x on x.user_id = p_user_id and x.provider = p_provider
            and x.paris_month = w.paris_month and x.account = w.account and x.listed_at = w.listed_at
            and coalesce(x.currency || x.amount_minor, '') = w.money and x.first_seen_at > w.since
        where x.excluded is distinct from 'unknown_kind'
            and coalesce(x.source_kind, '') not in ('row_without_id', 'dispute:without_id')
    ), named as (
        update jobs.integration_transactions t set kind = 'no_turnover', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and t.external_id = any (array(select o.external_id from without_id o
                join with_id x using (paris_month, account, listed_at, money, nth)
                where x.first_seen_at > o.first_seen_at))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        union all select paris_month from undone
        union all select paris_month from named
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from (select unnest(p.refs) as r from failed p) p join failures f using (r)) m;

    -- In a statement of its own: it sees what has failed by now.
    with unreceived as materialized (       -- by the index of what is looked at again
        select r as name, t.excluded, t.listed_at from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded in ('pending', 'failed')
            and t.kind = 'payment' and r ~ '^(ch|py)_'
    ), back as materialized (       -- what goes back, from the month on in which the first of them was sent; and what was held
        select t.external_id, t.kind, t.state, r as name
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and exists (select from unreceived)
            and t.paris_month >= (select date_trunc('month', min(u.listed_at) at time zone 'Europe/Paris')::date from unreceived u)
            and t.kind in ('refund', 'refund_failure', 'dispute', 'dispute_reversal') and r ~ '^(ch|py)_'
            and coalesce(t.state, '') not in ('pending', 'never_paid')
        union
        select t.external_id, t.kind, t.state, r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded in ('pending', 'failed')
            and t.state in ('charge_pending', 'charge_failed') and r ~ '^(ch|py)_'
    ), asked as materialized (      -- almost always none
        select name from back join unreceived using (name)
        union
        select name from back where state in ('charge_pending', 'charge_failed')
    ), received as materialized (
        select distinct r as name from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and exists (select from asked)
            and t.kind = 'payment' and coalesce(t.excluded, '') not in ('pending', 'failed')
            and r in (select name from asked)
    ), judged as materialized (
        select b.external_id, b.kind, b.state, case
            when bool_or(u.excluded = 'pending') and not bool_or(v.name is not null) then 'charge_pending'
            when bool_or(u.excluded = 'failed') and not bool_or(v.name is not null) then 'charge_failed'
            when b.state is null or b.state not in ('charge_pending', 'charge_failed') then b.state
            when b.kind = 'refund' then 'succeeded' end as now
        from back b left join unreceived u using (name) left join received v using (name)
        group by 1, 2, 3
    ), held as (
        update jobs.integration_transactions t set state = j.now, updated_at = p_now
        from judged j
        where t.user_id = p_user_id and t.provider = p_provider and t.external_id = j.external_id
            and t.state is distinct from j.now
        returning t.paris_month
    )
    select coalesce(array_agg(distinct h.paris_month), '{}') into returned from held h;
    return array(select distinct m from unnest(answer || returned) m);
end $$;

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
create or replace function jobs.note_unlisted_payments(
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

-- Brings instants of two lists together that lie at most so far apart, as many as can be, each with one of the other list.
-- Both lists are in order of time. The answer: the places in the first one of those that found one.
create or replace function jobs.meet_within(p_first timestamptz[], p_second timestamptz[], p_most interval) returns integer[]
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

-- Up to when a user's books know what was read: a replay of an earlier instant takes nothing back of it.
create or replace function jobs.known_up_to(p_user_id uuid, p_as_of timestamptz) returns timestamptz
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

-- Of what a month's figure is made, with what was read of it: each account whose books have the month; every active
-- integration where none has, or that was never read. is_owed: its money belongs into the books of the month. is_former: the
-- account was replaced; is_disconnected: it was disconnected. Neither is read any further.
create or replace function jobs.month_sources(p_user_id uuid, p_month date, p_as_of timestamptz)
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
create or replace function jobs.late_after() returns interval language sql immutable set search_path = '' as $$
    select interval '36 hours';
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up to
-- now, no later than late_after), partial (something of it was never read, or it has flaws). It follows from the ledger and
-- from what was read, of each account whose books have the month; of every active integration where none has, or that was
-- never read.
--   {status, flaws?: see month_flaws}
create or replace function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
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

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- too_slow: what this one mail is about takes longer than the claim may. It comes without facts, to be put off.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds, too_slow}], sealed batches in the order of their payload}
create or replace function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    lane text;
    claimed jsonb;
    items bigint[];
    mine bigint[];
    batches uuid[];
begin
    perform jobs.lock_mail_ledger();
    for lane in select l.lane from jobs.known_lanes() l where l.is_mail order by l.place loop
        claimed := public.jobs_claim(p_claim, lane, p_limit, p_seconds);
        if claimed = 'null'::jsonb then
            return claimed;
        end if;
        exit when claimed <> '[]'::jsonb;
    end loop;
    if lane = 'alerts' and jobs.hold_trouble_mails(p_claim, p_outage, p_now)
        and not exists (select from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued') then
        return 'null'::jsonb;
    end if;

    -- By arrays: statistics know nothing yet of what was just planned.
    mine := array(select (i.payload ->> 'delivery_id')::bigint from jobs.job_items i
        where i.lease_id = p_claim and i.status = 'queued');
    update jobs.email_deliveries d set item_id = i.item_id
    from jobs.job_items i
    where d.delivery_id = any (mine) and d.item_id is null
        and i.lease_id = p_claim and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = d.delivery_id;
    batches := (select array_agg(distinct d.batch_id) from jobs.email_deliveries d
        where d.delivery_id = any (mine) and d.status = 'sealed');

    if batches is not null then
        -- All of one batch, whoever claimed some of it: they are fenced off. The others' turn comes.
        batches := batches[1:1];
        select i.lane into lane from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued' limit 1;
        select array_agg(i.item_id order by i.item_id) into items
        from jobs.job_items i left join jobs.email_deliveries d on d.item_id = i.item_id
        where i.lease_id = p_claim and i.status = 'queued' and d.batch_id is distinct from batches[1];
        if items is not null then
            perform public.jobs_release(lane, items, array_fill(p_claim, array[cardinality(items)]), 0);
        end if;
        perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.batch_id = batches[1] and d.status = 'sealed' and i.status = 'queued'
        order by i.msg_id;
        update jobs.job_items i
        set lease_id = p_claim, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from jobs.email_deliveries d
        where d.batch_id = batches[1] and d.status = 'sealed' and i.item_id = d.item_id and i.status = 'queued';
    end if;

    begin
        if batches is null then
            perform jobs.retract_in_mails(mine);
        end if;

        return jsonb_build_object('mails', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient,
                'batch_id', d.batch_id, 'digest', d.digest, 'attempts', coalesce(i.attempts, 0),
                'address', case when d.status = 'sealed' then d.address
                    when d.kind = 'operator_digest' then d.facts ->> 'to' else p.address end,
                'facts', case d.status when 'sealed' then d.facts else d.facts
                    || jsonb_build_object('kind', d.kind, 'first_name', p.first_name)
                    || case d.kind when 'monthly_reminder' then
                        jsonb_build_object('recorded', m.recorded, 'entries', m.entries,
                            'books', jobs.books_to_declare(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')),
                            'profile', jsonb_build_object('created', t.created, 'has_acre', t.has_acre,
                                'income_tax', t.income_tax), 'mixed', x.months, 'verdict', m.verdict,
                            'definitive', f.told, 'uncounted', f.uncounted, 'incomplete', coalesce(w.incomplete, '[]'),
                            'assumed', jobs.assumed_activities(d.user_id), 'today', (p_now at time zone 'Europe/Paris')::date)
                        when 'definitive_month' then jsonb_build_object('definitive', f.told, 'uncounted', f.uncounted,
                            'incomplete', coalesce(w.incomplete, '[]'))
                        when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums',
                            -- What the books contradict reduces no ceiling.
                            'created', case when z.first is null then t.created end,
                            'contradiction', case when z.first is not null
                                then jsonb_build_array(t.created, to_char(z.first, 'YYYY-MM')) end,
                            'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                            'mixed', x.months, 'verdict', m.verdict,
                            'assumed', jobs.assumed_activities(d.user_id)) || jobs.recap_anew(d.user_id, d.facts, p_now)
                        else '{}' end
                    || case when d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') then jsonb_build_object(
                        'retracted', coalesce(nullif(jobs.retractions(d.user_id, d.delivery_id), '[]'),
                            d.facts -> 'retracted', '[]')) else '{}' end end,
                'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                    then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                        case when d.kind = 'integration_trouble'
                            then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end,
                        case when d.kind = 'definitive_month' then case when f.told is null then 'month_incomplete'
                            when f.told ->> 'mailed' = f.told ->> 'total' then 'month_unchanged' end end) end,
                'expired', coalesce(d.expires_at <= p_now, false),
                'age_seconds', greatest(0, extract(epoch from p_now - b.sealed_at))::bigint)
                order by d.position, d.delivery_id), '[]')
            from (
                select * from jobs.email_deliveries
                where delivery_id = any (mine) and status = 'planned' and batches is null
                union all
                -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
                select * from jobs.email_deliveries where batch_id = batches[1] and status = 'sealed'
            ) d
            left join jobs.job_items i on i.item_id = d.item_id
            left join jobs.email_batches b on b.batch_id = d.batch_id
            -- A fence (offset 0): of all people only these.
            left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
            left join lateral jobs.month_books(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')) m
                on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
            left join lateral jobs.tax_profiles(array[d.user_id]) t
                on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
            left join lateral (     -- the mail's month, with those before it in its quarter for what is to be declared
                select array_agg(g.month::date order by g.month) as months
                from to_date(d.facts ->> 'month', 'YYYY-MM') as o (month) cross join generate_series(
                    case d.kind when 'definitive_month' then o.month else date_trunc('quarter', o.month)::date end,
                    o.month, '1 month') as g (month)
            ) q on d.kind in ('monthly_reminder', 'definitive_month') and d.status = 'planned'
            left join lateral (     -- of who has an integration: what these months lack, and where that is something
                select jsonb_agg(l.lacks order by o.place) filter (where l.lacks @> '{"in_books": true}'
                        and not l.lacks @> '{"maybe_twice": 0, "passed_on": 0, "partial": false}'
                        or l.lacks @> '{"in_books": true}' and l.lacks -> 'unread' <> '[]') as incomplete,
                    (array_agg(l.lacks order by o.place desc))[1] as of_month
                from unnest(q.months) with ordinality as o (month, place)
                cross join lateral (select jobs.month_lacks(d.user_id, o.month, p_now) as lacks offset 0) l
            ) w on q.months is not null and (exists (select from public.integration_tokens t where t.user_id = d.user_id)
                or exists (select from jobs.integration_state c where c.user_id = d.user_id))   -- had one
            left join lateral (
                select jobs.definitive_month(d.user_id, q.months[cardinality(q.months)], w.of_month) as told,
                    jobs.uncounted_currencies(d.user_id, q.months) as uncounted
            ) f on q.months is not null
            left join lateral (     -- no longer than a mail may be
                select jobs.year_to_date(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM'), coalesce(
                    date_trunc('month', t.created)::date,
                    (select min(c.first_month) from jobs.integration_state c where c.user_id = d.user_id))) as to_date
            ) y on d.kind = 'monthly_recap' and d.status = 'planned'
            left join lateral jobs.turnover_before_creation(d.user_id, t.created) as z (first)
                on d.kind = 'monthly_recap' and d.status = 'planned'
                    and left(d.facts ->> 'month', 4) = to_char(t.created, 'YYYY')
            left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
                select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                    'imported', q.imported) order by q.month), '[]') as months
                from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
            ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
    exception when query_canceled then
        -- Fewer are asked for. One alone is named and may be put off, and the others leave.
        if cardinality(mine) is distinct from 1 or batches is not null then
            raise;
        end if;
        return jsonb_build_object('mails', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient, 'attempts', i.attempts,
                'facts', '{}'::jsonb, 'expired', coalesce(d.expires_at <= p_now, false), 'too_slow', true)), '[]')
            from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
            where d.delivery_id = mine[1] and d.status = 'planned'));
    end;
end $$;

-- Whether the month's recap waits for the next cron, which takes the month up again (see owed_months): an integration of
-- it was not read for a reason that may pass: until the p_policy ->> 'recap_waits_until'-th of the month after, and what
-- only its user can mend for p_policy ->> 'recap_waits_hours' since it was read last. An operator's call, which nobody
-- repeats, waits for nothing.
create or replace function jobs.recap_waits(
    p_run_id uuid, p_user_id uuid, p_month date, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns boolean language sql stable set search_path = '' as $$
    select coalesce(p_now < (p_month + interval '1 month'
                + make_interval(days => (p_policy ->> 'recap_waits_until')::integer - 1)) at time zone 'Europe/Paris', false)
        and exists (select from jobs.job_runs r where r.run_id = p_run_id and r.slot is not null)
        and exists (select from jsonb_array_elements(p_parts) e
            join jobs.integration_state s on s.user_id = p_user_id and s.provider = e ->> 'provider'
            where e -> 'error' ->> 'code' is not null
                and (not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')
                    or s.last_success_at > p_now - make_interval(hours => (p_policy ->> 'recap_waits_hours')::integer)));
$$;

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
-- p_policy: {users_codes: [the refusals that only one user can mend], recap_waits_until, recap_waits_hours: see recap_waits}
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    ended jsonb;        -- sources that nobody reads any further, as month_lacks tells them
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
    if jobs.recap_waits(i.run_id, p_user_id, p_month, p_parts, p_policy, p_now) then
        update jobs.job_items set result = result || '{"recap_waits": true}' where item_id = p_item_id;
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
    ended := case when i.result ->> 'month_status' = 'partial' then (
        select jsonb_agg(u) from jsonb_array_elements(jobs.month_lacks(p_user_id, p_month, p_as_of) -> 'unread') u
        where u @> '{"is_former": true}' or u @> '{"is_disconnected": true}') end;
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'not_theirs', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e
            where not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')),
        'ended', coalesce(ended, '[]'),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself, and so are sources that ended.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}' and ended is null
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- What keeps a user's month from being whole: what was not read of it, and its flaws as a recap tells them.
--   {month, in_books: the month belongs into the books of an account, read_whole: it was read to its end,
--    unread: [{source, since: null where a hole lies elsewhere, wholly, is_former, is_disconnected}], maybe_twice, passed_on,
--    partial: something else is missing}
create or replace function jobs.month_lacks(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with bounds as materialized (
        select tstzmultirange(tstzrange(p_month::timestamp at time zone 'Europe/Paris',
            (p_month + interval '1 month') at time zone 'Europe/Paris')) as days
    ), sources as materialized (
        select s.provider, s.is_former, s.is_disconnected, s.is_owed, b.days, b.days - s.covered as missing
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    ), reading as materialized (
        select coalesce(bool_or(s.is_owed), false) as in_books, coalesce(bool_and(isempty(s.missing)), false) as is_whole,
            coalesce(jsonb_agg(jsonb_build_object('source', s.provider, 'is_former', s.is_former,
                'is_disconnected', s.is_disconnected, 'wholly', s.missing = s.days,
                'since', case when s.missing = tstzmultirange(tstzrange(lower(s.missing), upper(s.days)))
                    and lower(s.missing) > lower(s.days) then lower(s.missing) end)
                order by s.provider, s.is_former, s.is_disconnected) filter (where s.is_owed and not isempty(s.missing)), '[]') as unread
        from sources s
    ), flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    )
    select jsonb_build_object('month', to_char(p_month, 'YYYY-MM'), 'in_books', r.in_books,
        'read_whole', r.is_whole and not f.found ?| array['beyond_scope', 'doubted_list'], 'unread', r.unread,
        'maybe_twice', coalesce((f.found ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((f.found ->> 'passed_on')::integer, 0),
        -- As in a recap (see plan_recap): what is in other currencies is told by itself.
        'partial', f.found - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}')
    from reading r cross join flaws f;
$$;

-- Currencies of a user's movements in some months that no total has.
create or replace function jobs.uncounted_currencies(p_user_id uuid, p_months date[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(distinct left(t.currency, 10)), '[]')
    from jobs.foreign_movements(array[p_user_id]) t where t.month = any (p_months);
$$;

-- What is true now of a provisional recap that leaves when its month is over and was read to its end; {} for any other.
create or replace function jobs.recap_anew(p_user_id uuid, p_facts jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce((
        select jobs.recap_amounts(p_user_id, o.month) || jsonb_build_object('provisional_at', null, 'unread', '[]'::jsonb, 'ended', '[]'::jsonb,
            'not_theirs', '[]'::jsonb,
            'uncounted', jobs.uncounted_currencies(p_user_id, array[o.month]),
            'typed', (select m.typed from jobs.month_books(p_user_id, o.month) m),
            'maybe_twice', l.lacks -> 'maybe_twice', 'passed_on', l.lacks -> 'passed_on', 'partial', l.lacks -> 'partial')
        from to_date(p_facts ->> 'month', 'YYYY-MM') as o (month)
        cross join lateral (select jobs.month_lacks(p_user_id, o.month, p_now) as lacks offset 0) l
        where p_facts ->> 'provisional_at' is not null
            and p_now >= (o.month + interval '1 month') at time zone 'Europe/Paris'
            and l.lacks @> '{"read_whole": true}'), '{}');
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
                s.first_month := jobs.first_month(t.connected_at,
                    least(case when s.claimed = part.account then s.claimed_at end, p_as_of), p_now);
                -- Of an account that is out of the books they count once it is taken back.
                if not s.left_out then
                    s.counted := s.counted + datemultirange(daterange(s.first_month, null));
                end if;
                -- With a connection, other months of this account and of the one before may count than did.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            -- A month that was asked for and read.
            if part.count_month and p_month is not null and not s.left_out
                and p_final and part.error is null and s.account = part.account then
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
            -- The month up to which it was read, and the present one, may not be whole any more.
            months := months || array(select m::date from unnest(array[s.last_success_to, p_as_of]) a (known)
                cross join lateral date_trunc('month', a.known at time zone 'Europe/Paris') m where s.counted @> m::date);
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

    -- What a version decides otherwise than the one before reaches every month, once.
    if exists (select from jobs.integration_state k
            where k.user_id = p_user_id and k.totals_by is distinct from jobs.rules_in_force()) then
        months := months || array(select distinct x.paris_month from jobs.integration_transactions x
            where x.user_id = p_user_id);
        update jobs.integration_state k set totals_by = jobs.rules_in_force(), updated_at = clock_timestamp()
        where k.user_id = p_user_id and k.totals_by is distinct from jobs.rules_in_force();
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

-- Takes an account out of a user's books, for who connected a wrong one by mistake, or back into them (p_out false).
-- Its movements stay in the ledger; taken out they count in no month, whatever is read, until it is taken back or
-- connected again in place of another. Repeating it changes nothing. An account that is not the user's is an error.
--   {months: [YYYY-MM] whose totals were added up again, left_alone: see recompute_totals}
create or replace function jobs.leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_as_of timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    touched date[];
    left_alone jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));
    if not exists (select from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account))
        and not exists (select from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) then
        raise exception 'user % has no account % at %', p_user_id, p_account, p_provider using errcode = '22023';
    end if;
    update jobs.integration_state s set left_out = p_out, updated_at = p_as_of,
        counted = case when p_out or s.first_month is null then '{}'
            else coalesce(s.counted_before, datemultirange(daterange(s.first_month, null))) end,
        -- One that was never read has no months yet.
        counted_before = case when p_out and s.first_month is not null then s.counted end
    where s.user_id = p_user_id and s.provider = p_provider and s.account = p_account and s.left_out <> p_out;
    update jobs.former_accounts f set left_out = p_out,
        counted = case when p_out or f.first_month is null then '{}' else coalesce(f.counted_before, datemultirange(daterange(f.first_month,
            (date_trunc('month', f.replaced_at at time zone 'Europe/Paris') + interval '1 month')::date))) end,
        counted_before = case when p_out then f.counted end
    where f.user_id = p_user_id and f.provider = p_provider and f.account = p_account and f.left_out <> p_out;
    -- With the account, months may lack something, or no longer do, of which its ledger has no row.
    touched := array(
        select t.paris_month from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account
        union
        select l.month from jobs.auto_sync_totals l
        join (select s.counted + coalesce(s.counted_before, '{}') as months from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account)
            union all
            select f.counted + coalesce(f.counted_before, '{}') from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) b on b.months @> l.month
        where l.user_id = p_user_id);
    touched := touched || jobs.months_reported_twice(p_user_id, touched);
    left_alone := jobs.recompute_totals(p_user_id, touched, p_as_of);
    insert into jobs.threshold_checks_due as d (user_id, since) values (p_user_id, p_as_of)
    on conflict (user_id) do update set since = excluded.since;
    return jsonb_build_object('left_alone', left_alone, 'months', (
        select coalesce(jsonb_agg(to_char(m, 'YYYY-MM') order by m), '[]') from unnest(touched) m));
end $$;

-- Settles or checkpoints a sync item: see settle_figures, whose parameters and answer these are. In the same
-- transaction it plans what follows from a settlement: the mail that asks to connect again (p_reconnect: see
-- plan_reconnect_mail) and the month's recap (see plan_recap).
--   {state: settled | stored | lost, result}
--
-- By indexes only: a plan is kept as long as its connection, and one that was made when a table was small would go on
-- reading it from end to end.
create or replace function public.integration_settle(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_reconnect jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_seqscan = off set jit = off as $$
declare
    settled jsonb := jobs.settle_figures(
        p_item_id, p_lease_id, p_user_id, p_chunk, p_final, p_parts, p_cursor, p_month, p_as_of, p_now);
begin
    if settled ->> 'state' <> 'settled' then
        return settled;
    end if;
    if not settled ? 'repeated' then
        perform jobs.plan_reconnect_mail(p_item_id, p_user_id, p_parts, p_reconnect, p_now);
    end if;
    if p_month is not null then
        perform jobs.plan_recap(p_item_id, p_user_id, p_month, p_as_of, p_parts, p_reconnect, p_now);
    end if;
    return settled - 'repeated';
end $$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
create or replace function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.id, t.user_id, t.provider, u.email::text as address, coalesce(s.failures, 0) as failures,
            s.failed_at, s.failure, s.last_success_at, t.connected_at,
            case
                when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
                when s.failures > 0 then 'failing'
                when s.last_success_at is null then 'new'
                when s.last_success_at < p_late_before then 'late'
                else 'good' end as state
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    )
    select jsonb_build_object(
        'states', (select coalesce(jsonb_agg(n order by n.provider, n.state), '[]') from (
            select k.provider, k.state, count(*) as count from known k group by 1, 2) n),
        'broken_total', (select count(*) from known k where k.state = 'failing'),
        'doubted_lists', jobs.doubted_lists(),
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', left(b.failure ->> 'code', 80), 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        -- They die on 1 January 2027, but for those of custom applications.
        'shopify_permanent', (select count(*) from known k join public.integration_tokens t on t.id = k.id
            where k.provider = 'shopify' and k.state <> 'inactive' and jobs.is_blank(t.refresh_token)),
        'shopify_renewed', (select max(s.token_expires_at) > p_now
            from jobs.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'at', r.at, 'code', r.code, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, p.problem ->> 'code' as code,
                jobs.mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata,
                '$.answer.**.problems[*] ? (@.code == "own_credentials" || @.code == "own_permission"
                    || @.code == "app_not_approved" || @.code == "permanent_token")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

-- Months of the last monthly slot that failed, or whose recap waits (see recap_waits), and that nothing has made up for
-- since, of users who still have an integration; with the last failure, and how often the crons have tried.
create or replace function jobs.owed_months(p_now timestamptz)
returns table (item_id bigint, user_id uuid, month text, error jsonb, tries bigint)
language sql stable set search_path = '' as $$
    with latest as materialized (
        select max(s.slot) as month from jobs.job_slots s
        where s.task = 'monthly_sync' and s.slot ~ '^[0-9]{4}-[0-9]{2}$'
    ), runs as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(s.run_id) as ids from jobs.job_slots s, latest l
        where s.task = 'monthly_sync' and (s.slot = l.month or s.slot like l.month || '/%')
    ), failed as materialized (
        select i.subject, max(i.item_id) as item_id, count(*) as tries
        from jobs.job_items i
        where i.run_id = any ((select r.ids from runs r)::uuid[]) and i.kind = 'sync_month'
            and (i.status = 'failed' or i.status = 'partial' and i.result ? 'recap_waits')
        group by 1
    )
    select f.item_id, i.user_id, l.month, i.error, f.tries
    from failed f join jobs.job_items i using (item_id) cross join latest l
    where not exists (select from jobs.job_items n
            where n.user_id = i.user_id and n.kind = i.kind and n.subject = i.subject and n.item_id > f.item_id
                and n.status not in ('failed', 'superseded') and n.payload ->> 'month' = l.month)
        and exists (select from public.integration_tokens t join auth.users u on u.id = t.user_id
            where t.user_id = i.user_id and t.is_active and u.deleted_at is null
                and coalesce(u.banned_until <= p_now, true));
$$;

-- Gives the months that failed on their last day their next chance, with the recap that they owe: in one run, once for
-- each p_occasion of a cron, until the p_last_day-th of the month after. What only its user can mend (p_users_codes) is
-- tried once more, since a refusal may pass, and again when an integration of the user's is good or fails for another
-- reason. What this very call has planned is not taken up again.
--   {run_id, items}
create or replace function public.jobs_retake_months(
    p_run_id uuid, p_occasion text, p_route text, p_last_day integer, p_users_codes text[], p_recap boolean,
    p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    again bigint[];
    month text;
    opened jsonb;
    planned integer;
begin
    select array_agg(o.item_id), min(o.month) into again, month
    from jobs.owed_months(p_now) o
    where (p_as_of at time zone 'Europe/Paris')::date
            < (to_date(o.month, 'YYYY-MM') + interval '1 month')::date + p_last_day
        and (coalesce(o.error ->> 'code', '') <> all (p_users_codes) or o.tries = 1
            or exists (select from public.integration_tokens t
                left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
                where t.user_id = o.user_id and t.is_active
                    and (coalesce(s.failures, 0) = 0 or coalesce(s.failure ->> 'code', '') <> all (p_users_codes))))
        and exists (select from jobs.job_items i where i.item_id = o.item_id and i.created_at < p_now);
    -- A repeated call finds nothing any more: its run answers.
    if again is null and not exists (select from jobs.job_runs r where r.run_id = p_run_id) then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    opened := jobs.open_run(p_run_id, 'monthly_sync', month || '/' || p_occasion, 'cron', p_route, p_as_of,
        jsonb_build_object('retaken', month), p_now);
    if opened ->> 'state' = 'repeated' then
        return jsonb_build_object('run_id', p_run_id, 'items', coalesce(opened -> 'plan' -> 'items', '0'));
    elsif opened ->> 'state' <> 'planned' then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
    select p_run_id, i.lane, i.kind, i.subject, i.user_id, i.payload || jsonb_build_object('recap', p_recap), p_now,
        p_now
    from jobs.job_items i where i.item_id = any (again) order by i.item_id;
    get diagnostics planned = row_count;
    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
    return jsonb_build_object('run_id', p_run_id, 'items', planned);
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

-- Lets the books say what the last month of disconnected integrations lacks, of users of whom nothing is read any more: with
-- each other one its next sync does so. So many users at most, those that nobody works on; the last ones to disconnect, since
-- of the others it is said already. Answers how many. By their keys: a join would read all books.
create or replace function jobs.end_months(p_most integer, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    one record;
    ended integer := 0;
begin
    for one in
        with gone as materialized (
            select s.user_id, date_trunc('month', e.seen at time zone 'Europe/Paris')::date as month
            from jobs.integration_state s
            cross join lateral (select greatest(s.last_success_to, s.last_success_at, s.failed_at) as seen) e
            where s.counted <> '{}' and e.seen > p_now - interval '62 days' and not exists (
                select from public.integration_tokens t where t.user_id = s.user_id and t.is_active)
        )
        select g.user_id, array_agg(distinct g.month) as months
        from gone g
        cross join lateral (
            select true from jobs.auto_sync_totals l
            join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
            where l.user_id = g.user_id and l.month = g.month and l.locked_at is null
                -- Ours is short.
                and pg_column_size(r.metadata) < 10000 and r.metadata ->> 'status' = 'provisional'
            limit 1) p
        group by 1 order by 1 limit p_most
    loop
        continue when not pg_try_advisory_xact_lock(
            hashtextextended('comptalyze.jobs.user/' || one.user_id::text, 0));
        perform from auth.users u where u.id = one.user_id for key share skip locked;
        continue when not found;     -- is being deleted
        perform jobs.recompute_totals(one.user_id, one.months, p_now);
        ended := ended + 1;
    end loop;
    return ended;
end $$;

-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more. Of alerts
-- that were found and not planned one part; `unplanned` says that the next call finds more. Months of who has disconnected
-- everything are ended (end_months).
--   {messages, mails, unplanned}
create or replace function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    lane record;
    messages integer := 0;
    mails integer;
    run uuid;
    most_ended constant integer := 50;      -- some milliseconds each
begin
    if not pg_try_advisory_xact_lock(hashtextextended('comptalyze.jobs.reconcile', 0)) then
        return jsonb_build_object('messages', 0, 'mails', 0, 'unplanned', false);
    end if;
    run := jobs.run_with_found_alerts();
    if run is not null then
        perform jobs.plan_part_of_alerts(run, p_now);
    end if;
    for lane in select l.lane from jobs.known_lanes() l order by l.place loop
        messages := messages + jobs.restore_messages(lane.lane);
    end loop;
    mails := jobs.plan_moved_mails(p_route, p_now) + jobs.queue_put_off_mails(p_now);
    -- Last: it waits for no user's lock, and nobody who holds one waits for ours.
    perform jobs.end_months(most_ended, p_now);
    return jsonb_build_object('messages', messages, 'mails', mails,
        'unplanned', run is not null and jobs.run_with_found_alerts() is not null);
end $$;

-- What comes back of a refund of any other way to pay than a card has the refund's own category at Stripe: what was stored as a
-- refund that adds is a refund that failed.
update jobs.integration_transactions set kind = 'refund_failure', updated_at = clock_timestamp()
where provider = 'stripe' and kind = 'refund' and amount_minor > 0;

-- What was stored before is judged anew. A generated column follows its function only where a column that it reads is written.
update jobs.integration_transactions t set kind = t.kind
where t.excluded is distinct from jobs.why_excluded(
    t.kind, t.state, t.method, t.occurred_at, t.amount_minor, t.currency, t.converted);

-- Of what the rows are made, as far as it is known: of those that are ours, what has their activity. Of the user's, what
-- they name as their sources; where they are gone, what has their activity, or Stripe's money, which alone moves by itself.
with sources as materialized (
    select t.user_id, t.paris_month as month, t.provider, t.provider || '/' || t.account as source,
        case when f.account is null then s.activity else f.activity end as activity
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.excluded is null and coalesce(f.counted, s.counted) @> t.paris_month
    group by 1, 2, 3, 4, 5
), made as (
    select l.user_id, l.month, l.activity, array_agg(distinct s.source order by s.source) as made_of
    from jobs.auto_sync_totals l join sources s using (user_id, month)
    left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.made_of = '{}' and case when l.locked_at is null then s.activity = l.activity
        when jsonb_typeof(r.metadata -> 'sources') = 'object' then r.metadata -> 'sources' ? s.provider
        else s.activity = l.activity or s.provider = 'stripe' and l.computed_eur = 0 end
    group by 1, 2, 3
)
update jobs.auto_sync_totals l set made_of = m.made_of
from made m where l.user_id = m.user_id and l.month = m.month and l.activity = m.activity;

-- Totals whose money has another activity by now were counted in another row, too, or kept other money out.
do $$
declare
    one record;
begin
    for one in
        select l.user_id, array_agg(distinct l.month) as months from jobs.auto_sync_totals l
        where l.locked_at is not null and (l.computed_eur = 0 or l.written_eur is null) group by 1 order by 1
    loop
        begin
            perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || one.user_id::text, 0));
            perform jobs.recompute_totals(one.user_id, one.months, clock_timestamp());
            insert into jobs.threshold_checks_due as d (user_id) values (one.user_id)
            on conflict (user_id) do update set since = excluded.since;
        exception when others then
            raise warning 'totals of user % stay as they are until their months are read: %', one.user_id, sqlerrm;
        end;
    end loop;
end $$;

revoke all on function jobs.countable_movements, jobs.end_months, jobs.foreign_movements, jobs.known_up_to,
    jobs.late_after, jobs.meet_within, jobs.month_sources, jobs.paid_by_hand, jobs.plan_recap, jobs.recap_waits,
    jobs.rules_in_force, jobs.told_by_both
    from public, anon, authenticated, service_role;

commit;
