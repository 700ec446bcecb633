-- What waits without its message is looked for at once, however much waits. Functions only: no table is locked, no row
-- is read or changed. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Gives each queued item of a lane a message where it has none: its queue was purged, or restored without it. What a living
-- worker holds is left to it. Never by loops: statistics know nothing yet of what was just planned. Call alone: see
-- jobs_reconcile.
create or replace function jobs.restore_messages(p_lane text) returns integer
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

commit;
