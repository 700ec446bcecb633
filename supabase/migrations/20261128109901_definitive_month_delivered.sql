-- A definitive total that did not arrive is told to the operator, and leaves once more where its address was corrected, as a
-- recap does. Functions only: no table is locked, no row is read or changed. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest
-- does not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons:
-- slots since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    unreadable: users who could not be read any more since then, calls: [{route, message, count}],
--    routes: {route: last call}, outages: see integration_outages,
--    permanent_tokens: active Shopify integrations whose token cannot be renewed,
--    doubted_lists: integrations whose list lacks what it has shown before,
--    undelivered: mails that were accepted, did not arrive and are not sent again: [{lane, feedback, count}]}
create or replace function public.jobs_troubles(
    p_first_since timestamptz, p_latest_since timestamptz, p_stuck_before timestamptz, p_slots_since timestamptz,
    p_calls_since timestamptz, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql stable security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    since constant timestamptz := greatest(p_first_since, least(p_latest_since, coalesce(
        (select max(r.as_of) from jobs.job_runs r where r.task = 'operator_digest'), '-infinity')));
begin
    return jsonb_build_object(
        'since', since,
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at > p_slots_since),
        'first_claim', (select min(s.claimed_at) from jobs.job_slots s),
        'failed', (select coalesce(jsonb_agg(f order by f.count desc, f.lane, f.code), '[]') from (
            select i.lane, left(i.error ->> 'code', 80) as code,
                jobs.mask_text(min(left(i.error ->> 'message', 2000))) as message,
                count(*) as count
            from jobs.job_items i where i.status = 'failed' and i.settled_at > since
            group by 1, 2 order by 4 desc limit 20) f),
        'stuck', (select coalesce(jsonb_agg(q order by q.oldest), '[]') from (
            select i.lane, count(*) as count, min(i.waiting_since) as oldest
            from jobs.job_items i where i.status = 'queued' and i.waiting_since < p_stuck_before
            group by 1) q),
        'unreadable', (select count(distinct b.user_id) from jobs.unreadable_input b (user_id, part, flaw, found_at)
            where b.found_at > since),
        'calls', (select coalesce(jsonb_agg(c order by c.count desc, c.route), '[]') from (
            select left(l.metadata ->> 'route', 200) as route,
                jobs.mask_text(min(left(l.error_message, 2000))) as message,
                count(*) as count
            from public.sync_logs l
            where l.user_id is null and l.status = 'error' and l.sync_type <> 'dry_run' and l.synced_at > since
            group by 1 order by 3 desc limit 10) c),
        'undelivered', (select coalesce(jsonb_agg(u order by u.count desc, u.lane, u.feedback), '[]') from (
            select jobs.lane_of_mail(d.kind) as lane, d.feedback, count(*) as count
            from jobs.email_deliveries d
            where d.kind in ('threshold_alert', 'integration_trouble', 'monthly_reminder', 'monthly_recap', 'definitive_month')
                and d.feedback is not null and d.feedback_at > since and d.status = 'sent'
                and d.feedback in ('returned', 'failed', 'refused', 'suppressed', 'bounced')
                and not exists (select from jobs.email_deliveries n
                    where n.dedupe_key in (d.dedupe_key || '/again', d.dedupe_key || '/moved'))
            group by 1, 2) u),
        'outages', public.integration_outages(p_outage, p_now),
        'permanent_tokens', (select count(*) from public.integration_tokens t
            where t.provider = 'shopify' and t.is_active and coalesce(btrim(t.refresh_token), '') = ''),
        'doubted_lists', jobs.doubted_lists(),
        'routes', (select coalesce(jsonb_object_agg(l.route, l.last), '{}') from (
            select left(l.metadata ->> 'route', 200) as route, max(l.synced_at) as last
            from public.sync_logs l
            where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_calls_since
            group by 1 order by 2 desc limit 50) l where l.route is not null));
end $$;

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true.
create or replace function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
language sql stable set search_path = '' as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select d.delivery_id, d.kind
    from today t
    cross join (values ('threshold_alert', 400), ('monthly_recap', 62), ('monthly_reminder', 62), ('definitive_month', 62),
        ('integration_trouble', 62)) as k (kind, days)
    join jobs.email_deliveries d on d.kind = k.kind and d.feedback is not null
        and d.feedback_at > p_now - make_interval(days => k.days)
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p
    where d.feedback in ('bounced', 'suppressed', 'refused') and d.status in ('sent', 'refused')
        and d.address is not null and d.facts <> '{}' and d.dedupe_key not like '%/moved'
        and jobs.mail_refusal(p, d.kind, p_now) is null
        and (d.feedback <> 'refused' or lower(btrim(p.address)) <> lower(btrim(d.address)))
        and case d.kind
            when 'monthly_recap' then t.day < to_date(d.facts ->> 'month', 'YYYY-MM') + interval '2 months'
            when 'threshold_alert' then
                (split_part(d.dedupe_key, '/', 3) = to_char(t.day, 'YYYY') or (extract(month from t.day) = 1
                    and split_part(d.dedupe_key, '/', 3) = to_char(t.day - interval '1 year', 'YYYY')))
                and not exists (
                    select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                    where not exists (select from jobs.threshold_alerts a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.threshold = c.threshold and a.step = c.step
                            and to_jsonb(a) ->> 'withdrawn_at' is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Plans them once more, in a run for each kind, under a key of their own. Answers how many.
create or replace function jobs.plan_moved_mails(p_route text, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    of_kind record;
    run uuid;
    planned integer := 0;
begin
    for of_kind in
        select m.kind, array_agg(m.delivery_id order by m.delivery_id) as deliveries
        from jobs.mails_that_would_arrive(p_now) m group by 1 order by 1
    loop
        run := gen_random_uuid();
        perform jobs.open_run(run, case of_kind.kind when 'threshold_alert' then 'check_thresholds'
                when 'monthly_recap' then 'monthly_sync' when 'monthly_reminder' then 'monthly_reminders'
                when 'definitive_month' then 'monthly_reminders'
                else 'sync_integrations' end,
            null, 'cron', p_route, p_now, jsonb_build_object('moved', of_kind.kind), p_now);
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select d.dedupe_key || '/moved', d.kind, d.user_id, d.recipient, run, d.facts, d.expires_at
        from jobs.email_deliveries d where d.delivery_id = any (of_kind.deliveries) order by d.delivery_id
        on conflict (dedupe_key) do nothing;
        planned := planned + jobs.queue_mails(run, null, p_now);
        -- Nobody sends the refused one again beside it.
        perform from jobs.job_items i join jobs.email_deliveries d on d.item_id = i.item_id
        where d.delivery_id = any (of_kind.deliveries) and i.status = 'failed' order by i.item_id for update of i;
        update jobs.job_items i set status = 'superseded'
        from jobs.email_deliveries d
        where d.delivery_id = any (of_kind.deliveries) and i.item_id = d.item_id and i.status = 'failed';
    end loop;
    return planned;
end $$;

commit;
