-- Alerts are planned in parts: a check of very many users ends within its statements' time, and what an invocation that was
-- killed has left is planned by the next one.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Gives these deliveries of a run, as far as they are planned, their items and messages. A run that was closed is open again.
-- Answers how many were queued.
create or replace function jobs.queue_deliveries(p_run_id uuid, p_deliveries bigint[], p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
            select d.run_id, jobs.lane_of_mail(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id), p_now, p_now
            from jobs.email_deliveries d
            where d.delivery_id = any (p_deliveries) and d.run_id = p_run_id and d.status = 'planned' and d.not_before is null
            order by d.delivery_id
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


-- Does so with each planned delivery of a run, but for a second attempt that has to wait: the end of every plan of mails, in
-- its transaction. p_user_id: only this user's.
create or replace function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
begin
    return jobs.queue_deliveries(p_run_id, array(
        select d.delivery_id from jobs.email_deliveries d
        where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            and d.not_before is null), p_now);
end $$;


-- So many alerts are planned in one transaction, in some seconds: each writes a dozen rows, whose foreign keys are checked.
create or replace function jobs.alerts_of_a_part() returns integer language sql immutable set search_path = '' as $$
    select 5000;
$$;


-- A run that is there and of which alerts are found that nobody has planned yet: its invocation was killed between two parts,
-- or is at it. Null: there is none.
create or replace function jobs.run_with_found_alerts() returns uuid
language plpgsql stable set search_path = '' as $$
declare
    run uuid := '00000000-0000-0000-0000-000000000000';
begin
    loop    -- from run to run: each may have a hundred thousand
        run := (select f.run_id from jobs.found_alerts f where f.run_id > run order by f.run_id limit 1);
        exit when run is null or exists (select from jobs.job_runs r where r.run_id = run);
    end loop;
    return run;
end $$;


-- Plans a part of what was found for a run: each step and each consequence once for each user and year, in one mail for all
-- that are new, and once more if it was withdrawn. What is planned is gone from what was found: whoever comes next takes the
-- next part. Where the same was planned for an address that it did not reach (see untell_alerts), its key ends with /moved.
-- Answers how many mails were planned.
--
-- Never by loops, and each time by a plan of its own: statistics know nothing yet of what was just found and planned. So
-- everything is met by the ids of a part's users.
create or replace function jobs.plan_part_of_alerts(p_run_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' set enable_nestloop = off set jit = off set work_mem = '32MB'
set plan_cache_mode = force_custom_plan as $$
declare
    most_times constant smallint := 2;   -- urssaf::assess
    users uuid[];
    deliveries bigint[];
    planned integer;
begin
    select array_agg(distinct f.user_id) into users from (
        select a.user_id from jobs.found_alerts a where a.run_id = p_run_id
        order by a.user_id, a.year limit jobs.alerts_of_a_part() for update) f;
    if users is null then
        return 0;
    end if;
    -- Whatever stands of these users, in one order for all who plan.
    perform from jobs.threshold_alerts t where t.user_id = any (users)
    order by t.user_id, t.year, t.threshold, t.step, t.told_as for update;
    perform from jobs.told_consequences t where t.user_id = any (users)
    order by t.user_id, t.year, t.consequence for update;
    -- What was told again since it was found not to hold is another telling.
    update jobs.threshold_alerts t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.withdrawn)
        as w (threshold text, step smallint, told_as text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and a.user_id = any (users) and a.withdrawn <> '[]'
        and t.user_id = any (users) and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.threshold, t.step, t.told_as, t.times) = (w.threshold, w.step, w.told_as, w.times);
    update jobs.told_consequences t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.consequences -> 'turned')
        as w (consequence text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and a.user_id = any (users)
        and t.user_id = any (users) and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.consequence, t.times) = (w.consequence, w.times);
    with alerts as materialized (
        delete from jobs.found_alerts f where f.run_id = p_run_id and f.user_id = any (users)
        returning f.user_id, f.year, f.facts, f.used_up, f.consequences
    ), followed as (
        insert into jobs.told_consequences as k (user_id, year, consequence, run_id)
        select distinct a.user_id, a.year, c.name, p_run_id
        from alerts a, jsonb_array_elements_text(a.consequences -> 'tell') as c (name)
        order by 1, 2, 3
        on conflict (user_id, year, consequence) do update
            set withdrawn_at = null, unsaid_by = null, times = k.times + 1, run_id = excluded.run_id
            where k.withdrawn_at is not null and k.times < most_times
        returning user_id, year, consequence, times
    ), marked as (
        insert into jobs.threshold_alerts as k (user_id, year, threshold, step, told_as, run_id)
        select distinct a.user_id, a.year, s.threshold, s.step, coalesce(s.told_as, 'certain'), p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint, told_as text)
        order by 1, 2, 3, 4, 5
        on conflict (user_id, year, threshold, step, told_as) do update
            set withdrawn_at = null, unsaid_by = null, times = k.times + 1, run_id = excluded.run_id
            where k.withdrawn_at is not null and k.times < most_times
        returning user_id, year, threshold, step, told_as, times
    ), crossed as (     -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(m.threshold || '-' || m.step || case when m.told_as <> 'certain' then '-' || m.told_as else '' end
                || case when m.times > 1 then '-' || m.times else '' end, '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
            and (m.told_as = 'to_verify') = (coalesce(c.crossing -> 'doubt', 'null') <> 'null')
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year
    ), alone as (       -- what follows and is told without a step
        select a.user_id, a.year, jsonb_agg(c.name order by c.n) as consequences,
            string_agg(m.consequence || case when m.times > 1 then '-' || m.times else '' end, '+' order by c.n) as names
        from alerts a, jsonb_array_elements_text(a.facts -> 'consequences') with ordinality as c (name, n)
        join followed m on m.consequence = c.name
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year
    ), keyed as materialized (
        select a.user_id, a.year, a.facts || jsonb_build_object(
                'crossings', coalesce(c.crossings, '[]'), 'consequences', coalesce(o.consequences, '[]')) as facts,
            'threshold_alert/' || a.user_id || '/' || a.year || '/' || concat_ws('+', c.steps, o.names) as key
        from alerts a
        left join crossed c on c.user_id = a.user_id and c.year = a.year
        left join alone o on o.user_id = a.user_id and o.year = a.year
        where c.steps is not null or o.names is not null
    ), moved as materialized (
        select b.dedupe_key from jobs.email_deliveries b
        where b.dedupe_key = any (array(select k.key from keyed k)) and b.feedback in ('bounced', 'suppressed', 'refused')
    ), written as (
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
        select k.key || case when m.dedupe_key is not null then '/moved' else '' end,
            'threshold_alert', k.user_id, k.user_id, p_run_id, k.facts
        from keyed k left join moved m on m.dedupe_key = k.key
        order by k.user_id, k.year
        on conflict (dedupe_key) do nothing
        returning delivery_id
    )
    select array_agg(w.delivery_id order by w.delivery_id) into deliveries from written w;
    planned := jobs.queue_deliveries(p_run_id, deliveries, p_now);
    -- Of a sync, the plan says something else.
    update jobs.job_runs r set plan = jsonb_set(r.plan, '{items}', to_jsonb(coalesce((r.plan ->> 'items')::integer, 0) + planned))
    where r.run_id = p_run_id and r.task = 'check_thresholds' and planned > 0;
    return planned;
end $$;


-- Plans alerts: opens the run, or goes on with it (p_append: also a sync whose totals changed), and plans the first part of
-- what was found for it by jobs_note_alerts. Where more is left, the same call with p_append plans the next part; if nobody
-- makes it, jobs_reconcile does. p_due: the marks that were checked, taken away unless set again since.
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}, left}
create or replace function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_due jsonb, p_outline jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
        if opened ->> 'state' = 'joined' then
            delete from jobs.found_alerts where run_id = p_run_id;      -- another run has the slot
            return opened;
        elsif opened ->> 'state' <> 'planned' then
            return opened || jsonb_build_object('left', exists (select from jobs.found_alerts f where f.run_id = p_run_id));
        end if;
        update jobs.job_runs set plan = p_outline || '{"items": 0}' where run_id = p_run_id;
    end if;
    planned := jobs.plan_part_of_alerts(p_run_id, p_now);
    delete from jobs.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;
    return opened || jsonb_build_object('plan', p_outline || jsonb_build_object('items', planned),
        'left', exists (select from jobs.found_alerts f where f.run_id = p_run_id));
