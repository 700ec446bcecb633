-- What a signed-in user may write, made safe to read. Amounts, dates and texts of ca_records, user_onboarding_data,
-- integration_tokens and the account are read here and nowhere else: nothing outside of this file casts or parses them.
--
-- A value that nobody can work with is null here, and a *flaw* names it: unreadable_amount, too_many_rows,
-- too_many_activities, unreadable_creation_date, too_slow (threshold_books); of the account unreadable_metadata, unreadable_name. Whoever has a
-- flaw is left out of what depends on it, by name; the others never notice. The bounds are far above what a business
-- writes: 50,000 rows in six years, 100 activities. What email_preferences holds that is read are booleans, of which
-- none is unreadable: null stands for the default.

-- A date of a life in business, or null: infinity, years before Christ and years of five digits are none.
create function jobs.readable_date(p_date date) returns date
language sql immutable as $$
    select case when p_date between '1900-01-01' and '2100-12-31' then p_date end;
$$;

-- A text that is stored for us to use as it is (a token, an account, a domain), or null where it is too long to be one.
-- Never cut: a part of an identifier is another identifier.
create function jobs.readable_identifier(p_text text) returns text
language sql immutable as $$
    select case when octet_length(p_text) <= 2048 and octet_length(to_json(p_text)::text) <= 2560 then p_text end;
$$;

-- Whether a text says nothing. What is long says something, and is not read.
create function jobs.is_blank(p_text text) returns boolean
language sql immutable as $$
    select p_text is null or (octet_length(p_text) <= 2048 and btrim(p_text) = '');
$$;

-- How these users say that they are taxed. A name of ours or null; without a row nothing is known.
create function jobs.tax_profiles(p_users uuid[])
returns table (user_id uuid, created date, has_acre boolean, income_tax text)
language sql stable set search_path = '' as $$
    select o.user_id, jobs.readable_date(o.company_creation_date), o.has_acre,
        case when o.ir_mode in ('versement_liberatoire', 'bareme', 'non_soumis') then o.ir_mode end
    from public.user_onboarding_data o where o.user_id = any (p_users);
$$;

-- What is wrong with the accounts of these users: metadata that is no object, is very large, or has something else than
-- a text or yes and no where a plan is said; a name that is no name. No mail depends on either: they are ignored, and
-- named.
create function jobs.account_flaws(p_users uuid[]) returns table (user_id uuid, flaw text)
language sql stable set search_path = '' as $$
    select f.user_id, f.flaw from (
        select u.id as user_id,
            case
                -- As stored: what is large is not looked into.
                when pg_column_size(u.raw_user_meta_data) > 16384
                    or jsonb_typeof(u.raw_user_meta_data) not in ('object', 'null')
                    or exists (select from (values ('plan', 'string'), ('subscription_plan', 'string'),
                            ('is_pro', 'boolean'), ('is_premium', 'boolean')) as k (name, kind)
                        where jsonb_typeof(u.raw_user_meta_data -> k.name) not in (k.kind, 'null', 'string'))
                    then 'unreadable_metadata'
                when octet_length(p.full_name) > 400 or left(p.full_name, 400) ~ '[[:cntrl:]]' then 'unreadable_name'
            end as flaw
        from auth.users u left join public.user_profiles p on p.id = u.id
        where u.id = any (p_users)) f
    where f.flaw is not null;
$$;

-- Those of these users whose typed and imported turnover above zero reaches a floor of a year: p_floors {year: cents},
-- in proportion to the days of a creation year. What is above zero alone is never less than what counts: this lets
-- through too many, and loses nobody. Who has an amount that is no number is among them, to be told.
-- The users come in their order. p_scattered: they are few among many; else the index is read in one piece.
create function jobs.users_above(p_users uuid[], p_scattered boolean, p_floors jsonb) returns uuid[]
language plpgsql stable set search_path = '' set plan_cache_mode = force_custom_plan as $$
declare
    floors constant jsonb := p_floors;
    first_user constant uuid := p_users[1];
    last_user constant uuid := p_users[cardinality(p_users)];
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
begin
    return (
        with sums as materialized (
            select r.user_id, r.year, sum(r.amount_eur) as amount
            from public.ca_records r
            where r.user_id between first_user and last_user and r.year between first_year and last_year
                and r.amount_eur > 0                             -- NaN is above every number
                and (not p_scattered or r.user_id = any (p_users))
            group by 1, 2
        ), dated as (
            select s.*, jobs.readable_date(o.company_creation_date) as created
            from sums s left join public.user_onboarding_data o on o.user_id = s.user_id
        )
        select array_agg(distinct d.user_id order by d.user_id) from dated d
        where d.amount * 100 >= (floors ->> d.year::text)::bigint * case
            when d.year = extract(year from d.created) then (make_date(d.year, 12, 31) - d.created + 1) / 366.0
            else 1 end);
