-- What users confirm of their books, what a year makes of them, what the mail service says of mails afterwards, and what was
-- lost and comes back. The page of one user. What a list lacks is a doubt; settlements keep their plans. What was told
-- keeps its meaning, and a mail that asked to connect again counts where it was sent.
--
-- Locks: integration_state, former_accounts, email_deliveries, email_events, email_suppressions, threshold_alerts and
-- found_alerts while columns are added (the catalogue only); a new primary key and three indexes read their tables once
-- while writes wait. The new tables' foreign keys let writes to auth.users wait for a moment. One transaction,
-- lock_timeout 5 s. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

-- What users have confirmed of their books (16_confirmations.sql).
create table jobs.book_confirmations (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date,                                      -- its 1st; null: every month without an answer of its own
    verdict text not null check (verdict in ('distinct', 'same')),
    confirmed_at timestamptz not null,
    unique nulls not distinct (user_id, month)
);

-- Objections to advertising outlive the account (31_mail_people.sql).
create table jobs.advertising_objections (
    address_hash bytea primary key,
    since timestamptz not null
);
create table jobs.objecting_users (
    user_id uuid primary key references auth.users (id) on delete cascade
);

-- What a list of a provider lacks, and what an account counted before it was taken out of the books (20_integrations.sql).
alter table jobs.integration_state
    add column doubted tstzmultirange not null default '{}',
    add column counted_before datemultirange;
alter table jobs.former_accounts add column counted_before datemultirange;
create index integration_transactions_currencies on jobs.integration_transactions (user_id, paris_month)
    where excluded in ('currency', 'unresolved_currency');

-- What the mail service reports after it has accepted a mail (30_mails.sql).
alter table jobs.email_deliveries add column feedback_at timestamptz;
create index email_deliveries_came_back on jobs.email_deliveries (kind, feedback_at) where feedback is not null;
alter table jobs.email_suppressions
    drop constraint email_suppressions_reason_check,
    add constraint email_suppressions_reason_check check (reason in ('bounced', 'complained', 'suppressed'));
alter table jobs.email_events
    add column provider_id text,
    add column outcome text;
create index email_events_provider on jobs.email_events (provider_id) where outcome is not null;

-- What was told, and whether it still holds (40_thresholds.sql). What was told before keeps its meaning.
alter table jobs.threshold_alerts
    add column told_as text not null default 'certain',
    add column times smallint not null default 1,
    add column withdrawn_at timestamptz,
    drop constraint threshold_alerts_pkey,
    add primary key (user_id, year, threshold, step, told_as);
alter table jobs.found_alerts add column withdrawn jsonb not null default '[]';

create or replace view jobs.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at, u.banned_until,
        nullif(left(split_part(btrim(p.full_name), ' ', 1), 40), '') as first_name,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.is_anonymous then 'anonymous'
            when coalesce(btrim(u.email), '') = '' then 'no_address'
            when u.email_confirmed_at is null then 'unconfirmed'
            when s.address_hash is not null then 'suppressed'
        end as unreachable,
        coalesce(e.monthly_reminder, false) as wants_reminder,
        coalesce(e.monthly_recap_email, true) as wants_recap,
        coalesce(e.marketing_email, true) and o.user_id is null as wants_marketing,
        coalesce(e.threshold_alert_email, true) as wants_alerts,
        coalesce(u.raw_user_meta_data ->> 'plan', u.raw_user_meta_data ->> 'subscription_plan',
            u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (u.raw_user_meta_data ->> 'is_pro', u.raw_user_meta_data ->> 'is_premium') as says_paid
    from auth.users u
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(u.email::text)
    left join jobs.objecting_users o on o.user_id = u.id;

-- Whether nobody has taken this slot, although this installation was at work before it opened (p_opens): then a later
-- cron makes it up. What was due before anything ever ran here is owed to nobody.
create function public.jobs_slot_missed(p_task text, p_slot text, p_opens timestamptz) returns boolean
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select not exists (select from jobs.job_slots s where s.task = p_task and s.slot = p_slot)
        and (exists (select from jobs.job_runs r where r.finished_at < p_opens)
            -- Not ended yet. A replay works for an instant at which nothing ran.
            or exists (select from jobs.job_runs r
                where r.finished_at is null and r.as_of < p_opens and r.trigger <> 'replay'));
$$;

-- The lane of a kind of mail; null for what is no kind. The one list of kinds; crates/jobs/src/mail_kind.rs
-- has the same.
create or replace function jobs.lane_of_mail(p_kind text) returns text
language sql immutable as $$
    select case p_kind when 'threshold_alert' then 'alerts' when 'integration_trouble' then 'alerts'
        when 'operator_digest' then 'alerts' when 'monthly_reminder' then 'reminders'
        when 'monthly_recap' then 'recaps' when 'definitive_month' then 'recaps' when 'marketing_day3' then 'marketing' end;
$$;

-- Months of these users with money in currencies that no total has. Our mails ask to type it, so that what was typed for
-- such a month is not what was imported: an answer for every month that it is the same is not about these.
create function jobs.foreign_months(p_users uuid[]) returns table (user_id uuid, month date)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    return query
    select distinct t.user_id, t.paris_month
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')
        and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month;
end $$;

-- What a user has confirmed of a month: distinct, same, or null.
create function jobs.book_verdict(p_user_id uuid, p_month date) returns text
language plpgsql stable set search_path = '' as $$
declare
    own text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month = p_month);
    general text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null);
begin
    return case when own is not null then own
        when general = 'same' and jobs.uncounted_currencies(p_user_id, array[p_month]) <> '[]' then null    -- see foreign_months
        else general end;
end $$;

-- Whether a side of a month counts, the typed or the imported one: both do, but where the user has confirmed that they
-- are the same money. Then the greater one counts; of equals the typed one, whose activity is the user's own word. A
-- side that is not above zero is in nothing twice.
create function jobs.side_counts(p_is_imported boolean, p_typed numeric, p_imported numeric, p_verdict text)
returns boolean language sql immutable as $$
    select p_verdict is distinct from 'same' or least(p_typed, p_imported) <= 0
        or (p_imported > p_typed) = p_is_imported;
$$;

-- The books of these users in some years, in cents: by year and activity, and by month and activity, typed and imported
-- apart; of a month that has both above zero, `mixed` says so. One row for each user who has any; with a flaw there are no years.
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

drop function jobs.month_books;

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
create or replace function jobs.books_to_declare(p_user_id uuid, p_month date) returns jsonb
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

-- Whether anything stands in a user's books for the twelve months before a month.
create function jobs.has_books_before(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from public.ca_records a where a.user_id = p_user_id and (
        a.year = extract(year from p_month) and a.month < extract(month from p_month)
        or a.year = extract(year from p_month) - 1 and a.month >= extract(month from p_month)));
$$;

-- Integrations whose list lacks, at the last read, what it has shown before, or is empty ever since (see settle_figures).
create function jobs.doubted_lists() returns bigint language sql stable set search_path = '' as $$
    select count(*) from jobs.integration_state s
    join public.integration_tokens t on t.user_id = s.user_id and t.provider = s.provider
    where s.doubted <> '{}' and t.is_active and not s.left_out
        and upper(s.doubted) >= coalesce(s.last_success_to, '-infinity');
$$;

drop function jobs.inherited_progress;

-- What a new item inherits from the items that it supersedes: attempts, last error, stored movements, days to look
-- back (p_most_days at most). No row for a subject whose items have nothing of that.
create function jobs.inherited_progress(
    p_items bigint[], p_payload jsonb, p_most_days integer, p_as_of timestamptz
)
returns table (subject uuid, attempts integer, error jsonb, progress jsonb, payload jsonb)
language sql stable as $$
    with old as materialized (
        select i.subject, i.attempts, i.error, i.progress, d.days
        from jobs.job_items i
        cross join lateral (select case when i.payload ->> 'days' is not null then (i.payload ->> 'days')::integer
            + (p_as_of at time zone 'Europe/Paris')::date - (
                select (r.as_of at time zone 'Europe/Paris')::date from jobs.job_runs r where r.run_id = i.run_id)
            end as days) d
        where i.item_id = any (p_items)
            and (i.attempts > 0 or i.progress ? 'records' or d.days > coalesce((p_payload ->> 'days')::integer, 0))
    ), providers as (
        select n.subject, jsonb_object_agg(n.provider, n.n) as by_provider from (
            select o.subject, e.key as provider, sum(e.value::text::bigint) as n
            from old o, jsonb_each(o.progress -> 'by_provider') e group by 1, 2) n
        group by n.subject
    ), months as (
        select o.subject, jsonb_agg(distinct m) as months
        from old o, jsonb_array_elements(o.progress -> 'months') m group by o.subject
    ), summed as (
        select o.subject, max(case when o.days > p_most_days then p_most_days else o.days end) as days,
            -- A provider that keeps failing is given up after five attempts, however often it is planned anew.
            max(o.attempts) as attempts, (array_agg(o.error order by o.attempts desc))[1] as error,
            bool_or(o.progress ? 'records') as stored, sum((o.progress ->> 'records')::bigint) as records
        from old o group by o.subject
    )
    select s.subject, s.attempts, s.error,
        -- Stored at a checkpoint: the new item's to account for, since to it these movements are not new.
        case when s.stored then jsonb_build_object('records', s.records,
            'by_provider', p.by_provider, 'months', coalesce(m.months, '[]')) else '{}' end,
        case when s.days > coalesce((p_payload ->> 'days')::integer, 0)
            then p_payload || jsonb_build_object('days', s.days) else p_payload end
    from summed s left join providers p using (subject) left join months m using (subject);
$$;

drop function public.jobs_plan_sync;

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, goes on counting their attempts, and has waited as long as they have.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- p_most_days bounds how far back. With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned. Old items by their ids alone: a
-- join would read 90 days of finished ones. No just-in-time compilation, which what loops would have cost sets off.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean, p_most_days integer, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_nestloop = off set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
    likely bigint[];
    needless bigint[];
    batch record;
begin
    if p_kind not in ('sync_integration', 'sync_month') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        return (
            with c as materialized (select * from jobs.sync_candidates(p_user_id, p_as_of))
            select jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', jsonb_build_object(
                'items', case p_kind when 'sync_month' then count(distinct c.user_id) filter (where c.reason is null)
                         else count(*) filter (where c.reason is null) end,
                'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                    select reason, count(*) as n from c where reason is not null group by reason) n),
                'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                    select user_id, provider, coalesce(reason, 'due') as outcome
                    from c order by reason nulls first, user_id, provider limit 100) f)))
            from c);
    end if;
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;

    -- When an account was first seen at an integration, whenever it can be read: its books begin there.
    with seen as (
        select t.user_id, t.provider, jobs.readable_identifier(jobs.claimed_account(t)) as account
        from jobs.sync_candidates(p_user_id, p_as_of) c join public.integration_tokens t on t.id = c.integration_id
        where c.reason is null
    )
    insert into jobs.integration_state as s (user_id, provider, claimed, claimed_at)
    select n.user_id, n.provider, n.account, p_as_of
    from seen n left join jobs.integration_state k using (user_id, provider)
    where n.account is not null and n.account is distinct from coalesce(k.claimed, k.account)
    order by n.user_id, n.provider     -- as every plan locks them
    on conflict (user_id, provider) do update set claimed = excluded.claimed, claimed_at = excluded.claimed_at;

    -- What is likely to be superseded. Not locked yet: claims of it would wait until the new items are written.
    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(i.item_id) into likely
    from jobs.job_items i join older using (run_id)
    where i.status = 'queued' and i.kind = p_kind
        and (p_user_id is null or i.user_id = p_user_id)
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
        and (p_kind <> 'sync_month' or i.payload = p_payload);

    -- Everything from one look at the integrations.
    with c as materialized (
        select * from jobs.sync_candidates(p_user_id, p_as_of)
    ), planned as (
        insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress,
            created_at, waiting_since)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), p_now, least(w.since, p_now)
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join jobs.inherited_progress(likely, p_payload, p_most_days, p_as_of) t using (subject)
        left join (select i.subject, min(i.waiting_since) as since from jobs.job_items i
            where i.item_id = any (likely) group by 1) w using (subject)
        order by d.user_id, d.subject     -- as the index of all users' items has them: its pages are met once
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n))
    into outline;

    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(l.item_id) into needless from (
        select i.item_id
        from jobs.job_items i join older using (run_id)
        join jobs.job_items n on n.run_id = p_run_id and n.kind = i.kind and n.subject = i.subject
        where i.status = 'queued' and i.kind = p_kind
            and (p_user_id is null or i.user_id = p_user_id)
            and coalesce(i.leased_until, '-infinity') < clock_timestamp()
            and (p_kind <> 'sync_month' or i.payload = p_payload)
        order by i.item_id for update of i) l;

    if needless is not null then
        for batch in
            with ended as (
                update jobs.job_items i set status = 'superseded', settled_at = p_now
                where i.item_id = any (needless)
                returning i.item_id, i.lane
            )
            select lane, array_agg(item_id) as items from ended group by lane
        loop
            -- At once: pgmq deletes by its own ids, which an item that was never claimed does not know. Waits for
            -- nobody.
            execute format('delete from pgmq.%1$I where msg_id = any (array(
                select q.msg_id from pgmq.%1$I q
                where (q.message ->> ''item_id'')::bigint in (select unnest($1))
                for update of q skip locked))', 'q_jobs_' || batch.lane) using batch.items;
        end loop;
    end if;

    -- Most of it was written right at once: a row that is written twice in one transaction has its foreign keys checked
    -- twice, too. Something was tried, stored or claimed since.
    with now as materialized (
        select * from jobs.inherited_progress(needless, p_payload, p_most_days, p_as_of)
    ), differing as (
        select n.item_id, coalesce(t.attempts, 0) as attempts, t.error, coalesce(t.progress, '{}') as progress,
            coalesce(t.payload, p_payload) as payload
        from jobs.job_items n left join now t using (subject)
        where n.run_id = p_run_id and n.kind = p_kind
            and (n.attempts, n.error, n.progress, n.payload) is distinct from
                (coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), coalesce(t.payload, p_payload))
    )
    update jobs.job_items n
    set attempts = d.attempts, error = d.error, progress = d.progress, payload = d.payload
    from differing d where n.run_id = p_run_id and n.kind = p_kind and n.item_id = d.item_id;

    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- Notes that the stored token opens exactly p_account. Where another account was connected before, its books are put
