-- The books of accounts that replace each other, also where one was out of the books or a replay came first.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, goes on counting their attempts, and has waited as long as they have.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- p_most_days bounds how far back. With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned. Old items by their ids alone: a
-- join would read 90 days of finished ones. No just-in-time compilation, which what loops would have cost sets off.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create or replace function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean, p_most_days integer, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_nestloop = off set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
    likely bigint[];
    needless bigint[];
    batch record;
begin
    if p_kind not in ('sync_integration', 'sync_month') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        return (
            with c as materialized (select * from jobs.sync_candidates(p_user_id, p_as_of))
            select jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', jsonb_build_object(
                'items', case p_kind when 'sync_month' then count(distinct c.user_id) filter (where c.reason is null)
                         else count(*) filter (where c.reason is null) end,
                'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                    select reason, count(*) as n from c where reason is not null group by reason) n),
                'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                    select user_id, provider, coalesce(reason, 'due') as outcome
                    from c order by reason nulls first, user_id, provider limit 100) f)))
            from c);
    end if;
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;

    -- When an account was first seen at an integration, whenever it can be read: its books begin there.
    with seen as (
        select t.user_id, t.provider, jobs.readable_identifier(jobs.claimed_account(t)) as account
        from jobs.sync_candidates(p_user_id, p_as_of) c join public.integration_tokens t on t.id = c.integration_id
        where c.reason is null
    )
    insert into jobs.integration_state as s (user_id, provider, claimed, claimed_at)
    select n.user_id, n.provider, n.account, p_now
    from seen n left join jobs.integration_state k using (user_id, provider)
    where n.account is not null and n.account is distinct from coalesce(k.claimed, k.account)
    order by n.user_id, n.provider     -- as every plan locks them
    on conflict (user_id, provider) do update set claimed = excluded.claimed, claimed_at = excluded.claimed_at;

    -- What is likely to be superseded. Not locked yet: claims of it would wait until the new items are written.
    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(i.item_id) into likely
    from jobs.job_items i join older using (run_id)
    where i.status = 'queued' and i.kind = p_kind
        and (p_user_id is null or i.user_id = p_user_id)
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
        and (p_kind <> 'sync_month' or i.payload = p_payload);

    -- Everything from one look at the integrations.
    with c as materialized (
        select * from jobs.sync_candidates(p_user_id, p_as_of)
    ), planned as (
        insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress,
            created_at, waiting_since)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), p_now, least(w.since, p_now)
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join jobs.inherited_progress(likely, p_payload, p_most_days, p_as_of) t using (subject)
        left join (select i.subject, min(i.waiting_since) as since from jobs.job_items i
            where i.item_id = any (likely) group by 1) w using (subject)
        order by d.user_id, d.subject     -- as the index of all users' items has them: its pages are met once
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n))
    into outline;

    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(l.item_id) into needless from (
        select i.item_id
        from jobs.job_items i join older using (run_id)
        join jobs.job_items n on n.run_id = p_run_id and n.kind = i.kind and n.subject = i.subject
        where i.status = 'queued' and i.kind = p_kind
            and (p_user_id is null or i.user_id = p_user_id)
            and coalesce(i.leased_until, '-infinity') < clock_timestamp()
            and (p_kind <> 'sync_month' or i.payload = p_payload)
        order by i.item_id for update of i) l;

    if needless is not null then
        for batch in
            with ended as (
                update jobs.job_items i set status = 'superseded', settled_at = p_now
                where i.item_id = any (needless)
                returning i.item_id, i.lane
            )
            select lane, array_agg(item_id) as items from ended group by lane
        loop
            -- At once: pgmq deletes by its own ids, which an item that was never claimed does not know. Waits for
            -- nobody.
            execute format('delete from pgmq.%1$I where msg_id = any (array(
                select q.msg_id from pgmq.%1$I q
                where (q.message ->> ''item_id'')::bigint in (select unnest($1))
                for update of q skip locked))', 'q_jobs_' || batch.lane) using batch.items;
        end loop;
    end if;

    -- Most of it was written right at once: a row that is written twice in one transaction has its foreign keys checked
    -- twice, too. Something was tried, stored or claimed since.
    with now as materialized (
        select * from jobs.inherited_progress(needless, p_payload, p_most_days, p_as_of)
    ), differing as (
        select n.item_id, coalesce(t.attempts, 0) as attempts, t.error, coalesce(t.progress, '{}') as progress,
            coalesce(t.payload, p_payload) as payload
        from jobs.job_items n left join now t using (subject)
        where n.run_id = p_run_id and n.kind = p_kind
            and (n.attempts, n.error, n.progress, n.payload) is distinct from
                (coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), coalesce(t.payload, p_payload))
    )
    update jobs.job_items n
    set attempts = d.attempts, error = d.error, progress = d.progress, payload = d.payload
    from differing d where n.run_id = p_run_id and n.kind = p_kind and n.item_id = d.item_id;

    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

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
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out, activity_said_by, counted_before)
            -- Until the month in which the other account was seen, which is none before this one was last read.
            select t.user_id, t.provider, s.account, s.activity, s.first_month, s.counted * m.until, s.covered,
                s.last_success_to, r.at, s.left_out, s.activity_said_by, s.counted_before * m.until
            from (select greatest(s.claimed_at, s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
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
                p_user_id, part.account, coalesce(part.order_payments, '[]'), p_now);
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
                and x.kind <> 'no_turnover' and (x.kind <> 'dispute' or x.provider = 'stripe')
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
        select x.excluded as reason, x.currency, x.source_kind from jobs.integration_transactions x
        where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
            and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
            and jobs.is_uncounted(x)
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

commit;
