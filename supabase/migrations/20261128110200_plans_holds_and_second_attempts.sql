-- A subscription that is past due pays, and one that is suspended is sold nothing. A hold at a provider lasts as long as it was
-- asked for. A second attempt of a mail waits. An alert that reached nobody was not told: its year is looked at anew. What
-- a user has confirmed, and the definitive totals, are on the user's page.
--
-- Locks: job_paces and email_deliveries while columns are added (the catalogue only); a new index reads email_deliveries
-- once while writes wait. One transaction, lock_timeout 5 s. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

-- How long a provider has asked to wait (16_pace.sql).
alter table jobs.job_paces add column held_until timestamptz;

-- Second attempts that wait (30_mails.sql).
alter table jobs.email_deliveries add column not_before timestamptz;
create index email_deliveries_put_off on jobs.email_deliveries (not_before) where not_before is not null;

create or replace function jobs.requeue_mails(p_items bigint[]) returns integer
language plpgsql set search_path = '' as $$
declare
    queued integer;
    batch record;
begin
    update jobs.email_deliveries d
    set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
        sealed_at = null, settled_at = null, feedback = null, feedback_at = null
    where d.item_id = any (p_items) and d.status in ('failed', 'refused');
    perform from jobs.job_items i where i.item_id = any (p_items) order by i.item_id for update;
    update jobs.job_items i
    set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
        msg_id = null, lease_id = null, leased_until = null, returned_lease = null
    where i.item_id = any (p_items) and i.status = 'failed';
    get diagnostics queued = row_count;
    for batch in
        select i.run_id, i.lane, i.kind, i.version, array_agg(i.item_id order by i.item_id) as items
        from jobs.job_items i where i.item_id = any (p_items) group by 1, 2, 3, 4 order by 1, 2, 3
    loop
        perform jobs.send_messages(batch.run_id, batch.lane, batch.kind, batch.version, batch.items);
    end loop;
    update jobs.job_runs r set status = 'running', finished_at = null
    where r.finished_at is not null and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (p_items));
    return queued;
end $$;

create or replace function jobs.second_attempt_after(p_feedback text) returns interval
language sql immutable set search_path = '' as $$
    select case p_feedback when 'mailbox_full' then interval '1 day' else interval '30 minutes' end;
$$;

create or replace function jobs.untell_alerts(p_deliveries bigint[], p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    untold jsonb := (select coalesce(jsonb_agg(jsonb_build_object('user_id', d.user_id, 'run_id', d.run_id,
            'year', d.facts -> 'year', 'threshold', c.threshold, 'step', c.step)), '[]')
        from jobs.email_deliveries d
        cross join jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
        where d.delivery_id = any (p_deliveries));
begin
    -- In one order for all who plan; with the lower steps that each has used up.
    perform from jobs.threshold_alerts a
    join jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
        on a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
            and a.run_id = u.run_id
    order by a.user_id, a.year, a.threshold, a.step, a.told_as for update of a;
    delete from jobs.threshold_alerts a
    using jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
    where a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
        and a.run_id = u.run_id and a.times = 1;
    update jobs.threshold_alerts a set times = a.times - 1, withdrawn_at = p_now
    from jsonb_to_recordset(untold) as u (user_id uuid, run_id uuid, year integer, threshold text, step smallint)
    where a.user_id = u.user_id and a.year = u.year and a.threshold = u.threshold and a.step <= u.step
        and a.run_id = u.run_id and a.withdrawn_at is null;
    insert into jobs.threshold_checks_due as k (user_id)
    select distinct d.user_id from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.user_id is not null order by 1
    on conflict (user_id) do update set since = excluded.since;
end $$;

create or replace function jobs.queue_put_off_mails(p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    run uuid;
    queued integer := 0;
begin
    for run in
        with due as (
            update jobs.email_deliveries d set not_before = null
            from jobs.job_runs r
            where d.not_before <= p_now and d.status = 'planned' and r.run_id = d.run_id
            returning d.run_id
        )
        select distinct d.run_id from due d order by 1
    loop
        queued := queued + jobs.queue_mails(run, null, p_now);
    end loop;
    return queued;
end $$;

create or replace function jobs.user_confirmations(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'every', (select jsonb_build_object('verdict', a.verdict, 'at', a.confirmed_at)
            from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null),
        'months', (select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'), 'verdict', m.verdict,
                'at', m.confirmed_at) order by m.month desc), '[]')
            from (select * from jobs.book_confirmations a where a.user_id = p_user_id and a.month is not null
                order by a.month desc limit p_limit) m));
$$;