-- aside, and those of this one taken up again, should it have been connected once. p_all_orders: whether the token
-- reads orders of any age; null where the provider did not tell.
create or replace function public.integration_prove(
    p_integration_id uuid, p_access_token text, p_account text, p_all_orders boolean
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    f jobs.former_accounts;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state k where k.user_id = t.user_id and k.provider = t.provider for update;
    if s.account is distinct from p_account then
        s.claimed_at := case when s.claimed = p_account then s.claimed_at end;
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out)
            -- Until the month in which the other account was seen.
            select t.user_id, t.provider, s.account, s.activity, s.first_month,
                s.counted * datemultirange(daterange(null, (date_trunc('month', r.at at time zone 'Europe/Paris')
                    + interval '1 month')::date)), s.covered, s.last_success_to, r.at, s.left_out
            from (select coalesce(s.claimed_at, s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
            on conflict (user_id, provider, account) do update set
                activity = excluded.activity, first_month = excluded.first_month, counted = excluded.counted,
                covered = excluded.covered, last_success_to = excluded.last_success_to, replaced_at = excluded.replaced_at,
                left_out = excluded.left_out;
        end if;
        delete from jobs.former_accounts k
        where k.user_id = t.user_id and k.provider = t.provider and k.account = p_account returning * into f;
        update jobs.integration_state k set
            account = p_account, activity = f.activity, left_out = false, first_month = null, counted = coalesce(f.counted, '{}'),
            covered = coalesce(f.covered, '{}'), last_success_to = f.last_success_to, deep_read_to = null, all_orders = null,
            doubted = '{}', counted_before = null, token_expires_at = null, refresh_token_expires_at = null
        where k.user_id = t.user_id and k.provider = t.provider;
    end if;
    update jobs.integration_state k set
        proof = jobs.token_fingerprint(t), all_orders = coalesce(p_all_orders, k.all_orders),
        proven_at = clock_timestamp(), updated_at = clock_timestamp()
    where k.user_id = t.user_id and k.provider = t.provider;
    return jsonb_build_object('proven', true);
end $$;

-- A user's Shopify movements of some months that Stripe reports, too. Each Stripe movement explains one of them.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order). Then
-- amount and currency decide, in euros or in the buyer's currency. A payment that names its charge is that charge,
-- whatever it is worth there (another rate, a part captured); a refund is not: what was paid back in another way, or
-- beside a chargeback, is money of its own. p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original, t.excluded,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), sales as materialized (     -- which order, or payment without one, each name belongs to
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            coalesce(s.shop_order, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s where s.excluded is null and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.occurred_at, n as name from doubted d cross join unnest(d.names) n
    ), told as materialized (
        select t.external_id, t.kind, t.amount_minor > 0 as is_in, t.amount_minor, t.currency || t.amount_minor as euros,
            (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money, t.occurred_at, r as name
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR'
            -- A debit on its way, or one that failed, is the same payment in the shop: it was not received there either.
            and (t.excluded is null or t.excluded in ('pending', 'failed'))
            and t.kind in ('payment', 'partial_capture', 'refund') and not coalesce(f.left_out, k.left_out)
            and (not p_written or coalesce(f.counted, k.counted) @> t.paris_month)
    ), whole as materialized (     -- a charge that the shop tells in several pieces, or Stripe does
        select s.name from (
            select n.name, sum(n.amount_minor) as amount from named n where n.is_in group by 1) s
        join (select t.name, sum(t.amount_minor) as amount from told t
            where t.kind in ('payment', 'partial_capture') group by 1) p using (name, amount)
    ), by_name as materialized (
        select distinct n.external_id from named n join whole w using (name) where n.is_in
    ), whole_paid as materialized (
        select distinct t.external_id from told t join whole w using (name) where t.is_in
    ), paid as materialized (
        select distinct on (t.external_id) t.*, s.sale from told t join sales s using (name)
        where t.kind in ('payment', 'refund') order by t.external_id, s.sale
    ), d1 as materialized (
        select d.*, row_number() over (partition by d.sale, d.is_in, d.euros
            order by d.named desc, d.occurred_at, d.external_id) as nth
        from doubted d where not exists (select from by_name n where n.external_id = d.external_id)
    ), p1 as materialized (
        select p.*, row_number() over (partition by p.sale, p.is_in, p.euros order by p.occurred_at, p.external_id) as nth
        from paid p
        where not exists (select from whole_paid w where w.external_id = p.external_id)
    ), by_euros as materialized (
        select d1.external_id as shop_id, p1.external_id as stripe_id
        from d1 join p1 using (sale, is_in, euros, nth)
    ), d2 as materialized (
        select d.sale, d.is_in, d.foreign_money, d.external_id, row_number() over (
            partition by d.sale, d.is_in, d.foreign_money order by d.named desc, d.occurred_at, d.external_id) as nth
        from d1 d where not exists (select from by_euros e where e.shop_id = d.external_id)
    ), p2 as materialized (
        select p.sale, p.is_in, p.foreign_money, p.external_id, row_number() over (
            partition by p.sale, p.is_in, p.foreign_money order by p.occurred_at, p.external_id) as nth
        from p1 p where not exists (select from by_euros e where e.stripe_id = p.external_id)
    ), by_foreign_money as materialized (
        select d2.external_id as shop_id, p2.external_id as stripe_id
        from d2 join p2 using (sale, is_in, foreign_money, nth)
    ), d3 as (                     -- by name alone: a payment by its charge, a refund by its own id
        select n.name, n.is_in, n.external_id,
            row_number() over (partition by n.name, n.is_in order by n.occurred_at, n.external_id) as nth
        from named n join d2 using (external_id)
        where (n.is_in or n.name ~ '^(re|pyr)_')
            and not exists (select from by_foreign_money f where f.shop_id = n.external_id)
    ), p3 as (
        select t.name, t.is_in,
            row_number() over (partition by t.name, t.is_in order by t.occurred_at, t.external_id) as nth
        from told t join p2 using (external_id)
        where not exists (select from by_foreign_money f where f.stripe_id = t.external_id)
    ), explained as (
        select external_id from by_name
        union select shop_id from by_euros
        union select shop_id from by_foreign_money
        union select d3.external_id from d3 join p3 using (name, is_in, nth)
    )
    select e.external_id from explained e join doubted d using (external_id) where d.paris_month = any (p_months);
end $$;

drop function jobs.countable_movements;

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

-- Other months in which a user's Shopify rows may now count or no longer count: those of the same payments and
-- orders as the rows of these months. None where only one provider can report: then nothing that it reports changes
-- what another month's rows count for.
create or replace function jobs.months_reported_twice(p_user_id uuid, p_months date[]) returns date[]
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer date[];
begin
    with named as materialized (
        select t.provider, t.external_id, t.paris_month, r as ref
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'shopify')
            and (exists (select from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = 'stripe')
                or exists (select from jobs.integration_state x
                    where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null))
    ), touched as (   -- the shop's side of what Stripe reports, and the shop's own
        select s.external_id from named s where s.provider = 'shopify' and s.paris_month = any (p_months)
        union
        select s.external_id from named p join named s on s.ref = p.ref and s.provider = 'shopify'
        where p.provider = 'stripe' and p.paris_month = any (p_months)
    )
    select coalesce(array_agg(distinct o.paris_month), '{}')
    into answer
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
    return answer;
end $$;

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of is_uncounted:
--   pending: a payment that is still on its way, where the month is over
--   platform_reversal: a whole payment that a platform took back, as a refund or as a fee
--   refund_of_unknown_sale: a refund of an order whose payment was never read: Stripe may report it, too
--   maybe_twice: a payment in the shop that names no charge, and one at Stripe of the same amount and day
--   beyond_scope: days that lay more than 60 days back when the shop was read, with a scope that reaches no further: 1
--   passed_on: a payment that a platform passed on, which may have kept a part of what the buyer paid
--   doubted_list: days of a list that lacked what it had shown before: 1 for each provider
create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
begin
    return (
    with found as materialized (
        select t.* from jobs.integration_transactions t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.paris_month = p_month and (f.account is null or f.counted @> p_month)
            and not coalesce(f.left_out, s.left_out, false)
    ), sides as materialized (
        select exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) as have_stripe
    ), nameless as materialized (  -- payments in the shop that may have gone through Stripe without saying so
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t cross join sides b
        where b.have_stripe and t.provider = 'shopify' and t.kind = 'payment' and t.excluded is null
            and t.method is distinct from 'cash' and not exists (select from unnest(t.refs) r where r !~ '^gid:')
    ), paid_names as materialized (
        select p.external_id, r as name from found p cross join unnest(p.refs) r
        where p.provider = 'stripe' and exists (select from nameless)
    ), shop_names as materialized (
        select n as name from jobs.integration_transactions s cross join unnest(s.refs) n
        where s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and exists (select from nameless)
    ), explained as materialized (
        select distinct p.external_id from paid_names p join shop_names s using (name)
    ), unexplained as materialized (  -- payments at Stripe that no payment in the shop names
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t
        where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from nameless)
            and not exists (select from explained e where e.external_id = t.external_id)
    ), flaws as (
        select t.excluded as reason, count(*) as n from found t
        where t.excluded is not null and (
            t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            -- What was prevented was paid back where a refund of the same order says so.
            or t.excluded = 'prevented' and not exists (select from jobs.integration_transactions r
                where r.user_id = p_user_id and r.provider = t.provider and r.kind = 'refund' and r.refs && t.refs
                    and r.amount_minor = t.amount_minor)
            or t.excluded <> 'prevented' and jobs.is_uncounted(t))
        group by 1
        union all
        select 'platform_reversal', count(*) from found t
        where t.excluded = 'platform_reversal' and not exists (
            select from jobs.integration_transactions p
            where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                and p.amount_minor > -t.amount_minor)
        union all
        select 'refund_of_unknown_sale', count(*) from (
            select o from found t cross join sides b, unnest(t.refs) o
            where b.have_stripe and t.provider = 'shopify' and t.kind = 'refund' and t.excluded is null
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
            except   -- not by loops: see movements_reported_twice
            select o from jobs.integration_transactions p cross join sides b, unnest(p.refs) o
            where b.have_stripe and p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0) r
        union all
        select 'maybe_twice', count(*) from nameless d
        where exists (select from unexplained p where (p.amount_minor, p.day) = (d.amount_minor, d.day))
        union all
        select 'beyond_scope', count(*) from jobs.integration_state s
        cross join lateral (select tstzrange(p_month::timestamp at time zone 'Europe/Paris', least(
            (p_month + interval '1 month') at time zone 'Europe/Paris',
            greatest(p_as_of - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
        where s.user_id = p_user_id and s.all_orders is false and s.counted @> p_month and not s.covered @> old.days
        union all
        select 'passed_on', count(*) from found t
        where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where r ~ '^tr_')
        union all
        select 'doubted_list', count(*) from jobs.integration_state s
        where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
            and s.doubted && tstzrange(p_month::timestamp at time zone 'Europe/Paris',
                (p_month + interval '1 month') at time zone 'Europe/Paris')
    )
    select coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') from flaws f);
end $$;

-- Of what a month's figure is made, with what was read of it: each account whose books have the month; every active
-- integration where none has, or that was never read. is_owed: its money belongs into the books of the month.
create function jobs.month_sources(p_user_id uuid, p_month date, p_as_of timestamptz)
returns table (provider text, covered tstzmultirange, is_former boolean, is_owed boolean)
language sql stable as $$
    with former as materialized (
        select f.provider, f.covered from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month
    )
    select t.provider, coalesce(s.covered, '{}'), false, coalesce(s.counted @> p_month, false) or (s.first_month is null
        and jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_as_of) <= p_month)
    from public.integration_tokens t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.is_active and s.left_out is not true
        and (s.first_month is null or s.counted @> p_month or (not exists (select from former)
            and not exists (select from jobs.integration_state o where o.user_id = p_user_id and o.counted @> p_month)))
    union all
    -- The month in which an account was replaced holds what was read of it until then, which may not be all.
    select f.provider, f.covered, true, true from former f;
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up to
-- now), partial (something of it was never read, or it has flaws). It follows from the ledger and from what was read,
-- of each account whose books have the month; of every active integration where none has, or that was never read.
--   {status, flaws?: see month_flaws}
create or replace function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    answer jsonb;
begin
    with flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    ), bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as materialized (
        select s.covered, s.is_former from jobs.month_sources(p_user_id, p_month, p_as_of) s
    )
    select jsonb_strip_nulls(jsonb_build_object('flaws', nullif(f.found, '{}'), 'status', case
        when f.found <> '{}' then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(not s.is_former and s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end))
    into answer
    from flaws f cross join bounds b left join sources s on true
    group by f.found, b.starts, b.ends;
    return answer;
end $$;

-- Keeps the rates that the code sent. An older version sends none: then the last ones stay.
-- Looks first: an insert that conflicts would lock the one row until its settlement ends.
create or replace function jobs.take_rates(p_rates jsonb) returns void
language plpgsql set search_path = '' as $$
begin
    insert into jobs.rates_in_use as u (rates)
    select p_rates
    where jsonb_typeof(p_rates) = 'array' and not exists (select from jobs.rates_in_use k where k.rates = p_rates)
    on conflict (is_only) do update set rates = excluded.rates;
end $$;

-- Writes the estimates of a user's imported rows, of all months: rates and profile may have changed since. By the rates
-- of each row's month, to the cent. Without rates (before 2023, or none sent yet) what stands there stays.
-- Rows that already say so are not touched. Where one of the four columns is not as we left it, all four are the
-- user's; the amount stays ours.
-- The rule is urssaf::row_amounts, against which a test compares this. Call only under the user's lock.
create or replace function jobs.write_estimates(p_user_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
    with rates as materialized (
        select x.* from jobs.rates_in_use u cross join jsonb_to_recordset(u.rates) as x (
            activity text, "from" text, "full" numeric, acre_half numeric, acre_three_quarters numeric, flat_tax numeric)
    ), ours as materialized (
        select l.month, l.activity, l.record_id, r.amount_eur as amount,
            l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur
        from jobs.auto_sync_totals l join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
        where l.user_id = p_user_id and l.locked_at is null and r.source = 'auto_sync' and r.amount_eur = l.written_eur
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur)
    ), profile as materialized (
        select p.* from (select) one left join jobs.tax_profiles(array[p_user_id]) p on true
    ), shares as (
        select o.*,
            case when p.income_tax = 'versement_liberatoire' then 'vl' when p.income_tax = 'bareme' then 'bareme' end as mode,
            round(o.amount * 0.0001 * case
                -- ACRE: until the end of the third quarter after the one of the creation.
                when p.has_acre and date_trunc('month', p.created) <= o.month
                    and o.month < date_trunc('quarter', p.created) + interval '1 year'
                then case when p.created < '2026-07-01' then x.acre_half else x.acre_three_quarters end
                else x."full" end, 2) as contrib,
            case when p.income_tax = 'versement_liberatoire' then round(o.amount * 0.0001 * x.flat_tax, 2) end as tax
        from ours o cross join profile p
        cross join lateral (
            select t.* from rates t where t.activity = o.activity and t."from" <= to_char(o.month, 'YYYY-MM')
            order by t."from" desc limit 1) x
    ), wanted as materialized (
        select s.*, s.amount - s.contrib - coalesce(s.tax, 0) as net from shares s
        where (s.contrib, s.amount - s.contrib - coalesce(s.tax, 0), s.mode, s.tax) is distinct from
            (s.written_contrib_eur, s.written_net_eur, s.written_ir_mode, s.written_ir_eur)
    ), written as (
        update public.ca_records r
        set computed_contrib_eur = w.contrib, computed_net_eur = w.net, ir_mode = w.mode, ir_amount_eur = w.tax
        from wanted w
        where r.id = w.record_id and r.user_id = p_user_id and r.source = 'auto_sync'
            and r.amount_eur = w.amount                                          -- not edited in this very moment
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (w.written_contrib_eur, w.written_net_eur, w.written_ir_mode, w.written_ir_eur)
        returning r.id
    )
    update jobs.auto_sync_totals l
    set written_contrib_eur = w.contrib, written_net_eur = w.net, written_ir_mode = w.mode, written_ir_eur = w.tax
    from wanted w join written n on n.id = w.record_id
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity;
end $$;

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
--
-- Known stays known: an answer that says less changes nothing. A payment that has succeeded is not pending again, one
-- that has failed (another row may have said so) is nothing else again; an amount that was known in the account's
-- currency stays, as long as the amount that was told is the same; so do the state, the references, a debit's date.
create or replace function jobs.store_movements(
    p_user_id uuid, p_provider text, p_account text, p_movements jsonb, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    answer jsonb;
begin
    with incoming as (
        select distinct on (m.external_id) m.external_id, m.kind, m.occurred_at, m.amount_minor, left(m.currency, 20) as currency,
            coalesce(m."references", '{}') as refs, m.source_kind, m.state, m.listed_at, m.original,
            -- As the version before this one told it, as long as one of its calls is under way.
            coalesce(m.method, nullif(m.excluded, 'unresolved_currency')) as method,
            coalesce(m.converted, m.excluded is distinct from 'unresolved_currency') as converted
        from jsonb_to_recordset(p_movements) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            "references" text[], source_kind text, state text, method text, listed_at timestamptz, converted boolean,
            original jsonb, excluded text)
    ), before as (
        select t.external_id, t.paris_month from jobs.integration_transactions t join incoming using (external_id)
        where t.user_id = p_user_id and t.provider = p_provider
    ), merged as (
        select n.external_id,
            case when n.kind = 'unknown' or (n.kind = 'refund' and t.kind = 'platform_reversal')
                then coalesce(t.kind, n.kind) else n.kind end as kind,
            case when n.kind = 'dispute' and n.state is distinct from t.state then n.occurred_at
                when t.occurred_at <> t.listed_at and n.occurred_at = n.listed_at and n.listed_at = t.listed_at
                then t.occurred_at else coalesce(n.occurred_at, t.occurred_at) end as occurred_at,
            case when k.keep then t.amount_minor else n.amount_minor end as amount_minor,
            case when k.keep then t.currency else n.currency end as currency,
            case when k.keep then true else n.converted end as converted,
            case when k.keep then coalesce(t.original, n.original) when t.amount_minor is null then n.original
                else coalesce(n.original, t.original) end as original,
            case when t.refs @> n.refs then t.refs
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            coalesce(n.source_kind, t.source_kind) as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
                when n.state in ('pending', 'unknown') and t.state = 'succeeded' then t.state
                when n.state = 'unknown' then coalesce(t.state, n.state)
                else coalesce(n.state, t.state) end as state,
            coalesce(n.method, t.method) as method,
            coalesce(n.listed_at, t.listed_at) as listed_at
        from incoming n
        left join jobs.integration_transactions t
            on t.user_id = p_user_id and t.provider = p_provider and t.external_id = n.external_id
        cross join lateral (
            select coalesce(t.converted and t.amount_minor is not null and (not n.converted or n.amount_minor is null)
                and (t.original is null or (t.original -> 'amount', t.original -> 'currency')
                    is not distinct from (n.original -> 'amount', n.original -> 'currency')), false) as keep) k
    ), stored as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        from merged m order by m.external_id
        on conflict (user_id, provider, external_id) do update set
            account = excluded.account, kind = excluded.kind, occurred_at = excluded.occurred_at,
            amount_minor = excluded.amount_minor, currency = excluded.currency, refs = excluded.refs,
            source_kind = excluded.source_kind, state = excluded.state, method = excluded.method,
            listed_at = excluded.listed_at, converted = excluded.converted, original = excluded.original,
            updated_at = clock_timestamp()
        where (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (excluded.account, excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency, excluded.refs,
                excluded.source_kind, excluded.state, excluded.method, excluded.listed_at, excluded.converted,
                excluded.original)
        returning t.external_id, t.paris_month
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct b.paris_month) filter (where b.paris_month <> s.paris_month), '[]'))
    into answer
    from stored s left join before b using (external_id);
    return answer;
