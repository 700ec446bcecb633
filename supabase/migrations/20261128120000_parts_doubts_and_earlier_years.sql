-- Alerts are planned in parts; a month is told what it lacks by the rows of its own accounts, and one row explains one; what
-- began earlier is told from then; one user alone who takes too long keeps nobody waiting; what was paid before is known in one
-- place.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Gives these deliveries of a run, as far as they are planned, their items and messages. A run that was closed is open again.
-- Answers how many were queued.
create or replace function jobs.queue_deliveries(p_run_id uuid, p_deliveries bigint[], p_now timestamptz) returns integer
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
create or replace function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
begin
    return jobs.queue_deliveries(p_run_id, array(
        select d.delivery_id from jobs.email_deliveries d
        where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            and d.not_before is null), p_now);
end $$;

-- So many alerts are planned in one transaction, in some seconds: each writes a dozen rows, whose foreign keys are checked.
create or replace function jobs.alerts_of_a_part() returns integer language sql immutable set search_path = '' as $$
    select 5000;
$$;

-- A run that is there and of which alerts are found that nobody has planned yet: its invocation was killed between two parts,
-- or is at it. Null: there is none.
create or replace function jobs.run_with_found_alerts() returns uuid
language plpgsql stable set search_path = '' as $$
declare
    run uuid := '00000000-0000-0000-0000-000000000000';
begin
    loop    -- from run to run: each may have a hundred thousand
        run := (select f.run_id from jobs.found_alerts f where f.run_id > run order by f.run_id limit 1);
        exit when run is null or exists (select from jobs.job_runs r where r.run_id = run);
    end loop;
    return run;
end $$;

-- Plans a part of what was found for a run: each step and each consequence once for each user and year, in one mail for all
-- that are new, and once more if it was withdrawn. What is planned is gone from what was found: whoever comes next takes the
-- next part. Where the same was planned for an address that it did not reach (see untell_alerts), its key ends with /moved.
-- Answers how many mails were planned.
--
-- Never by loops, and each time by a plan of its own: statistics know nothing yet of what was just found and planned. So
-- everything is met by the ids of a part's users.
create or replace function jobs.plan_part_of_alerts(p_run_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' set enable_nestloop = off set jit = off set work_mem = '32MB'
set plan_cache_mode = force_custom_plan as $$
declare
    most_times constant smallint := 2;   -- urssaf::assess
    users uuid[];
    deliveries bigint[];
    planned integer;
begin
    select array_agg(distinct f.user_id) into users from (
        select a.user_id from jobs.found_alerts a where a.run_id = p_run_id
        order by a.user_id, a.year limit jobs.alerts_of_a_part() for update) f;
    if users is null then
        return 0;
    end if;
    -- Whatever stands of these users, in one order for all who plan.
    perform from jobs.threshold_alerts t where t.user_id = any (users)
    order by t.user_id, t.year, t.threshold, t.step, t.told_as for update;
    perform from jobs.told_consequences t where t.user_id = any (users)
    order by t.user_id, t.year, t.consequence for update;
    -- What was told again since it was found not to hold is another telling.
    update jobs.threshold_alerts t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.withdrawn)
        as w (threshold text, step smallint, told_as text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and a.user_id = any (users) and a.withdrawn <> '[]'
        and t.user_id = any (users) and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.threshold, t.step, t.told_as, t.times) = (w.threshold, w.step, w.told_as, w.times);
    update jobs.told_consequences t set withdrawn_at = case when w.withdrawn is not true then p_now end
    from jobs.found_alerts a, jsonb_to_recordset(a.consequences -> 'turned')
        as w (consequence text, times smallint, withdrawn boolean)
    where a.run_id = p_run_id and a.user_id = any (users)
        and t.user_id = any (users) and t.user_id = a.user_id and t.year = a.year
        and (t.withdrawn_at is not null) = (w.withdrawn is true)
        and (t.consequence, t.times) = (w.consequence, w.times);
    with alerts as materialized (
        delete from jobs.found_alerts f where f.run_id = p_run_id and f.user_id = any (users)
        returning f.user_id, f.year, f.facts, f.used_up, f.consequences
    ), followed as (
        insert into jobs.told_consequences as k (user_id, year, consequence, run_id)
        select distinct a.user_id, a.year, c.name, p_run_id
        from alerts a, jsonb_array_elements_text(a.consequences -> 'tell') as c (name)
        order by 1, 2, 3
        on conflict (user_id, year, consequence) do update
            set withdrawn_at = null, unsaid_by = null, times = k.times + 1, run_id = excluded.run_id
            where k.withdrawn_at is not null and k.times < most_times
        returning user_id, year, consequence, times
    ), marked as (
        insert into jobs.threshold_alerts as k (user_id, year, threshold, step, told_as, run_id)
        select distinct a.user_id, a.year, s.threshold, s.step, coalesce(s.told_as, 'certain'), p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint, told_as text)
        order by 1, 2, 3, 4, 5
        on conflict (user_id, year, threshold, step, told_as) do update
            set withdrawn_at = null, unsaid_by = null, times = k.times + 1, run_id = excluded.run_id
            where k.withdrawn_at is not null and k.times < most_times
        returning user_id, year, threshold, step, told_as, times
    ), crossed as (     -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(m.threshold || '-' || m.step || case when m.told_as <> 'certain' then '-' || m.told_as else '' end
                || case when m.times > 1 then '-' || m.times else '' end, '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
            and (m.told_as = 'to_verify') = (coalesce(c.crossing -> 'doubt', 'null') <> 'null')
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year
    ), alone as (       -- what follows and is told without a step
        select a.user_id, a.year, jsonb_agg(c.name order by c.n) as consequences,
            string_agg(m.consequence || case when m.times > 1 then '-' || m.times else '' end, '+' order by c.n) as names
        from alerts a, jsonb_array_elements_text(a.facts -> 'consequences') with ordinality as c (name, n)
        join followed m on m.consequence = c.name
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year
    ), keyed as materialized (
        select a.user_id, a.year, a.facts || jsonb_build_object(
                'crossings', coalesce(c.crossings, '[]'), 'consequences', coalesce(o.consequences, '[]')) as facts,
            'threshold_alert/' || a.user_id || '/' || a.year || '/' || concat_ws('+', c.steps, o.names) as key
        from alerts a
        left join crossed c on c.user_id = a.user_id and c.year = a.year
        left join alone o on o.user_id = a.user_id and o.year = a.year
        where c.steps is not null or o.names is not null
    ), moved as materialized (
        select b.dedupe_key from jobs.email_deliveries b
        where b.dedupe_key = any (array(select k.key from keyed k)) and b.feedback in ('bounced', 'suppressed', 'refused')
    ), written as (
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
        select k.key || case when m.dedupe_key is not null then '/moved' else '' end,
            'threshold_alert', k.user_id, k.user_id, p_run_id, k.facts
        from keyed k left join moved m on m.dedupe_key = k.key
        order by k.user_id, k.year
        on conflict (dedupe_key) do nothing
        returning delivery_id
    )
    select array_agg(w.delivery_id order by w.delivery_id) into deliveries from written w;
    planned := jobs.queue_deliveries(p_run_id, deliveries, p_now);
    -- Of a sync, the plan says something else.
    update jobs.job_runs r set plan = jsonb_set(r.plan, '{items}', to_jsonb(coalesce((r.plan ->> 'items')::integer, 0) + planned))
    where r.run_id = p_run_id and r.task = 'check_thresholds' and planned > 0;
    return planned;
end $$;

-- Plans alerts: opens the run, or goes on with it (p_append: also a sync whose totals changed), and plans the first part of
-- what was found for it by jobs_note_alerts. Where more is left, the same call with p_append plans the next part; if nobody
-- makes it, jobs_reconcile does. p_due: the marks that were checked, taken away unless set again since.
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}, left}
create or replace function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_due jsonb, p_outline jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
        if opened ->> 'state' = 'joined' then
            delete from jobs.found_alerts where run_id = p_run_id;      -- another run has the slot
            return opened;
        elsif opened ->> 'state' <> 'planned' then
            return opened || jsonb_build_object('left', exists (select from jobs.found_alerts f where f.run_id = p_run_id));
        end if;
        update jobs.job_runs set plan = p_outline || '{"items": 0}' where run_id = p_run_id;
    end if;
    planned := jobs.plan_part_of_alerts(p_run_id, p_now);
    delete from jobs.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;
    return opened || jsonb_build_object('plan', p_outline || jsonb_build_object('items', planned),
        'left', exists (select from jobs.found_alerts f where f.run_id = p_run_id));
