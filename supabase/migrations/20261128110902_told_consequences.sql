-- What follows from a year is told by itself where no step tells it; what was told and does not hold any more is said
-- once, in the next mail.
--
-- Locks: threshold_alerts and found_alerts while columns are added (the catalogue only); auth.users for a moment, for a
-- foreign key. It reads the alerts among email_deliveries. One transaction, lock_timeout 5 s. A second time it is refused
-- and changes nothing.

begin;
set local lock_timeout = '5s';

alter table jobs.threshold_alerts add column unsaid_by bigint;
alter table jobs.found_alerts add column consequences jsonb not null default '{}';

-- What follows from a year and was mailed, by itself or beside a step: vat_due (VAT is due already), micro_left (out of the
-- micro regime, or soon). Each once a year, and once more if it was withdrawn.
create table jobs.told_consequences (
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    consequence text not null check (consequence in ('vat_due', 'micro_left')),
    run_id uuid not null,                            -- the run that told it last
    times smallint not null default 1,               -- how often it was told
    withdrawn_at timestamptz,                        -- since when the books do not say so any more
    unsaid_by bigint,                                -- as in threshold_alerts
    primary key (user_id, year, consequence)
);
alter table jobs.told_consequences enable row level security;
revoke all on jobs.told_consequences from public, anon, authenticated, service_role;

-- What alerts that left have said beside their steps.
insert into jobs.told_consequences (user_id, year, consequence, run_id)
select distinct on (d.user_id, (d.facts ->> 'year')::integer, c.consequence) d.user_id, (d.facts ->> 'year')::integer, c.consequence, d.run_id
from jobs.email_deliveries d
cross join lateral (values
    ('vat_due', d.facts #>> '{state,certain,vat,is}' in ('since', 'since_new_year', 'since_year_before'), 'vat_%'),
    ('micro_left', d.facts #>> '{state,certain,micro,is}' in ('twice', 'out'), 'micro_%')) as c (consequence, is_so, names)
where d.kind = 'threshold_alert' and d.user_id is not null and d.status in ('sent', 'unknown') and c.is_so
    and exists (select from jsonb_array_elements(d.facts -> 'crossings') x where x ->> 'threshold' like c.names)
order by d.user_id, (d.facts ->> 'year')::integer, c.consequence, d.delivery_id desc;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds}], sealed batches in the order of their payload}
create or replace function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_outage jsonb, p_now timestamptz
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
    if lane = 'alerts' and jobs.hold_trouble_mails(p_claim, p_outage, p_now)
        and not exists (select from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued') then
        return 'null'::jsonb;
    end if;

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
        set lease_id = p_claim, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from jobs.email_deliveries d
        where d.batch_id = batches[1] and d.status = 'sealed' and i.item_id = d.item_id and i.status = 'queued';
    end if;

    if batches is null then
        perform jobs.retract_in_mails(mine);
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
                    jsonb_build_object('recorded', m.recorded, 'entries', m.entries,
                        'books', jobs.books_to_declare(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')),
                        'profile', jsonb_build_object('created', t.created, 'has_acre', t.has_acre,
                            'income_tax', t.income_tax), 'mixed', x.months, 'verdict', m.verdict,
                        'definitive', f.told, 'uncounted', f.uncounted, 'incomplete', coalesce(w.incomplete, '[]'),
                        'assumed', jobs.assumed_activities(d.user_id), 'today', (p_now at time zone 'Europe/Paris')::date)
                    when 'definitive_month' then jsonb_build_object('definitive', f.told, 'uncounted', f.uncounted,
                        'incomplete', coalesce(w.incomplete, '[]'))
                    when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums', 'created', t.created,
                        'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                        'mixed', x.months, 'verdict', m.verdict,
                        'assumed', jobs.assumed_activities(d.user_id)) || jobs.recap_anew(d.user_id, d.facts, p_now)
                    else '{}' end
                || case when d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') then jsonb_build_object(
                    'retracted', coalesce(nullif(jobs.retractions(d.user_id, d.delivery_id), '[]'),
                        d.facts -> 'retracted', '[]')) else '{}' end end,
            'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                    case when d.kind = 'integration_trouble'
                        then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end,
                    case when d.kind = 'definitive_month' then case when f.told is null then 'month_incomplete'
                        when f.told ->> 'mailed' = f.told ->> 'total' then 'month_unchanged' end end) end,
            'expired', coalesce(d.expires_at <= p_now, false),
            'age_seconds', greatest(0, extract(epoch from p_now - b.sealed_at))::bigint)
            order by d.position, d.delivery_id), '[]')
        from (
            select * from jobs.email_deliveries
            where delivery_id = any (mine) and status = 'planned' and batches is null
            union all
            -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
            select * from jobs.email_deliveries where batch_id = batches[1] and status = 'sealed'
        ) d
        left join jobs.job_items i on i.item_id = d.item_id
        left join jobs.email_batches b on b.batch_id = d.batch_id
        -- A fence (offset 0): of all people only these.
        left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
        left join lateral jobs.month_books(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')) m
            on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
        left join lateral jobs.tax_profiles(array[d.user_id]) t
            on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
        left join lateral (     -- the mail's month, with those before it in its quarter for what is to be declared
            select array_agg(g.month::date order by g.month) as months
            from to_date(d.facts ->> 'month', 'YYYY-MM') as o (month) cross join generate_series(
                case d.kind when 'definitive_month' then o.month else date_trunc('quarter', o.month)::date end,
                o.month, '1 month') as g (month)
        ) q on d.kind in ('monthly_reminder', 'definitive_month') and d.status = 'planned'
        left join lateral (     -- of who has an integration: what these months lack, and where that is something
            select jsonb_agg(l.lacks order by o.place) filter (where l.lacks @> '{"in_books": true}'
                    and not l.lacks @> '{"maybe_twice": 0, "passed_on": 0, "partial": false}'
                    or l.lacks @> '{"in_books": true}' and l.lacks -> 'unread' <> '[]') as incomplete,
                (array_agg(l.lacks order by o.place desc))[1] as of_month
            from unnest(q.months) with ordinality as o (month, place)
            cross join lateral (select jobs.month_lacks(d.user_id, o.month, p_now) as lacks offset 0) l
        ) w on q.months is not null and exists (select from public.integration_tokens t where t.user_id = d.user_id)
        left join lateral (
            select jobs.definitive_month(d.user_id, q.months[cardinality(q.months)], w.of_month) as told,
                jobs.uncounted_currencies(d.user_id, q.months) as uncounted
        ) f on q.months is not null
        left join lateral (     -- no longer than a mail may be
            select jobs.year_to_date(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM'), coalesce(
                date_trunc('month', t.created)::date,
                (select min(c.first_month) from jobs.integration_state c where c.user_id = d.user_id))) as to_date
        ) y on d.kind = 'monthly_recap' and d.status = 'planned'
        left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
            select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                'imported', q.imported) order by q.month), '[]') as months
            from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
        ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
