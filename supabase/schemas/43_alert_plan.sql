-- What a check has found, and how it is planned: noted page by page, planned part by part.

-- Notes what one page of a check has found, for the plan of its run. A repeated call notes nothing twice. What a check
-- noted that came to no plan goes a day later; by then another check finds it.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], consequences: [what is told by itself], …},
--   used_up: [{threshold, step, told_as}], withdrawn: [{threshold, step, told_as, times, withdrawn}],
--   consequences: see found_alerts}]
create function public.jobs_note_alerts(p_run_id uuid, p_alerts jsonb, p_now timestamptz) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    delete from jobs.found_alerts where found_at < p_now - interval '1 day';
    insert into jobs.found_alerts (run_id, user_id, year, facts, used_up, withdrawn, consequences, found_at)
    select p_run_id, a.user_id, a.year, a.facts, a.used_up, coalesce(a.withdrawn, '[]'), coalesce(a.consequences, '{}'), p_now
    from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb, withdrawn jsonb,
        consequences jsonb)
    join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
    order by a.user_id, a.year
    on conflict (run_id, user_id, year) do nothing;
$$;

-- So many alerts are planned in one transaction, in some seconds: each writes a dozen rows, whose foreign keys are checked.
create function jobs.alerts_of_a_part() returns integer language sql immutable set search_path = '' as $$
    select 5000;
$$;

-- A run that is there and of which alerts are found that nobody has planned yet: its invocation was killed between two parts,
-- or is at it. Null: there is none.
create function jobs.run_with_found_alerts() returns uuid
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
create function jobs.plan_part_of_alerts(p_run_id uuid, p_now timestamptz) returns integer
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
create function public.jobs_plan_alerts(
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
