-- One chain of drain-queue invocations at a time.

create table jobs.job_chain (                  -- at most one row
    id boolean primary key check (id),
    chain_id uuid not null,
    held_until timestamptz not null
);

-- Takes the chain for p_seconds, where nobody has it or its time is over. The holder calls again, with its own id, to
-- keep it. Answers whether p_chain has it.
create function public.jobs_hold_chain(p_chain uuid, p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.job_chain as c (id, chain_id, held_until)
    values (true, p_chain, clock_timestamp() + make_interval(secs => p_seconds))
    on conflict (id) do update set chain_id = excluded.chain_id, held_until = excluded.held_until
    where c.chain_id = p_chain or c.held_until < clock_timestamp();
    return found;
end $$;
