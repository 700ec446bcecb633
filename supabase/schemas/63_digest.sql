-- What went wrong since the operator was told last, and the one mail a day that tells it.

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest
-- does not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons:
-- slots since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], first_claim: of all slots, failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    unreadable: users who could not be read any more since then, calls: [{route, message, count}],
--    routes: {route: last call}, first_calls: {route: first call since p_calls_since}, outages: see integration_outages,
--    permanent_tokens: active Shopify integrations whose token cannot be renewed,
--    doubted_lists: integrations whose list lacks what it has shown before,
--    undelivered: mails that were accepted, did not arrive and are not sent again: [{lane, feedback, count}]}
create function public.jobs_troubles(
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
            where t.provider = 'shopify' and t.is_active and jobs.is_blank(t.refresh_token)),
        'doubted_lists', jobs.doubted_lists(),
        'routes', (select coalesce(jsonb_object_agg(c.route, c.last), '{}') from jobs.cron_calls(p_calls_since) c),
        'first_calls', (select coalesce(jsonb_object_agg(c.route, c.first), '{}') from jobs.cron_calls(p_calls_since) c));
end $$;

-- Plans the digest of a Paris day, once: its day is its slot. Not sent from p_expires_at on.
-- p_facts: {to, day, points, status_url}.
--   {state: planned | joined | repeated, run_id}
create function public.jobs_plan_digest(
    p_run_id uuid, p_route text, p_facts jsonb, p_expires_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    opened jsonb := jobs.open_run(
        p_run_id, 'operator_digest', p_facts ->> 'day', 'cron', p_route, p_now, '{}', p_now);
begin
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    insert into jobs.email_deliveries (dedupe_key, kind, run_id, facts, expires_at)
    values ('operator_digest/' || (p_facts ->> 'day'), 'operator_digest', p_run_id, p_facts, p_expires_at)
    on conflict (dedupe_key) do nothing;
    perform jobs.queue_mails(p_run_id, null, p_now);
    return opened;
end $$;
