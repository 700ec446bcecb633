-- A deployment with something of everything in it, for looking at its status page. $now is the instant of the page.

insert into auth.users (id, email, email_confirmed_at, created_at, raw_user_meta_data)
select ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid,
    (array['camille', 'sasha', 'louise', 'karim', 'ines', 'hugo'])[1 + n % 6] || n || '@' || (array['exemple.fr', 'poste.example'])[1 + n % 2],
    $now - interval '60 days', $now - interval '60 days', '{"full_name": "Camille Moreau"}'
from generate_series(1, 60) n;

insert into public.integration_tokens (id, user_id, provider, access_token, stripe_account_id, shop_domain, connected_at, is_active)
select md5('token' || u.id)::uuid, u.id, case when n % 3 = 0 then 'shopify' else 'stripe' end, 'x', 'acct_' || n, 'boutique-' || n || '.myshopify.com',
    $now - interval '50 days', n <> 58
from (select id, row_number() over (order by id) as n from auth.users) u;

insert into jobs.integration_state (user_id, provider, last_success_at, failures, failed_at, failure)
select t.user_id, t.provider, case when n = 59 then null when n in (7, 12) then $now - interval '4 days' else $now - interval '5 hours' end,
    case n when 7 then 14 when 12 then 3 else 0 end, case when n in (7, 12) then $now - interval '5 hours' end,
    case n when 7 then '{"code": "token_rejected", "message": "La connexion à Stripe n’est plus valide : elle doit être refaite."}'::jsonb
        when 12 then '{"code": "frozen_shop", "message": "La boutique Shopify est gelée ou fermée : rien ne peut y être lu."}' end
from (select *, row_number() over (order by user_id) as n from public.integration_tokens) t where n <> 59;

-- Syncs every six hours, one of them missed; the J+3 mail each day; last month's end; a reminder that was missed.
insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at, plan)
select md5('sync' || at)::uuid, 'sync_integrations', to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24"Z"'), 'cron', '/api/cron/daily-orchestrator', at,
    'partial', at + interval '2 seconds', at + interval '2 seconds' + make_interval(secs => 4 + extract(hour from at) / 2.4), '{"skipped": {"inactive": 1}}'
from generate_series(date_trunc('day', $now at time zone 'utc') at time zone 'utc' - interval '20 days', $now, interval '6 hours') at
where at <> date_trunc('day', $now at time zone 'utc') at time zone 'utc' - interval '30 hours'
    and at < $now - interval '7 hours';   -- the last one was missed, too, and nothing has made up for it
insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at, plan)
select md5('day3' || day)::uuid, 'marketing_day3', day::date::text, 'cron', '/api/cron/daily-orchestrator', day, 'success', day, day + interval '900 ms',
    '{"skipped": {"paid_plan": 2, "refused_by_user": 1, "suppressed": 1}}'
from generate_series(date_trunc('day', $now at time zone 'utc') at time zone 'utc' - interval '20 days' + interval '6 hours 1 second', $now, interval '1 day') day;
insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, status, started_at, finished_at) values
    (md5('month')::uuid, 'monthly_sync', to_char($now - interval '1 month', 'YYYY-MM'), 'replay', '/api/status', $now - interval '20 days', 'partial', $now - interval '20 days', $now - interval '20 days' + interval '3 minutes 12 seconds'),
    (md5('alerts')::uuid, 'check_thresholds', null, 'manual', '/api/manual/check-thresholds', $now - interval '2 days', 'success', $now - interval '2 days', $now - interval '2 days' + interval '1.4 seconds'),
    (md5('running')::uuid, 'sync_integrations', null, 'manual', '/api/manual/sync-integrations', $now, 'running', $now - interval '40 seconds', null);
insert into jobs.job_runs (run_id, task, trigger, route, as_of, parameters, status, started_at, finished_at)
select gen_random_uuid(), 'check_thresholds', 'manual', '/api/manual/check-thresholds', $now, '{"user_id": "x"}', case n when 3 then 'error' else 'success' end, $now - make_interval(mins => n), $now
from generate_series(1, 23) n;
update jobs.job_runs set took = finished_at - started_at;
insert into jobs.job_slots (task, slot, run_id, claimed_at) select task, slot, run_id, started_at from jobs.job_runs where slot is not null;

insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, result, error, created_at, settled_at)
select r.run_id, t.provider, 'sync_integration', t.id, t.user_id, case when s.failures > 0 then 'failed' else 'done' end,
    case when s.failures > 0 then '{"records": 0}'::jsonb else '{"records": 2}' end, s.failure, r.started_at, r.finished_at
from jobs.job_runs r, public.integration_tokens t join jobs.integration_state s using (user_id)
where r.task = 'sync_integrations' and r.slot is not null and t.is_active;
insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, error, created_at, waiting_since, leased_until)
select md5('running')::uuid, t.provider, 'sync_integration', t.id, t.user_id, 'queued',
    case when n % 4 = 0 then '{"code": "server_error", "message": "Stripe ne répond pas correctement pour le moment : un nouvel essai suivra."}'::jsonb end,
    $now - interval '40 seconds', $now - interval '40 seconds', case when n % 4 <> 0 then clock_timestamp() + interval '1 minute' end
from (select *, row_number() over (order by id) as n from public.integration_tokens) t where n <= 12;
insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, result, payload, created_at, settled_at)
select md5('month')::uuid, 'months', 'sync_month', u.id, u.id, case when right(u.id::text, 2) = '09' then 'partial' else 'done' end,
    case when right(u.id::text, 2) = '09' then '{"records": 1, "uncounted_currencies": ["USD"]}'::jsonb else '{"records": 4}' end, '{"month": "2026-10"}', $now - interval '20 days', $now - interval '20 days'
from auth.users u;

-- Mails of two weeks, and some that did not go well.
insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, status, reason, feedback, planned_at, settled_at)
select 'look/' || k || '/' || day || '/' || u.id, k, u.id, u.id, gen_random_uuid(),
    case when h % 23 = 0 then 'skipped' when h % 57 = 1 then 'expired' when h % 91 = 2 and day in (4, 9) then 'refused' else 'sent' end,
    case when h % 23 = 0 then (array['refused_by_user', 'suppressed', 'paid_plan'])[1 + h % 3] when h % 57 = 1 then 'expired' when h % 91 = 2 and day in (4, 9) then 'Resend a refusé ce courriel : invalid recipient' end,
    case when h % 47 = 3 then 'bounced' end, $now - make_interval(days => day), $now - make_interval(days => day)
from auth.users u, generate_series(0, 13) day, unnest(array['threshold_alert', 'monthly_reminder', 'monthly_recap', 'marketing_day3']) k,
    lateral (select abs(hashtext(k || day || u.id::text)) as h) x
where case k when 'marketing_day3' then h % 12 = 0 when 'threshold_alert' then h % 20 = 0 when 'monthly_recap' then day = 11 else day = 9 end;
insert into jobs.job_items (run_id, lane, kind, subject, user_id, status, result, error, created_at, settled_at)
select md5('alerts')::uuid, 'alerts', 'threshold_alert', md5('mail' || u.id)::uuid, u.id, case when n < 9 then 'done' else 'failed' end,
    jsonb_build_object('mail', case when n < 9 then 'sent' when n = 9 then 'unknown' else 'refused' end),
    case when n = 9 then '{"code": "unknown_outcome", "message": "On ne sait pas si Resend a accepté ce courriel."}'::jsonb
        when n = 10 then '{"code": "refused", "message": "Resend a refusé ce courriel : invalid recipient"}' end, $now - interval '2 days', $now - interval '2 days'
from (select id, row_number() over (order by id) as n from auth.users) u where n <= 10;
update jobs.job_runs set status = 'partial' where run_id = md5('alerts')::uuid;
insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, item_id, status, reason, settled_at)
select 'look/' || i.item_id, 'threshold_alert', i.user_id, i.user_id, i.run_id, i.item_id, i.result ->> 'mail', i.error ->> 'message', i.settled_at
from jobs.job_items i where i.lane = 'alerts';
insert into jobs.email_suppressions (address_hash, reason) values (sha256('a'), 'bounced'), (sha256('b'), 'complained');

-- One user of whom there is something of everything: the page of a user is looked at with them.
update jobs.integration_state s set account = 'acct_7', activity = 'Prestation de services', first_month = date_trunc('month', $now - interval '2 months')::date,
    counted = datemultirange(daterange(date_trunc('month', $now - interval '2 months')::date, null)), last_success_to = $now - interval '4 days', refusals = 14,
    trouble_mailed_at = $now - interval '2 days'
