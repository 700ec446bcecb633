-- The months of who has disconnected everything are found by their keys.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Lets the books say what the last month of disconnected integrations lacks, of users of whom nothing is read any more: with
-- each other one its next sync does so. So many users at most, those that nobody works on; the last ones to disconnect, since
-- of the others it is said already. Answers how many. By their keys: a join would read all books.
create or replace function jobs.end_months(p_most integer, p_now timestamptz) returns integer
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

commit;