end $$;

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), and payments of which another row says that they failed. The months that
-- this touches.
create or replace function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language plpgsql set search_path = '' as $$
declare
    answer date[];
begin
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
            and exists (select from failures f where f.r = any (t.refs))
        returning t.paris_month, t.refs
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from failed p join failures f on f.r = any (p.refs)) m;
    return answer;
end $$;

-- Whether somebody refuses a kind of mail, or cannot be reached at p_now; null: they want it.
create or replace function jobs.mail_refusal(p jobs.mail_people, p_kind text, p_now timestamptz) returns text
language sql stable as $$
    select coalesce(case when p.banned_until > p_now and p.unreachable is distinct from 'user_deleted'
        then 'user_banned' else p.unreachable end, case when not case p_kind
        when 'threshold_alert' then p.wants_alerts
        when 'integration_trouble' then true
        when 'monthly_reminder' then p.wants_reminder
        when 'monthly_recap' then p.wants_recap
        when 'definitive_month' then p.wants_recap    -- what the recap said, put right
        when 'marketing_day3' then p.wants_marketing
        else jobs.reject_unknown_kind(p_kind) end then 'refused_by_user' end);
$$;

-- Plans the J+3 mails (p_first_day, p_last_day) or the reminders for a month (p_month, p_expires_at). With p_dry_run
-- nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], unreadable?: n, definitive?: n, candidates?: […]}}
-- definitive: how many get the month's definitive total by a mail of its own, since no reminder tells them.
-- unreadable: how many of those that were looked at have an account that cannot be read (see account_flaws); noted.
create or replace function public.jobs_plan_mails(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_user_id uuid, p_dry_run boolean, p_prices jsonb,
    p_first_day integer, p_last_day integer, p_month date, p_expires_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
    users uuid[];
    flawed uuid[];
    flaws text[];
    reminded uuid[];
    definitive integer;
begin
    if p_kind not in ('marketing_day3', 'monthly_reminder') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        with c as materialized (
            select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
            where p_kind = 'marketing_day3'
            union all
            select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
            where p_kind = 'monthly_reminder'
        )
        select jsonb_build_object(
            'items', count(*) filter (where c.reason is null),
            'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                select reason, count(*) as n from c where reason is not null group by reason) n),
            'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
                select distinct left(unknown_price, 80) as unknown_price
                from c where unknown_price is not null order by 1 limit 10) n),
            'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                select c.user_id, coalesce(c.reason, 'due') as outcome
                from c order by c.reason nulls first, c.user_id limit 100) f)),
            array_agg(c.user_id), array_agg(c.user_id) filter (where c.reason is null)
        into outline, users, reminded from c;
        if p_kind = 'monthly_reminder' then
            select count(*) into definitive from jobs.definitive_candidates(p_user_id, p_month, p_now) f
            where f.user_id <> all (coalesce(reminded, '{}'));
            if definitive > 0 then
                outline := outline || jsonb_build_object('definitive', definitive);
            end if;
        end if;
        return jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', outline
            || coalesce((select jsonb_build_object('unreadable', count(*))
                from jobs.account_flaws(users) having count(*) > 0), '{}'));
    end if;
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    with c as materialized (
        select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
        where p_kind = 'marketing_day3'
        union all
        select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
        where p_kind = 'monthly_reminder'
    ), planned as (
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select c.dedupe_key, p_kind, c.user_id, c.user_id, p_run_id, c.facts, c.expires_at
        from c where c.reason is null
        order by c.user_id                    -- two plans at once wait for each other in one order
        on conflict (dedupe_key) do nothing   -- another run was faster
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n),
        'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
            select distinct left(unknown_price, 80) as unknown_price
                from c where unknown_price is not null order by 1 limit 10) n)),
        (select array_agg(c.user_id) from c)
    into outline, users;
    if p_kind = 'monthly_reminder' then
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select f.dedupe_key, 'definitive_month', f.user_id, f.user_id, p_run_id,
            jsonb_build_object('month', to_char(p_month, 'YYYY-MM')), p_expires_at
        from jobs.definitive_candidates(p_user_id, p_month, p_now) f
        order by f.user_id
        on conflict (dedupe_key) do nothing;
        get diagnostics definitive = row_count;
        if definitive > 0 then
            outline := outline || jsonb_build_object('definitive', definitive);
        end if;
    end if;
    select array_agg(f.user_id order by f.user_id), array_agg(f.flaw order by f.user_id) into flawed, flaws
    from jobs.account_flaws(users) f;
    perform jobs.note_unreadable('account', users, flawed, flaws, p_now);
    if flawed is not null then
        outline := outline || jsonb_build_object('unreadable', cardinality(flawed));
    end if;
    perform jobs.queue_mails(p_run_id, null, p_now);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

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
                        'today', (p_now at time zone 'Europe/Paris')::date)
                    when 'definitive_month' then jsonb_build_object('definitive', f.told, 'uncounted', f.uncounted,
                        'incomplete', coalesce(w.incomplete, '[]'))
                    when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums', 'created', t.created,
                        'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                        'mixed', x.months, 'verdict', m.verdict) || jobs.recap_anew(d.user_id, d.facts, p_now)
                    else '{}' end end,
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

-- What the mail service reports of a mail that it had accepted, the worse the higher; 0: nothing.
--   delayed: it is still trying; delivered; returned: the mailbox did not take it this time; mailbox_full: it had no room;
--   failed: it did not leave, for a reason of ours or of the service; refused: it did not leave, because of the address; suppressed: the service keeps mails
--   from this address; bounced: the address refuses mails; complained: the reader called it spam
create function jobs.feedback_rank(p_outcome text) returns integer
language sql immutable set search_path = '' as $$
    select coalesce(array_position(array['delayed', 'delivered', 'returned', 'mailbox_full', 'failed', 'refused', 'suppressed', 'bounced',
        'complained'], p_outcome), 0);
$$;

-- Notes on these mails what the service has reported of them, the worst that there is, whether it came before or after our
-- note of their ids. What did not arrive for a reason that is ours or passes is planned once more, under a key of its
-- own; not an offer, for which nobody waits. An out-of-office note comes as a bounce that passes, too: what was delivered
-- has arrived, and only a full mailbox is tried again.
create function jobs.apply_feedback(p_provider_ids text[], p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    run record;
begin
    with worst as (
        select distinct on (e.provider_id) e.provider_id, e.outcome
        from jobs.email_events e where e.provider_id = any (p_provider_ids) and e.outcome is not null
            and not (e.outcome in ('returned', 'mailbox_full') and exists (select from jobs.email_events a
                where a.provider_id = e.provider_id and a.outcome = 'delivered'))
        order by e.provider_id, jobs.feedback_rank(e.outcome) desc
    )
    update jobs.email_deliveries d
    set feedback = nullif(w.outcome, 'delivered'), feedback_at = case when w.outcome <> 'delivered' then p_now end
    from worst w
    where d.provider_id = w.provider_id and (jobs.feedback_rank(w.outcome) > jobs.feedback_rank(d.feedback)
            or w.outcome = 'delivered' and d.feedback in ('returned', 'mailbox_full'))
        -- A mailbox that is full for an offer is nothing to note.
        and (w.outcome not in ('returned', 'mailbox_full') or d.kind <> 'marketing_day3');
    for run in
        with again as (
            insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
            select d.dedupe_key || '/again', d.kind, d.user_id, d.recipient, d.run_id, d.facts, d.expires_at
            from jobs.email_deliveries d join jobs.job_runs r on r.run_id = d.run_id
            where d.provider_id = any (p_provider_ids) and d.feedback in ('failed', 'mailbox_full')
                and d.kind <> 'marketing_day3' and d.facts <> '{}' and d.dedupe_key not like '%/again'
                and (d.user_id is not null or d.recipient is null)
                and (d.expires_at is null or d.expires_at > p_now)
            order by d.delivery_id
            on conflict (dedupe_key) do nothing
            returning run_id
        )
        select distinct a.run_id from again a order by 1
    loop
        perform jobs.queue_mails(run.run_id, null, p_now);
    end loop;
end $$;

-- Counts the mails that asked users to connect again: sent, perhaps sent, or refused for their address. What expired or
-- was skipped has asked nobody.
create function jobs.note_trouble_mails(p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
    perform from jobs.integration_state k
    where k.user_id = any (array(
        select d.user_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        where d.kind = 'integration_trouble' and d.user_id is not null))
    order by k.user_id, k.provider for update;     -- as every plan locks them
    update jobs.integration_state k set trouble_mails = k.trouble_mails + 1, trouble_mailed_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'integration_trouble' and o.status in ('sent', 'unknown', 'refused')
        and k.user_id = d.user_id and k.provider = split_part(d.dedupe_key, '/', 3);
end $$;

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that hold_mails let pass.
create or replace function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    update jobs.email_deliveries d
    set status = o.status, reason = left(o.reason, 500), provider_id = o.provider_id, settled_at = p_now,
        feedback = case o.status when 'refused' then 'refused' end,
        feedback_at = case o.status when 'refused' then p_now end
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;
    perform jobs.apply_feedback(array(
        select o.provider_id from jsonb_to_recordset(p_outcomes) as o (provider_id text) where o.provider_id is not null),
        p_now);
    perform jobs.note_trouble_mails(p_outcomes, p_now);

    insert into public.marketing_emails (user_id, email_type, sent_at)
    select d.user_id, 'upgrade_day3', p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'marketing_day3' and d.user_id is not null and o.status in ('sent', 'unknown')
    order by d.user_id
    on conflict (user_id, email_type) do nothing;

    update jobs.job_items i
    set status = case o.status when 'sent' then 'done' when 'skipped' then 'skipped' when 'expired' then 'skipped'
            else 'failed' end,
        result = jsonb_strip_nulls(jsonb_build_object(
            'user_id', i.user_id, 'mail', o.status, 'reason', left(o.reason, 500))),
        error = case when o.status in ('refused', 'failed', 'unknown')
            then jobs.cut_failure(jsonb_build_object('code', coalesce(o.code, o.status), 'message', o.reason)) end,
        leased_until = null, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, code text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    for batch in
        select i.lane, array_agg(i.msg_id) as messages
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        join jobs.job_items i on i.item_id = d.item_id
        where i.lease_id = p_claim group by i.lane
    loop
        perform pgmq.delete('jobs_' || batch.lane, batch.messages);
    end loop;

    update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
    where b.state = 'sealed'
        and b.batch_id in (select d.batch_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
            join jobs.email_deliveries d on d.delivery_id = o.delivery_id)
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
end $$;

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown; planned: it has not left, for a reason that
-- is no mail's own, and waits again for another batch. What another claim holds by now is left to it.
-- p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this call or by an
-- earlier one that it repeats.
create or replace function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    again bigint[];
    emptied uuid[];
    batch record;
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    -- In one transaction with the others' outcomes: the batch's key would send these few as another payload.
    again := array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o
        where o ->> 'status' = 'planned' and (o ->> 'delivery_id')::bigint = any (held));
    emptied := array(select distinct d.batch_id from jobs.email_deliveries d where d.delivery_id = any (again));
    update jobs.email_deliveries
    set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
    where delivery_id = any (again);
    perform jobs.write_mail_outcomes(p_claim, (
        select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held) and (o ->> 'delivery_id')::bigint <> all (again)), p_now);
    -- Nobody is left in it whose outcome would settle it.
    update jobs.email_batches b set state = 'released', ended_at = clock_timestamp()
    where b.batch_id = any (emptied) and b.state = 'sealed'
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
    for batch in
        select i.lane, array_agg(i.item_id order by i.item_id) as items
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (again) and i.status = 'queued' and i.lease_id = p_claim group by i.lane
    loop
        perform public.jobs_release(batch.lane, batch.items, array_fill(p_claim, array[cardinality(batch.items)]), 0);
    end loop;
    return (select count(*)
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id and d.status = o.status
        left join jobs.job_items i on i.item_id = d.item_id
        where i.item_id is null or p_claim in (i.lease_id, i.returned_lease));
