-- The schema of the scheduled jobs: their tables and everything that only their own functions call.
--
-- Nobody but the owner has usage on it, and the Data API does not expose it. What the code calls stands in `public`
-- (jobs_…, mail_…, integration_…, threshold_…): security definer, and only service_role may execute it. Rights are
-- given in 90_rights.sql, at the end and nowhere else.
--
-- pgmq carries and redelivers; jobs.job_items is the record. A message holds {version, run_id, item_id, kind}.
-- Who holds an item is its lease_id (the id of the claim that read the message last): settling with another
-- lease writes nothing.
--
-- Lock order, everywhere: the ledger of mails (advisory), the user (advisory), the user's account, message, item;
-- several messages and several items each by their ids. Keeping it is what makes claims, heartbeats, settlements and
-- plans free of deadlocks.

begin;
set local lock_timeout = '5s';

create schema jobs;

do $$
begin
    if exists (select from pg_catalog.pg_available_extensions where name = 'pgmq') then
        create extension if not exists pgmq;
    elsif to_regprocedure('pgmq.create(text)') is null then
        raise exception 'pgmq is missing: enable Queues (extension pgmq) in the Supabase dashboard, then run this file again';
    end if;
end $$;

-- Runs and slots: what was asked for, and which occasion of a cron it stands for.

create table jobs.job_runs (
    run_id uuid primary key,
    task text not null,
    slot text,                                   -- null: asked for by hand, blocks nobody
    trigger text not null check (trigger in ('cron', 'manual', 'replay')),
    route text not null,
    as_of timestamptz not null,                  -- the instant the run works for (a replay: in the past)
    parameters jsonb not null default '{}',
    plan jsonb not null default '{}',            -- what planning answered, given again when planning is repeated
    status text not null default 'running' check (status in ('running', 'success', 'partial', 'error')),
    counts jsonb not null default '{}',
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz
);
create index job_runs_open on jobs.job_runs (started_at) where finished_at is null;
create index job_runs_task on jobs.job_runs (task, started_at desc);
-- The last runs for everybody: the application asks for single users all day long.
create index job_runs_whole on jobs.job_runs (task, started_at desc) where not (parameters ? 'user_id');
create index job_runs_single on jobs.job_runs (as_of) where parameters ? 'user_id';
-- The oldest runs first, without a look at the others: every question about a single user leaves a run, too.
create index job_runs_finished on jobs.job_runs (finished_at) where finished_at is not null;

create table jobs.job_slots (
    task text not null,
    slot text not null,
    run_id uuid not null,
    claimed_at timestamptz not null default clock_timestamp(),
    primary key (task, slot)
);

-- Opens a run, or says which one already has the slot. A repeated call finds the first one's run.
--   {state: planned | joined | repeated, run_id, trigger, started_at, plan}
create function jobs.open_run(
    p_run_id uuid, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz, p_parameters jsonb,
    p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    r jobs.job_runs;
begin
    if p_slot is not null then
        -- Waits for a concurrent claim of the same slot: it either commits (joined) or rolls back (ours).
        insert into jobs.job_slots (task, slot, run_id, claimed_at) values (p_task, p_slot, p_run_id, p_now)
        on conflict (task, slot) do nothing;
        if not found then
            select j.* into r from jobs.job_slots s join jobs.job_runs j using (run_id)
            where s.task = p_task and s.slot = p_slot;
            if r.run_id is null then  -- the run is gone after its 90 days, the slot is not
                return jsonb_build_object('state', 'joined', 'run_id', null, 'plan', '{}'::jsonb);
            elsif r.run_id <> p_run_id then
                return jsonb_build_object('state', 'joined', 'run_id', r.run_id, 'plan', r.plan,
                    'trigger', r.trigger, 'started_at', r.started_at);
            end if;
        end if;
    end if;
    -- A repeated call waits here for the first one, which may still be at it.
    insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, parameters)
    values (p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters)
    on conflict (run_id) do nothing;
    if not found then
        select * into r from jobs.job_runs where run_id = p_run_id;
        return jsonb_build_object('state', 'repeated', 'run_id', r.run_id, 'plan', r.plan);
    end if;
    return jsonb_build_object('state', 'planned', 'run_id', p_run_id, 'plan', '{}'::jsonb);
end $$;

-- Items of work, and one queue for each lane that carries them.

-- The lanes, in order of priority: mails first. The one list of them; crates/jobs/src/lane.rs has the same.
create function jobs.known_lanes() returns table (lane text, place integer, is_mail boolean)
language sql immutable as $$
    values ('alerts', 1, true), ('reminders', 2, true), ('recaps', 3, true), ('marketing', 4, true),
        ('stripe', 5, false), ('shopify', 6, false), ('months', 7, false);
$$;

-- The lane of a kind of mail; null for what is no kind. The one list of kinds; crates/jobs/src/mail_kind.rs
-- has the same.
create function jobs.lane_of_mail(p_kind text) returns text
language sql immutable as $$
    select case p_kind when 'threshold_alert' then 'alerts' when 'integration_trouble' then 'alerts'
        when 'operator_digest' then 'alerts' when 'monthly_reminder' then 'reminders'
        when 'monthly_recap' then 'recaps' when 'marketing_day3' then 'marketing' end;
$$;

do $$
begin
    perform pgmq.create('jobs_' || l.lane) from jobs.known_lanes() l order by l.place;
end $$;

create table jobs.job_items (
    item_id bigint generated always as identity primary key,
    run_id uuid not null references jobs.job_runs (run_id) on delete cascade,
    lane text not null,
    kind text not null,
    version integer not null default 1,         -- of the payload: a rolled-back deployment leaves newer items alone
    subject uuid not null,                       -- what is worked on: an integration, a user
    user_id uuid references auth.users (id) on delete cascade,
    payload jsonb not null default '{}',
    status text not null default 'queued'
        check (status in ('queued', 'done', 'partial', 'failed', 'superseded',
            'skipped')),                         -- a mail that is not wanted any more, or came too late
    attempts integer not null default 0,         -- classified failures of the item itself
    msg_id bigint,                               -- known once claimed
    lease_id uuid,                               -- the claim that holds it: the fence of every write
    leased_until timestamptz,
    returned_lease uuid,                         -- the claim that gave it back last: a repeated call is known by it
    progress jsonb not null default '{}',        -- checkpoint of unfinished work
    result jsonb not null default '{}',
    error jsonb,                                 -- {code, message} of the last failure
    created_at timestamptz not null default clock_timestamp(),
    settled_at timestamptz,
    unique (run_id, kind, subject)
);
create index job_items_lease on jobs.job_items (lease_id) where status = 'queued' and lease_id is not null;
create index job_items_run_queued on jobs.job_items (run_id) where status = 'queued';
create index job_items_user on jobs.job_items (user_id);
create index job_items_failed on jobs.job_items (settled_at) where status = 'failed';

-- Sends one message for each of these items of a run, in their order. pgmq.send_batch does the same, but takes all
-- messages as one value and hands all their ids back through three functions: this is straight from the ids.
create function jobs.send_messages(
    p_run_id uuid, p_lane text, p_kind text, p_version integer, p_items bigint[]
) returns void language plpgsql set search_path = '' as $$
begin
    execute format('insert into pgmq.%I (vt, message) select $1, jsonb_build_object(
            ''version'', $2, ''run_id'', $3, ''item_id'', n.item_id, ''kind'', $4)
        from unnest($5) with ordinality n (item_id, place) order by n.place', 'q_jobs_' || p_lane)
    using clock_timestamp(), p_version, p_run_id, p_kind, p_items;
end $$;

-- Sends one message for each queued item of a run: the end of every plan, in its transaction.
create function jobs.send_items(p_run_id uuid) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    for batch in
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from jobs.job_items where run_id = p_run_id and status = 'queued'
        group by lane, kind, version
    loop
        perform jobs.send_messages(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
    end loop;
end $$;

-- Takes the message and the item for a write.
--   held: go on; lost: somebody else has it, write nothing; settled: it was ours and is done (a repeated call)
create function jobs.hold_item(p_item_id bigint, p_lease_id uuid) returns text
language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.item_id is null or i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    if i.status <> 'queued' then
        return case i.status when 'superseded' then 'lost' else 'settled' end;
    end if;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, 60);     -- locks the message before the item
    select * into i from jobs.job_items where item_id = p_item_id for update;
    if i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    return case i.status when 'queued' then 'held' when 'superseded' then 'lost' else 'settled' end;
end $$;

-- Writes an item's result and takes its message away. Call only on a held item.
create function jobs.finish_item(
    p_item_id bigint, p_status text, p_result jsonb, p_error jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
begin
    update jobs.job_items
    set status = p_status, result = p_result, error = p_error, progress = '{}',
        leased_until = null, settled_at = p_now
    where item_id = p_item_id returning * into i;
    perform pgmq.delete('jobs_' || i.lane, i.msg_id);
end $$;

-- How workers claim items, keep them and give them back.

-- Claims up to p_limit visible messages of a lane for p_seconds; fewer only where no more are visible. A repeated claim
-- gives the same items again. Null: only messages without an item were seen so far, ask again.
--   [{item_id, run_id, version, kind, subject, user_id, payload, progress, attempts, as_of}]
create function public.jobs_claim(p_claim uuid, p_lane text, p_limit integer, p_seconds integer)
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
            'item_id', i.item_id, 'run_id', i.run_id, 'version', i.version, 'kind', i.kind, 'subject', i.subject, 'user_id', i.user_id,
            'payload', i.payload, 'progress', i.progress, 'attempts', i.attempts,
            'as_of', r.as_of) order by i.item_id)
        from jobs.job_items i join jobs.job_runs r using (run_id)
        where i.lease_id = p_claim and i.status = 'queued'), '[]');
end $$;

-- Keeps claimed items invisible for another p_seconds; answers those still held.
create function public.jobs_heartbeat(p_lane text, p_items bigint[], p_leases uuid[], p_seconds integer)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    held bigint[];
begin
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, p_seconds)
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    join jobs.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.msg_id;

    select array_agg(i.item_id) into held from (
        select i.item_id from unnest(p_items, p_leases) as h (item_id, lease_id)
        join jobs.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
        order by i.item_id for update of i) i;
    update jobs.job_items set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
    where item_id = any (held);
    return to_jsonb(coalesce(held, '{}'));
end $$;

-- Gives an item back. With an error it is an attempt, and attempt number p_max_attempts fails the item. Without one (budget, quota, rate
-- limit, our own key refused) it is none.
--   {state: queued | failed | lost, attempts}
create function public.jobs_give_back(
    p_item_id bigint, p_lease_id uuid, p_delay_seconds integer, p_error jsonb, p_max_attempts integer,
    p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    hold text := jobs.hold_item(p_item_id, p_lease_id);
    i jobs.job_items;
begin
    if hold <> 'held' then
        select * into i from jobs.job_items where item_id = p_item_id;
        if i.returned_lease = p_lease_id and i.status = 'queued' then
            return jsonb_build_object('state', 'queued', 'attempts', i.attempts);  -- a repeated call
        end if;
        return jsonb_build_object('state', case when hold = 'lost' then 'lost' else i.status end, 'attempts', i.attempts);
    end if;
    if p_error is not null then
        update jobs.job_items set attempts = attempts + 1, error = p_error where item_id = p_item_id;
    end if;
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.attempts >= p_max_attempts then
        perform jobs.finish_item(p_item_id, 'failed',
            jsonb_build_object('user_id', i.user_id, 'status', 'error', 'records', 0, 'error', i.error), i.error, p_now);
        insert into public.sync_logs (user_id, provider, sync_type, status, error_message, metadata)
        select i.user_id, 'jobs', r.trigger, 'error', i.error ->> 'message',
            jsonb_build_object('run_id', i.run_id, 'kind', i.kind, 'code', i.error -> 'code')
        from jobs.job_runs r where r.run_id = i.run_id;
        return jsonb_build_object('state', 'failed', 'attempts', i.attempts);
    end if;
    -- Without a lease the old holder is fenced off, and a repeated call does not count twice.
    update jobs.job_items set lease_id = null, leased_until = null, returned_lease = p_lease_id
    where item_id = p_item_id;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_delay_seconds);
    return jsonb_build_object('state', 'queued', 'attempts', i.attempts);
end $$;

-- Gives back items that were claimed and not worked on, all at once. Answers how many are back by these leases.
create function public.jobs_release(p_lane text, p_items bigint[], p_leases uuid[], p_delay_seconds integer)
returns integer language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, p_delay_seconds)
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    join jobs.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.msg_id;

    perform from unnest(p_items, p_leases) as h (item_id, lease_id)
    join jobs.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.item_id for update of i;
    update jobs.job_items i set lease_id = null, leased_until = null, returned_lease = i.lease_id
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    where i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued';
    return (select count(*) from unnest(p_items, p_leases) as h (item_id, lease_id)
        join jobs.job_items i on i.item_id = h.item_id and i.returned_lease = h.lease_id);
