-- What an operator has done again.

-- What a call answered, for its repetition. A day is enough: a call is repeated within seconds.
create table jobs.job_answers (
    call_id uuid primary key,
    answer jsonb not null,
    answered_at timestamptz not null
);

-- Queues mails again that the mail service definitely did not take, by their items, each in its lane; their runs are open
-- again. Answers how many. Under the ledger's lock.
create function jobs.requeue_mails(p_items bigint[]) returns integer
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

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. Looks back to p_failed_since. A repeated call with the same p_run_id answers what the first one did.
--   {woken, mails, planned}
create function public.jobs_retry(
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

-- Months of the last monthly slot that failed, or whose recap waits (see recap_waits), and that nothing has made up for
-- since, of users who still have an integration; with the last failure, and how often the crons have tried.
create function jobs.owed_months(p_now timestamptz)
returns table (item_id bigint, user_id uuid, month text, error jsonb, tries bigint)
language sql stable set search_path = '' as $$
    with latest as materialized (
        select max(s.slot) as month from jobs.job_slots s
        where s.task = 'monthly_sync' and s.slot ~ '^[0-9]{4}-[0-9]{2}$'
    ), runs as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(s.run_id) as ids from jobs.job_slots s, latest l
        where s.task = 'monthly_sync' and (s.slot = l.month or s.slot like l.month || '/%')
    ), failed as materialized (
        select i.subject, max(i.item_id) as item_id, count(*) as tries
        from jobs.job_items i
        where i.run_id = any ((select r.ids from runs r)::uuid[]) and i.kind = 'sync_month'
            and (i.status = 'failed' or i.status = 'partial' and i.result ? 'recap_waits')
        group by 1
    )
    select f.item_id, i.user_id, l.month, i.error, f.tries
    from failed f join jobs.job_items i using (item_id) cross join latest l
    where not exists (select from jobs.job_items n
            where n.user_id = i.user_id and n.kind = i.kind and n.subject = i.subject and n.item_id > f.item_id
                and n.status not in ('failed', 'superseded') and n.payload ->> 'month' = l.month)
        and exists (select from public.integration_tokens t join auth.users u on u.id = t.user_id
            where t.user_id = i.user_id and t.is_active and u.deleted_at is null
                and coalesce(u.banned_until <= p_now, true));
$$;

-- Gives the months that failed on their last day their next chance, with the recap that they owe: in one run, once for
-- each p_occasion of a cron, until the p_last_day-th of the month after. What only its user can mend (p_users_codes) is
-- tried once more, since a refusal may pass, and again when an integration of the user's is good or fails for another
-- reason. What this very call has planned is not taken up again.
--   {run_id, items}
create function public.jobs_retake_months(
    p_run_id uuid, p_occasion text, p_route text, p_last_day integer, p_users_codes text[], p_recap boolean,
    p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    again bigint[];
    month text;
    opened jsonb;
    planned integer;
begin
    select array_agg(o.item_id), min(o.month) into again, month
    from jobs.owed_months(p_now) o
    where (p_as_of at time zone 'Europe/Paris')::date
            < (to_date(o.month, 'YYYY-MM') + interval '1 month')::date + p_last_day
        and (coalesce(o.error ->> 'code', '') <> all (p_users_codes) or o.tries = 1
            or exists (select from public.integration_tokens t
                left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
                where t.user_id = o.user_id and t.is_active
                    and (coalesce(s.failures, 0) = 0 or coalesce(s.failure ->> 'code', '') <> all (p_users_codes))))
        and exists (select from jobs.job_items i where i.item_id = o.item_id and i.created_at < p_now);
    -- A repeated call finds nothing any more: its run answers.
    if again is null and not exists (select from jobs.job_runs r where r.run_id = p_run_id) then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    opened := jobs.open_run(p_run_id, 'monthly_sync', month || '/' || p_occasion, 'cron', p_route, p_as_of,
        jsonb_build_object('retaken', month), p_now);
    if opened ->> 'state' = 'repeated' then
        return jsonb_build_object('run_id', p_run_id, 'items', coalesce(opened -> 'plan' -> 'items', '0'));
    elsif opened ->> 'state' <> 'planned' then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
    select p_run_id, i.lane, i.kind, i.subject, i.user_id, i.payload || jsonb_build_object('recap', p_recap), p_now,
        p_now
    from jobs.job_items i where i.item_id = any (again) order by i.item_id;
    get diagnostics planned = row_count;
    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
    return jsonb_build_object('run_id', p_run_id, 'items', planned);
end $$;