end $$;

-- The books of these users in some years, in cents: by year and activity, and by month and activity, typed and imported
-- apart; of a month that has both above zero, `mixed` says so. One row for each user who has any; with a flaw there are no years.
-- What a user has confirmed of a month with both (book_confirmations) is settled: it is not mixed any more, and of what
-- is the same money one side counts (side_counts).
--   years: [{year, sums: [{activity, typed, imported}], rows: [{month, activity, typed, imported, mixed}]}]
create function jobs.books(p_users uuid[], p_first_year integer, p_last_year integer)
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
    ), abroad as materialized (     -- what an answer for every month is not about (see book_verdict)
        select f.user_id, extract(year from f.month)::integer as year, extract(month from f.month)::integer as month
        from jobs.foreign_months(array(select a.user_id from answers a where a.month is null and a.verdict = 'same')) f
    ), judged as materialized (
        select s.*, coalesce(o.verdict, case when f.user_id is null or e.verdict <> 'same' then e.verdict end) as verdict
        from sound s
        left join answers o on o.user_id = s.user_id and o.year = s.year and o.month = s.month
        left join answers e on e.user_id = s.user_id and e.month is null
        left join abroad f on f.user_id = s.user_id and f.year = s.year and f.month = s.month
    ), settled as materialized (
        select j.user_id, j.year, j.month, j.activity,
            j.is_mixed and least(j.month_typed, j.month_imported) > 0 and j.verdict is null as is_mixed,
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

-- A user's months of a year that have both typed and imported turnover above zero (else nothing is in them twice), in
-- cents, with what the user has confirmed of each. None where the year cannot be read (see month_books).
create function jobs.mixed_months(p_user_id uuid, p_year integer)
returns table (month date, typed bigint, imported bigint, verdict text)
language sql stable set search_path = '' as $$
    with found as materialized (
        select * from public.ca_records a where a.user_id = p_user_id and a.year = p_year limit 50001
    ), months as materialized (
        select make_date(p_year, r.month, 1) as month,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported
        from found r group by r.month
        having least(coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0),
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0)) > 0
    ), soundness as materialized (
        select (select count(*) from found) <= 50000 and not coalesce(bool_or('NaN' in (m.typed, m.imported)), false)
            as is_sound
        from months m
    )
    select m.month, case when s.is_sound then m.typed::bigint end, case when s.is_sound then m.imported::bigint end,
        jobs.book_verdict(p_user_id, m.month)
    from months m cross join soundness s where s.is_sound;
$$;

-- Whether a user's year can be read as far as its months with typed and imported turnover go (see mixed_months).
create function jobs.is_year_readable(p_user_id uuid, p_year integer) returns boolean
language sql stable set search_path = '' as $$
    select count(*) <= 50000 and not coalesce(bool_or(f.amount_eur = 'NaN'), false)
    from (select a.amount_eur from public.ca_records a where a.user_id = p_user_id and a.year = p_year limit 50001) f;
$$;

