-- Tries to sign in to the status page.

-- Tries to sign in with the secret that did not succeed (or not yet).
create table jobs.job_sign_ins (
    try_id uuid primary key,
    tried_at timestamptz not null default clock_timestamp()
);

-- Counts a try before the secret is looked at, so that no number of them at once passes the limit: p_most in
-- p_seconds, for everybody together. A repeated call counts once.
--   {allowed, retry_after: seconds}
create function public.jobs_sign_in(p_try uuid, p_most integer, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '5s' as $$
declare
    span constant interval := make_interval(secs => p_seconds);
    tries integer;
    oldest timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.sign_ins', 0));
    delete from jobs.job_sign_ins where tried_at < clock_timestamp() - span;
    if exists (select from jobs.job_sign_ins where try_id = p_try) then
        return jsonb_build_object('allowed', true);
    end if;
    select count(*), min(tried_at) into tries, oldest from jobs.job_sign_ins;
    if tries >= p_most then
        return jsonb_build_object('allowed', false,
            'retry_after', greatest(1, ceil(extract(epoch from oldest + span - clock_timestamp())))::integer);
    end if;
    insert into jobs.job_sign_ins (try_id) values (p_try);
    return jsonb_build_object('allowed', true);
end $$;

-- The secret was right: this try does not count.
create function public.jobs_signed_in(p_try uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    delete from jobs.job_sign_ins where try_id = p_try;
$$;
