-- The part of a Supabase project that exists before anybody makes a table, as far as this project touches it:
-- the roles of the API and the accounts. Names and types are Supabase's.

-- Roles belong to the whole cluster, so a second database finds them there.
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'authenticator') then
        create role anon nologin noinherit;
        create role authenticated nologin noinherit;
        create role service_role nologin noinherit bypassrls;
        -- PostgREST connects as this one and becomes one of the others for each request.
        create role authenticator login noinherit password 'authenticator';
        grant anon, authenticated, service_role to authenticator;
        alter role anon set statement_timeout = '3s';
        alter role authenticated set statement_timeout = '8s';
        -- service_role has no limit of its own, so through PostgREST this one holds for it.
        alter role authenticator set statement_timeout = '8s';
    end if;
end $$;

create schema auth;

create table auth.users (
    id uuid primary key default gen_random_uuid(),
    -- An account made by phone, or anonymously, has none.
    email varchar(255),
    email_confirmed_at timestamptz,
    -- Written by the user: proves nothing.
    raw_user_meta_data jsonb default '{}',
    raw_app_meta_data jsonb default '{}',
    is_anonymous boolean not null default false,
    banned_until timestamptz,
    -- Set where the account was deleted but kept.
    deleted_at timestamptz,
    last_sign_in_at timestamptz,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);

-- Who is asking, according to the token that PostgREST has checked.
create function auth.uid() returns uuid language sql stable as
$$ select nullif(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub', '')::uuid $$;

create function auth.role() returns text language sql stable as
$$ select nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role' $$;

grant usage on schema public, auth to anon, authenticated, service_role;

-- The trap of the platform: whatever is created in `public` is open to everybody until it is revoked.
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant execute on functions to anon, authenticated, service_role;