end $$;

-- What came of a run, and what is left in the queues.

-- Closes the runs that have nothing queued any more: success, partial (some of it failed), error (all of it). A mail
-- that was not wanted any more is no failure. Answers how many were closed.
create function public.jobs_close_runs() returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    closed integer;
begin
    with ended as (
        select r.run_id,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'superseded') as superseded,
            count(*) filter (where i.status = 'skipped') as skipped
        from jobs.job_runs r left join jobs.job_items i using (run_id)
        where r.finished_at is null
            -- Asked first and by an index of its own: a run with work left is not added up each time.
            and not exists (select from jobs.job_items q where q.run_id = r.run_id and q.status = 'queued')
        group by r.run_id
    )
    update jobs.job_runs r
    set finished_at = clock_timestamp(),
        counts = jsonb_build_object('done', e.done, 'partial', e.partial, 'failed', e.failed,
            'superseded', e.superseded, 'skipped', e.skipped),
        status = case
            when e.failed + e.partial + e.superseded = 0 then 'success'
            when e.done + e.partial + e.superseded + e.skipped = 0 then 'error'
            else 'partial' end
    from ended e where r.run_id = e.run_id and r.finished_at is null;
    get diagnostics closed = row_count;
    return closed;
end $$;

-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails. Errors are
-- grouped by code and message. First closes the runs that have nothing queued any more.
--   {run_id, status, slot, trigger, started_at, plan, counts: {…}, in_flight, records,
--    errors: [{code, message, count}], results: [first p_limit results], results_total,
--    mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create function public.jobs_report(p_run_id uuid, p_limit integer) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array(select l.lane from jobs.known_lanes() l where l.is_mail);
begin
    perform public.jobs_close_runs();
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select error ->> 'code' as code, error ->> 'message' as message, count(*) as count
                from jobs.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1, 2 order by 3 desc, 1, 2 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select result, item_id from jobs.job_items
                where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                order by item_id limit p_limit) t),
            'results_total', s.results_total,
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select coalesce(result ->> 'reason', result ->> 'mail') as reason, count(*) as n
                    from jobs.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped' group by 1) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select error ->> 'code' as code, error ->> 'message' as message, count(*) as count
                    from jobs.job_items
                    where run_id = p_run_id and lane = m.lane and error is not null and status in ('queued', 'failed')
                    group by 1, 2 order by 3 desc, 1, 2 limit 20) e))), '{}')
                from (select lane, count(*) as planned,
                        count(*) filter (where status = 'queued') as queued,
                        count(*) filter (where status = 'done') as sent,
                        count(*) filter (where status = 'skipped') as skipped,
                        count(*) filter (where status = 'failed') as failed,
                        count(*) filter (where status = 'failed' or (status = 'queued' and error is not null)) as erred
                      from jobs.job_items where run_id = p_run_id and lane = any (mail_lanes) group by lane) m))
        from jobs.job_runs r, (
            select jsonb_build_object(
                    'planned', count(*) filter (where data),
                    'queued', count(*) filter (where data and status = 'queued'),
                    'done', count(*) filter (where data and status = 'done'),
                    'partial', count(*) filter (where data and status = 'partial'),
                    'failed', count(*) filter (where data and status = 'failed'),
                    'superseded', count(*) filter (where data and status = 'superseded'),
                    -- Failed altogether or in part, or waiting for another attempt: what `errors` counts.
                    'erred', count(*) filter (where data and (status = 'failed'
                        or (status in ('partial', 'queued') and error is not null))))
                    as counts,
                count(*) filter (where status = 'queued' and leased_until > clock_timestamp()) as in_flight,
                coalesce(sum((result ->> 'records')::bigint), 0) as records,
                count(*) filter (where data and status in ('done', 'partial', 'failed')) as results_total
            from (select i.*, i.lane <> all (mail_lanes) as data from jobs.job_items i where i.run_id = p_run_id) i) s
        where r.run_id = p_run_id);
end $$;

-- Whether anything of a run is still queued, and whether a living worker holds any of it: what a report would wait
-- for. Reads indexes that hold nothing but queued items, so it may be asked as often as one likes.
--   {queued, in_flight}
create function public.jobs_run_waits(p_run_id uuid) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select jsonb_build_object(
        'queued', exists (select from jobs.job_items i where i.run_id = p_run_id and i.status = 'queued'),
        'in_flight', exists (select from jobs.job_items i
            where i.run_id = p_run_id and i.status = 'queued'
                and i.lease_id is not null and i.leased_until > clock_timestamp()));
$$;

-- How much waits in each lane that has anything queued, for drain-queue and the operator.
--   {lane: {queued, in_flight, oldest}}
create function public.jobs_lanes() returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_object_agg(lane, jsonb_build_object(
        'queued', queued, 'in_flight', in_flight, 'oldest', oldest)), '{}')
    from (select lane, count(*) as queued, count(*) filter (where leased_until > clock_timestamp()) as in_flight,
            min(created_at) as oldest
        from jobs.job_items where status = 'queued' group by lane) l;
$$;

-- Writes one row of sync_logs for a whole call. A repeated call with the same p_id writes nothing.
create function public.jobs_log(
    p_id uuid, p_sync_type text, p_status text, p_records integer, p_error text, p_metadata jsonb
) returns void language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into public.sync_logs (id, user_id, provider, sync_type, status, records_synced, error_message, metadata)
    values (p_id, null, 'jobs', p_sync_type, p_status, p_records, p_error, p_metadata)
    on conflict (id) do nothing;
$$;

-- One chain of drain-queue invocations at a time.

create table jobs.job_chain (                  -- at most one row
    id boolean primary key check (id),
    chain_id uuid not null,
    held_until timestamptz not null
);

-- Takes the chain for p_seconds, where nobody has it or its time is over. The holder calls again, with its own id, to
-- keep it. Answers whether p_chain has it.
create function public.jobs_hold_chain(p_chain uuid, p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.job_chain as c (id, chain_id, held_until)
    values (true, p_chain, clock_timestamp() + make_interval(secs => p_seconds))
    on conflict (id) do update set chain_id = excluded.chain_id, held_until = excluded.held_until
    where c.chain_id = p_chain or c.held_until < clock_timestamp();
    return found;
end $$;

-- A provider's rate limit holds for the account, not for an instance: instances lease turns from here.

create table jobs.job_paces (
    name text primary key,                       -- stripe, resend
    next_at timestamptz not null                 -- the first turn that nobody has
);

-- Leases p_count turns, p_interval_ms apart. Answers in how many milliseconds the first one comes. A repeated call
-- leases others: nobody takes the first ones, and nothing is asked too fast.
create function public.jobs_lease_turns(p_name text, p_count integer, p_interval_ms integer) returns bigint
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    first_turn timestamptz;
begin
    insert into jobs.job_paces as p (name, next_at)
    values (p_name, clock_timestamp() + make_interval(secs => p_count * p_interval_ms / 1000.0))
    on conflict (name) do update
        -- What an earlier lease left far ahead (a changed clock) is not waited for.
        set next_at = least(greatest(p.next_at, clock_timestamp()), clock_timestamp() + interval '2 minutes')
            + make_interval(secs => p_count * p_interval_ms / 1000.0)
    returning p.next_at - make_interval(secs => p_count * p_interval_ms / 1000.0) into first_turn;
    return greatest(0, ceil(extract(epoch from first_turn - clock_timestamp()) * 1000))::bigint;
end $$;

-- The provider has said that it is asked too fast: no turn comes before this is over.
create function public.jobs_hold_turns(p_name text, p_wait_ms integer) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into jobs.job_paces as p (name, next_at)
    values (p_name, clock_timestamp() + make_interval(secs => p_wait_ms / 1000.0))
    on conflict (name) do update set next_at = greatest(p.next_at, excluded.next_at);
$$;

-- What a signed-in user may write, made safe to read. Amounts, dates and texts of ca_records, user_onboarding_data and
-- integration_tokens are read here and nowhere else: nothing outside of this file casts or parses them.
--
-- A value that nobody can work with is null here, and a *flaw* names it: unreadable_amount, too_many_rows,
-- too_many_activities, unreadable_creation_date. Whoever has a flaw is left out of what depends on it, by name; the
-- others never notice. The bounds are far above what a business writes: 50,000 rows in two years, 100 activities.

-- A date of a life in business, or null: infinity, years before Christ and years of five digits are none.
create function jobs.readable_date(p_date date) returns date
language sql immutable as $$
    select case when p_date between '1900-01-01' and '2100-12-31' then p_date end;
$$;

-- A text that is stored for us to use as it is (a token, an account, a domain), or null where it is too long to be one.
-- Never cut: a part of an identifier is another identifier.
create function jobs.readable_identifier(p_text text) returns text
language sql immutable as $$
    select case when octet_length(p_text) <= 8192 then p_text end;
$$;

-- Those of these users whose typed and imported turnover above zero reaches a floor of a year: p_floors {year: cents},
-- in proportion to the days of a creation year. What is above zero alone is never less than what counts: this lets
-- through too many, and loses nobody. Who has an amount that is no number is among them, to be told.
-- The users come in their order. p_scattered: they are few among many; else the index is read in one piece.
create function jobs.users_above(p_users uuid[], p_scattered boolean, p_floors jsonb) returns uuid[]
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    floors constant jsonb := p_floors;
    first_user constant uuid := p_users[1];
    last_user constant uuid := p_users[cardinality(p_users)];
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
begin
    return (
        with sums as materialized (
            select r.user_id, r.year, sum(r.amount_eur) as amount
            from public.ca_records r
            where r.user_id between first_user and last_user and r.year between first_year and last_year
                and r.amount_eur > 0                             -- NaN is above every number
                and (not p_scattered or r.user_id = any (p_users))
            group by 1, 2
        ), dated as (
            select s.*, jobs.readable_date(o.company_creation_date) as created
            from sums s left join public.user_onboarding_data o on o.user_id = s.user_id
        )
        select array_agg(distinct d.user_id order by d.user_id) from dated d
        where d.amount * 100 >= (floors ->> d.year::text)::bigint * case
            when d.year = extract(year from d.created) then (make_date(d.year, 12, 31) - d.created + 1) / 366.0
            else 1 end);
end $$;

-- The books of these users in some years, in cents: added up by year and activity, typed and imported apart, and months
-- that have both once more by month. One row for each user who has any; with a flaw there are no years.
--   years: [{year, sums: [{activity, typed, imported}], mixed: [{month, activity, typed, imported}]}]
create function jobs.books(p_users uuid[], p_first_year integer, p_last_year integer)
returns table (user_id uuid, created date, years jsonb, flaw text)
language sql stable set search_path = '' as $$
    with cells as materialized (
        select r.user_id, r.year, r.month, left(r.activity_type, 80) as activity, count(*) as entries,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported,
            bool_or(r.source <> 'auto_sync') as is_typed, bool_or(r.source = 'auto_sync') as is_imported
        from public.ca_records r
        where r.user_id = any (p_users) and r.year between p_first_year and p_last_year
        group by 1, 2, 3, 4
    ), owners as materialized (
        select c.user_id, jobs.readable_date(o.company_creation_date) as created,
            case
                when bool_or('NaN' in (c.typed, c.imported)) then 'unreadable_amount'
                when sum(c.entries) > 50000 then 'too_many_rows'
                when count(distinct c.activity) > 100 then 'too_many_activities'
                when o.company_creation_date is not null and jobs.readable_date(o.company_creation_date) is null
                    then 'unreadable_creation_date'
            end as flaw
        from cells c left join public.user_onboarding_data o on o.user_id = c.user_id
        group by c.user_id, o.company_creation_date
    ), sound as materialized (
        select c.user_id, c.year, c.month, c.activity, c.typed::bigint as typed, c.imported::bigint as imported,
            bool_or(c.is_typed) over w and bool_or(c.is_imported) over w as is_mixed
        from cells c join owners n on n.user_id = c.user_id and n.flaw is null
        window w as (partition by c.user_id, c.year, c.month)
    ), sums as (
        select s.user_id, s.year, s.activity, sum(s.typed)::bigint as typed, sum(s.imported)::bigint as imported
        from sound s group by 1, 2, 3
    ), mixed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('month', s.month, 'activity', s.activity,
            'typed', s.typed, 'imported', s.imported) order by s.month, s.activity) as months
        from sound s where s.is_mixed group by 1, 2
    ), years as (
        select a.user_id, a.year, jsonb_build_object('year', a.year, 'sums', jsonb_agg(jsonb_build_object(
            'activity', a.activity, 'typed', a.typed, 'imported', a.imported) order by a.activity),
            'mixed', coalesce((select m.months from mixed m where m.user_id = a.user_id and m.year = a.year), '[]')) as year_books
        from sums a group by 1, 2
    ), books as (
        select y.user_id, jsonb_agg(y.year_books order by y.year) as years from years y group by 1
    )
    select n.user_id, n.created, b.years, n.flaw from owners n left join books b using (user_id);
