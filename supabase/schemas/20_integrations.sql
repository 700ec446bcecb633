-- Imported turnover: the movements read from Stripe and Shopify, what is known of each integration, and the
-- monthly totals written into ca_records from them.
--
-- Proofs, cursors, leases and ledgers live here, where only our own functions reach them: what a user may
-- write (integration_tokens, ca_records) is never trusted for a decision.
--
-- Months and days are Europe/Paris. Amounts are minor units (cents), signed. Only EUR is counted.

-- One money movement. A refund or a lost dispute is its own negative row on its own date.
create table jobs.integration_transactions (
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
create index integration_transactions_month on jobs.integration_transactions (user_id, paris_month);

-- What is known of a user's integration. Outlives a reconnection, so that its history and activity do too.
create table jobs.integration_state (
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
    refusals integer not null default 0,         -- how often in a row the connection itself was refused
    trouble_mails integer not null default 0,    -- how often the user was told since it was good
    trouble_mailed_at timestamptz,
    token_expires_at timestamptz,
    refresh_token_expires_at timestamptz,
    refresh_lease uuid,                          -- one token refresh at a time
    refresh_lease_until timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (user_id, provider)
);

-- What we wrote into ca_records, and what we would write: a row the user has edited since is theirs (locked).
create table jobs.auto_sync_totals (
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

-- Whether a movement is money that its month's figure lacks, because it is not known in euros. Without a setting of its
-- own, so that it becomes part of the query that uses it. It names no table and no function.
create function jobs.is_uncounted(t jobs.integration_transactions) returns boolean
language sql immutable as $$
    select t.excluded = 'unresolved_currency' or (t.excluded is null and t.currency <> 'EUR');
$$;

-- The account or shop that the user says it is.
create function jobs.claimed_account(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select case t.provider when 'stripe' then t.stripe_account_id else t.shop_domain end;
$$;

-- What a proof is a proof of: this token for this account. Another token or account has to be proven anew.
create function jobs.token_fingerprint(t public.integration_tokens) returns text
language sql immutable set search_path = '' as $$
    select encode(sha256(convert_to(
        t.provider || '|' || coalesce(t.stripe_account_id, '') || '|' || coalesce(t.shop_domain, '') || '|' || t.access_token,
        'UTF8')), 'hex');
$$;

-- The activity that an integration's money belongs to, where nothing is frozen yet: goods for a shop; for
-- Stripe what the user most often typed by hand, else services.
create function jobs.infer_activity(p_user_id uuid, p_provider text) returns text
language sql stable set search_path = '' as $$
    select case when p_provider = 'shopify' then 'Vente de marchandises' else coalesce((
        select case r.activity_type when 'services' then 'Prestation de services' else r.activity_type end as activity
        from public.ca_records r
        where r.user_id = p_user_id and r.source = 'manual'
            and r.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale', 'services')
        group by 1 order by count(*) desc, 1 limit 1), 'Prestation de services') end;
$$;