end $$;

-- Stops one kind of mail for a user; an error for a kind that no preference stops. A missing row stands for "no
-- reminder": making it must not start one.
create or replace function public.mail_unsubscribe(p_user_id uuid, p_kind text) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    if p_kind not in ('monthly_reminder', 'monthly_recap', 'definitive_month', 'marketing_day3', 'threshold_alert') then
        perform jobs.reject_unknown_kind(p_kind);
    end if;
    insert into public.email_preferences as e
        (user_id, monthly_reminder, monthly_recap_email, marketing_email, threshold_alert_email)
    select u.id, false, p_kind not in ('monthly_recap', 'definitive_month'), p_kind <> 'marketing_day3', p_kind <> 'threshold_alert'
    from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set
        monthly_reminder = e.monthly_reminder and p_kind <> 'monthly_reminder',
        monthly_recap_email = case when p_kind in ('monthly_recap', 'definitive_month') then false else e.monthly_recap_email end,
        marketing_email = e.marketing_email and p_kind <> 'marketing_day3',
        threshold_alert_email = e.threshold_alert_email and p_kind <> 'threshold_alert',
        updated_at = clock_timestamp();
    return found;
end $$;

drop function public.mail_feedback;

-- What the mail service reports, once for each event id: of a mail that it had accepted, or of an address. p_report: see
-- feedback_rank; where it is bounced, complained or suppressed, no mail goes to p_address any more; lifted: mails may go to
-- it again. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_report text, p_address text, p_now timestamptz
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.email_events (event_id, kind, received_at, provider_id, outcome)
    values (p_event_id, p_kind, p_now, p_provider_id, case when jobs.feedback_rank(p_report) > 0 then p_report end)
    on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_report = 'lifted' then
        delete from jobs.email_suppressions where address_hash = jobs.address_hash(p_address);
    elsif p_report in ('bounced', 'complained', 'suppressed') and p_address is not null then
        insert into jobs.email_suppressions (address_hash, reason)
        values (jobs.address_hash(p_address), p_report) on conflict (address_hash) do nothing;
    end if;
    if p_provider_id is not null then
        perform jobs.apply_feedback(array[p_provider_id], p_now);
    end if;
    return true;
end $$;

-- HMAC-SHA256 of an address, its case and outer spaces aside. p_inner and p_outer: the key as the two blocks that RFC 2104
-- makes of it.
create function jobs.keyed_address_hash(p_address text, p_inner bytea, p_outer bytea) returns bytea
language sql stable set search_path = '' as $$
    select sha256(p_outer || sha256(p_inner || convert_to(lower(btrim(p_address)), 'UTF8')));
$$;

-- Notes who refuses offers now (p_user_id: only this one), and which accounts of the last p_days days are those of people
-- who did so before. Answers how many such accounts were found. A repeated call finds nothing more.
create function public.mail_keep_objections(
    p_user_id uuid, p_inner text, p_outer text, p_days integer, p_now timestamptz
) returns integer language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    inner_block constant bytea := decode(p_inner, 'hex');
    outer_block constant bytea := decode(p_outer, 'hex');
    found_again integer;
begin
    insert into jobs.advertising_objections (address_hash, since)
    select distinct jobs.keyed_address_hash(u.email, inner_block, outer_block), p_now
    from public.email_preferences e join auth.users u on u.id = e.user_id
    where not e.marketing_email and u.email is not null and (p_user_id is null or e.user_id = p_user_id)
    order by 1
    on conflict (address_hash) do nothing;
    insert into jobs.objecting_users (user_id)
    select u.id from auth.users u
    join jobs.advertising_objections o on o.address_hash = jobs.keyed_address_hash(u.email, inner_block, outer_block)
    where u.created_at > p_now - make_interval(days => p_days) and u.created_at > o.since
        and (p_user_id is null or u.id = p_user_id)
    order by u.id
    on conflict (user_id) do nothing;
    get diagnostics found_again = row_count;
    return found_again;
end $$;

-- Whether a user's month has anything that a recap would tell of: not a debit on its way, an open dispute, an account that
-- was taken out of the books.
create function jobs.month_has_news(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.paris_month = p_month and not coalesce(f.left_out, s.left_out)
            and coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover'));
$$;

-- Whether an account of the user has this month in the books: the present one, or one before it.
create function jobs.is_in_books(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.integration_state s where s.user_id = p_user_id and s.counted @> p_month)
        or exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month);
$$;

-- What was imported for a month, as its recap shows it: as the books have it where they have the month at all, else all
-- that was read.
--   {total, activities: [{activity, total}], sources: [{source, gross, refunds}]}
create function jobs.recap_amounts(p_user_id uuid, p_month date) returns jsonb
language sql stable set search_path = '' as $$
    with counted as materialized (
        select c.provider, left(c.activity, 80) as activity, c.amount_minor
        from jobs.countable_movements(p_user_id, array[p_month], jobs.is_in_books(p_user_id, p_month)) c
    )
    select jsonb_build_object(
        'total', (select coalesce(sum(c.amount_minor), 0)::bigint from counted c),
        'activities', (select coalesce(jsonb_agg(jsonb_build_object('activity', a.activity, 'total', a.total)
                order by a.activity), '[]')
            from (select c.activity, sum(c.amount_minor)::bigint as total from counted c
                  where c.activity is not null group by 1) a),
        'sources', (select coalesce(jsonb_agg(jsonb_build_object(
                'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]')
            from (select c.provider, coalesce(sum(c.amount_minor) filter (where c.amount_minor > 0), 0) as gross,
                    coalesce(sum(c.amount_minor) filter (where c.amount_minor < 0), 0) as refunds
                  from counted c group by 1) s));
$$;

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    is_empty boolean;
    in_books boolean := jobs.is_in_books(p_user_id, p_month);
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active) then
        return;
    end if;
    -- Connected after the month: whoever looks at everybody's month once it is over finds it in no books. A replay of its
    -- last day sees it as it was.
    if not in_books and over and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month)
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}'
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- Tells a user whose integration was refused several times in a row to connect it again; once more later, where it
-- still is. Refused: what connecting again mends. A mail counts once it was sent (see note_trouble_mails); until then, no
-- other one is planned. Call in the settlement's transaction.
-- p_policy: {refusals: how many in a row, mails: how many until it is good again, pause_days: between two of them,
-- open_days: until such a mail expires, codes: [the refusals that connecting again mends]}
create or replace function jobs.plan_reconnect_mail(
    p_item_id bigint, p_user_id uuid, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    s jobs.integration_state;
    p jobs.mail_people;
    part record;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    for part in
        select e ->> 'provider' as provider, e -> 'error' ->> 'code' as code, e -> 'error' ->> 'message' as message
        from jsonb_array_elements(p_parts) e
    loop
        if part.code is null then
            update jobs.integration_state k set refusals = 0, trouble_mails = 0
            where k.user_id = p_user_id and k.provider = part.provider and (k.refusals, k.trouble_mails) <> (0, 0);
            continue;
        end if;
        -- A month's item says once more what the sync of these hours says: it is no refusal of its own.
        continue when i.kind = 'sync_month' or not (p_policy -> 'codes') ? part.code;
        update jobs.integration_state k set refusals = k.refusals + 1
        where k.user_id = p_user_id and k.provider = part.provider returning * into s;
        select * into p from jobs.mail_people m where m.user_id = p_user_id;
        continue when s.refusals < (p_policy ->> 'refusals')::integer
            or s.trouble_mails >= (p_policy ->> 'mails')::integer
            or s.trouble_mailed_at > p_now - make_interval(days => (p_policy ->> 'pause_days')::integer)
            or jobs.mail_refusal(p, 'integration_trouble', p_now) is not null
            or exists (select from jobs.email_deliveries d
                where d.user_id = p_user_id and d.kind = 'integration_trouble' and d.status in ('planned', 'sealed')
                    and d.expires_at > p_now and split_part(d.dedupe_key, '/', 3) = part.provider);
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        values ('integration_trouble/' || p_user_id || '/' || part.provider || '/' || i.item_id, 'integration_trouble',
            p_user_id, p_user_id, i.run_id, jsonb_build_object('provider', part.provider, 'reason', part.message,
                'read_until', s.last_success_to),
            p_now + make_interval(days => (p_policy ->> 'open_days')::integer))
        on conflict (dedupe_key) do nothing;
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end loop;
end $$;

-- What keeps a user's month from being whole: what was not read of it, and its flaws as a recap tells them.
--   {month, in_books: the month belongs into the books of an account, read_whole: it was read to its end,
--    unread: [{source, since: null where a hole lies elsewhere, wholly, is_former}], maybe_twice, passed_on,
--    partial: something else is missing}
create function jobs.month_lacks(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with bounds as materialized (
        select tstzmultirange(tstzrange(p_month::timestamp at time zone 'Europe/Paris',
            (p_month + interval '1 month') at time zone 'Europe/Paris')) as days
    ), sources as materialized (
        select s.provider, s.is_former, s.is_owed, b.days, b.days - s.covered as missing
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    ), reading as materialized (
        select coalesce(bool_or(s.is_owed), false) as in_books, coalesce(bool_and(isempty(s.missing)), false) as is_whole,
            coalesce(jsonb_agg(jsonb_build_object('source', s.provider, 'is_former', s.is_former,
                'wholly', s.missing = s.days,
                'since', case when s.missing = tstzmultirange(tstzrange(lower(s.missing), upper(s.days)))
                    and lower(s.missing) > lower(s.days) then lower(s.missing) end)
                order by s.provider, s.is_former) filter (where s.is_owed and not isempty(s.missing)), '[]') as unread
        from sources s
    ), flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    )
    select jsonb_build_object('month', to_char(p_month, 'YYYY-MM'), 'in_books', r.in_books,
        'read_whole', r.is_whole and not f.found ?| array['beyond_scope', 'doubted_list'], 'unread', r.unread,
        'maybe_twice', coalesce((f.found ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((f.found ->> 'passed_on')::integer, 0),
        -- As in a recap (see plan_recap): what is in other currencies is told by itself.
        'partial', f.found - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}')
    from reading r cross join flaws f;
$$;

-- What was imported for a month, in cents: as the books have it where they have the month at all, else all that was read.
create function jobs.imported_total(p_user_id uuid, p_month date) returns bigint
language sql stable set search_path = '' as $$
    select coalesce(sum(c.amount_minor), 0)::bigint
    from jobs.countable_movements(p_user_id, array[p_month], jobs.is_in_books(p_user_id, p_month)) c;
$$;

-- What the recap of a month said, and what the month's total is now that it was read to its end, whatever its flaws. Null
-- where no recap has left, or the month was not read to its end. p_lacks: see month_lacks.
--   {mailed, mailed_at, provisional, total}
create function jobs.definitive_month(p_user_id uuid, p_month date, p_lacks jsonb) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('mailed', (d.facts ->> 'total')::bigint, 'mailed_at', d.settled_at,
        'provisional', d.facts ->> 'provisional_at' is not null, 'total', jobs.imported_total(p_user_id, p_month))
    from jobs.email_deliveries d
    where d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM') and d.status = 'sent'
        and d.facts ? 'total' and p_lacks @> '{"read_whole": true}';
$$;

-- Who had a recap of a month that names another total than the books do now, and gets no reminder that would say so.
-- Whether it is definitive is seen when the mail leaves (definitive_month).
create function jobs.definitive_candidates(p_user_id uuid, p_month date, p_now timestamptz)
returns table (user_id uuid, dedupe_key text)
language sql stable as $$
    select a.user_id, 'definitive_month/' || a.user_id || '/' || to_char(p_month, 'YYYY-MM')
    from (select distinct t.user_id from public.integration_tokens t
          where t.is_active and (p_user_id is null or t.user_id = p_user_id)) a
    -- By their keys: a join would read the whole ledger, which only grows.
    cross join lateral (select (k.facts ->> 'total')::bigint as mailed from jobs.email_deliveries k
        where k.dedupe_key = 'monthly_recap/' || a.user_id || '/' || to_char(p_month, 'YYYY-MM')
            and k.status = 'sent' and k.facts ? 'total' limit 1) d
    cross join lateral (select coalesce(sum(l.computed_eur), 0) * 100 as total from jobs.auto_sync_totals l
        where l.user_id = a.user_id and l.month = p_month) n
    cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
    where n.total <> d.mailed and jobs.mail_refusal(p, 'definitive_month', p_now) is null
        and not exists (select from jobs.email_deliveries k where k.dedupe_key in (
            'monthly_reminder/' || a.user_id || '/' || to_char(p_month, 'YYYY-MM'),
            'definitive_month/' || a.user_id || '/' || to_char(p_month, 'YYYY-MM')));
$$;

-- Currencies of a user's movements in some months that no total has.
create function jobs.uncounted_currencies(p_user_id uuid, p_months date[]) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(distinct left(t.currency, 10)), '[]')
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months) and t.excluded in ('currency', 'unresolved_currency')
        and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month;
$$;

-- What is true now of a provisional recap that leaves when its month is over and was read to its end; {} for any other.
create function jobs.recap_anew(p_user_id uuid, p_facts jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce((
        select jobs.recap_amounts(p_user_id, o.month) || jsonb_build_object('provisional_at', null, 'unread', '[]'::jsonb,
            'uncounted', jobs.uncounted_currencies(p_user_id, array[o.month]),
            'typed', (select m.typed from jobs.month_books(p_user_id, o.month) m),
            'maybe_twice', l.lacks -> 'maybe_twice', 'passed_on', l.lacks -> 'passed_on', 'partial', l.lacks -> 'partial')
        from to_date(p_facts ->> 'month', 'YYYY-MM') as o (month)
        cross join lateral (select jobs.month_lacks(p_user_id, o.month, p_now) as lacks offset 0) l
        where p_facts ->> 'provisional_at' is not null
            and p_now >= (o.month + interval '1 month') at time zone 'Europe/Paris'
            and l.lacks @> '{"read_whole": true}'), '{}');
$$;

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

-- A user's answers, and the months of a year that they are about.
--   {every: {verdict, at} | null, months: [{month, typed, imported, verdict, is_own}]}, in cents
create function jobs.confirmations(p_user_id uuid, p_year integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'every', (select jsonb_build_object('verdict', a.verdict, 'at', a.confirmed_at)
            from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null),
        'months', (select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'),
                'typed', m.typed, 'imported', m.imported, 'verdict', m.verdict,
                'is_own', exists (select from jobs.book_confirmations a
                    where a.user_id = p_user_id and a.month = m.month)) order by m.month), '[]')
            from jobs.mixed_months(p_user_id, p_year) m));
