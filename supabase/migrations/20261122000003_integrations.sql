-- Imported turnover: the movements read from Stripe and Shopify, what is known of each integration, and the
-- monthly totals written into ca_records from them.
--
-- Proofs, cursors, leases and ledgers live here, where only the functions below reach them: what a user may
-- write (integration_tokens, ca_records) is never trusted for a decision.
--
-- Months and days are Europe/Paris. Amounts are minor units (cents), signed. Only EUR is counted.
-- Forward only; new objects only, so nothing of the application's is locked.

begin;
set local lock_timeout = '5s';

-- One money movement. A refund or a lost dispute is its own negative row on its own date.
create table public.integration_transactions (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    external_id text not null,                   -- txn_… (Stripe), the number of the tender or dispute (Shopify)
    account text not null,                       -- acct_… or name.myshopify.com, as proven
    kind text not null,
    occurred_at timestamptz not null,
    paris_month date not null generated always as
        (date_trunc('month', occurred_at at time zone 'Europe/Paris')::date) stored,
    amount_minor bigint not null,
    currency text not null check (currency = upper(currency)),
    refs text[] not null default '{}',           -- ch_…, pi_…, re_…: the payment behind it, as both providers name
                                                 -- it; gid://shopify/Order/…: the order it belongs to
    excluded text,                               -- why it is kept but never counted (gift_card, …)
    first_seen_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, provider, external_id)
);
create index integration_transactions_month on public.integration_transactions (user_id, paris_month);
create index integration_transactions_refs on public.integration_transactions using gin (refs);

-- Money that a month's figure lacks because it is not known in euros.
create function public.integration_uncounted(t public.integration_transactions) returns boolean
language sql immutable set search_path = '' as $$
    select t.excluded = 'unresolved_currency' or (t.excluded is null and t.currency <> 'EUR');
$$;

-- What is known of a user's integration. Outlives a reconnection, so that its history and activity do too.
create table public.integration_state (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    account text,                                -- proven: the stored token opens exactly this account or shop
    proof text,                                  -- fingerprint of what was proven; another token is another proof
    proven_at timestamptz,
    activity text,                               -- frozen at the first sync unless integration_tokens says otherwise
    first_month date,                            -- Paris month of the first sync: earlier months are the user's own
    counted datemultirange not null default '{}',-- days whose movements are written into ca_records
    covered tstzmultirange not null default '{}',-- what was read from the provider to its end
    last_success_at timestamptz,
    last_success_to timestamptz,                 -- end of the last window that was read to its end
    failures integer not null default 0,         -- runs in a row that ended in an error
    failed_at timestamptz,
    failure jsonb,                               -- {code, message} of the last one
    token_expires_at timestamptz,
    refresh_token_expires_at timestamptz,
    refresh_lease uuid,                          -- one token refresh at a time
    refresh_lease_until timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, provider)
);

-- What we wrote into ca_records, and what we would write: a row the user has edited since is theirs (locked).
create table public.auto_sync_totals (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date not null,
    activity text not null,
    record_id uuid,
    written_eur numeric(12, 2),                  -- what ca_records holds from us; null when it never did
    computed_eur numeric(12, 2) not null,        -- what the movements say
    locked_at timestamptz,                       -- since when the row is the user's
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, month, activity)
);

alter table public.integration_transactions enable row level security;
alter table public.integration_state enable row level security;
alter table public.auto_sync_totals enable row level security;
revoke all on public.integration_transactions, public.integration_state, public.auto_sync_totals
    from public, anon, authenticated, service_role;

-- Facts about an integration --------------------------------------------------------------------------------

-- The account or shop that the user says it is.
create function public.integration_account(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end;
$$;

-- What a proof is a proof of: this token for this account. Another token or account has to be proven anew.
create function public.integration_fingerprint(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(t.stripe_account_id, '') || '|' || coalesce(t.shop_domain, '') || '|' || t.access_token,
        'UTF8')), 'hex');
$$;

-- The activity that an integration's money belongs to, where nothing is frozen yet: goods for a shop; for
-- Stripe what the user most often typed by hand, else services.
create function public.integration_infer_activity(p_user_id uuid, p_provider text) returns text
language sql stable security definer set search_path = '' as $$
    select case when p_provider = 'shopify' then 'Vente de marchandises' else coalesce((
        select case r.activity_type when 'services' then 'Prestation de services' else r.activity_type end as activity
        from public.ca_records r
        where r.user_id = p_user_id and r.source = 'manual'
            and r.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale', 'services')
        group by 1 order by count(*) desc, 1 limit 1), 'Prestation de services') end;
