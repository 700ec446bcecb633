-- The spine of the scheduled jobs: slots, runs, items, and one pgmq queue for each lane.
--
-- pgmq carries and redelivers; job_items is the record. A message holds {version, run_id, item_id, kind}.
-- Who holds an item is its lease_id (the id of the claim that read the message last): settling with another
-- lease writes nothing. Lock order, everywhere: user (advisory), message, item; several messages and several
-- items each by their ids. Keeping it is what makes claims, heartbeats, settlements and plans free of deadlocks.
--
-- Only service_role may call these functions; nobody but their owner touches the tables.
-- Forward only; new objects only, so nothing of the application's is locked.

begin;
set local lock_timeout = '5s';

do $$
begin
    if exists (select from pg_catalog.pg_available_extensions where name = 'pgmq') then
        create extension if not exists pgmq;
    elsif to_regprocedure('pgmq.create(text)') is null then
        raise exception 'pgmq is missing: enable Queues (extension pgmq) in the Supabase dashboard, then run this file again';
    end if;
end $$;

create table public.job_runs (
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
create index job_runs_open on public.job_runs (started_at) where finished_at is null;
create index job_runs_task on public.job_runs (task, started_at desc);

create table public.job_slots (
    task text not null,
    slot text not null,
    run_id uuid not null,
    claimed_at timestamptz not null default clock_timestamp(),
    primary key (task, slot)
);

create table public.job_items (
    item_id bigint generated always as identity primary key,
    run_id uuid not null references public.job_runs (run_id) on delete cascade,
    lane text not null,
    kind text not null,
    version integer not null default 1,         -- of the payload: a rolled-back deployment leaves newer items alone
    subject uuid not null,                       -- what is worked on: an integration, a user
    user_id uuid references auth.users (id) on delete cascade,
    payload jsonb not null default '{}',
    status text not null default 'queued'
        check (status in ('queued', 'done', 'partial', 'failed', 'superseded')),
    attempts integer not null default 0,         -- classified failures of the item itself, at most 5
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
create index job_items_lease on public.job_items (lease_id) where status = 'queued' and lease_id is not null;
create index job_items_run_queued on public.job_items (run_id) where status = 'queued';
create index job_items_user on public.job_items (user_id);

create table public.job_chain (                  -- at most one row
    id boolean primary key check (id),
    chain_id uuid not null,
    held_until timestamptz not null
);

alter table public.job_runs enable row level security;
alter table public.job_slots enable row level security;
alter table public.job_items enable row level security;
alter table public.job_chain enable row level security;
revoke all on public.job_runs, public.job_slots, public.job_items, public.job_chain from public, anon, authenticated, service_role;
revoke all on sequence public.job_items_item_id_seq from public, anon, authenticated, service_role;

-- Lanes in order of priority; mails first.
do $$
declare lane text;
begin
    foreach lane in array array['alerts', 'reminders', 'recaps', 'marketing', 'stripe', 'shopify', 'months'] loop
        perform pgmq.create('jobs_' || lane);
    end loop;
end $$;

-- What the functions below share ---------------------------------------------------------------------------

-- Opens a run, or says which one already has the slot. A repeated call finds the first one's run.
--   {state: planned | joined | repeated, run_id, trigger, started_at, plan}
create function public.jobs_open_run(
    p_run_id uuid, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz, p_parameters jsonb
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
    r public.job_runs;
begin
    if p_slot is not null then
        -- Waits for a concurrent claim of the same slot: it either commits (joined) or rolls back (ours).
        insert into public.job_slots (task, slot, run_id) values (p_task, p_slot, p_run_id)
        on conflict (task, slot) do nothing;
        if not found then
            select j.* into r from public.job_slots s join public.job_runs j using (run_id)
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
    insert into public.job_runs (run_id, task, slot, trigger, route, as_of, parameters)
    values (p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters)
    on conflict (run_id) do nothing;
    if not found then
        select * into r from public.job_runs where run_id = p_run_id;
        return jsonb_build_object('state', 'repeated', 'run_id', r.run_id, 'plan', r.plan);
    end if;
    return jsonb_build_object('state', 'planned', 'run_id', p_run_id, 'plan', '{}'::jsonb);
end $$;

-- Sends one message for each queued item of a run: the end of every plan, in its transaction.
create function public.jobs_send_items(p_run_id uuid) returns void
language plpgsql security definer set search_path = '' as $$
declare
    batch record;
begin
    for batch in
        select lane, array_agg(jsonb_build_object(
            'version', version, 'run_id', run_id, 'item_id', item_id, 'kind', kind) order by item_id) as messages
        from public.job_items where run_id = p_run_id and status = 'queued'
        group by lane
    loop
        perform pgmq.send_batch('jobs_' || batch.lane, batch.messages);
    end loop;
end $$;

-- Takes the message and the item for a write.
--   held: go on; lost: somebody else has it, write nothing; settled: it was ours and is done (a repeated call)
create function public.jobs_hold(p_item_id bigint, p_lease_id uuid) returns text
language plpgsql security definer set search_path = '' as $$
declare
    i public.job_items;
begin
    select * into i from public.job_items where item_id = p_item_id;
    if i.item_id is null or i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    if i.status <> 'queued' then
        return case i.status when 'superseded' then 'lost' else 'settled' end;
    end if;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, 60);     -- locks the message before the item
    select * into i from public.job_items where item_id = p_item_id for update;
    if i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    return case i.status when 'queued' then 'held' when 'superseded' then 'lost' else 'settled' end;
end $$;

-- Writes an item's result and takes its message away. Call only on a held item.
create function public.jobs_finish(p_item_id bigint, p_status text, p_result jsonb, p_error jsonb) returns void
language plpgsql security definer set search_path = '' as $$
declare
    i public.job_items;
begin
    update public.job_items
    set status = p_status, result = p_result, error = p_error, progress = '{}',
        leased_until = null, settled_at = clock_timestamp()
    where item_id = p_item_id returning * into i;
    perform pgmq.delete('jobs_' || i.lane, i.msg_id);
end $$;

-- Drain ----------------------------------------------------------------------------------------------------

-- Claims up to p_limit visible messages of a lane for p_seconds; fewer only where no more are visible. Repeating a
-- claim gives the same items again. Null: nothing but messages without an item was seen so far, ask again.
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
    if exists (select from public.job_items where lease_id = p_claim and status = 'queued') then
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
            select i.item_id, i.status from public.job_items i
            where i.item_id = any (read_items) order by i.item_id for update) l;
        update public.job_items i
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
        from public.job_items i join public.job_runs r using (run_id)
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
    join public.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.msg_id;

    select array_agg(i.item_id) into held from (
        select i.item_id from unnest(p_items, p_leases) as h (item_id, lease_id)
        join public.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
        order by i.item_id for update of i) i;
    update public.job_items set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
    where item_id = any (held);
    return to_jsonb(coalesce(held, '{}'));
end $$;

-- Gives an item back. With an error it is an attempt: the fifth fails it. Without one (budget, quota, rate limit,
-- our own key refused) it is none.
--   {state: queued | failed | lost, attempts}
create function public.jobs_give_back(p_item_id bigint, p_lease_id uuid, p_delay_seconds integer, p_error jsonb)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    hold text := public.jobs_hold(p_item_id, p_lease_id);
    i public.job_items;
begin
    if hold <> 'held' then
        select * into i from public.job_items where item_id = p_item_id;
        if i.returned_lease = p_lease_id and i.status = 'queued' then
            return jsonb_build_object('state', 'queued', 'attempts', i.attempts);  -- a repeated call
        end if;
        return jsonb_build_object('state', case when hold = 'lost' then 'lost' else i.status end, 'attempts', i.attempts);
    end if;
    if p_error is not null then
        update public.job_items set attempts = attempts + 1, error = p_error where item_id = p_item_id;
    end if;
    select * into i from public.job_items where item_id = p_item_id;
    if i.attempts >= 5 then
        perform public.jobs_finish(p_item_id, 'failed',
            jsonb_build_object('user_id', i.user_id, 'status', 'error', 'records', 0, 'error', i.error), i.error);
        insert into public.sync_logs (user_id, provider, sync_type, status, error_message, metadata)
        select i.user_id, 'jobs', r.trigger, 'error', i.error ->> 'message',
            jsonb_build_object('run_id', i.run_id, 'kind', i.kind, 'code', i.error -> 'code')
        from public.job_runs r where r.run_id = i.run_id;
        return jsonb_build_object('state', 'failed', 'attempts', i.attempts);
    end if;
    -- Without a lease the old holder is fenced off, and a repeated call does not count twice.
    update public.job_items set lease_id = null, leased_until = null, returned_lease = p_lease_id
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
    join public.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.msg_id;

    perform from unnest(p_items, p_leases) as h (item_id, lease_id)
    join public.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.item_id for update of i;
    update public.job_items i set lease_id = null, leased_until = null, returned_lease = i.lease_id
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    where i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued';
    return (select count(*) from unnest(p_items, p_leases) as h (item_id, lease_id)
        join public.job_items i on i.item_id = h.item_id and i.returned_lease = h.lease_id);
end $$;

-- One chain of drain-queue invocations at a time. The holder calls again to go on, with its own id.
create function public.jobs_hold_chain(p_chain uuid, p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into public.job_chain as c (id, chain_id, held_until)
    values (true, p_chain, clock_timestamp() + make_interval(secs => p_seconds))
    on conflict (id) do update set chain_id = excluded.chain_id, held_until = excluded.held_until
    where c.chain_id = p_chain or c.held_until < clock_timestamp();
    return found;
end $$;

-- Report ---------------------------------------------------------------------------------------------------

-- Closes the runs that have nothing queued any more: success, partial (some of it failed), error (all of it).
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
            count(*) filter (where i.status = 'superseded') as superseded
        from public.job_runs r left join public.job_items i using (run_id)
        where r.finished_at is null
            -- Asked first and by an index of its own: a run with work left is not added up each time.
            and not exists (select from public.job_items q where q.run_id = r.run_id and q.status = 'queued')
        group by r.run_id
    )
    update public.job_runs r
    set finished_at = clock_timestamp(),
        counts = jsonb_build_object('done', e.done, 'partial', e.partial, 'failed', e.failed, 'superseded', e.superseded),
        status = case
            when e.failed + e.partial + e.superseded = 0 then 'success'
            when e.done + e.partial + e.superseded = 0 then 'error'
            else 'partial' end
    from ended e where r.run_id = e.run_id and r.finished_at is null;
    get diagnostics closed = row_count;
    return closed;
end $$;

-- What came of a run's items, whoever drained them.
--   {counts: {…}, in_flight, records, errors: [{code, message, count}],
--    results: [first p_limit results], results_total}
create function public.jobs_report(p_run_id uuid, p_limit integer) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '25s' as $$
    select jsonb_build_object(
        'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
        'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
        'errors', (select coalesce(jsonb_agg(e), '[]') from (
            select error ->> 'code' as code, min(error ->> 'message') as message, count(*) as count
            from public.job_items
            where run_id = p_run_id and error is not null and status in ('queued', 'partial', 'failed')
            group by 1 order by 3 desc, 1 limit 20) e),
        'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
            select result, item_id from public.job_items
            where run_id = p_run_id and status in ('done', 'partial', 'failed') order by item_id limit p_limit) t),
        'results_total', s.results_total)
    from public.job_runs r, (
        select jsonb_build_object(
                'planned', count(*),
                'queued', count(*) filter (where status = 'queued'),
                'done', count(*) filter (where status = 'done'),
                'partial', count(*) filter (where status = 'partial'),
                'failed', count(*) filter (where status = 'failed'),
                'superseded', count(*) filter (where status = 'superseded'),
                -- Failed altogether or in part, or waiting for another attempt: what `errors` counts.
                'erred', count(*) filter (where status = 'failed'
                    or (status in ('partial', 'queued') and error is not null)))
                as counts,
            count(*) filter (where status = 'queued' and leased_until > clock_timestamp()) as in_flight,
            coalesce(sum((result ->> 'records')::bigint), 0) as records,
            count(*) filter (where status in ('done', 'partial', 'failed')) as results_total
        from public.job_items where run_id = p_run_id) s
    where r.run_id = p_run_id;