where s.user_id = '00000000-0000-4000-8000-000000000007';
insert into public.integration_tokens (id, user_id, provider, access_token, shop_domain, connected_at)
values (md5('second')::uuid, '00000000-0000-4000-8000-000000000007', 'shopify', 'x', 'atelier-des-lilas.myshopify.com', $now - interval '20 days');
insert into jobs.integration_state (user_id, provider, account, activity, first_month, counted, last_success_at, last_success_to, all_orders)
values ('00000000-0000-4000-8000-000000000007', 'shopify', 'atelier-des-lilas.myshopify.com', 'Vente de marchandises', date_trunc('month', $now)::date,
    datemultirange(daterange(date_trunc('month', $now)::date, null)), $now - interval '5 hours', $now - interval '5 hours', false);
insert into jobs.former_accounts (user_id, provider, account, first_month, counted, covered, replaced_at, left_out)
values ('00000000-0000-4000-8000-000000000007', 'stripe', 'acct_essai', date_trunc('month', $now - interval '3 months')::date, '{}', '{}', $now - interval '50 days', true);
insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state, method)
select '00000000-0000-4000-8000-000000000007', 'stripe', 'txn_1QabcDEF' || n, 'acct_7', case when n % 9 = 5 then 'refund' else 'payment' end,
    date_trunc('month', $now) + make_interval(hours => 9 + n * 11), case when n % 9 = 5 then -1 else 1 end * (1990 + n * 731), case n when 8 then 'USD' else 'EUR' end,
    array['ch_' || n, 'pi_' || n], case when n % 9 = 5 then 'refund' else 'charge' end, case n when 12 then 'pending' else 'succeeded' end, case n when 12 then 'sepa_debit' else 'card' end
from generate_series(1, 40) n;
insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, method)
select '00000000-0000-4000-8000-000000000007', 'shopify', (88000 + n)::text, 'atelier-des-lilas.myshopify.com', 'payment', date_trunc('month', $now) + make_interval(hours => 9 + n * 11),
    1990 + n * 731, 'EUR', array['ch_' || n, 'gid://shopify/Order/' || n], 'tender', case n when 3 then 'gift_card' else 'shopify_payments' end
from generate_series(1, 4) n;
insert into jobs.integration_transactions (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency)
select '00000000-0000-4000-8000-000000000007', 'stripe', 'txn_old' || n, case n when 3 then 'acct_essai' else 'acct_7' end, 'payment', $now - make_interval(months => n), 45000, 'EUR' from generate_series(1, 3) n;
-- Seen on its day: the page is of an instant, whenever it is drawn.
update jobs.integration_transactions set first_seen_at = coalesce(occurred_at, $now) where user_id = '00000000-0000-4000-8000-000000000007';
insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
select '00000000-0000-4000-8000-000000000007', extract(year from at), extract(month from at), 'Prestation de services', 450 * (n + 1), 'auto_sync', to_char(at, 'YYYY-MM') || '/x', '{"status": "complete"}'
from generate_series(0, 2) n, lateral (select $now - make_interval(months => n) as at) x;
insert into public.ca_records (user_id, year, month, activity_type, amount_eur)
values ('00000000-0000-4000-8000-000000000007', extract(year from $now), extract(month from $now), 'Prestation de services', 32000);
insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
select r.user_id, make_date(r.year, r.month, 1), r.activity_type, r.id, r.amount_eur, r.amount_eur + 100, $now - interval '3 days' from public.ca_records r
where r.user_id = '00000000-0000-4000-8000-000000000007' and r.external_id is not null;
insert into jobs.threshold_alerts (user_id, year, threshold, step, run_id, created_at)
values ('00000000-0000-4000-8000-000000000007', extract(year from $now), 'vat_base_services', 80, gen_random_uuid(), $now - interval '40 days');
insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, status, provider_id, planned_at, settled_at)
select 'monthly_recap/' || id || '/' || to_char($now - interval '1 month', 'YYYY-MM'), 'monthly_recap', id, id, gen_random_uuid(), '{"total": 90000, "provisional_at": "2026-10-31T07:00:00Z"}', 'sent',
    '4ef9a417-02e9-4d39-ad75-9611e0fcc33c', $now - interval '22 days', $now - interval '22 days' from auth.users where id = '00000000-0000-4000-8000-000000000007';
