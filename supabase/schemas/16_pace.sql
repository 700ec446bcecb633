-- A provider's rate limit holds for the account, not for an instance: instances lease turns from here.

create table jobs.job_paces (
    name text primary key,                       -- stripe, resend
    next_at timestamptz not null,                -- the first turn that nobody has
    version bigint not null default 0,           -- of what is learned: what was decided from an older one is not stored
    learned jsonb,                               -- the pace that instances have found out; null: none yet
    since timestamptz,                           -- when it was stored, or last looked at
    answered integer not null default 0,         -- requests of this version that were answered since
    held_until timestamptz                       -- no turn comes before: the provider has said so
);

-- Leases p_count turns, p_interval_us apart, to who knows p_version of what is learned; to nobody else. Answers in how
-- many microseconds the first one comes, and what is known. A repeated call leases others and counts p_answered again:
-- nobody takes the first ones, and nothing is asked too fast.
create function public.jobs_lease_turns(
    p_name text, p_count integer, p_interval_us integer, p_version bigint, p_answered integer
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    span interval := make_interval(secs => p_count::double precision * p_interval_us / 1000000);
    pace jobs.job_paces;
    now_at timestamptz;
    earliest timestamptz;
    first_turn timestamptz;
begin
    insert into jobs.job_paces as p (name, next_at, since)
    values (p_name, clock_timestamp(), clock_timestamp())
    on conflict (name) do update
        set answered = p.answered + case when p.version = p_version then p_answered else 0 end
    returning * into pace;
    now_at := clock_timestamp();
    if pace.version = p_version then
        -- What an earlier lease left far ahead (a changed clock) is not waited for; what the provider has asked for is.
        earliest := greatest(now_at, pace.held_until);
        first_turn := least(greatest(pace.next_at, earliest), earliest + interval '2 minutes');
        update jobs.job_paces set next_at = first_turn + span where name = p_name;
    end if;
    return jsonb_build_object(
        'wait_us', ceil(extract(epoch from first_turn - now_at) * 1000000)::bigint,
        'version', pace.version,
        'learned', pace.learned,
        'window_us', greatest(0, ceil(extract(epoch from now_at - coalesce(pace.since, now_at)) * 1000000))::bigint,
        'answered', pace.answered);
end $$;

-- Stores what was decided from p_version, unless another one is known by now; answers what is known then. The same pace
-- again begins to count anew. A repeated call finds its own and answers it.
create function public.jobs_learn_pace(p_name text, p_version bigint, p_learned jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    update jobs.job_paces
    set version = version + case when learned is distinct from p_learned then 1 else 0 end,
        learned = p_learned, since = clock_timestamp(), answered = 0
    where name = p_name and version = p_version;
    return (select jsonb_build_object('version', version, 'learned', learned)
        from jobs.job_paces where name = p_name);
end $$;

-- The provider has said that it is asked too fast: no turn comes before this is over, however long it is.
create function public.jobs_hold_turns(p_name text, p_wait_ms integer) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into jobs.job_paces as p (name, next_at, held_until)
    select p_name, h.until, h.until
    from (select clock_timestamp() + make_interval(secs => p_wait_ms / 1000.0) as until) h
    on conflict (name) do update
        set next_at = greatest(p.next_at, excluded.next_at), held_until = greatest(p.held_until, excluded.held_until);
$$;
