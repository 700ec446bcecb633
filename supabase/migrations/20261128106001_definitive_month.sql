-- The recap's year up to its month, a month without sales, and the definitive total of a month, by the reminder or by a
-- mail of its own kind. Functions only: no table is locked, no row is read or changed.

begin;
set local lock_timeout = '5s';

-- The lane of a kind of mail; null for what is no kind. The one list of kinds; crates/jobs/src/mail_kind.rs
-- has the same.
create or replace function jobs.lane_of_mail(p_kind text) returns text
language sql immutable as $$
    select case p_kind when 'threshold_alert' then 'alerts' when 'integration_trouble' then 'alerts'
        when 'operator_digest' then 'alerts' when 'monthly_reminder' then 'reminders'
        when 'monthly_recap' then 'recaps' when 'definitive_month' then 'recaps' when 'marketing_day3' then 'marketing' end;
$$;

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
        select coalesce(sum(r.amount_eur), 0) * 100 as ahead from found r where r.month > extract(month from p_month)
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
                        'definitive', f.told, 'uncounted', f.uncounted,
                        'today', (p_now at time zone 'Europe/Paris')::date)
                    when 'definitive_month' then jsonb_build_object('definitive', f.told)
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
        left join lateral (
            select jobs.definitive_month(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM'), p_now) as told,
                -- The month and those before it in its quarter: what a declaration is about.
                jobs.uncounted_currencies(d.user_id, array(select g::date from generate_series(
                    date_trunc('quarter', to_date(d.facts ->> 'month', 'YYYY-MM')),
                    to_date(d.facts ->> 'month', 'YYYY-MM'), '1 month') g)) as uncounted
        ) f on d.kind in ('monthly_reminder', 'definitive_month') and d.status = 'planned'
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
    if not is_empty
        -- A debit on its way, an open dispute, an account that was taken out of the books: nothing to tell of.
        and not exists (select from jobs.integration_transactions t
            join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
            left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
            where t.user_id = p_user_id and t.paris_month = p_month and not coalesce(f.left_out, s.left_out)
                and coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover')) then
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

revoke all on function
    jobs.year_to_date, jobs.has_books_before, jobs.imported_total,
    jobs.definitive_month, jobs.definitive_candidates, jobs.uncounted_currencies
from public, anon, authenticated, service_role;

commit;
