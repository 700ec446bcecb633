-- Signing in to the status page, and out.

-- Tries to sign in with the secret that did not succeed (or not yet).
create table jobs.job_sign_ins (
    try_id uuid primary key,
    tried_at timestamptz not null,
    address text not null                            -- a keyed hash of it: nobody can read an address back
);

-- How often somebody has signed out. A session carries the number of its beginning and is worth nothing under another.
create table jobs.job_sign_outs (
    single boolean primary key default true check (single),
    epoch bigint not null
);
insert into jobs.job_sign_outs (epoch) values (0);

-- Counts a try before the secret is looked at, so that no number of them at once passes the limits: p_most of an
-- address and p_most_together of all, in p_seconds. A repeated call counts once. Tries that are older are deleted. One
-- that another instance's clock puts later than p_now counts.
--   {allowed, retry_after: seconds, epoch}
create function public.jobs_sign_in(
    p_try uuid, p_address text, p_most integer, p_most_together integer, p_seconds integer, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '5s' as $$
declare
    span constant interval := make_interval(secs => p_seconds);
    epoch constant bigint := (select s.epoch from jobs.job_sign_outs s);
    free_at timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.sign_ins', 0));
    delete from jobs.job_sign_ins where tried_at <= p_now - span;
    if exists (select from jobs.job_sign_ins where try_id = p_try) then
        return jsonb_build_object('allowed', true, 'epoch', epoch);
    end if;
    -- Of so many tries as are allowed the oldest: when it is over, there is room.
    free_at := greatest(
        (select t.tried_at from jobs.job_sign_ins t where t.address = p_address
         order by t.tried_at desc offset p_most - 1 limit 1),
        (select t.tried_at from jobs.job_sign_ins t
            order by t.tried_at desc offset p_most_together - 1 limit 1)) + span;
    if free_at is not null then
        return jsonb_build_object('allowed', false,
            'retry_after', greatest(1, ceil(extract(epoch from free_at - p_now)))::integer);
    end if;
    insert into jobs.job_sign_ins (try_id, address, tried_at) values (p_try, p_address, p_now);
    return jsonb_build_object('allowed', true, 'epoch', epoch);
end $$;

-- The secret was right: this try does not count.
create function public.jobs_signed_in(p_try uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    delete from jobs.job_sign_ins where try_id = p_try;
$$;

-- The number that a session must carry now.
create function public.jobs_session_epoch() returns bigint
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select s.epoch from jobs.job_sign_outs s;
$$;

-- Ends every session that carries p_epoch or less. A repeated call ends nothing that began since.
create function public.jobs_sign_out(p_epoch bigint) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    update jobs.job_sign_outs set epoch = p_epoch + 1 where epoch <= p_epoch;
$$;
