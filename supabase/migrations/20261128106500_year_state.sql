-- Alerts are differences between what was told and what is: a telling can be withdrawn and told once more, what is to be
-- verified and what is certain are two tellings, and a check knows three years by month. What was told keeps its meaning.
--
-- Locks: threshold_alerts and found_alerts, for changes of the catalogue; the new primary key and the new index read
-- their table once while writes to it wait (about a second per million rows). One transaction, lock_timeout 5 s.

begin;
set local lock_timeout = '5s';

alter table jobs.threshold_alerts
    add column told_as text not null default 'certain',         -- certain, to_verify
    add column times smallint not null default 1,               -- how often it was told
    add column withdrawn_at timestamptz,                        -- since when the books do not say so any more
    drop constraint threshold_alerts_pkey,
    add primary key (user_id, year, threshold, step, told_as);

alter table jobs.found_alerts
    add column withdrawn jsonb not null default '[]';           -- what does not hold any more: the same, with times

-- What an alert names: money in other currencies.
create index integration_transactions_currencies on jobs.integration_transactions (user_id, paris_month)
    where excluded in ('currency', 'unresolved_currency');

-- The books of these users in some years, in cents: by year and activity, and by month and activity, typed and imported
-- apart; of a month that has both, `mixed` says so. One row for each user who has any; with a flaw there are no years.
-- What a user has confirmed of a month with both (book_confirmations) is settled: it is not mixed any more, and of what
-- is the same money one side counts (side_counts).
--   years: [{year, sums: [{activity, typed, imported}], rows: [{month, activity, typed, imported, mixed}]}]
create or replace function jobs.books(p_users uuid[], p_first_year integer, p_last_year integer)
returns table (user_id uuid, created date, years jsonb, flaw text)
-- Never by loops: how many rows each step has is not known, and loops over thousands of users take minutes.
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with cells as materialized (
        select r.user_id, r.year, r.month, left(r.activity_type, 80) as activity, count(*) as entries,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported,
            bool_or(r.source <> 'auto_sync') as is_typed, bool_or(r.source = 'auto_sync') as is_imported
        from public.ca_records r
        where r.user_id = any (p_users) and r.year between p_first_year and p_last_year
        group by 1, 2, 3, 4
    ), owners as materialized (
        select c.user_id, jobs.readable_date(o.company_creation_date) as created,
            case
                when bool_or('NaN' in (c.typed, c.imported)) then 'unreadable_amount'
                when sum(c.entries) > 50000 then 'too_many_rows'
                when count(distinct c.activity) > 100 then 'too_many_activities'
                when o.company_creation_date is not null and jobs.readable_date(o.company_creation_date) is null
                    then 'unreadable_creation_date'
            end as flaw
        from cells c left join (
            -- By their ids: all of it would be read for one user.
            select d.user_id, d.company_creation_date from public.user_onboarding_data d where d.user_id = any (p_users)
        ) o on o.user_id = c.user_id
        group by c.user_id, o.company_creation_date
    ), sound as materialized (
        select c.user_id, c.year, c.month, c.activity, c.typed::bigint as typed, c.imported::bigint as imported,
            bool_or(c.is_typed) over w and bool_or(c.is_imported) over w as is_mixed,
            sum(c.typed) over w as month_typed, sum(c.imported) over w as month_imported
        from cells c join owners n on n.user_id = c.user_id and n.flaw is null
        window w as (partition by c.user_id, c.year, c.month)
    ), answers as materialized (
        select a.user_id, extract(year from a.month)::integer as year, extract(month from a.month)::integer as month,
            a.verdict
        from jobs.book_confirmations a where a.user_id = any (p_users)
    ), judged as materialized (
        select s.*, coalesce(o.verdict, e.verdict) as verdict
        from sound s
        left join answers o on o.user_id = s.user_id and o.year = s.year and o.month = s.month
        left join answers e on e.user_id = s.user_id and e.month is null
    ), settled as materialized (
        select j.user_id, j.year, j.month, j.activity, j.is_mixed and j.verdict is null as is_mixed,
            case when jobs.side_counts(false, j.month_typed, j.month_imported, j.verdict) then j.typed else 0 end as typed,
            case when jobs.side_counts(true, j.month_typed, j.month_imported, j.verdict) then j.imported else 0 end
                as imported
        from judged j
    ), sums as (
        select s.user_id, s.year, s.activity, sum(s.typed)::bigint as typed, sum(s.imported)::bigint as imported
        from settled s group by 1, 2, 3
    ), monthly as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('month', s.month, 'activity', s.activity,
            'typed', s.typed, 'imported', s.imported, 'mixed', s.is_mixed) order by s.month, s.activity) as month_rows
        from settled s group by 1, 2
    ), summed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', s.typed,
            'imported', s.imported) order by s.activity) as sums
        from sums s group by 1, 2
    ), years as (
        select s.user_id, s.year, jsonb_build_object('year', s.year, 'sums', s.sums,
            'rows', m.month_rows) as year_books
        from summed s join monthly m on m.user_id = s.user_id and m.year = s.year
    ), books as (
        select y.user_id, jsonb_agg(y.year_books order by y.year) as years from years y group by 1
    )
    select n.user_id, n.created, b.years, n.flaw from owners n left join books b using (user_id);
