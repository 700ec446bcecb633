-- Plans, reports and forgetting for 100,000 users and more: what they cost follows from the work at hand, not from
-- the 90 days of finished work behind it.
--
-- Locks: one index on job_runs, which is read once while writes to it wait (about a second per million runs). Of the
-- application's tables none is touched. If a long transaction holds job_runs, lock_timeout makes this file fail: run
-- it again. Forward only; safe to run twice.

begin;
set local lock_timeout = '5s';

-- Planning ---------------------------------------------------------------------------------------------------

-- Sends one message for each of these items of a run, in their order. As pgmq.send_batch does, but straight from the
-- ids: that one is given all messages as one value, and hands all their ids back through three functions.
create or replace function public.jobs_send(
    p_run_id uuid, p_lane text, p_kind text, p_version integer, p_items bigint[]
) returns void language plpgsql security definer set search_path = '' as $$
begin
    execute format('insert into pgmq.%I (vt, message) select $1, jsonb_build_object(
            ''version'', $2, ''run_id'', $3, ''item_id'', n.item_id, ''kind'', $4)
        from unnest($5) with ordinality n (item_id, place) order by n.place', 'q_jobs_' || p_lane)
    using clock_timestamp(), p_version, p_run_id, p_kind, p_items;
end $$;

-- As before, by jobs_send.
create or replace function public.jobs_send_items(p_run_id uuid) returns void
language plpgsql security definer set search_path = '' as $$
declare
    batch record;
begin
    for batch in
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from public.job_items where run_id = p_run_id and status = 'queued'
        group by lane, kind, version
    loop
        perform public.jobs_send(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
    end loop;
end $$;

-- As before, by jobs_send.
create or replace function public.mail_queue(p_run_id uuid, p_user_id uuid) returns integer
language plpgsql security definer set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into public.job_items (run_id, lane, kind, subject, user_id, payload)
            select d.run_id, public.mail_lane(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id)
            from public.email_deliveries d
            where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            on conflict (run_id, kind, subject) do nothing
            returning item_id, lane, kind, version
        )
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from items group by lane, kind, version
    loop
        perform public.jobs_send(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
        queued := queued + cardinality(batch.items);
    end loop;
    if queued > 0 then
        update public.job_runs set status = 'running', finished_at = null
        where run_id = p_run_id and finished_at is not null;
    end if;
    return queued;
end $$;

-- The J+3 mail: everybody who signed up 3 to 6 Paris days before p_now, and why not (reason null: gets it).
-- What was planned before is looked up (limit 1): a join would read the whole ledger, which only grows.
create or replace function public.mail_marketing_candidates(p_user_id uuid, p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select p.user_id,
        case
            when d.known then 'already_planned'
            when m.id is not null then 'already_sent'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'free' then 'paid_plan'
            when p.says_paid then 'metadata_says_paid'
            else public.mail_refusal(p, 'marketing_day3') end,
        case when d.known is null and m.id is null then l.unknown_price end,
        'marketing_day3/' || p.user_id, '{}'::jsonb,
        ((p.created_at at time zone 'Europe/Paris')::date + 7)::timestamp at time zone 'Europe/Paris'
    from today t
    join public.mail_people p on p.created_at >= (t.day - 6)::timestamp at time zone 'Europe/Paris'
        and p.created_at < (t.day - 2)::timestamp at time zone 'Europe/Paris'
    join public.mail_plans(p_prices, p_now) l on l.user_id = p.user_id
    left join public.marketing_emails m on m.user_id = p.user_id and m.email_type = 'upgrade_day3'
    left join lateral (select true as known from public.email_deliveries k
        where k.dedupe_key = 'marketing_day3/' || p.user_id limit 1) d on true
    where p_user_id is null or p.user_id = p_user_id;
$$;

-- The reminder for p_month (its 1st): everybody who is Premium or wishes to be reminded, and why not.
create or replace function public.mail_reminder_candidates(p_user_id uuid, p_prices jsonb, p_month date, p_now timestamptz)
returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    select p.user_id,
        case
            when d.known then 'already_planned'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'premium' then 'not_premium'
            else public.mail_refusal(p, 'monthly_reminder') end,
        case when d.known is null then l.unknown_price end,
        'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM'),
        jsonb_build_object('month', to_char(p_month, 'YYYY-MM')),
        -- The Paris month after p_month is the one that it belongs into.
        (p_month + interval '2 months') at time zone 'Europe/Paris'
    from public.mail_plans(p_prices, p_now) l
    join public.mail_people p on p.user_id = l.user_id
    left join lateral (select true as known from public.email_deliveries k
        where k.dedupe_key = 'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM') limit 1) d on true
    where (p_user_id is null or p.user_id = p_user_id)
        and (l.plan = 'premium' or l.plan is null or p.wants_reminder);