end $$;

-- Closes the runs that have nothing queued, and nothing to plan, any more: success, partial (some of it failed), error (all of it). A mail
-- that was not wanted any more is no failure. Answers how many were closed.
create or replace function public.jobs_close_runs(p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    closed integer;
begin
    with ended as (
        select r.run_id,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'superseded') as superseded,
            count(*) filter (where i.status = 'skipped') as skipped
        from jobs.job_runs r left join jobs.job_items i using (run_id)
        where r.finished_at is null
            -- Asked first and by an index of its own: a run with work left is not added up each time.
            and not exists (select from jobs.job_items q where q.run_id = r.run_id and q.status = 'queued')
            and not exists (select from jobs.found_alerts f where f.run_id = r.run_id)
        group by r.run_id
    )
    update jobs.job_runs r
    set finished_at = p_now, took = clock_timestamp() - r.started_at,
        counts = jsonb_build_object('done', e.done, 'partial', e.partial, 'failed', e.failed,
            'superseded', e.superseded, 'skipped', e.skipped),
        status = case
            when e.failed + e.partial + e.superseded = 0 then 'success'
            when e.done + e.partial + e.superseded + e.skipped = 0 then 'error'
            else 'partial' end
    from ended e where r.run_id = e.run_id and r.finished_at is null;
    get diagnostics closed = row_count;
    return closed;
end $$;

-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails. Errors are
-- grouped by code and message. However much there is to tell, the answer is small: as many results come as p_limit and
-- p_bytes let pass. First closes the runs that have nothing queued any more.
--   {run_id, status, slot, trigger, started_at, plan, counts: {…}, in_flight, records,
--    errors: [{code, message, count}], results: [first results], results_total, unplanned: alerts that were found,
--    mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create or replace function public.jobs_report(p_run_id uuid, p_limit integer, p_bytes integer, p_now timestamptz) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array(select l.lane from jobs.known_lanes() l where l.is_mail);
begin
    perform public.jobs_close_runs(p_now);
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
                from jobs.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1, 2 order by 3 desc, 1, 2 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select l.item_id, l.result, sum(octet_length(l.result::text)) over (order by l.item_id) as bytes
                from (select item_id, jobs.told_result(result) as result from jobs.job_items
                      where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                      order by item_id limit p_limit) l) t
                where t.bytes <= p_bytes),
            'results_total', s.results_total,
            'unplanned', (select count(*) from jobs.found_alerts f where f.run_id = p_run_id),
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select left(coalesce(result ->> 'reason', result ->> 'mail'), 80) as reason, count(*) as n
                    from jobs.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped'
                    group by 1 order by 2 desc, 1 limit 20) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
                    from jobs.job_items
                    where run_id = p_run_id and lane = m.lane and error is not null and status in ('queued', 'failed')
                    group by 1, 2 order by 3 desc, 1, 2 limit 20) e))), '{}')
                from (select lane, count(*) as planned,
                        count(*) filter (where status = 'queued') as queued,
                        count(*) filter (where status = 'done') as sent,
                        count(*) filter (where status = 'skipped') as skipped,
                        count(*) filter (where status = 'failed') as failed,
                        count(*) filter (where status = 'failed' or (status = 'queued' and error is not null)) as erred
                      from jobs.job_items where run_id = p_run_id and lane = any (mail_lanes) group by lane) m))
        from jobs.job_runs r, (
            select jsonb_build_object(
                    'planned', count(*) filter (where data),
                    'queued', count(*) filter (where data and status = 'queued'),
                    'done', count(*) filter (where data and status = 'done'),
                    'partial', count(*) filter (where data and status = 'partial'),
                    'failed', count(*) filter (where data and status = 'failed'),
                    'superseded', count(*) filter (where data and status = 'superseded'),
                    -- Queued, and a part of it is stored already.
                    'begun', count(*) filter (where data and status = 'queued' and progress ? 'lease'),
                    -- Failed altogether or in part, or waiting for another attempt: what `errors` counts.
                    'erred', count(*) filter (where data and (status = 'failed'
                        or (status in ('partial', 'queued') and error is not null))))
                    as counts,
                count(*) filter (where status = 'queued' and leased_until > clock_timestamp()) as in_flight,
                coalesce(sum((result ->> 'records')::bigint), 0) as records,
                count(*) filter (where data and status in ('done', 'partial', 'failed')) as results_total
            from (select i.*, i.lane <> all (mail_lanes) as data from jobs.job_items i where i.run_id = p_run_id) i) s
        where r.run_id = p_run_id);
end $$;

-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more. Of alerts
-- that were found and not planned one part; `unplanned` says that the next call finds more.
--   {messages, mails, unplanned}
create or replace function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    lane record;
    messages integer := 0;
    run uuid;
begin
    if not pg_try_advisory_xact_lock(hashtextextended('comptalyze.jobs.reconcile', 0)) then
        return jsonb_build_object('messages', 0, 'mails', 0, 'unplanned', false);
    end if;
    run := jobs.run_with_found_alerts();
    if run is not null then
        perform jobs.plan_part_of_alerts(run, p_now);
    end if;
    for lane in select l.lane from jobs.known_lanes() l order by l.place loop
        messages := messages + jobs.restore_messages(lane.lane);
    end loop;
    return jsonb_build_object('messages', messages,
        'mails', jobs.plan_moved_mails(p_route, p_now) + jobs.queue_put_off_mails(p_now),
        'unplanned', run is not null and jobs.run_with_found_alerts() is not null);
end $$;

revoke all on function
    jobs.queue_deliveries, jobs.alerts_of_a_part, jobs.run_with_found_alerts, jobs.plan_part_of_alerts
from public, anon, authenticated, service_role;

-- What a means of payment is whose money came in before, when the card was sold or the credit given; null: any other. The one
-- place that knows them by their letters, for movements and for what orders tell (note_unlisted_payments).
create or replace function jobs.paid_before(p_method text) returns text language sql immutable as $$
    select case
        -- Not taken apart unless its letters may say so: almost none does.
        when lower(p_method) like '%g%i%f%t%c%a%r%d%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%giftcard%' then 'gift_card'
        when lower(p_method) like '%s%t%o%r%e%c%r%e%d%i%t%'
            and lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%storecredit%' then 'store_credit' end;
$$;

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"). A payment that failed was never received, so the row that takes it back does not count
-- either. A refund is pending as long as there is no money to pay it with; one that fails then was never paid, and what
-- takes it back does not count either.
create or replace function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('pending', 'unknown') then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- Compares what orders tell (p_payments: [{order, id, at, amount_minor, currency, method}], all payments of each order) with the
-- movements that the list has shown, as far as the list was ever read (p_read): both know the same of an order then. A payment that no movement of its order explains is
-- kept as unlisted_payment: it does not count, and its month says so. One that was kept and is explained now is
-- none any more. The Paris months that this touches.
--
-- One movement explains one payment, by order, amount and currency; of equal ones the nearest. What is left of an order is explained where its
-- payments and movements are the same money in other pieces (cash and its change), or nothing is left of them within a day,
-- to ten cents (rounding at the till).
-- Where a movement of the order is not readable in the shop's currency, its month says so already.
create or replace function jobs.note_unlisted_payments(
    p_user_id uuid, p_account text, p_payments jsonb, p_read tstzmultirange, p_now timestamptz
) returns date[] language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    first_month date;
    last_month date;
    answer date[];
