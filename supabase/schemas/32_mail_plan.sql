-- Planning of mails that belong to a day or a month.

-- The J+3 mail: everybody who signed up p_first_day to p_last_day Paris days before p_now, and why not (reason null:
-- gets it). It expires when the last of these days is over.
-- What was planned before is looked up (limit 1): a join would read the whole ledger, which only grows.
create function jobs.marketing_candidates(
    p_user_id uuid, p_prices jsonb, p_first_day integer, p_last_day integer, p_now timestamptz
) returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select p.user_id,
        case
            when d.known then 'already_planned'
            when m.id is not null then 'already_sent'
            when l.plan is null then 'unknown_price'
            when l.plan = 'suspended' then 'plan_suspended'
            when l.plan <> 'free' then 'paid_plan'
            when p.says_paid then 'metadata_says_paid'
            else jobs.mail_refusal(p, 'marketing_day3', p_now) end,
        case when d.known is null and m.id is null then l.unknown_price end,
        'marketing_day3/' || p.user_id, '{}'::jsonb,
        ((p.created_at at time zone 'Europe/Paris')::date + p_last_day + 1)::timestamp at time zone 'Europe/Paris'
    from today t
    join jobs.mail_people p on p.created_at >= (t.day - p_last_day)::timestamp at time zone 'Europe/Paris'
        and p.created_at < (t.day - p_first_day + 1)::timestamp at time zone 'Europe/Paris'
    join jobs.user_plans(p_prices, p_now) l on l.user_id = p.user_id
    left join public.marketing_emails m on m.user_id = p.user_id and m.email_type = 'upgrade_day3'
    left join lateral (select true as known from jobs.email_deliveries k
        where k.dedupe_key = 'marketing_day3/' || p.user_id limit 1) d on true
    where p_user_id is null or p.user_id = p_user_id;
$$;

-- The reminder for p_month (its 1st): everybody who is Premium or wishes to be reminded, and why not.
create function jobs.reminder_candidates(
    p_user_id uuid, p_prices jsonb, p_month date, p_expires_at timestamptz, p_now timestamptz
) returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    select p.user_id,
        case
            when d.known then 'already_planned'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'premium' then 'not_premium'
            else jobs.mail_refusal(p, 'monthly_reminder', p_now) end,
        case when d.known is null then l.unknown_price end,
        'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM'),
        jsonb_build_object('month', to_char(p_month, 'YYYY-MM')),
        p_expires_at
    from jobs.user_plans(p_prices, p_now) l
    join jobs.mail_people p on p.user_id = l.user_id
    left join lateral (select true as known from jobs.email_deliveries k
        where k.dedupe_key = 'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM') limit 1) d on true
    where (p_user_id is null or p.user_id = p_user_id)
        and (l.plan = 'premium' or l.plan is null or p.wants_reminder);
$$;

-- Gives these deliveries of a run, as far as they are planned, their items and messages. A run that was closed is open again.
-- Answers how many were queued.
create function jobs.queue_deliveries(p_run_id uuid, p_deliveries bigint[], p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
            select d.run_id, jobs.lane_of_mail(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id), p_now, p_now
            from jobs.email_deliveries d
            where d.delivery_id = any (p_deliveries) and d.run_id = p_run_id and d.status = 'planned' and d.not_before is null
            order by d.delivery_id
            on conflict (run_id, kind, subject) do nothing
            returning item_id, lane, kind, version
        )
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from items group by lane, kind, version
    loop
        perform jobs.send_messages(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
        queued := queued + cardinality(batch.items);
    end loop;
    if queued > 0 then
        update jobs.job_runs set status = 'running', finished_at = null
        where run_id = p_run_id and finished_at is not null;
    end if;
    return queued;
end $$;

-- Does so with each planned delivery of a run, but for a second attempt that has to wait: the end of every plan of mails, in
-- its transaction. p_user_id: only this user's.
create function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
begin
    return jobs.queue_deliveries(p_run_id, array(
        select d.delivery_id from jobs.email_deliveries d
        where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            and d.not_before is null), p_now);
end $$;

-- Plans the J+3 mails (p_first_day, p_last_day) or the reminders for a month (p_month, p_expires_at). With p_dry_run
-- nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], unreadable?: n, definitive?: n, candidates?: […]}}
-- definitive: how many get the month's definitive total by a mail of its own, since no reminder tells them.
-- unreadable: how many of those that were looked at have an account that cannot be read (see account_flaws); noted.
create function public.jobs_plan_mails(
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
