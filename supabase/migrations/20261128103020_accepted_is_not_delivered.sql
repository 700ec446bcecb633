-- Accepted is not delivered: what the mail service reports of a mail afterwards is noted, and what did not arrive comes back
-- where that helps; work whose message was lost gets one again.
--
-- Locks: email_deliveries, email_events and email_suppressions while columns are added (catalogue only) and while three
-- indexes are built: about a second per million mails. Needs 20261128103010.

begin;
set local lock_timeout = '5s';

alter table jobs.email_deliveries add column feedback_at timestamptz;
create index email_deliveries_came_back on jobs.email_deliveries (kind, feedback_at) where feedback is not null;
alter table jobs.email_suppressions drop constraint email_suppressions_reason_check;
alter table jobs.email_suppressions
    add constraint email_suppressions_reason_check check (reason in ('bounced', 'complained', 'suppressed'));
alter table jobs.email_events add column provider_id text;
alter table jobs.email_events add column outcome text;
create index email_events_provider on jobs.email_events (provider_id) where outcome is not null;

-- What the mail service reports of a mail that it had accepted, the worse the higher; 0: nothing.
--   delayed: it is still trying; delivered; returned: the mailbox did not take it this time; failed: it did not leave, for a
--   reason of ours or of the service; refused: it did not leave, because of the address; suppressed: the service keeps mails
--   from this address; bounced: the address refuses mails; complained: the reader called it spam
create function jobs.feedback_rank(p_outcome text) returns integer
language sql immutable set search_path = '' as $$
    select coalesce(array_position(array['delayed', 'delivered', 'returned', 'failed', 'refused', 'suppressed', 'bounced',
        'complained'], p_outcome), 0);
$$;

-- Notes on these mails what the service has reported of them, the worst that there is, whether it came before or after our
-- note of their ids. What did not arrive for a reason that is ours or passes is planned once more, under a key of its
-- own; not an offer, for which nobody waits.
create function jobs.apply_feedback(p_provider_ids text[], p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    run record;
begin
    with worst as (
        select distinct on (e.provider_id) e.provider_id, e.outcome
        from jobs.email_events e where e.provider_id = any (p_provider_ids) and e.outcome is not null
        order by e.provider_id, jobs.feedback_rank(e.outcome) desc
    )
    update jobs.email_deliveries d
    set feedback = nullif(w.outcome, 'delivered'), feedback_at = case when w.outcome <> 'delivered' then p_now end
    from worst w
    where d.provider_id = w.provider_id and jobs.feedback_rank(w.outcome) > jobs.feedback_rank(d.feedback)
        -- A mailbox that is full for an offer is nothing to note.
        and (w.outcome <> 'returned' or d.kind <> 'marketing_day3');
    for run in
        with again as (
            insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
            select d.dedupe_key || '/again', d.kind, d.user_id, d.recipient, d.run_id, d.facts, d.expires_at
            from jobs.email_deliveries d join jobs.job_runs r on r.run_id = d.run_id
            where d.provider_id = any (p_provider_ids) and d.feedback in ('failed', 'returned')
                and d.kind <> 'marketing_day3' and d.facts <> '{}' and d.dedupe_key not like '%/again'
                and (d.user_id is not null or d.recipient is null)
                and (d.expires_at is null or d.expires_at > p_now)
            order by d.delivery_id
            on conflict (dedupe_key) do nothing
            returning run_id
        )
        select distinct a.run_id from again a order by 1
    loop
        perform jobs.queue_mails(run.run_id, null, p_now);
    end loop;
end $$;

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that hold_mails let pass.
create or replace function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    update jobs.email_deliveries d
    set status = o.status, reason = left(o.reason, 500), provider_id = o.provider_id, settled_at = p_now,
        feedback = case o.status when 'refused' then 'refused' end,
        feedback_at = case o.status when 'refused' then p_now end
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;
    perform jobs.apply_feedback(array(
        select o.provider_id from jsonb_to_recordset(p_outcomes) as o (provider_id text) where o.provider_id is not null),
        p_now);

    insert into public.marketing_emails (user_id, email_type, sent_at)
    select d.user_id, 'upgrade_day3', p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'marketing_day3' and d.user_id is not null and o.status in ('sent', 'unknown')
    order by d.user_id
    on conflict (user_id, email_type) do nothing;

    update jobs.job_items i
    set status = case o.status when 'sent' then 'done' when 'skipped' then 'skipped' when 'expired' then 'skipped'
            else 'failed' end,
        result = jsonb_strip_nulls(jsonb_build_object(
            'user_id', i.user_id, 'mail', o.status, 'reason', left(o.reason, 500))),
        error = case when o.status in ('refused', 'failed', 'unknown')
            then jobs.cut_failure(jsonb_build_object('code', coalesce(o.code, o.status), 'message', o.reason)) end,
        leased_until = null, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, code text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    for batch in
        select i.lane, array_agg(i.msg_id) as messages
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        join jobs.job_items i on i.item_id = d.item_id
        where i.lease_id = p_claim group by i.lane
    loop
        perform pgmq.delete('jobs_' || batch.lane, batch.messages);
    end loop;

    update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
    where b.state = 'sealed'
        and b.batch_id in (select d.batch_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
            join jobs.email_deliveries d on d.delivery_id = o.delivery_id)
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
end $$;

drop function public.mail_feedback;

-- What the mail service reports, once for each event id: of a mail that it had accepted, or of an address. p_report: see
-- feedback_rank; where it is bounced, complained or suppressed, no mail goes to p_address any more; lifted: mails may go to
-- it again. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_report text, p_address text, p_now timestamptz
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.email_events (event_id, kind, received_at, provider_id, outcome)
    values (p_event_id, p_kind, p_now, p_provider_id, case when jobs.feedback_rank(p_report) > 0 then p_report end)
    on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_report = 'lifted' then
        delete from jobs.email_suppressions where address_hash = jobs.address_hash(p_address);
    elsif p_report in ('bounced', 'complained', 'suppressed') and p_address is not null then
        insert into jobs.email_suppressions (address_hash, reason)
        values (jobs.address_hash(p_address), p_report) on conflict (address_hash) do nothing;
    end if;
    if p_provider_id is not null then
        perform jobs.apply_feedback(array[p_provider_id], p_now);
    end if;
    return true;
end $$;

-- What was lost comes back: work without its message, mails that came back and may now arrive.

-- Gives each queued item of a lane a message where it has none: its queue was purged, or restored without it. What a living
-- worker holds is left to it. Call alone: see jobs_reconcile.
create function jobs.restore_messages(p_lane text) returns integer
language plpgsql set search_path = '' as $$
declare
    restored integer;
begin
    execute format('insert into pgmq.%1$I (vt, message)
        select clock_timestamp(), jsonb_build_object(
            ''version'', i.version, ''run_id'', i.run_id, ''item_id'', i.item_id, ''kind'', i.kind)
        from jobs.job_items i
        where i.status = ''queued'' and i.lane = $1 and coalesce(i.leased_until, ''-infinity'') < clock_timestamp()
            and not exists (select from pgmq.%1$I q where (q.message ->> ''item_id'')::bigint = i.item_id)
        order by i.waiting_since, i.item_id', 'q_jobs_' || p_lane)
    using p_lane;
    get diagnostics restored = row_count;
    return restored;
end $$;

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true.
create function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
language sql stable set search_path = '' as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select d.delivery_id, d.kind
    from today t
    cross join (values ('threshold_alert', 400), ('monthly_recap', 62), ('monthly_reminder', 62), ('integration_trouble', 62))
        as k (kind, days)
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
                            and a.threshold = c.threshold and a.step = c.step))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Plans them once more, in a run for each kind, under a key of their own. Answers how many.