begin
    -- A movement may bear another date than its order's transaction, and so belong to the month beside it.
    select (date_trunc('month', min(x.at) at time zone 'Europe/Paris') - interval '1 month')::date,
        (date_trunc('month', max(x.at) at time zone 'Europe/Paris') + interval '1 month')::date
    into first_month, last_month
    from jsonb_to_recordset(p_payments) as x (at timestamptz, method text)
    where p_read @> x.at and jobs.paid_before(x.method) is null;
    if first_month is null then
        return '{}';
    end if;
    with payments as materialized (
        select distinct on (x.id) x."order" as of_order, x.id, x.at, x.amount_minor, x.currency
        from jsonb_to_recordset(p_payments) as x (
            "order" text, id text, at timestamptz, amount_minor bigint, currency text, method text)
        where p_read @> x.at and jobs.paid_before(x.method) is null order by x.id
    ), orders as materialized (
        select d.of_order, min(d.at) - interval '1 day' as since, max(d.at) + interval '1 day' as until
        from payments d group by 1
    ), movements as materialized (
        select (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order, t.external_id,
            t.amount_minor, t.currency, t.converted, t.occurred_at
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.account = p_account
            and t.paris_month between first_month and last_month and t.kind in ('payment', 'refund', 'unknown')
            -- The list may leave them out: they are compared on neither side.
            and jobs.paid_before(t.method) is null
    ), apart as materialized (      -- equal ones, as far as they lie from each other
        select p.id, m.external_id, greatest(p.at - m.occurred_at, m.occurred_at - p.at) as time
        from payments p join movements m using (of_order, currency, amount_minor)
    ), told as materialized (
        select p.*, row_number() over (partition by p.of_order, p.currency, p.amount_minor
            order by n.time, p.at, p.id) as nth
        from payments p left join (select a.id, min(a.time) as time from apart a group by 1) n using (id)
    ), listed as materialized (
        select o.of_order, m.amount_minor, m.currency, m.converted, m.occurred_at between o.since and o.until as is_near,
            row_number() over (partition by o.of_order, m.currency, m.amount_minor
                order by n.time, m.occurred_at, m.external_id) as nth
        from movements m join orders o using (of_order)
        left join (select a.external_id, min(a.time) as time from apart a group by 1) n using (external_id)
    ), unlike as materialized (
        select d.* from told d
        left join listed l using (of_order, currency, amount_minor, nth)
        where l.of_order is null
    ), left_over as materialized (
        select l.of_order, sum(l.amount_minor) as amount
        from listed l left join told d using (of_order, currency, amount_minor, nth)
        where d.of_order is null and l.is_near group by 1
    ), explained as materialized (
        select l.of_order from listed l where l.amount_minor is null or not l.converted
        union
        select u.of_order from (
            select of_order, sum(amount_minor) as amount, max(at) - min(at) as took from unlike group by 1) u
        left join left_over l using (of_order)
        where abs(u.amount - coalesce(l.amount, 0)) < 10 and (l.of_order is not null or u.took < interval '1 day')
    ), missing as materialized (
        select u.* from unlike u left join explained e using (of_order) where e.of_order is null
    ), written as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, first_seen_at)
        select p_user_id, 'shopify', m.id, p_account, 'unlisted_payment', m.at, m.amount_minor, m.currency,
            array[m.of_order], 'order_transaction', p_now
        from missing m order by m.id
        on conflict (user_id, provider, external_id) do update set
            kind = excluded.kind, occurred_at = excluded.occurred_at, amount_minor = excluded.amount_minor,
            currency = excluded.currency, updated_at = p_now
        where (t.kind, t.occurred_at, t.amount_minor, t.currency) is distinct from
            (excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency)
        returning t.paris_month
    ), found as (
        update jobs.integration_transactions t set kind = 'no_turnover', updated_at = p_now
        where t.user_id = p_user_id and t.provider = 'shopify' and t.kind = 'unlisted_payment'
            and t.external_id = any (array(select d.id from told d except select m.id from missing m))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from written union all select paris_month from found) m;
    return answer;
end $$;

revoke all on function
    jobs.paid_before
from public, anon, authenticated, service_role;

drop function if exists jobs.movements_in_books(uuid, date);

