-- What is told: a run's troubles by their words, not by their code alone (two providers that are both away were told as
-- one), and a repeated retry as the first one.
--
-- Locks nothing of the application's. Forward only; safe to run twice.

begin;
set local lock_timeout = '5s';

-- What a call answered, for its repetition. A day is enough: a call is repeated within seconds.
create table if not exists public.job_answers (
    call_id uuid primary key,
    answer jsonb not null,
    answered_at timestamptz not null default clock_timestamp()
);
alter table public.job_answers enable row level security;
revoke all on public.job_answers from public, anon, authenticated, service_role;

-- As before, but troubles with other words are told apart.
create or replace function public.jobs_report(p_run_id uuid, p_limit integer) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array['alerts', 'reminders', 'recaps', 'marketing'];
begin
    perform public.jobs_close_runs();
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select error ->> 'code' as code, error ->> 'message' as message, count(*) as count
                from public.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1, 2 order by 3 desc, 1, 2 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select result, item_id from public.job_items
                where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                order by item_id limit p_limit) t),
            'results_total', s.results_total,
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select coalesce(result ->> 'reason', result ->> 'mail') as reason, count(*) as n
                    from public.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped' group by 1) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select error ->> 'code' as code, error ->> 'message' as message, count(*) as count
                    from public.job_items
                    where run_id = p_run_id and lane = m.lane and error is not null and status in ('queued', 'failed')
                    group by 1, 2 order by 3 desc, 1, 2 limit 20) e))), '{}')
                from (select lane, count(*) as planned,
                        count(*) filter (where status = 'queued') as queued,
                        count(*) filter (where status = 'done') as sent,
                        count(*) filter (where status = 'skipped') as skipped,
                        count(*) filter (where status = 'failed') as failed,
                        count(*) filter (where status = 'failed' or (status = 'queued' and error is not null)) as erred
                      from public.job_items where run_id = p_run_id and lane = any (mail_lanes) group by lane) m))
        from public.job_runs r, (
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
            from (select i.*, i.lane <> all (mail_lanes) as data from public.job_items i where i.run_id = p_run_id) i) s
        where r.run_id = p_run_id);
end $$;

-- As before, but the second call of the same p_run_id answers what the first one did.
--   {woken, mails, planned}
create or replace function public.jobs_retry(p_run_id uuid, p_lane text, p_route text, p_as_of timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    since constant timestamptz := clock_timestamp() - interval '30 days';
    last_month constant text := to_char((p_as_of at time zone 'Europe/Paris') - interval '1 month', 'YYYY-MM');
    woken integer;
    mails integer := 0;
    planned integer := 0;
    again bigint[];
    told jsonb;
begin
    delete from public.job_answers where answered_at < clock_timestamp() - interval '1 day';
    -- A repeated call waits here for the first one, which may still be at it.
    insert into public.job_answers (call_id, answer) values (p_run_id, '{}') on conflict (call_id) do nothing;
    if not found then
        select a.answer into told from public.job_answers a where a.call_id = p_run_id;
        return told;
    end if;
    if p_lane in ('alerts', 'reminders', 'recaps', 'marketing') then
        perform public.mail_ledger_lock();
        again := array(
            select f.item_id from public.jobs_open_failures(since) f
            join public.email_deliveries d on d.item_id = f.item_id
            where f.lane = p_lane and d.status in ('failed', 'refused') and d.provider_id is null and d.user_id is not null
                and (d.expires_at is null or d.expires_at > clock_timestamp()));
        update public.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from public.job_items i where i.item_id = any (again) order by i.item_id for update;
        update public.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from public.job_items i where i.item_id = any (again)));
            update public.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from public.job_items i where i.item_id = any (again));
        end if;
    elsif p_lane in ('stripe', 'shopify', 'months') then
        again := array(select f.item_id from public.jobs_open_failures(since) f where f.lane = p_lane);
        if cardinality(again) > 0 and public.jobs_open_run(p_run_id,
                case p_lane when 'months' then 'monthly_sync' else 'sync_integrations' end, null, 'manual', p_route,
                p_as_of, jsonb_build_object('retry', p_lane)) ->> 'state' = 'planned' then
            insert into public.job_items (run_id, lane, kind, subject, user_id, payload)
            select distinct on (i.kind, i.subject) p_run_id, i.lane, i.kind, i.subject, i.user_id,
                -- An old month's recap is no news any more.
                case when i.payload ->> 'month' < last_month then i.payload || '{"recap": false}' else i.payload end
            from public.job_items i where i.item_id = any (again)
            order by i.kind, i.subject, i.item_id desc;
            get diagnostics planned = row_count;
            perform public.jobs_send_items(p_run_id);
            update public.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
        end if;
    else
        raise exception 'unknown lane %', p_lane using errcode = '22023';
    end if;

    -- Put off by a failure or a quota. What somebody holds stays theirs; what was never claimed is visible already.
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, 0)
    from public.job_items i
    where i.status = 'queued' and i.lane = p_lane and i.msg_id is not null
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
    order by i.msg_id;
    get diagnostics woken = row_count;
    told := jsonb_build_object('woken', woken, 'mails', mails, 'planned', planned);
    update public.job_answers set answer = told where call_id = p_run_id;
    return told;
end $$;

commit;
