-- Where nothing of a user is read any more, the books say what the month of the disconnection lacks.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Lets the books say what the last month of disconnected integrations lacks, of users of whom nothing is read any more: with
-- each other one its next sync does so. So many users at most, those that nobody works on. Answers how many.
create or replace function jobs.end_months(p_most integer, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    one record;
    ended integer := 0;
begin
    for one in
        with gone as materialized (
            select s.user_id, date_trunc('month', greatest(s.last_success_to, s.last_success_at, s.failed_at)
                at time zone 'Europe/Paris')::date as month
            from jobs.integration_state s
            where s.counted <> '{}' and not exists (
                select from public.integration_tokens t where t.user_id = s.user_id and t.is_active)
        )
        select g.user_id, array_agg(distinct g.month) as months
        from gone g
        join jobs.auto_sync_totals l on l.user_id = g.user_id and l.month = g.month and l.locked_at is null
        join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
        -- Ours is short.
        where pg_column_size(r.metadata) < 10000 and r.metadata ->> 'status' = 'provisional'
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
create or replace function public.jobs_reconcile(p_route text, p_now timestamptz) returns jsonb
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

revoke all on function jobs.end_months from public, anon, authenticated, service_role;

commit;