$$;

-- Plans the J+3 mails or the reminders for a month. With p_dry_run nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], candidates?: […]}}
create or replace function public.jobs_plan_mails(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_user_id uuid, p_dry_run boolean, p_prices jsonb, p_month date, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
begin
    if p_kind not in ('marketing_day3', 'monthly_reminder') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        with c as materialized (
            select * from public.mail_marketing_candidates(p_user_id, p_prices, p_now) where p_kind = 'marketing_day3'
            union all
            select * from public.mail_reminder_candidates(p_user_id, p_prices, p_month, p_now)
            where p_kind = 'monthly_reminder'
        )
        select jsonb_build_object(
            'items', count(*) filter (where c.reason is null),
            'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                select reason, count(*) as n from c where reason is not null group by reason) n),
            'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
                select distinct unknown_price from c where unknown_price is not null order by 1 limit 10) n),
            'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                select c.user_id, coalesce(c.reason, 'due') as outcome
                from c order by c.reason nulls first, c.user_id limit 100) f))
        into outline from c;
        return jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', outline);
    end if;
    opened := public.jobs_open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    with c as materialized (
        select * from public.mail_marketing_candidates(p_user_id, p_prices, p_now) where p_kind = 'marketing_day3'
        union all
        select * from public.mail_reminder_candidates(p_user_id, p_prices, p_month, p_now)
        where p_kind = 'monthly_reminder'
    ), planned as (
        insert into public.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select c.dedupe_key, p_kind, c.user_id, c.user_id, p_run_id, c.facts, c.expires_at
        from c where c.reason is null
        order by c.user_id                    -- two plans at once wait for each other in one order
        on conflict (dedupe_key) do nothing   -- another run was faster
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n),
        'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
            select distinct unknown_price from c where unknown_price is not null order by 1 limit 10) n))
    into outline;
    perform public.mail_queue(p_run_id, null);
    update public.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- What a new item takes over from these that it supersedes; nothing of those that have nothing.
create or replace function public.jobs_taken_over(p_items bigint[], p_payload jsonb, p_as_of timestamptz)
returns table (subject uuid, attempts integer, error jsonb, progress jsonb, payload jsonb)
language sql stable as $$
    with old as materialized (
        select i.subject, i.attempts, i.error, i.progress, d.days
        from public.job_items i
        cross join lateral (select case when i.payload ->> 'days' is not null then (i.payload ->> 'days')::integer
            + (p_as_of at time zone 'Europe/Paris')::date - (
                select (r.as_of at time zone 'Europe/Paris')::date from public.job_runs r where r.run_id = i.run_id)
            end as days) d
        where i.item_id = any (p_items)
            and (i.attempts > 0 or i.progress ? 'records' or d.days > coalesce((p_payload ->> 'days')::integer, 0))
    ), providers as (
        select n.subject, jsonb_object_agg(n.provider, n.n) as by_provider from (
            select o.subject, e.key as provider, sum(e.value::text::bigint) as n
            from old o, jsonb_each(o.progress -> 'by_provider') e group by 1, 2) n
        group by n.subject
    ), months as (
        select o.subject, jsonb_agg(distinct m) as months
        from old o, jsonb_array_elements(o.progress -> 'months') m group by o.subject
    ), summed as (
        select o.subject, max(case when o.days > 366 then 366 else o.days end) as days,
            -- A provider that keeps failing is given up after five attempts, however often it is planned anew.
            max(o.attempts) as attempts, (array_agg(o.error order by o.attempts desc))[1] as error,
            bool_or(o.progress ? 'records') as stored, sum((o.progress ->> 'records')::bigint) as records
        from old o group by o.subject
    )
    select s.subject, s.attempts, s.error,
        -- Stored at a checkpoint: the new item's to account for, since to it these movements are not new.
        case when s.stored then jsonb_build_object('records', s.records,
            'by_provider', p.by_provider, 'months', coalesce(m.months, '[]')) else '{}' end,
        case when s.days > coalesce((p_payload ->> 'days')::integer, 0)
            then p_payload || jsonb_build_object('days', s.days) else p_payload end
    from summed s left join providers p using (subject) left join months m using (subject);