-- What stands in a user's books for a month, in cents; amounts are null with a flaw. What is confirmed to be the same
-- money counts once (side_counts). verdict: what the user has confirmed of a month that has both above zero.
create function jobs.month_books(p_user_id uuid, p_month date)
returns table (recorded bigint, typed bigint, entries integer, flaw text, verdict text)
language sql stable set search_path = '' as $$
    with sums as (
        select coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported,
            bool_or(r.source <> 'auto_sync') as is_typed, count(*) as entries
        from (select * from public.ca_records a
              where a.user_id = p_user_id and a.year = extract(year from p_month)
                  and a.month = extract(month from p_month)
              limit 50001) r
    ), judged as (
        select s.*, case when least(s.typed, s.imported) > 0 then jobs.book_verdict(p_user_id, p_month) end as verdict,
            case when 'NaN' in (s.typed, s.imported) then 'unreadable_amount'
                when s.entries > 50000 then 'too_many_rows' end as flaw
        from sums s
    )
    select case when j.flaw is null then
            (case when jobs.side_counts(false, j.typed, j.imported, j.verdict) then j.typed else 0 end
            + case when jobs.side_counts(true, j.typed, j.imported, j.verdict) then j.imported else 0 end)::bigint end,
        case when j.flaw is null and j.is_typed then j.typed::bigint end, j.entries::integer, j.flaw, j.verdict
    from judged j;
$$;

-- What a user's books hold for a month, and for its quarter up to its end, by activity, in cents: what there is to
-- declare. What is confirmed to be the same money counts once (side_counts). Null where it cannot be read (see
-- month_books), or has more than 20 activities.
--   [{activity, typed, imported, quarter}]
create function jobs.books_to_declare(p_user_id uuid, p_month date) returns jsonb
language sql stable set search_path = '' as $$
    with found as materialized (
        select * from public.ca_records a
        where a.user_id = p_user_id and a.year = extract(year from p_month)
            and a.month between extract(month from date_trunc('quarter', p_month)) and extract(month from p_month)
        limit 50001
    ), months as materialized (
        select r.month, jobs.book_verdict(p_user_id, make_date(extract(year from p_month)::integer, r.month, 1)) as verdict,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) as imported
        from found r group by r.month
    ), counted as materialized (
        select r.activity_type, r.month, r.source, r.amount_eur
        from found r join months m on m.month = r.month
        where jobs.side_counts(r.source = 'auto_sync', m.typed, m.imported, m.verdict)
    ), sums as (
        select left(r.activity_type, 80) as activity, coalesce(sum(r.amount_eur), 0) * 100 as quarter,
            coalesce(sum(r.amount_eur) filter (where r.month = extract(month from p_month) and r.source <> 'auto_sync'), 0)
                * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.month = extract(month from p_month) and r.source = 'auto_sync'), 0)
                * 100 as imported
        from counted r group by 1
    )
    select case when count(*) <= 20 and (select count(*) from found) <= 50000
            and not coalesce(bool_or('NaN' in (s.quarter, s.typed, s.imported)), false)
        then coalesce(jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', trunc(s.typed),
            'imported', trunc(s.imported), 'quarter', trunc(s.quarter)) order by s.activity), '[]') end
    from sums s;
$$;

-- A day of somebody's life as a user, or null: a user may write infinity, or a year of five digits.
create function jobs.readable_instant(p_at timestamptz) returns timestamptz
language sql immutable as $$
    select case when p_at between '1900-01-01 00:00:00+00' and '2100-12-31 00:00:00+00' then p_at end;
$$;

-- An amount in cents, or null where it is no number.
create function jobs.readable_cents(p_amount numeric) returns bigint
language sql immutable as $$
    select case when p_amount between -1e15 and 1e15 then trunc(p_amount * 100)::bigint end;
$$;

-- What stands in a user's books, by month, in cents, from 2000 to 2100; amounts are null with a flaw. Worth: of the imported
-- rows, as they say it themselves.
create function jobs.recorded_months(p_user_id uuid)
returns table (month date, typed bigint, imported bigint, entries integer, flaw text, worth text)
language sql stable set search_path = '' as $$
    with found as materialized (
        select * from public.ca_records a where a.user_id = p_user_id and a.year between 2000 and 2100 limit 50001
    ), sums as (
        select make_date(r.year, r.month, 1) as month, count(*) as entries,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) as imported,
            max(case when r.source = 'auto_sync' and r.metadata ->> 'status' in ('complete', 'provisional', 'partial')
                then r.metadata ->> 'status' end) as worth
        from found r group by 1
    )
    select s.month, case when f.flaw is null then jobs.readable_cents(s.typed) end,
        case when f.flaw is null then jobs.readable_cents(s.imported) end, s.entries::integer, f.flaw, s.worth
    from sums s cross join lateral (select case when 'NaN' in (s.typed, s.imported) then 'unreadable_amount'
        when (select count(*) from found) > 50000 then 'too_many_rows' end as flaw) f;
