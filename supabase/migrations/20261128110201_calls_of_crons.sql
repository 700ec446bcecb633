-- The calls of crons are found by an index of their own, and say since when a deployment's file is in use: what only that file
-- schedules is not missed before.
--
-- Locks: sync_logs, which is read once for the index while writes to it wait (about a second for three million rows). One
-- transaction, lock_timeout 5 s. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

-- sync_logs: rows of a whole run (01_application_extended.sql).
create index sync_logs_calls on public.sync_logs (synced_at) where user_id is null;

create or replace function jobs.cron_calls(p_since timestamptz) returns table (route text, first timestamptz, last timestamptz)
language sql stable set search_path = '' as $$
    select c.route, c.first, c.last from (
        select left(l.metadata ->> 'route', 200) as route, min(l.synced_at) as first, max(l.synced_at) as last
        from public.sync_logs l
        where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_since
        group by 1 order by 3 desc limit 50) c
    where c.route is not null;
$$;

create or replace function public.jobs_status(
    p_functions text[], p_tasks text[], p_runs integer, p_days integer, p_broken integer, p_since timestamptz,
    p_failed_since timestamptz, p_late_before timestamptz, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$    -- compiling takes longer than asking
begin
    return jsonb_build_object(
        'missing', (select coalesce(jsonb_agg(f order by f), '[]') from unnest(p_functions) f
            where not exists (select from pg_catalog.pg_proc p
                where p.pronamespace = 'public'::regnamespace and p.proname = f)),
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at >= p_since),
        'first_claims', (select coalesce(jsonb_object_agg(s.task, s.at), '{}') from (
            select task, min(claimed_at) as at from jobs.job_slots group by 1) s),
        'first_calls', (select coalesce(jsonb_object_agg(c.route, c.first), '{}') from jobs.cron_calls(p_since) c),
        'runs', jobs.status_runs(p_tasks, p_runs, p_now),
        'queue', jobs.status_queue(p_failed_since),
        'mails', jobs.status_mails(p_days, p_now),
        'integrations', jobs.status_integrations(p_broken, p_late_before, p_now),
        'unreadable', jobs.status_unreadable(p_broken),
        'outages', public.integration_outages(p_outage, p_now),
        'owed_months', (select coalesce(jsonb_agg(o order by o.count desc, o.code), '[]') from (
            select m.month, m.error ->> 'code' as code, jobs.mask_text(min(m.error ->> 'message')) as message,
                count(*) as count
            from jobs.owed_months(p_now) m group by 1, 2 order by 4 desc limit 10) o));
end $$;

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
        'routes', (select coalesce(jsonb_object_agg(c.route, c.last), '{}') from jobs.cron_calls(p_calls_since) c),
        'first_calls', (select coalesce(jsonb_object_agg(c.route, c.first), '{}') from jobs.cron_calls(p_calls_since) c));
end $$;

revoke all on function
    jobs.cron_calls
from public, anon, authenticated, service_role;

commit;
