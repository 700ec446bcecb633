-- The status page: everything it shows in one call, tries to sign in, and what an operator may have done again.
--
-- No address leaves the database whole: jobs_mask_* cut them here (a…@d…), also out of messages.
--
-- Locks: four indexes on tables of ours, which are read once while writes to them wait (about a second per million
-- rows). Of the application's tables none is touched. Forward only.

begin;
set local lock_timeout = '5s';

-- Tries to sign in with the secret that did not succeed (or not yet).
create table public.job_sign_ins (
    try_id uuid primary key,
    tried_at timestamptz not null default clock_timestamp()
);
alter table public.job_sign_ins enable row level security;
revoke all on public.job_sign_ins from public, anon, authenticated, service_role;

-- The last runs for everybody: the application asks for single users all day long.
create index job_runs_whole on public.job_runs (task, started_at desc) where not (parameters ? 'user_id');
create index job_runs_single on public.job_runs (started_at) where parameters ? 'user_id';
create index job_items_failed on public.job_items (settled_at) where status = 'failed';
create index email_deliveries_settled on public.email_deliveries (settled_at) include (kind, status);

-- Signing in -------------------------------------------------------------------------------------------------

-- Counts a try before the secret is looked at, so that no number of them at once passes the limit: p_most in
-- p_seconds, for everybody together. A repeated call counts once.
--   {allowed, retry_after: seconds}
create function public.jobs_sign_in(p_try uuid, p_most integer, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '5s' as $$
declare
    span constant interval := make_interval(secs => p_seconds);
    tries integer;
    oldest timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.sign_ins', 0));
    delete from public.job_sign_ins where tried_at < clock_timestamp() - span;
    if exists (select from public.job_sign_ins where try_id = p_try) then
        return jsonb_build_object('allowed', true);
    end if;
    select count(*), min(tried_at) into tries, oldest from public.job_sign_ins;
    if tries >= p_most then
        return jsonb_build_object('allowed', false,
            'retry_after', greatest(1, ceil(extract(epoch from oldest + span - clock_timestamp())))::integer);
    end if;
    insert into public.job_sign_ins (try_id) values (p_try);
    return jsonb_build_object('allowed', true);
end $$;

-- The secret was right: this try does not count.
create function public.jobs_signed_in(p_try uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    delete from public.job_sign_ins where try_id = p_try;
$$;

-- What the page shows ----------------------------------------------------------------------------------------

-- a…@d…
create function public.jobs_mask_address(p_address text) returns text
language sql immutable set search_path = '' as $$
    select left(btrim(p_address), 1) || '…@' || left(split_part(btrim(p_address), '@', -1), 1) || '…';
$$;

-- A message, with each address in it cut.
create function public.jobs_mask_text(p_text text) returns text
language sql immutable set search_path = '' as $$
    select left(regexp_replace(p_text,
        '([^\s@<>()",;:]?)[^\s@<>()",;:]*@([^\s@<>()",;:]?)[^\s@<>()",;:]*', '\1…@\2…', 'g'), 500);
$$;

-- Items that failed since p_since and that nothing has made up for: the last word on their subject. Of mails also
-- what became of them (failed, refused, unknown).
create function public.jobs_open_failures(p_since timestamptz)
returns table (item_id bigint, run_id uuid, lane text, kind text, subject uuid, user_id uuid, payload jsonb, mail text)
language sql stable set search_path = '' as $$
    with failed as materialized (
        select distinct on (i.kind, i.subject) i.*
        from public.job_items i where i.status = 'failed' and i.settled_at >= p_since
        order by i.kind, i.subject, i.item_id desc
    )
    select f.item_id, f.run_id, f.lane, f.kind, f.subject, f.user_id, f.payload, f.result ->> 'mail'
    from failed f
    -- For each of them its user's items (limit: a loop, for a join would read all items there are).
    left join lateral (
        select true as made_up from public.job_items n
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
create function public.jobs_status_runs(p_tasks text[], p_runs integer) returns jsonb
language sql stable set search_path = '' as $$
    with latest as materialized (
        select r.* from unnest(p_tasks) t (task)
        cross join lateral (
            select * from public.job_runs j where j.task = t.task and not (j.parameters ? 'user_id')
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
        from public.job_items i where i.run_id = any ((select ids from ids)::uuid[]) group by 1, 2
    ), troubled as (
        select i.*, row_number() over (partition by i.run_id order by i.item_id) as n,
            count(*) over (partition by i.run_id) as troubles
        from public.job_items i
        where i.run_id = any ((select ids from ids)::uuid[])
            and (i.status in ('failed', 'partial') or (i.status = 'queued' and i.error is not null))
    )
    select jsonb_build_object(
        'runs', (select coalesce(jsonb_agg(jsonb_build_object(
            'run_id', r.run_id, 'task', r.task, 'slot', r.slot, 'trigger', r.trigger, 'as_of', r.as_of,
            'status', r.status, 'started_at', r.started_at,
            'duration_ms', (extract(epoch from r.finished_at - r.started_at) * 1000)::bigint,
            'parameters', r.parameters, 'skipped', coalesce(r.plan -> 'skipped', '{}'),
            'records', (select coalesce(sum(l.records), 0) from lanes l where l.run_id = r.run_id),
            'lanes', (select coalesce(jsonb_agg(to_jsonb(l) - 'run_id' - 'records' order by l.lane), '[]')
                from lanes l where l.run_id = r.run_id),
            'troubles', (select coalesce(max(t.troubles), 0) from troubled t where t.run_id = r.run_id),
            'troubled', (select coalesce(jsonb_agg(jsonb_build_object(
                    'user_id', t.user_id, 'address', public.jobs_mask_address(u.email), 'lane', t.lane,
                    'status', t.status, 'message', public.jobs_mask_text(t.error ->> 'message'),
                    -- What was counted in part has no error, but a reason.
                    'code', coalesce(t.error ->> 'code', (select min(k) from jsonb_object_keys(t.result) k
                        where k in ('uncounted_currencies', 'left_alone', 'unknown_movements'))))
                    order by t.item_id), '[]')
                from troubled t left join auth.users u on u.id = t.user_id
                where t.run_id = r.run_id and t.n <= 10))
            order by r.started_at desc), '[]') from latest r),
        'single', (select coalesce(jsonb_agg(s), '[]') from (
            select j.task, count(*) as runs, count(*) filter (where j.status in ('partial', 'error')) as erred
            from public.job_runs j
            where j.started_at >= clock_timestamp() - interval '1 day' and j.parameters ? 'user_id'
            group by 1 order by 1) s));
$$;

-- Each lane that has something: waiting, of these in flight and put off after a failure; failed and not made up for
-- within 30 days; of mails also how many ended without anybody knowing.
create function public.jobs_status_queue() returns jsonb
language sql stable set search_path = '' as $$
    with waiting as (
        select i.lane, count(*) as waiting, count(*) filter (where i.leased_until > clock_timestamp()) as in_flight,
            count(*) filter (where i.error is not null) as put_off, min(i.created_at) as oldest
        from public.job_items i where i.status = 'queued' group by 1
    ), failed as (
        select f.lane, count(*) filter (where f.mail is distinct from 'unknown') as failed,
            count(*) filter (where f.mail = 'unknown') as unknown
        from public.jobs_open_failures(clock_timestamp() - interval '30 days') f group by 1
    )
    select coalesce(jsonb_agg(jsonb_build_object('lane', lane,
        'waiting', coalesce(w.waiting, 0), 'in_flight', coalesce(w.in_flight, 0), 'put_off', coalesce(w.put_off, 0),
        'oldest', w.oldest, 'failed', coalesce(f.failed, 0), 'unknown', coalesce(f.unknown, 0))), '[]')
    from waiting w full join failed f using (lane);
$$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create function public.jobs_status_mails(p_days integer) returns jsonb
language sql stable set search_path = '' as $$
    with since as (
        select ((clock_timestamp() at time zone 'Europe/Paris')::date - p_days + 1)::timestamp at time zone 'Europe/Paris' as at
    ), settled as materialized (
        select d.kind, (d.settled_at at time zone 'Europe/Paris')::date as day, d.status, d.reason, d.feedback
        from public.email_deliveries d where d.settled_at >= (select at from since)
    )
    select jsonb_build_object(
        'days', (select coalesce(jsonb_agg(m order by m.day, m.kind), '[]') from (
            select s.kind, s.day, count(*) filter (where s.status = 'sent') as sent,
                count(*) filter (where s.status in ('failed', 'refused')) as failed,
                count(*) filter (where s.status = 'unknown') as unknown,
                count(*) filter (where s.status in ('skipped', 'expired') and s.reason is distinct from 'suppressed') as skipped,
                count(*) filter (where s.status = 'skipped' and s.reason = 'suppressed') as suppressed,
                count(*) filter (where s.feedback is not null) as returned
            from settled s group by 1, 2) m),
        'reasons', (select coalesce(jsonb_agg(r), '[]') from (
            select s.kind, s.status, public.jobs_mask_text(coalesce(s.reason, s.status)) as reason, count(*) as count
            from settled s where s.status <> 'sent' group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 12) r),
        'suppressed_addresses', (select count(*) from public.email_suppressions));
$$;

-- Integrations by state, and the first p_limit that are broken.
create function public.jobs_status_integrations(p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.id, t.user_id, t.provider, u.email::text as address, coalesce(s.failures, 0) as failures,
            s.failed_at, s.failure, s.last_success_at, t.connected_at,
            case
                when t.is_active is not true or u.deleted_at is not null or u.banned_until > clock_timestamp() then 'inactive'
                when s.failures > 0 then 'failing'
                when s.last_success_at is null then 'new'
                -- Six syncs without a success.
                when s.last_success_at < clock_timestamp() - interval '36 hours' then 'late'
                else 'good' end as state
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join public.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    )
    select jsonb_build_object(
        'states', (select coalesce(jsonb_agg(n order by n.provider, n.state), '[]') from (
            select k.provider, k.state, count(*) as count from known k group by 1, 2) n),
        'broken_total', (select count(*) from known k where k.state = 'failing'),
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', public.jobs_mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', b.failure ->> 'code', 'message', public.jobs_mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        'shopify_renewed', (select max(s.token_expires_at) > clock_timestamp()
            from public.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (select coalesce(jsonb_agg(jsonb_build_object('at', r.at, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, public.jobs_mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata, '$.answer.**.problems[*] ? (@.code == "own_credentials")') as p (problem)
            where l.synced_at >= clock_timestamp() - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2) r));
$$;

-- Everything the page shows; changes nothing.
-- p_functions: what this version calls (those that are missing are answered); slots claimed since p_since.
create function public.jobs_status(
    p_functions text[], p_tasks text[], p_runs integer, p_days integer, p_broken integer, p_since timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$    -- compiling takes longer than asking
begin
    return jsonb_build_object(
        'missing', (select coalesce(jsonb_agg(f order by f), '[]') from unnest(p_functions) f
            where not exists (select from pg_catalog.pg_proc p
                where p.pronamespace = 'public'::regnamespace and p.proname = f)),
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from public.job_slots s where s.claimed_at >= p_since),
        'first_claims', (select coalesce(jsonb_object_agg(s.task, s.at), '{}') from (
            select task, min(claimed_at) as at from public.job_slots group by 1) s),
        'runs', public.jobs_status_runs(p_tasks, p_runs),
        'queue', public.jobs_status_queue(),
        'mails', public.jobs_status_mails(p_days),
        'integrations', public.jobs_status_integrations(p_broken));
end $$;

-- Again ------------------------------------------------------------------------------------------------------

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. The second call of the same p_run_id plans nothing twice.
--   {woken, mails, planned}
create function public.jobs_retry(p_run_id uuid, p_lane text, p_route text, p_as_of timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    since constant timestamptz := clock_timestamp() - interval '30 days';
    last_month constant text := to_char((p_as_of at time zone 'Europe/Paris') - interval '1 month', 'YYYY-MM');
    woken integer;
    mails integer := 0;
    planned integer := 0;
    again bigint[];
begin
    if p_lane in ('alerts', 'reminders', 'recaps', 'marketing') then
        perform public.mail_ledger_lock();
        again := array(
            select f.item_id from public.jobs_open_failures(since) f
            join public.email_deliveries d on d.item_id = f.item_id
            where f.lane = p_lane and d.status in ('failed', 'refused') and d.provider_id is null and d.user_id is not null
                and (d.expires_at is null or d.expires_at > clock_timestamp()));
        update public.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from public.job_items i where i.item_id = any (again) order by i.item_id for update;
        update public.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from public.job_items i where i.item_id = any (again)));
            update public.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from public.job_items i where i.item_id = any (again));
        end if;
    elsif p_lane in ('stripe', 'shopify', 'months') then
        again := array(select f.item_id from public.jobs_open_failures(since) f where f.lane = p_lane);
        if cardinality(again) > 0 and public.jobs_open_run(p_run_id,
                case p_lane when 'months' then 'monthly_sync' else 'sync_integrations' end, null, 'manual', p_route,
                p_as_of, jsonb_build_object('retry', p_lane)) ->> 'state' = 'planned' then
            insert into public.job_items (run_id, lane, kind, subject, user_id, payload)
            select distinct on (i.kind, i.subject) p_run_id, i.lane, i.kind, i.subject, i.user_id,
                -- An old month's recap is no news any more.
                case when i.payload ->> 'month' < last_month then i.payload || '{"recap": false}' else i.payload end
            from public.job_items i where i.item_id = any (again)
            order by i.kind, i.subject, i.item_id desc;
            get diagnostics planned = row_count;
            perform public.jobs_send_items(p_run_id);
            update public.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
        end if;
    else
        raise exception 'unknown lane %', p_lane using errcode = '22023';
    end if;

    -- Put off by a failure or a quota. What somebody holds stays theirs; what was never claimed is visible already.
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, 0)
    from public.job_items i
    where i.status = 'queued' and i.lane = p_lane and i.msg_id is not null
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
    order by i.msg_id;
    get diagnostics woken = row_count;
    return jsonb_build_object('woken', woken, 'mails', mails, 'planned', planned);
end $$;

revoke all on function
    public.jobs_sign_in(uuid, integer, integer),
    public.jobs_signed_in(uuid),
    public.jobs_mask_address(text),
    public.jobs_mask_text(text),
    public.jobs_open_failures(timestamptz),
    public.jobs_status_runs(text[], integer),
    public.jobs_status_queue(),
    public.jobs_status_mails(integer),
    public.jobs_status_integrations(integer),
    public.jobs_status(text[], text[], integer, integer, integer, timestamptz),
    public.jobs_retry(uuid, text, text, timestamptz)
from public, anon, authenticated, service_role;
grant execute on function
    public.jobs_sign_in(uuid, integer, integer),
    public.jobs_signed_in(uuid),
    public.jobs_status(text[], text[], integer, integer, integer, timestamptz),
    public.jobs_retry(uuid, text, text, timestamptz)
to service_role;

commit;