create or replace function public.jobs_lease_turns(
    p_name text, p_count integer, p_interval_us integer, p_version bigint, p_answered integer
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    span interval := make_interval(secs => p_count::double precision * p_interval_us / 1000000);
    pace jobs.job_paces;
    now_at timestamptz;
    earliest timestamptz;
    first_turn timestamptz;
begin
    insert into jobs.job_paces as p (name, next_at, since)
    values (p_name, clock_timestamp(), clock_timestamp())
    on conflict (name) do update
        set answered = p.answered + case when p.version = p_version then p_answered else 0 end
    returning * into pace;
    now_at := clock_timestamp();
    if pace.version = p_version then
        -- What an earlier lease left far ahead (a changed clock) is not waited for; what the provider has asked for is.
        earliest := greatest(now_at, pace.held_until);
        first_turn := least(greatest(pace.next_at, earliest), earliest + interval '2 minutes');
        update jobs.job_paces set next_at = first_turn + span where name = p_name;
    end if;
    return jsonb_build_object(
        'wait_us', ceil(extract(epoch from first_turn - now_at) * 1000000)::bigint,
        'version', pace.version,
        'learned', pace.learned,
        'window_us', greatest(0, ceil(extract(epoch from now_at - coalesce(pace.since, now_at)) * 1000000))::bigint,
        'answered', pace.answered);
end $$;

create or replace function public.jobs_hold_turns(p_name text, p_wait_ms integer) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into jobs.job_paces as p (name, next_at, held_until)
    select p_name, h.until, h.until
    from (select clock_timestamp() + make_interval(secs => p_wait_ms / 1000.0) as until) h
    on conflict (name) do update
        set next_at = greatest(p.next_at, excluded.next_at), held_until = greatest(p.held_until, excluded.held_until);
$$;

create or replace function jobs.user_plans(p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, plan text, unknown_price text)
language sql stable as $$
    select u.id, k.plan, case when k.plan is null then coalesce(s.price_id, '') end
    from auth.users u
    left join public.subscriptions s on s.user_id = u.id
    left join public.user_profiles p on p.id = u.id
    cross join lateral (select case
        when s.status in ('active', 'trialing') then p_prices ->> s.price_id
        when p.trial_ends_at > p_now and p.trial_plan in ('pro', 'premium') then p.trial_plan
        when p.plan in ('pro', 'premium') and p.plan_status = 'active' then p.plan
        when s.status = 'past_due' then p_prices ->> s.price_id
        when p.plan in ('pro', 'premium') and p.plan_status = 'past_due' then p.plan
        when s.status in ('unpaid', 'paused', 'incomplete') then 'suspended'
        when p.plan in ('pro', 'premium') and p.plan_status = 'unpaid' then 'suspended'
        else 'free' end as plan) k;
$$;

create or replace function jobs.marketing_candidates(
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

create or replace function jobs.mail_skip_reason_now(p_kind text, p jobs.mail_people, p_prices jsonb, p_now timestamptz)
returns text language sql stable set search_path = '' as $$
    select case
        when p.user_id is null then 'user_deleted'
        when jobs.mail_refusal(p, p_kind, p_now) is not null then jobs.mail_refusal(p, p_kind, p_now)
        when p_kind = 'marketing_day3' and exists (select from public.marketing_emails m
            where m.user_id = p.user_id and m.email_type = 'upgrade_day3') then 'already_sent'
        when p_kind = 'marketing_day3' and p.says_paid then 'metadata_says_paid'
        when p_prices is not null and p_kind in ('marketing_day3', 'monthly_reminder') then (
            select case when l.plan is null then 'unknown_price'
                when p_kind = 'marketing_day3' and l.plan = 'suspended' then 'plan_suspended'
                when p_kind = 'marketing_day3' and l.plan <> 'free' then 'paid_plan'
                when p_kind = 'monthly_reminder' and l.plan <> 'premium' then 'not_premium' end
            from jobs.user_plans(p_prices, p_now) l where l.user_id = p.user_id) end;
$$;

create or replace function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
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
            where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
                and d.not_before is null
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

create or replace function jobs.apply_feedback(p_provider_ids text[], p_now timestamptz) returns void
language sql set search_path = '' as $$
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
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at, not_before)
    select d.dedupe_key || '/again', d.kind, d.user_id, d.recipient, d.run_id, d.facts, d.expires_at,
        p_now + jobs.second_attempt_after(d.feedback)
    from jobs.email_deliveries d join jobs.job_runs r on r.run_id = d.run_id
    where d.provider_id = any (p_provider_ids) and d.feedback in ('failed', 'mailbox_full')
        and d.kind <> 'marketing_day3' and d.facts <> '{}' and d.dedupe_key not like '%/again'
        and (d.user_id is not null or d.recipient is null)
        and (d.expires_at is null or d.expires_at > p_now + jobs.second_attempt_after(d.feedback))
    order by d.delivery_id
    on conflict (dedupe_key) do nothing;
    -- It was delivered after all.
    delete from jobs.email_deliveries n
    using jobs.email_deliveries d
    where d.provider_id = any (p_provider_ids) and d.feedback is null
        and n.dedupe_key = d.dedupe_key || '/again' and n.status = 'planned' and n.not_before is not null;
$$;

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
        mails := jobs.requeue_mails(again);
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

create or replace function public.jobs_resend_mails(
    p_call_id uuid, p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    told jsonb;
    again bigint[];
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
    told := told || jsonb_build_object('queued', jobs.requeue_mails(again));
    update jobs.job_answers set answer = told where call_id = p_call_id;
    return told;
end $$;

create or replace function jobs.plan_moved_mails(p_route text, p_now timestamptz) returns integer
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
        if of_kind.kind = 'threshold_alert' then
            perform jobs.untell_alerts(of_kind.deliveries, p_now);
            planned := planned + cardinality(of_kind.deliveries);
        else
            run := gen_random_uuid();
            perform jobs.open_run(run, case of_kind.kind when 'monthly_recap' then 'monthly_sync'
                    when 'monthly_reminder' then 'monthly_reminders' when 'definitive_month' then 'monthly_reminders'
                    else 'sync_integrations' end,
                null, 'cron', p_route, p_now, jsonb_build_object('moved', of_kind.kind), p_now);
            insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
            select d.dedupe_key || '/moved', d.kind, d.user_id, d.recipient, run, d.facts, d.expires_at
            from jobs.email_deliveries d where d.delivery_id = any (of_kind.deliveries) order by d.delivery_id
            on conflict (dedupe_key) do nothing;
            planned := planned + jobs.queue_mails(run, null, p_now);
        end if;
        -- Nobody sends the refused one again beside it.
        perform from jobs.job_items i join jobs.email_deliveries d on d.item_id = i.item_id
        where d.delivery_id = any (of_kind.deliveries) and i.status = 'failed' order by i.item_id for update of i;
        update jobs.job_items i set status = 'superseded'
        from jobs.email_deliveries d
        where d.delivery_id = any (of_kind.deliveries) and i.item_id = d.item_id and i.status = 'failed';
    end loop;
    return planned;
end $$;

create or replace function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
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
    return jsonb_build_object('messages', messages,
        'mails', jobs.plan_moved_mails(p_route, p_now) + jobs.queue_put_off_mails(p_now));
end $$;

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
    select k.key || case when exists (select from jobs.email_deliveries o
            where o.dedupe_key = k.key and o.feedback in ('bounced', 'suppressed', 'refused')) then '/moved' else '' end,
        'threshold_alert', f.user_id, f.user_id, p_run_id, f.facts || jsonb_build_object('crossings', f.crossings)
    from fresh f
    cross join lateral (select 'threshold_alert/' || f.user_id || '/' || f.year || '/' || f.steps as key) k
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

create or replace function jobs.user_mails(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with theirs as materialized (
        select d.delivery_id, count(*) over () as total from jobs.email_deliveries d where d.user_id = p_user_id
        order by d.planned_at desc, d.delivery_id desc limit p_limit
    )
    select jsonb_build_object('total', coalesce(max(t.total), 0), 'shown', coalesce(jsonb_agg(jsonb_build_object(
        'delivery_id', d.delivery_id, 'kind', d.kind, 'about', left(split_part(d.dedupe_key, '/', 3), 40), 'status', d.status,
        'reason', jobs.mask_text(d.reason), 'feedback', d.feedback, 'service_id', left(d.provider_id, 80),
        'not_before', d.not_before, 'planned_at', d.planned_at, 'settled_at', d.settled_at, 'expires_at', d.expires_at,
        'attempts', case when d.status in ('planned', 'sealed') then i.attempts end,
        'waits_for', case when d.status in ('planned', 'sealed') then jobs.mask_text(i.error ->> 'message') end)
        order by d.planned_at desc, d.delivery_id desc), '[]'))
    from theirs t join jobs.email_deliveries d using (delivery_id) left join jobs.job_items i on i.item_id = d.item_id;
$$;

create or replace function jobs.user_expected_mails(
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
        -- As definitive_candidates finds them.
        select 3, 'definitive_month', n.name, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after + 1 then 'not_due_yet'
                when r.delivery_id is not null then 'told_by_reminder'
                when (c.facts ->> 'total')::bigint = (select coalesce(sum(l.computed_eur), 0) * 100
                    from jobs.auto_sync_totals l where l.user_id = p_user_id and l.month = n.month) then 'month_unchanged'
                when jobs.mail_refusal(p, 'definitive_month', p_now) is not null
                    then jobs.mail_refusal(p, 'definitive_month', p_now)
                when not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
                    then 'no_connection'
                when not exists (select from jobs.job_slots s
                    where s.task = 'monthly_reminders' and s.slot = to_char(n.after, 'YYYY-MM')) then 'run_missed'
                else 'changed_since' end, null
        from months n cross join person p
        join jobs.email_deliveries c on c.dedupe_key = 'monthly_recap/' || p_user_id || '/' || n.name
            and c.status = 'sent' and c.facts ? 'total'
        left join jobs.email_deliveries r on r.dedupe_key = 'monthly_reminder/' || p_user_id || '/' || n.name
        left join jobs.email_deliveries d on d.dedupe_key = 'definitive_month/' || p_user_id || '/' || n.name
        where n.after <= n.day
        union all
        select 4, 'marketing_day3', null, d.status, d.reason, d.settled_at,
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
        'confirmations', jobs.user_confirmations(p_user_id, 24),
        'check_due', exists (select from jobs.threshold_checks_due d where d.user_id = p_user_id));
end $$;

revoke all on function
    jobs.requeue_mails,
    jobs.second_attempt_after,
    jobs.untell_alerts,
    jobs.queue_put_off_mails,
    jobs.user_confirmations
from public, anon, authenticated, service_role;

commit;