-- A user's Shopify movements of some months that Stripe reports, too. Each Stripe movement explains one of them.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order). Then
-- amount and currency decide, in euros or in the buyer's currency. A payment that names its charge is that charge,
-- whatever it is worth there (another rate, a part captured); a refund is not: what was paid back in another way, or
-- beside a chargeback, is money of its own. p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original, t.excluded,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), sales as materialized (     -- which order, or payment without one, each name belongs to
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), of_names as materialized (   -- a row that names no order, or none any more, belongs to the sale of its names
        select n.external_id, min(a.sale) as sale
        from (select s.external_id, unnest(s.names) as name from shop s where s.shop_order is null) n
        join sales a using (name) group by 1
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            coalesce(s.shop_order, o.sale, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s left join of_names o using (external_id)
        where s.excluded is null and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.occurred_at, n as name from doubted d cross join unnest(d.names) n
    ), told as materialized (
        select t.external_id, t.kind, t.amount_minor > 0 as is_in, t.amount_minor, t.currency || t.amount_minor as euros,
            (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money, t.occurred_at, r as name
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR'
            -- A debit on its way, or one that failed, is the same payment in the shop: it was not received there either.
            and (t.excluded is null or t.excluded in ('pending', 'failed'))
            and t.kind in ('payment', 'partial_capture', 'refund') and not coalesce(f.left_out, k.left_out)
            and (not p_written or coalesce(f.counted, k.counted) @> t.paris_month)
    ), whole as materialized (     -- a charge that the shop tells in several pieces, or Stripe does
        select s.name from (
            select n.name, sum(n.amount_minor) as amount from named n where n.is_in group by 1) s
        join (select t.name, sum(t.amount_minor) as amount from told t
            where t.kind in ('payment', 'partial_capture') group by 1) p using (name, amount)
    ), by_name as materialized (
        select distinct n.external_id from named n join whole w using (name) where n.is_in
    ), whole_paid as materialized (
        select distinct t.external_id from told t join whole w using (name) where t.is_in
    ), paid as materialized (
        select distinct on (t.external_id) t.*, s.sale from told t join sales s using (name)
        where t.kind in ('payment', 'refund') order by t.external_id, s.sale
    ), d1 as materialized (
        select d.*, row_number() over (partition by d.sale, d.is_in, d.euros
            order by d.named desc, d.occurred_at, d.external_id) as nth
        from doubted d where not exists (select from by_name n where n.external_id = d.external_id)
    ), p1 as materialized (
        select p.*, row_number() over (partition by p.sale, p.is_in, p.euros order by p.occurred_at, p.external_id) as nth
        from paid p
        where not exists (select from whole_paid w where w.external_id = p.external_id)
    ), by_euros as materialized (
        select d1.external_id as shop_id, p1.external_id as stripe_id
        from d1 join p1 using (sale, is_in, euros, nth)
    ), d2 as materialized (
        select d.sale, d.is_in, d.foreign_money, d.external_id, row_number() over (
            partition by d.sale, d.is_in, d.foreign_money order by d.named desc, d.occurred_at, d.external_id) as nth
        from d1 d where not exists (select from by_euros e where e.shop_id = d.external_id)
    ), p2 as materialized (
        select p.sale, p.is_in, p.foreign_money, p.external_id, row_number() over (
            partition by p.sale, p.is_in, p.foreign_money order by p.occurred_at, p.external_id) as nth
        from p1 p where not exists (select from by_euros e where e.stripe_id = p.external_id)
    ), by_foreign_money as materialized (
        select d2.external_id as shop_id, p2.external_id as stripe_id
        from d2 join p2 using (sale, is_in, foreign_money, nth)
    ), d3 as (                     -- by name alone: a payment by its charge, a refund by its own id
        select n.name, n.is_in, n.external_id,
            row_number() over (partition by n.name, n.is_in order by n.occurred_at, n.external_id) as nth
        from named n join d2 using (external_id)
        where (n.is_in or n.name ~ '^(re|pyr)_')
            and not exists (select from by_foreign_money f where f.shop_id = n.external_id)
    ), p3 as (
        select t.name, t.is_in,
            row_number() over (partition by t.name, t.is_in order by t.occurred_at, t.external_id) as nth
        from told t join p2 using (external_id)
        where not exists (select from by_foreign_money f where f.stripe_id = t.external_id)
    ), explained as (
        select external_id from by_name
        union select shop_id from by_euros
        union select shop_id from by_foreign_money
        union select d3.external_id from d3 join p3 using (name, is_in, nth)
    )
    select e.external_id from explained e join doubted d using (external_id) where d.paris_month = any (p_months);
end $$;

-- A user's movements of some months that are in the books, those that do not count too: of the accounts whose books have
-- the month; where nobody's have it, of the present ones. Whoever says what a month lacks asks here, so that an account's
-- rows say nothing of another one's month. Without a setting of its own, so that it becomes part of the query that uses it.
create or replace function jobs.movements_in_books(p_user_id uuid, p_months date[]) returns setof jobs.integration_transactions
language sql stable as $$
    select t.* from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months) and not coalesce(f.left_out, s.left_out, false)
        and (coalesce(f.counted, s.counted) @> t.paris_month or f.account is null
            and not exists (select from jobs.integration_state o
                where o.user_id = p_user_id and o.counted @> t.paris_month)
            and not exists (select from jobs.former_accounts o
                where o.user_id = p_user_id and o.counted @> t.paris_month));
$$;

-- Money that the figure of a user's month lacks, or may lack: what is_uncounted names, of the accounts whose books have the
-- month (movements_in_books), but for what another row explains. One row explains one:
--   a refund a dispute that was prevented, by order and amount;
--   a movement at Stripe a payment that only an order tells, by amount, within an hour, where no tender is left for it.
create or replace function jobs.uncounted_movements(p_user_id uuid, p_month date) returns setof jobs.integration_transactions
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    has_prevented boolean;
    has_unlisted boolean;
begin
    select coalesce(bool_or(t.excluded = 'prevented'), false), coalesce(bool_or(t.excluded = 'unlisted_payment'), false)
    into has_prevented, has_unlisted
    from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t);
    if not has_prevented and not has_unlisted then
        return query select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t);
        return;
    end if;
    return query
    with found as materialized (
        select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t where jobs.is_uncounted(t)
    ), of_orders as materialized (     -- of all months: a refund explains one dispute, whichever month that lies in
        select t.external_id, t.kind, (select r from unnest(t.refs) r where r ~ '^gid://shopify/Order/' limit 1) as of_order,
            t.currency, t.amount_minor, t.occurred_at
        from jobs.integration_transactions t
        where has_prevented and t.user_id = p_user_id and t.provider = 'shopify'
            and (t.excluded = 'prevented' or t.kind = 'refund')
    ), in_order as materialized (
        select o.*, row_number() over (partition by o.kind, o.of_order, o.currency, o.amount_minor
            order by o.occurred_at, o.external_id) as nth
        from of_orders o
    ), paid_back as (
        select d.external_id from in_order d
        join in_order r using (of_order, currency, amount_minor, nth)
        where d.kind = 'dispute' and r.kind = 'refund'
    ), names as materialized (      -- of what the shop's list has
        select distinct n as name from jobs.integration_transactions s cross join unnest(s.refs) n
        where has_unlisted and s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and n !~ '^gid:'
    ), at_stripe as materialized (
        select t.external_id, t.refs, t.kind, t.currency, t.amount_minor,
            coalesce(t.listed_at, t.occurred_at) as at
        -- A debit counts later than it was sent.
        from jobs.movements_in_books(p_user_id, array[p_month, (p_month + interval '1 month')::date,
            (p_month + interval '2 months')::date]) t
        where has_unlisted and t.provider = 'stripe' and t.kind in ('payment', 'refund')
            and (t.excluded is null or t.excluded = 'pending')
    ), named as materialized (
        select distinct t.external_id from (
            select p.external_id, unnest(p.refs) as name from at_stripe p where p.kind = 'payment') t join names using (name)
    ), free as materialized (
        select t.currency, t.amount_minor, t.at
        from at_stripe t where not exists (select from named x where x.external_id = t.external_id)
    ), in_shop as materialized (        -- an order's own, and what the list has without the name of a charge
        select t.external_id, t.excluded is not null as is_unlisted, t.currency, t.amount_minor, t.occurred_at as at
        from jobs.movements_in_books(p_user_id, array[p_month]) t
        where has_unlisted and t.provider = 'shopify' and (t.excluded = 'unlisted_payment'
            or t.excluded is null and t.method is distinct from 'cash' and (t.kind = 'refund'
                or t.kind = 'payment' and not exists (select from unnest(t.refs) r where r !~ '^gid:')))
    ), waiting as materialized (        -- each with how many are to be explained up to it: the list's come first
        select u.external_id, u.at, currency, amount_minor, count(*) as place
        from in_shop u join in_shop s using (currency, amount_minor)
        where u.is_unlisted and s.at between u.at - interval '1 hour' and u.at + interval '1 hour'
            and (not s.is_unlisted or s.external_id <= u.external_id)
        group by 1, 2, 3, 4
    ), listed as (
        select w.external_id from waiting w join free f using (currency, amount_minor)
        where f.at between w.at - interval '1 hour' and w.at + interval '1 hour'
        group by w.external_id, w.place having count(*) >= w.place
    ), explained as (
        select external_id from paid_back union select external_id from listed
    )
    select t.* from found t
    where not (t.provider = 'shopify' and t.excluded in ('prevented', 'unlisted_payment')
        and t.external_id in (select e.external_id from explained e));
end $$;

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the
-- reasons of uncounted_movements:
--   pending: a payment that is still on its way, where the month is over
--   platform_reversal: what a platform took back of a payment, where it is no fee of hers: all of it, or a part of one of
--     which she had an application fee
--   refund_of_unknown_sale: a refund of an order of which a payment was never read, or is told by the order alone and Stripe's
--     refunds do not explain it; or of no order any more beside one at Stripe
--     of the same amount and day: Stripe may report it, too
--   maybe_twice: a payment in the shop that names no charge, and one at Stripe of the same amount, or the same of the
--     buyer's money, on the same day or within an hour; of a debit, on the day on which it was sent, or counts
--   beyond_scope: days that lay more than 60 days back when the shop was read, with a scope that reaches no further: 1
--   passed_on: a payment that a platform passed on, which may have kept a part of what the buyer paid
--   doubted_list: days of a list that lacked what it had shown before: 1 for each provider
create or replace function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer jsonb;
    passed_on bigint;
    has_excluded boolean;
    has_nameless boolean;
