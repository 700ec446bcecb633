-- One function says whether a month has anything that a recap would tell of; the receipts of one user are bounded by bytes; their page says what was withdrawn; what has left for another address is not sent again from there.
--
-- Locks: nothing; it only replaces functions. Safe to run twice.

begin;
set local lock_timeout = '5s';

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
    -- What ca_records says, where the month is in the books at all; else what was read.
    in_books boolean := exists (select from jobs.integration_state s where s.user_id = p_user_id and s.counted @> p_month)
        or exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month);
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
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', coalesce(sum(s.gross + s.refunds), 0)::bigint,
        'activities', (select coalesce(jsonb_agg(jsonb_build_object('activity', a.activity, 'total', a.total)
                order by a.activity), '[]')
            from (select left(c.activity, 80) as activity, sum(c.amount_minor)::bigint as total
                  from jobs.countable_movements(p_user_id, array[p_month], in_books) c
                  where c.activity is not null group by 1) a),
        'sources', coalesce(jsonb_agg(jsonb_build_object(
            'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]'),
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
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)))
    into facts
    from (select c.provider, coalesce(sum(c.amount_minor) filter (where c.amount_minor > 0), 0) as gross,
            coalesce(sum(c.amount_minor) filter (where c.amount_minor < 0), 0) as refunds
          from jobs.countable_movements(p_user_id, array[p_month], in_books) c group by c.provider) s;
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- A user's receipts of some months, as the books count them, by date: a part of p_limit rows after p_offset.
--   {total, rows: [[day, id, kind, provider, method, cents]]}
create or replace function public.jobs_user_receipts(
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

-- Everything that the page of one user shows; null: there is no such user. Changes nothing.
-- p_month: the month that is opened, or null; p_uncounted, p_offset, p_limit: which of its movements. p_prices: see
-- user_plans. For p_late_before see user_connections; for the other days see user_expected_mails.
--   {person, connections, accounts, reads, months, month, mails, expected, told: [{year, threshold, step, at, to_verify, withdrawn_at}],
--   check_due}
create or replace function public.jobs_user(
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
        and d.settled_at >= p_failed_since
        -- It has left for another address.
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Queues them again, each in its lane. A repeated call with the same p_call_id answers what the first one did.
--   {mails: [{delivery_id, kind, about, reason}], queued}
create or replace function public.jobs_resend_mails(
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

commit;