$$;

-- It tells the day, too.
drop function jobs.countable_movements(uuid, date[], boolean);
-- A user's countable movements of some months, one row for each movement: what counts by its row (why_excluded), and a
-- payment that Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint, day date)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    select t.provider, t.paris_month, case when f.account is null then s.activity else f.activity end, t.amount_minor,
        (t.occurred_at at time zone 'Europe/Paris')::date
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.excluded is null and not coalesce(f.left_out, s.left_out)
        and (not p_written or coalesce(f.counted, s.counted) @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
end $$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year that stands. The two years before each come with it. A user with a flaw comes without years, and is noted
-- as such where p_noted_at says when.
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 2;
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
    above := array(
        select unnest(jobs.users_above(users, p_due, p_floors))
        union
        select t.user_id from jobs.threshold_alerts t
        where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
            and t.year between first_year and last_year and t.withdrawn_at is null
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
    ), people_found as (
        select a.user_id, jsonb_build_object(
            'user_id', a.user_id, 'created', b.created,
            'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
            'told', coalesce(t.told, '[]'), 'years', coalesce(b.years, '[]')) as person
        -- Who has nothing in their books any more was told something that has to be withdrawn.
        from unnest(above) a (user_id)
        left join jobs.books(above, first_year - years_before, last_year) b on b.user_id = a.user_id
        -- A fence (offset 0): of all people only these.
        cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
        left join told t on t.user_id = a.user_id
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

-- What an alert tells beside its steps, for users who are to get one: what movements of some months add up to on each day
-- (as far as they are in the books, and not too many), what the year has in other currencies, and of which integrations
-- the activity was never said by anybody.
-- p_asked: [{user_id, year, months: [YYYY-MM-01]}]
--   [{user_id, year, days: [{day, activity, amount}], uncounted: [{currency, amount}], assumed: [{provider, activity}]}]
create function public.threshold_details(p_asked jsonb) returns jsonb
language sql security definer stable set search_path = '' set statement_timeout = '28s' set jit = off as $$
    select coalesce(jsonb_agg(jsonb_build_object('user_id', a.user_id, 'year', a.year,
        'days', coalesce(d.days, '[]'), 'uncounted', coalesce(c.uncounted, '[]'), 'assumed', coalesce(s.assumed, '[]'))), '[]')
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
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.integration_transactions t
              where t.user_id = a.user_id and t.excluded in ('currency', 'unresolved_currency')
                  and t.paris_month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
              group by 1 order by 1 limit 20) m
    ) c on true
    left join lateral (
        select jsonb_agg(jsonb_build_object('provider', k.provider, 'activity', k.activity) order by k.provider) as assumed
        from jobs.integration_state k
        left join public.integration_tokens t on t.user_id = k.user_id and t.provider = k.provider
        where k.user_id = a.user_id and k.activity is not null and not k.left_out
            and t.activity_type is distinct from k.activity
    ) s on true;