$$;

-- The rows of a user's month, the largest first; an amount that is no number comes as null, before all others.
create function jobs.recorded_rows(p_user_id uuid, p_month date, p_limit integer)
returns table (activity text, amount bigint, is_imported boolean, written_at timestamptz)
language sql stable set search_path = '' as $$
    select left(r.activity_type, 80), jobs.readable_cents(r.amount_eur), r.source = 'auto_sync',
        jobs.readable_instant(r.created_at)
    from public.ca_records r
    where r.user_id = p_user_id and r.year = extract(year from p_month) and r.month = extract(month from p_month)
    order by r.amount_eur desc, r.id limit p_limit;
$$;

-- A user's year up to the end of a month, as the month's recap shows it, in cents: sums by activity, with what is confirmed
-- to be the same money once (side_counts); what is typed for the months after (ahead); and the months between p_since and
-- p_month in which nothing stands (empty). Null where the year cannot be read (see month_books), or has more than 20
-- activities.
--   {sums: [{activity, typed, imported}], ahead, empty: [YYYY-MM]}
create function jobs.year_to_date(p_user_id uuid, p_month date, p_since date) returns jsonb
language sql stable set search_path = '' as $$
    with found as materialized (
        select * from public.ca_records a
        where a.user_id = p_user_id and a.year = extract(year from p_month) limit 50001
    ), months as materialized (
        select r.month, jobs.book_verdict(p_user_id, make_date(extract(year from p_month)::integer, r.month, 1)) as verdict,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) as imported
        from found r where r.month <= extract(month from p_month) group by r.month
    ), sums as materialized (
        select left(r.activity_type, 80) as activity,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported
        from found r join months m on m.month = r.month
        where jobs.side_counts(r.source = 'auto_sync', m.typed, m.imported, m.verdict)
        group by 1
    ), later as materialized (
        select coalesce(sum(r.amount_eur), 0) * 100 as ahead from found r
        where r.month > extract(month from p_month) and r.source <> 'auto_sync'
    ), empty as (
        select jsonb_agg(to_char(g.month, 'YYYY-MM') order by g.month) as months
        from generate_series(greatest(p_since, date_trunc('year', p_month)), p_month - interval '1 month', '1 month')
            as g (month)
        where extract(month from g.month) not in (select r.month from found r)
    )
    select case when (select count(*) from sums) <= 20 and (select count(*) from found) <= 50000
            and l.ahead <> 'NaN' and not exists (select from sums s where 'NaN' in (s.typed, s.imported))
        then jsonb_build_object('ahead', trunc(l.ahead), 'empty', coalesce(e.months, '[]'),
            'sums', (select coalesce(jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', trunc(s.typed),
                'imported', trunc(s.imported)) order by s.activity), '[]') from sums s)) end
    from later l cross join empty e;
$$;

-- The first month with turnover above zero before the month of a date of creation, as far as three years back: the books
-- contradict the date. Null: they do not.
create function jobs.turnover_before_creation(p_user_id uuid, p_created date) returns date
language sql stable set search_path = '' as $$
    select min(s.month) from (
        select make_date(r.year, r.month, 1) as month from public.ca_records r
        where r.user_id = p_user_id and r.year between extract(year from p_created) - 3 and extract(year from p_created)
        group by r.year, r.month having sum(r.amount_eur) > 0 and sum(r.amount_eur) <> 'NaN') s
    where s.month < date_trunc('month', p_created);
$$;

-- Whether anything stands in a user's books for the twelve months before a month.
create function jobs.has_books_before(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from public.ca_records a where a.user_id = p_user_id and (
        a.year = extract(year from p_month) and a.month < extract(month from p_month)
        or a.year = extract(year from p_month) - 1 and a.month >= extract(month from p_month)));
$$;