begin
    -- One look first: most months have none of what the queries below are about.
    select count(*) filter (where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from unnest(t.refs) r where starts_with(r, 'tr_'))),
        coalesce(bool_or(t.excluded is not null), false),
        coalesce(bool_or(t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
            and not exists (select from unnest(t.refs) r where r !~ '^gid:')), false)
    into passed_on, has_excluded, has_nameless
    from jobs.movements_in_books(p_user_id, array[p_month]) t;

    with flaws as (
        select 'passed_on' as reason, passed_on as n
        union all
        select 'beyond_scope', count(*) from jobs.integration_state s
        cross join lateral (select tstzrange(p_month::timestamp at time zone 'Europe/Paris', least(
            (p_month + interval '1 month') at time zone 'Europe/Paris',
            greatest(p_as_of - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
        where s.user_id = p_user_id and s.all_orders is false and s.counted @> p_month and not s.covered @> old.days
        union all
        select 'doubted_list', count(*) from jobs.integration_state s
        where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
            and s.doubted && tstzrange(p_month::timestamp at time zone 'Europe/Paris',
                (p_month + interval '1 month') at time zone 'Europe/Paris')
    )
    select coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;

    if has_excluded then
        with found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            where t.excluded in ('pending', 'platform_reversal')
        ), flaws as (
            select t.excluded as reason, count(*) as n from jobs.uncounted_movements(p_user_id, p_month) t group by 1
            union all
            select 'pending', count(*) from found t
            where t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            union all
            select 'platform_reversal', count(*) from found t
            where t.excluded = 'platform_reversal' and not exists (
                select from jobs.integration_transactions p
                where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                    and p.amount_minor > -t.amount_minor
                    and not exists (select from unnest(p.refs) r where starts_with(r, 'fee_')))
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;

    if has_nameless and exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) then
        with found as materialized (
            select t.* from jobs.movements_in_books(p_user_id, array[p_month]) t
            where t.provider = 'shopify' and t.excluded is null and t.kind in ('payment', 'refund')
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
        ), nameless as materialized (  -- movements in the shop that may have gone through Stripe without saying so
            select t.external_id, t.kind, t.occurred_at, (t.occurred_at at time zone 'Europe/Paris')::date as day,
                t.currency || t.amount_minor as euros,
                (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money
            from found t where t.method is distinct from 'cash' and (t.kind = 'payment' or t.refs = '{}')
        ), asked as materialized (     -- one row for each money and day: joined in one go
            select distinct n.external_id, n.kind, n.occurred_at, n.day as own_day, m.money,
                ((n.occurred_at + d.lag) at time zone 'Europe/Paris')::date as day
            from nameless n cross join unnest(array[n.euros, n.foreign_money]) m (money)
            cross join unnest(array[interval '-1 hour', interval '0', interval '1 hour']) d (lag)
            where m.money is not null
        ), at_stripe as materialized (
            select t.external_id, t.kind, t.refs, t.listed_at, t.occurred_at, t.currency || t.amount_minor as euros,
                (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money
            -- The month before has its last hour; a debit of this month may count in one of the next.
            from jobs.movements_in_books(p_user_id, array[(p_month - interval '1 month')::date, p_month,
                (p_month + interval '1 month')::date, (p_month + interval '2 months')::date]) t
            where t.provider = 'stripe' and t.kind in ('payment', 'refund') and exists (select from nameless)
                and (t.excluded is null or t.excluded in ('pending', 'failed'))
        ), shop_names as materialized (
            select distinct n as name from jobs.integration_transactions s cross join unnest(s.refs) n
            where s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and exists (select from nameless)
        ), explained as materialized (  -- payments at Stripe that a payment in the shop names
            select distinct p.external_id from (
                select t.external_id, unnest(t.refs) as name from at_stripe t where t.kind = 'payment') p
            join shop_names using (name)
        ), told as materialized (
            select distinct t.kind, m.money, d.at, (d.at at time zone 'Europe/Paris')::date as day
            from at_stripe t cross join unnest(array[t.euros, t.foreign_money]) m (money)
            cross join unnest(array[t.listed_at, t.occurred_at]) d (at)
            where not exists (select from explained e where e.external_id = t.external_id)
                and m.money is not null and d.at is not null
        ), doubted as materialized (
            select a.kind, a.external_id from asked a
            where a.day = a.own_day
                and exists (select from told p where (p.kind, p.money, p.day) = (a.kind, a.money, a.day))
            union
            select a.kind, a.external_id from asked a join told p using (kind, money, day)
            where a.day <> a.own_day
                and p.at between a.occurred_at - interval '1 hour' and a.occurred_at + interval '1 hour'
        ), of_orders as materialized (
            select t.external_id, o from found t cross join unnest(t.refs) o where t.kind = 'refund'
        ), sold as materialized (
            select distinct p.kind = 'unlisted_payment' as is_unlisted, o
            from jobs.integration_transactions p cross join unnest(p.refs) o
            where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0 and exists (select from of_orders)
        ), listed_sales as (
            select o from sold where not is_unlisted
        ), unlisted_sales as (
            select o from sold where is_unlisted
        ), flaws as (
            select 'refund_of_unknown_sale' as reason, (select count(*) from (
                (select o from of_orders except select o from listed_sales)      -- not by loops: see movements_reported_twice
                union
                select o from of_orders join unlisted_sales using (o)
                where external_id not in (select w.external_id
                    from jobs.movements_reported_twice(p_user_id, array[p_month], true) w)) r)
                + (select count(*) from doubted d where d.kind = 'refund') as n
            union all
            select 'maybe_twice', count(*) from doubted d where d.kind = 'payment'
        )
        select answer || coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') into answer from flaws f;
    end if;
    return answer;
end $$;

-- Whether a user's month has anything that a recap would tell of: not a debit on its way, an open dispute, an account whose
-- books do not have the month.
create or replace function jobs.month_has_news(p_user_id uuid, p_month date) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.movements_in_books(p_user_id, array[p_month]) t
        where coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover'));
$$;

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    is_empty boolean;
    in_books boolean := jobs.is_in_books(p_user_id, p_month);
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active) then
        return;
    end if;
    -- Connected after the month: whoever looks at everybody's month once it is over finds it in no books. A replay of its
    -- last day sees it as it was.
    if not in_books and over and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.movements_in_books(p_user_id, array[p_month]))
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}'
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- What an alert tells beside its steps, for users who are to get one: what movements of some months add up to on each day
-- (as far as they are in the books, and not too many), what the year has in other currencies, and of which integrations
-- the activity was never said by anybody.
-- p_asked: [{user_id, year, months: [YYYY-MM-01]}]
--   [{user_id, year, days: [{day, activity, amount}], uncounted: [{currency, amount}], assumed: [{provider, activity}]}]
create or replace function public.threshold_details(p_asked jsonb) returns jsonb
language sql security definer stable set search_path = '' set statement_timeout = '28s' set jit = off as $$
    select coalesce(jsonb_agg(jsonb_build_object('user_id', a.user_id, 'year', a.year,
        'days', coalesce(d.days, '[]'), 'uncounted', coalesce(c.uncounted, '[]'),
        'assumed', jobs.assumed_activities(a.user_id))), '[]')
    from jsonb_to_recordset(p_asked) as a (user_id uuid, year integer, months date[])
    left join lateral (
        -- Three activities on 31 days are 93.
        select jsonb_agg(jsonb_build_object('day', m.day, 'activity', m.activity, 'amount', m.amount)) as days
        from (select x.day, left(x.activity, 80) as activity, sum(x.amount_minor)::bigint as amount
              from jobs.countable_movements(a.user_id, a.months, true) x
              where cardinality(a.months) > 0 and x.activity is not null group by 1, 2) m
        having count(*) <= 100 * cardinality(a.months)
    ) d on true
    left join lateral (
        select jsonb_agg(jsonb_build_object('currency', m.currency, 'amount', m.amount) order by m.currency) as uncounted
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.integration_transactions t
              join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
              left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
              where t.user_id = a.user_id and t.excluded in ('currency', 'unresolved_currency')
                  and t.paris_month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
                  and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted, order_payments: see note_unlisted_payments}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create or replace function jobs.settle_figures(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    hold text;
    i jobs.job_items;
    part record;
    t public.integration_tokens;
    s jobs.integration_state;
    stored jsonb;
    new_activity text;
    said_by text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    unreadable jsonb;   -- why movements could not be understood, with how many
    unlisted jsonb := '{}';     -- how many known movements each provider's list has lacked
    known bigint;
    window_from timestamptz;
    window_to timestamptz;
    fresh tstzmultirange;       -- what this read covers and none before it
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := jobs.hold_item(p_item_id, p_lease_id);
    select * into i from jobs.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result, 'repeated', true);
    elsif hold = 'lost' or i.user_id is distinct from p_user_id then
        return jsonb_build_object('state', 'lost');
    end if;
    if i.progress ->> 'lease' = p_lease_id::text and (i.progress ->> 'chunk')::integer >= p_chunk then
        return jsonb_build_object('state', 'stored');
    end if;
    records := coalesce((i.progress ->> 'records')::bigint, 0);
    by_provider := coalesce(i.progress -> 'by_provider', '{}');
    months := array(select jsonb_array_elements_text(coalesce(i.progress -> 'months', '[]'))::date);

    for part in
        select * from jsonb_to_recordset(p_parts) as x (
            integration_id uuid, provider text, account text, "window" jsonb, movements jsonb, error jsonb,
            count_month boolean, kinds jsonb, deep boolean, listed bigint, order_payments jsonb)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'), p_now);
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);
            months := months || jobs.note_unlisted_payments(
                p_user_id, part.account, coalesce(part.order_payments, '[]'),
                case when s.account = part.account then s.covered else '{}' end + tstzmultirange(tstzrange(
                    (part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz)), p_now);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what stands, else an assumption; what the user has typed
            -- decides below.
            new_activity := coalesce(s.activity,
                case part.provider when 'shopify' then 'Vente de marchandises' else 'Prestation de services' end);
            said_by := s.activity_said_by;
            if t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale') then
                new_activity := t.activity_type;
                said_by := 'integration';
            end if;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                -- Of an account that is out of the books they count once it is taken back.
                if not s.left_out then
                    s.counted := s.counted + datemultirange(daterange(s.first_month, null));
                end if;
                -- With a connection, other months of this account and of the one before may count than did.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, activity_said_by = said_by, first_month = s.first_month, counted = s.counted,
                updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.activity_said_by, k.first_month, k.counted)
                    is distinct from (new_activity, said_by, s.first_month, s.counted);
        end if;

        continue when not p_final;
        if part.error is not null then
            failed := failed + 1;
            first_error := coalesce(first_error, part.error);
            update public.integration_tokens k
            set last_error = left(part.error ->> 'message', 500), updated_at = clock_timestamp()
            where k.id = part.integration_id and k.last_error is distinct from left(part.error ->> 'message', 500);
            update jobs.integration_state k
            set failures = k.failures + 1, failed_at = p_now, failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            -- Read once, not for each row that is compared with them.
            window_from := part."window" ->> 'from';
            window_to := part."window" ->> 'to';
            fresh := tstzmultirange(tstzrange(window_from, window_to));
            -- What the list showed before it still has to show: rows are never taken back. Both lists go by seconds.
            select count(*) into known from jobs.integration_transactions x
            where x.user_id = p_user_id and x.provider = part.provider and x.account = part.account
                -- By the index. What counts long after it was listed is left out: fewer are known than could be.
                and x.paris_month >= date_trunc('month', window_from at time zone 'Europe/Paris')::date
                and x.paris_month <= (window_to at time zone 'Europe/Paris')::date
                -- Disputes have a list of their own, those of an unknown state too.
                and x.kind <> 'no_turnover'
                and (x.provider = 'stripe' or x.kind <> 'dispute' and coalesce(x.source_kind, '') !~ '^dispute')
                and x.listed_at >= window_from
                and x.listed_at < date_trunc('second', window_to);
            s.doubted := case
                when s.account is distinct from part.account or part.listed is null then s.doubted
                when known > part.listed then s.doubted + (fresh - s.covered)
                when part.listed > 0 then s.doubted - fresh
                -- Nothing is known there and nothing listed: as doubtful as the days before it.
                when s.doubted && fresh then s.doubted + (fresh - s.covered)
                else s.doubted end;
            if known > part.listed then
                unlisted := unlisted || jsonb_build_object(part.provider, known - part.listed);
            end if;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (fresh - s.doubted)
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null))
                    else k.covered end,
                doubted = s.doubted,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not. Nor does an
                -- empty list that is in doubt: what it lacked is read again with what follows.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                        and not coalesce(part.listed = 0 and s.doubted && fresh, false)
                    then greatest(k.last_success_to, window_to) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, window_to) else k.deep_read_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', window_from at time zone 'Europe/Paris'),
                (window_to - interval '1 microsecond') at time zone 'Europe/Paris',
                interval '1 month') m);
        end if;
    end loop;
    months := array(select distinct m from unnest(months) m);

    if not p_final then
        update jobs.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := months || jobs.follow_typed_activity(p_user_id);
    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind
        from unnest(case when p_month is null then months else array[p_month] end) m
        cross join lateral jobs.uncounted_movements(p_user_id, m) x
        where x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
    )
    select
        (select coalesce(jsonb_agg(distinct m.currency), '[]') from missing m
            where m.currency <> 'EUR' or m.reason = 'unresolved_currency'),
        (select coalesce(jsonb_object_agg(k.kind, k.n), '{}') from (
            select coalesce(m.source_kind, m.reason) as kind, count(*) as n from missing m
            where m.reason = 'unknown_kind' group by 1) k),
        (select coalesce(jsonb_object_agg(k.reason, k.n), '{}') from (
            select m.reason, count(*) as n from missing m
            where m.reason not in ('unknown_kind', 'currency', 'unresolved_currency') group by 1) k)
    into not_euro, unknown, unreadable;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}' or unlisted <> '{}';
    outcome := case
        when parts > 0 and failed = parts then 'failed'
        when failed > 0 or flawed then 'partial'
        else 'done' end;
    answer := jsonb_strip_nulls(jsonb_build_object(
        'user_id', case when p_month is null then p_user_id end,
        'provider', case when p_month is null then p_parts -> 0 ->> 'provider' end,
        'records', records,
        'status', case outcome when 'failed' then 'error' when 'partial' then 'partial' else 'success' end,
        'error', first_error, 'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}'),
        'unlisted_movements', nullif(unlisted, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', jobs.month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, synced_at, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message', p_now,
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'unreadable_movements', nullif(unreadable, '{}'), 'unlisted_movements', unlisted -> (e ->> 'provider'),
            'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = jobs.claimed_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform jobs.finish_item(p_item_id, outcome, answer, first_error, p_now);
    return jsonb_build_object('state', 'settled', 'result', answer);
end $$;

-- Each movement of some of a user's months, with why it does not count in the books (null: it counts):
--   left_out: its account was taken out of the books; before_connection: the month is the user's own;
--   reported_twice: Stripe reports the same money, and that counts; else see why_excluded
create or replace function jobs.judged_movements(p_user_id uuid, p_months date[])
returns table (
    provider text, external_id text, account text, kind text, source_kind text, occurred_at timestamptz,
    first_seen_at timestamptz, updated_at timestamptz, amount_minor bigint, currency text, state text, method text,
    refs text[], original jsonb, reason text)
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with twice as materialized (
        select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, true) w
        where exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'stripe')
            and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'shopify')
    )
    select t.provider, t.external_id, t.account, t.kind, t.source_kind, t.occurred_at, t.first_seen_at, t.updated_at,
        t.amount_minor, t.currency, t.state, t.method, t.refs, t.original,
        case
            when coalesce(f.left_out, s.left_out) then 'left_out'
            when coalesce(f.counted, s.counted) @> t.paris_month is not true then 'before_connection'
            when t.excluded is not null then t.excluded
            when w.external_id is not null then 'reported_twice' end
    from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    left join twice w on t.provider = 'shopify' and w.external_id = t.external_id
    where t.user_id = p_user_id and t.paris_month = any (p_months);