$$;

-- Planning ---------------------------------------------------------------------------------------------------

-- The integrations a run could work on, and why it does not work on some of them (reason null: due).
create function public.integration_candidates(p_user_id uuid, p_as_of timestamptz)
returns table (integration_id uuid, user_id uuid, provider text, reason text)
language sql stable security definer set search_path = '' as $$
    select t.id, t.user_id, t.provider,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.banned_until > p_as_of then 'user_banned'
            when t.is_active is not true then 'inactive'
        end
    from public.integration_tokens t join auth.users u on u.id = t.user_id
    where p_user_id is null or t.user_id = p_user_id;
$$;

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, and goes on counting their attempts.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_nestloop = off as $$
declare
    opened jsonb;
    outline jsonb;
    needless bigint[];
    lane text;
begin
    if p_kind not in ('sync_integration', 'sync_month') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        return (
            with c as materialized (select * from public.integration_candidates(p_user_id, p_as_of))
            select jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', jsonb_build_object(
                'items', case p_kind when 'sync_month' then count(distinct c.user_id) filter (where c.reason is null)
                         else count(*) filter (where c.reason is null) end,
                'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                    select reason, count(*) as n from c where reason is not null group by reason) n),
                'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                    select user_id, provider, coalesce(reason, 'due') as outcome
                    from c order by reason nulls first, user_id, provider limit 100) f)))
            from c);
    end if;
    opened := public.jobs_open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;

    -- Everything from one look at the integrations.
    with c as materialized (
        select * from public.integration_candidates(p_user_id, p_as_of)
    ), planned as (
        insert into public.job_items (run_id, lane, kind, subject, user_id, payload)
        select distinct p_run_id, case p_kind when 'sync_month' then 'months' else c.provider end, p_kind,
            case p_kind when 'sync_month' then c.user_id else c.integration_id end, c.user_id, p_payload
        from c where c.reason is null
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n))
    into outline;

    select array_agg(l.item_id) into needless from (
        select i.item_id
        from public.job_items i join public.job_runs r using (run_id)
        join public.job_items n on n.run_id = p_run_id and n.kind = i.kind and n.subject = i.subject
        where i.status = 'queued' and i.kind = p_kind and i.run_id <> p_run_id
            and (p_user_id is null or i.user_id = p_user_id)
            and coalesce(i.leased_until, '-infinity') < clock_timestamp()
            and r.as_of <= p_as_of and (p_kind <> 'sync_month' or i.payload = p_payload)
        order by i.item_id for update of i) l;
    update public.job_items i set status = 'superseded', settled_at = clock_timestamp()
    from unnest(needless) n where i.item_id = n;
    -- At once: pgmq deletes by its own ids, which an item that was never claimed does not know. Waits for nobody.
    for lane in select distinct i.lane from unnest(needless) n join public.job_items i on i.item_id = n loop
        execute format('delete from pgmq.%1$I where msg_id in (
            select q.msg_id from pgmq.%1$I q join unnest($1) n on n = (q.message ->> ''item_id'')::bigint
            for update of q skip locked)', 'q_jobs_' || lane) using needless;
    end loop;

    with old as (
        select i.*, (i.payload ->> 'days')::integer
            + (p_as_of at time zone 'Europe/Paris')::date - (r.as_of at time zone 'Europe/Paris')::date as days
        from public.job_items i join public.job_runs r using (run_id) where i.item_id = any (needless)
    ), taken_over as (
        select s.subject, max(case when s.days > 366 then 366 else s.days end) as days,
            -- A provider that keeps failing is given up after five attempts, however often it is planned anew.
            max(s.attempts) as attempts, (array_agg(s.error order by s.attempts desc))[1] as error,
            -- Stored at a checkpoint: the new item's to account for, since to it these movements are not new.
            case when bool_or(s.progress ? 'records') then jsonb_build_object(
                'records', sum((s.progress ->> 'records')::bigint),
                'by_provider', (
                    select jsonb_object_agg(n.provider, n.n) from (
                        select e.key as provider, sum(e.value::text::bigint) as n
                        from old o, jsonb_each(o.progress -> 'by_provider') e
                        where o.subject = s.subject group by e.key) n),
                'months', (
                    select coalesce(jsonb_agg(distinct m), '[]')
                    from old o, jsonb_array_elements(o.progress -> 'months') m
                    where o.subject = s.subject)) end as progress
        from old s group by s.subject
    )
    update public.job_items n
    set attempts = o.attempts, error = o.error, progress = coalesce(o.progress, '{}'),
        payload = case when o.days > coalesce((p_payload ->> 'days')::integer, 0)
            then p_payload || jsonb_build_object('days', o.days) else p_payload end
    from taken_over o
    where n.run_id = p_run_id and n.kind = p_kind and n.subject = o.subject
        and (o.attempts > 0 or o.progress is not null or o.days > coalesce((p_payload ->> 'days')::integer, 0));

    perform public.jobs_send_items(p_run_id);
    update public.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- Working ----------------------------------------------------------------------------------------------------

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted).
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to}]
create function public.integration_context(p_items bigint[]) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'item_id', i.item_id, 'integration_id', t.id, 'user_id', t.user_id, 'provider', t.provider,
        'access_token', t.access_token, 'refresh_token', t.refresh_token,
        'stripe_account_id', t.stripe_account_id, 'shop_domain', t.shop_domain,
        'proven_account', case when s.proof = public.integration_fingerprint(t) then s.account end,
        'token_expires_at', case when s.proof = public.integration_fingerprint(t) then s.token_expires_at end,
        -- Another account than the one read before has a history of its own: nothing of it was read yet.
        'last_success_to', case when s.account = public.integration_account(t) then s.last_success_to end) order by i.item_id, t.provider), '[]')
    from public.job_items i
    -- Not by `or`: the subject is a key of its own in each case.
    cross join lateral (
        select * from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select * from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) t
    left join public.integration_state s on s.user_id = t.user_id and s.provider = t.provider
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
        or p_account is distinct from public.integration_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into public.integration_state as s (user_id, provider, account, proof, proven_at)
    values (t.user_id, t.provider, p_account, public.integration_fingerprint(t), clock_timestamp())
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
--   {acquired, access_token, refresh_token}: the pair as stored now, which another holder may just have renewed
create function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s public.integration_state;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null then
        return jsonb_build_object('acquired', false, 'gone', true);
    end if;
    insert into public.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from public.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder and s.refresh_lease_until > clock_timestamp() then
        return jsonb_build_object('acquired', false);
    end if;
    update public.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token, 'refresh_token', t.refresh_token);