$$;

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, and goes on counting their attempts.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned. Old items by their ids alone: a
-- join would read 90 days of finished ones. No just-in-time compilation, which what loops would have cost sets off.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create or replace function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean
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
            with c as materialized (select * from public.integration_candidates(p_user_id, p_as_of))
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
    opened := public.jobs_open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;

    -- What is likely to be superseded. Not locked yet: claims of it would wait until the new items are written.
    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from public.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from public.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(i.item_id) into likely
    from public.job_items i join older using (run_id)
    where i.status = 'queued' and i.kind = p_kind
        and (p_user_id is null or i.user_id = p_user_id)
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
        and (p_kind <> 'sync_month' or i.payload = p_payload);

    -- Everything from one look at the integrations.
    with c as materialized (
        select * from public.integration_candidates(p_user_id, p_as_of)
    ), planned as (
        insert into public.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}')
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join public.jobs_taken_over(likely, p_payload, p_as_of) t using (subject)
        order by d.user_id, d.subject     -- as the index of all users' items has them: its pages are met once
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n))
    into outline;

    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from public.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from public.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(l.item_id) into needless from (
        select i.item_id
        from public.job_items i join older using (run_id)
        join public.job_items n on n.run_id = p_run_id and n.kind = i.kind and n.subject = i.subject
        where i.status = 'queued' and i.kind = p_kind
            and (p_user_id is null or i.user_id = p_user_id)
            and coalesce(i.leased_until, '-infinity') < clock_timestamp()
            and (p_kind <> 'sync_month' or i.payload = p_payload)
        order by i.item_id for update of i) l;

    if needless is not null then
        for batch in
            with ended as (
                update public.job_items i set status = 'superseded', settled_at = clock_timestamp()
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
        select * from public.jobs_taken_over(needless, p_payload, p_as_of)
    ), differing as (
        select n.item_id, coalesce(t.attempts, 0) as attempts, t.error, coalesce(t.progress, '{}') as progress,
            coalesce(t.payload, p_payload) as payload
        from public.job_items n left join now t using (subject)
        where n.run_id = p_run_id and n.kind = p_kind
            and (n.attempts, n.error, n.progress, n.payload) is distinct from
                (coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), coalesce(t.payload, p_payload))
    )
    update public.job_items n
    set attempts = d.attempts, error = d.error, progress = d.progress, payload = d.payload
    from differing d where n.run_id = p_run_id and n.kind = p_kind and n.item_id = d.item_id;

    perform public.jobs_send_items(p_run_id);
    update public.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- Report -----------------------------------------------------------------------------------------------------

-- Whether anything of a run is still queued, and whether a living worker holds any of it: what a report would wait
-- for. By indexes that hold nothing but queued items, as often as one likes.
--   {queued, in_flight}
create or replace function public.jobs_run_waits(p_run_id uuid) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select jsonb_build_object(
        'queued', exists (select from public.job_items i where i.run_id = p_run_id and i.status = 'queued'),
        'in_flight', exists (select from public.job_items i
            where i.run_id = p_run_id and i.status = 'queued'
                and i.lease_id is not null and i.leased_until > clock_timestamp()));
$$;

-- Forgetting -------------------------------------------------------------------------------------------------

-- The oldest runs first, without a look at the others: every question about a single user leaves a run, too.
create index if not exists job_runs_finished on public.job_runs (finished_at) where finished_at is not null;

