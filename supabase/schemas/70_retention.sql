-- How long what is kept.

-- Deletes what is older than p_before: logs, events, finished runs and their items. Ledgers stay, without what is
-- personal of those settled before p_personal_before. What is personal of users who are gone goes at once, but for a
-- batch that was sealed later than p_sealed_until: it may be sent again as sealed.
--
-- The oldest first, at most 20,000 rows per table a call, so that it never takes long; left says that there is more:
-- call again. Waits for nobody: what is locked just now has time.
--
-- Rows go by where they were found (ctid): looking them up again would read the index of all logs, at random.
--   {logs, items, runs, events, blanked, left}
create function public.jobs_prune(
    p_before timestamptz, p_personal_before timestamptz, p_sealed_until timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    max_rows_per_table constant integer := 20000;
    logs integer;
    items integer;
    runs integer;
    events integer;
    blanked integer;
    of_old integer;
begin
    delete from public.sync_logs where ctid = any (array(
        select l.ctid from public.sync_logs l where l.synced_at < p_before order by l.synced_at limit max_rows_per_table
        for update skip locked));
    get diagnostics logs = row_count;
    delete from jobs.job_items where ctid = any (array(
        select i.ctid
        from (select run_id from jobs.job_runs
            where finished_at < p_before order by finished_at limit max_rows_per_table) r
        -- In the order of an index (here and below): else the whole table may seem quicker.
        cross join lateral (select ctid from jobs.job_items where run_id = r.run_id order by kind, subject
            limit max_rows_per_table for update skip locked) i
        limit max_rows_per_table));
    get diagnostics items = row_count;
    delete from jobs.job_runs where ctid = any (array(
        select r.ctid
        from (select ctid, run_id from jobs.job_runs
            where finished_at < p_before order by finished_at limit max_rows_per_table for update skip locked) r
        left join lateral (select true as one from jobs.job_items where run_id = r.run_id order by kind, subject
            limit 1) i on true
        where i.one is null));
    get diagnostics runs = row_count;
    delete from jobs.email_events where ctid = any (array(
        select e.ctid from jobs.email_events e
        where e.received_at < p_before order by e.received_at limit max_rows_per_table for update skip locked));
    get diagnostics events = row_count;
    -- Few, and of no use after some minutes; nobody may have tried since.
    delete from jobs.job_sign_ins where tried_at < p_now - interval '1 day';
    -- What is personal of those who are gone: at once, but for a batch that may be sent again as sealed. Their items
    -- went with them, so nobody else ends what was still open. (The operator's digest never had a user.)
    with ended as (
        update jobs.email_deliveries d
        set address = null, facts = '{}',
            status = case d.status when 'planned' then 'skipped' when 'sealed' then 'unknown' else d.status end,
            reason = case when d.status in ('planned', 'sealed') then 'user_deleted' else d.reason end,
            settled_at = coalesce(d.settled_at, p_now)
        where d.delivery_id = any (array(
            select g.delivery_id from jobs.email_deliveries g
            where g.user_id is null and g.kind <> 'operator_digest'
                and (g.address is not null or g.facts <> '{}' or g.status in ('planned', 'sealed'))
                and (g.status <> 'sealed' or exists (select from jobs.email_batches b
                    where b.batch_id = g.batch_id and b.sealed_at <= p_sealed_until))
            limit max_rows_per_table for update of g skip locked))
        returning d.delivery_id, d.batch_id
    ), batches as (
        update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
        where b.state = 'sealed' and b.batch_id in (select e.batch_id from ended e)
            and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed'
                and d.delivery_id not in (select e.delivery_id from ended e))
    )
    select count(*) into blanked from ended;
    -- Of the others after 13 months.
    update jobs.email_deliveries set address = null, facts = '{}' where delivery_id = any (array(
        select d.delivery_id from jobs.email_deliveries d
        where (d.address is not null or d.facts <> '{}') and d.settled_at < p_personal_before
        order by d.settled_at limit max_rows_per_table for update skip locked));
    get diagnostics of_old = row_count;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs, 'events', events,
        'blanked', blanked + of_old, 'left', max_rows_per_table in (logs, items, runs, events, blanked, of_old));
end $$;