create function jobs.plan_moved_mails(p_route text, p_now timestamptz) returns integer
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

-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more.
--   {messages, mails}
create function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
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
    return jsonb_build_object('messages', messages, 'mails', jobs.plan_moved_mails(p_route, p_now));
end $$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create or replace function jobs.status_mails(p_days integer, p_now timestamptz) returns jsonb
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

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. Looks back to p_failed_since. A repeated call with the same p_run_id answers what the first one did.
--   {woken, mails, planned}
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
        update jobs.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null, feedback = null, feedback_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from jobs.job_items i where i.item_id = any (again) order by i.item_id for update;
        update jobs.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from jobs.job_items i where i.item_id = any (again)));
            update jobs.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (again));
        end if;
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

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest
-- does not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons:
-- slots since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    unreadable: users who could not be read any more since then, calls: [{route, message, count}],
--    routes: {route: last call}, outages: see integration_outages,
--    permanent_tokens: active Shopify integrations whose token cannot be renewed,
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
        'routes', (select coalesce(jsonb_object_agg(l.route, l.last), '{}') from (
            select left(l.metadata ->> 'route', 200) as route, max(l.synced_at) as last
            from public.sync_logs l
            where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_calls_since
            group by 1 order by 2 desc limit 50) l where l.route is not null));
end $$;

revoke all on function jobs.feedback_rank, jobs.apply_feedback, jobs.restore_messages, jobs.mails_that_would_arrive,
    jobs.plan_moved_mails
from public, anon, authenticated, service_role;
revoke all on function public.mail_feedback, public.jobs_reconcile from public, anon, authenticated, service_role;
grant execute on function public.mail_feedback, public.jobs_reconcile to service_role;

commit;
