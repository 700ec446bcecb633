-- What was lost comes back: work without its message, mails that came back and may now arrive.

-- Gives each queued item of a lane a message where it has none: its queue was purged, or restored without it. What a living
-- worker holds is left to it. Never by loops: statistics know nothing yet of what was just planned. Call alone: see
-- jobs_reconcile.
create function jobs.restore_messages(p_lane text) returns integer
language plpgsql set search_path = '' set enable_nestloop = off set jit = off as $$
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
-- has taken it off its list. Of each mail once, as long as what it says is news and still true, and told by no other.
create function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
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
                            and a.threshold = c.threshold and a.step = c.step and a.run_id = d.run_id
                            and a.withdrawn_at is null)
                    union all
                    select from jsonb_array_elements_text(d.facts -> 'consequences') as c (name)
                    where not exists (select from jobs.told_consequences a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.consequence = c.name and a.run_id = d.run_id and a.withdrawn_at is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Takes back that these alerts were told, for nobody has read them: what was told before stands again as it did then. Their
-- users are checked next, and get by a key of its own (jobs_plan_alerts) what their year says by then, or nothing.
create function jobs.untell_alerts(p_deliveries bigint[], p_now timestamptz) returns void
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
    -- What followed was said by the same mails.
    perform from jobs.told_consequences c join jobs.email_deliveries d on d.user_id = c.user_id and d.run_id = c.run_id
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
    order by c.user_id, c.year, c.consequence for update of c;
    delete from jobs.told_consequences c using jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
        and c.user_id = d.user_id and c.run_id = d.run_id and c.times = 1;
    update jobs.told_consequences c set times = c.times - 1, withdrawn_at = p_now
    from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.facts -> 'year' = to_jsonb(c.year)
        and c.user_id = d.user_id and c.run_id = d.run_id and c.withdrawn_at is null;
    insert into jobs.threshold_checks_due as k (user_id)
    select distinct d.user_id from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and d.user_id is not null order by 1
    on conflict (user_id) do update set since = excluded.since;
end $$;

-- Queues the second attempts whose time has come. Answers how many.
create function jobs.queue_put_off_mails(p_now timestamptz) returns integer
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

-- Plans them once more, in a run for each kind, under a key of their own; of alerts see untell_alerts. Answers how many. Under
-- the ledger's lock: an operator who sends the same mails again (jobs_resend_mails) waits, and then finds them gone.
create function jobs.plan_moved_mails(p_route text, p_now timestamptz) returns integer
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

-- Lets the books say what the last month of disconnected integrations lacks, of users of whom nothing is read any more: with
-- each other one its next sync does so. So many users at most, those that nobody works on; the last ones to disconnect, since
-- of the others it is said already. Answers how many. By their keys: a join would read all books.
create function jobs.end_months(p_most integer, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    one record;
    ended integer := 0;
begin
    for one in
        with gone as materialized (
            select s.user_id, date_trunc('month', e.seen at time zone 'Europe/Paris')::date as month
            from jobs.integration_state s
            cross join lateral (select greatest(s.last_success_to, s.last_success_at, s.failed_at) as seen) e
            where s.counted <> '{}' and e.seen > p_now - interval '62 days' and not exists (
                select from public.integration_tokens t where t.user_id = s.user_id and t.is_active)
        )
        select g.user_id, array_agg(distinct g.month) as months
        from gone g
        cross join lateral (
            select true from jobs.auto_sync_totals l
            join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
            where l.user_id = g.user_id and l.month = g.month and l.locked_at is null
                -- Ours is short.
                and pg_column_size(r.metadata) < 10000 and r.metadata ->> 'status' = 'provisional'
            limit 1) p
        group by 1 order by 1 limit p_most
    loop
        continue when not pg_try_advisory_xact_lock(
            hashtextextended('comptalyze.jobs.user/' || one.user_id::text, 0));
        perform from auth.users u where u.id = one.user_id for key share skip locked;
        continue when not found;     -- is being deleted
        perform jobs.recompute_totals(one.user_id, one.months, p_now);
        ended := ended + 1;
    end loop;
    return ended;
end $$;

-- Brings back what was lost; one at a time, for two would bring it back twice. A repeated call finds nothing more. Of alerts
-- that were found and not planned one part; `unplanned` says that the next call finds more. Months of who has disconnected
-- everything are ended (end_months).
--   {messages, mails, unplanned}
create function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    lane record;
    messages integer := 0;
    mails integer;
    run uuid;
    most_ended constant integer := 50;      -- some milliseconds each
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
    mails := jobs.plan_moved_mails(p_route, p_now) + jobs.queue_put_off_mails(p_now);
    -- Last: it waits for no user's lock, and nobody who holds one waits for ours.
    perform jobs.end_months(most_ended, p_now);
    return jsonb_build_object('messages', messages, 'mails', mails,
        'unplanned', run is not null and jobs.run_with_found_alerts() is not null);
end $$;

-- After a backup was restored: settles what waits as of unknown outcome, for it may have left before. Only for an operator, in
-- the SQL editor, while no key lets mails leave (see docs/RUNBOOK.fr.md). What is sealed stays: it is sent again under its
-- own key, which the mail service remembers for a day. Answers how many were settled.
create function jobs.give_up_waiting_mails(p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    why constant text := 'Peut-être envoyé après la sauvegarde qui a été restaurée.';
    given_up bigint[];
begin
    perform jobs.lock_mail_ledger();
    with settled as (
        update jobs.email_deliveries d set status = 'unknown', reason = why, settled_at = p_now
        where d.status = 'planned' returning d.delivery_id, d.kind, d.user_id
    ), offers as (
        insert into public.marketing_emails (user_id, email_type, sent_at)
        select s.user_id, 'upgrade_day3', p_now from settled s
        where s.kind = 'marketing_day3' and s.user_id is not null order by s.user_id
        on conflict (user_id, email_type) do nothing
    )
    select array_agg(s.delivery_id order by s.delivery_id) into given_up from settled s;
    update jobs.job_items i
    set status = 'failed', result = jsonb_build_object('user_id', i.user_id, 'mail', 'unknown', 'reason', why),
        error = jsonb_build_object('code', 'unknown_outcome', 'message', why),
        lease_id = null, leased_until = null, settled_at = p_now
    from jobs.known_lanes() l
    where l.is_mail and i.lane = l.lane and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = any (given_up);
    -- Their messages go with the next claim, which finds them without an item that is queued.
    return coalesce(cardinality(given_up), 0);
end $$;
