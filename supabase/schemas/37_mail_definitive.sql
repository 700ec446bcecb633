-- The definitive total of a month of which a recap has named another one.

-- What was imported for a month, in cents: as the books have it where they have the month at all, else all that was read.
create function jobs.imported_total(p_user_id uuid, p_month date) returns bigint
language sql stable set search_path = '' as $$
    select coalesce(sum(c.amount_minor), 0)::bigint
    from jobs.countable_movements(p_user_id, array[p_month],
        exists (select from jobs.integration_state s where s.user_id = p_user_id and s.counted @> p_month)
        or exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month)) c;
$$;

-- What the recap of a month said, and what the month's total is now that it was read to its end. Null where no recap has
-- left, or the month was not read to its end.
--   {mailed, mailed_at, provisional, total}
create function jobs.definitive_month(p_user_id uuid, p_month date, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object('mailed', (d.facts ->> 'total')::bigint, 'mailed_at', d.settled_at,
        'provisional', d.facts ->> 'provisional_at' is not null, 'total', jobs.imported_total(p_user_id, p_month))
    from jobs.email_deliveries d
    where d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM') and d.status = 'sent'
        and d.facts ? 'total' and jobs.month_status(p_user_id, p_month, p_now) = 'complete';
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