end $$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year, but the first, that stands. The first year only explains those after it; the one before it comes, too. A
-- user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- What was assumed of their imported money is corrected first, unless nothing is to be written (p_noted_at null).
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      consequences: [{year, consequence, times, withdrawn}], years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 1;
    most_corrected constant integer := 50;      -- some milliseconds each
    users uuid[];
    due jsonb;
    above uuid[];
    last_user uuid;
    more boolean;
    flawed uuid[];
    flaws text[];
    is_cut boolean;
    people jsonb;
begin
    if p_due then
        -- Before the books: a mark that is set again while they are read is not taken for this one.
        select array_agg(d.user_id order by d.user_id),
            jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from jobs.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    if p_noted_at is not null then
        perform jobs.correct_assumed_activities(users, most_corrected, p_now);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    above := array(
        select unnest(jobs.users_above(users, p_due, p_floors))
        union
        select t.user_id from jobs.threshold_alerts t
        where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
            and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
        union
        select t.user_id from jobs.told_consequences t
        where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
            and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
        order by 1);
    if cardinality(above) > most_books then
        above := above[1:most_books];
        last_user := above[most_books];
        more := true;
    end if;

    with told as (
        select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step,
            'told_as', t.told_as, 'times', t.times, 'withdrawn', t.withdrawn_at is not null)) as told
        from jobs.threshold_alerts t
        where t.user_id = any (above) and t.year between first_year and last_year group by 1
    ), followed as (
        select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'consequence', t.consequence, 'times', t.times,
            'withdrawn', t.withdrawn_at is not null)) as told
        from jobs.told_consequences t
        where t.user_id = any (above) and t.year between first_year and last_year group by 1
    ), people_found as (
        select a.user_id, jsonb_build_object(
            'user_id', a.user_id, 'created', b.created,
            'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
            'told', coalesce(t.told, '[]'), 'consequences', coalesce(f.told, '[]'),
            'years', coalesce(b.years, '[]')) as person
        -- Who has nothing in their books any more was told something that has to be withdrawn.
        from unnest(above) a (user_id)
        left join jobs.books(above, first_year - years_before, last_year) b on b.user_id = a.user_id
        -- A fence (offset 0): of all people only these.
        cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
        left join told t on t.user_id = a.user_id
        left join followed f on f.user_id = a.user_id
    ), measured as materialized (
        select f.user_id, f.person, row_number() over w as n, sum(octet_length(f.person::text)) over w as bytes
        from people_found f window w as (order by f.user_id)
    ), page as (
        select * from measured m where m.n = 1 or m.bytes <= p_bytes
    )
    select jsonb_agg(g.person order by g.user_id), array_agg(g.user_id order by g.user_id),
        array_agg(g.user_id order by g.user_id) filter (where g.person ->> 'flaw' is not null),
        array_agg(g.person ->> 'flaw' order by g.user_id) filter (where g.person ->> 'flaw' is not null),
        (select count(*) from measured) > count(*)
    into people, above, flawed, flaws, is_cut
    from page g;
    if is_cut then
        last_user := above[cardinality(above)];
        more := true;
    end if;

    if p_noted_at is not null then
        perform jobs.note_unreadable('books', array(select u from unnest(users) u where u <= last_user), flawed, flaws,
            p_noted_at);
    end if;
    return jsonb_build_object(
        'people', coalesce(people, '[]'),
        'due', (select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(due) d
            where (d ->> 'user_id')::uuid <= last_user),
        'scanned', (select count(*) from unnest(users) u where u <= last_user),
        'next', case when more then last_user end);