$$;

-- What stands in a user's books for a month, in cents; amounts are null with a flaw.
create function jobs.month_books(p_user_id uuid, p_month date)
returns table (recorded bigint, typed bigint, entries integer, flaw text)
language sql stable set search_path = '' as $$
    with sums as (
        select coalesce(sum(r.amount_eur), 0) * 100 as recorded,
            sum(r.amount_eur) filter (where r.source <> 'auto_sync') * 100 as typed, count(*) as entries
        from (select * from public.ca_records a
              where a.user_id = p_user_id and a.year = extract(year from p_month) and a.month = extract(month from p_month)
              limit 50001) r
    ), judged as (
        select s.*, case when s.recorded = 'NaN' then 'unreadable_amount'
            when s.entries > 50000 then 'too_many_rows' end as flaw from sums s
    )
    select case when j.flaw is null then j.recorded::bigint end, case when j.flaw is null then j.typed::bigint end,
        j.entries::integer, j.flaw
    from judged j;
$$;

-- Imported turnover: the movements read from Stripe and Shopify, what is known of each integration, and the
-- monthly totals written into ca_records from them.
--
-- Proofs, cursors, leases and ledgers live here, where only our own functions reach them: what a user may
-- write (integration_tokens, ca_records) is never trusted for a decision.
--
-- Months and days are Europe/Paris. Amounts are minor units (cents), signed. Only EUR is counted.

-- One money movement. A refund or a lost dispute is its own negative row on its own date.
create table jobs.integration_transactions (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    external_id text not null,                   -- txn_… (Stripe), the number of the tender or dispute (Shopify)
    account text not null,                       -- acct_… or name.myshopify.com, as proven
    kind text not null,
    occurred_at timestamptz not null,
    paris_month date not null generated always as
        (date_trunc('month', occurred_at at time zone 'Europe/Paris')::date) stored,
    amount_minor bigint not null,
    currency text not null check (currency = upper(currency)),
    refs text[] not null default '{}',           -- ch_…, pi_…, re_…: the payment behind it, as both providers name
                                                 -- it; gid://shopify/Order/…: the order it belongs to
    excluded text,                               -- why it is kept but never counted (gift_card, …)
    first_seen_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, provider, external_id)
);
create index integration_transactions_month on jobs.integration_transactions (user_id, paris_month);

-- What is known of a user's integration. Outlives a reconnection, so that its history and activity do too.
create table jobs.integration_state (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    account text,                                -- proven: the stored token opens exactly this account or shop
    proof text,                                  -- fingerprint of what was proven; another token is another proof
    proven_at timestamptz,
    activity text,                               -- frozen at the first sync unless integration_tokens says otherwise
    first_month date,                            -- Paris month of the first sync: earlier months are the user's own
    counted datemultirange not null default '{}',-- days whose movements are written into ca_records
    covered tstzmultirange not null default '{}',-- what was read from the provider to its end
    last_success_at timestamptz,
    last_success_to timestamptz,                 -- end of the last window that was read to its end
    failures integer not null default 0,         -- runs in a row that ended in an error
    failed_at timestamptz,
    failure jsonb,                               -- {code, message} of the last one
    refusals integer not null default 0,         -- how often in a row the connection itself was refused
    trouble_mails integer not null default 0,    -- how often the user was told since it was good
    trouble_mailed_at timestamptz,
    token_expires_at timestamptz,
    refresh_token_expires_at timestamptz,
    refresh_lease uuid,                          -- one token refresh at a time
    refresh_lease_until timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, provider)
);

-- What we wrote into ca_records, and what we would write: a row the user has edited since is theirs (locked).
create table jobs.auto_sync_totals (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date not null,
    activity text not null,
    record_id uuid,
    written_eur numeric(12, 2),                  -- what ca_records holds from us; null when it never did
    computed_eur numeric(12, 2) not null,        -- what the movements say
    locked_at timestamptz,                       -- since when the row is the user's
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, month, activity)
);

-- Whether a movement is money that its month's figure lacks, because it is not known in euros. Without a setting of its
-- own, so that it becomes part of the query that uses it. It names no table and no function.
create function jobs.is_uncounted(t jobs.integration_transactions) returns boolean
language sql immutable as $$
    select t.excluded = 'unresolved_currency' or (t.excluded is null and t.currency <> 'EUR');
$$;

-- The account or shop that the user says it is.
create function jobs.claimed_account(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end;
$$;

-- What a proof is a proof of: this token for this account. Another token or account has to be proven anew.
create function jobs.token_fingerprint(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(t.stripe_account_id, '') || '|' || coalesce(t.shop_domain, '') || '|' || t.access_token,
        'UTF8')), 'hex');
$$;

-- The activity that an integration's money belongs to, where nothing is frozen yet: goods for a shop; for
-- Stripe what the user most often typed by hand, else services.
create function jobs.infer_activity(p_user_id uuid, p_provider text) returns text
language sql stable set search_path = '' as $$
    select case when p_provider = 'shopify' then 'Vente de marchandises' else coalesce((
        select case r.activity_type when 'services' then 'Prestation de services' else r.activity_type end as activity
        from public.ca_records r
        where r.user_id = p_user_id and r.source = 'manual'
            and r.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale', 'services')
        group by 1 order by count(*) desc, 1 limit 1), 'Prestation de services') end;
$$;

-- Planning of syncs: which integrations and which users' months a run works on.

-- The integrations a run could work on, and why it does not work on some of them (reason null: due).
create function jobs.sync_candidates(p_user_id uuid, p_as_of timestamptz)
returns table (integration_id uuid, user_id uuid, provider text, reason text)
language sql stable set search_path = '' as $$
    select t.id, t.user_id, t.provider,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.banned_until > p_as_of then 'user_banned'
            when t.is_active is not true then 'inactive'
        end
    from public.integration_tokens t join auth.users u on u.id = t.user_id
    where p_user_id is null or t.user_id = p_user_id;
$$;

-- What a new item inherits from the items that it supersedes: attempts, last error, stored movements, days to look
-- back. No row for a subject whose items have nothing of that.
create function jobs.inherited_progress(p_items bigint[], p_payload jsonb, p_as_of timestamptz)
returns table (subject uuid, attempts integer, error jsonb, progress jsonb, payload jsonb)
language sql stable as $$
    with old as materialized (
        select i.subject, i.attempts, i.error, i.progress, d.days
        from jobs.job_items i
        cross join lateral (select case when i.payload ->> 'days' is not null then (i.payload ->> 'days')::integer
            + (p_as_of at time zone 'Europe/Paris')::date - (
                select (r.as_of at time zone 'Europe/Paris')::date from jobs.job_runs r where r.run_id = i.run_id)
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
create function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean, p_now timestamptz
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
        insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress, created_at)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), p_now
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join jobs.inherited_progress(likely, p_payload, p_as_of) t using (subject)
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
        select * from jobs.inherited_progress(needless, p_payload, p_as_of)
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

-- What a worker needs to read from a provider: tokens as stored, their proof, their renewal.

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to}]
create function public.integration_context(p_items bigint[]) returns jsonb
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
        'last_success_to', case when s.account = jobs.claimed_account(t) then s.last_success_to end) order by i.item_id, t.provider), '[]')
    from jobs.job_items i
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select * from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select * from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where i.item_id = any (p_items) and t.is_active;
$$;

-- Notes that the stored token opens exactly p_account.
create function public.integration_prove(p_integration_id uuid, p_access_token text, p_account text) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state as s (user_id, provider, account, proof, proven_at)
    values (t.user_id, t.provider, p_account, jobs.token_fingerprint(t), clock_timestamp())
    on conflict (user_id, provider) do update set
        account = excluded.account, proof = excluded.proof, proven_at = excluded.proven_at,
        -- Another account: nothing of it has been read.
        covered = case when s.account is distinct from excluded.account then '{}' else s.covered end,
        last_success_to = case when s.account is distinct from excluded.account then null else s.last_success_to end,
        token_expires_at = case when s.account is not distinct from excluded.account then s.token_expires_at end,
        refresh_token_expires_at =
            case when s.account is not distinct from excluded.account then s.refresh_token_expires_at end,
        updated_at = clock_timestamp();
    return jsonb_build_object('proven', true);
end $$;

-- Lets one holder at a time refresh a shop's token. A repeated call by the holder keeps the lease.
--   {acquired, access_token, refresh_token}: the pair as stored now, which another holder may just have renewed
create function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null then
        return jsonb_build_object('acquired', false, 'gone', true);
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder and s.refresh_lease_until > clock_timestamp() then
        return jsonb_build_object('acquired', false);
    end if;
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token, 'refresh_token', t.refresh_token);
end $$;

-- Stores the renewed pair (encrypted) before anybody uses it. Only the holder may; p_old_access_token guards
-- against a reconnection in between. A proof of the old token is one of the new token: it is the same grant.
create function public.integration_refresh_store(
    p_integration_id uuid, p_holder uuid, p_old_access_token text, p_access_token text, p_refresh_token text,
    p_expires_at timestamptz, p_refresh_expires_at timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    was_proven boolean;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder then
        return jsonb_build_object('stored', false, 'reason', 'lost');
    end if;
    select * into t from public.integration_tokens where id = p_integration_id for update;
    if t.access_token = p_access_token then
        return jsonb_build_object('stored', true);   -- a repeated call
    end if;
    if t.access_token <> p_old_access_token then
        return jsonb_build_object('stored', false, 'reason', 'reconnected');
    end if;
    was_proven := s.proof = jobs.token_fingerprint(t);
    update public.integration_tokens
    set access_token = p_access_token, refresh_token = p_refresh_token, updated_at = clock_timestamp()
    where id = p_integration_id returning * into t;
    update jobs.integration_state
    set proof = case when was_proven then jobs.token_fingerprint(t) else proof end,
        token_expires_at = p_expires_at, refresh_token_expires_at = p_refresh_expires_at,
        updated_at = clock_timestamp()
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('stored', true);
end $$;

-- Ends a refresh; the next holder may start.
create function public.integration_refresh_end(p_integration_id uuid, p_holder uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    update jobs.integration_state s set refresh_lease = null, refresh_lease_until = null
    from public.integration_tokens t
    where t.id = p_integration_id and s.user_id = t.user_id and s.provider = t.provider and s.refresh_lease = p_holder;
$$;

-- Which movements count, what a month's figure is worth, and the totals in ca_records that follow from them.

-- A user's Shopify movements of some months that Stripe reports, too. A movement's payment is known by its own
-- references, or for a refund that names none by those of its order's payments. Where such an order was also paid
-- in another way (cash), a refund is Stripe's only where Stripe has one of the same amount, each of them once.
-- p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable set search_path = '' set enable_nestloop = off as $$
    with shop as materialized (
        select t.external_id, t.paris_month, t.amount_minor, t.currency, t.occurred_at, t.refs, t.excluded,
            exists (select from unnest(t.refs) r where r !~ '^gid:') as named
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), doubted as materialized (
        select * from shop where paris_month = any (p_months) and currency = 'EUR' and excluded is null
    ), paid as materialized (
        select t.external_id, t.amount_minor, r as ref
        from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR' and t.excluded is null
            and (not p_written or s.counted @> t.paris_month)
            and exists (select from doubted)
    ), orders as materialized (   -- the payments of each order, by the names that Stripe may know
        select o as shop_order, array_agg(distinct n) filter (where n is not null) as names,
            bool_or(not s.named and s.excluded is null) as mixed
        from shop s cross join unnest(s.refs) o left join unnest(s.refs) n on n !~ '^gid:'
        where o ~ '^gid:' and s.amount_minor > 0
        group by o
    ), nameless as materialized (
        select d.external_id, d.amount_minor, o.shop_order, o.names, o.mixed,
            row_number() over (partition by o.shop_order, d.amount_minor order by d.occurred_at, d.external_id) as nth
        from doubted d cross join unnest(d.refs) g join orders o on o.shop_order = g
        where not d.named and d.amount_minor < 0 and o.names is not null
    )
    select d.external_id
    from doubted d cross join unnest(d.refs) r join paid p on p.ref = r and sign(p.amount_minor) = sign(d.amount_minor)
    where d.named
    union
    select n.external_id
    from nameless n cross join unnest(n.names) r join paid p on p.ref = r and p.amount_minor < 0
    where not n.mixed or p.amount_minor = n.amount_minor
    group by n.external_id, n.mixed, n.nth
    having not n.mixed or n.nth <= count(distinct p.external_id);
$$;

-- A user's countable movements of some months, one row for each movement: EUR, not excluded, and a payment that
-- Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint)
language sql stable set search_path = '' set enable_nestloop = off as $$
    select t.provider, t.paris_month, s.activity, t.amount_minor
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.currency = 'EUR' and t.excluded is null
        and (not p_written or s.counted @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
$$;

-- Other months in which a user's Shopify rows may now count or no longer count: those of the same payments and
-- orders as the rows of these months. None where only one provider can report: then nothing that it reports changes
-- what another month's rows count for.
create function jobs.months_reported_twice(p_user_id uuid, p_months date[]) returns date[]
language sql stable set search_path = '' set enable_nestloop = off as $$
    with named as materialized (
        select t.provider, t.external_id, t.paris_month, r as ref
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'shopify')
            and (exists (select from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = 'stripe')
                or exists (select from jobs.integration_state x
                    where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null))
    ), touched as (   -- the shop's side of what Stripe reports, and the shop's own
        select s.external_id from named s where s.provider = 'shopify' and s.paris_month = any (p_months)
        union
        select s.external_id from named p join named s on s.ref = p.ref and s.provider = 'shopify'
        where p.provider = 'stripe' and p.paris_month = any (p_months)
    )
    select coalesce(array_agg(distinct o.paris_month), '{}')
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up
-- to now), partial (something of it was never read, is not in euros, or may be reported twice).
create function jobs.month_status(p_user_id uuid, p_month date, p_as_of timestamptz) returns text
language sql stable set search_path = '' as $$
    with bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as (   -- an active integration without a state was never read
        select coalesce(s.covered, '{}') as covered
        from public.integration_tokens t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.user_id = p_user_id and t.is_active
    )
    select case
        when exists (select from jobs.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month and jobs.is_uncounted(t))
            then 'partial'
        -- A refund of an order whose payment was never read: Stripe may report it, too.
        when exists (select from jobs.integration_state x
                where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null)
            and exists (
                select o from jobs.integration_transactions t, unnest(t.refs) o
                where t.user_id = p_user_id and t.provider = 'shopify' and t.paris_month = p_month
                    and t.amount_minor < 0 and t.excluded is null
                    and not exists (select from unnest(t.refs) r where r !~ '^gid:')
                except   -- not by loops: see movements_reported_twice
                select o from jobs.integration_transactions p, unnest(p.refs) o
                where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0)
            then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end
    from bounds b left join sources s on true
    group by b.starts, b.ends;