$$;

revoke execute on function jobs.movements_in_books(uuid, date[]) from public;

revoke execute on function jobs.uncounted_movements(uuid, date) from public;

-- Takes an account out of a user's books, for who connected a wrong one by mistake, or back into them (p_out false).
-- Its movements stay in the ledger; taken out they count in no month, whatever is read, until it is taken back or
-- connected again in place of another. Repeating it changes nothing. An account that is not the user's is an error.
--   {months: [YYYY-MM] whose totals were added up again, left_alone: see recompute_totals}
create or replace function jobs.leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_as_of timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    touched date[];
    left_alone jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));
    if not exists (select from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account))
        and not exists (select from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) then
        raise exception 'user % has no account % at %', p_user_id, p_account, p_provider using errcode = '22023';
    end if;
    update jobs.integration_state s set left_out = p_out, updated_at = p_as_of,
        counted = case when p_out or s.first_month is null then '{}'
            else coalesce(s.counted_before, datemultirange(daterange(s.first_month, null))) end,
        -- One that was never read has no months yet.
        counted_before = case when p_out and s.first_month is not null then s.counted end
    where s.user_id = p_user_id and s.provider = p_provider and s.account = p_account and s.left_out <> p_out;
    update jobs.former_accounts f set left_out = p_out,
        counted = case when p_out or f.first_month is null then '{}' else coalesce(f.counted_before, datemultirange(daterange(f.first_month,
            (date_trunc('month', f.replaced_at at time zone 'Europe/Paris') + interval '1 month')::date))) end,
        counted_before = case when p_out then f.counted end
    where f.user_id = p_user_id and f.provider = p_provider and f.account = p_account and f.left_out <> p_out;
    touched := array(select distinct t.paris_month from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account);
    touched := touched || jobs.months_reported_twice(p_user_id, touched);
    left_alone := jobs.recompute_totals(p_user_id, touched, p_as_of);
    insert into jobs.threshold_checks_due as d (user_id, since) values (p_user_id, p_as_of)
    on conflict (user_id) do update set since = excluded.since;
    return jsonb_build_object('left_alone', left_alone, 'months', (
        select coalesce(jsonb_agg(to_char(m, 'YYYY-MM') order by m), '[]') from unnest(touched) m));
