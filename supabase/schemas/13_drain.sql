-- How workers claim items, keep them and give them back.

-- Claims up to p_limit visible messages of a lane for p_seconds; fewer only where no more are visible. A repeated claim
-- gives the same items again. Null: only messages without an item were seen so far, ask again.
--   [{item_id, run_id, version, kind, subject, user_id, payload, progress, attempts, as_of, is_replay: its run works for an
--     instant before the one at which it was planned}]
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
            'item_id', i.item_id, 'run_id', i.run_id, 'version', i.version, 'kind', i.kind, 'subject', i.subject,
            'user_id', i.user_id, 'payload', i.payload, 'progress', i.progress, 'attempts', i.attempts,
            'as_of', r.as_of, 'is_replay', r.as_of < i.created_at) order by i.item_id)
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

-- Gives an item back. With an error it is an attempt, and attempt number p_max_attempts fails the item. Without one
-- (budget, quota, rate limit, our own key refused) it is none.
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
        return jsonb_build_object(
            'state', case when hold = 'lost' then 'lost' else i.status end, 'attempts', i.attempts);
    end if;
    if p_error is not null then
        update jobs.job_items set attempts = attempts + 1, error = jobs.cut_failure(p_error) where item_id = p_item_id;
    end if;
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.attempts >= p_max_attempts then
        perform jobs.finish_item(p_item_id, 'failed',
            jsonb_build_object('user_id', i.user_id, 'status', 'error', 'records', 0, 'error', i.error),
            i.error, p_now);
        insert into public.sync_logs (user_id, provider, sync_type, status, error_message, metadata, synced_at)
        select i.user_id, 'jobs', r.trigger, 'error', i.error ->> 'message',
            jsonb_build_object('run_id', i.run_id, 'kind', i.kind, 'code', i.error -> 'code'), p_now
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
