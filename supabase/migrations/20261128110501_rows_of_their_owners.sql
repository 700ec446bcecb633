-- A row of integration_tokens is read by an item of its present owner only. What a user has stored is not read where its
-- size says already that it is no token, no plan and no name.
--
-- Locks: nothing but the functions' own rows of the catalogue. A second time it is refused and
-- changes nothing.

begin;
set local lock_timeout = '5s';

create function jobs.is_blank(p_text text) returns boolean
language sql immutable as $$
    select p_text is null or (octet_length(p_text) <= 2048 and btrim(p_text) = '');
$$;

create or replace function jobs.claimed_account(t public.integration_tokens) returns text
language sql immutable as $$
    select case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end;
$$;

create or replace function jobs.token_fingerprint(t public.integration_tokens) returns text
language sql stable as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(t.stripe_account_id, '') || '|' || coalesce(t.shop_domain, '') || '|'
            || coalesce(jobs.readable_identifier(t.access_token), ''), 'UTF8')), 'hex');
$$;

create or replace view jobs.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at, u.banned_until,
        nullif(left(split_part(btrim(left(p.full_name, 400)), ' ', 1), 40), '') as first_name,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.is_anonymous then 'anonymous'
            when coalesce(btrim(u.email), '') = '' then 'no_address'
            when u.email_confirmed_at is null then 'unconfirmed'
            when s.address_hash is not null then 'suppressed'
        end as unreachable,
        coalesce(e.monthly_reminder, false) as wants_reminder,
        coalesce(e.monthly_recap_email, true) as wants_recap,
        coalesce(e.marketing_email, true) and o.user_id is null as wants_marketing,
        coalesce(e.threshold_alert_email, true) as wants_alerts,
        coalesce(m.said ->> 'plan', m.said ->> 'subscription_plan', u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (m.said ->> 'is_pro', m.said ->> 'is_premium') as says_paid
    from auth.users u
    -- What is large is not looked into (see account_flaws).
    cross join lateral (select case when pg_column_size(u.raw_user_meta_data) <= 16384 then u.raw_user_meta_data end as said) m
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(u.email::text)
    left join jobs.objecting_users o on o.user_id = u.id;

create or replace function public.integration_context(p_items bigint[]) returns jsonb
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
            jobs.first_month(t.connected_at, least(s.claimed_at, r.as_of), r.as_of))::timestamp at time zone 'Europe/Paris',
        'open', (select coalesce(jsonb_agg(jsonb_build_object('id', o.external_id, 'listed_at', o.listed_at)), '[]') from (
            select x.external_id, coalesce(x.listed_at, x.occurred_at) as listed_at
            from jobs.integration_transactions x
            where x.user_id = t.user_id and x.provider = t.provider and x.excluded = 'pending' and x.account = s.account
            order by 2, 1 limit 100) o)) order by i.item_id, t.provider), '[]')
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
                    || @.code == "app_not_approved")') as p (problem)
            where l.synced_at >= p_now - interval '1 day' and l.provider = 'jobs' and l.status <> 'success'
            group by 2, 3 order by 1 desc limit 5) r),
        -- Read last, by its own proof: what our key is checked with.
        'stripe_account', (select k.account from known n
            join jobs.integration_state k on k.user_id = n.user_id and k.provider = n.provider
            where n.provider = 'stripe' and n.state = 'good' and k.account is not null
            order by n.last_success_at desc limit 1));
$$;

