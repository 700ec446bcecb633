-- The status page knows the refusal of a permanent token.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

create or replace function jobs.status_integrations(p_limit integer, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.id, t.user_id, t.provider, u.email::text as address, coalesce(s.failures, 0) as failures,
            s.failed_at, s.failure, s.last_success_at, t.connected_at,
            case
                when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
                when s.failures > 0 then 'failing'
                when s.last_success_at is null then 'new'
                when s.last_success_at < p_late_before then 'late'
                else 'good' end as state
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    )
    select jsonb_build_object(
        'states', (select coalesce(jsonb_agg(n order by n.provider, n.state), '[]') from (
            select k.provider, k.state, count(*) as count from known k group by 1, 2) n),
        'broken_total', (select count(*) from known k where k.state = 'failing'),
        'doubted_lists', jobs.doubted_lists(),
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', left(b.failure ->> 'code', 80), 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        -- They die on 1 January 2027, but for those of custom applications.
        'shopify_permanent', (select count(*) from known k join public.integration_tokens t on t.id = k.id
            where k.provider = 'shopify' and k.state <> 'inactive' and jobs.is_blank(t.refresh_token)),
        'shopify_renewed', (select max(s.token_expires_at) > p_now
            from jobs.integration_state s where s.provider = 'shopify'),
        'refused_credentials', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'at', r.at, 'code', r.code, 'message', r.message)), '[]') from (
            select max(l.synced_at) as at, p.problem ->> 'code' as code,
                jobs.mask_text(p.problem ->> 'message') as message
            from public.sync_logs l
            cross join lateral jsonb_path_query(l.metadata,
                '$.answer.**.problems[*] ? (@.code == "own_credentials" || @.code == "own_permission"
                    || @.code == "app_not_approved" || @.code == "permanent_token")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

commit;
