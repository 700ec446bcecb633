-- What a worker needs to read from a provider: tokens as stored, their proof, their renewal.

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to, deep_read_to, books_from: the first month's first instant,
--     covered_from: since when everything was read up to the month that is asked for; null: nothing before it was,
--     open: [{id, listed_at}]: payments on their way, the oldest hundred; what only an order told, the latest twenty}]
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
        'last_success_to', case when s.account = jobs.claimed_account(t) then s.last_success_to end,
        'deep_read_to', case when s.account = jobs.claimed_account(t) then s.deep_read_to end,
        'books_from', coalesce(case when s.account = jobs.claimed_account(t) then s.first_month end,
            jobs.first_month(t.connected_at, least(case when s.claimed =
                    case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end then s.claimed_at end,
                r.as_of), r.as_of))::timestamp at time zone 'Europe/Paris',
        -- Not within the query: there the row would be read as a whole.
        'covered_from', case when i.kind = 'sync_month' and s.account = jobs.claimed_account(t) then (
            select min(lower(c)) from unnest(s.covered) c
            cross join lateral (select case when i.payload ->> 'month' ~ '^\d{4}-(0[1-9]|1[0-2])$' then
                to_date(i.payload ->> 'month', 'YYYY-MM')::timestamp at time zone 'Europe/Paris' end as starts) m
            where lower(c) < m.starts and upper(c) >= m.starts) end,
        'open', (select coalesce(jsonb_agg(jsonb_build_object('id', o.external_id, 'listed_at', o.listed_at)), '[]') from (
            (select x.external_id, coalesce(x.listed_at, x.occurred_at) as listed_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'pending' and x.account = s.account
            order by 2, 1 limit 100)
            union all
            (select x.external_id, x.occurred_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'unlisted_payment'
                and x.account = s.account
            order by 2 desc, 1 limit 20)) o)) order by i.item_id, t.provider), '[]')
    from jobs.job_items i
    join jobs.job_runs r on r.run_id = i.run_id
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select k.id from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select k.id from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) f
    join public.integration_tokens t on t.id = f.id
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    -- A row that is another's by now is read for its owner, by an item of theirs.
    where i.item_id = any (p_items) and t.is_active and t.user_id = i.user_id;
$$;

-- Notes that the stored token opens exactly p_account. Where another account was connected before, its books are put
-- aside, and those of this one taken up again, should it have been connected once. p_all_orders: whether the token
-- reads orders of any age; null where the provider did not tell.
create function public.integration_prove(
    p_integration_id uuid, p_access_token text, p_account text, p_all_orders boolean
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    f jobs.former_accounts;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state k where k.user_id = t.user_id and k.provider = t.provider for update;
    if s.account is distinct from p_account then
        s.claimed_at := case when s.claimed = p_account then s.claimed_at end;
        -- Proven again and not read since, it has its books from before.
        s.first_month := coalesce(s.first_month, lower(coalesce(s.counted_before, s.counted)));
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out, activity_said_by, counted_before)
            -- Until the month in which the other account was connected, as far as that is believed (see first_month), which
            -- is none before this one was last read.
            select t.user_id, t.provider, s.account, s.activity, s.first_month, s.counted * m.until, s.covered,
                s.last_success_to, r.at, s.left_out, s.activity_said_by, s.counted_before * m.until
            from (select greatest(case when t.connected_at between s.claimed_at - interval '31 days' and s.claimed_at
                    then t.connected_at else s.claimed_at end,
                s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
            cross join lateral (select datemultirange(daterange(null, (date_trunc('month', r.at at time zone 'Europe/Paris')
                + interval '1 month')::date)) as until) m
            on conflict (user_id, provider, account) do update set
                activity = excluded.activity, first_month = excluded.first_month, counted = excluded.counted,
                covered = excluded.covered, last_success_to = excluded.last_success_to, replaced_at = excluded.replaced_at,
                left_out = excluded.left_out, activity_said_by = excluded.activity_said_by,
                counted_before = excluded.counted_before;
        end if;
        delete from jobs.former_accounts k
        where k.user_id = t.user_id and k.provider = t.provider and k.account = p_account returning * into f;
        update jobs.integration_state k set
            account = p_account, activity = f.activity, activity_said_by = f.activity_said_by, left_out = false,
            -- Connected again, one that was out of the books has the months that it had.
            first_month = null, counted = coalesce(f.counted_before, f.counted, '{}'),
            covered = coalesce(f.covered, '{}'), last_success_to = f.last_success_to, deep_read_to = null, all_orders = null,
            doubted = '{}', counted_before = null, token_expires_at = null, refresh_token_expires_at = null
        where k.user_id = t.user_id and k.provider = t.provider;
    end if;
    update jobs.integration_state k set
        proof = jobs.token_fingerprint(t), all_orders = coalesce(p_all_orders, k.all_orders),
        proven_at = clock_timestamp(), updated_at = clock_timestamp()
    where k.user_id = t.user_id and k.provider = t.provider;
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
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    if jobs.readable_identifier(t.access_token) is null then
        return jsonb_build_object('acquired', false);  -- too long to be one; the next claim says so
    end if;
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token,
        'refresh_token', jobs.readable_identifier(t.refresh_token),
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