end $$;

-- Stores the renewed pair (encrypted) before anybody uses it. Only the holder may; p_old_access_token guards
-- against a reconnection in between. A proof of the old token is one of the new token: it is the same grant.
create function public.integration_refresh_store(
    p_integration_id uuid, p_holder uuid, p_old_access_token text, p_access_token text, p_refresh_token text,
    p_expires_at timestamptz, p_refresh_expires_at timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s public.integration_state;
    was_proven boolean;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    select * into s from public.integration_state where user_id = t.user_id and provider = t.provider for update;
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
    was_proven := s.proof = public.integration_fingerprint(t);
    update public.integration_tokens
    set access_token = p_access_token, refresh_token = p_refresh_token, updated_at = clock_timestamp()
    where id = p_integration_id returning * into t;
    update public.integration_state
    set proof = case when was_proven then public.integration_fingerprint(t) else proof end,
        token_expires_at = p_expires_at, refresh_token_expires_at = p_refresh_expires_at,
        updated_at = clock_timestamp()
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('stored', true);
end $$;

-- Ends a refresh; the next holder may start.
create function public.integration_refresh_end(p_integration_id uuid, p_holder uuid) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    update public.integration_state s set refresh_lease = null, refresh_lease_until = null
    from public.integration_tokens t
    where t.id = p_integration_id and s.user_id = t.user_id and s.provider = t.provider and s.refresh_lease = p_holder;
$$;

-- Counting ---------------------------------------------------------------------------------------------------

-- A user's Shopify movements of some months that Stripe reports, too. A movement's payment is known by its own
-- references, or for a refund that names none by those of its order's payments. Where such an order was also paid
-- in another way (cash), a refund is Stripe's only where Stripe has one of the same amount, each of them once.
-- p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create function public.integration_twins(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable security definer set search_path = '' set enable_nestloop = off as $$
    with shop as materialized (
        select t.external_id, t.paris_month, t.amount_minor, t.currency, t.occurred_at, t.refs, t.excluded,
            exists (select from unnest(t.refs) r where r !~ '^gid:') as named
        from public.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), doubted as materialized (
        select * from shop where paris_month = any (p_months) and currency = 'EUR' and excluded is null
    ), paid as materialized (
        select t.external_id, t.amount_minor, r as ref
        from public.integration_transactions t
        join public.integration_state s on s.user_id = t.user_id and s.provider = t.provider, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR' and t.excluded is null
            and (not p_written or s.counted @> t.paris_month)
            and exists (select from doubted)
    ), orders as materialized (   -- the payments of each order, by the names that Stripe may know
        select o as shop_order, array_agg(distinct n) filter (where n is not null) as names,
            bool_or(not s.named and s.excluded is null) as mixed
        from shop s cross join unnest(s.refs) o left join unnest(s.refs) n on n !~ '^gid:'
        where o ~ '^gid:' and s.amount_minor > 0
        group by o
    ), nameless as materialized (
        select d.external_id, d.amount_minor, o.shop_order, o.names, o.mixed,
            row_number() over (partition by o.shop_order, d.amount_minor order by d.occurred_at, d.external_id) as nth
        from doubted d cross join unnest(d.refs) g join orders o on o.shop_order = g
        where not d.named and d.amount_minor < 0 and o.names is not null
    )
    select d.external_id
    from doubted d cross join unnest(d.refs) r join paid p on p.ref = r and sign(p.amount_minor) = sign(d.amount_minor)
    where d.named
    union
    select n.external_id
    from nameless n cross join unnest(n.names) r join paid p on p.ref = r and p.amount_minor < 0
    where not n.mixed or p.amount_minor = n.amount_minor
    group by n.external_id, n.mixed, n.nth
    having not n.mixed or n.nth <= count(distinct p.external_id);
$$;

-- A user's countable movements of some months, one row for each movement: EUR, not excluded, and a payment that
-- Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
create function public.integration_countable(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint)
language sql stable security definer set search_path = '' set enable_nestloop = off as $$
    select t.provider, t.paris_month, s.activity, t.amount_minor
    from public.integration_transactions t
    join public.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.currency = 'EUR' and t.excluded is null
        and (not p_written or s.counted @> t.paris_month)
        and not (t.provider = 'shopify' and t.external_id in (
            select w.external_id from public.integration_twins(p_user_id, p_months, p_written) w));
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up
-- to now), partial (something of it was never read, is not in euros, or may be reported twice).
create function public.integration_month_status(p_user_id uuid, p_month date, p_as_of timestamptz) returns text
language sql stable security definer set search_path = '' as $$
    with bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as (   -- an active integration without a state was never read
        select coalesce(s.covered, '{}') as covered
        from public.integration_tokens t
        left join public.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.user_id = p_user_id and t.is_active
    )
    select case
        when exists (select from public.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month and public.integration_uncounted(t))
            then 'partial'
        -- A refund of an order whose payment was never read: Stripe may report it, too.
        when exists (select from public.integration_state x
                where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null)
            and exists (
                select o from public.integration_transactions t, unnest(t.refs) o
                where t.user_id = p_user_id and t.provider = 'shopify' and t.paris_month = p_month
                    and t.amount_minor < 0 and t.excluded is null
                    and not exists (select from unnest(t.refs) r where r !~ '^gid:')
                except   -- not by loops: see integration_twins
                select o from public.integration_transactions p, unnest(p.refs) o
                where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0)
            then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end
    from bounds b left join sources s on true
    group by b.starts, b.ends;
$$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create function public.integration_recompute(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
    wanted jsonb;       -- [{month, activity, amount, metadata}]
    differing jsonb;
begin
    -- 1. Rows that are no longer as we wrote them: theirs.
    update public.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));

    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select month, activity, (sum(minor) / 100)::numeric(12, 2) as amount, jsonb_build_object(
            'status', public.integration_month_status(p_user_id, month, p_as_of),
            'sources', jsonb_object_agg(provider, (minor / 100)::numeric(12, 2))) as metadata
        from (select c.month, c.activity, c.provider, sum(c.amount_minor)::numeric as minor
              from public.integration_countable(p_user_id, p_months, true) c
              where c.activity is not null
              group by 1, 2, 3) t
        group by month, activity) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using public.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    delete from public.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    update public.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from public.auto_sync_totals k left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (p_months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join public.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update public.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and l.written_eur is distinct from w.amount;

    -- 4. New rows. One that is already there under our key was not written by us: theirs. And where a row of the
    -- month that the user has taken over stands for money whose activity has changed since, that money is counted
    -- already.
    with taken as (
        select distinct l.month from public.auto_sync_totals l
        where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
            and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
                where w.month = l.month and w.activity = l.activity)
    ), missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
        where not exists (select from public.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m where m.month not in (select month from taken)
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into public.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from public.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;

-- Settling ---------------------------------------------------------------------------------------------------

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
create function public.integration_store(p_user_id uuid, p_provider text, p_account text, p_movements jsonb)
returns jsonb language sql security definer set search_path = '' as $$
    with incoming as (
        select distinct on (m.external_id) m.*
        from jsonb_to_recordset(p_movements) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            "references" text[], excluded text)
    ), before as (
        select t.external_id, t.paris_month from public.integration_transactions t join incoming using (external_id)
        where t.user_id = p_user_id and t.provider = p_provider
    ), stored as (
        insert into public.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, excluded)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency,
            coalesce(m."references", '{}'), m.excluded
        from incoming m order by m.external_id
        on conflict (user_id, provider, external_id) do update set
            account = excluded.account, kind = excluded.kind, occurred_at = excluded.occurred_at,
            amount_minor = excluded.amount_minor, currency = excluded.currency, refs = excluded.refs,
            excluded = excluded.excluded, updated_at = clock_timestamp()
        where (t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.excluded)
            is distinct from
            (excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency, excluded.refs, excluded.excluded)
        returning t.external_id, t.paris_month
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct b.paris_month) filter (where b.paris_month <> s.paris_month), '[]'))
    from stored s left join before b using (external_id);
