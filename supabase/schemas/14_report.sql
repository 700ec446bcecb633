-- What came of a run, and what is left in the queues.

-- Closes the runs that have nothing queued, and nothing to plan, any more: success, partial (some of it failed), error (all of it). A mail
-- that was not wanted any more is no failure. Answers how many were closed.
create function public.jobs_close_runs(p_now timestamptz) returns integer
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
            and not exists (select from jobs.found_alerts f where f.run_id = r.run_id)
        group by r.run_id
    )
    update jobs.job_runs r
    set finished_at = p_now, took = clock_timestamp() - r.started_at,
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

-- An item's result as an answer lists it: whole, or where it is very large only what stands for it.
create function jobs.told_result(p_result jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select case when octet_length(p_result::text) <= 16384 then p_result else jsonb_strip_nulls(jsonb_build_object(
        'user_id', p_result -> 'user_id', 'userId', p_result -> 'userId', 'provider', left(p_result ->> 'provider', 80),
        'status', left(p_result ->> 'status', 80), 'records', p_result -> 'records',
        'month_status', left(p_result ->> 'month_status', 80), 'error', jobs.cut_failure(p_result -> 'error'),
        'cut', true)) end;
$$;

-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails. Errors are
-- grouped by code and message. However much there is to tell, the answer is small: as many results come as p_limit and
-- p_bytes let pass. First closes the runs that have nothing queued any more.
--   {run_id, status, slot, trigger, started_at, plan, counts: {…}, in_flight, records,
--    errors: [{code, message, count}], results: [first results], results_total, unplanned: alerts that were found,
--    mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create function public.jobs_report(p_run_id uuid, p_limit integer, p_bytes integer, p_now timestamptz) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array(select l.lane from jobs.known_lanes() l where l.is_mail);
begin
    perform public.jobs_close_runs(p_now);
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
                from jobs.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1, 2 order by 3 desc, 1, 2 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select l.item_id, l.result, sum(octet_length(l.result::text)) over (order by l.item_id) as bytes
                from (select item_id, jobs.told_result(result) as result from jobs.job_items
                      where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                      order by item_id limit p_limit) l) t
                where t.bytes <= p_bytes),
            'results_total', s.results_total,
            'unplanned', (select count(*) from jobs.found_alerts f where f.run_id = p_run_id),
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select left(coalesce(result ->> 'reason', result ->> 'mail'), 80) as reason, count(*) as n
                    from jobs.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped'
                    group by 1 order by 2 desc, 1 limit 20) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
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
                    -- Queued, and a part of it is stored already.
                    'begun', count(*) filter (where data and status = 'queued' and progress ? 'lease'),
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
            min(waiting_since) as oldest
        from jobs.job_items where status = 'queued' group by lane) l;
$$;

-- Writes one row of sync_logs for a whole call, whose answer is kept where it is no larger than 64 KiB. A repeated call
-- with the same p_id writes nothing.
create function public.jobs_log(
    p_id uuid, p_sync_type text, p_status text, p_records integer, p_error text, p_metadata jsonb, p_now timestamptz
) returns void language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into public.sync_logs
        (id, user_id, provider, sync_type, status, records_synced, error_message, metadata, synced_at)
    values (p_id, null, 'jobs', p_sync_type, p_status, p_records, left(p_error, 1000),
        case when octet_length(p_metadata::text) <= 65536 then p_metadata else p_metadata - 'answer' end, p_now)
    on conflict (id) do nothing;
$$;
