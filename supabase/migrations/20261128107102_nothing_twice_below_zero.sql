-- What is in a month twice: only where typed and imported turnover are both above zero, and never by an answer for every
-- month where the month has money in other currencies. A recap that leaves late is of its whole month. Functions only: no
-- table is locked, no row is read or changed.

begin;
set local lock_timeout = '5s';

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
create or replace function jobs.book_verdict(p_user_id uuid, p_month date) returns text
language plpgsql stable set search_path = '' as $$
declare
    own text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month = p_month);
    general text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null);
begin
    return case when own is not null then own
        when general = 'same' and jobs.uncounted_currencies(p_user_id, array[p_month]) <> '[]' then null    -- see foreign_months
        else general end;
end $$;

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
create or replace function jobs.mixed_months(p_user_id uuid, p_year integer)
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

-- What stands in a user's books for a month, in cents; amounts are null with a flaw. What is confirmed to be the same
-- money counts once (side_counts). verdict: what the user has confirmed of a month that has both above zero.
create or replace function jobs.month_books(p_user_id uuid, p_month date)
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

-- A user's year up to the end of a month, as the month's recap shows it, in cents: sums by activity, with what is confirmed
-- to be the same money once (side_counts); what is typed for the months after (ahead); and the months between p_since and
-- p_month in which nothing stands (empty). Null where the year cannot be read (see month_books), or has more than 20
-- activities.
--   {sums: [{activity, typed, imported}], ahead, empty: [YYYY-MM]}
create or replace function jobs.year_to_date(p_user_id uuid, p_month date, p_since date) returns jsonb
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

-- What was imported for a month, as its recap shows it: as the books have it where they have the month at all, else all
-- that was read.
--   {total, activities: [{activity, total}], sources: [{source, gross, refunds}]}
create function jobs.recap_amounts(p_user_id uuid, p_month date) returns jsonb
language sql stable set search_path = '' as $$
    with counted as materialized (
        select c.provider, left(c.activity, 80) as activity, c.amount_minor
        from jobs.countable_movements(p_user_id, array[p_month],
            exists (select from jobs.integration_state s where s.user_id = p_user_id and s.counted @> p_month)
            or exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month)) c
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

revoke all on function
    jobs.foreign_months, jobs.recap_amounts, jobs.recap_anew
from public, anon, authenticated, service_role;

commit;