end $$;

-- The first month with turnover above zero before the month of a date of creation, as far as three years back: the books
-- contradict the date. Null: they do not.
create or replace function jobs.turnover_before_creation(p_user_id uuid, p_created date) returns date
language sql stable set search_path = '' as $$
    select min(s.month) from (
        select make_date(r.year, r.month, 1) as month from public.ca_records r
        where r.user_id = p_user_id and r.year between extract(year from p_created) - 3 and extract(year from p_created)
        group by r.year, r.month having sum(r.amount_eur) > 0 and sum(r.amount_eur) <> 'NaN') s
    where s.month < date_trunc('month', p_created);
$$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year, but the first, that stands. The first year only explains those after it; the three before it come, too. A
-- user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- One who alone takes longer than this may has the flaw too_slow: a page of one answers always.
-- What was assumed of their imported money is corrected first, unless nothing is to be written (p_noted_at null).
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      consequences: [{year, consequence, times, withdrawn}], years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 3;         -- what is due may have begun then
    most_corrected constant integer := 50;      -- some milliseconds each
    users uuid[];
    due jsonb;
    above uuid[];
    last_user uuid;
    more boolean;
    flawed uuid[];
    flaws text[];
    is_cut boolean;
    people jsonb;
begin
    if p_due then
        -- Before the books: a mark that is set again while they are read is not taken for this one.
        select array_agg(d.user_id order by d.user_id),
            jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from jobs.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    begin
        if p_noted_at is not null then
            perform jobs.correct_assumed_activities(users, most_corrected, p_now);
        end if;
        above := array(
            select unnest(jobs.users_above(users, p_due, p_floors))
            union
            select t.user_id from jobs.threshold_alerts t
            where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
                and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
            union
            select t.user_id from jobs.told_consequences t
            where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
                and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
            order by 1);
        if cardinality(above) > most_books then
            above := above[1:most_books];
            last_user := above[most_books];
            more := true;
        end if;

        with told as (
            select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step,
                'told_as', t.told_as, 'times', t.times, 'withdrawn', t.withdrawn_at is not null)) as told
            from jobs.threshold_alerts t
            where t.user_id = any (above) and t.year between first_year and last_year group by 1
        ), followed as (
            select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'consequence', t.consequence, 'times', t.times,
                'withdrawn', t.withdrawn_at is not null)) as told
            from jobs.told_consequences t
            where t.user_id = any (above) and t.year between first_year and last_year group by 1
        ), people_found as (
            select a.user_id, jsonb_build_object(
                'user_id', a.user_id, 'created', b.created,
                'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
                'told', coalesce(t.told, '[]'), 'consequences', coalesce(f.told, '[]'),
                'years', coalesce(b.years, '[]')) as person
            -- Who has nothing in their books any more was told something that has to be withdrawn.
            from unnest(above) a (user_id)
            left join jobs.books(above, first_year - years_before, last_year) b on b.user_id = a.user_id
            -- A fence (offset 0): of all people only these.
            cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
            left join told t on t.user_id = a.user_id
            left join followed f on f.user_id = a.user_id
        ), measured as materialized (
            select f.user_id, f.person, row_number() over w as n, sum(octet_length(f.person::text)) over w as bytes
            from people_found f window w as (order by f.user_id)
        ), page as (
            select * from measured m where m.n = 1 or m.bytes <= p_bytes
        )
        select jsonb_agg(g.person order by g.user_id), array_agg(g.user_id order by g.user_id),
            array_agg(g.user_id order by g.user_id) filter (where g.person ->> 'flaw' is not null),
            array_agg(g.person ->> 'flaw' order by g.user_id) filter (where g.person ->> 'flaw' is not null),
            (select count(*) from measured) > count(*)
        into people, above, flawed, flaws, is_cut
        from page g;
    exception when query_canceled then
        -- Fewer are asked for. One alone is named, and the others go on.
        if cardinality(users) is distinct from 1 then
            raise;
        end if;
        people := jsonb_build_array(jsonb_build_object('user_id', users[1], 'flaw', 'too_slow', 'told', '[]'::jsonb,
            'consequences', '[]'::jsonb, 'years', '[]'::jsonb));
        flawed := users;
        flaws := array['too_slow'];
        is_cut := false;
    end;
    if is_cut then
        last_user := above[cardinality(above)];
        more := true;
    end if;

    if p_noted_at is not null then
        perform jobs.note_unreadable('books', array(select u from unnest(users) u where u <= last_user), flawed, flaws,
            p_noted_at);
    end if;
    return jsonb_build_object(
        'people', coalesce(people, '[]'),
        'due', (select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(due) d
            where (d ->> 'user_id')::uuid <= last_user),
        'scanned', (select count(*) from unnest(users) u where u <= last_user),
        'next', case when more then last_user end);
end $$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- too_slow: what this one mail is about takes longer than the claim may. It comes without facts, to be put off.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds, too_slow}], sealed batches in the order of their payload}
create or replace function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    lane text;
    claimed jsonb;
    items bigint[];
    mine bigint[];
    batches uuid[];