$$;

-- One row of sync_logs for a whole call; p_id makes a repeated call write it once.
create function public.jobs_log(
    p_id uuid, p_sync_type text, p_status text, p_records integer, p_error text, p_metadata jsonb
) returns void language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into public.sync_logs (id, user_id, provider, sync_type, status, records_synced, error_message, metadata)
    values (p_id, null, 'jobs', p_sync_type, p_status, p_records, p_error, p_metadata)
    on conflict (id) do nothing;
$$;

-- Forgets what is older than 90 days: logs, finished runs and their items. Slots and ledgers stay.
-- At most 20,000 log rows and 20,000 items a call, and the runs that have none left, so that it never takes long.
create function public.jobs_prune() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    old timestamptz := clock_timestamp() - interval '90 days';
    logs integer;
    items integer;
    runs integer;
begin
    delete from public.sync_logs where id in (
        select id from public.sync_logs where synced_at < old order by synced_at limit 20000);
    get diagnostics logs = row_count;
    delete from public.job_items where item_id in (
        select i.item_id from public.job_runs r join public.job_items i using (run_id)
        where r.finished_at < old limit 20000);
    get diagnostics items = row_count;
    delete from public.job_runs r
    where r.finished_at < old and not exists (select from public.job_items i where i.run_id = r.run_id);
    get diagnostics runs = row_count;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs);