$$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    wanted jsonb;       -- [{month, activity, amount, metadata}]
    differing jsonb;
begin
    -- 1. Rows that are no longer as we wrote them: theirs.
    update jobs.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));

    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select month, activity, (sum(minor) / 100)::numeric(12, 2) as amount, jsonb_build_object(
            'status', jobs.month_status(p_user_id, month, p_as_of),
            'sources', jsonb_object_agg(provider, (minor / 100)::numeric(12, 2))) as metadata
        from (select c.month, c.activity, c.provider, sum(c.amount_minor)::numeric as minor
              from jobs.countable_movements(p_user_id, p_months, true) c
              where c.activity is not null
              group by 1, 2, 3) t
        group by month, activity) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    delete from jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    update jobs.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from jobs.auto_sync_totals k left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (p_months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update jobs.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and l.written_eur is distinct from w.amount;

    -- 4. New rows. One that is already there under our key was not written by us: theirs. And where a row of the
    -- month that the user has taken over stands for money whose activity has changed since, that money is counted
    -- already.
    with taken as (
        select distinct l.month from jobs.auto_sync_totals l
        where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
            and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
                where w.month = l.month and w.activity = l.activity)
    ), missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
        where not exists (select from jobs.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m where m.month not in (select month from taken)
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;

-- Mails: the outbox, which is the permanent ledger, too.
--
-- A mail is planned (a delivery, an item, a message: one transaction), then sealed with others into a batch just
-- before the batch's first request, then settled. A sealed batch is only ever sent again as sealed, under its own
-- key; after a definite refusal it is released or split into child batches. A delivery's dedupe_key is unique for
-- ever: nothing that is planned twice is sent twice.

create table jobs.email_batches (
    batch_id uuid primary key,                   -- with a prefix: the Idempotency-Key of its requests
    kind text not null,
    state text not null default 'sealed' check (state in ('sealed', 'released', 'split', 'settled')),
    parent_id uuid,                              -- split off that one, which was refused
    sealed_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz
);

create table jobs.email_deliveries (
    delivery_id bigint generated always as identity primary key,
    dedupe_key text not null unique,
    kind text not null check (jobs.lane_of_mail(kind) is not null),
    user_id uuid references auth.users (id) on delete set null,
    recipient uuid,                              -- the user, also when they are gone: signed into the mail's links;
                                                 -- null: the operator, whose address is among the facts
    run_id uuid not null,                        -- outlives its run
    item_id bigint,                              -- since it was claimed
    facts jsonb not null default '{}',           -- what the mail says; complete and final once sealed
    address text,                                -- since it was sealed
    digest text,                                 -- of the mail as rendered when it was sealed
    batch_id uuid references jobs.email_batches (batch_id),
    position integer,                            -- within the batch: its payload has an order
    status text not null default 'planned'
        check (status in ('planned', 'sealed', 'sent', 'skipped', 'expired', 'refused', 'failed', 'unknown')),
    reason text,                                 -- why it was not sent
    provider_id text,                            -- as the mail service names it
    feedback text,                               -- bounced, complained
    planned_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,                      -- not sent from then on
    sealed_at timestamptz,
    settled_at timestamptz
);
create index email_deliveries_planned on jobs.email_deliveries (run_id, user_id) where status = 'planned';
create index email_deliveries_batch on jobs.email_deliveries (batch_id) where status = 'sealed';
create index email_deliveries_user on jobs.email_deliveries (user_id);
create index email_deliveries_provider on jobs.email_deliveries (provider_id) where provider_id is not null;
create index email_deliveries_personal on jobs.email_deliveries (settled_at) where address is not null or facts <> '{}';
create index email_deliveries_gone on jobs.email_deliveries (delivery_id)
    where user_id is null and (address is not null or facts <> '{}' or status in ('planned', 'sealed'));
create index email_deliveries_settled on jobs.email_deliveries (settled_at) include (kind, status);

-- Addresses that no mail goes to, as hashes.
create table jobs.email_suppressions (
    address_hash bytea primary key,
    reason text not null check (reason in ('bounced', 'complained')),
    created_at timestamptz not null default clock_timestamp()
);

-- Webhooks of the mail service, by their svix-id: each has its effect once.
create table jobs.email_events (
    event_id text primary key,
    kind text not null,
    received_at timestamptz not null default clock_timestamp()
);
create index email_events_received on jobs.email_events (received_at);

-- Who may get what.

-- Suppressions remember no address.
create function jobs.address_hash(p_address text) returns bytea
language sql stable as $$
    select sha256(convert_to(lower(btrim(p_address)), 'UTF8'));
$$;

-- Everybody, with what keeps mail away (unreachable: null where nothing does, but for a ban) and what they wish. A missing row of
-- email_preferences means: no reminder, everything else. Metadata is the user's own: it only ever keeps an offer
-- away.
create view jobs.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at, u.banned_until,
        nullif(left(split_part(btrim(p.full_name), ' ', 1), 40), '') as first_name,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.is_anonymous then 'anonymous'
            when coalesce(btrim(u.email), '') = '' then 'no_address'
            when u.email_confirmed_at is null then 'unconfirmed'
            when s.address_hash is not null then 'suppressed'
        end as unreachable,
        coalesce(e.monthly_reminder, false) as wants_reminder,
        coalesce(e.monthly_recap_email, true) as wants_recap,
        coalesce(e.marketing_email, true) as wants_marketing,
        coalesce(e.threshold_alert_email, true) as wants_alerts,
        coalesce(u.raw_user_meta_data ->> 'plan', u.raw_user_meta_data ->> 'subscription_plan',
            u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (u.raw_user_meta_data ->> 'is_pro', u.raw_user_meta_data ->> 'is_premium') as says_paid
    from auth.users u
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(u.email::text);

-- Whether somebody refuses a kind of mail, or cannot be reached at p_now; null: they want it.
create function jobs.mail_refusal(p jobs.mail_people, p_kind text, p_now timestamptz) returns text
language sql stable as $$
    select coalesce(case when p.banned_until > p_now and p.unreachable is distinct from 'user_deleted'
        then 'user_banned' else p.unreachable end, case when not case p_kind
        when 'threshold_alert' then p.wants_alerts
        when 'integration_trouble' then true
        when 'monthly_reminder' then p.wants_reminder
        when 'monthly_recap' then p.wants_recap
        when 'marketing_day3' then p.wants_marketing end then 'refused_by_user' end);
$$;

-- Each user's plan: free, pro or premium; null where a subscription has a price that p_prices
-- ({price id: pro | premium}) does not know. Nobody is taken for free for want of knowing.
create function jobs.user_plans(p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, plan text, unknown_price text)
language sql stable as $$
    select u.id,
        case
            when s.status in ('active', 'trialing') then p_prices ->> s.price_id
            when p.trial_ends_at > p_now and p.trial_plan in ('pro', 'premium') then p.trial_plan
            when p.plan in ('pro', 'premium') and p.plan_status = 'active' then p.plan
            else 'free' end,
        case when s.status in ('active', 'trialing') and p_prices ->> s.price_id is null
            then coalesce(s.price_id, '') end
    from auth.users u
    left join public.subscriptions s on s.user_id = u.id
    left join public.user_profiles p on p.id = u.id;
$$;

-- Planning of mails that belong to a day or a month.

-- The J+3 mail: everybody who signed up p_first_day to p_last_day Paris days before p_now, and why not (reason null:
-- gets it). It expires when the last of these days is over.
-- What was planned before is looked up (limit 1): a join would read the whole ledger, which only grows.
create function jobs.marketing_candidates(
    p_user_id uuid, p_prices jsonb, p_first_day integer, p_last_day integer, p_now timestamptz
) returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select p.user_id,
        case
            when d.known then 'already_planned'
            when m.id is not null then 'already_sent'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'free' then 'paid_plan'
            when p.says_paid then 'metadata_says_paid'
            else jobs.mail_refusal(p, 'marketing_day3', p_now) end,
        case when d.known is null and m.id is null then l.unknown_price end,
        'marketing_day3/' || p.user_id, '{}'::jsonb,
        ((p.created_at at time zone 'Europe/Paris')::date + p_last_day + 1)::timestamp at time zone 'Europe/Paris'
    from today t
    join jobs.mail_people p on p.created_at >= (t.day - p_last_day)::timestamp at time zone 'Europe/Paris'
        and p.created_at < (t.day - p_first_day + 1)::timestamp at time zone 'Europe/Paris'
    join jobs.user_plans(p_prices, p_now) l on l.user_id = p.user_id
    left join public.marketing_emails m on m.user_id = p.user_id and m.email_type = 'upgrade_day3'
    left join lateral (select true as known from jobs.email_deliveries k
        where k.dedupe_key = 'marketing_day3/' || p.user_id limit 1) d on true
    where p_user_id is null or p.user_id = p_user_id;
$$;

-- The reminder for p_month (its 1st): everybody who is Premium or wishes to be reminded, and why not.
create function jobs.reminder_candidates(
    p_user_id uuid, p_prices jsonb, p_month date, p_expires_at timestamptz, p_now timestamptz
) returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    select p.user_id,
        case
            when d.known then 'already_planned'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'premium' then 'not_premium'
            else jobs.mail_refusal(p, 'monthly_reminder', p_now) end,
        case when d.known is null then l.unknown_price end,
        'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM'),
        jsonb_build_object('month', to_char(p_month, 'YYYY-MM')),
        p_expires_at
    from jobs.user_plans(p_prices, p_now) l
    join jobs.mail_people p on p.user_id = l.user_id
    left join lateral (select true as known from jobs.email_deliveries k
        where k.dedupe_key = 'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM') limit 1) d on true
    where (p_user_id is null or p.user_id = p_user_id)
        and (l.plan = 'premium' or l.plan is null or p.wants_reminder);
