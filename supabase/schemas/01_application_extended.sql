-- Columns and wider checks that the scheduled jobs need on the application's own tables.
--
-- Locks. Every statement here changes the catalogue only (new columns are nullable or have a constant default,
-- new checks are NOT VALID), so each table is locked for milliseconds. Two exceptions, announced: the unique
-- index on ca_records reads the table once while writes to it wait (about a second per million rows), and so
-- does the index on integration_tokens (one row for each integration: milliseconds).
-- If a long transaction holds a table, lock_timeout makes this file fail instead of queueing everybody behind
-- it: run it again. Nothing is left half done: the file is one transaction.
--
-- Safe to run twice.

-- ca_records: imported turnover stands beside what the user typed.
alter table public.ca_records
    add column if not exists source text not null default 'manual',
    add column if not exists external_id text,
    add column if not exists metadata jsonb not null default '{}';

comment on column public.ca_records.source is
    'manual: typed by the user; auto_sync: written by the scheduled jobs from integration_transactions';
comment on column public.ca_records.external_id is
    'auto_sync rows: <month>/<activity>, one row for each user, month and activity';

create unique index if not exists ca_records_auto_sync_key
    on public.ca_records (user_id, external_id) where source = 'auto_sync';

-- integration_tokens: which activity the cashed amounts belong to; null: see jobs.follow_typed_activity.
alter table public.integration_tokens
    add column if not exists activity_type text;

-- Who else claims the same account or shop; the table is small (one row for each integration).
create index if not exists integration_tokens_account
    on public.integration_tokens (provider, (case provider when 'stripe' then stripe_account_id else shop_domain end));

comment on column public.integration_tokens.activity_type is
    'Vente de marchandises, Prestation de services or Activité libérale; null: what the user types says it, else the jobs assume one';

-- sync_logs: rows of a whole run have no user, and come from more than the two providers. They are some dozens a day among
-- those of all users' syncs, and are found by themselves.
alter table public.sync_logs alter column user_id drop not null;
create index if not exists sync_logs_calls on public.sync_logs (synced_at) where user_id is null;
alter table public.sync_logs drop constraint if exists sync_logs_provider_check;
alter table public.sync_logs drop constraint if exists sync_logs_sync_type_check;
alter table public.sync_logs add constraint sync_logs_provider_check
    check (provider in ('shopify', 'stripe', 'resend', 'jobs')) not valid;
alter table public.sync_logs add constraint sync_logs_sync_type_check
    check (sync_type in ('manual', 'webhook', 'cron', 'replay', 'drain', 'dry_run')) not valid;

-- email_preferences: two more choices, beside monthly_reminder and monthly_recap_email.
alter table public.email_preferences
    add column if not exists marketing_email boolean not null default true,
    add column if not exists threshold_alert_email boolean not null default true;

comment on column public.email_preferences.marketing_email is 'News and offers; false since the user refused them';
comment on column public.email_preferences.threshold_alert_email is
    'Alerts about ceilings; false since the user refused them';
