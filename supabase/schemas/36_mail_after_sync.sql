-- Mails that follow from the settlement of a sync.

-- Whether a user's month has anything that a recap would tell of: not a debit on its way, an open dispute, an account whose
-- books do not have the month.
create function jobs.month_has_news(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.movements_in_books(p_user_id, array[p_month]) t
        where coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover'));
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

-- Whether the month's recap waits for the next cron, which takes the month up again (see owed_months): an integration of
-- it was not read for a reason that may pass: until the p_policy ->> 'recap_waits_until'-th of the month after, and what
-- only its user can mend for p_policy ->> 'recap_waits_hours' since it was read last. An operator's call, which nobody
-- repeats, waits for nothing.
create function jobs.recap_waits(
    p_run_id uuid, p_user_id uuid, p_month date, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns boolean language sql stable set search_path = '' as $$
    select coalesce(p_now < (p_month + interval '1 month'
                + make_interval(days => (p_policy ->> 'recap_waits_until')::integer - 1)) at time zone 'Europe/Paris', false)
        and exists (select from jobs.job_runs r where r.run_id = p_run_id and r.slot is not null)
        and exists (select from jsonb_array_elements(p_parts) e
            join jobs.integration_state s on s.user_id = p_user_id and s.provider = e ->> 'provider'
            where e -> 'error' ->> 'code' is not null
                and (not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')
                    or s.last_success_at > p_now - make_interval(hours => (p_policy ->> 'recap_waits_hours')::integer)));
$$;

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
-- p_policy: {users_codes: [the refusals that only one user can mend], recap_waits_until, recap_waits_hours: see recap_waits}
create function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    ended jsonb;        -- sources that nobody reads any further, as month_lacks tells them
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
    if jobs.recap_waits(i.run_id, p_user_id, p_month, p_parts, p_policy, p_now) then
        update jobs.job_items set result = result || '{"recap_waits": true}' where item_id = p_item_id;
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.movements_in_books(p_user_id, array[p_month]))
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    ended := case when i.result ->> 'month_status' = 'partial' then (
        select jsonb_agg(u) from jsonb_array_elements(jobs.month_lacks(p_user_id, p_month, p_as_of) -> 'unread') u
        where u @> '{"is_former": true}' or u @> '{"is_disconnected": true}') end;
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'not_theirs', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e
            where not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')),
        'ended', coalesce(ended, '[]'),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself, and so are sources that ended.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}' and ended is null
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
create function jobs.plan_reconnect_mail(
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