$$;

-- What the page shows before anything is said; see confirmations.
create function public.jobs_confirmations(p_user_id uuid, p_year integer) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select jobs.confirmations(p_user_id, p_year);
$$;

-- Writes a user's answer down: for one month (its 1st), or (null) for every month, those to come too, in the place of all
-- answers before. p_verdict: distinct, same, or null, which withdraws the answer. The thresholds of the user are to be
-- checked again. Answers what the page shows then.
create function public.jobs_confirm_books(
    p_user_id uuid, p_year integer, p_month date, p_verdict text, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    delete from jobs.book_confirmations a
    where a.user_id = p_user_id and a.verdict is distinct from p_verdict and (p_month is null or a.month = p_month)
        or a.user_id = p_user_id and p_month is null and a.month is not null;
    if p_verdict is not null then
        insert into jobs.book_confirmations (user_id, month, verdict, confirmed_at)
        select u.id, p_month, p_verdict, p_now from auth.users u where u.id = p_user_id
        on conflict (user_id, month) do nothing;     -- said before
    end if;
    insert into jobs.threshold_checks_due as d (user_id) select u.id from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set since = excluded.since;
    return jobs.confirmations(p_user_id, p_year);
end $$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create or replace function jobs.settle_figures(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    hold text;
    i jobs.job_items;
    part record;
    t public.integration_tokens;
    s jobs.integration_state;
    stored jsonb;
    new_activity text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    unreadable jsonb;   -- why movements could not be understood, with how many
    unlisted jsonb := '{}';     -- how many known movements each provider's list has lacked
    known bigint;
    fresh tstzmultirange;       -- what this read covers and none before it
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := jobs.hold_item(p_item_id, p_lease_id);
    select * into i from jobs.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result, 'repeated', true);
    elsif hold = 'lost' or i.user_id is distinct from p_user_id then
        return jsonb_build_object('state', 'lost');
    end if;
    if i.progress ->> 'lease' = p_lease_id::text and (i.progress ->> 'chunk')::integer >= p_chunk then
        return jsonb_build_object('state', 'stored');
    end if;
    records := coalesce((i.progress ->> 'records')::bigint, 0);
    by_provider := coalesce(i.progress -> 'by_provider', '{}');
    months := array(select jsonb_array_elements_text(coalesce(i.progress -> 'months', '[]'))::date);

    for part in
        select * from jsonb_to_recordset(p_parts) as x (
            integration_id uuid, provider text, account text, "window" jsonb, movements jsonb, error jsonb,
            count_month boolean, kinds jsonb, deep boolean, listed bigint)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'), p_now);
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what was frozen, else inferred once.
            new_activity := case
                when t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale')
                    then t.activity_type
                else coalesce(s.activity, jobs.infer_activity(p_user_id, part.provider)) end;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, first_month = s.first_month, counted = s.counted, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.first_month, k.counted) is distinct from (new_activity, s.first_month, s.counted);
        end if;

        continue when not p_final;
        if part.error is not null then
            failed := failed + 1;
            first_error := coalesce(first_error, part.error);
            update public.integration_tokens k
            set last_error = left(part.error ->> 'message', 500), updated_at = clock_timestamp()
            where k.id = part.integration_id and k.last_error is distinct from left(part.error ->> 'message', 500);
            update jobs.integration_state k
            set failures = k.failures + 1, failed_at = p_now, failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            fresh := tstzmultirange(tstzrange((part."window" ->> 'from')::timestamptz,
                (part."window" ->> 'to')::timestamptz));
            -- What the list showed before it still has to show: rows are never taken back. Both lists go by seconds.
            select count(*) into known from jobs.integration_transactions x
            where x.user_id = p_user_id and x.provider = part.provider and x.account = part.account
                -- By the index. What counts long after it was listed is left out: fewer are known than could be.
                and x.paris_month >= date_trunc('month', (part."window" ->> 'from')::timestamptz
                    at time zone 'Europe/Paris')
                and x.paris_month <= (part."window" ->> 'to')::timestamptz at time zone 'Europe/Paris'
                and x.kind <> 'no_turnover' and (x.kind <> 'dispute' or x.provider = 'stripe')
                and x.listed_at >= (part."window" ->> 'from')::timestamptz
                and x.listed_at < date_trunc('second', (part."window" ->> 'to')::timestamptz);
            s.doubted := case
                when s.account is distinct from part.account or part.listed is null then s.doubted
                when known > part.listed then s.doubted + (fresh - s.covered)
                when part.listed > 0 then s.doubted - fresh
                -- Nothing is known there and nothing listed: as doubtful as the days before it.
                when s.doubted && fresh then s.doubted + (fresh - s.covered)
                else s.doubted end;
            if known > part.listed then
                unlisted := unlisted || jsonb_build_object(part.provider, known - part.listed);
            end if;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (fresh - s.doubted)
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null))
                    else k.covered end,
                doubted = s.doubted,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not. Nor does an
                -- empty list that is in doubt: what it lacked is read again with what follows.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                        and not coalesce(part.listed = 0 and s.doubted && fresh, false)
                    then greatest(k.last_success_to, (part."window" ->> 'to')::timestamptz) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, (part."window" ->> 'to')::timestamptz) else k.deep_read_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', (part."window" ->> 'from')::timestamptz at time zone 'Europe/Paris'),
                ((part."window" ->> 'to')::timestamptz - interval '1 microsecond') at time zone 'Europe/Paris',
                interval '1 month') m);
        end if;
    end loop;
    months := array(select distinct m from unnest(months) m);

    if not p_final then
        update jobs.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind from jobs.integration_transactions x
        where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
            and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
            and jobs.is_uncounted(x)
    )
    select
        (select coalesce(jsonb_agg(distinct m.currency), '[]') from missing m
            where m.currency <> 'EUR' or m.reason = 'unresolved_currency'),
        (select coalesce(jsonb_object_agg(k.kind, k.n), '{}') from (
            select coalesce(m.source_kind, m.reason) as kind, count(*) as n from missing m
            where m.reason = 'unknown_kind' group by 1) k),
        (select coalesce(jsonb_object_agg(k.reason, k.n), '{}') from (
            select m.reason, count(*) as n from missing m
            where m.reason not in ('unknown_kind', 'currency', 'unresolved_currency') group by 1) k)
    into not_euro, unknown, unreadable;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}' or unlisted <> '{}';
    outcome := case
        when parts > 0 and failed = parts then 'failed'
        when failed > 0 or flawed then 'partial'
        else 'done' end;
    answer := jsonb_strip_nulls(jsonb_build_object(
        'user_id', case when p_month is null then p_user_id end,
        'provider', case when p_month is null then p_parts -> 0 ->> 'provider' end,
        'records', records,
        'status', case outcome when 'failed' then 'error' when 'partial' then 'partial' else 'success' end,
        'error', first_error, 'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}'),
        'unlisted_movements', nullif(unlisted, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', jobs.month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, synced_at, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message', p_now,
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'unreadable_movements', nullif(unreadable, '{}'), 'unlisted_movements', unlisted -> (e ->> 'provider'),
            'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = jobs.claimed_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform jobs.finish_item(p_item_id, outcome, answer, first_error, p_now);
    return jsonb_build_object('state', 'settled', 'result', answer);
end $$;

-- Takes an account out of a user's books, for who connected a wrong one by mistake, or back into them (p_out false).
-- Its movements stay in the ledger; taken out they count in no month, whatever is read, until it is taken back or
-- connected again in place of another. Repeating it changes nothing. An account that is not the user's is an error.
--   {months: [YYYY-MM] whose totals were added up again, left_alone: see recompute_totals}
create or replace function jobs.leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_as_of timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    touched date[];
    left_alone jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));
    if not exists (select from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account))
        and not exists (select from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) then
        raise exception 'user % has no account % at %', p_user_id, p_account, p_provider using errcode = '22023';
    end if;
    update jobs.integration_state s set left_out = p_out, updated_at = p_as_of,
        counted = case when p_out then '{}'
            else coalesce(s.counted_before, datemultirange(daterange(s.first_month, null))) end,
        counted_before = case when p_out then s.counted end
    where s.user_id = p_user_id and s.provider = p_provider and s.account = p_account and s.left_out <> p_out;
    update jobs.former_accounts f set left_out = p_out,
        counted = case when p_out then '{}' else coalesce(f.counted_before, datemultirange(daterange(f.first_month,
            (date_trunc('month', f.replaced_at at time zone 'Europe/Paris') + interval '1 month')::date))) end,
        counted_before = case when p_out then f.counted end
    where f.user_id = p_user_id and f.provider = p_provider and f.account = p_account and f.left_out <> p_out;
    touched := array(select distinct t.paris_month from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account);
    touched := touched || jobs.months_reported_twice(p_user_id, touched);
    left_alone := jobs.recompute_totals(p_user_id, touched, p_as_of);
    insert into jobs.threshold_checks_due as d (user_id, since) values (p_user_id, p_as_of)
    on conflict (user_id) do update set since = excluded.since;
    return jsonb_build_object('left_alone', left_alone, 'months', (
        select coalesce(jsonb_agg(to_char(m, 'YYYY-MM') order by m), '[]') from unnest(touched) m));
end $$;

-- The last p_runs runs for everybody of each task, with what happened to their items by lane and up to ten of those
-- in trouble; and how many runs for single users there were within a day.
--   {runs: [{run_id, task, slot, trigger, as_of, status, started_at, duration_ms, parameters, skipped, records,
--    lanes: [{lane, planned, queued, done, partial, failed, skipped, superseded}],
--    troubles, troubled: [{user_id, address, lane, status, code, message}]}],
--    single: [{task, runs, erred}]}
create or replace function jobs.status_runs(p_tasks text[], p_runs integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with latest as materialized (
        select r.* from unnest(p_tasks) t (task)
        cross join lateral (
            select * from jobs.job_runs j where j.task = t.task and not (j.parameters ? 'user_id')
            order by j.started_at desc limit p_runs) r
    ), ids as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(l.run_id) as ids from latest l
    ), lanes as (
        select i.run_id, i.lane, count(*) as planned,
            count(*) filter (where i.status = 'queued') as queued,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'skipped') as skipped,
            count(*) filter (where i.status = 'superseded') as superseded,
            coalesce(sum((i.result ->> 'records')::bigint), 0) as records
        from jobs.job_items i where i.run_id = any ((select ids from ids)::uuid[]) group by 1, 2
    ), troubled as (
        select i.*, row_number() over (partition by i.run_id order by i.item_id) as n,
            count(*) over (partition by i.run_id) as troubles
        from jobs.job_items i
        where i.run_id = any ((select ids from ids)::uuid[])
            and (i.status in ('failed', 'partial') or (i.status = 'queued' and i.error is not null))
    )
    select jsonb_build_object(
        'runs', (select coalesce(jsonb_agg(jsonb_build_object(
            'run_id', r.run_id, 'task', r.task, 'slot', r.slot, 'trigger', r.trigger, 'as_of', r.as_of,
            'status', r.status, 'started_at', r.started_at,
            'duration_ms', case when r.finished_at is not null then (extract(epoch from r.took) * 1000)::bigint end,
            'parameters', r.parameters, 'skipped', coalesce(r.plan -> 'skipped', '{}'),
            'records', (select coalesce(sum(l.records), 0) from lanes l where l.run_id = r.run_id),
            'lanes', (select coalesce(jsonb_agg(to_jsonb(l) - 'run_id' - 'records' order by l.lane), '[]')
                from lanes l where l.run_id = r.run_id),
            'troubles', (select coalesce(max(t.troubles), 0) from troubled t where t.run_id = r.run_id),
            'troubled', (select coalesce(jsonb_agg(jsonb_build_object(
                    'user_id', t.user_id, 'address', jobs.mask_address(u.email), 'lane', t.lane,
                    'status', t.status, 'message', jobs.mask_text(t.error ->> 'message'),
                    -- What was counted in part has no error, but a reason.
                    'code', coalesce(left(t.error ->> 'code', 80), (select min(k) from jsonb_object_keys(t.result) k
                        where k in ('uncounted_currencies', 'left_alone', 'unknown_movements', 'unreadable_movements',
                            'unlisted_movements'))))
                    order by t.item_id), '[]')
                from troubled t left join auth.users u on u.id = t.user_id
                where t.run_id = r.run_id and t.n <= 10))
            order by r.started_at desc), '[]') from latest r),
        'single', (select coalesce(jsonb_agg(s), '[]') from (
            select j.task, count(*) as runs, count(*) filter (where j.status in ('partial', 'error')) as erred
            from jobs.job_runs j
            where j.as_of >= p_now - interval '1 day' and j.parameters ? 'user_id'
            group by 1 order by 1) s));