$$;

-- Notes what one page of a check has found, for the plan of its run. A repeated call notes nothing twice. What a check
-- noted that came to no plan goes a day later.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], …}, used_up: [{threshold, step, told_as}],
--   withdrawn: [{threshold, step, told_as, times}]}]
create or replace function public.jobs_note_alerts(p_run_id uuid, p_alerts jsonb, p_now timestamptz) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    delete from jobs.found_alerts where found_at < p_now - interval '1 day';
    insert into jobs.found_alerts (run_id, user_id, year, facts, used_up, withdrawn, found_at)
    select p_run_id, a.user_id, a.year, a.facts, a.used_up, coalesce(a.withdrawn, '[]'), p_now
    from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb, withdrawn jsonb)
    join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
    order by a.user_id, a.year
    on conflict (run_id, user_id, year) do nothing;
$$;

-- Plans alerts: each step once for each user and year, in one mail for all that are new, and once more if it was withdrawn.
-- p_append: to a run that is there already (a sync whose totals changed). p_due: the marks that were checked, taken away
-- unless set again since. What was found for the run by jobs_note_alerts is planned, and gone from there.
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
    -- What was told again since it was found not to hold is another telling.
    update jobs.threshold_alerts t set withdrawn_at = p_now
    from jobs.found_alerts a, jsonb_to_recordset(a.withdrawn) as w (threshold text, step smallint, told_as text, times smallint)
    where a.run_id = p_run_id and t.user_id = a.user_id and t.year = a.year and t.withdrawn_at is null
        and (t.threshold, t.step, t.told_as, t.times) = (w.threshold, w.step, w.told_as, w.times);
    with alerts as materialized (
        delete from jobs.found_alerts where run_id = p_run_id returning user_id, year, facts, used_up
    ), marked as (
        insert into jobs.threshold_alerts as k (user_id, year, threshold, step, told_as, run_id)
        select distinct a.user_id, a.year, s.threshold, s.step, coalesce(s.told_as, 'certain'), p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint, told_as text)
        order by 1, 2, 3, 4, 5
        on conflict (user_id, year, threshold, step, told_as) do update
            set withdrawn_at = null, times = k.times + 1, run_id = excluded.run_id
            where k.withdrawn_at is not null and k.times < most_times
        returning user_id, year, threshold, step, told_as, times
    ), fresh as (   -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, a.facts, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(m.threshold || '-' || m.step || case when m.told_as <> 'certain' then '-' || m.told_as else '' end
                || case when m.times > 1 then '-' || m.times else '' end, '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
            and (m.told_as = 'to_verify') = (coalesce(c.crossing -> 'doubt', 'null') <> 'null')
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year, a.facts
    )
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    select 'threshold_alert/' || f.user_id || '/' || f.year || '/' || f.steps, 'threshold_alert', f.user_id, f.user_id,
        p_run_id, f.facts || jsonb_build_object('crossings', f.crossings)
    from fresh f
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
                        and a.withdrawn_at is null))
                then 'no_longer_true' end
    from jobs.email_deliveries d
    join jobs.job_items i on i.item_id = d.item_id and i.status = 'failed'
    left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
    where d.user_id = p_user_id and d.status in ('failed', 'refused') and d.provider_id is null
        and d.settled_at >= p_failed_since;
$$;

revoke all on function jobs.countable_movements from public, anon, authenticated, service_role;
revoke all on function public.threshold_details from public, anon, authenticated, service_role;
grant execute on function public.threshold_details to service_role;

commit;
