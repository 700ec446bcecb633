-- What a version decides otherwise than the one before reaches every month of a user, once. Books of an account that was proven
-- again are kept when it is replaced unread; another account's first sighting dates nobody's books; a month that could not be
-- read is not in the books; one row with its id explains one without; failed debits are found by their names in one go.
--
-- Locks integration_state for a moment. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

alter table jobs.integration_state add column if not exists totals_by text;

-- The rules that decide what a month's figure is and what it is worth, as a fingerprint of their functions: another one means
-- that figures from before may be others now. Nobody has to remember to raise a number.
create or replace function jobs.rules_in_force() returns text language sql stable set search_path = '' as $$
    select md5(string_agg(p.prosrc, '' order by p.proname)) from pg_catalog.pg_proc p
    where p.pronamespace = 'jobs'::regnamespace and p.proname in ('paid_before', 'why_excluded', 'countable_movements',
        'movements_reported_twice', 'recompute_totals', 'movements_in_books', 'is_uncounted', 'uncounted_movements',
        'month_flaws', 'month_sources', 'month_worth');
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

revoke all on function jobs.rules_in_force from public, anon, authenticated, service_role;

commit;