$$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create or replace function jobs.status_mails(p_days integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with since as (
        select ((p_now at time zone 'Europe/Paris')::date - p_days + 1)::timestamp at time zone 'Europe/Paris' as at
    ), settled as materialized (
        select d.kind, (d.settled_at at time zone 'Europe/Paris')::date as day, d.status, d.reason, d.feedback
        from jobs.email_deliveries d where d.settled_at >= (select at from since)
    )
    select jsonb_build_object(
        'days', (select coalesce(jsonb_agg(m order by m.day, m.kind), '[]') from (
            select s.kind, s.day, count(*) filter (where s.status = 'sent') as sent,
                count(*) filter (where s.status in ('failed', 'refused')) as failed,
                count(*) filter (where s.status = 'unknown') as unknown,
                count(*) filter (where s.status in ('skipped', 'expired')
                    and s.reason is distinct from 'suppressed') as skipped,
                count(*) filter (where s.status = 'skipped' and s.reason = 'suppressed') as suppressed,
                count(*) filter (where s.status = 'sent' and jobs.feedback_rank(s.feedback) > 2) as returned
            from settled s group by 1, 2) m),
        'reasons', (select coalesce(jsonb_agg(r), '[]') from (
            select s.kind, s.status, jobs.mask_text(coalesce(s.reason, s.status)) as reason, count(*) as count
            from settled s where s.status <> 'sent' group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 12) r),
        'suppressed_addresses', (select count(*) from jobs.email_suppressions));
$$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
create or replace function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.id, t.user_id, t.provider, u.email::text as address, coalesce(s.failures, 0) as failures,
            s.failed_at, s.failure, s.last_success_at, t.connected_at,
            case
                when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
                when s.failures > 0 then 'failing'
                when s.last_success_at is null then 'new'
                when s.last_success_at < p_late_before then 'late'
                else 'good' end as state
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    )
    select jsonb_build_object(
        'states', (select coalesce(jsonb_agg(n order by n.provider, n.state), '[]') from (
            select k.provider, k.state, count(*) as count from known k group by 1, 2) n),
        'broken_total', (select count(*) from known k where k.state = 'failing'),
        'doubted_lists', jobs.doubted_lists(),
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', left(b.failure ->> 'code', 80), 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        -- They die on 1 January 2027, but for those of custom applications.
        'shopify_permanent', (select count(*) from known k join public.integration_tokens t on t.id = k.id
            where k.provider = 'shopify' and k.state <> 'inactive' and coalesce(btrim(t.refresh_token), '') = ''),
        'shopify_renewed', (select max(s.token_expires_at) > p_now
            from jobs.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'at', r.at, 'code', r.code, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, p.problem ->> 'code' as code,
                jobs.mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata,
                '$.answer.**.problems[*] ? (@.code == "own_credentials" || @.code == "own_permission"
                    || @.code == "app_not_approved")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. Looks back to p_failed_since. A repeated call with the same p_run_id answers what the first one did.
--   {woken, mails, planned}
create or replace function public.jobs_retry(
    p_run_id uuid, p_lane text, p_route text, p_failed_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    is_mail constant boolean := (select l.is_mail from jobs.known_lanes() l where l.lane = p_lane);
    last_month constant text := to_char((p_now at time zone 'Europe/Paris') - interval '1 month', 'YYYY-MM');
    woken integer;
    mails integer := 0;
    planned integer := 0;
    again bigint[];
    told jsonb;
begin
    delete from jobs.job_answers where answered_at < p_now - interval '1 day';
    -- A repeated call waits here for the first one, which may still be at it.
    insert into jobs.job_answers (call_id, answer, answered_at) values (p_run_id, '{}', p_now)
    on conflict (call_id) do nothing;
    if not found then
        select a.answer into told from jobs.job_answers a where a.call_id = p_run_id;
        return told;
    end if;
    if is_mail is null then
        raise exception 'unknown lane %', p_lane using errcode = '22023';
    elsif is_mail then
        perform jobs.lock_mail_ledger();
        again := array(
            select f.item_id from jobs.open_failures(p_failed_since) f
            join jobs.email_deliveries d on d.item_id = f.item_id
            where f.lane = p_lane and d.status in ('failed', 'refused')
                and d.provider_id is null and d.user_id is not null and (d.expires_at is null or d.expires_at > p_now)
                -- It has left for another address.
                and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved'));
        update jobs.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null, feedback = null, feedback_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from jobs.job_items i where i.item_id = any (again) order by i.item_id for update;
        update jobs.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from jobs.job_items i where i.item_id = any (again)));
            update jobs.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (again));
        end if;
    else
        again := array(select f.item_id from jobs.open_failures(p_failed_since) f where f.lane = p_lane);
        if cardinality(again) > 0 and jobs.open_run(p_run_id,
                case p_lane when 'months' then 'monthly_sync' else 'sync_integrations' end, null, 'manual', p_route,
                p_now, jsonb_build_object('retry', p_lane), p_now) ->> 'state' = 'planned' then
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
            select distinct on (i.kind, i.subject) p_run_id, i.lane, i.kind, i.subject, i.user_id,
                -- An old month's recap is no news any more.
                case when i.payload ->> 'month' < last_month then i.payload || '{"recap": false}' else i.payload end,
                p_now, p_now
            from jobs.job_items i where i.item_id = any (again)
            order by i.kind, i.subject, i.item_id desc;
            get diagnostics planned = row_count;
            perform jobs.send_items(p_run_id);
            update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
        end if;
    end if;

    -- Without a message nothing would wake them.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.reconcile', 0));
    woken := jobs.restore_messages(p_lane);
    -- Put off by a failure or a quota. What somebody holds stays theirs; what was never claimed is visible already.
    select woken + count(*) into woken
    from (select i.msg_id from jobs.job_items i
          where i.status = 'queued' and i.lane = p_lane and i.msg_id is not null
              and coalesce(i.leased_until, '-infinity') < clock_timestamp() order by i.msg_id) w
    cross join lateral pgmq.set_vt('jobs_' || p_lane, w.msg_id, 0) m;
    told := jsonb_build_object('woken', woken, 'mails', mails, 'planned', planned);
    update jobs.job_answers set answer = told where call_id = p_run_id;
    return told;
end $$;

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest
-- does not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons:
-- slots since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], first_claim: of all slots, failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    unreadable: users who could not be read any more since then, calls: [{route, message, count}],
--    routes: {route: last call}, outages: see integration_outages,
--    permanent_tokens: active Shopify integrations whose token cannot be renewed,
--    doubted_lists: integrations whose list lacks what it has shown before,
--    undelivered: mails that were accepted, did not arrive and are not sent again: [{lane, feedback, count}]}
create or replace function public.jobs_troubles(
    p_first_since timestamptz, p_latest_since timestamptz, p_stuck_before timestamptz, p_slots_since timestamptz,
    p_calls_since timestamptz, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql stable security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    since constant timestamptz := greatest(p_first_since, least(p_latest_since, coalesce(
        (select max(r.as_of) from jobs.job_runs r where r.task = 'operator_digest'), '-infinity')));
begin
    return jsonb_build_object(
        'since', since,
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at > p_slots_since),
        'first_claim', (select min(s.claimed_at) from jobs.job_slots s),
        'failed', (select coalesce(jsonb_agg(f order by f.count desc, f.lane, f.code), '[]') from (
            select i.lane, left(i.error ->> 'code', 80) as code,
                jobs.mask_text(min(left(i.error ->> 'message', 2000))) as message,
                count(*) as count
            from jobs.job_items i where i.status = 'failed' and i.settled_at > since
            group by 1, 2 order by 4 desc limit 20) f),
        'stuck', (select coalesce(jsonb_agg(q order by q.oldest), '[]') from (
            select i.lane, count(*) as count, min(i.waiting_since) as oldest
            from jobs.job_items i where i.status = 'queued' and i.waiting_since < p_stuck_before
            group by 1) q),
        'unreadable', (select count(distinct b.user_id) from jobs.unreadable_input b (user_id, part, flaw, found_at)
            where b.found_at > since),
        'calls', (select coalesce(jsonb_agg(c order by c.count desc, c.route), '[]') from (
            select left(l.metadata ->> 'route', 200) as route,
                jobs.mask_text(min(left(l.error_message, 2000))) as message,
                count(*) as count
            from public.sync_logs l
            where l.user_id is null and l.status = 'error' and l.sync_type <> 'dry_run' and l.synced_at > since
            group by 1 order by 3 desc limit 10) c),
        'undelivered', (select coalesce(jsonb_agg(u order by u.count desc, u.lane, u.feedback), '[]') from (
            select jobs.lane_of_mail(d.kind) as lane, d.feedback, count(*) as count
            from jobs.email_deliveries d
            where d.kind in ('threshold_alert', 'integration_trouble', 'monthly_reminder', 'monthly_recap', 'definitive_month')
                and d.feedback is not null and d.feedback_at > since and d.status = 'sent'
                and d.feedback in ('returned', 'failed', 'refused', 'suppressed', 'bounced')
                and not exists (select from jobs.email_deliveries n
                    where n.dedupe_key in (d.dedupe_key || '/again', d.dedupe_key || '/moved'))
            group by 1, 2) u),
        'outages', public.integration_outages(p_outage, p_now),
        'permanent_tokens', (select count(*) from public.integration_tokens t
            where t.provider = 'shopify' and t.is_active and coalesce(btrim(t.refresh_token), '') = ''),
        'doubted_lists', jobs.doubted_lists(),
        'routes', (select coalesce(jsonb_object_agg(l.route, l.last), '{}') from (
            select left(l.metadata ->> 'route', 200) as route, max(l.synced_at) as last
            from public.sync_logs l
            where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_calls_since
            group by 1 order by 2 desc limit 50) l where l.route is not null));
end $$;

-- The outages of this moment. p_rule: {least: so many integrations at least, percent: more than so many of a provider's
-- active ones, codes: [what proves that we are refused], hours: they prove it for so long, days: whoever was
-- asked to connect again longer ago does not count, wait_seconds: see hold_trouble_mails}
create or replace function jobs.provider_outages(p_rule jsonb, p_now timestamptz)
returns table (provider text, code text, message text, failing bigint, active bigint)
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.provider, coalesce(s.failures, 0) as failures, s.failure
        from public.integration_tokens t join jobs.mail_people u on u.user_id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.is_active and u.unreachable is distinct from 'user_deleted' and coalesce(u.banned_until <= p_now, true)
            -- Whom no mail reaches will never have been asked.
            and not (coalesce(s.failures, 0) > 0 and u.unreachable is not null)
            -- Whose user was asked long ago is that user's to mend: no news of a provider.
            and coalesce(not (s.failures > 0 and s.trouble_mails > 0
                and s.trouble_mailed_at < p_now - make_interval(days => (p_rule ->> 'days')::integer)), true)
    ), alike as (
        select k.provider, k.failure ->> 'code' as code,
            jobs.mask_text(min(left(k.failure ->> 'message', 2000))) as message, count(*) as failing
        from known k where k.failures > 0 group by 1, 2
    ), active as (
        select k.provider, count(*) as active from known k group by 1
    ), refused as (   -- its items wait, so no integration has failed
        select case when p.problem ->> 'message' like '%Shopify%' then 'shopify' else 'stripe' end as provider,
            p.problem ->> 'code' as code,
            jobs.mask_text(min(left(p.problem ->> 'message', 2000))) as message
        from public.sync_logs l
        cross join lateral jsonb_path_query(l.metadata, '$.answer.**.problems[*]') as p (problem)
        where l.synced_at > p_now - make_interval(hours => (p_rule ->> 'hours')::integer)
            and l.provider = 'jobs' and l.status <> 'success' and (p_rule -> 'codes') ? (p.problem ->> 'code')
        group by 1, 2
    )
    select a.provider, a.code, a.message, a.failing, n.active
    from alike a join active n using (provider)
    where a.failing >= (p_rule ->> 'least')::integer and a.failing * 100 > n.active * (p_rule ->> 'percent')::integer
    union all
    select r.provider, r.code, r.message, null, coalesce(n.active, 0)
    from refused r left join active n using (provider);
$$;

-- The account that an operator looks for, by its id or its whole address; null: there is none. Where an address has several,
-- the one that is not deleted, the oldest first.
create function public.jobs_find_user(p_who text) returns uuid
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select u.id from auth.users u
    where u.id::text = lower(btrim(p_who)) or lower(u.email::text) = lower(btrim(p_who))
    order by u.deleted_at is not null, u.created_at limit 1;
$$;

-- Who somebody is, what they wish and what keeps mail from them. Plan: null where their price is not known.
create function jobs.user_person(p_user_id uuid, p_prices jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'user_id', p.user_id, 'address', jobs.mask_address(p.address), 'signed_up_at', jobs.readable_instant(p.created_at),
        'plan', l.plan, 'unreachable', jobs.mail_refusal(p, 'integration_trouble', p_now),
        'suppressed_for', s.reason, 'suppressed_at', s.created_at,
        'wants', jsonb_build_object('threshold_alert', p.wants_alerts, 'monthly_reminder', p.wants_reminder,
            'monthly_recap', p.wants_recap, 'marketing_day3', p.wants_marketing),
        'flaws', (select coalesce(jsonb_agg(jsonb_build_object('flaw', k.flaw, 'since', k.since) order by k.part), '[]')
            from jobs.unreadable_input k where k.user_id = p.user_id))
    from (select * from jobs.mail_people m where m.user_id = p_user_id offset 0) p
    left join lateral (select * from jobs.user_plans(p_prices, p_now) u where u.user_id = p_user_id) l on true
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(p.address);
$$;

-- Both of a user's integrations, also one that was taken away since. Late: without a success since p_late_before.
create function jobs.user_connections(p_user_id uuid, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'provider', v.provider, 'account', left(s.account, 120),
        'claimed_account', left(jobs.readable_identifier(jobs.claimed_account(t)), 120),
        'is_proven', coalesce(s.proof = jobs.token_fingerprint(t), false),
        'state', case
            when t.id is null then 'gone'
            when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
            when s.failures > 0 then 'failing'
            when s.last_success_at is null then 'new'
            when s.last_success_at < p_late_before then 'late'
            else 'good' end,
        'connected_at', jobs.readable_instant(t.connected_at), 'first_month', to_char(s.first_month, 'YYYY-MM'),
        'activity', s.activity, 'left_out', coalesce(s.left_out, false),
        'last_success_at', s.last_success_at, 'read_to', s.last_success_to, 'deep_read_to', s.deep_read_to,
        'failures', coalesce(s.failures, 0), 'failed_at', s.failed_at,
        'code', left(s.failure ->> 'code', 80), 'message', jobs.mask_text(s.failure ->> 'message'),
        'refusals', coalesce(s.refusals, 0), 'trouble_mailed_at', s.trouble_mailed_at,
        -- Such a token cannot be renewed.
        'is_permanent', t.provider = 'shopify' and coalesce(btrim(t.refresh_token), '') = '',
        'token_expires_at', s.token_expires_at, 'reads_all_orders', s.all_orders,
        'also_claimed_by', (select count(*) from public.integration_tokens o
            where o.provider = t.provider and o.user_id <> t.user_id
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = jobs.claimed_account(t)))
        order by v.provider), '[]')
    from (values ('shopify'), ('stripe')) as v (provider)
    join auth.users u on u.id = p_user_id
    left join public.integration_tokens t on t.user_id = p_user_id and t.provider = v.provider
    left join jobs.integration_state s on s.user_id = p_user_id and s.provider = v.provider
    where t.id is not null or s.user_id is not null;
$$;

-- The accounts whose movements a user's ledger holds, and what became of their books; 20 at most, the present ones first.
create function jobs.user_accounts(p_user_id uuid) returns jsonb
language sql stable set search_path = '' set jit = off as $$
    with read as materialized (
        select t.provider, t.account, count(*) as movements, min(t.paris_month) as first, max(t.paris_month) as latest
        from jobs.integration_transactions t where t.user_id = p_user_id group by 1, 2
    ), known as (
        select s.provider, s.account, s.first_month, s.left_out, null::timestamptz as replaced_at
        from jobs.integration_state s where s.user_id = p_user_id and s.account is not null
        union all
        select f.provider, f.account, f.first_month, f.left_out, f.replaced_at
        from jobs.former_accounts f where f.user_id = p_user_id
    )
    select coalesce(jsonb_agg(to_jsonb(a) order by a.replaced_at desc nulls first, a.provider), '[]') from (
        select k.provider, left(k.account, 120) as account, to_char(k.first_month, 'YYYY-MM') as first_month, k.left_out,
            k.replaced_at, coalesce(r.movements, 0) as movements,
            to_char(r.first, 'YYYY-MM') as movements_from, to_char(r.latest, 'YYYY-MM') as movements_to
        from known k left join read r on r.provider = k.provider and r.account = k.account
        order by k.replaced_at desc nulls first, k.provider limit 20) a;