end $$;

-- How much waits in each lane, for drain-queue and the operator.
create function public.jobs_lanes() returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_object_agg(lane, jsonb_build_object(
        'queued', queued, 'in_flight', in_flight, 'oldest', oldest)), '{}')
    from (select lane, count(*) as queued, count(*) filter (where leased_until > clock_timestamp()) as in_flight,
            min(created_at) as oldest
        from public.job_items where status = 'queued' group by lane) l;
$$;

-- Rights: default privileges on Supabase grant every new function to everybody.
revoke all on function
    public.jobs_open_run(uuid, text, text, text, text, timestamptz, jsonb),
    public.jobs_send_items(uuid),
    public.jobs_hold(bigint, uuid),
    public.jobs_finish(bigint, text, jsonb, jsonb),
    public.jobs_claim(uuid, text, integer, integer),
    public.jobs_heartbeat(text, bigint[], uuid[], integer),
    public.jobs_give_back(bigint, uuid, integer, jsonb),
    public.jobs_release(text, bigint[], uuid[], integer),
    public.jobs_hold_chain(uuid, integer),
    public.jobs_close_runs(),
    public.jobs_report(uuid, integer),
    public.jobs_log(uuid, text, text, integer, text, jsonb),
    public.jobs_prune(),
    public.jobs_lanes()
from public, anon, authenticated, service_role;
grant execute on function
    public.jobs_claim(uuid, text, integer, integer),
    public.jobs_heartbeat(text, bigint[], uuid[], integer),
    public.jobs_give_back(bigint, uuid, integer, jsonb),
    public.jobs_release(text, bigint[], uuid[], integer),
    public.jobs_hold_chain(uuid, integer),
    public.jobs_close_runs(),
    public.jobs_report(uuid, integer),
    public.jobs_log(uuid, text, text, integer, text, jsonb),
    public.jobs_prune(),
    public.jobs_lanes()
to service_role;

commit;