$$;

-- Gives each planned delivery of a run its item and its message: the end of every plan of mails, in its transaction. A
-- run that was closed is open again. p_user_id: only this user's. Answers how many were queued.
create function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at)
            select d.run_id, jobs.lane_of_mail(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id), p_now
            from jobs.email_deliveries d
            where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            on conflict (run_id, kind, subject) do nothing
            returning item_id, lane, kind, version
        )
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from items group by lane, kind, version
    loop
        perform jobs.send_messages(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
        queued := queued + cardinality(batch.items);
    end loop;
    if queued > 0 then
        update jobs.job_runs set status = 'running', finished_at = null
        where run_id = p_run_id and finished_at is not null;
    end if;
    return queued;
end $$;

-- Plans the J+3 mails (p_first_day, p_last_day) or the reminders for a month (p_month, p_expires_at). With p_dry_run
-- nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], candidates?: […]}}
create function public.jobs_plan_mails(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_user_id uuid, p_dry_run boolean, p_prices jsonb,
    p_first_day integer, p_last_day integer, p_month date, p_expires_at timestamptz, p_now timestamptz
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
            select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
            where p_kind = 'marketing_day3'
            union all
            select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
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
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    with c as materialized (
        select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
        where p_kind = 'marketing_day3'
        union all
        select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
        where p_kind = 'monthly_reminder'
    ), planned as (
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
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
    perform jobs.queue_mails(p_run_id, null, p_now);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- How a sender claims mails and keeps them.
--
-- Everything that claims, seals or settles mails first takes one advisory lock (lock_mail_ledger), then accounts,
-- messages, items, each in the order of their ids. Planning takes none of it but its own rows.

-- Claims, seals and settlements of mails, one at a time: a batch is taken over as a whole, whoever held which of
-- its mails. Each takes some milliseconds; the mail service takes ten batches a second at most.
create function jobs.lock_mail_ledger() returns void language sql set search_path = '' as $$
    select pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.mails', 0));
$$;

-- Takes the messages and items of deliveries that this claim holds, and keeps them invisible for p_seconds.
-- Answers the ids of the deliveries that may be written: those held, and those whose item went with its user.
create function jobs.hold_mails(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns bigint[]
language plpgsql set search_path = '' as $$
declare
    held bigint[];
begin
    -- Whoever deletes a user waits for us, or we for them.
    perform from auth.users u
    where u.id in (select d.user_id from jobs.email_deliveries d where d.delivery_id = any (p_deliveries))
    order by u.id for key share;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
    from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and i.lease_id = p_claim and i.status = 'queued'
    order by i.msg_id;
    perform from jobs.job_items i
    where i.item_id in (select d.item_id from jobs.email_deliveries d where d.delivery_id = any (p_deliveries))
        and i.lease_id = p_claim and i.status = 'queued'
    order by i.item_id for update;
    update jobs.job_items i set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
    from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    select array_agg(d.delivery_id) into held
    from jobs.email_deliveries d left join jobs.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and d.status in ('planned', 'sealed')
        and (i.item_id is null or (i.lease_id = p_claim and i.status = 'queued'));
    return coalesce(held, '{}');
end $$;

-- Why a planned mail is not sent after all (null: it is): what may have changed since it was planned.
create function jobs.mail_skip_reason_now(p_kind text, p jobs.mail_people, p_prices jsonb, p_now timestamptz)
returns text language sql stable set search_path = '' as $$
    select case
        when p.user_id is null then 'user_deleted'
        when jobs.mail_refusal(p, p_kind, p_now) is not null then jobs.mail_refusal(p, p_kind, p_now)
        when p_kind = 'marketing_day3' and exists (select from public.marketing_emails m
            where m.user_id = p.user_id and m.email_type = 'upgrade_day3') then 'already_sent'
        when p_kind = 'marketing_day3' and p.says_paid then 'metadata_says_paid'
        when p_prices is not null and p_kind in ('marketing_day3', 'monthly_reminder') then (
            select case when l.plan is null then 'unknown_price'
                when p_kind = 'marketing_day3' and l.plan <> 'free' then 'paid_plan'
                when p_kind = 'monthly_reminder' and l.plan <> 'premium' then 'not_premium' end
            from jobs.user_plans(p_prices, p_now) l where l.user_id = p.user_id) end;
$$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item were seen so far, ask again.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds}], sealed batches in the order of their payload}
create function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_now timestamptz
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
        set lease_id = p_claim, returned_lease = null, leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from jobs.email_deliveries d
        where d.batch_id = batches[1] and d.status = 'sealed' and i.item_id = d.item_id and i.status = 'queued';
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
                    jsonb_build_object('recorded', m.recorded, 'entries', m.entries) else '{}' end end,
            'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw) end,
            'expired', coalesce(d.expires_at <= p_now, false),
            'age_seconds', greatest(0, extract(epoch from p_now - b.sealed_at))::bigint)
            order by d.position, d.delivery_id), '[]')
        from (
            select * from jobs.email_deliveries where delivery_id = any (mine) and status = 'planned' and batches is null
            union all
            -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
            select * from jobs.email_deliveries where batch_id = batches[1] and status = 'sealed'
        ) d
        left join jobs.job_items i on i.item_id = d.item_id
        left join jobs.email_batches b on b.batch_id = d.batch_id
        -- A fence (offset 0): of all people only these.
        left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
        left join lateral jobs.month_books(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')) m
            on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
end $$;

-- Keeps mails invisible for another p_seconds; whether this claim still has all of them.
create function public.mail_extend(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
begin
    perform jobs.lock_mail_ledger();
    return p_deliveries <@ jobs.hold_mails(p_claim, p_deliveries, p_seconds);
end $$;

-- How a sender seals a batch of mails and settles what came of it.

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that hold_mails let pass.
create function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    update jobs.email_deliveries d
    set status = o.status, reason = o.reason, provider_id = o.provider_id, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;

    insert into public.marketing_emails (user_id, email_type, sent_at)
    select d.user_id, 'upgrade_day3', p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'marketing_day3' and d.user_id is not null and o.status in ('sent', 'unknown')
    order by d.user_id
    on conflict (user_id, email_type) do nothing;

    update jobs.job_items i
    set status = case o.status when 'sent' then 'done' when 'skipped' then 'skipped' when 'expired' then 'skipped'
            else 'failed' end,
        result = jsonb_strip_nulls(jsonb_build_object('user_id', i.user_id, 'mail', o.status, 'reason', o.reason)),
        error = case when o.status in ('refused', 'failed', 'unknown')
            then jsonb_build_object('code', coalesce(o.code, o.status), 'message', o.reason) end,
        leased_until = null, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, code text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    for batch in
        select i.lane, array_agg(i.msg_id) as messages
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        join jobs.job_items i on i.item_id = d.item_id
        where i.lease_id = p_claim group by i.lane
    loop
        perform pgmq.delete('jobs_' || batch.lane, batch.messages);
    end loop;

    update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
    where b.state = 'sealed'
        and b.batch_id in (select d.batch_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
            join jobs.email_deliveries d on d.delivery_id = o.delivery_id)
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
end $$;

-- Seals a batch just before its first request: who gets it, what it says. Whoever has refused meanwhile, or has
-- another address, is left out; where nobody is left there is no batch. A repeated call gives the first one's answer.
-- p_mails: [{delivery_id, address, facts, digest}] in the order of the payload.
--   [delivery_id]: those that are in the batch
create function public.mail_seal(
    p_claim uuid, p_batch_id uuid, p_kind text, p_mails jsonb, p_prices jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    unwanted jsonb;
begin
    perform jobs.lock_mail_ledger();
    if not exists (select from jobs.email_batches where batch_id = p_batch_id) then
        held := jobs.hold_mails(p_claim,
            array(select (m ->> 'delivery_id')::bigint from jsonb_array_elements(p_mails) m), 60);
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id, 'status', 'skipped', 'reason', t.reason))
        into unwanted
        from jobs.email_deliveries d
        left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
        cross join lateral (select jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now) as reason) t
        where d.delivery_id = any (held) and d.kind <> 'operator_digest' and t.reason is not null;
        if unwanted is not null then
            perform jobs.write_mail_outcomes(p_claim, unwanted, p_now);
        end if;
        insert into jobs.email_batches (batch_id, kind, sealed_at) values (p_batch_id, p_kind, p_now);
        update jobs.email_deliveries d
        set status = 'sealed', batch_id = p_batch_id, position = m.position, address = m.mail ->> 'address',
            facts = m.mail -> 'facts', digest = m.mail ->> 'digest', sealed_at = p_now
        from jsonb_array_elements(p_mails) with ordinality as m (mail, position)
        where d.delivery_id = (m.mail ->> 'delivery_id')::bigint and d.delivery_id = any (held)
            and d.status = 'planned' and m.mail ->> 'address' = case d.kind when 'operator_digest' then d.facts ->> 'to'
                else (select u.email from auth.users u where u.id = d.user_id) end;
        -- Do not keep an empty batch.
        if not found then
            delete from jobs.email_batches where batch_id = p_batch_id;
        end if;
    end if;
    return (select coalesce(jsonb_agg(d.delivery_id order by d.position), '[]')
        from jobs.email_deliveries d where d.batch_id = p_batch_id and d.status = 'sealed');
end $$;

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown. What another claim holds by now is
-- left to it. p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this
-- call or by an earlier one that it repeats.
create function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    perform jobs.write_mail_outcomes(p_claim, (select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held)), p_now);
    return (select count(*)
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id and d.status = o.status
        left join jobs.job_items i on i.item_id = d.item_id
        where i.item_id is null or i.lease_id = p_claim);
end $$;

-- Gives mails back. With an error it is an attempt, and attempt number p_max_attempts ends them: as unknown where they were sealed, as failed
-- otherwise. p_release_batch: the batch was definitely not accepted; its mails are free for another one.
-- A repeated call finds nothing that is held.
create function public.mail_give_back(
    p_claim uuid, p_deliveries bigint[], p_delay_seconds integer, p_error jsonb, p_release_batch uuid,
    p_max_attempts integer, p_now timestamptz
) returns void language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    ended jsonb;
    batch record;
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim, p_deliveries, 60);
    if p_release_batch is not null then
        update jobs.email_batches set state = 'released', ended_at = clock_timestamp()
        where batch_id = p_release_batch and state = 'sealed'
            and not exists (select from jobs.email_deliveries d
                where d.batch_id = p_release_batch and d.status = 'sealed' and d.delivery_id <> all (held));
        if found then
            update jobs.email_deliveries
            set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
            where delivery_id = any (held) and batch_id = p_release_batch;
        end if;
    end if;
    if p_error is not null then
        update jobs.job_items i set attempts = i.attempts + 1, error = p_error
        from jobs.email_deliveries d where d.delivery_id = any (held) and i.item_id = d.item_id;
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id,
            'status', case d.status when 'sealed' then 'unknown' else 'failed' end,
            'code', p_error ->> 'code', 'reason', p_error ->> 'message'))
        into ended
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.attempts >= p_max_attempts;
        if ended is not null then
            perform jobs.write_mail_outcomes(p_claim, ended, p_now);
        end if;
    end if;
    for batch in
        select i.lane, array_agg(i.item_id order by i.item_id) as items
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.status = 'queued' and i.lease_id = p_claim group by i.lane
    loop
        perform public.jobs_release(batch.lane, batch.items,
            array_fill(p_claim, array[cardinality(batch.items)]), p_delay_seconds);
    end loop;
end $$;

