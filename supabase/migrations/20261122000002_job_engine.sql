-- The spine of the scheduled jobs: slots, runs, items, and one pgmq queue for each lane.
--
-- pgmq carries and redelivers; job_items is the record. A message holds {version, run_id, item_id, kind}.
-- Who holds an item is its lease_id (the id of the claim that read the message last): settling with another
-- lease writes nothing. Lock order, everywhere: user (advisory), message, item. Keeping it is what makes
-- claims, heartbeats and settlements free of deadlocks.
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
    progress jsonb not null default '{}',        -- checkpoint of unfinished work
    result jsonb not null default '{}',
    error jsonb,                                 -- {code, message} of the last failure
    created_at timestamptz not null default clock_timestamp(),
    settled_at timestamptz,
    unique (run_id, kind, subject)
);
create index job_items_queued on public.job_items (kind, subject) where status = 'queued';
create index job_items_lease on public.job_items (lease_id) where status = 'queued';
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
    select * into r from public.job_runs where run_id = p_run_id;
    if found then
        return jsonb_build_object('state', 'repeated', 'run_id', r.run_id, 'plan', r.plan);
    end if;
    if p_slot is not null then
        -- Waits for a concurrent claim of the same slot: it either commits (joined) or rolls back (ours).
        insert into public.job_slots (task, slot, run_id) values (p_task, p_slot, p_run_id)
        on conflict (task, slot) do nothing;
        if not found then
            select j.* into r from public.job_slots s join public.job_runs j using (run_id)
            where s.task = p_task and s.slot = p_slot;
            if r.run_id is null then  -- the run is gone after its 90 days, the slot is not
                return jsonb_build_object('state', 'joined', 'run_id', null, 'plan', '{}'::jsonb);
            end if;
            return jsonb_build_object('state', 'joined', 'run_id', r.run_id, 'plan', r.plan,
                'trigger', r.trigger, 'started_at', r.started_at);
        end if;
    end if;
    insert into public.job_runs (run_id, task, slot, trigger, route, as_of, parameters)
    values (p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
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

-- Claims up to p_limit visible messages of a lane for p_seconds: fewer mean that no more are visible. Repeating a
-- claim gives the same items again.
--   [{item_id, run_id, version, kind, subject, user_id, payload, progress, attempts, as_of}]
create function public.jobs_claim(p_claim uuid, p_lane text, p_limit integer, p_seconds integer)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
    missing integer := p_limit;
    read_ids bigint[];
    read_items bigint[];
    orphans bigint[];
begin
    if not exists (select from public.job_items where lease_id = p_claim and status = 'queued') then
        -- Messages without an item to work on do not count: a lane full of them is not an empty lane.
        while missing > 0 loop
            select array_agg(m.msg_id order by m.msg_id), array_agg((m.message ->> 'item_id')::bigint order by m.msg_id)
            into read_ids, read_items
            from pgmq.read('jobs_' || p_lane, p_seconds, missing) m;
            exit when read_ids is null;

            with pairs as (select * from unnest(read_ids, read_items) as t (msg_id, item_id)),
            taken as (
                update public.job_items i
                set lease_id = p_claim, msg_id = p.msg_id,
                    leased_until = clock_timestamp() + make_interval(secs => p_seconds)
                from pairs p where i.item_id = p.item_id and i.status = 'queued'
                returning i.item_id
            )
            select array_agg(p.msg_id) into orphans from pairs p where p.item_id not in (select item_id from taken);
            -- Their item is settled, superseded, or gone with its user.
            perform pgmq.delete('jobs_' || p_lane, orphans) where orphans is not null;
            missing := coalesce(cardinality(orphans), 0);
        end loop;
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

    with extended as (
        update public.job_items i set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from unnest(p_items, p_leases) as h (item_id, lease_id)
        where i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
        returning i.item_id
    )
    select array_agg(item_id) into held from extended;
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
    -- Without a lease the old holder is fenced off, and a repeated call (lost) does not count twice.
    update public.job_items set lease_id = null, leased_until = null where item_id = p_item_id;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_delay_seconds);
    return jsonb_build_object('state', 'queued', 'attempts', i.attempts);
end $$;

-- Gives back items that were claimed and not worked on, all at once. Answers how many.
create function public.jobs_release(p_lane text, p_items bigint[], p_leases uuid[], p_delay_seconds integer)
returns integer language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    released integer;
begin
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, p_delay_seconds)
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    join public.job_items i on i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued'
    order by i.msg_id;

    update public.job_items i set lease_id = null, leased_until = null
    from unnest(p_items, p_leases) as h (item_id, lease_id)
    where i.item_id = h.item_id and i.lease_id = h.lease_id and i.status = 'queued';
    get diagnostics released = row_count;
    return released;
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
        group by r.run_id having count(*) filter (where i.status = 'queued') = 0
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
    with items as (select * from public.job_items where run_id = p_run_id),
    reported as (
        select result, item_id from items where status in ('done', 'partial', 'failed') order by item_id limit p_limit
    )
    select jsonb_build_object(
        'run_id', r.run_id, 'plan', r.plan,
        'counts', jsonb_build_object(
            'planned', (select count(*) from items),
            'queued', (select count(*) from items where status = 'queued'),
            'done', (select count(*) from items where status = 'done'),
            'partial', (select count(*) from items where status = 'partial'),
            'failed', (select count(*) from items where status = 'failed'),
            'superseded', (select count(*) from items where status = 'superseded'),
            -- Failed, failed in part, or waiting for another attempt.
            'erred', (select count(*) from items where error is not null and status <> 'superseded')),
        'in_flight', (select count(*) from items where status = 'queued' and leased_until > clock_timestamp()),
        'records', (select coalesce(sum((result ->> 'records')::bigint), 0) from items),
        'errors', (select coalesce(jsonb_agg(e), '[]') from (
            select error ->> 'code' as code, min(error ->> 'message') as message, count(*) as count
            from items where error is not null and status <> 'superseded'
            group by 1 order by 3 desc, 1 limit 20) e),
        'results', (select coalesce(jsonb_agg(result order by item_id), '[]') from reported),
        'results_total', (select count(*) from items where status in ('done', 'partial', 'failed')))
    from public.job_runs r where r.run_id = p_run_id;
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
-- At most 20,000 log rows and 200 runs a call, so that it never takes long.
create function public.jobs_prune() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    old timestamptz := clock_timestamp() - interval '90 days';
    logs integer;
    runs integer;
begin
    delete from public.sync_logs where id in (
        select id from public.sync_logs where synced_at < old order by synced_at limit 20000);
    get diagnostics logs = row_count;
    delete from public.job_runs where run_id in (
        select run_id from public.job_runs where finished_at < old order by finished_at limit 200);
    get diagnostics runs = row_count;
    return jsonb_build_object('logs', logs, 'runs', runs);
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
