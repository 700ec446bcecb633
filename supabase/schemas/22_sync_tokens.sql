-- What a worker needs to read from a provider: tokens as stored, their proof, their renewal.

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to}]
create function public.integration_context(p_items bigint[]) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'item_id', i.item_id, 'integration_id', t.id, 'user_id', t.user_id, 'provider', t.provider,
        'access_token', coalesce(jobs.readable_identifier(t.access_token), ''),
        'refresh_token', jobs.readable_identifier(t.refresh_token),
        'stripe_account_id', jobs.readable_identifier(t.stripe_account_id),
        'shop_domain', jobs.readable_identifier(t.shop_domain),
        'proven_account', case when s.proof = jobs.token_fingerprint(t) then s.account end,
        'token_expires_at', case when s.proof = jobs.token_fingerprint(t) then s.token_expires_at end,
        -- Another account than the one read before has a history of its own: nothing of it was read yet.
        'last_success_to', case when s.account = jobs.claimed_account(t) then s.last_success_to end) order by i.item_id, t.provider), '[]')
    from jobs.job_items i
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select * from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select * from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where i.item_id = any (p_items) and t.is_active;
$$;

-- Notes that the stored token opens exactly p_account.
create function public.integration_prove(p_integration_id uuid, p_access_token text, p_account text) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state as s (user_id, provider, account, proof, proven_at)
    values (t.user_id, t.provider, p_account, jobs.token_fingerprint(t), clock_timestamp())
    on conflict (user_id, provider) do update set
        account = excluded.account, proof = excluded.proof, proven_at = excluded.proven_at,
        -- Another account: nothing of it has been read.
        covered = case when s.account is distinct from excluded.account then '{}' else s.covered end,
        last_success_to = case when s.account is distinct from excluded.account then null else s.last_success_to end,
        token_expires_at = case when s.account is not distinct from excluded.account then s.token_expires_at end,
        refresh_token_expires_at =
            case when s.account is not distinct from excluded.account then s.refresh_token_expires_at end,
        updated_at = clock_timestamp();
    return jsonb_build_object('proven', true);
end $$;

-- Lets one holder at a time refresh a shop's token. A repeated call by the holder keeps the lease.
--   {acquired, access_token, refresh_token, elsewhere}: the pair as stored now, which another holder may just have
--   renewed; elsewhere: another user has connected the same account since, and both proved it
create function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null then
        return jsonb_build_object('acquired', false, 'gone', true);
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder and s.refresh_lease_until > clock_timestamp() then
        return jsonb_build_object('acquired', false);
    end if;
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token, 'refresh_token', t.refresh_token,
        'elsewhere', s.account is not distinct from jobs.claimed_account(t) and exists (
            select from public.integration_tokens o
            join jobs.integration_state k on k.user_id = o.user_id and k.provider = o.provider
            where o.provider = t.provider and o.user_id <> t.user_id and o.is_active
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = s.account
                and k.account = s.account and k.proof = jobs.token_fingerprint(o) and k.proven_at > s.proven_at));
end $$;

-- Stores the renewed pair (encrypted) before anybody uses it. Only the holder may; p_old_access_token guards
-- against a reconnection in between. A proof of the old token is one of the new token: it is the same grant.
create function public.integration_refresh_store(
    p_integration_id uuid, p_holder uuid, p_old_access_token text, p_access_token text, p_refresh_token text,
    p_expires_at timestamptz, p_refresh_expires_at timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    was_proven boolean;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder then
        return jsonb_build_object('stored', false, 'reason', 'lost');
    end if;
    select * into t from public.integration_tokens where id = p_integration_id for update;
    if t.access_token = p_access_token then
        return jsonb_build_object('stored', true);   -- a repeated call
    end if;
    if t.access_token <> p_old_access_token then
        return jsonb_build_object('stored', false, 'reason', 'reconnected');
    end if;
    was_proven := s.proof = jobs.token_fingerprint(t);
    update public.integration_tokens
    set access_token = p_access_token, refresh_token = p_refresh_token, updated_at = clock_timestamp()
    where id = p_integration_id returning * into t;
    update jobs.integration_state
    set proof = case when was_proven then jobs.token_fingerprint(t) else proof end,
        token_expires_at = p_expires_at, refresh_token_expires_at = p_refresh_expires_at,
        updated_at = clock_timestamp()
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('stored', true);
end $$;

-- Ends a refresh; the next holder may start.
create function public.integration_refresh_end(p_integration_id uuid, p_holder uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    update jobs.integration_state s set refresh_lease = null, refresh_lease_until = null
    from public.integration_tokens t
    where t.id = p_integration_id and s.user_id = t.user_id and s.provider = t.provider and s.refresh_lease = p_holder;
$$;