end $$;

-- Notes what one page of a check has found, for the plan of its run. A repeated call notes nothing twice. What a check
-- noted that came to no plan goes a day later.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], consequences: [what is told by itself], …},
--   used_up: [{threshold, step, told_as}], withdrawn: [{threshold, step, told_as, times, withdrawn}],
--   consequences: see found_alerts}]
create or replace function public.jobs_note_alerts(p_run_id uuid, p_alerts jsonb, p_now timestamptz) returns void
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

-- Plans alerts: each step and each consequence once for each user and year, in one mail for all that are new, and once more
-- if it was withdrawn.
-- p_append: to a run that is there already (a sync whose totals changed). p_due: the marks that were checked, taken away
-- unless set again since. What was found for the run by jobs_note_alerts is planned, and gone from there. Where the same was
-- planned for an address that it did not reach (see untell_alerts), its key ends with /moved.
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}}
create or replace function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_due jsonb, p_outline jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    most_times constant smallint := 2;   -- urssaf::assess
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
    -- Whatever stands of these users' years, in one order for all who plan.
    perform from jobs.threshold_alerts t join jobs.found_alerts a on a.user_id = t.user_id and a.year = t.year
    where a.run_id = p_run_id
    order by t.user_id, t.year, t.threshold, t.step, t.told_as for update of t;
    perform from jobs.told_consequences t join jobs.found_alerts a on a.user_id = t.user_id and a.year = t.year
    where a.run_id = p_run_id
    order by t.user_id, t.year, t.consequence for update of t;
    -- What was told again since it was found not to hold is another telling.
    update jobs.threshold_alerts t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.withdrawn)
        as w (threshold text, step smallint, told_as text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.threshold, t.step, t.told_as, t.times) = (w.threshold, w.step, w.told_as, w.times);
    update jobs.told_consequences t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.consequences -> 'turned')
        as w (consequence text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.consequence, t.times) = (w.consequence, w.times);
    with alerts as materialized (
        delete from jobs.found_alerts where run_id = p_run_id returning user_id, year, facts, used_up, consequences
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
    )
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    select k.key || case when exists (select from jobs.email_deliveries b
            where b.dedupe_key = k.key and b.feedback in ('bounced', 'suppressed', 'refused')) then '/moved' else '' end,
        'threshold_alert', a.user_id, a.user_id, p_run_id, a.facts || jsonb_build_object(
            'crossings', coalesce(c.crossings, '[]'), 'consequences', coalesce(o.consequences, '[]'))
    from alerts a
    left join crossed c on c.user_id = a.user_id and c.year = a.year
    left join alone o on o.user_id = a.user_id and o.year = a.year
    cross join lateral (select 'threshold_alert/' || a.user_id || '/' || a.year || '/' || concat_ws('+', c.steps, o.names)
        as key) k
    where c.steps is not null or o.names is not null
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

