-- The operator is told how many lists lack what they have shown before.
--
-- Locks: none; functions only.

begin;
set local lock_timeout = '5s';

-- Integrations whose list lacks, at the last read, what it has shown before, or is empty ever since (see settle_figures).
create function jobs.doubted_lists() returns bigint language sql stable set search_path = '' as $$
    select count(*) from jobs.integration_state s
    join public.integration_tokens t on t.user_id = s.user_id and t.provider = s.provider
    where s.doubted <> '{}' and t.is_active and not s.left_out
        and upper(s.doubted) >= coalesce(s.last_success_to, '-infinity');
$$;

revoke all on function jobs.doubted_lists from public, anon, authenticated, service_role;

-- The last p_runs runs for everybody of each task, with what happened to their items by lane and up to ten of those
-- in trouble; and how many runs for single users there were within a day.
--   {runs: [{run_id, task, slot, trigger, as_of, status, started_at, duration_ms, parameters, skipped, records,
--    lanes: [{lane, planned, queued, done, partial, failed, skipped, superseded}],
--    troubles, troubled: [{user_id, address, lane, status, code, message}]}],
--    single: [{task, runs, erred}]}
create or replace function jobs.status_runs(p_tasks text[], p_runs integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with latest as materialized (
        select r.* from unnest(p_tasks) t (task)
        cross join lateral (
            select * from jobs.job_runs j where j.task = t.task and not (j.parameters ? 'user_id')
            order by j.started_at desc limit p_runs) r
    ), ids as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(l.run_id) as ids from latest l
    ), lanes as (
        select i.run_id, i.lane, count(*) as planned,
            count(*) filter (where i.status = 'queued') as queued,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'skipped') as skipped,
            count(*) filter (where i.status = 'superseded') as superseded,
            coalesce(sum((i.result ->> 'records')::bigint), 0) as records
        from jobs.job_items i where i.run_id = any ((select ids from ids)::uuid[]) group by 1, 2
    ), troubled as (
        select i.*, row_number() over (partition by i.run_id order by i.item_id) as n,
            count(*) over (partition by i.run_id) as troubles
        from jobs.job_items i
        where i.run_id = any ((select ids from ids)::uuid[])
            and (i.status in ('failed', 'partial') or (i.status = 'queued' and i.error is not null))
    )
    select jsonb_build_object(
        'runs', (select coalesce(jsonb_agg(jsonb_build_object(
            'run_id', r.run_id, 'task', r.task, 'slot', r.slot, 'trigger', r.trigger, 'as_of', r.as_of,
            'status', r.status, 'started_at', r.started_at,
            'duration_ms', case when r.finished_at is not null then (extract(epoch from r.took) * 1000)::bigint end,
            'parameters', r.parameters, 'skipped', coalesce(r.plan -> 'skipped', '{}'),
            'records', (select coalesce(sum(l.records), 0) from lanes l where l.run_id = r.run_id),
            'lanes', (select coalesce(jsonb_agg(to_jsonb(l) - 'run_id' - 'records' order by l.lane), '[]')
                from lanes l where l.run_id = r.run_id),
            'troubles', (select coalesce(max(t.troubles), 0) from troubled t where t.run_id = r.run_id),
            'troubled', (select coalesce(jsonb_agg(jsonb_build_object(
                    'user_id', t.user_id, 'address', jobs.mask_address(u.email), 'lane', t.lane,
                    'status', t.status, 'message', jobs.mask_text(t.error ->> 'message'),
                    -- What was counted in part has no error, but a reason.
                    'code', coalesce(left(t.error ->> 'code', 80), (select min(k) from jsonb_object_keys(t.result) k
                        where k in ('uncounted_currencies', 'left_alone', 'unknown_movements', 'unreadable_movements',
                            'unlisted_movements'))))
                    order by t.item_id), '[]')
                from troubled t left join auth.users u on u.id = t.user_id
                where t.run_id = r.run_id and t.n <= 10))
            order by r.started_at desc), '[]') from latest r),
        'single', (select coalesce(jsonb_agg(s), '[]') from (
            select j.task, count(*) as runs, count(*) filter (where j.status in ('partial', 'error')) as erred
            from jobs.job_runs j
            where j.as_of >= p_now - interval '1 day' and j.parameters ? 'user_id'
            group by 1 order by 1) s));
$$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
create or replace function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.id, t.user_id, t.provider, u.email::text as address, coalesce(s.failures, 0) as failures,
            s.failed_at, s.failure, s.last_success_at, t.connected_at,
            case
                when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
                when s.failures > 0 then 'failing'
                when s.last_success_at is null then 'new'
                when s.last_success_at < p_late_before then 'late'
                else 'good' end as state
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    )
    select jsonb_build_object(
        'states', (select coalesce(jsonb_agg(n order by n.provider, n.state), '[]') from (
            select k.provider, k.state, count(*) as count from known k group by 1, 2) n),
        'broken_total', (select count(*) from known k where k.state = 'failing'),
        'doubted_lists', jobs.doubted_lists(),
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', left(b.failure ->> 'code', 80), 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        -- They die on 1 January 2027, but for those of custom applications.
        'shopify_permanent', (select count(*) from known k join public.integration_tokens t on t.id = k.id
            where k.provider = 'shopify' and k.state <> 'inactive' and coalesce(btrim(t.refresh_token), '') = ''),
        'shopify_renewed', (select max(s.token_expires_at) > p_now
            from jobs.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'at', r.at, 'code', r.code, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, p.problem ->> 'code' as code,
                jobs.mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata,
                '$.answer.**.problems[*] ? (@.code == "own_credentials" || @.code == "own_permission"
                    || @.code == "app_not_approved")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

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
            where d.kind in ('threshold_alert', 'integration_trouble', 'monthly_reminder', 'monthly_recap')
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

commit;