$$;

-- Other months in which a user's Shopify rows may now count or no longer count: those of the same payments and
-- orders as the rows of these months.
create function public.integration_twin_months(p_user_id uuid, p_months date[]) returns date[]
language sql stable security definer set search_path = '' set enable_nestloop = off as $$
    with named as materialized (
        select t.provider, t.external_id, t.paris_month, r as ref
        from public.integration_transactions t, unnest(t.refs) r where t.user_id = p_user_id
    ), touched as (   -- the shop's side of what Stripe reports, and the shop's own
        select s.external_id from named s where s.provider = 'shopify' and s.paris_month = any (p_months)
        union
        select s.external_id from named p join named s on s.ref = p.ref and s.provider = 'shopify'
        where p.provider = 'stripe' and p.paris_month = any (p_months)
    )
    select coalesce(array_agg(distinct o.paris_month), '{}')
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result}
create function public.integration_settle(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    hold text;
    i public.job_items;
    part record;
    t public.integration_tokens;
    s public.integration_state;
    stored jsonb;
    new_activity text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := public.jobs_hold(p_item_id, p_lease_id);
    select * into i from public.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result);
    elsif hold = 'lost' or i.user_id is distinct from p_user_id then
        return jsonb_build_object('state', 'lost');
    end if;
    if i.progress ->> 'lease' = p_lease_id::text and (i.progress ->> 'chunk')::integer >= p_chunk then
        return jsonb_build_object('state', 'stored');
    end if;
    records := coalesce((i.progress ->> 'records')::bigint, 0);
    by_provider := coalesce(i.progress -> 'by_provider', '{}');
    months := array(select jsonb_array_elements_text(coalesce(i.progress -> 'months', '[]'))::date);

    for part in
        select * from jsonb_to_recordset(p_parts) as x (
            integration_id uuid, provider text, account text, "window" jsonb, movements jsonb, error jsonb,
            count_month boolean)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into public.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from public.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := public.integration_store(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'));
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);

            -- The activity: what the integration says, else what was frozen, else inferred once.
            new_activity := case
                when t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale')
                    then t.activity_type
                else coalesce(s.activity, public.integration_infer_activity(p_user_id, part.provider)) end;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from public.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- A replay must not reach into months before the connection: the user has typed those.
                s.first_month := date_trunc('month', greatest(p_as_of, t.connected_at) at time zone 'Europe/Paris')::date;
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
            end if;
            if part.count_month and p_month is not null then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update public.integration_state k
            set activity = new_activity, first_month = s.first_month, counted = s.counted, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.first_month, k.counted) is distinct from (new_activity, s.first_month, s.counted);
        end if;

        continue when not p_final;
        if part.error is not null then
            failed := failed + 1;
            first_error := coalesce(first_error, part.error);
            update public.integration_tokens k
            set last_error = left(part.error ->> 'message', 500), updated_at = clock_timestamp()
            where k.id = part.integration_id and k.last_error is distinct from left(part.error ->> 'message', 500);
            update public.integration_state k
            set failures = k.failures + 1, failed_at = clock_timestamp(), failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            update public.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            set covered = case when k.account = part.account then k.covered + tstzmultirange(
                    tstzrange((part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz))
                    else k.covered end,
                last_success_at = clock_timestamp(),
                -- Only these windows follow one another without a hole; a month read on request does not.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                    then greatest(k.last_success_to, (part."window" ->> 'to')::timestamptz) else k.last_success_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', (part."window" ->> 'from')::timestamptz at time zone 'Europe/Paris'),
                ((part."window" ->> 'to')::timestamptz - interval '1 microsecond') at time zone 'Europe/Paris',
                interval '1 month') m);
        end if;
    end loop;
    months := array(select distinct m from unnest(months) m);

    if not p_final then
        update public.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := array(select distinct m from unnest(months || public.integration_twin_months(p_user_id, months)) m);
    left_alone := public.integration_recompute(p_user_id, months, p_as_of);

    select coalesce(jsonb_agg(distinct x.currency::text), '[]') into not_euro
    from public.integration_transactions x
    where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
        and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
        and public.integration_uncounted(x);

    select coalesce(jsonb_object_agg(k.key, k.value), '{}') into unknown
    from jsonb_array_elements(p_parts) e, jsonb_each(coalesce(e -> 'notes' -> 'unknown', '{}')) k;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}';
    outcome := case
        when parts > 0 and failed = parts then 'failed'
        when failed > 0 or flawed then 'partial'
        else 'done' end;
    answer := jsonb_strip_nulls(jsonb_build_object(
        'user_id', case when p_month is null then p_user_id end,
        'provider', case when p_month is null then p_parts -> 0 ->> 'provider' end,
        'records', records,
        'status', case outcome when 'failed' then 'error' when 'partial' then 'partial' else 'success' end,
        'error', first_error, 'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
        'unknown_movements', nullif(unknown, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', public.integration_month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from public.integration_countable(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from public.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message',
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = public.integration_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform public.jobs_finish(p_item_id, outcome, answer, first_error);
    return jsonb_build_object('state', 'settled', 'result', answer);
end $$;

revoke all on function
    public.integration_uncounted(public.integration_transactions),
    public.integration_account(public.integration_tokens),
    public.integration_fingerprint(public.integration_tokens),
    public.integration_infer_activity(uuid, text),
    public.integration_candidates(uuid, timestamptz),
    public.jobs_plan_sync(uuid, text, text, text, text, text, timestamptz, jsonb, jsonb, uuid, boolean),
    public.integration_context(bigint[]),
    public.integration_prove(uuid, text, text),
    public.integration_refresh_begin(uuid, uuid, integer),
    public.integration_refresh_store(uuid, uuid, text, text, text, timestamptz, timestamptz),
    public.integration_refresh_end(uuid, uuid),
    public.integration_twins(uuid, date[], boolean),
    public.integration_countable(uuid, date[], boolean),
    public.integration_month_status(uuid, date, timestamptz),
    public.integration_recompute(uuid, date[], timestamptz),
    public.integration_store(uuid, text, text, jsonb),
    public.integration_twin_months(uuid, date[]),
    public.integration_settle(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz)
from public, anon, authenticated, service_role;
grant execute on function
    public.jobs_plan_sync(uuid, text, text, text, text, text, timestamptz, jsonb, jsonb, uuid, boolean),
    public.integration_context(bigint[]),
    public.integration_prove(uuid, text, text),
    public.integration_refresh_begin(uuid, uuid, integer),
    public.integration_refresh_store(uuid, uuid, text, text, text, timestamptz, timestamptz),
    public.integration_refresh_end(uuid, uuid),
    public.integration_settle(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz)
to service_role;

commit;
