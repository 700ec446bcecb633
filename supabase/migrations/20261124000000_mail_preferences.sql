-- Two more choices that a user has about mails, beside monthly_reminder and monthly_recap_email.
--
-- Locks: the catalogue only (new columns with a constant default), so the table is locked for milliseconds. If a
-- long transaction holds it, lock_timeout makes this file fail instead of queueing everybody: run it again.
-- Forward only; safe to run twice.

begin;
set local lock_timeout = '5s';

alter table public.email_preferences
    add column if not exists marketing_email boolean not null default true,
    add column if not exists threshold_alert_email boolean not null default true;

comment on column public.email_preferences.marketing_email is 'News and offers; false since the user refused them';
comment on column public.email_preferences.threshold_alert_email is 'Alerts about ceilings; false since the user refused them';

commit;
