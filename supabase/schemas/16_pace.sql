-- A provider's rate limit holds for the account, not for an instance: instances lease turns from here.

create table jobs.job_paces (
    name text primary key,                       -- stripe, resend
    next_at timestamptz not null                 -- the first turn that nobody has
);

-- Leases p_count turns, p_interval_ms apart. Answers in how many milliseconds the first one comes. A repeated call
-- leases others: nobody takes the first ones, and nothing is asked too fast.
create function public.jobs_lease_turns(p_name text, p_count integer, p_interval_ms integer) returns bigint
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    first_turn timestamptz;
begin
    insert into jobs.job_paces as p (name, next_at)
    values (p_name, clock_timestamp() + make_interval(secs => p_count * p_interval_ms / 1000.0))
    on conflict (name) do update
        -- What an earlier lease left far ahead (a changed clock) is not waited for.
        set next_at = least(greatest(p.next_at, clock_timestamp()), clock_timestamp() + interval '2 minutes')
            + make_interval(secs => p_count * p_interval_ms / 1000.0)
    returning p.next_at - make_interval(secs => p_count * p_interval_ms / 1000.0) into first_turn;
    return greatest(0, ceil(extract(epoch from first_turn - clock_timestamp()) * 1000))::bigint;
end $$;

-- The provider has said that it is asked too fast: no turn comes before this is over.
create function public.jobs_hold_turns(p_name text, p_wait_ms integer) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into jobs.job_paces as p (name, next_at)
    values (p_name, clock_timestamp() + make_interval(secs => p_wait_ms / 1000.0))
    on conflict (name) do update set next_at = greatest(p.next_at, excluded.next_at);
$$;