-- Forgets what is older than 90 days: logs, events, finished runs and their items. Ledgers stay, without what is
-- personal after 13 months. The oldest first, at most 20,000 rows of a sort a call, so that it never takes long; left:
-- there is more, call again. Waits for nobody: what is locked just now has time.
--
-- Rows go by where they were found (ctid): looking them up again would read the index of all logs, at random.
--   {logs, items, runs, events, blanked, left}
create or replace function public.jobs_prune() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    most constant integer := 20000;
    old constant timestamptz := clock_timestamp() - interval '90 days';
    logs integer;
    items integer;
    runs integer;
    events integer;
    blanked integer;
    of_old integer;
begin
    delete from public.sync_logs where ctid = any (array(
        select l.ctid from public.sync_logs l where l.synced_at < old order by l.synced_at limit most
        for update skip locked));
    get diagnostics logs = row_count;
    delete from public.job_items where ctid = any (array(
        select i.ctid
        from (select run_id from public.job_runs where finished_at < old order by finished_at limit most) r
        -- In the order of an index (here and below): else the whole table may seem quicker.
        cross join lateral (select ctid from public.job_items where run_id = r.run_id order by kind, subject
            limit most for update skip locked) i
        limit most));
    get diagnostics items = row_count;
    delete from public.job_runs where ctid = any (array(
        select r.ctid
        from (select ctid, run_id from public.job_runs where finished_at < old order by finished_at limit most
            for update skip locked) r
        left join lateral (select true as one from public.job_items where run_id = r.run_id order by kind, subject
            limit 1) i on true
        where i.one is null));
    get diagnostics runs = row_count;
    delete from public.email_events where ctid = any (array(
        select e.ctid from public.email_events e where e.received_at < old order by e.received_at limit most
        for update skip locked));
    get diagnostics events = row_count;
    -- What is personal of those who are gone: at once, but for a batch that may be sent again as sealed. Their items
    -- went with them, so nobody else ends what was still open. (The operator's digest never had a user.)
    with ended as (
        update public.email_deliveries d
        set address = null, facts = '{}',
            status = case d.status when 'planned' then 'skipped' when 'sealed' then 'unknown' else d.status end,
            reason = case when d.status in ('planned', 'sealed') then 'user_deleted' else d.reason end,
            settled_at = coalesce(d.settled_at, clock_timestamp())
        where d.delivery_id = any (array(
            select g.delivery_id from public.email_deliveries g
            where g.user_id is null and g.kind <> 'operator_digest' and (g.address is not null or g.facts <> '{}' or g.status in ('planned', 'sealed'))
                and (g.status <> 'sealed' or exists (select from public.email_batches b
                    where b.batch_id = g.batch_id and b.sealed_at < clock_timestamp() - interval '24 hours'))
            limit most for update of g skip locked))
        returning d.delivery_id, d.batch_id
    ), batches as (
        update public.email_batches b set state = 'settled', ended_at = clock_timestamp()
        where b.state = 'sealed' and b.batch_id in (select e.batch_id from ended e)
            and not exists (select from public.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed'
                and d.delivery_id not in (select e.delivery_id from ended e))
    )
    select count(*) into blanked from ended;
    -- Of the others after 13 months.
    update public.email_deliveries set address = null, facts = '{}' where delivery_id = any (array(
        select d.delivery_id from public.email_deliveries d
        where (d.address is not null or d.facts <> '{}') and d.settled_at < clock_timestamp() - interval '13 months'
        order by d.settled_at limit most for update skip locked));
    get diagnostics of_old = row_count;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs, 'events', events,
        'blanked', blanked + of_old, 'left', most in (logs, items, runs, events, blanked, of_old));
end $$;

-- Rights -----------------------------------------------------------------------------------------------------

revoke all on function
    public.jobs_send(uuid, text, text, integer, bigint[]),
    public.jobs_taken_over(bigint[], jsonb, timestamptz),
    public.jobs_run_waits(uuid)
from public, anon, authenticated, service_role;
grant execute on function
    public.jobs_run_waits(uuid)
to service_role;

commit;