$$;

-- The last p_limit items that read something of a user's.
create function jobs.user_reads(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with theirs as materialized (   -- by the user's index: by the items' own order all users' would be read
        select i.item_id, i.kind from jobs.job_items i where i.user_id = p_user_id
    ), latest as materialized (
        select t.item_id from theirs t where t.kind in ('sync_integration', 'sync_month') order by t.item_id desc limit p_limit
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'lane', i.lane, 'month', left(i.payload ->> 'month', 7), 'trigger', r.trigger, 'status', i.status,
        'attempts', i.attempts, 'records', coalesce(i.result -> 'records', '0'), 'created_at', i.created_at,
        'settled_at', i.settled_at, 'code', left(i.error ->> 'code', 80), 'message', jobs.mask_text(i.error ->> 'message'))
        order by i.item_id desc), '[]')
    from latest l join jobs.job_items i using (item_id) join jobs.job_runs r using (run_id);
$$;

-- A user's last p_limit months that have anything: movements, rows of the books, a recap. Cents.
--   {total, shown: [{month, movements, uncounted, computed, imported, typed, flaw, is_edited, worth, recap, recapped}]}
-- computed: what the movements say, as it was added up last; worth: what it is worth, as ca_records says.
create function jobs.user_months(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' set jit = off as $$
    with ledger as materialized (
        select t.paris_month as month, count(*) as movements, count(*) filter (where t.excluded is not null) as uncounted
        from jobs.integration_transactions t where t.user_id = p_user_id group by 1
    ), computed as materialized (
        select l.month, sum(jobs.readable_cents(l.computed_eur))::bigint as computed,
            bool_or(l.locked_at is not null) as is_edited
        from jobs.auto_sync_totals l where l.user_id = p_user_id group by 1
    ), recorded as materialized (
        select * from jobs.recorded_months(p_user_id)
    ), mailed as materialized (
        -- The last one of each: what did not arrive may have left again.
        select distinct on (1) to_date(split_part(d.dedupe_key, '/', 3), 'YYYY-MM') as month, d.status as recap,
            d.settled_at as recapped
        from jobs.email_deliveries d
        where d.user_id = p_user_id and d.kind = 'monthly_recap'
            and split_part(d.dedupe_key, '/', 3) ~ '^[0-9]{4}-(0[1-9]|1[0-2])$'
        order by 1, d.delivery_id desc
    ), months as (
        select month from ledger union select month from computed union select month from recorded
        union select month from mailed
    ), latest as materialized (
        select m.month, count(*) over () as total from months m
        where m.month between '2000-01-01' and '2100-12-01' order by m.month desc limit p_limit
    )
    select jsonb_build_object('total', coalesce(max(m.total), 0), 'shown', coalesce(jsonb_agg(jsonb_build_object(
        'month', to_char(m.month, 'YYYY-MM'), 'movements', coalesce(l.movements, 0), 'uncounted', coalesce(l.uncounted, 0),
        'computed', c.computed, 'imported', r.imported, 'typed', r.typed, 'flaw', r.flaw,
        'is_edited', coalesce(c.is_edited, false), 'worth', r.worth, 'recap', d.recap, 'recapped', d.recapped)
        order by m.month desc), '[]'))
    from latest m left join ledger l using (month) left join computed c using (month) left join recorded r using (month)
    left join mailed d using (month);
$$;

-- Each movement of some of a user's months, with why it does not count in the books (null: it counts):
--   left_out: its account was taken out of the books; before_connection: the month is the user's own;
--   reported_twice: Stripe reports the same money, and that counts; else see why_excluded
create function jobs.judged_movements(p_user_id uuid, p_months date[])
returns table (
    provider text, external_id text, account text, kind text, source_kind text, occurred_at timestamptz,
    first_seen_at timestamptz, updated_at timestamptz, amount_minor bigint, currency text, state text, method text,
    refs text[], original jsonb, reason text)
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with twice as materialized (
        select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, true) w
        where exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'stripe')
            and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'shopify')
    )
    select t.provider, t.external_id, t.account, t.kind, t.source_kind, t.occurred_at, t.first_seen_at, t.updated_at,
        t.amount_minor, t.currency, t.state, t.method, t.refs, t.original,
        case
            when coalesce(f.left_out, s.left_out) then 'left_out'
            when t.excluded is not null then t.excluded
            when coalesce(f.counted, s.counted) @> t.paris_month is not true then 'before_connection'
            when w.external_id is not null then 'reported_twice' end
    from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    left join twice w on t.provider = 'shopify' and w.external_id = t.external_id
    where t.user_id = p_user_id and t.paris_month = any (p_months);
$$;

-- A user's month: its figure and what it is worth, what the books say beside it, what was mailed, and a page of its movements
-- (p_uncounted: only of those that do not count). Cents.
create function jobs.user_month(
    p_user_id uuid, p_month date, p_uncounted boolean, p_offset integer, p_limit integer, p_now timestamptz
) returns jsonb language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with judged as materialized (
        select * from jobs.judged_movements(p_user_id, array[p_month])
    ), wanted as materialized (
        select j.provider, j.external_id,
            row_number() over (order by coalesce(j.occurred_at, j.first_seen_at), j.provider, j.external_id) as n
        from judged j where not p_uncounted or j.reason is not null
    ), page as materialized (
        select j.*, w.n from wanted w join judged j on j.provider = w.provider and j.external_id = w.external_id
        where w.n > p_offset and w.n <= p_offset + p_limit
    ), twice as materialized (
        select g.external_id, g.amount_minor, r as name from page g, unnest(g.refs) r where g.reason = 'reported_twice'
    ), names as materialized (   -- of the payment; where the shop names none (a refund), those of its order
        select t.external_id, t.amount_minor, t.name from twice t where t.name !~ '^gid:'
        union
        select t.external_id, t.amount_minor, n
        from twice t
        join (select s.refs, o from jobs.integration_transactions s, unnest(s.refs) o
            where s.user_id = p_user_id and s.provider = 'shopify' and exists (select from twice)) s on s.o = t.name
        cross join unnest(s.refs) n
        where t.name ~ '^gid:' and n !~ '^gid:'
    ), twins as materialized (
        select distinct on (n.external_id) n.external_id, p.external_id as twin
        from names n
        join (select t.external_id, t.amount_minor, t.occurred_at, r as name
            from jobs.integration_transactions t, unnest(t.refs) r
            where t.user_id = p_user_id and t.provider = 'stripe' and t.kind in ('payment', 'partial_capture', 'refund')
                and exists (select from twice)) p using (name)
        where (p.amount_minor > 0) = (n.amount_minor > 0)
        order by n.external_id, abs(p.amount_minor - n.amount_minor), p.occurred_at, p.external_id
    )
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', (select coalesce(sum(j.amount_minor), 0)::bigint from judged j where j.reason is null),
        'counted', (select count(*) from judged j where j.reason is null),
        'sources', (select coalesce(jsonb_agg(s order by s.provider), '[]') from (
            select j.provider, coalesce(sum(j.amount_minor) filter (where j.amount_minor > 0), 0)::bigint as gross,
                coalesce(sum(j.amount_minor) filter (where j.amount_minor < 0), 0)::bigint as refunds
            from judged j where j.reason is null group by 1) s),
        'uncounted', (select coalesce(jsonb_agg(u order by u.count desc, u.reason), '[]') from (
            select j.reason, left(j.currency, 20) as currency, count(*) as count, sum(j.amount_minor)::bigint as amount
            from judged j where j.reason is not null group by 1, 2 order by 3 desc, 1 limit 30) u),
        'worth', jobs.month_worth(p_user_id, p_month, p_now),
        'recorded', (select jsonb_build_object('typed', r.typed, 'imported', r.imported, 'entries', r.entries,
            'flaw', r.flaw) from jobs.recorded_months(p_user_id) r where r.month = p_month),
        'rows', (select coalesce(jsonb_agg(r order by r.is_imported, r.amount desc nulls first), '[]')
            from jobs.recorded_rows(p_user_id, p_month, 30) r),
        'totals', (select coalesce(jsonb_agg(jsonb_build_object('activity', l.activity,
            'computed', jobs.readable_cents(l.computed_eur), 'recorded', jobs.readable_cents(r.amount_eur),
            'is_gone', r.id is null, 'edited_at', l.locked_at) order by l.activity), '[]')
            from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
            where l.user_id = p_user_id and l.month = p_month),
        'recap', (select jsonb_build_object('status', d.status, 'reason', jobs.mask_text(d.reason), 'settled_at', d.settled_at,
            'total', d.facts -> 'total', 'provisional_at', d.facts -> 'provisional_at')
            from jobs.email_deliveries d
            where d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM')),
        'movements_total', (select count(*) from wanted),
        'movements', (select coalesce(jsonb_agg(jsonb_build_object(
            'provider', g.provider, 'id', left(g.external_id, 120), 'account', left(g.account, 120), 'kind', g.kind,
            'source_kind', left(g.source_kind, 80), 'at', g.occurred_at, 'amount', g.amount_minor,
            'currency', left(g.currency, 20), 'state', left(g.state, 40), 'method', left(g.method, 60), 'reason', g.reason,
            'twin', left(w.twin, 120), 'original_amount', left(g.original ->> 'amount', 40),
            'original_currency', left(g.original ->> 'currency', 20), 'first_seen_at', g.first_seen_at,
            'updated_at', g.updated_at) order by g.n), '[]')
            from page g left join twins w on g.provider = 'shopify' and w.external_id = g.external_id));
$$;