end $$;


-- Closes the runs that have nothing queued, and nothing to plan, any more: success, partial (some of it failed), error (all of it). A mail
-- that was not wanted any more is no failure. Answers how many were closed.
create or replace function public.jobs_close_runs(p_now timestamptz) returns integer
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


-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails. Errors are
-- grouped by code and message. However much there is to tell, the answer is small: as many results come as p_limit and
-- p_bytes let pass. First closes the runs that have nothing queued any more.
--   {run_id, status, slot, trigger, started_at, plan, counts: {…}, in_flight, records,
--    errors: [{code, message, count}], results: [first results], results_total, unplanned: alerts that were found,
--    mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create or replace function public.jobs_report(p_run_id uuid, p_limit integer, p_bytes integer, p_now timestamptz) returns jsonb
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


-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more. Of alerts
-- that were found and not planned one part; `unplanned` says that the next call finds more.
--   {messages, mails, unplanned}
create or replace function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    lane record;
    messages integer := 0;
    run uuid;
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
    return jsonb_build_object('messages', messages,
        'mails', jobs.plan_moved_mails(p_route, p_now) + jobs.queue_put_off_mails(p_now),
        'unplanned', run is not null and jobs.run_with_found_alerts() is not null);
end $$;


revoke all on function
    jobs.queue_deliveries, jobs.alerts_of_a_part, jobs.run_with_found_alerts, jobs.plan_part_of_alerts
from public, anon, authenticated, service_role;

commit;
