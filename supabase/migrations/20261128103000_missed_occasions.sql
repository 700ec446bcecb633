-- A missed 2nd or last day is made up by later crons: what they ask. Locks nothing. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

-- Whether nobody has taken this slot, although this installation was at work before it opened (p_opens): then a later
-- cron makes it up. What was due before anything ever ran here is owed to nobody.
create function public.jobs_slot_missed(p_task text, p_slot text, p_opens timestamptz) returns boolean
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select not exists (select from jobs.job_slots s where s.task = p_task and s.slot = p_slot)
        and (exists (select from jobs.job_runs r where r.finished_at < p_opens)
            -- Not ended yet. A replay works for an instant at which nothing ran.
            or exists (select from jobs.job_runs r
                where r.finished_at is null and r.as_of < p_opens and r.trigger <> 'replay'));
$$;

revoke all on function public.jobs_slot_missed from public, anon, authenticated, service_role;
grant execute on function public.jobs_slot_missed to service_role;

commit;