create or replace function jobs.user_connections(p_user_id uuid, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'provider', v.provider, 'account', left(s.account, 120),
        'claimed_account', left(jobs.readable_identifier(jobs.claimed_account(t)), 120),
        'is_proven', coalesce(s.proof = jobs.token_fingerprint(t), false),
        'state', case
            when t.id is null then 'gone'
            when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
            when s.failures > 0 then 'failing'
            when s.last_success_at is null then 'new'
            when s.last_success_at < p_late_before then 'late'
            else 'good' end,
        'connected_at', jobs.readable_instant(t.connected_at), 'first_month', to_char(s.first_month, 'YYYY-MM'),
        'activity', s.activity, 'left_out', coalesce(s.left_out, false),
        'last_success_at', s.last_success_at, 'read_to', s.last_success_to, 'deep_read_to', s.deep_read_to,
        'failures', coalesce(s.failures, 0), 'failed_at', s.failed_at,
        'code', left(s.failure ->> 'code', 80), 'message', jobs.mask_text(s.failure ->> 'message'),
        'refusals', coalesce(s.refusals, 0), 'trouble_mailed_at', s.trouble_mailed_at,
        -- Such a token cannot be renewed.
        'is_permanent', t.provider = 'shopify' and jobs.is_blank(t.refresh_token),
        'token_expires_at', s.token_expires_at, 'reads_all_orders', s.all_orders,
        'also_claimed_by', (select count(*) from public.integration_tokens o
            where o.provider = t.provider and o.user_id <> t.user_id
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = jobs.claimed_account(t)))
        order by v.provider), '[]')
    from (values ('shopify'), ('stripe')) as v (provider)
    join auth.users u on u.id = p_user_id
    left join public.integration_tokens t on t.user_id = p_user_id and t.provider = v.provider
    left join jobs.integration_state s on s.user_id = p_user_id and s.provider = v.provider
    where t.id is not null or s.user_id is not null;
$$;

create or replace function public.jobs_troubles(
    p_first_since timestamptz, p_latest_since timestamptz, p_stuck_before timestamptz, p_slots_since timestamptz,
    p_calls_since timestamptz, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql stable security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    since constant timestamptz := greatest(p_first_since, least(p_latest_since, coalesce(
        (select max(r.as_of) from jobs.job_runs r where r.task = 'operator_digest'), '-infinity')));
begin
    return jsonb_build_object(
        'since', since,
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at > p_slots_since),
        'first_claim', (select min(s.claimed_at) from jobs.job_slots s),
        'failed', (select coalesce(jsonb_agg(f order by f.count desc, f.lane, f.code), '[]') from (
            select i.lane, left(i.error ->> 'code', 80) as code,
                jobs.mask_text(min(left(i.error ->> 'message', 2000))) as message,
                count(*) as count
            from jobs.job_items i where i.status = 'failed' and i.settled_at > since
            group by 1, 2 order by 4 desc limit 20) f),
        'stuck', (select coalesce(jsonb_agg(q order by q.oldest), '[]') from (
            select i.lane, count(*) as count, min(i.waiting_since) as oldest
            from jobs.job_items i where i.status = 'queued' and i.waiting_since < p_stuck_before
            group by 1) q),
        'unreadable', (select count(distinct b.user_id) from jobs.unreadable_input b (user_id, part, flaw, found_at)
            where b.found_at > since),
        'calls', (select coalesce(jsonb_agg(c order by c.count desc, c.route), '[]') from (
            select left(l.metadata ->> 'route', 200) as route,
                jobs.mask_text(min(left(l.error_message, 2000))) as message,
                count(*) as count
            from public.sync_logs l
            where l.user_id is null and l.status = 'error' and l.sync_type <> 'dry_run' and l.synced_at > since
            group by 1 order by 3 desc limit 10) c),
        'undelivered', (select coalesce(jsonb_agg(u order by u.count desc, u.lane, u.feedback), '[]') from (
            select jobs.lane_of_mail(d.kind) as lane, d.feedback, count(*) as count
            from jobs.email_deliveries d
            where d.kind in ('threshold_alert', 'integration_trouble', 'monthly_reminder', 'monthly_recap', 'definitive_month')
                and d.feedback is not null and d.feedback_at > since and d.status = 'sent'
                and d.feedback in ('returned', 'failed', 'refused', 'suppressed', 'bounced')
                and not exists (select from jobs.email_deliveries n
                    where n.dedupe_key in (d.dedupe_key || '/again', d.dedupe_key || '/moved'))
            group by 1, 2) u),
        'outages', public.integration_outages(p_outage, p_now),
        'permanent_tokens', (select count(*) from public.integration_tokens t
            where t.provider = 'shopify' and t.is_active and jobs.is_blank(t.refresh_token)),
        'doubted_lists', jobs.doubted_lists(),
        'routes', (select coalesce(jsonb_object_agg(c.route, c.last), '{}') from jobs.cron_calls(p_calls_since) c),
        'first_calls', (select coalesce(jsonb_object_agg(c.route, c.first), '{}') from jobs.cron_calls(p_calls_since) c));
end $$;

revoke all on function jobs.is_blank from public, anon, authenticated, service_role;

commit;
