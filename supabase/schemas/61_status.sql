-- The status page: everything it shows in one call.
--
-- No address leaves the database whole: mask_address and mask_text cut them here (a…@d…), also out of messages.

-- An address of which only the first letters are left: a…@d…
create function jobs.mask_address(p_address text) returns text
language sql immutable set search_path = '' as $$
    select left(btrim(p_address), 1) || '…@' || left(split_part(btrim(p_address), '@', -1), 1) || '…';
$$;

-- A message in which every address is cut as mask_address does. Of a long one, which may have been cut before, only the
-- beginning is looked at, without its last word: a part of an address is not known as one.
create function jobs.mask_text(p_text text) returns text
language sql immutable set search_path = '' as $$
    select left(regexp_replace(case when length(p_text) < 500 then p_text
            else regexp_replace(left(p_text, 2000), '[^\s@<>()",;:]*$', '') end,
        '([^\s@<>()",;:]?)[^\s@<>()",;:]*@([^\s@<>()",;:]?)[^\s@<>()",;:]*', '\1…@\2…', 'g'), 500);
$$;

-- Items that failed since p_since and that nothing has made up for: the last word on their subject. Of mails also
-- what became of them (failed, refused, unknown).
create function jobs.open_failures(p_since timestamptz)
returns table (item_id bigint, run_id uuid, lane text, kind text, subject uuid, user_id uuid, payload jsonb, mail text)
language sql stable set search_path = '' as $$
    with failed as materialized (
        select distinct on (i.kind, i.subject) i.*
        from jobs.job_items i where i.status = 'failed' and i.settled_at >= p_since
        order by i.kind, i.subject, i.item_id desc
    )
    select f.item_id, f.run_id, f.lane, f.kind, f.subject, f.user_id, f.payload, f.result ->> 'mail'
    from failed f
    -- For each of them its user's items (limit: a loop, for a join would read all items there are).
    left join lateral (
        select true as made_up from jobs.job_items n
        where n.user_id = f.user_id and n.kind = f.kind and n.subject = f.subject and n.item_id > f.item_id
            and n.status <> 'failed' and (n.kind <> 'sync_month' or n.payload -> 'month' = f.payload -> 'month')
        limit 1) later on true
    where later.made_up is null
        -- Disconnected since: nothing to make up for.
        and (f.kind <> 'sync_integration' or exists (select from public.integration_tokens t
            where t.id = f.subject and t.is_active));
$$;

-- The last p_runs runs for everybody of each task, with what happened to their items by lane and up to ten of those
-- in trouble; and how many runs for single users there were within a day.
--   {runs: [{run_id, task, slot, trigger, as_of, status, started_at, duration_ms, parameters, skipped, records,
--    lanes: [{lane, planned, queued, done, partial, failed, skipped, superseded}],
--    troubles, troubled: [{user_id, address, lane, status, code, message}]}],
--    single: [{task, runs, erred}]}
create function jobs.status_runs(p_tasks text[], p_runs integer, p_now timestamptz) returns jsonb
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

-- Each lane that has something: waiting, of these in flight and put off after a failure; failed since p_failed_since
-- and not made up for; of mails also how many ended without anybody knowing.
create function jobs.status_queue(p_failed_since timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with waiting as (
        select i.lane, count(*) as waiting, count(*) filter (where i.leased_until > clock_timestamp()) as in_flight,
            count(*) filter (where i.error is not null) as put_off, min(i.waiting_since) as oldest
        from jobs.job_items i where i.status = 'queued' group by 1
    ), failed as (
        select f.lane, count(*) filter (where f.mail is distinct from 'unknown') as failed,
            count(*) filter (where f.mail = 'unknown') as unknown
        from jobs.open_failures(p_failed_since) f group by 1
    )
    select coalesce(jsonb_agg(jsonb_build_object('lane', lane,
        'waiting', coalesce(w.waiting, 0), 'in_flight', coalesce(w.in_flight, 0), 'put_off', coalesce(w.put_off, 0),
        'oldest', w.oldest, 'failed', coalesce(f.failed, 0), 'unknown', coalesce(f.unknown, 0))), '[]')
    from waiting w full join failed f using (lane);
$$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create function jobs.status_mails(p_days integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with since as (
        select ((p_now at time zone 'Europe/Paris')::date - p_days + 1)::timestamp at time zone 'Europe/Paris' as at
    ), settled as materialized (
        select d.kind, (d.settled_at at time zone 'Europe/Paris')::date as day, d.status, d.reason, d.feedback
        from jobs.email_deliveries d where d.settled_at >= (select at from since)
    )
    select jsonb_build_object(
        'days', (select coalesce(jsonb_agg(m order by m.day, m.kind), '[]') from (
            select s.kind, s.day, count(*) filter (where s.status = 'sent') as sent,
                count(*) filter (where s.status in ('failed', 'refused')) as failed,
                count(*) filter (where s.status = 'unknown') as unknown,
                count(*) filter (where s.status in ('skipped', 'expired')
                    and s.reason is distinct from 'suppressed') as skipped,
                count(*) filter (where s.status = 'skipped' and s.reason = 'suppressed') as suppressed,
                count(*) filter (where s.status = 'sent' and jobs.feedback_rank(s.feedback) > 2) as returned
            from settled s group by 1, 2) m),
        'reasons', (select coalesce(jsonb_agg(r), '[]') from (
            select s.kind, s.status, jobs.mask_text(coalesce(s.reason, s.status)) as reason, count(*) as count
            from settled s where s.status <> 'sent' group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 12) r),
        'suppressed_addresses', (select count(*) from jobs.email_suppressions));
$$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
create function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
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
            where k.provider = 'shopify' and k.state <> 'inactive' and jobs.is_blank(t.refresh_token)),
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
                    || @.code == "app_not_approved" || @.code == "permanent_token")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

-- Who has written something that cannot be read, the first p_limit by name.
--   {total, users: [{user_id, address, flaw, since}]}
create function jobs.status_unreadable(p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'total', (select count(*) from jobs.unreadable_input),
        'users', (select coalesce(jsonb_agg(jsonb_build_object('user_id', b.user_id,
                'address', jobs.mask_address(u.email), 'flaw', b.flaw, 'since', b.since)
                order by b.since, b.user_id, b.part), '[]')
            from (select * from jobs.unreadable_input order by since, user_id, part limit p_limit) b
            join auth.users u on u.id = b.user_id));
$$;

-- When crons have called each route since p_since, first and last: 50 routes, the latest called first.
create function jobs.cron_calls(p_since timestamptz) returns table (route text, first timestamptz, last timestamptz)
language sql stable set search_path = '' as $$
    select c.route, c.first, c.last from (
        select left(l.metadata ->> 'route', 200) as route, min(l.synced_at) as first, max(l.synced_at) as last
        from public.sync_logs l
        where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_since
        group by 1 order by 3 desc limit 50) c
    where c.route is not null;
$$;

-- Everything that the status page shows. Changes nothing.
-- p_functions: what this version calls (those that are missing are answered); slots claimed since p_since; for
-- p_failed_since and p_late_before see status_queue and status_integrations.
--   {missing: [name], slots: [{task, slot}], first_claims: {task: instant}, first_calls: {route: instant, since p_since}, runs, queue, mails, integrations,
--    unreadable, owed_months: [{month, code, message, count}],
--    outages: see integration_outages}
create function public.jobs_status(
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
