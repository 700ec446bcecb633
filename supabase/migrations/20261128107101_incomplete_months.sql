-- The reminder says of each month of its quarter what its figures lack; a total is definitive once the month was read to
-- its end, whatever its flaws, which are told beside it. Functions only: no table is locked, no row is read or changed.

begin;
set local lock_timeout = '5s';

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

drop function jobs.definitive_month(uuid, date, timestamptz);

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
                        'mixed', x.months, 'verdict', m.verdict) else '{}' end end,
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
    jobs.month_sources, jobs.month_lacks, jobs.definitive_month
from public, anon, authenticated, service_role;

commit;