-- Whether a mail has said what it says, or is about to: it did not come back.
create function jobs.is_said(d jobs.email_deliveries) returns boolean
language sql immutable set search_path = '' as $$
    select d.status in ('planned', 'sealed', 'sent', 'unknown')
        and coalesce(d.feedback, '') not in ('bounced', 'suppressed', 'refused');
$$;

-- Whether an alert that left has told of a step as certain.
create function jobs.was_step_mailed(a jobs.threshold_alerts) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.email_deliveries d
        where d.user_id = a.user_id and d.kind = 'threshold_alert' and jobs.is_said(d) and d.status <> 'planned'
            and split_part(d.dedupe_key, '/', 3) = a.year::text
            and exists (select from jsonb_array_elements(d.facts -> 'crossings') c
                where c ->> 'threshold' = a.threshold and c ->> 'step' = a.step::text
                    and coalesce(c -> 'doubt', 'null') = 'null'));
$$;

-- Notes for these mails, which are about to be written, what they say of earlier ones: that a ceiling is not exceeded, or
-- that something does not follow, which an alert said. What a mail was to say that never left, another one says. Steps below
-- the ceiling need no word: nothing followed from them. Call only under the ledger's lock.
create function jobs.retract_in_mails(p_deliveries bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    users constant uuid[] := array(select d.user_id from jobs.email_deliveries d
        where d.delivery_id = any (p_deliveries) and d.status = 'planned' and d.user_id is not null
            and d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder'));
begin
    if not exists (select from jobs.threshold_alerts a where a.user_id = any (users) and a.withdrawn_at is not null)
        and not exists (select from jobs.told_consequences a where a.user_id = any (users) and a.withdrawn_at is not null) then
        return;
    end if;
    -- In the order of jobs_plan_alerts.
    perform from jobs.threshold_alerts a where a.user_id = any (users)
    order by a.user_id, a.year, a.threshold, a.step, a.told_as for update;
    perform from jobs.told_consequences a where a.user_id = any (users)
    order by a.user_id, a.year, a.consequence for update;
    update jobs.threshold_alerts a set unsaid_by = m.delivery_id
    from (select d.user_id, min(d.delivery_id) as delivery_id from jobs.email_deliveries d
        where d.delivery_id = any (p_deliveries) and d.status = 'planned' and d.user_id = any (users) group by 1) m
    where a.user_id = m.user_id and a.withdrawn_at is not null and a.step = 100 and a.told_as = 'certain'
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and jobs.was_step_mailed(a);
    update jobs.told_consequences a set unsaid_by = m.delivery_id
    from (select d.user_id, min(d.delivery_id) as delivery_id from jobs.email_deliveries d
        where d.delivery_id = any (p_deliveries) and d.status = 'planned' and d.user_id = any (users) group by 1) m
    where a.user_id = m.user_id and a.withdrawn_at is not null
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and exists (select from jobs.email_deliveries e
            where e.user_id = a.user_id and e.run_id = a.run_id and e.kind = 'threshold_alert' and jobs.is_said(e)
                and e.status <> 'planned');
end $$;

-- What a mail says of earlier ones: see retract_in_mails.
--   [{year, threshold}, {year, consequence}]
create function jobs.retractions(p_user_id uuid, p_delivery_id bigint) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(r.what order by r.year, r.name), '[]') from (
        select a.year, a.threshold as name, jsonb_build_object('year', a.year, 'threshold', a.threshold) as what
        from jobs.threshold_alerts a
        where a.user_id = p_user_id and a.unsaid_by = p_delivery_id and a.withdrawn_at is not null
        union all
        select a.year, a.consequence, jsonb_build_object('year', a.year, 'consequence', a.consequence)
        from jobs.told_consequences a
        where a.user_id = p_user_id and a.unsaid_by = p_delivery_id and a.withdrawn_at is not null) r;
$$;

-- A user's mails that the mail service definitely did not take since p_failed_since, with why one is not sent again (null: it
-- is): no longer wanted, too late, or not true any more. An alert whose step was withdrawn since is not true.
create or replace function jobs.mails_to_resend(p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_now timestamptz)
returns table (delivery_id bigint, item_id bigint, lane text, kind text, about text, reason text)
language sql stable set search_path = '' as $$
    select d.delivery_id, i.item_id, i.lane, d.kind, left(split_part(d.dedupe_key, '/', 3), 40),
        case
            when d.expires_at <= p_now then 'expired'
            when jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now) is not null
                then jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now)
            when d.kind = 'integration_trouble' then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider')
            when d.kind = 'threshold_alert' and exists (
                select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                where not exists (select from jobs.threshold_alerts a where a.user_id = d.user_id
                    and a.year = (d.facts ->> 'year')::integer and a.threshold = c.threshold and a.step = c.step
                        and a.withdrawn_at is null)
                union all
                select from jsonb_array_elements_text(d.facts -> 'consequences') as c (name)
                where not exists (select from jobs.told_consequences a where a.user_id = d.user_id
                    and a.year = (d.facts ->> 'year')::integer and a.consequence = c.name and a.withdrawn_at is null))
                then 'no_longer_true' end
    from jobs.email_deliveries d
    join jobs.job_items i on i.item_id = d.item_id and i.status = 'failed'
    left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
    where d.user_id = p_user_id and d.status in ('failed', 'refused') and d.provider_id is null
        and d.settled_at >= p_failed_since
        -- It has left for another address.
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true.
create or replace function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
language sql stable set search_path = '' as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select d.delivery_id, d.kind
    from today t
    cross join (values ('threshold_alert', 400), ('monthly_recap', 62), ('monthly_reminder', 62), ('definitive_month', 62),
        ('integration_trouble', 62)) as k (kind, days)
    join jobs.email_deliveries d on d.kind = k.kind and d.feedback is not null
        and d.feedback_at > p_now - make_interval(days => k.days)
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p
    where d.feedback in ('bounced', 'suppressed', 'refused') and d.status in ('sent', 'refused')
        and d.address is not null and d.facts <> '{}' and d.dedupe_key not like '%/moved'
        and jobs.mail_refusal(p, d.kind, p_now) is null
        and (d.feedback <> 'refused' or lower(btrim(p.address)) <> lower(btrim(d.address)))
        and case d.kind
            when 'monthly_recap' then t.day < to_date(d.facts ->> 'month', 'YYYY-MM') + interval '2 months'
            when 'threshold_alert' then
                (split_part(d.dedupe_key, '/', 3) = to_char(t.day, 'YYYY') or (extract(month from t.day) = 1
                    and split_part(d.dedupe_key, '/', 3) = to_char(t.day - interval '1 year', 'YYYY')))
                and not exists (
                    select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                    where not exists (select from jobs.threshold_alerts a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.threshold = c.threshold and a.step = c.step
                            and a.withdrawn_at is null)
                    union all
                    select from jsonb_array_elements_text(d.facts -> 'consequences') as c (name)
                    where not exists (select from jobs.told_consequences a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.consequence = c.name and a.withdrawn_at is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Takes back that these alerts were told, for nobody has read them: what was told before stands again as it did then. Their
-- users are checked next, and get by a key of its own (jobs_plan_alerts) what their year says by then, or nothing.
create or replace function jobs.untell_alerts(p_deliveries bigint[], p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    untold jsonb := (select coalesce(jsonb_agg(jsonb_build_object('user_id', d.user_id, 'run_id', d.run_id,
            'year', d.facts -> 'year', 'threshold', c.threshold, 'step', c.step)), '[]')
        from jobs.email_deliveries d
        cross join jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
        where d.delivery_id = any (p_deliveries));
begin
    -- In one order for all who plan; with the lower steps that each has used up.
    perform from jobs.threshold_alerts a
    join jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
        on a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
            and a.run_id = u.run_id
    order by a.user_id, a.year, a.threshold, a.step, a.told_as for update of a;
    delete from jobs.threshold_alerts a
    using jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
    where a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
        and a.run_id = u.run_id and a.times = 1;
    update jobs.threshold_alerts a set times = a.times - 1, withdrawn_at = p_now
    from jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
    where a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
        and a.run_id = u.run_id and a.withdrawn_at is null;
    -- What followed was said by the same mails.
    perform from jobs.told_consequences c join jobs.email_deliveries d on d.user_id = c.user_id and d.run_id = c.run_id
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
    order by c.user_id, c.year, c.consequence for update of c;
    delete from jobs.told_consequences c using jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
        and c.user_id = d.user_id and c.run_id = d.run_id and c.times = 1;
    update jobs.told_consequences c set times = c.times - 1, withdrawn_at = p_now
    from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
        and c.user_id = d.user_id and c.run_id = d.run_id and c.withdrawn_at is null;
    insert into jobs.threshold_checks_due as k (user_id)
    select distinct d.user_id from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.user_id is not null order by 1
    on conflict (user_id) do update set since = excluded.since;
end $$;

-- Rights of the new functions, as 90_rights.sql gives them.
revoke all on function jobs.is_said, jobs.was_step_mailed, jobs.retract_in_mails, jobs.retractions
    from public, anon, authenticated, service_role;

commit;