-- A user's last p_limit mails, and what became of each. About: the month, the year or the source, as the mail's key has it.
--   {total, shown: […]}
create function jobs.user_mails(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with theirs as materialized (
        select d.delivery_id, count(*) over () as total from jobs.email_deliveries d where d.user_id = p_user_id
        order by d.planned_at desc, d.delivery_id desc limit p_limit
    )
    select jsonb_build_object('total', coalesce(max(t.total), 0), 'shown', coalesce(jsonb_agg(jsonb_build_object(
        'delivery_id', d.delivery_id, 'kind', d.kind, 'about', left(split_part(d.dedupe_key, '/', 3), 40), 'status', d.status,
        'reason', jobs.mask_text(d.reason), 'feedback', d.feedback, 'service_id', left(d.provider_id, 80),
        'planned_at', d.planned_at, 'settled_at', d.settled_at, 'expires_at', d.expires_at,
        'attempts', case when d.status in ('planned', 'sealed') then i.attempts end,
        'waits_for', case when d.status in ('planned', 'sealed') then jobs.mask_text(i.error ->> 'message') end)
        order by d.planned_at desc, d.delivery_id desc), '[]'))
    from theirs t join jobs.email_deliveries d using (delivery_id) left join jobs.job_items i on i.item_id = d.item_id;
$$;

-- The mails that a user might have expected: the offer after the sign-up, the reminder and the recap of each of the last
-- p_months months and of this one. With the delivery's status where there is one, else with why there is none, by what they
-- wish and are today. Items older than p_kept_since are gone.
--   [{kind, month, status, reason, message, at}]
create function jobs.user_expected_mails(
    p_user_id uuid, p_prices jsonb, p_months integer, p_first_day integer, p_last_day integer, p_kept_since timestamptz,
    p_now timestamptz
) returns jsonb language sql stable set search_path = '' as $$
    with person as materialized (
        select m.* from jobs.mail_people m where m.user_id = p_user_id
    ), today as (
        select (p_now at time zone 'Europe/Paris')::date as day
    ), months as materialized (
        select m::date as month, (m + interval '1 month')::date as after, t.day, to_char(m, 'YYYY-MM') as name
        from person p cross join today t
        cross join generate_series(date_trunc('month', t.day::timestamp) - make_interval(months => p_months),
            date_trunc('month', t.day::timestamp), interval '1 month') m
        where (m + interval '1 month') at time zone 'Europe/Paris' > p.created_at
    ), theirs as materialized (
        select i.item_id, i.kind, i.status, i.payload, i.error from jobs.job_items i where i.user_id = p_user_id
    ), reads as materialized (
        select distinct on (i.payload ->> 'month') i.payload ->> 'month' as name, i.item_id, i.status, i.error,
            i.payload ->> 'recap' = 'true' as has_recap
        from theirs i where i.kind = 'sync_month' and i.status <> 'superseded'
        order by i.payload ->> 'month', i.item_id desc
    ), told as (
        select 1 as place, 'monthly_recap' as kind, n.name as month, d.status, d.reason as said, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after - 1 then 'not_due_yet'
                when not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
                    then 'no_connection'
                when i.item_id is null and n.after::timestamp at time zone 'Europe/Paris' < p_kept_since then 'not_kept'
                when i.item_id is null then 'month_not_read'
                when i.status = 'queued' then 'month_waits'
                when i.status = 'failed' then 'month_failed'
                when i.has_recap is not true then 'data_only'
                when jobs.mail_refusal(p, 'monthly_recap', p_now) is not null then jobs.mail_refusal(p, 'monthly_recap', p_now)
                when not jobs.month_has_news(p_user_id, n.month) then 'no_movement'
                else 'changed_since' end as reason,
            case when d.status is null then i.error ->> 'message' end as message
        from months n cross join person p
        left join reads i on i.name = n.name
        left join jobs.email_deliveries d on d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || n.name
        union all
        select 2, 'monthly_reminder', n.name, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after + 1 then 'not_due_yet'
                when jobs.mail_skip_reason_now('monthly_reminder', p, p_prices, p_now) is not null
                    then jobs.mail_skip_reason_now('monthly_reminder', p, p_prices, p_now)
                when p.created_at > (n.after + 2)::timestamp at time zone 'Europe/Paris' then 'signed_up_since'
                when not exists (select from jobs.job_slots s
                    where s.task = 'monthly_reminders' and s.slot = to_char(n.after, 'YYYY-MM')) then 'run_missed'
                else 'changed_since' end, null
        from months n cross join person p
        left join jobs.email_deliveries d on d.dedupe_key = 'monthly_reminder/' || p_user_id || '/' || n.name
        where n.after <= n.day
        union all
        select 3, 'marketing_day3', null, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when t.day < s.day + p_first_day then 'not_due_yet'
                when jobs.mail_skip_reason_now('marketing_day3', p, p_prices, p_now) is not null
                    then jobs.mail_skip_reason_now('marketing_day3', p, p_prices, p_now)
                when t.day > s.day + p_last_day then 'expired'
                else 'waits_for_run' end, null
        from person p cross join today t
        cross join lateral (select (p.created_at at time zone 'Europe/Paris')::date as day) s
        left join jobs.email_deliveries d on d.dedupe_key = 'marketing_day3/' || p_user_id
    )
    select coalesce(jsonb_agg(jsonb_build_object('kind', t.kind, 'month', t.month, 'status', t.status,
        'reason', coalesce(jobs.mask_text(t.said), t.reason), 'message', jobs.mask_text(t.message), 'at', t.settled_at)
        order by t.place, t.month desc), '[]')
    from told t;
$$;

-- Everything that the page of one user shows; null: there is no such user. Changes nothing.
-- p_month: the month that is opened, or null; p_uncounted, p_offset, p_limit: which of its movements. p_prices: see
-- user_plans. For p_late_before see user_connections; for the other days see user_expected_mails.
--   {person, connections, accounts, reads, months, month, mails, expected, told: [{year, threshold, step, at, to_verify, withdrawn_at}],
--   check_due}
create function public.jobs_user(
    p_user_id uuid, p_month date, p_uncounted boolean, p_offset integer, p_limit integer, p_prices jsonb,
    p_late_before timestamptz, p_first_day integer, p_last_day integer, p_kept_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$
declare
    person jsonb := jobs.user_person(p_user_id, p_prices, p_now);
begin
    if person is null then
        return null;
    end if;
    return jsonb_build_object(
        'person', person,
        'connections', jobs.user_connections(p_user_id, p_late_before, p_now),
        'accounts', jobs.user_accounts(p_user_id),
        'reads', jobs.user_reads(p_user_id, 12),
        'months', jobs.user_months(p_user_id, 60),
        'month', case when p_month is not null
            then jobs.user_month(p_user_id, p_month, p_uncounted, p_offset, p_limit, p_now) end,
        'mails', jobs.user_mails(p_user_id, 40),
        'expected', jobs.user_expected_mails(p_user_id, p_prices, 3, p_first_day, p_last_day, p_kept_since, p_now),
        'told', (select coalesce(jsonb_agg(jsonb_build_object('year', a.year, 'threshold', a.threshold, 'step', a.step,
            'at', a.created_at, 'to_verify', a.told_as = 'to_verify', 'withdrawn_at', a.withdrawn_at) order by a.year desc, a.created_at desc, a.threshold, a.step), '[]')
            from (select * from jobs.threshold_alerts k where k.user_id = p_user_id
                order by k.year desc, k.created_at desc limit 60) a),
        'check_due', exists (select from jobs.threshold_checks_due d where d.user_id = p_user_id));
end $$;

-- A user's receipts of some months, as the books count them, by date: a part of p_limit rows after p_offset.
--   {total, rows: [[day, id, kind, provider, method, cents]]}
create function public.jobs_user_receipts(
    p_user_id uuid, p_first date, p_last date, p_offset integer, p_limit integer
) returns jsonb language sql stable security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
    with counted as materialized (
        select (j.occurred_at at time zone 'Europe/Paris')::date as day, j.external_id, j.kind, j.provider, j.method,
            j.amount_minor, row_number() over (order by j.occurred_at, j.provider, j.external_id) as n
        from jobs.judged_movements(p_user_id, array(
            select m::date from generate_series(p_first::timestamp, p_last::timestamp, interval '1 month') m)) j
        where j.reason is null
    )
    select jsonb_build_object('total', (select count(*) from counted), 'rows', coalesce((
        select jsonb_agg(jsonb_build_array(c.day, regexp_replace(left(c.external_id, 80), '[[:cntrl:]]', ' ', 'g'), c.kind,
            c.provider, regexp_replace(left(c.method, 40), '[[:cntrl:]]', ' ', 'g'), c.amount_minor) order by c.n)
        from counted c where c.n > p_offset and c.n <= p_offset + p_limit), '[]'));
$$;

-- Takes an account out of a user's books, or back into them (p_out false): see leave_account_out. Null: the user has no such
-- account.
--   {is_out, movements, counted: cents of those that count by themselves, months: [YYYY-MM], left_alone?}
create function public.jobs_leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    known boolean := (select k.left_out from (
        select s.left_out from jobs.integration_state s
        where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account)
        union all
        select f.left_out from jobs.former_accounts f
        where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) k limit 1);
    seen jsonb;
begin
    if known is null then
        return null;
    end if;
    select jsonb_build_object('is_out', known, 'movements', count(*),
        'counted', coalesce(sum(t.amount_minor) filter (where t.excluded is null), 0)::bigint,
        'months', coalesce(jsonb_agg(distinct to_char(t.paris_month, 'YYYY-MM')), '[]'))
    into seen from jobs.integration_transactions t
    where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account;
    if p_dry_run then
        return seen;
    end if;
    return seen || jobs.leave_account_out(p_user_id, p_provider, p_account, p_out, p_now) || jsonb_build_object('is_out', p_out);
end $$;

-- Lets mails go to a user's address again. The mail service has a list of its own, which this does not touch.
--   {reason, since}: why and since when none went; null: they were not held back
create function public.jobs_lift_suppression(p_user_id uuid, p_dry_run boolean) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    hash bytea := (select jobs.address_hash(u.email::text) from auth.users u where u.id = p_user_id);
    lifted jsonb := (select jsonb_build_object('reason', s.reason, 'since', s.created_at)
        from jobs.email_suppressions s where s.address_hash = hash);
begin
    if not p_dry_run then
        delete from jobs.email_suppressions s where s.address_hash = hash;
    end if;
    return lifted;
end $$;

-- A user's mails that the mail service definitely did not take since p_failed_since, with why one is not sent again (null: it
-- is): no longer wanted, too late, or not true any more. An alert whose step was withdrawn since is not true.
create function jobs.mails_to_resend(p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_now timestamptz)
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
        and d.settled_at >= p_failed_since
        -- It has left for another address.
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Queues them again, each in its lane. A repeated call with the same p_call_id answers what the first one did.
--   {mails: [{delivery_id, kind, about, reason}], queued}
create function public.jobs_resend_mails(
    p_call_id uuid, p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    told jsonb;
    again bigint[];
    batch record;
begin
    if not p_dry_run then
        -- A repeated call waits here for the first one, which may still be at it.
        insert into jobs.job_answers (call_id, answer, answered_at) values (p_call_id, '{}', p_now)
        on conflict (call_id) do nothing;
        if not found then
            select a.answer into told from jobs.job_answers a where a.call_id = p_call_id;
            return told;
        end if;
        perform jobs.lock_mail_ledger();
    end if;
    select jsonb_build_object('mails', coalesce(jsonb_agg(jsonb_build_object('delivery_id', m.delivery_id, 'kind', m.kind,
            'about', m.about, 'reason', m.reason) order by m.delivery_id desc), '[]')),
        coalesce(array_agg(m.item_id) filter (where m.reason is null), '{}')
    into told, again
    from (select * from jobs.mails_to_resend(p_user_id, p_prices, p_failed_since, p_now) r
        order by r.delivery_id desc limit 50) m;
    if p_dry_run then
        return told || jsonb_build_object('queued', 0);
    end if;
    update jobs.email_deliveries d
    set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
        sealed_at = null, settled_at = null, feedback = null, feedback_at = null
    where d.item_id = any (again) and d.status in ('failed', 'refused');
    perform from jobs.job_items i where i.item_id = any (again) order by i.item_id for update;
    update jobs.job_items i
    set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
        msg_id = null, lease_id = null, leased_until = null, returned_lease = null
    where i.item_id = any (again) and i.status = 'failed';
    for batch in
        select i.run_id, i.lane, i.kind, i.version, array_agg(i.item_id order by i.item_id) as items
        from jobs.job_items i where i.item_id = any (again) group by 1, 2, 3, 4
    loop
        perform jobs.send_messages(batch.run_id, batch.lane, batch.kind, batch.version, batch.items);
    end loop;
    update jobs.job_runs r set status = 'running', finished_at = null
    where r.finished_at is not null and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (again));
    told := told || jsonb_build_object('queued', cardinality(again));
    update jobs.job_answers set answer = told where call_id = p_call_id;
    return told;
end $$;

-- Gives each queued item of a lane a message where it has none: its queue was purged, or restored without it. What a living
-- worker holds is left to it. Never by loops: statistics know nothing yet of what was just planned. Call alone: see
-- jobs_reconcile.
create function jobs.restore_messages(p_lane text) returns integer
language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    restored integer;
begin
    execute format('insert into pgmq.%1$I (vt, message)
        select clock_timestamp(), jsonb_build_object(
            ''version'', i.version, ''run_id'', i.run_id, ''item_id'', i.item_id, ''kind'', i.kind)
        from jobs.job_items i
        where i.status = ''queued'' and i.lane = $1 and coalesce(i.leased_until, ''-infinity'') < clock_timestamp()
            and not exists (select from pgmq.%1$I q where (q.message ->> ''item_id'')::bigint = i.item_id)
        order by i.waiting_since, i.item_id', 'q_jobs_' || p_lane)
    using p_lane;
    get diagnostics restored = row_count;
    return restored;
end $$;

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true.
create function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
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
                            and a.withdrawn_at is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Plans them once more, in a run for each kind, under a key of their own. Answers how many. Under the ledger's lock: an
-- operator who sends the same mails again (jobs_resend_mails) waits, and then finds them gone.
create function jobs.plan_moved_mails(p_route text, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    of_kind record;
    run uuid;
    planned integer := 0;
begin
    if not exists (select from jobs.mails_that_would_arrive(p_now)) then
        return 0;
    end if;
    perform jobs.lock_mail_ledger();
    for of_kind in
        select m.kind, array_agg(m.delivery_id order by m.delivery_id) as deliveries
        from jobs.mails_that_would_arrive(p_now) m group by 1 order by 1
    loop
        run := gen_random_uuid();
        perform jobs.open_run(run, case of_kind.kind when 'threshold_alert' then 'check_thresholds'
                when 'monthly_recap' then 'monthly_sync' when 'monthly_reminder' then 'monthly_reminders'
                when 'definitive_month' then 'monthly_reminders'
                else 'sync_integrations' end,
            null, 'cron', p_route, p_now, jsonb_build_object('moved', of_kind.kind), p_now);
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select d.dedupe_key || '/moved', d.kind, d.user_id, d.recipient, run, d.facts, d.expires_at
        from jobs.email_deliveries d where d.delivery_id = any (of_kind.deliveries) order by d.delivery_id
        on conflict (dedupe_key) do nothing;
        planned := planned + jobs.queue_mails(run, null, p_now);
        -- Nobody sends the refused one again beside it.
        perform from jobs.job_items i join jobs.email_deliveries d on d.item_id = i.item_id
        where d.delivery_id = any (of_kind.deliveries) and i.status = 'failed' order by i.item_id for update of i;
        update jobs.job_items i set status = 'superseded'
        from jobs.email_deliveries d
        where d.delivery_id = any (of_kind.deliveries) and i.item_id = d.item_id and i.status = 'failed';
    end loop;
    return planned;
end $$;

-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more.
--   {messages, mails}
create function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    lane record;
    messages integer := 0;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('comptalyze.jobs.reconcile', 0)) then
        return jsonb_build_object('messages', 0, 'mails', 0);
    end if;
    for lane in select l.lane from jobs.known_lanes() l order by l.place loop
        messages := messages + jobs.restore_messages(lane.lane);
    end loop;
    return jsonb_build_object('messages', messages, 'mails', jobs.plan_moved_mails(p_route, p_now));
end $$;

-- After a backup was restored: settles what waits as of unknown outcome, for it may have left before. Only for an operator, in
-- the SQL editor, while no key lets mails leave (see docs/RUNBOOK.fr.md). What is sealed stays: it is sent again under its
-- own key, which the mail service remembers for a day. Answers how many were settled.
create function jobs.give_up_waiting_mails(p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    why constant text := 'Peut-être envoyé après la sauvegarde qui a été restaurée.';
    given_up bigint[];
begin
    perform jobs.lock_mail_ledger();
    with settled as (
        update jobs.email_deliveries d set status = 'unknown', reason = why, settled_at = p_now
        where d.status = 'planned' returning d.delivery_id, d.kind, d.user_id
    ), offers as (
        insert into public.marketing_emails (user_id, email_type, sent_at)
        select s.user_id, 'upgrade_day3', p_now from settled s
        where s.kind = 'marketing_day3' and s.user_id is not null order by s.user_id
        on conflict (user_id, email_type) do nothing
    )
    select array_agg(s.delivery_id order by s.delivery_id) into given_up from settled s;
    update jobs.job_items i
    set status = 'failed', result = jsonb_build_object('user_id', i.user_id, 'mail', 'unknown', 'reason', why),
        error = jsonb_build_object('code', 'unknown_outcome', 'message', why),
        lease_id = null, leased_until = null, settled_at = p_now
    from jobs.known_lanes() l
    where l.is_mail and i.lane = l.lane and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = any (given_up);
    -- Their messages go with the next claim, which finds them without an item that is queued.
    return coalesce(cardinality(given_up), 0);
end $$;

-- Mails that asked to connect again were counted when they were planned.
update jobs.integration_state k
set trouble_mails = least(k.trouble_mails, n.asked), trouble_mailed_at = n.asked_at
from (
    select s.user_id, s.provider, count(d.delivery_id) as asked, max(d.settled_at) as asked_at
    from jobs.integration_state s
    left join jobs.email_deliveries d on d.user_id = s.user_id and d.kind = 'integration_trouble'
        and d.status in ('sent', 'unknown', 'refused') and split_part(d.dedupe_key, '/', 3) = s.provider
    where s.trouble_mailed_at is not null
    group by 1, 2) n
where n.user_id = k.user_id and n.provider = k.provider;

-- Who may do what; the last file, and the only one about rights. Supabase's default privileges open every new table and
-- function of `public` to everybody, and PostgreSQL grants EXECUTE on every new function to PUBLIC: both are taken
-- back.

-- Ours: nobody but the owner, not even service_role. Row-level security without a policy, should somebody ever get in.
revoke all on schema jobs from public, anon, authenticated, service_role;
revoke all on all tables in schema jobs from public, anon, authenticated, service_role;
revoke all on all sequences in schema jobs from public, anon, authenticated, service_role;
revoke all on all functions in schema jobs from public, anon, authenticated, service_role;
do $$
declare
    name text;
begin
    for name in select c.oid::regclass from pg_catalog.pg_class c
        where c.relnamespace = 'jobs'::regnamespace and c.relkind = 'r'
    loop
        execute format('alter table %s enable row level security', name);
    end loop;
end $$;

-- What the code calls: service_role only. By name alone, which fails where a function has an overload.
revoke all on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_confirm_books, public.jobs_confirmations, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_reconcile, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_find_user, public.jobs_leave_account_out, public.jobs_lift_suppression, public.jobs_resend_mails,
    public.jobs_user, public.jobs_user_receipts,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_slot_missed,
    public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_keep_objections, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books, public.threshold_details
from public, anon, authenticated, service_role;
grant execute on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_confirm_books, public.jobs_confirmations, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_reconcile, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_find_user, public.jobs_leave_account_out, public.jobs_lift_suppression, public.jobs_resend_mails,
    public.jobs_user, public.jobs_user_receipts,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_slot_missed,
    public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_keep_objections, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books, public.threshold_details
to service_role;

commit;
