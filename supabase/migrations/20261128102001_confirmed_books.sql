-- What users confirm of months that have both typed and imported rows, and books that know it. The new table has a
-- foreign key to auth.users: sign-ups wait while the file runs, a moment. No row of any table is read or changed.

begin;
set local lock_timeout = '5s';

-- An answer for one month stands before the one for every month. Who has withdrawn an answer has no row any more.
create table jobs.book_confirmations (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date,                                      -- its 1st; null: every month without an answer of its own
    verdict text not null check (verdict in ('distinct', 'same')),
    confirmed_at timestamptz not null,
    unique nulls not distinct (user_id, month)
);
alter table jobs.book_confirmations enable row level security;

-- What a user has confirmed of a month: distinct, same, or null.
create function jobs.book_verdict(p_user_id uuid, p_month date) returns text
language sql stable set search_path = '' as $$
    select a.verdict from jobs.book_confirmations a
    where a.user_id = p_user_id and (a.month = p_month or a.month is null)
    order by a.month nulls last limit 1;
$$;

-- Whether a side of a month counts, the typed or the imported one: both do, but where the user has confirmed that they
-- are the same money. Then the greater one counts; of equals the typed one, whose activity is the user's own word. A
-- side that is not above zero is in nothing twice.
create function jobs.side_counts(p_is_imported boolean, p_typed numeric, p_imported numeric, p_verdict text)
returns boolean language sql immutable as $$
    select p_verdict is distinct from 'same' or least(p_typed, p_imported) <= 0
        or (p_imported > p_typed) = p_is_imported;
$$;

-- The books of these users in some years, in cents: added up by year and activity, typed and imported apart, and months
-- that have both once more by month. One row for each user who has any; with a flaw there are no years.
-- What a user has confirmed of a month with both (book_confirmations) is settled: it is not mixed any more, and of what
-- is the same money one side counts (side_counts).
--   years: [{year, sums: [{activity, typed, imported}], mixed: [{month, activity, typed, imported}]}]
create or replace function jobs.books(p_users uuid[], p_first_year integer, p_last_year integer)
returns table (user_id uuid, created date, years jsonb, flaw text)
-- Never by loops: how many rows each step has is not known, and loops over thousands of users take minutes.
language sql stable set search_path = '' set enable_nestloop = off as $$
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
    ), mixed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('month', s.month, 'activity', s.activity,
            'typed', s.typed, 'imported', s.imported) order by s.month, s.activity) as months
        from settled s where s.is_mixed group by 1, 2
    ), summed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', s.typed,
            'imported', s.imported) order by s.activity) as sums
        from sums s group by 1, 2
    ), years as (
        select s.user_id, s.year, jsonb_build_object('year', s.year, 'sums', s.sums,
            'mixed', coalesce(m.months, '[]')) as year_books
        from summed s left join mixed m on m.user_id = s.user_id and m.year = s.year
    ), books as (
        select y.user_id, jsonb_agg(y.year_books order by y.year) as years from years y group by 1
    )
    select n.user_id, n.created, b.years, n.flaw from owners n left join books b using (user_id);
$$;

-- A user's months of a year that have both typed and imported rows, in cents, with what the user has confirmed of each.
-- None where the year cannot be read (see month_books).
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
        having bool_or(r.source <> 'auto_sync') and bool_or(r.source = 'auto_sync')
    ), soundness as materialized (
        select (select count(*) from found) <= 50000 and not coalesce(bool_or('NaN' in (m.typed, m.imported)), false)
            as is_sound
        from months m
    )
    select m.month, case when s.is_sound then m.typed::bigint end, case when s.is_sound then m.imported::bigint end,
        jobs.book_verdict(p_user_id, m.month)
    from months m cross join soundness s where s.is_sound;
$$;

drop function jobs.month_books(uuid, date);
-- What stands in a user's books for a month, in cents; amounts are null with a flaw. What is confirmed to be the same
-- money counts once (side_counts). verdict: what the user has confirmed of a month that has both typed and imported rows.
create function jobs.month_books(p_user_id uuid, p_month date)
returns table (recorded bigint, typed bigint, entries integer, flaw text, verdict text)
language sql stable set search_path = '' as $$
    with sums as (
        select coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported,
            bool_or(r.source <> 'auto_sync') as is_typed, bool_or(r.source = 'auto_sync') as is_imported,
            count(*) as entries
        from (select * from public.ca_records a
              where a.user_id = p_user_id and a.year = extract(year from p_month)
                  and a.month = extract(month from p_month)
              limit 50001) r
    ), judged as (
        select s.*, case when s.is_typed and s.is_imported then jobs.book_verdict(p_user_id, p_month) end as verdict,
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
                            'income_tax', t.income_tax), 'mixed', x.months, 'verdict', m.verdict)
                    when 'monthly_recap' then jsonb_build_object('year', y.sums, 'created', y.created,
                        'mixed', x.months, 'verdict', m.verdict) else '{}' end end,
            'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                    case when d.kind = 'integration_trouble'
                        then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end) end,
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
        left join lateral jobs.tax_profiles(array[d.user_id]) t on d.kind = 'monthly_reminder' and d.status = 'planned'
        left join lateral (
            select b.created, b.years -> 0 -> 'sums' as sums
            from jobs.books(array[d.user_id], left(d.facts ->> 'month', 4)::integer, left(d.facts ->> 'month', 4)::integer) b
            where jsonb_array_length(b.years -> 0 -> 'sums') <= 20   -- no mail is long
        ) y on d.kind = 'monthly_recap' and d.status = 'planned'
        left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
            select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                'imported', q.imported) order by q.month), '[]') as months
            from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
        ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
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

revoke all on table jobs.book_confirmations from public, anon, authenticated, service_role;
revoke all on function
    jobs.book_verdict, jobs.side_counts, jobs.mixed_months, jobs.month_books, jobs.confirmations,
    public.jobs_confirmations, public.jobs_confirm_books
from public, anon, authenticated, service_role;
grant execute on function public.jobs_confirmations, public.jobs_confirm_books to service_role;

commit;
