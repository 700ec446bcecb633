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

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Added up by year and
-- activity, typed and imported apart; months that have both once more by month. Only users with a year that reaches
-- its floor: p_floors {year: cents}, in proportion to the days of a creation year. The year before each comes with it.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, held: [{year, threshold, step}], years: [{year, sums, mixed}]}],
--    due: [{user_id, since}], scanned, next}
create function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    floors constant jsonb := p_floors;
    users uuid[];
    due jsonb;
    last_user uuid;
    first_year integer;
    last_year integer;
    people jsonb;
begin
    select min(y::integer) - 1, max(y::integer) into first_year, last_year from jsonb_object_keys(floors) y;
    if p_due then
        select array_agg(d.user_id order by d.user_id), jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from jobs.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];

    with sums as materialized (
        -- By the range of ids, so that the index is read in one piece.
        select r.user_id, r.year, sum(r.amount_eur) as amount
        from public.ca_records r
        where r.user_id between users[1] and last_user and r.year between first_year and last_year
            and r.amount_eur > 0 and (not p_due or r.user_id = any (users))
        group by 1, 2
    ), reached as materialized (
        -- What is above zero alone is never less than what counts: this lets through too many, and loses nobody.
        select distinct s.user_id
        from sums s left join public.user_onboarding_data o on o.user_id = s.user_id
        where s.amount * 100 >= (floors ->> s.year::text)::bigint * case
            when s.year = extract(year from o.company_creation_date)
                then (make_date(s.year, 12, 31) - o.company_creation_date + 1) / 366.0
            else 1 end
    ), added as materialized (
        select r.user_id, r.year, r.activity_type as activity,
            (coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100)::bigint as typed,
            (coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100)::bigint as imported
        from public.ca_records r
        where r.user_id in (select x.user_id from reached x) and r.year between first_year and last_year
        group by 1, 2, 3
    ), mixed as (
        select r.user_id, r.year, r.month, r.activity_type as activity,
            (coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100)::bigint as typed,
            (coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100)::bigint as imported,
            bool_or(bool_or(r.source = 'auto_sync')) over w and bool_or(bool_or(r.source <> 'auto_sync')) over w as is_mixed
        from public.ca_records r
        where r.user_id in (select x.user_id from reached x) and r.year between first_year and last_year
        group by 1, 2, 3, 4
        window w as (partition by r.user_id, r.year, r.month)
    ), mixed_years as (
        select m.user_id, m.year, jsonb_agg(jsonb_build_object('month', m.month, 'activity', m.activity,
            'typed', m.typed, 'imported', m.imported) order by m.month, m.activity) as mixed
        from mixed m where m.is_mixed group by 1, 2
    ), years as (
        select a.user_id, a.year, jsonb_agg(jsonb_build_object(
            'activity', a.activity, 'typed', a.typed, 'imported', a.imported) order by a.activity) as sums
        from added a group by 1, 2
    ), books as (
        select y.user_id, jsonb_agg(jsonb_build_object('year', y.year, 'sums', y.sums,
            'mixed', coalesce(m.mixed, '[]')) order by y.year) as years
        from years y left join mixed_years m using (user_id, year) group by 1
    ), held as (
        select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step)) as held
        from jobs.threshold_alerts t
        where t.user_id in (select x.user_id from reached x) and t.year between first_year and last_year group by 1
    )
    select jsonb_agg(jsonb_build_object(
        'user_id', b.user_id, 'created', o.company_creation_date, 'reason', jobs.mail_refusal(p, 'threshold_alert'),
        'held', coalesce(h.held, '[]'), 'years', b.years) order by b.user_id)
    into people
    from books b
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from jobs.mail_people m where m.user_id = b.user_id offset 0) p
    left join public.user_onboarding_data o on o.user_id = b.user_id
    left join held h on h.user_id = b.user_id;

    return jsonb_build_object('people', coalesce(people, '[]'), 'due', coalesce(due, '[]'),
        'scanned', coalesce(cardinality(users), 0),
        'next', case when p_user_id is null and cardinality(users) = p_limit then last_user end);
end $$;

-- Plans alerts: each step once for each user and year, in one mail for all that are new. p_append: to a run that is
-- there already (a sync whose totals changed). p_due: the marks that were checked, taken away unless set again since.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], …}, used_up: [{threshold, step}]}]
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}}
create function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_alerts jsonb, p_due jsonb, p_outline jsonb
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    outline jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
        if opened ->> 'state' <> 'planned' then
            return opened;
        end if;
    end if;
    with alerts as (
        select a.user_id, a.year, a.facts, a.used_up
        from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb)
        join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
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

    planned := jobs.queue_mails(p_run_id, null);
    delete from jobs.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;

    outline := p_outline || jsonb_build_object('items', planned);
    if not p_append then
        update jobs.job_runs set plan = outline where run_id = p_run_id;
    end if;
    return opened || jsonb_build_object('plan', outline);
end $$;
