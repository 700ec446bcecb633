-- Thresholds: the books that they are held against, and the steps that were told.

-- Steps of thresholds that were mailed, or used up by a higher one: each once a year, and once more if it was withdrawn.
-- What was told as to be verified does not use up what is certain.
create table jobs.threshold_alerts (
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    threshold text not null,
    step smallint not null,
    run_id uuid not null,                            -- the run that told it last
    created_at timestamptz not null default clock_timestamp(),
    told_as text not null default 'certain',         -- certain, to_verify
    times smallint not null default 1,               -- how often it was told
    withdrawn_at timestamptz,                        -- since when the books do not say so any more
    unsaid_by bigint,                                -- the mail that says it: see retract_in_mails
    primary key (user_id, year, threshold, step, told_as)
);

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

-- Users whose imported totals have changed since their thresholds were checked last.
create table jobs.threshold_checks_due (
    user_id uuid primary key references auth.users (id) on delete cascade,
    since timestamptz not null default clock_timestamp()
);

-- Who has written something that could not be read when it was looked at last, and what: books (a check of thresholds;
-- no alert until they are mended) or the account (a plan of mails). Who can be read again has no row any more.
create table jobs.unreadable_input (
    user_id uuid not null references auth.users (id) on delete cascade,
    part text not null,                              -- books, account
    flaw text not null,
    since timestamptz not null,                      -- the instant at which it was found first
    primary key (user_id, part)
);
create index unreadable_input_since on jobs.unreadable_input (since, user_id);

-- Notes which of these users cannot be read, in this part, and takes away the notes of those who can be read again.
-- p_flawed and p_flaws: the user and the flaw of each.
create function jobs.note_unreadable(p_part text, p_users uuid[], p_flawed uuid[], p_flaws text[], p_now timestamptz)
returns void language sql set search_path = '' as $$
    insert into jobs.unreadable_input as k (user_id, part, flaw, since)
    select f.user_id, p_part, f.flaw, p_now
    from unnest(p_flawed, p_flaws) as f (user_id, flaw) join auth.users u on u.id = f.user_id
    order by f.user_id
    on conflict (user_id, part) do update set flaw = excluded.flaw where k.flaw <> excluded.flaw;
    delete from jobs.unreadable_input k
    where k.part = p_part and k.user_id = any (p_users) and k.user_id <> all (coalesce(p_flawed, '{}'));
$$;

-- Alerts that a check has found, until its run is planned: a check finds them page by page, and plans them at once.
create table jobs.found_alerts (
    run_id uuid not null,
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    facts jsonb not null,
    used_up jsonb not null,                          -- what it tells: [{threshold, step, told_as}]
    found_at timestamptz not null,
    -- What does not hold any more: the same, with times. Where it was withdrawn before: what holds again, without a mail.
    withdrawn jsonb not null default '[]',
    consequences jsonb not null default '{}',        -- {tell: [name], turned: [{consequence, times, withdrawn}]}
    primary key (run_id, user_id, year)
);
create index found_alerts_age on jobs.found_alerts (found_at);

-- Gives imported money of these users whose activity was assumed the one that they have typed since (follow_typed_activity),
-- for who is not synced any more: a sync does it by itself. So many users at most, those that nobody works on: others
-- come with the next check.
create function jobs.correct_assumed_activities(p_users uuid[], p_most integer, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    assumed uuid[] := array(
        select s.user_id from jobs.integration_state s
        where s.user_id = any (p_users) and s.provider = 'stripe' and s.activity is not null and s.activity_said_by is null
        union
        select f.user_id from jobs.former_accounts f
        where f.user_id = any (p_users) and f.provider = 'stripe' and f.activity is not null and f.activity_said_by is null);
    one uuid;
    months date[];
    changed uuid[] := '{}';
begin
    if assumed = '{}' then
        return;
    end if;
    for one in select distinct t.user_id from jobs.typed_activities(assumed) t order by 1 limit p_most loop
        continue when not pg_try_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || one::text, 0));
        perform from auth.users u where u.id = one for key share skip locked;
        continue when not found;     -- is being deleted
        months := jobs.follow_typed_activity(one);
        if months <> '{}' then
            perform jobs.recompute_totals(one, months || jobs.months_reported_twice(one, months), p_now);
            changed := changed || one;
        end if;
    end loop;
    -- Should this check be lost, another one follows.
    insert into jobs.threshold_checks_due as d (user_id) select u from unnest(changed) u order by 1
    on conflict (user_id) do update set since = excluded.since;
end $$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year, but the first, that stands. The first year only explains those after it; the three before it come, too. A
-- user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- One who alone takes longer than this may has the flaw too_slow: a page of one answers always.
-- What was assumed of their imported money is corrected first, unless nothing is to be written (p_noted_at null).
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      consequences: [{year, consequence, times, withdrawn}], years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 3;         -- what is due may have begun then
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
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    begin
        if p_noted_at is not null then
            perform jobs.correct_assumed_activities(users, most_corrected, p_now);
        end if;
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
    exception when query_canceled then
        -- Fewer are asked for. One alone is named, and the others go on.
        if cardinality(users) is distinct from 1 then
            raise;
        end if;
        people := jsonb_build_array(jsonb_build_object('user_id', users[1], 'flaw', 'too_slow', 'told', '[]'::jsonb,
            'consequences', '[]'::jsonb, 'years', '[]'::jsonb));
        flawed := users;
        flaws := array['too_slow'];
        is_cut := false;
    end;
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

-- What an alert tells beside its steps, for users who are to get one: what movements of some months add up to on each day
-- (as far as they are in the books, and not too many), what the year has in other currencies, and of which integrations
-- the activity was never said by anybody.
-- p_asked: [{user_id, year, months: [YYYY-MM-01]}]
--   [{user_id, year, days: [{day, activity, amount}], uncounted: [{currency, amount}], assumed: [{provider, activity}]}]
create function public.threshold_details(p_asked jsonb) returns jsonb
language sql security definer stable set search_path = '' set statement_timeout = '28s' set jit = off as $$
    select coalesce(jsonb_agg(jsonb_build_object('user_id', a.user_id, 'year', a.year,
        'days', coalesce(d.days, '[]'), 'uncounted', coalesce(c.uncounted, '[]'),
        'assumed', jobs.assumed_activities(a.user_id))), '[]')
    from jsonb_to_recordset(p_asked) as a (user_id uuid, year integer, months date[])
    left join lateral (
        -- Three activities on 31 days are 93.
        select jsonb_agg(jsonb_build_object('day', m.day, 'activity', m.activity, 'amount', m.amount)) as days
        from (select x.day, left(x.activity, 80) as activity, sum(x.amount_minor)::bigint as amount
              from jobs.countable_movements(a.user_id, a.months, true) x
              where cardinality(a.months) > 0 and x.activity is not null group by 1, 2) m
        having count(*) <= 100 * cardinality(a.months)
    ) d on true
    left join lateral (
        select jsonb_agg(jsonb_build_object('currency', m.currency, 'amount', m.amount) order by m.currency) as uncounted
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.foreign_movements(array[a.user_id]) t
              where t.month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;