-- Splits a batch that was definitely refused into child batches, each under a key of its own.
-- p_children: [{batch_id, mails: [delivery_id]}]. A repeated call changes nothing. False: another claim has it.
create function public.mail_split(p_claim uuid, p_batch_id uuid, p_children jsonb, p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    members bigint[];
begin
    perform jobs.lock_mail_ledger();
    if exists (select from jobs.email_batches where batch_id = (p_children -> 0 ->> 'batch_id')::uuid) then
        return true;
    end if;
    members := array(select d.delivery_id from jobs.email_deliveries d
        where d.batch_id = p_batch_id and d.status = 'sealed');
    if cardinality(members) = 0 or not (members <@ jobs.hold_mails(p_claim, members, 60)) then
        return false;
    end if;
    insert into jobs.email_batches (batch_id, kind, parent_id, sealed_at)
    select (c ->> 'batch_id')::uuid, b.kind, p_batch_id, p_now
    from jsonb_array_elements(p_children) c, jobs.email_batches b where b.batch_id = p_batch_id;
    update jobs.email_deliveries d set batch_id = c.batch_id, position = m.position
    from jsonb_to_recordset(p_children) as c (batch_id uuid, mails jsonb),
        jsonb_array_elements_text(c.mails) with ordinality as m (delivery_id, position)
    where d.delivery_id = m.delivery_id::bigint and d.batch_id = p_batch_id and d.status = 'sealed';
    update jobs.email_batches set state = 'split', ended_at = clock_timestamp() where batch_id = p_batch_id;
    return true;
end $$;

-- What comes back: refusals by the user, and what the mail service reports.

-- Stops one kind of mail for a user. A missing row stands for "no reminder": making it must not start one.
create function public.mail_unsubscribe(p_user_id uuid, p_kind text) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    if jobs.lane_of_mail(p_kind) is null then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    insert into public.email_preferences as e
        (user_id, monthly_reminder, monthly_recap_email, marketing_email, threshold_alert_email)
    select u.id, false, p_kind <> 'monthly_recap', p_kind <> 'marketing_day3', p_kind <> 'threshold_alert'
    from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set
        monthly_reminder = e.monthly_reminder and p_kind <> 'monthly_reminder',
        monthly_recap_email = case when p_kind = 'monthly_recap' then false else e.monthly_recap_email end,
        marketing_email = e.marketing_email and p_kind <> 'marketing_day3',
        threshold_alert_email = e.threshold_alert_email and p_kind <> 'threshold_alert',
        updated_at = clock_timestamp();
    return found;
end $$;

-- What the mail service reports of a mail, once for each event id. p_suppress (bounced, complained): no mail goes to
-- p_address any more. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_suppress text, p_address text
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.email_events (event_id, kind) values (p_event_id, p_kind) on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_suppress is not null and p_address is not null then
        insert into jobs.email_suppressions (address_hash, reason)
        values (jobs.address_hash(p_address), p_suppress) on conflict (address_hash) do nothing;
    end if;
    if p_suppress is not null and p_provider_id is not null then
        update jobs.email_deliveries set feedback = p_suppress where provider_id = p_provider_id;
    end if;
    return true;
end $$;

-- Mails that follow from the settlement of a sync.

-- Plans the month's recap, where the run wants recaps and the user, too. Call in the settlement's transaction.
create function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
        or not exists (select from jobs.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month) then
        return;
    end if;
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', coalesce(sum(s.gross + s.refunds), 0)::bigint,
        'sources', coalesce(jsonb_agg(jsonb_build_object(
            'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        -- Something else: what is in other currencies and what was not read is told by itself.
        'partial', i.result ? 'unknown_movements' or (coalesce(i.result ->> 'month_status' = 'partial', true)
            and not i.result ? 'uncounted_currencies'
            and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)))
    into facts
    from (select c.provider, coalesce(sum(c.amount_minor) filter (where c.amount_minor > 0), 0) as gross,
            coalesce(sum(c.amount_minor) filter (where c.amount_minor < 0), 0) as refunds
          from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) s;
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- Tells a user whose integration was refused several times in a row to connect it again; once more later, where it still
-- is. Refused: what connecting again mends. Call in the settlement's transaction.
-- p_policy: {refusals: how many in a row, mails: how many until it is good again, pause_days: between two of them,
-- open_days: until such a mail expires}
create function jobs.plan_reconnect_mail(
    p_item_id bigint, p_user_id uuid, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    s jobs.integration_state;
    p jobs.mail_people;
    part record;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    for part in
        select e ->> 'provider' as provider, e -> 'error' ->> 'code' as code, e -> 'error' ->> 'message' as message
        from jsonb_array_elements(p_parts) e
    loop
        if part.code is null then
            update jobs.integration_state k set refusals = 0, trouble_mails = 0
            where k.user_id = p_user_id and k.provider = part.provider and (k.refusals, k.trouble_mails) <> (0, 0);
            continue;
        end if;
        continue when part.code not in ('token_rejected', 'access_revoked', 'refresh_rejected', 'token_expired',
            'not_connected', 'account_mismatch', 'bad_shop_domain', 'unknown_account')
            -- Stripe's would be our own key's.
            and not (part.code = 'missing_scope' and part.provider = 'shopify');
        update jobs.integration_state k set refusals = k.refusals + 1
        where k.user_id = p_user_id and k.provider = part.provider returning * into s;
        select * into p from jobs.mail_people m where m.user_id = p_user_id;
        continue when s.refusals < (p_policy ->> 'refusals')::integer
            or s.trouble_mails >= (p_policy ->> 'mails')::integer
            or s.trouble_mailed_at > p_now - make_interval(days => (p_policy ->> 'pause_days')::integer)
            or jobs.mail_refusal(p, 'integration_trouble', p_now) is not null;
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        values ('integration_trouble/' || p_user_id || '/' || part.provider || '/' || i.item_id, 'integration_trouble',
            p_user_id, p_user_id, i.run_id, jsonb_build_object('provider', part.provider, 'reason', part.message,
                'read_until', s.last_success_to),
            p_now + make_interval(days => (p_policy ->> 'open_days')::integer))
        on conflict (dedupe_key) do nothing;
        update jobs.integration_state k
        set trouble_mails = k.trouble_mails + 1, trouble_mailed_at = p_now
        where k.user_id = p_user_id and k.provider = part.provider;
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end loop;
end $$;

-- Thresholds: the books that they are held against, and the steps that were told.

-- Steps of thresholds that were mailed, or used up by a higher one: each once a year.
create table jobs.threshold_alerts (
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    threshold text not null,
    step smallint not null,
    run_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (user_id, year, threshold, step)
);

-- Users whose imported totals have changed since their thresholds were checked last.
create table jobs.threshold_checks_due (
    user_id uuid primary key references auth.users (id) on delete cascade,
    since timestamptz not null default clock_timestamp()
);

-- Whose books the last check could not read, and why: no alert until they are mended. A check that can read them takes
-- the row away.
create table jobs.unreadable_books (
    user_id uuid primary key references auth.users (id) on delete cascade,
    flaw text not null,
    since timestamptz not null                       -- the instant of the check that found it first
);

-- Alerts that a check has found, until its run is planned: a check finds them page by page, and plans them at once.
create table jobs.found_alerts (
    run_id uuid not null,
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    facts jsonb not null,
    used_up jsonb not null,
    found_at timestamptz not null default clock_timestamp(),
    primary key (run_id, user_id, year)
);
create index found_alerts_age on jobs.found_alerts (found_at);

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor: p_floors {year: cents}, in proportion to the days of a creation year. The year before each comes
-- with it. A user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, held: [{year, threshold, step}], years: [{year, sums, mixed}]}],
--    due: [{user_id, since}], scanned, next}
create function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) - 1 from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    users uuid[];
    above uuid[];
    last_user uuid;
    more boolean;
    flawed uuid[];
    is_cut boolean;
    people jsonb;
begin
    if p_due then
        users := array(select q.user_id from jobs.threshold_checks_due q
            where p_after is null or q.user_id > p_after order by q.user_id limit p_limit);
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    above := coalesce(jobs.users_above(users, p_due, p_floors), '{}');
    if cardinality(above) > most_books then
        above := above[1:most_books];
        last_user := above[most_books];
        more := true;
    end if;

    with held as (
        select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step)) as held
        from jobs.threshold_alerts t
        where t.user_id = any (above) and t.year between first_year and last_year group by 1
    ), people_found as (
        select b.user_id, jsonb_build_object(
            'user_id', b.user_id, 'created', b.created, 'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
            'held', coalesce(h.held, '[]'), 'years', coalesce(b.years, '[]')) as person
        from jobs.books(above, first_year, last_year) b
        -- A fence (offset 0): of all people only these.
        cross join lateral (select * from jobs.mail_people m where m.user_id = b.user_id offset 0) p
        left join held h on h.user_id = b.user_id
    ), measured as materialized (
        select f.user_id, f.person, row_number() over w as n, sum(octet_length(f.person::text)) over w as bytes
        from people_found f window w as (order by f.user_id)
    ), page as (
        select * from measured m where m.n = 1 or m.bytes <= p_bytes
    )
    select jsonb_agg(g.person order by g.user_id), array_agg(g.user_id order by g.user_id),
        array_agg(g.user_id) filter (where g.person ->> 'flaw' is not null), (select count(*) from measured) > count(*)
    into people, above, flawed, is_cut
    from page g;
    if is_cut then
        last_user := above[cardinality(above)];
        more := true;
    end if;

    if p_noted_at is not null then
        insert into jobs.unreadable_books as k (user_id, flaw, since)
        select (p ->> 'user_id')::uuid, p ->> 'flaw', p_noted_at
        from jsonb_array_elements(people) p where p ->> 'flaw' is not null
        on conflict (user_id) do update set flaw = excluded.flaw where k.flaw <> excluded.flaw;
        delete from jobs.unreadable_books k
        where k.user_id = any (users) and k.user_id <= last_user and k.user_id <> all (coalesce(flawed, '{}'));
    end if;
    return jsonb_build_object(
        'people', coalesce(people, '[]'),
        'due', (select coalesce(jsonb_agg(jsonb_build_object('user_id', q.user_id, 'since', q.since) order by q.user_id), '[]')
            from jobs.threshold_checks_due q where p_due and q.user_id = any (users) and q.user_id <= last_user),
        'scanned', (select count(*) from unnest(users) u where u <= last_user),
        'next', case when more then last_user end);
end $$;

-- Notes what one page of a check has found, for the plan of its run. A repeated call notes nothing twice. What a check
-- noted that came to no plan goes a day later.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], …}, used_up: [{threshold, step}]}]
create function public.jobs_note_alerts(p_run_id uuid, p_alerts jsonb) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    delete from jobs.found_alerts where found_at < clock_timestamp() - interval '1 day';
    insert into jobs.found_alerts (run_id, user_id, year, facts, used_up)
    select p_run_id, a.user_id, a.year, a.facts, a.used_up
    from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb)
    join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
    order by a.user_id, a.year
    on conflict (run_id, user_id, year) do nothing;
$$;

-- Plans alerts: each step once for each user and year, in one mail for all that are new. p_append: to a run that is
-- there already (a sync whose totals changed). p_due: the marks that were checked, taken away unless set again since.
-- What was found for the run by jobs_note_alerts is planned, and gone from there.
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}}
create function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_due jsonb, p_outline jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    outline jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
        if opened ->> 'state' <> 'planned' then
            delete from jobs.found_alerts where run_id = p_run_id;
            return opened;
        end if;
    end if;
    with alerts as materialized (
        delete from jobs.found_alerts where run_id = p_run_id returning user_id, year, facts, used_up
    ), marked as (
        insert into jobs.threshold_alerts (user_id, year, threshold, step, run_id)
        select a.user_id, a.year, s.threshold, s.step, p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint)
        order by 1, 2, 3, 4
        on conflict (user_id, year, threshold, step) do nothing
        returning user_id, year, threshold, step
    ), fresh as (   -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, a.facts, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(c.crossing ->> 'threshold' || '-' || (c.crossing ->> 'step'), '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year, a.facts
    )
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    select 'threshold_alert/' || f.user_id || '/' || f.year || '/' || f.steps, 'threshold_alert', f.user_id, f.user_id, p_run_id,
        f.facts || jsonb_build_object('crossings', f.crossings)
    from fresh f
    on conflict (dedupe_key) do nothing;

    planned := jobs.queue_mails(p_run_id, null, p_now);
    delete from jobs.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;

    outline := p_outline || jsonb_build_object('items', planned);
    if not p_append then
        update jobs.job_runs set plan = outline where run_id = p_run_id;
    end if;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- Settling of a sync: movements, coverage, totals, log, result and the mails that follow, in one transaction.

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
create function jobs.store_movements(p_user_id uuid, p_provider text, p_account text, p_movements jsonb)
returns jsonb language sql set search_path = '' as $$
    with incoming as (
        select distinct on (m.external_id) m.*
        from jsonb_to_recordset(p_movements) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            "references" text[], excluded text)
    ), before as (
        select t.external_id, t.paris_month from jobs.integration_transactions t join incoming using (external_id)
        where t.user_id = p_user_id and t.provider = p_provider
    ), stored as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, excluded)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency,
            coalesce(m."references", '{}'), m.excluded
        from incoming m order by m.external_id
        on conflict (user_id, provider, external_id) do update set
            account = excluded.account, kind = excluded.kind, occurred_at = excluded.occurred_at,
            amount_minor = excluded.amount_minor, currency = excluded.currency, refs = excluded.refs,
            excluded = excluded.excluded, updated_at = clock_timestamp()
        where (t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.excluded)
            is distinct from
            (excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency, excluded.refs, excluded.excluded)
        returning t.external_id, t.paris_month
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct b.paris_month) filter (where b.paris_month <> s.paris_month), '[]'))
    from stored s left join before b using (external_id);
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create function jobs.settle_figures(
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
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
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
            count_month boolean)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'));
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);

            -- The activity: what the integration says, else what was frozen, else inferred once.
            new_activity := case
                when t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale')
                    then t.activity_type
                else coalesce(s.activity, jobs.infer_activity(p_user_id, part.provider)) end;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- A replay must not reach into months before the connection: the user has typed those.
                s.first_month := date_trunc('month', greatest(p_as_of, t.connected_at) at time zone 'Europe/Paris')::date;
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
            end if;
            if part.count_month and p_month is not null then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, first_month = s.first_month, counted = s.counted, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.first_month, k.counted) is distinct from (new_activity, s.first_month, s.counted);
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
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            set covered = case when k.account = part.account then k.covered + tstzmultirange(
                    tstzrange((part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz))
                    else k.covered end,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                    then greatest(k.last_success_to, (part."window" ->> 'to')::timestamptz) else k.last_success_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', (part."window" ->> 'from')::timestamptz at time zone 'Europe/Paris'),
                ((part."window" ->> 'to')::timestamptz - interval '1 microsecond') at time zone 'Europe/Paris',
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

    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    select coalesce(jsonb_agg(distinct x.currency::text), '[]') into not_euro
    from jobs.integration_transactions x
    where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
        and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
        and jobs.is_uncounted(x);

    select coalesce(jsonb_object_agg(k.key, k.value), '{}') into unknown
    from jsonb_array_elements(p_parts) e, jsonb_each(coalesce(e -> 'notes' -> 'unknown', '{}')) k;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}';
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
        'unknown_movements', nullif(unknown, '{}')));
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
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message',
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
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

