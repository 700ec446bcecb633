-- The tables of the Comptalyze web application, for a project that does not have them yet (a new staging or test
-- project). Production has had them for long: there this file finds them and changes nothing, takes no lock.
--
-- All of them or none: a project that has only some is not the application's, and this file stops.
-- Safe to run twice.

begin;
set local lock_timeout = '5s';

do $baseline$
declare
    known constant text[] := array['user_profiles', 'subscriptions', 'ca_records', 'email_preferences',
        'marketing_emails', 'user_onboarding_data', 'integration_tokens', 'sync_logs'];
    missing text[];
    owned text;
begin
    select array_agg(name) into missing from unnest(known) name where to_regclass('public.' || name) is null;
    if missing is null then
        return;
    elsif cardinality(missing) < cardinality(known) then
        raise exception 'not a Comptalyze database: these tables are missing: %', array_to_string(missing, ', ');
    end if;

    -- One row per account, made by the trigger at the end of this file.
    create table public.user_profiles (
        id uuid primary key references auth.users (id) on delete cascade,
        email text,
        full_name text,
        -- free, pro or premium.
        plan text default 'free',
        -- none, trialing, active, canceled, past_due or unpaid.
        plan_status text default 'none',
        trial_plan text,
        trial_ends_at timestamptz,
        email_verified boolean default false,
        email_verification_token text,
        email_verification_sent_at timestamptz,
        created_at timestamptz default now(),
        updated_at timestamptz default now()
    );

    -- What Stripe says about a paying user; `status` in Stripe's words.
    create table public.subscriptions (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null unique references auth.users (id) on delete cascade,
        status text not null,
        price_id text,
        stripe_subscription_id text,
        stripe_customer_id text,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );

    -- Turnover, several rows a month if the user likes. The interface writes `activity_type` as 'Vente de
    -- marchandises', 'Prestation de services' or 'Activité libérale'; rows from before say 'services'.
    create table public.ca_records (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        year integer not null,
        month integer not null check (month between 1 and 12),
        activity_type text not null,
        amount_eur numeric(12, 2) not null,
        computed_net_eur numeric(12, 2),
        computed_contrib_eur numeric(12, 2),
        ir_mode text check (ir_mode is null or ir_mode in ('none', 'vl', 'bareme')),
        ir_amount_eur numeric(12, 2),
        created_at timestamptz not null default now()
    );
    create index idx_ca_records_year_month on public.ca_records (user_id, year, month desc);

    -- Without a row: no monthly reminder, but the recap.
    create table public.email_preferences (
        user_id uuid primary key references auth.users (id) on delete cascade,
        monthly_reminder boolean not null default true,
        monthly_recap_email boolean default true,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );

    -- At most one mail of a type for each user; 'upgrade_day3' is the one sent on day three.
    create table public.marketing_emails (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        email_type text not null,
        email_content text,
        sent_at timestamptz default now(),
        opened boolean default false,
        clicked boolean default false,
        created_at timestamptz default now()
    );
    create unique index idx_marketing_emails_user_type on public.marketing_emails (user_id, email_type);

    create table public.user_onboarding_data (
        user_id uuid primary key references auth.users (id) on delete cascade,
        ir_mode text check (ir_mode in ('versement_liberatoire', 'bareme', 'non_soumis')),
        ir_rate numeric(5, 2),
        has_acre boolean default false,
        acre_year integer check (acre_year in (1, 2, 3)),
        -- The ceilings of the first year are reduced in proportion to what is left of it from this day.
        company_creation_date date,
        onboarding_completed boolean default false,
        completed_at timestamptz,
        skipped boolean default false,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now()
    );

    -- Both tokens are stored as hex(iv) ':' hex(ciphertext), AES-256-CBC under ENCRYPTION_KEY. The user can write
    -- the whole row, the domain of the shop and the account included.
    create table public.integration_tokens (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        provider text not null check (provider in ('shopify', 'stripe')),
        access_token text not null,
        refresh_token text,
        store_url text,
        shop_domain text,
        stripe_account_id text,
        is_active boolean default true,
        connected_at timestamptz not null default now(),
        last_sync_at timestamptz,
        last_error text,
        created_at timestamptz not null default now(),
        updated_at timestamptz not null default now(),
        unique (user_id, provider)
    );

    create table public.sync_logs (
        id uuid primary key default gen_random_uuid(),
        user_id uuid not null references auth.users (id) on delete cascade,
        provider text not null check (provider in ('shopify', 'stripe')),
        sync_type text not null check (sync_type in ('manual', 'webhook', 'cron')),
        status text not null check (status in ('success', 'error', 'partial')),
        records_synced integer default 0,
        error_message text,
        metadata jsonb default '{}',
        synced_at timestamptz not null default now()
    );
    create index idx_sync_logs_synced_at on public.sync_logs (synced_at desc);

    -- Users read their own rows everywhere, and write them where the interface lets them.
    alter table public.user_profiles enable row level security;
    create policy own_rows_select on public.user_profiles for select using (auth.uid() = id);

    alter table public.subscriptions enable row level security;
    create policy own_rows_select on public.subscriptions for select using (auth.uid() = user_id);

    alter table public.marketing_emails enable row level security;
    create policy own_rows_select on public.marketing_emails for select using (auth.uid() = user_id);

    alter table public.sync_logs enable row level security;
    create policy own_rows_select on public.sync_logs for select using (auth.uid() = user_id);

    foreach owned in array array['ca_records', 'email_preferences', 'user_onboarding_data', 'integration_tokens'] loop
            execute format('alter table public.%I enable row level security', owned);
            execute format('create policy own_rows_select on public.%I for select using (auth.uid() = user_id)', owned);
            execute format('create policy own_rows_insert on public.%I for insert with check (auth.uid() = user_id)', owned);
            execute format('create policy own_rows_update on public.%I for update using (auth.uid() = user_id)', owned);
        end loop;

    -- Every account has a profile, with the address of the account.
    create function public.handle_auth_user_created() returns trigger language plpgsql security definer as $$
    begin
        insert into public.user_profiles (id, email, full_name, created_at)
        values (new.id, new.email, new.raw_user_meta_data ->> 'full_name', new.created_at)
        on conflict (id) do update set email = excluded.email;
        return new;
    end $$;

    create trigger on_auth_user_created after insert on auth.users
        for each row execute function public.handle_auth_user_created();
end $baseline$;

commit;
