-- What a mail says of a month after it is over: what its figures lack, and its definitive total where a recap has named
-- another one.

-- What keeps a user's month from being whole: what was not read of it, and its flaws as a recap tells them.
--   {month, in_books: the month belongs into the books of an account, read_whole: it was read to its end,
--    unread: [{source, since: null where a hole lies elsewhere, wholly, is_former, is_disconnected}], maybe_twice, passed_on,
--    partial: something else is missing}
create function jobs.month_lacks(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with bounds as materialized (
        select tstzmultirange(tstzrange(p_month::timestamp at time zone 'Europe/Paris',
            (p_month + interval '1 month') at time zone 'Europe/Paris')) as days
    ), sources as materialized (
        select s.provider, s.is_former, s.is_disconnected, s.is_owed, b.days, b.days - s.covered as missing
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    ), reading as materialized (
        select coalesce(bool_or(s.is_owed), false) as in_books, coalesce(bool_and(isempty(s.missing)), false) as is_whole,
            coalesce(jsonb_agg(jsonb_build_object('source', s.provider, 'is_former', s.is_former,
                'is_disconnected', s.is_disconnected, 'wholly', s.missing = s.days,
                'since', case when s.missing = tstzmultirange(tstzrange(lower(s.missing), upper(s.days)))
                    and lower(s.missing) > lower(s.days) then lower(s.missing) end)
                order by s.provider, s.is_former, s.is_disconnected) filter (where s.is_owed and not isempty(s.missing)), '[]') as unread
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
    from jobs.foreign_movements(array[p_user_id]) t where t.month = any (p_months);
$$;

-- What is true now of a provisional recap that leaves when its month is over and was read to its end; {} for any other.
create function jobs.recap_anew(p_user_id uuid, p_facts jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce((
        select jobs.recap_amounts(p_user_id, o.month) || jsonb_build_object('provisional_at', null, 'unread', '[]'::jsonb, 'ended', '[]'::jsonb,
            'not_theirs', '[]'::jsonb,
            'uncounted', jobs.uncounted_currencies(p_user_id, array[o.month]),
            'typed', (select m.typed from jobs.month_books(p_user_id, o.month) m),
            'maybe_twice', l.lacks -> 'maybe_twice', 'passed_on', l.lacks -> 'passed_on', 'partial', l.lacks -> 'partial')
        from to_date(p_facts ->> 'month', 'YYYY-MM') as o (month)
        cross join lateral (select jobs.month_lacks(p_user_id, o.month, p_now) as lacks offset 0) l
        where p_facts ->> 'provisional_at' is not null
            and p_now >= (o.month + interval '1 month') at time zone 'Europe/Paris'
            and l.lacks @> '{"read_whole": true}'), '{}');
$$;