begin
    perform jobs.lock_mail_ledger();
    for lane in select l.lane from jobs.known_lanes() l where l.is_mail order by l.place loop
        claimed := public.jobs_claim(p_claim, lane, p_limit, p_seconds);
        if claimed = 'null'::jsonb then
            return claimed;
        end if;
        exit when claimed <> '[]'::jsonb;
    end loop;
    if lane = 'alerts' and jobs.hold_trouble_mails(p_claim, p_outage, p_now)
        and not exists (select from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued') then
        return 'null'::jsonb;
    end if;

    -- By arrays: statistics know nothing yet of what was just planned.
    mine := array(select (i.payload ->> 'delivery_id')::bigint from jobs.job_items i
        where i.lease_id = p_claim and i.status = 'queued');
    update jobs.email_deliveries d set item_id = i.item_id
    from jobs.job_items i
    where d.delivery_id = any (mine) and d.item_id is null
        and i.lease_id = p_claim and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = d.delivery_id;
    batches := (select array_agg(distinct d.batch_id) from jobs.email_deliveries d
        where d.delivery_id = any (mine) and d.status = 'sealed');

    if batches is not null then
        -- All of one batch, whoever claimed some of it: they are fenced off. The others' turn comes.
        batches := batches[1:1];
        select i.lane into lane from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued' limit 1;
        select array_agg(i.item_id order by i.item_id) into items
        from jobs.job_items i left join jobs.email_deliveries d on d.item_id = i.item_id
        where i.lease_id = p_claim and i.status = 'queued' and d.batch_id is distinct from batches[1];
        if items is not null then
            perform public.jobs_release(lane, items, array_fill(p_claim, array[cardinality(items)]), 0);
        end if;
        perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.batch_id = batches[1] and d.status = 'sealed' and i.status = 'queued'
        order by i.msg_id;
        update jobs.job_items i
        set lease_id = p_claim, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from jobs.email_deliveries d
        where d.batch_id = batches[1] and d.status = 'sealed' and i.item_id = d.item_id and i.status = 'queued';
    end if;

    begin
        if batches is null then
            perform jobs.retract_in_mails(mine);
        end if;

        return jsonb_build_object('mails', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient,
                'batch_id', d.batch_id, 'digest', d.digest, 'attempts', coalesce(i.attempts, 0),
                'address', case when d.status = 'sealed' then d.address
                    when d.kind = 'operator_digest' then d.facts ->> 'to' else p.address end,
                'facts', case d.status when 'sealed' then d.facts else d.facts
                    || jsonb_build_object('kind', d.kind, 'first_name', p.first_name)
                    || case d.kind when 'monthly_reminder' then
                        jsonb_build_object('recorded', m.recorded, 'entries', m.entries,
                            'books', jobs.books_to_declare(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')),
                            'profile', jsonb_build_object('created', t.created, 'has_acre', t.has_acre,
                                'income_tax', t.income_tax), 'mixed', x.months, 'verdict', m.verdict,
                            'definitive', f.told, 'uncounted', f.uncounted, 'incomplete', coalesce(w.incomplete, '[]'),
                            'assumed', jobs.assumed_activities(d.user_id), 'today', (p_now at time zone 'Europe/Paris')::date)
                        when 'definitive_month' then jsonb_build_object('definitive', f.told, 'uncounted', f.uncounted,
                            'incomplete', coalesce(w.incomplete, '[]'))
                        when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums',
                            -- What the books contradict reduces no ceiling.
                            'created', case when z.first is null then t.created end,
                            'contradiction', case when z.first is not null
                                then jsonb_build_array(t.created, to_char(z.first, 'YYYY-MM')) end,
                            'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                            'mixed', x.months, 'verdict', m.verdict,
                            'assumed', jobs.assumed_activities(d.user_id)) || jobs.recap_anew(d.user_id, d.facts, p_now)
                        else '{}' end
                    || case when d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') then jsonb_build_object(
                        'retracted', coalesce(nullif(jobs.retractions(d.user_id, d.delivery_id), '[]'),
                            d.facts -> 'retracted', '[]')) else '{}' end end,
                'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                    then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                        case when d.kind = 'integration_trouble'
                            then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end,
                        case when d.kind = 'definitive_month' then case when f.told is null then 'month_incomplete'
                            when f.told ->> 'mailed' = f.told ->> 'total' then 'month_unchanged' end end) end,
                'expired', coalesce(d.expires_at <= p_now, false),
                'age_seconds', greatest(0, extract(epoch from p_now - b.sealed_at))::bigint)
                order by d.position, d.delivery_id), '[]')
            from (
                select * from jobs.email_deliveries
                where delivery_id = any (mine) and status = 'planned' and batches is null
                union all
                -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
                select * from jobs.email_deliveries where batch_id = batches[1] and status = 'sealed'
            ) d
            left join jobs.job_items i on i.item_id = d.item_id
            left join jobs.email_batches b on b.batch_id = d.batch_id
            -- A fence (offset 0): of all people only these.
            left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
            left join lateral jobs.month_books(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')) m
                on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
            left join lateral jobs.tax_profiles(array[d.user_id]) t
                on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
            left join lateral (     -- the mail's month, with those before it in its quarter for what is to be declared
                select array_agg(g.month::date order by g.month) as months
                from to_date(d.facts ->> 'month', 'YYYY-MM') as o (month) cross join generate_series(
                    case d.kind when 'definitive_month' then o.month else date_trunc('quarter', o.month)::date end,
                    o.month, '1 month') as g (month)
            ) q on d.kind in ('monthly_reminder', 'definitive_month') and d.status = 'planned'
            left join lateral (     -- of who has an integration: what these months lack, and where that is something
                select jsonb_agg(l.lacks order by o.place) filter (where l.lacks @> '{"in_books": true}'
                        and not l.lacks @> '{"maybe_twice": 0, "passed_on": 0, "partial": false}'
                        or l.lacks @> '{"in_books": true}' and l.lacks -> 'unread' <> '[]') as incomplete,
                    (array_agg(l.lacks order by o.place desc))[1] as of_month
                from unnest(q.months) with ordinality as o (month, place)
                cross join lateral (select jobs.month_lacks(d.user_id, o.month, p_now) as lacks offset 0) l
            ) w on q.months is not null and exists (select from public.integration_tokens t where t.user_id = d.user_id)
            left join lateral (
                select jobs.definitive_month(d.user_id, q.months[cardinality(q.months)], w.of_month) as told,
                    jobs.uncounted_currencies(d.user_id, q.months) as uncounted
            ) f on q.months is not null
            left join lateral (     -- no longer than a mail may be
                select jobs.year_to_date(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM'), coalesce(
                    date_trunc('month', t.created)::date,
                    (select min(c.first_month) from jobs.integration_state c where c.user_id = d.user_id))) as to_date
            ) y on d.kind = 'monthly_recap' and d.status = 'planned'
            left join lateral jobs.turnover_before_creation(d.user_id, t.created) as z (first)
                on d.kind = 'monthly_recap' and d.status = 'planned'
                    and left(d.facts ->> 'month', 4) = to_char(t.created, 'YYYY')
            left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
                select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                    'imported', q.imported) order by q.month), '[]') as months
                from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
            ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
    exception when query_canceled then
        -- Fewer are asked for. One alone is named and may be put off, and the others leave.
        if cardinality(mine) is distinct from 1 or batches is not null then
            raise;
        end if;
        return jsonb_build_object('mails', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient, 'attempts', i.attempts,
                'facts', '{}'::jsonb, 'expired', coalesce(d.expires_at <= p_now, false), 'too_slow', true)), '[]')
            from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
            where d.delivery_id = mine[1] and d.status = 'planned'));
    end;
end $$;

-- Its rights, as 90_rights.sql gives them.
revoke all on function jobs.turnover_before_creation from public, anon, authenticated, service_role;

-- Lets one holder at a time refresh a shop's token. A repeated call by the holder keeps the lease.
--   {acquired, access_token, refresh_token, elsewhere}: the pair as stored now, which another holder may just have
--   renewed; elsewhere: another user has connected the same account since, and both proved it
create or replace function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null then
        return jsonb_build_object('acquired', false, 'gone', true);
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder and s.refresh_lease_until > clock_timestamp() then
        return jsonb_build_object('acquired', false);
    end if;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    if jobs.readable_identifier(t.access_token) is null then
        return jsonb_build_object('acquired', false);  -- too long to be one; the next claim says so
    end if;
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token,
        'refresh_token', jobs.readable_identifier(t.refresh_token),
        'elsewhere', s.account is not distinct from jobs.claimed_account(t) and exists (
            select from public.integration_tokens o
            join jobs.integration_state k on k.user_id = o.user_id and k.provider = o.provider
            where o.provider = t.provider and o.user_id <> t.user_id and o.is_active
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = s.account
                and k.account = s.account and k.proof = jobs.token_fingerprint(o) and k.proven_at > s.proven_at));
end $$;

commit;