-- Settles or checkpoints a sync item: see settle_figures, whose parameters and answer these are. In the same transaction
-- it plans what follows from a settlement: the mail that asks to connect again (p_reconnect: see plan_reconnect_mail),
-- the month's recap, and, where totals changed, a mark that thresholds are to be checked.
--   {state: settled | stored | lost, result}
create function public.integration_settle(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_reconnect jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
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
    -- Written in this transaction, whose clock began before.
    if exists (select from jobs.auto_sync_totals t
        where t.user_id = p_user_id and t.updated_at >= transaction_timestamp()) then
        insert into jobs.threshold_checks_due as d (user_id) values (p_user_id)
        on conflict (user_id) do update set since = excluded.since;
    end if;
    if p_month is not null then
        perform jobs.plan_recap(p_item_id, p_user_id, p_month, p_as_of, p_parts, p_now);
    end if;
    return settled - 'repeated';
end $$;

-- Tries to sign in to the status page.

-- Tries to sign in with the secret that did not succeed (or not yet).
create table jobs.job_sign_ins (
    try_id uuid primary key,
    tried_at timestamptz not null default clock_timestamp()
);

-- Counts a try before the secret is looked at, so that no number of them at once passes the limit: p_most in
-- p_seconds, for everybody together. A repeated call counts once.
--   {allowed, retry_after: seconds}
create function public.jobs_sign_in(p_try uuid, p_most integer, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '5s' as $$
declare
    span constant interval := make_interval(secs => p_seconds);
    tries integer;
    oldest timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.sign_ins', 0));
    delete from jobs.job_sign_ins where tried_at < clock_timestamp() - span;
    if exists (select from jobs.job_sign_ins where try_id = p_try) then
        return jsonb_build_object('allowed', true);
    end if;
    select count(*), min(tried_at) into tries, oldest from jobs.job_sign_ins;
    if tries >= p_most then
        return jsonb_build_object('allowed', false,
            'retry_after', greatest(1, ceil(extract(epoch from oldest + span - clock_timestamp())))::integer);
    end if;
    insert into jobs.job_sign_ins (try_id) values (p_try);
    return jsonb_build_object('allowed', true);
end $$;

-- The secret was right: this try does not count.
create function public.jobs_signed_in(p_try uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    delete from jobs.job_sign_ins where try_id = p_try;
$$;

-- The status page: everything it shows in one call.
--
-- No address leaves the database whole: mask_address and mask_text cut them here (a…@d…), also out of messages.

-- An address of which only the first letters are left: a…@d…
create function jobs.mask_address(p_address text) returns text
language sql immutable set search_path = '' as $$
    select left(btrim(p_address), 1) || '…@' || left(split_part(btrim(p_address), '@', -1), 1) || '…';
$$;

-- A message in which every address is cut as mask_address does.
create function jobs.mask_text(p_text text) returns text
language sql immutable set search_path = '' as $$
    select left(regexp_replace(p_text,
        '([^\s@<>()",;:]?)[^\s@<>()",;:]*@([^\s@<>()",;:]?)[^\s@<>()",;:]*', '\1…@\2…', 'g'), 500);
$$;

-- Items that failed since p_since and that nothing has made up for: the last word on their subject. Of mails also
-- what became of them (failed, refused, unknown).
create function jobs.open_failures(p_since timestamptz)
returns table (item_id bigint, run_id uuid, lane text, kind text, subject uuid, user_id uuid, payload jsonb, mail text)
language sql stable set search_path = '' as $$
    with failed as materialized (
        select distinct on (i.kind, i.subject) i.*
        from jobs.job_items i where i.status = 'failed' and i.settled_at >= p_since
        order by i.kind, i.subject, i.item_id desc
    )
    select f.item_id, f.run_id, f.lane, f.kind, f.subject, f.user_id, f.payload, f.result ->> 'mail'
    from failed f
    -- For each of them its user's items (limit: a loop, for a join would read all items there are).
    left join lateral (
        select true as made_up from jobs.job_items n
        where n.user_id = f.user_id and n.kind = f.kind and n.subject = f.subject and n.item_id > f.item_id
            and n.status <> 'failed' and (n.kind <> 'sync_month' or n.payload -> 'month' = f.payload -> 'month')
        limit 1) later on true
    where later.made_up is null
        -- Disconnected since: nothing to make up for.
        and (f.kind <> 'sync_integration' or exists (select from public.integration_tokens t
            where t.id = f.subject and t.is_active));
$$;

-- The last p_runs runs for everybody of each task, with what happened to their items by lane and up to ten of those
-- in trouble; and how many runs for single users there were within a day.
--   {runs: [{run_id, task, slot, trigger, as_of, status, started_at, duration_ms, parameters, skipped, records,
--    lanes: [{lane, planned, queued, done, partial, failed, skipped, superseded}],
--    troubles, troubled: [{user_id, address, lane, status, code, message}]}],
--    single: [{task, runs, erred}]}
create function jobs.status_runs(p_tasks text[], p_runs integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with latest as materialized (
        select r.* from unnest(p_tasks) t (task)
        cross join lateral (
            select * from jobs.job_runs j where j.task = t.task and not (j.parameters ? 'user_id')
            order by j.started_at desc limit p_runs) r
    ), ids as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(l.run_id) as ids from latest l
    ), lanes as (
        select i.run_id, i.lane, count(*) as planned,
            count(*) filter (where i.status = 'queued') as queued,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'skipped') as skipped,
            count(*) filter (where i.status = 'superseded') as superseded,
            coalesce(sum((i.result ->> 'records')::bigint), 0) as records
        from jobs.job_items i where i.run_id = any ((select ids from ids)::uuid[]) group by 1, 2
    ), troubled as (
        select i.*, row_number() over (partition by i.run_id order by i.item_id) as n,
            count(*) over (partition by i.run_id) as troubles
        from jobs.job_items i
        where i.run_id = any ((select ids from ids)::uuid[])
            and (i.status in ('failed', 'partial') or (i.status = 'queued' and i.error is not null))
    )
    select jsonb_build_object(
        'runs', (select coalesce(jsonb_agg(jsonb_build_object(
            'run_id', r.run_id, 'task', r.task, 'slot', r.slot, 'trigger', r.trigger, 'as_of', r.as_of,
            'status', r.status, 'started_at', r.started_at,
            'duration_ms', (extract(epoch from r.finished_at - r.started_at) * 1000)::bigint,
            'parameters', r.parameters, 'skipped', coalesce(r.plan -> 'skipped', '{}'),
            'records', (select coalesce(sum(l.records), 0) from lanes l where l.run_id = r.run_id),
            'lanes', (select coalesce(jsonb_agg(to_jsonb(l) - 'run_id' - 'records' order by l.lane), '[]')
                from lanes l where l.run_id = r.run_id),
            'troubles', (select coalesce(max(t.troubles), 0) from troubled t where t.run_id = r.run_id),
            'troubled', (select coalesce(jsonb_agg(jsonb_build_object(
                    'user_id', t.user_id, 'address', jobs.mask_address(u.email), 'lane', t.lane,
                    'status', t.status, 'message', jobs.mask_text(t.error ->> 'message'),
                    -- What was counted in part has no error, but a reason.
                    'code', coalesce(t.error ->> 'code', (select min(k) from jsonb_object_keys(t.result) k
                        where k in ('uncounted_currencies', 'left_alone', 'unknown_movements'))))
                    order by t.item_id), '[]')
                from troubled t left join auth.users u on u.id = t.user_id
                where t.run_id = r.run_id and t.n <= 10))
            order by r.started_at desc), '[]') from latest r),
        'single', (select coalesce(jsonb_agg(s), '[]') from (
            select j.task, count(*) as runs, count(*) filter (where j.status in ('partial', 'error')) as erred
            from jobs.job_runs j
            where j.as_of >= p_now - interval '1 day' and j.parameters ? 'user_id'
            group by 1 order by 1) s));
$$;

-- Each lane that has something: waiting, of these in flight and put off after a failure; failed since p_failed_since and
-- not made up for; of mails also how many ended without anybody knowing.
create function jobs.status_queue(p_failed_since timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with waiting as (
        select i.lane, count(*) as waiting, count(*) filter (where i.leased_until > clock_timestamp()) as in_flight,
            count(*) filter (where i.error is not null) as put_off, min(i.created_at) as oldest
        from jobs.job_items i where i.status = 'queued' group by 1
    ), failed as (
        select f.lane, count(*) filter (where f.mail is distinct from 'unknown') as failed,
            count(*) filter (where f.mail = 'unknown') as unknown
        from jobs.open_failures(p_failed_since) f group by 1
    )
    select coalesce(jsonb_agg(jsonb_build_object('lane', lane,
        'waiting', coalesce(w.waiting, 0), 'in_flight', coalesce(w.in_flight, 0), 'put_off', coalesce(w.put_off, 0),
        'oldest', w.oldest, 'failed', coalesce(f.failed, 0), 'unknown', coalesce(f.unknown, 0))), '[]')
    from waiting w full join failed f using (lane);
$$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create function jobs.status_mails(p_days integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with since as (
        select ((p_now at time zone 'Europe/Paris')::date - p_days + 1)::timestamp at time zone 'Europe/Paris' as at
    ), settled as materialized (
        select d.kind, (d.settled_at at time zone 'Europe/Paris')::date as day, d.status, d.reason, d.feedback
        from jobs.email_deliveries d where d.settled_at >= (select at from since)
    )
    select jsonb_build_object(
        'days', (select coalesce(jsonb_agg(m order by m.day, m.kind), '[]') from (
            select s.kind, s.day, count(*) filter (where s.status = 'sent') as sent,
                count(*) filter (where s.status in ('failed', 'refused')) as failed,
                count(*) filter (where s.status = 'unknown') as unknown,
                count(*) filter (where s.status in ('skipped', 'expired') and s.reason is distinct from 'suppressed') as skipped,
                count(*) filter (where s.status = 'skipped' and s.reason = 'suppressed') as suppressed,
                count(*) filter (where s.feedback is not null) as returned
            from settled s group by 1, 2) m),
        'reasons', (select coalesce(jsonb_agg(r), '[]') from (
            select s.kind, s.status, jobs.mask_text(coalesce(s.reason, s.status)) as reason, count(*) as count
            from settled s where s.status <> 'sent' group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 12) r),
        'suppressed_addresses', (select count(*) from jobs.email_suppressions));
$$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
create function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
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
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', b.failure ->> 'code', 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        'shopify_renewed', (select max(s.token_expires_at) > p_now
            from jobs.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (select coalesce(jsonb_agg(jsonb_build_object('at', r.at, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, jobs.mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata, '$.answer.**.problems[*] ? (@.code == "own_credentials")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2) r));
$$;

-- Everything that the status page shows. Changes nothing.
-- p_functions: what this version calls (those that are missing are answered); slots claimed since p_since; for
-- p_failed_since and p_late_before see status_queue and status_integrations.
--   {missing: [name], slots: [{task, slot}], first_claims: {task: instant}, runs, queue, mails, integrations}
create function public.jobs_status(
    p_functions text[], p_tasks text[], p_runs integer, p_days integer, p_broken integer, p_since timestamptz,
    p_failed_since timestamptz, p_late_before timestamptz, p_now timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$    -- compiling takes longer than asking
begin
    return jsonb_build_object(
        'missing', (select coalesce(jsonb_agg(f order by f), '[]') from unnest(p_functions) f
            where not exists (select from pg_catalog.pg_proc p
                where p.pronamespace = 'public'::regnamespace and p.proname = f)),
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at >= p_since),
        'first_claims', (select coalesce(jsonb_object_agg(s.task, s.at), '{}') from (
            select task, min(claimed_at) as at from jobs.job_slots group by 1) s),
        'runs', jobs.status_runs(p_tasks, p_runs, p_now),
        'queue', jobs.status_queue(p_failed_since),
        'mails', jobs.status_mails(p_days, p_now),
        'integrations', jobs.status_integrations(p_broken, p_late_before, p_now));
end $$;

-- What an operator has done again.

-- What a call answered, for its repetition. A day is enough: a call is repeated within seconds.
create table jobs.job_answers (
    call_id uuid primary key,
    answer jsonb not null,
    answered_at timestamptz not null default clock_timestamp()
);

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. Looks back to p_failed_since. A repeated call with the same p_run_id answers what the first one did.
--   {woken, mails, planned}
create function public.jobs_retry(
    p_run_id uuid, p_lane text, p_route text, p_failed_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    is_mail constant boolean := (select l.is_mail from jobs.known_lanes() l where l.lane = p_lane);
    last_month constant text := to_char((p_now at time zone 'Europe/Paris') - interval '1 month', 'YYYY-MM');
    woken integer;
    mails integer := 0;
    planned integer := 0;
    again bigint[];
    told jsonb;
begin
    delete from jobs.job_answers where answered_at < clock_timestamp() - interval '1 day';
    -- A repeated call waits here for the first one, which may still be at it.
    insert into jobs.job_answers (call_id, answer) values (p_run_id, '{}') on conflict (call_id) do nothing;
    if not found then
        select a.answer into told from jobs.job_answers a where a.call_id = p_run_id;
        return told;
    end if;
    if is_mail is null then
        raise exception 'unknown lane %', p_lane using errcode = '22023';
    elsif is_mail then
        perform jobs.lock_mail_ledger();
        again := array(
            select f.item_id from jobs.open_failures(p_failed_since) f
            join jobs.email_deliveries d on d.item_id = f.item_id
            where f.lane = p_lane and d.status in ('failed', 'refused') and d.provider_id is null and d.user_id is not null
                and (d.expires_at is null or d.expires_at > p_now));
        update jobs.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from jobs.job_items i where i.item_id = any (again) order by i.item_id for update;
        update jobs.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from jobs.job_items i where i.item_id = any (again)));
            update jobs.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (again));
        end if;
    else
        again := array(select f.item_id from jobs.open_failures(p_failed_since) f where f.lane = p_lane);
        if cardinality(again) > 0 and jobs.open_run(p_run_id,
                case p_lane when 'months' then 'monthly_sync' else 'sync_integrations' end, null, 'manual', p_route,
                p_now, jsonb_build_object('retry', p_lane), p_now) ->> 'state' = 'planned' then
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at)
            select distinct on (i.kind, i.subject) p_run_id, i.lane, i.kind, i.subject, i.user_id,
                -- An old month's recap is no news any more.
                case when i.payload ->> 'month' < last_month then i.payload || '{"recap": false}' else i.payload end, p_now
            from jobs.job_items i where i.item_id = any (again)
            order by i.kind, i.subject, i.item_id desc;
            get diagnostics planned = row_count;
            perform jobs.send_items(p_run_id);
            update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
        end if;
    end if;

    -- Put off by a failure or a quota. What somebody holds stays theirs; what was never claimed is visible already.
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, 0)
    from jobs.job_items i
    where i.status = 'queued' and i.lane = p_lane and i.msg_id is not null
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
    order by i.msg_id;
    get diagnostics woken = row_count;
    told := jsonb_build_object('woken', woken, 'mails', mails, 'planned', planned);
    update jobs.job_answers set answer = told where call_id = p_run_id;
    return told;
end $$;

-- What went wrong since the operator was told last, and the one mail a day that tells it.

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest does
-- not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons: slots
-- since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    calls: [{route, message, count}], routes: {route: last call}}
create function public.jobs_troubles(
    p_first_since timestamptz, p_latest_since timestamptz, p_stuck_before timestamptz, p_slots_since timestamptz,
    p_calls_since timestamptz
) returns jsonb language plpgsql stable security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    since constant timestamptz := greatest(p_first_since, least(p_latest_since, coalesce(
        (select max(r.as_of) from jobs.job_runs r where r.task = 'operator_digest'), '-infinity')));
begin
    return jsonb_build_object(
        'since', since,
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at > p_slots_since),
        'failed', (select coalesce(jsonb_agg(f order by f.count desc, f.lane, f.code), '[]') from (
            select i.lane, i.error ->> 'code' as code, min(i.error ->> 'message') as message, count(*) as count
            from jobs.job_items i where i.status = 'failed' and i.settled_at > since
            group by 1, 2 order by 4 desc limit 20) f),
        'stuck', (select coalesce(jsonb_agg(q order by q.oldest), '[]') from (
            select i.lane, count(*) as count, min(i.created_at) as oldest
            from jobs.job_items i where i.status = 'queued' and i.created_at < p_stuck_before
            group by 1) q),
        'calls', (select coalesce(jsonb_agg(c order by c.count desc, c.route), '[]') from (
            select l.metadata ->> 'route' as route, min(l.error_message) as message, count(*) as count
            from public.sync_logs l
            where l.user_id is null and l.status = 'error' and l.sync_type <> 'dry_run' and l.synced_at > since
            group by 1 order by 3 desc limit 10) c),
        'routes', (select coalesce(jsonb_object_agg(l.route, l.last), '{}') from (
            select l.metadata ->> 'route' as route, max(l.synced_at) as last
            from public.sync_logs l
            where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_calls_since
            group by 1) l where l.route is not null));
end $$;

-- Plans the digest of a Paris day, once: its day is its slot. Not sent from p_expires_at on. p_facts: {to, day, points, status_url}.
--   {state: planned | joined | repeated, run_id}
create function public.jobs_plan_digest(
    p_run_id uuid, p_route text, p_facts jsonb, p_expires_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    opened jsonb := jobs.open_run(
        p_run_id, 'operator_digest', p_facts ->> 'day', 'cron', p_route, p_now, '{}', p_now);
begin
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    insert into jobs.email_deliveries (dedupe_key, kind, run_id, facts, expires_at)
    values ('operator_digest/' || (p_facts ->> 'day'), 'operator_digest', p_run_id, p_facts, p_expires_at)
    on conflict (dedupe_key) do nothing;
    perform jobs.queue_mails(p_run_id, null, p_now);
    return opened;
end $$;

-- How long what is kept.

-- Deletes what is older than p_before: logs, events, finished runs and their items. Ledgers stay, without what is
-- personal of those settled before p_personal_before. What is personal of users who are gone goes at once, but for a
-- batch that was sealed since p_sealed_since: it may be sent again as sealed.
--
-- The oldest first, at most 20,000 rows per table a call, so that it never takes long; left says that there is more: call
-- again. Waits for nobody: what is locked just now has time.
--
-- Rows go by where they were found (ctid): looking them up again would read the index of all logs, at random.
--   {logs, items, runs, events, blanked, left}
create function public.jobs_prune(
    p_before timestamptz, p_personal_before timestamptz, p_sealed_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    max_rows_per_table constant integer := 20000;
    logs integer;
    items integer;
    runs integer;
    events integer;
    blanked integer;
    of_old integer;
begin
    delete from public.sync_logs where ctid = any (array(
        select l.ctid from public.sync_logs l where l.synced_at < p_before order by l.synced_at limit max_rows_per_table
        for update skip locked));
    get diagnostics logs = row_count;
    delete from jobs.job_items where ctid = any (array(
        select i.ctid
        from (select run_id from jobs.job_runs where finished_at < p_before order by finished_at limit max_rows_per_table) r
        -- In the order of an index (here and below): else the whole table may seem quicker.
        cross join lateral (select ctid from jobs.job_items where run_id = r.run_id order by kind, subject
            limit max_rows_per_table for update skip locked) i
        limit max_rows_per_table));
    get diagnostics items = row_count;
    delete from jobs.job_runs where ctid = any (array(
        select r.ctid
        from (select ctid, run_id from jobs.job_runs where finished_at < p_before order by finished_at limit max_rows_per_table
            for update skip locked) r
        left join lateral (select true as one from jobs.job_items where run_id = r.run_id order by kind, subject
            limit 1) i on true
        where i.one is null));
    get diagnostics runs = row_count;
    delete from jobs.email_events where ctid = any (array(
        select e.ctid from jobs.email_events e where e.received_at < p_before order by e.received_at limit max_rows_per_table
        for update skip locked));
    get diagnostics events = row_count;
    -- What is personal of those who are gone: at once, but for a batch that may be sent again as sealed. Their items
    -- went with them, so nobody else ends what was still open. (The operator's digest never had a user.)
    with ended as (
        update jobs.email_deliveries d
        set address = null, facts = '{}',
            status = case d.status when 'planned' then 'skipped' when 'sealed' then 'unknown' else d.status end,
            reason = case when d.status in ('planned', 'sealed') then 'user_deleted' else d.reason end,
            settled_at = coalesce(d.settled_at, p_now)
        where d.delivery_id = any (array(
            select g.delivery_id from jobs.email_deliveries g
            where g.user_id is null and g.kind <> 'operator_digest' and (g.address is not null or g.facts <> '{}' or g.status in ('planned', 'sealed'))
                and (g.status <> 'sealed' or exists (select from jobs.email_batches b
                    where b.batch_id = g.batch_id and b.sealed_at < p_sealed_since))
            limit max_rows_per_table for update of g skip locked))
        returning d.delivery_id, d.batch_id
    ), batches as (
        update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
        where b.state = 'sealed' and b.batch_id in (select e.batch_id from ended e)
            and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed'
                and d.delivery_id not in (select e.delivery_id from ended e))
    )
    select count(*) into blanked from ended;
    -- Of the others after 13 months.
    update jobs.email_deliveries set address = null, facts = '{}' where delivery_id = any (array(
        select d.delivery_id from jobs.email_deliveries d
        where (d.address is not null or d.facts <> '{}') and d.settled_at < p_personal_before
        order by d.settled_at limit max_rows_per_table for update skip locked));
    get diagnostics of_old = row_count;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs, 'events', events,
        'blanked', blanked + of_old, 'left', max_rows_per_table in (logs, items, runs, events, blanked, of_old));
end $$;

-- Who may do what; the last file, and the only one about rights. Supabase's default privileges open every new table and
-- function of `public` to everybody, and PostgreSQL grants EXECUTE on every new function to PUBLIC: both are taken back.

-- Ours: nobody but the owner, not even service_role. Row-level security without a policy, should somebody ever get in.
revoke all on schema jobs from public, anon, authenticated, service_role;
revoke all on all tables in schema jobs from public, anon, authenticated, service_role;
revoke all on all sequences in schema jobs from public, anon, authenticated, service_role;
revoke all on all functions in schema jobs from public, anon, authenticated, service_role;
do $$
declare
    name text;
begin
    for name in select c.oid::regclass from pg_catalog.pg_class c
        where c.relnamespace = 'jobs'::regnamespace and c.relkind = 'r'
    loop
        execute format('alter table %s enable row level security', name);
    end loop;
end $$;

-- What the code calls: service_role only. By name alone, which fails where a function has an overload.
revoke all on function
    public.integration_context, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts, public.jobs_plan_alerts,
    public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync, public.jobs_prune, public.jobs_release,
    public.jobs_report, public.jobs_retry, public.jobs_run_waits, public.jobs_sign_in, public.jobs_signed_in,
    public.jobs_status, public.jobs_troubles, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books
from public, anon, authenticated, service_role;
grant execute on function
    public.integration_context, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts, public.jobs_plan_alerts,
    public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync, public.jobs_prune, public.jobs_release,
    public.jobs_report, public.jobs_retry, public.jobs_run_waits, public.jobs_sign_in, public.jobs_signed_in,
    public.jobs_status, public.jobs_troubles, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books
to service_role;

commit;
