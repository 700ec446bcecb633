-- The ledger mirrors the source: what a provider said last, what is known beyond that, and why a row does not count.
-- What stands in it keeps its meaning; of accounts that were replaced before, the books are put aside. Then: the learned
-- pace, contributions of imported rows, a month's further chances, outages of a provider, sessions that end, tries by
-- address, and the function's clock in what decides.
--
-- Locks: integration_transactions is rewritten (a fill and two generated columns), which keeps settlements of syncs waiting:
-- 13 seconds for a million rows on two cores. Everything else is a change of the catalogue. One transaction, lock_timeout 5 s.

begin;
set local lock_timeout = '5s';

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts when
-- it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for debit
-- payment methods"). A payment that failed was never received, so the row that takes it back does not count either.
create function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('pending', 'unknown') then 'pending'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%giftcard%' then 'gift_card'
        when lower(regexp_replace(p_method, '[^A-Za-z]', '', 'g')) like '%storecredit%' then 'store_credit'
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

alter table jobs.job_runs add column took interval;          -- measured by the database, from started_at to the end
-- What decides is dated by the function's clock.
alter table jobs.job_slots alter column claimed_at drop default;
alter table jobs.email_batches alter column sealed_at drop default;
alter table jobs.email_events alter column received_at drop default;
alter table jobs.found_alerts alter column found_at drop default;
alter table jobs.job_answers alter column answered_at drop default;

-- Since when an item's subject waits, however often it was planned anew.
alter table jobs.job_items add column waiting_since timestamptz not null default clock_timestamp();
update jobs.job_items set waiting_since = created_at where status = 'queued';

-- Who cannot be read, by what of theirs.
create table jobs.unreadable_input (
    user_id uuid not null references auth.users (id) on delete cascade,
    part text not null,                              -- books, account
    flaw text not null,
    since timestamptz not null,                      -- the instant at which it was found first
    primary key (user_id, part)
);
create index unreadable_input_since on jobs.unreadable_input (since, user_id);
insert into jobs.unreadable_input (user_id, part, flaw, since) select user_id, 'books', flaw, since from jobs.unreadable_books;
drop table jobs.unreadable_books;

-- Tries to sign in are counted by address; those of before are forgotten.
delete from jobs.job_sign_ins;
alter table jobs.job_sign_ins alter column tried_at drop default, add column address text not null;
-- How often somebody has signed out. A session carries the number of its beginning and is worth nothing under another.
create table jobs.job_sign_outs (
    single boolean primary key default true check (single),
    epoch bigint not null
);
insert into jobs.job_sign_outs (epoch) values (0);

alter table jobs.job_paces
    add column version bigint not null default 0,           -- of what is learned: what was decided from an older one is not stored
    add column learned jsonb,                               -- the pace that instances have found out; null: none yet
    add column since timestamptz,                           -- when it was stored, or last looked at
    add column answered integer not null default 0;         -- requests of this version that were answered since

-- What did not count keeps its reason: a gift card by how it was paid, a buyer's currency as not converted.
alter table jobs.integration_transactions
    alter column occurred_at drop not null,
    alter column amount_minor drop not null,
    alter column currency drop not null,
    drop constraint integration_transactions_currency_check,
    add column source_kind text,                            -- the provider's own name of the kind
    add column state text,                                  -- of the payment or dispute behind it; null: not told, or has none
    add column method text,                                 -- how it was paid, in the provider's words
    add column listed_at timestamptz,                       -- the date under which the provider lists it
    add column converted boolean not null default true,     -- false: amount and currency are the buyer's
    add column original jsonb;                              -- as read, where that differs: {amount, currency, rate_from}
update jobs.integration_transactions t set
    listed_at = t.occurred_at,
    method = nullif(t.excluded, 'unresolved_currency'),
    converted = t.excluded is distinct from 'unresolved_currency',
    source_kind = case
        when t.provider = 'shopify' then case t.kind when 'dispute' then 'dispute' else 'tender' end
        else case t.kind when 'payment' then 'charge' when 'partial_capture' then 'partial_capture_reversal' else t.kind end end;
alter table jobs.integration_transactions drop column excluded, drop column paris_month;
alter table jobs.integration_transactions
    add column paris_month date not null generated always as
        (date_trunc('month', coalesce(occurred_at, first_seen_at) at time zone 'Europe/Paris')::date) stored,
    add column excluded text generated always as
        (jobs.why_excluded(kind, state, method, occurred_at, amount_minor, currency, converted)) stored;
create index integration_transactions_month on jobs.integration_transactions (user_id, paris_month);
create index integration_transactions_open on jobs.integration_transactions (user_id, provider)
    where excluded in ('pending', 'failed', 'unknown_kind', 'platform_reversal');

alter table jobs.integration_state
    add column claimed text,                     -- the account that the row named when a run first planned it …
    add column claimed_at timestamptz,           -- … and when that was
    add column deep_read_to timestamptz,         -- end of the last one that reached far back for rows that show late
    add column all_orders boolean,               -- false: the scope reaches 60 days back only; null: not told
    add column left_out boolean not null default false;     -- taken out of the books: see leave_account_out
-- What a token reaches is told when it is proven: each shop's is proven once more.
update jobs.integration_state set proof = null where provider = 'shopify' and proof is not null;

create table jobs.former_accounts (
    user_id uuid not null references auth.users (id) on delete cascade,
    provider text not null check (provider in ('shopify', 'stripe')),
    account text not null,
    activity text,
    first_month date,
    counted datemultirange not null,
    covered tstzmultirange not null,
    last_success_to timestamptz,
    replaced_at timestamptz not null,            -- when another account was proven in its place
    left_out boolean not null default false,     -- taken out of the books: see leave_account_out
    primary key (user_id, provider, account)
);
-- Until the month of its last movement.
insert into jobs.former_accounts (user_id, provider, account, activity, first_month, counted, covered, replaced_at)
select s.user_id, s.provider, t.account, s.activity, s.first_month,
    s.counted * datemultirange(daterange(null, (max(t.paris_month) + interval '1 month')::date)), '{}', max(t.occurred_at)
from jobs.integration_state s
join jobs.integration_transactions t on t.user_id = s.user_id and t.provider = s.provider and t.account <> s.account
group by s.user_id, s.provider, t.account;

alter table jobs.auto_sync_totals
    -- What the row's other columns hold from us (see write_estimates); null: nothing yet.
    add column written_contrib_eur numeric(12, 2),
    add column written_net_eur numeric(12, 2),
    add column written_ir_mode text,
    add column written_ir_eur numeric(12, 2);

create table jobs.rates_in_use (
    is_only boolean primary key default true check (is_only),
    rates jsonb not null      -- [{activity, from: YYYY-MM, full, acre_half, acre_three_quarters, flat_tax}]: 1230 is 12.3 %
);

-- A failure ({code, message}) as it is kept and told: cut, whatever a vendor's or a user's words have made of it.
create function jobs.cut_failure(p_failure jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'code', left(p_failure ->> 'code', 80), 'message', left(p_failure ->> 'message', 500)))
    where jsonb_typeof(p_failure) = 'object';
$$;

-- Whether there is such a user: who asks for one by id may have mistyped it.
create function public.jobs_user_exists(p_user_id uuid) returns boolean
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select exists (select from auth.users u where u.id = p_user_id);
$$;

-- Sends one message for each queued item of a run, whoever has waited longest first: the end of every plan, in its
-- transaction.
create or replace function jobs.send_items(p_run_id uuid) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    for batch in
        select lane, kind, version, array_agg(item_id order by waiting_since, item_id) as items
        from jobs.job_items where run_id = p_run_id and status = 'queued'
        group by lane, kind, version
    loop
        perform jobs.send_messages(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
    end loop;
end $$;

-- Writes an item's result and takes its message away. Call only on a held item.
create or replace function jobs.finish_item(
    p_item_id bigint, p_status text, p_result jsonb, p_error jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
begin
    update jobs.job_items
    set status = p_status, result = p_result, error = jobs.cut_failure(p_error), progress = '{}',
        leased_until = null, settled_at = p_now
    where item_id = p_item_id returning * into i;
    perform pgmq.delete('jobs_' || i.lane, i.msg_id);
end $$;

-- Claims up to p_limit visible messages of a lane for p_seconds; fewer only where no more are visible. A repeated claim
-- gives the same items again. Null: only messages without an item were seen so far, ask again.
--   [{item_id, run_id, version, kind, subject, user_id, payload, progress, attempts, as_of}]
create or replace function public.jobs_claim(p_claim uuid, p_lane text, p_limit integer, p_seconds integer)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
    begun constant timestamptz := clock_timestamp();
    wanted integer := p_limit;
    emptied boolean := false;
    message record;
    read_ids bigint[];
    read_items bigint[];
    alive bigint[];
    orphans bigint[];
begin
    if exists (select from jobs.job_items where lease_id = p_claim and status = 'queued') then
        wanted := 0;
    end if;
    while wanted > 0 and clock_timestamp() < begun + interval '10 s' loop
        -- After a round with orphans there are probably more of them: look at many at once.
        select array_agg(m.msg_id order by m.msg_id), array_agg((m.message ->> 'item_id')::bigint order by m.msg_id)
        into read_ids, read_items
        from pgmq.read('jobs_' || p_lane, p_seconds, case when orphans is null then wanted else 1000 end) m;
        emptied := read_ids is null;
        exit when emptied;

        -- Without a condition on the status, which statistics may not know of yet: by the primary key.
        select array_agg(l.item_id) filter (where l.status = 'queued') into alive from (
            select i.item_id, i.status from jobs.job_items i
            where i.item_id = any (read_items) order by i.item_id for update) l;
        update jobs.job_items i
        set lease_id = p_claim, msg_id = p.msg_id, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from (select * from unnest(read_ids, read_items) as t (msg_id, item_id)
              where item_id = any (alive) order by msg_id limit wanted) p
        where i.item_id = p.item_id;

        -- Seen while looking for orphans, and more than wanted: visible again.
        for message in
            select t.msg_id from unnest(read_ids, read_items) as t (msg_id, item_id)
            where t.item_id = any (alive) order by t.msg_id offset wanted
        loop
            perform pgmq.set_vt('jobs_' || p_lane, message.msg_id, 0);
        end loop;
        wanted := wanted - coalesce(cardinality(alive), 0);

        -- Their item is settled, superseded, or gone with its user.
        select array_agg(t.msg_id) into orphans from unnest(read_ids, read_items) as t (msg_id, item_id)
        where alive is null or t.item_id <> all (alive);
        exit when orphans is null;
        perform pgmq.delete('jobs_' || p_lane, orphans);
    end loop;
    if not emptied and wanted = p_limit and p_limit > 0 then
        return 'null'::jsonb;
    end if;

    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'item_id', i.item_id, 'run_id', i.run_id, 'version', i.version, 'kind', i.kind, 'subject', i.subject,
            'user_id', i.user_id, 'payload', i.payload, 'progress', i.progress, 'attempts', i.attempts,
            'as_of', r.as_of) order by i.item_id)
        from jobs.job_items i join jobs.job_runs r using (run_id)
        where i.lease_id = p_claim and i.status = 'queued'), '[]');
end $$;

-- Gives an item back. With an error it is an attempt, and attempt number p_max_attempts fails the item. Without one
-- (budget, quota, rate limit, our own key refused) it is none.
--   {state: queued | failed | lost, attempts}
create or replace function public.jobs_give_back(
    p_item_id bigint, p_lease_id uuid, p_delay_seconds integer, p_error jsonb, p_max_attempts integer,
    p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    hold text := jobs.hold_item(p_item_id, p_lease_id);
    i jobs.job_items;
begin
    if hold <> 'held' then
        select * into i from jobs.job_items where item_id = p_item_id;
        if i.returned_lease = p_lease_id and i.status = 'queued' then
            return jsonb_build_object('state', 'queued', 'attempts', i.attempts);  -- a repeated call
        end if;
        return jsonb_build_object(
            'state', case when hold = 'lost' then 'lost' else i.status end, 'attempts', i.attempts);
    end if;
    if p_error is not null then
        update jobs.job_items set attempts = attempts + 1, error = jobs.cut_failure(p_error) where item_id = p_item_id;
    end if;
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.attempts >= p_max_attempts then
        perform jobs.finish_item(p_item_id, 'failed',
            jsonb_build_object('user_id', i.user_id, 'status', 'error', 'records', 0, 'error', i.error),
            i.error, p_now);
        insert into public.sync_logs (user_id, provider, sync_type, status, error_message, metadata, synced_at)
        select i.user_id, 'jobs', r.trigger, 'error', i.error ->> 'message',
            jsonb_build_object('run_id', i.run_id, 'kind', i.kind, 'code', i.error -> 'code'), p_now
        from jobs.job_runs r where r.run_id = i.run_id;
        return jsonb_build_object('state', 'failed', 'attempts', i.attempts);
    end if;
    -- Without a lease the old holder is fenced off, and a repeated call does not count twice.
    update jobs.job_items set lease_id = null, leased_until = null, returned_lease = p_lease_id
    where item_id = p_item_id;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_delay_seconds);
    return jsonb_build_object('state', 'queued', 'attempts', i.attempts);
end $$;

drop function public.jobs_close_runs;

-- Closes the runs that have nothing queued any more: success, partial (some of it failed), error (all of it). A mail
-- that was not wanted any more is no failure. Answers how many were closed.
create function public.jobs_close_runs(p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    closed integer;
begin
    with ended as (
        select r.run_id,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'superseded') as superseded,
            count(*) filter (where i.status = 'skipped') as skipped
        from jobs.job_runs r left join jobs.job_items i using (run_id)
        where r.finished_at is null
            -- Asked first and by an index of its own: a run with work left is not added up each time.
            and not exists (select from jobs.job_items q where q.run_id = r.run_id and q.status = 'queued')
        group by r.run_id
    )
    update jobs.job_runs r
    set finished_at = p_now, took = clock_timestamp() - r.started_at,
        counts = jsonb_build_object('done', e.done, 'partial', e.partial, 'failed', e.failed,
            'superseded', e.superseded, 'skipped', e.skipped),
        status = case
            when e.failed + e.partial + e.superseded = 0 then 'success'
            when e.done + e.partial + e.superseded + e.skipped = 0 then 'error'
            else 'partial' end
    from ended e where r.run_id = e.run_id and r.finished_at is null;
    get diagnostics closed = row_count;
    return closed;
end $$;

-- An item's result as an answer lists it: whole, or where it is very large only what stands for it.
create function jobs.told_result(p_result jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select case when octet_length(p_result::text) <= 16384 then p_result else jsonb_strip_nulls(jsonb_build_object(
        'user_id', p_result -> 'user_id', 'userId', p_result -> 'userId', 'provider', left(p_result ->> 'provider', 80),
        'status', left(p_result ->> 'status', 80), 'records', p_result -> 'records',
        'month_status', left(p_result ->> 'month_status', 80), 'error', jobs.cut_failure(p_result -> 'error'),
        'cut', true)) end;
$$;

drop function public.jobs_report;

-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails. Errors are
-- grouped by code and message. However much there is to tell, the answer is small: as many results come as p_limit and
-- p_bytes let pass. First closes the runs that have nothing queued any more.
--   {run_id, status, slot, trigger, started_at, plan, counts: {…}, in_flight, records,
--    errors: [{code, message, count}], results: [first results], results_total,
--    mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create function public.jobs_report(p_run_id uuid, p_limit integer, p_bytes integer, p_now timestamptz) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array(select l.lane from jobs.known_lanes() l where l.is_mail);
begin
    perform public.jobs_close_runs(p_now);
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
                from jobs.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1, 2 order by 3 desc, 1, 2 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select l.item_id, l.result, sum(octet_length(l.result::text)) over (order by l.item_id) as bytes
                from (select item_id, jobs.told_result(result) as result from jobs.job_items
                      where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                      order by item_id limit p_limit) l) t
                where t.bytes <= p_bytes),
            'results_total', s.results_total,
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select left(coalesce(result ->> 'reason', result ->> 'mail'), 80) as reason, count(*) as n
                    from jobs.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped'
                    group by 1 order by 2 desc, 1 limit 20) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select left(error ->> 'code', 80) as code, left(error ->> 'message', 500) as message,
                        count(*) as count
                    from jobs.job_items
                    where run_id = p_run_id and lane = m.lane and error is not null and status in ('queued', 'failed')
                    group by 1, 2 order by 3 desc, 1, 2 limit 20) e))), '{}')
                from (select lane, count(*) as planned,
                        count(*) filter (where status = 'queued') as queued,
                        count(*) filter (where status = 'done') as sent,
                        count(*) filter (where status = 'skipped') as skipped,
                        count(*) filter (where status = 'failed') as failed,
                        count(*) filter (where status = 'failed' or (status = 'queued' and error is not null)) as erred
                      from jobs.job_items where run_id = p_run_id and lane = any (mail_lanes) group by lane) m))
        from jobs.job_runs r, (
            select jsonb_build_object(
                    'planned', count(*) filter (where data),
                    'queued', count(*) filter (where data and status = 'queued'),
                    'done', count(*) filter (where data and status = 'done'),
                    'partial', count(*) filter (where data and status = 'partial'),
                    'failed', count(*) filter (where data and status = 'failed'),
                    'superseded', count(*) filter (where data and status = 'superseded'),
                    -- Queued, and a part of it is stored already.
                    'begun', count(*) filter (where data and status = 'queued' and progress ? 'lease'),
                    -- Failed altogether or in part, or waiting for another attempt: what `errors` counts.
                    'erred', count(*) filter (where data and (status = 'failed'
                        or (status in ('partial', 'queued') and error is not null))))
                    as counts,
                count(*) filter (where status = 'queued' and leased_until > clock_timestamp()) as in_flight,
                coalesce(sum((result ->> 'records')::bigint), 0) as records,
                count(*) filter (where data and status in ('done', 'partial', 'failed')) as results_total
            from (select i.*, i.lane <> all (mail_lanes) as data from jobs.job_items i where i.run_id = p_run_id) i) s
        where r.run_id = p_run_id);
end $$;

-- How much waits in each lane that has anything queued, for drain-queue and the operator.
--   {lane: {queued, in_flight, oldest}}
create or replace function public.jobs_lanes() returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_object_agg(lane, jsonb_build_object(
        'queued', queued, 'in_flight', in_flight, 'oldest', oldest)), '{}')
    from (select lane, count(*) as queued, count(*) filter (where leased_until > clock_timestamp()) as in_flight,
            min(waiting_since) as oldest
        from jobs.job_items where status = 'queued' group by lane) l;
$$;

drop function public.jobs_log;

-- Writes one row of sync_logs for a whole call, whose answer is kept where it is no larger than 64 KiB. A repeated call
-- with the same p_id writes nothing.
create function public.jobs_log(
    p_id uuid, p_sync_type text, p_status text, p_records integer, p_error text, p_metadata jsonb, p_now timestamptz
) returns void language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    insert into public.sync_logs
        (id, user_id, provider, sync_type, status, records_synced, error_message, metadata, synced_at)
    values (p_id, null, 'jobs', p_sync_type, p_status, p_records, left(p_error, 1000),
        case when octet_length(p_metadata::text) <= 65536 then p_metadata else p_metadata - 'answer' end, p_now)
    on conflict (id) do nothing;
$$;

drop function public.jobs_lease_turns;

-- Leases p_count turns, p_interval_us apart, to who knows p_version of what is learned; to nobody else. Answers in how
-- many microseconds the first one comes, and what is known. A repeated call leases others and counts p_answered again:
-- nobody takes the first ones, and nothing is asked too fast.
create function public.jobs_lease_turns(
    p_name text, p_count integer, p_interval_us integer, p_version bigint, p_answered integer
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    span interval := make_interval(secs => p_count::double precision * p_interval_us / 1000000);
    pace jobs.job_paces;
    now_at timestamptz;
    first_turn timestamptz;
begin
    insert into jobs.job_paces as p (name, next_at, since)
    values (p_name, clock_timestamp(), clock_timestamp())
    on conflict (name) do update
        set answered = p.answered + case when p.version = p_version then p_answered else 0 end
    returning * into pace;
    now_at := clock_timestamp();
    if pace.version = p_version then
        -- What an earlier lease left far ahead (a changed clock) is not waited for.
        first_turn := least(greatest(pace.next_at, now_at), now_at + interval '2 minutes');
        update jobs.job_paces set next_at = first_turn + span where name = p_name;
    end if;
    return jsonb_build_object(
        'wait_us', ceil(extract(epoch from first_turn - now_at) * 1000000)::bigint,
        'version', pace.version,
        'learned', pace.learned,
        'window_us', greatest(0, ceil(extract(epoch from now_at - coalesce(pace.since, now_at)) * 1000000))::bigint,
        'answered', pace.answered);
end $$;

-- Stores what was decided from p_version, unless another one is known by now; answers what is known then. The same pace
-- again begins to count anew. A repeated call finds its own and answers it.
create function public.jobs_learn_pace(p_name text, p_version bigint, p_learned jsonb) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    update jobs.job_paces
    set version = version + case when learned is distinct from p_learned then 1 else 0 end,
        learned = p_learned, since = clock_timestamp(), answered = 0
    where name = p_name and version = p_version;
    return (select jsonb_build_object('version', version, 'learned', learned)
        from jobs.job_paces where name = p_name);
end $$;

-- A text that is stored for us to use as it is (a token, an account, a domain), or null where it is too long to be one.
-- Never cut: a part of an identifier is another identifier.
create or replace function jobs.readable_identifier(p_text text) returns text
language sql immutable as $$
    select case when octet_length(p_text) <= 2048 and octet_length(to_json(p_text)::text) <= 2560 then p_text end;
$$;

-- How these users say that they are taxed. A name of ours or null; without a row nothing is known.
create function jobs.tax_profiles(p_users uuid[])
returns table (user_id uuid, created date, has_acre boolean, income_tax text)
language sql stable set search_path = '' as $$
    select o.user_id, jobs.readable_date(o.company_creation_date), o.has_acre,
        case when o.ir_mode in ('versement_liberatoire', 'bareme', 'non_soumis') then o.ir_mode end
    from public.user_onboarding_data o where o.user_id = any (p_users);
$$;

-- What is wrong with the accounts of these users: metadata that is no object, is very large, or has something else than
-- a text or yes and no where a plan is said; a name that is no name. No mail depends on either: they are ignored, and
-- named.
create function jobs.account_flaws(p_users uuid[]) returns table (user_id uuid, flaw text)
language sql stable set search_path = '' as $$
    select f.user_id, f.flaw from (
        select u.id as user_id,
            case
                -- As stored: what is large is not looked into.
                when pg_column_size(u.raw_user_meta_data) > 16384
                    or jsonb_typeof(u.raw_user_meta_data) not in ('object', 'null')
                    or exists (select from (values ('plan', 'string'), ('subscription_plan', 'string'),
                            ('is_pro', 'boolean'), ('is_premium', 'boolean')) as k (name, kind)
                        where jsonb_typeof(u.raw_user_meta_data -> k.name) not in (k.kind, 'null', 'string'))
                    then 'unreadable_metadata'
                when octet_length(p.full_name) > 400 or left(p.full_name, 400) ~ '[[:cntrl:]]' then 'unreadable_name'
            end as flaw
        from auth.users u left join public.user_profiles p on p.id = u.id
        where u.id = any (p_users)) f
    where f.flaw is not null;
$$;

-- The books of these users in some years, in cents: added up by year and activity, typed and imported apart, and months
-- that have both once more by month. One row for each user who has any; with a flaw there are no years.
--   years: [{year, sums: [{activity, typed, imported}], mixed: [{month, activity, typed, imported}]}]
create or replace function jobs.books(p_users uuid[], p_first_year integer, p_last_year integer)
returns table (user_id uuid, created date, years jsonb, flaw text)
-- Never by loops: how many rows each step has is not known, and loops over thousands of users take minutes.
language sql stable set search_path = '' set enable_nestloop = off as $$
    with cells as materialized (
        select r.user_id, r.year, r.month, left(r.activity_type, 80) as activity, count(*) as entries,
            coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100 as imported,
            bool_or(r.source <> 'auto_sync') as is_typed, bool_or(r.source = 'auto_sync') as is_imported
        from public.ca_records r
        where r.user_id = any (p_users) and r.year between p_first_year and p_last_year
        group by 1, 2, 3, 4
    ), owners as materialized (
        select c.user_id, jobs.readable_date(o.company_creation_date) as created,
            case
                when bool_or('NaN' in (c.typed, c.imported)) then 'unreadable_amount'
                when sum(c.entries) > 50000 then 'too_many_rows'
                when count(distinct c.activity) > 100 then 'too_many_activities'
                when o.company_creation_date is not null and jobs.readable_date(o.company_creation_date) is null
                    then 'unreadable_creation_date'
            end as flaw
        from cells c left join (
            -- By their ids: all of it would be read for one user.
            select d.user_id, d.company_creation_date from public.user_onboarding_data d where d.user_id = any (p_users)
        ) o on o.user_id = c.user_id
        group by c.user_id, o.company_creation_date
    ), sound as materialized (
        select c.user_id, c.year, c.month, c.activity, c.typed::bigint as typed, c.imported::bigint as imported,
            bool_or(c.is_typed) over w and bool_or(c.is_imported) over w as is_mixed
        from cells c join owners n on n.user_id = c.user_id and n.flaw is null
        window w as (partition by c.user_id, c.year, c.month)
    ), sums as (
        select s.user_id, s.year, s.activity, sum(s.typed)::bigint as typed, sum(s.imported)::bigint as imported
        from sound s group by 1, 2, 3
    ), mixed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('month', s.month, 'activity', s.activity,
            'typed', s.typed, 'imported', s.imported) order by s.month, s.activity) as months
        from sound s where s.is_mixed group by 1, 2
    ), summed as (
        select s.user_id, s.year, jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', s.typed,
            'imported', s.imported) order by s.activity) as sums
        from sums s group by 1, 2
    ), years as (
        select s.user_id, s.year, jsonb_build_object('year', s.year, 'sums', s.sums,
            'mixed', coalesce(m.months, '[]')) as year_books
        from summed s left join mixed m on m.user_id = s.user_id and m.year = s.year
    ), books as (
        select y.user_id, jsonb_agg(y.year_books order by y.year) as years from years y group by 1
    )
    select n.user_id, n.created, b.years, n.flaw from owners n left join books b using (user_id);
$$;

-- What stands in a user's books for a month, in cents; amounts are null with a flaw.
create or replace function jobs.month_books(p_user_id uuid, p_month date)
returns table (recorded bigint, typed bigint, entries integer, flaw text)
language sql stable set search_path = '' as $$
    with sums as (
        select coalesce(sum(r.amount_eur), 0) * 100 as recorded,
            sum(r.amount_eur) filter (where r.source <> 'auto_sync') * 100 as typed, count(*) as entries
        from (select * from public.ca_records a
              where a.user_id = p_user_id and a.year = extract(year from p_month)
                  and a.month = extract(month from p_month)
              limit 50001) r
    ), judged as (
        select s.*, case when s.recorded = 'NaN' then 'unreadable_amount'
            when s.entries > 50000 then 'too_many_rows' end as flaw from sums s
    )
    select case when j.flaw is null then j.recorded::bigint end, case when j.flaw is null then j.typed::bigint end,
        j.entries::integer, j.flaw
    from judged j;
$$;

-- What a user's books hold for a month, and for its quarter up to its end, by activity, in cents: what there is to
-- declare. Null where it cannot be read (see month_books), or has more than 20 activities.
--   [{activity, typed, imported, quarter}]
create function jobs.books_to_declare(p_user_id uuid, p_month date) returns jsonb
language sql stable set search_path = '' as $$
    with found as materialized (
        select * from public.ca_records a
        where a.user_id = p_user_id and a.year = extract(year from p_month)
            and a.month between extract(month from date_trunc('quarter', p_month)) and extract(month from p_month)
        limit 50001
    ), sums as (
        select left(r.activity_type, 80) as activity, coalesce(sum(r.amount_eur), 0) * 100 as quarter,
            coalesce(sum(r.amount_eur) filter (where r.month = extract(month from p_month) and r.source <> 'auto_sync'), 0)
                * 100 as typed,
            coalesce(sum(r.amount_eur) filter (where r.month = extract(month from p_month) and r.source = 'auto_sync'), 0)
                * 100 as imported
        from found r group by 1
    )
    select case when count(*) <= 20 and (select count(*) from found) <= 50000
            and not coalesce(bool_or('NaN' in (s.quarter, s.typed, s.imported)), false)
        then coalesce(jsonb_agg(jsonb_build_object('activity', s.activity, 'typed', trunc(s.typed),
            'imported', trunc(s.imported), 'quarter', trunc(s.quarter)) order by s.activity), '[]') end
    from sums s;
$$;

-- Whether a movement is money that its month's figure lacks, or may lack: not readable, of an unknown kind, not known in
-- euros. Without a setting of its own, so that it becomes part of the query that uses it. It names no table.
create or replace function jobs.is_uncounted(t jobs.integration_transactions) returns boolean
language sql immutable as $$
    select t.excluded is not null and t.excluded in ('unknown_kind', 'no_date', 'no_currency', 'amount_not_read', 'prevented',
        'unresolved_currency', 'currency');
$$;

-- The first month of an account's books: the Paris month of the connection. The user may write connected_at: it is
-- believed where it lies at most 31 days before a run first saw the account there, and not after p_latest. A replay sees
-- an account at an instant that may lie before its connection: it reaches no month before that.
create function jobs.first_month(p_connected_at timestamptz, p_seen_at timestamptz, p_latest timestamptz) returns date
language sql immutable as $$
    select date_trunc('month', case when p_connected_at between p_seen_at - interval '31 days' and p_latest
        then p_connected_at else p_seen_at end at time zone 'Europe/Paris')::date;
$$;

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, goes on counting their attempts, and has waited as long as they have.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned. Old items by their ids alone: a
-- join would read 90 days of finished ones. No just-in-time compilation, which what loops would have cost sets off.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create or replace function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_nestloop = off set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
    likely bigint[];
    needless bigint[];
    batch record;
begin
    if p_kind not in ('sync_integration', 'sync_month') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        return (
            with c as materialized (select * from jobs.sync_candidates(p_user_id, p_as_of))
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
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;

    -- When an account was first seen at an integration, whenever it can be read: its books begin there.
    with seen as (
        select t.user_id, t.provider, jobs.readable_identifier(jobs.claimed_account(t)) as account
        from jobs.sync_candidates(p_user_id, p_as_of) c join public.integration_tokens t on t.id = c.integration_id
        where c.reason is null
    )
    insert into jobs.integration_state as s (user_id, provider, claimed, claimed_at)
    select n.user_id, n.provider, n.account, p_as_of
    from seen n left join jobs.integration_state k using (user_id, provider)
    where n.account is not null and n.account is distinct from coalesce(k.claimed, k.account)
    order by n.user_id, n.provider     -- as every plan locks them
    on conflict (user_id, provider) do update set claimed = excluded.claimed, claimed_at = excluded.claimed_at;

    -- What is likely to be superseded. Not locked yet: claims of it would wait until the new items are written.
    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(i.item_id) into likely
    from jobs.job_items i join older using (run_id)
    where i.status = 'queued' and i.kind = p_kind
        and (p_user_id is null or i.user_id = p_user_id)
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
        and (p_kind <> 'sync_month' or i.payload = p_payload);

    -- Everything from one look at the integrations.
    with c as materialized (
        select * from jobs.sync_candidates(p_user_id, p_as_of)
    ), planned as (
        insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress, created_at,
            waiting_since)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), p_now, least(w.since, p_now)
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join jobs.inherited_progress(likely, p_payload, p_as_of) t using (subject)
        left join (select i.subject, min(i.waiting_since) as since from jobs.job_items i
            where i.item_id = any (likely) group by 1) w using (subject)
        order by d.user_id, d.subject     -- as the index of all users' items has them: its pages are met once
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n))
    into outline;

    with older as materialized (          -- by their ids: every question about a single user is a run, too
        select r.run_id from jobs.job_runs r
        where r.as_of <= p_as_of and r.run_id = any (array(
            select distinct q.run_id from jobs.job_items q
            where q.status = 'queued' and q.kind = p_kind and q.run_id <> p_run_id))
    )
    select array_agg(l.item_id) into needless from (
        select i.item_id
        from jobs.job_items i join older using (run_id)
        join jobs.job_items n on n.run_id = p_run_id and n.kind = i.kind and n.subject = i.subject
        where i.status = 'queued' and i.kind = p_kind
            and (p_user_id is null or i.user_id = p_user_id)
            and coalesce(i.leased_until, '-infinity') < clock_timestamp()
            and (p_kind <> 'sync_month' or i.payload = p_payload)
        order by i.item_id for update of i) l;

    if needless is not null then
        for batch in
            with ended as (
                update jobs.job_items i set status = 'superseded', settled_at = p_now
                where i.item_id = any (needless)
                returning i.item_id, i.lane
            )
            select lane, array_agg(item_id) as items from ended group by lane
        loop
            -- At once: pgmq deletes by its own ids, which an item that was never claimed does not know. Waits for
            -- nobody.
            execute format('delete from pgmq.%1$I where msg_id = any (array(
                select q.msg_id from pgmq.%1$I q
                where (q.message ->> ''item_id'')::bigint in (select unnest($1))
                for update of q skip locked))', 'q_jobs_' || batch.lane) using batch.items;
        end loop;
    end if;

    -- Most of it was written right at once: a row that is written twice in one transaction has its foreign keys checked
    -- twice, too. Something was tried, stored or claimed since.
    with now as materialized (
        select * from jobs.inherited_progress(needless, p_payload, p_as_of)
    ), differing as (
        select n.item_id, coalesce(t.attempts, 0) as attempts, t.error, coalesce(t.progress, '{}') as progress,
            coalesce(t.payload, p_payload) as payload
        from jobs.job_items n left join now t using (subject)
        where n.run_id = p_run_id and n.kind = p_kind
            and (n.attempts, n.error, n.progress, n.payload) is distinct from
                (coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), coalesce(t.payload, p_payload))
    )
    update jobs.job_items n
    set attempts = d.attempts, error = d.error, progress = d.progress, payload = d.payload
    from differing d where n.run_id = p_run_id and n.kind = p_kind and n.item_id = d.item_id;

    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- What a worker needs to know of the integrations behind claimed items, one object each. Tokens are as stored
-- (encrypted); what is too long to be one comes as an empty one, which opens nothing.
--   [{item_id, integration_id, user_id, provider, access_token, refresh_token, stripe_account_id, shop_domain,
--     proven_account, token_expires_at, last_success_to, deep_read_to, books_from: the first month's first instant,
--     open: [{id, listed_at}]: payments on their way, the oldest hundred}]
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
        select * from public.integration_tokens k where i.kind = 'sync_integration' and k.id = i.subject
        union all
        select * from public.integration_tokens k where i.kind = 'sync_month' and k.user_id = i.subject
    ) t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where i.item_id = any (p_items) and t.is_active;
$$;

drop function public.integration_prove;

-- Notes that the stored token opens exactly p_account. Where another account was connected before, its books are put
-- aside, and those of this one taken up again, should it have been connected once. p_all_orders: whether the token reads
-- orders of any age; null where the provider did not tell.
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
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out)
            -- Until the month in which the other account was seen.
            select t.user_id, t.provider, s.account, s.activity, s.first_month,
                s.counted * datemultirange(daterange(null, (date_trunc('month', r.at at time zone 'Europe/Paris')
                    + interval '1 month')::date)), s.covered, s.last_success_to, r.at, s.left_out
            from (select coalesce(s.claimed_at, s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
            on conflict (user_id, provider, account) do update set
                activity = excluded.activity, first_month = excluded.first_month, counted = excluded.counted,
                covered = excluded.covered, last_success_to = excluded.last_success_to, replaced_at = excluded.replaced_at,
                left_out = excluded.left_out;
        end if;
        delete from jobs.former_accounts k
        where k.user_id = t.user_id and k.provider = t.provider and k.account = p_account returning * into f;
        update jobs.integration_state k set
            account = p_account, activity = f.activity, left_out = false, first_month = null, counted = coalesce(f.counted, '{}'),
            covered = coalesce(f.covered, '{}'), last_success_to = f.last_success_to, deep_read_to = null, all_orders = null,
            token_expires_at = null, refresh_token_expires_at = null
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
create or replace function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
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
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token, 'refresh_token', t.refresh_token,
        'elsewhere', s.account is not distinct from jobs.claimed_account(t) and exists (
            select from public.integration_tokens o
            join jobs.integration_state k on k.user_id = o.user_id and k.provider = o.provider
            where o.provider = t.provider and o.user_id <> t.user_id and o.is_active
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = s.account
                and k.account = s.account and k.proof = jobs.token_fingerprint(o) and k.proven_at > s.proven_at));
end $$;

-- A user's Shopify movements of some months that Stripe reports, too. Each Stripe movement explains one of them.
--
-- Both belong to one order, which the payments' names tell (a refund that names no payment: those of its order). Then
-- amount and currency decide, in euros or in the buyer's currency. A payment that names its charge is that charge,
-- whatever it is worth there (another rate, a part captured); a refund is not: what was paid back in another way, or
-- beside a chargeback, is money of its own. p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create or replace function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with shop as materialized (
        select t.external_id, t.kind, t.paris_month, t.occurred_at, t.amount_minor > 0 as is_in, t.amount_minor, t.currency,
            t.original, t.excluded,
            array(select r from unnest(t.refs) r where r !~ '^gid:' order by r) as names,
            (select r from unnest(t.refs) r where r ~ '^gid:' limit 1) as shop_order
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), sales as materialized (     -- which order, or payment without one, each name belongs to
        select distinct on (n) n as name, coalesce(s.shop_order, s.names[1]) as sale
        from shop s, unnest(s.names) n order by n, s.shop_order
    ), doubted as materialized (
        select s.external_id, s.paris_month, s.is_in, s.amount_minor, s.names, s.names <> '{}' as named,
            coalesce(s.shop_order, s.names[1]) as sale, s.currency || s.amount_minor as euros,
            (s.original ->> 'currency') || (s.original ->> 'amount_minor') as foreign_money, s.occurred_at
        from shop s where s.excluded is null and s.kind in ('payment', 'refund') and (not s.is_in or s.names <> '{}')
    ), named as materialized (     -- one row for each name: joined in one go
        select d.external_id, d.is_in, d.amount_minor, d.occurred_at, n as name from doubted d cross join unnest(d.names) n
    ), told as materialized (
        select t.external_id, t.kind, t.amount_minor > 0 as is_in, t.amount_minor, t.currency || t.amount_minor as euros,
            (t.original ->> 'currency') || (t.original ->> 'amount_minor') as foreign_money, t.occurred_at, r as name
        from jobs.integration_transactions t
        join jobs.integration_state k on k.user_id = t.user_id and k.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        cross join unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR'
            -- A debit on its way, or one that failed, is the same payment in the shop: it was not received there either.
            and (t.excluded is null or t.excluded in ('pending', 'failed'))
            and t.kind in ('payment', 'partial_capture', 'refund') and not coalesce(f.left_out, k.left_out)
            and (not p_written or coalesce(f.counted, k.counted) @> t.paris_month)
    ), whole as materialized (     -- a charge that the shop tells in several pieces, or Stripe does
        select s.name from (
            select n.name, sum(n.amount_minor) as amount from named n where n.is_in group by 1) s
        join (select t.name, sum(t.amount_minor) as amount from told t
            where t.kind in ('payment', 'partial_capture') group by 1) p using (name, amount)
    ), by_name as materialized (
        select distinct n.external_id from named n join whole w using (name) where n.is_in
    ), whole_paid as materialized (
        select distinct t.external_id from told t join whole w using (name) where t.is_in
    ), paid as materialized (
        select distinct on (t.external_id) t.*, s.sale from told t join sales s using (name)
        where t.kind in ('payment', 'refund') order by t.external_id, s.sale
    ), d1 as materialized (
        select d.*, row_number() over (partition by d.sale, d.is_in, d.euros
            order by d.named desc, d.occurred_at, d.external_id) as nth
        from doubted d where not exists (select from by_name n where n.external_id = d.external_id)
    ), p1 as materialized (
        select p.*, row_number() over (partition by p.sale, p.is_in, p.euros order by p.occurred_at, p.external_id) as nth
        from paid p
        where not exists (select from whole_paid w where w.external_id = p.external_id)
    ), by_euros as materialized (
        select d1.external_id as shop_id, p1.external_id as stripe_id
        from d1 join p1 using (sale, is_in, euros, nth)
    ), d2 as materialized (
        select d.sale, d.is_in, d.foreign_money, d.external_id, row_number() over (
            partition by d.sale, d.is_in, d.foreign_money order by d.named desc, d.occurred_at, d.external_id) as nth
        from d1 d where not exists (select from by_euros e where e.shop_id = d.external_id)
    ), p2 as materialized (
        select p.sale, p.is_in, p.foreign_money, p.external_id, row_number() over (
            partition by p.sale, p.is_in, p.foreign_money order by p.occurred_at, p.external_id) as nth
        from p1 p where not exists (select from by_euros e where e.stripe_id = p.external_id)
    ), by_foreign_money as materialized (
        select d2.external_id as shop_id, p2.external_id as stripe_id
        from d2 join p2 using (sale, is_in, foreign_money, nth)
    ), d3 as (                     -- by name alone: a payment by its charge, a refund by its own id
        select n.name, n.is_in, n.external_id,
            row_number() over (partition by n.name, n.is_in order by n.occurred_at, n.external_id) as nth
        from named n join d2 using (external_id)
        where (n.is_in or n.name ~ '^(re|pyr)_')
            and not exists (select from by_foreign_money f where f.shop_id = n.external_id)
    ), p3 as (
        select t.name, t.is_in,
            row_number() over (partition by t.name, t.is_in order by t.occurred_at, t.external_id) as nth
        from told t join p2 using (external_id)
        where not exists (select from by_foreign_money f where f.stripe_id = t.external_id)
    ), explained as (
        select external_id from by_name
        union select shop_id from by_euros
        union select shop_id from by_foreign_money
        union select d3.external_id from d3 join p3 using (name, is_in, nth)
    )
    select e.external_id from explained e join doubted d using (external_id) where d.paris_month = any (p_months);
$$;

-- A user's countable movements of some months, one row for each movement: what counts by its row (why_excluded), and a
-- payment that Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create or replace function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint)
language sql stable set search_path = '' set enable_nestloop = off as $$
    select t.provider, t.paris_month, case when f.account is null then s.activity else f.activity end, t.amount_minor
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.excluded is null and not coalesce(f.left_out, s.left_out)
        and (not p_written or coalesce(f.counted, s.counted) @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
$$;

-- What a user's month lacks or may have twice, by its reason, with how many movements; {} for nothing. Besides the reasons
-- of is_uncounted:
--   pending: a payment that is still on its way, where the month is over
--   platform_reversal: a whole payment that a platform took back, as a refund or as a fee
--   refund_of_unknown_sale: a refund of an order whose payment was never read: Stripe may report it, too
--   maybe_twice: a payment in the shop that names no charge, and one at Stripe of the same amount and day
--   beyond_scope: days that lay more than 60 days back when the shop was read, with a scope that reaches no further: 1
create function jobs.month_flaws(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with found as materialized (
        select t.* from jobs.integration_transactions t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = p_user_id and t.paris_month = p_month and (f.account is null or f.counted @> p_month)
            and not coalesce(f.left_out, s.left_out, false)
    ), sides as materialized (
        select exists (select from jobs.integration_state x
            where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null) as have_stripe
    ), nameless as materialized (  -- payments in the shop that may have gone through Stripe without saying so
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t cross join sides b
        where b.have_stripe and t.provider = 'shopify' and t.kind = 'payment' and t.excluded is null
            and t.method is distinct from 'cash' and not exists (select from unnest(t.refs) r where r !~ '^gid:')
    ), paid_names as materialized (
        select p.external_id, r as name from found p cross join unnest(p.refs) r
        where p.provider = 'stripe' and exists (select from nameless)
    ), shop_names as materialized (
        select n as name from jobs.integration_transactions s cross join unnest(s.refs) n
        where s.user_id = p_user_id and s.provider = 'shopify' and s.kind = 'payment' and exists (select from nameless)
    ), explained as materialized (
        select distinct p.external_id from paid_names p join shop_names s using (name)
    ), unexplained as materialized (  -- payments at Stripe that no payment in the shop names
        select t.amount_minor, (t.occurred_at at time zone 'Europe/Paris')::date as day
        from found t
        where t.provider = 'stripe' and t.kind = 'payment' and t.excluded is null
            and exists (select from nameless)
            and not exists (select from explained e where e.external_id = t.external_id)
    ), flaws as (
        select t.excluded as reason, count(*) as n from found t
        where t.excluded is not null and (
            t.excluded = 'pending' and p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris'
            -- What was prevented was paid back where a refund of the same order says so.
            or t.excluded = 'prevented' and not exists (select from jobs.integration_transactions r
                where r.user_id = p_user_id and r.provider = t.provider and r.kind = 'refund' and r.refs && t.refs
                    and r.amount_minor = t.amount_minor)
            or t.excluded <> 'prevented' and jobs.is_uncounted(t))
        group by 1
        union all
        select 'platform_reversal', count(*) from found t
        where t.excluded = 'platform_reversal' and not exists (
            select from jobs.integration_transactions p
            where p.user_id = p_user_id and p.provider = t.provider and p.kind = 'payment' and p.refs && t.refs
                and p.amount_minor > -t.amount_minor)
        union all
        select 'refund_of_unknown_sale', count(*) from (
            select o from found t cross join sides b, unnest(t.refs) o
            where b.have_stripe and t.provider = 'shopify' and t.kind = 'refund' and t.excluded is null
                and not exists (select from unnest(t.refs) r where r !~ '^gid:')
            except   -- not by loops: see movements_reported_twice
            select o from jobs.integration_transactions p cross join sides b, unnest(p.refs) o
            where b.have_stripe and p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0) r
        union all
        select 'maybe_twice', count(*) from nameless d
        where exists (select from unexplained p where (p.amount_minor, p.day) = (d.amount_minor, d.day))
        union all
        select 'beyond_scope', count(*) from jobs.integration_state s
        cross join lateral (select tstzrange(p_month::timestamp at time zone 'Europe/Paris', least(
            (p_month + interval '1 month') at time zone 'Europe/Paris',
            greatest(p_as_of - interval '60 days', p_month::timestamp at time zone 'Europe/Paris'))) as days) old
        where s.user_id = p_user_id and s.all_orders is false and s.counted @> p_month and not s.covered @> old.days
    )
    select coalesce(jsonb_object_agg(f.reason, f.n) filter (where f.n > 0), '{}') from flaws f;
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up
-- to now), partial (something of it was never read, or it has flaws). It follows from the ledger and from what was read,
-- of each account whose books have the month; of every active integration where none has, or that was never read.
--   {status, flaws?: see month_flaws}
create function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    ), bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), former as materialized (
        select f.covered from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month
    ), sources as (
        select coalesce(s.covered, '{}') as covered, false as is_former
        from public.integration_tokens t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.user_id = p_user_id and t.is_active and s.left_out is not true
            and (s.first_month is null or s.counted @> p_month or (not exists (select from former)
                and not exists (select from jobs.integration_state o where o.user_id = p_user_id and o.counted @> p_month)))
        union all
        -- The month in which an account was replaced holds what was read of it until then, which may not be all.
        select f.covered, true from former f
    )
    select jsonb_strip_nulls(jsonb_build_object('flaws', nullif(f.found, '{}'), 'status', case
        when f.found <> '{}' then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(not s.is_former and s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end))
    from flaws f cross join bounds b left join sources s on true
    group by f.found, b.starts, b.ends;
$$;

-- The status alone.
create or replace function jobs.month_status(p_user_id uuid, p_month date, p_as_of timestamptz) returns text
language sql stable set search_path = '' as $$
    select jobs.month_worth(p_user_id, p_month, p_as_of) ->> 'status';
$$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create or replace function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    wanted jsonb;       -- [{month, activity, amount, metadata}]
    differing jsonb;
begin
    -- 1. Rows that are no longer as we wrote them: theirs.
    update jobs.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));

    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select month, activity, (sum(minor) / 100)::numeric(12, 2) as amount, jobs.month_worth(p_user_id, month, p_as_of) ||
            jsonb_build_object('sources', jsonb_object_agg(provider, (minor / 100)::numeric(12, 2))) as metadata
        from (select c.month, c.activity, c.provider, sum(c.amount_minor)::numeric as minor
              from jobs.countable_movements(p_user_id, p_months, true) c
              where c.activity is not null
              group by 1, 2, 3) t
        group by month, activity) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    delete from jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    update jobs.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from jobs.auto_sync_totals k left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (p_months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update jobs.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and l.written_eur is distinct from w.amount;

    -- 4. New rows. One that is already there under our key was not written by us: theirs. And where a row of the
    -- month that the user has taken over stands for money whose activity has changed since, that money is counted
    -- already.
    with taken as (
        select distinct l.month from jobs.auto_sync_totals l
        where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
            and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
                where w.month = l.month and w.activity = l.activity)
    ), missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
        where not exists (select from jobs.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m where m.month not in (select month from taken)
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;

    perform jobs.write_estimates(p_user_id);

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;

-- Keeps the rates that the code sent. An older version sends none: then the last ones stay.
-- Looks first: an insert that conflicts would lock the one row until its settlement ends.
create function jobs.take_rates(p_rates jsonb) returns void
language sql set search_path = '' as $$
    insert into jobs.rates_in_use as u (rates)
    select p_rates
    where jsonb_typeof(p_rates) = 'array' and not exists (select from jobs.rates_in_use k where k.rates = p_rates)
    on conflict (is_only) do update set rates = excluded.rates;
$$;

-- Writes the estimates of a user's imported rows, of all months: rates and profile may have changed since. By the rates
-- of each row's month, to the cent. Without rates (before 2023, or none sent yet) what stands there stays.
-- Rows that already say so are not touched. Where one of the four columns is not as we left it, all four are the
-- user's; the amount stays ours.
-- The rule is urssaf::row_amounts, against which a test compares this. Call only under the user's lock.
create function jobs.write_estimates(p_user_id uuid) returns void
language sql set search_path = '' as $$
    with rates as materialized (
        select x.* from jobs.rates_in_use u cross join jsonb_to_recordset(u.rates) as x (
            activity text, "from" text, "full" numeric, acre_half numeric, acre_three_quarters numeric, flat_tax numeric)
    ), ours as materialized (
        select l.month, l.activity, l.record_id, r.amount_eur as amount,
            l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur
        from jobs.auto_sync_totals l join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
        where l.user_id = p_user_id and l.locked_at is null and r.source = 'auto_sync' and r.amount_eur = l.written_eur
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (l.written_contrib_eur, l.written_net_eur, l.written_ir_mode, l.written_ir_eur)
    ), profile as materialized (
        select p.* from (select) one left join jobs.tax_profiles(array[p_user_id]) p on true
    ), shares as (
        select o.*,
            case when p.income_tax = 'versement_liberatoire' then 'vl' when p.income_tax = 'bareme' then 'bareme' end as mode,
            round(o.amount * 0.0001 * case
                -- ACRE: until the end of the third quarter after the one of the creation.
                when p.has_acre and date_trunc('month', p.created) <= o.month
                    and o.month < date_trunc('quarter', p.created) + interval '1 year'
                then case when p.created < '2026-07-01' then x.acre_half else x.acre_three_quarters end
                else x."full" end, 2) as contrib,
            case when p.income_tax = 'versement_liberatoire' then round(o.amount * 0.0001 * x.flat_tax, 2) end as tax
        from ours o cross join profile p
        cross join lateral (
            select t.* from rates t where t.activity = o.activity and t."from" <= to_char(o.month, 'YYYY-MM')
            order by t."from" desc limit 1) x
    ), wanted as materialized (
        select s.*, s.amount - s.contrib - coalesce(s.tax, 0) as net from shares s
        where (s.contrib, s.amount - s.contrib - coalesce(s.tax, 0), s.mode, s.tax) is distinct from
            (s.written_contrib_eur, s.written_net_eur, s.written_ir_mode, s.written_ir_eur)
    ), written as (
        update public.ca_records r
        set computed_contrib_eur = w.contrib, computed_net_eur = w.net, ir_mode = w.mode, ir_amount_eur = w.tax
        from wanted w
        where r.id = w.record_id and r.user_id = p_user_id and r.source = 'auto_sync'
            and r.amount_eur = w.amount                                          -- not edited in this very moment
            and (r.computed_contrib_eur, r.computed_net_eur, r.ir_mode, r.ir_amount_eur) is not distinct from
                (w.written_contrib_eur, w.written_net_eur, w.written_ir_mode, w.written_ir_eur)
        returning r.id
    )
    update jobs.auto_sync_totals l
    set written_contrib_eur = w.contrib, written_net_eur = w.net, written_ir_mode = w.mode, written_ir_eur = w.tax
    from wanted w join written n on n.id = w.record_id
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity;
$$;

-- An error for a kind of mail that nothing says how to refuse: a kind that is forgotten is sent to nobody.
create function jobs.reject_unknown_kind(p_kind text) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    raise exception 'no preference is known for the kind %', p_kind using errcode = '22023';
end $$;

-- Whether somebody refuses a kind of mail, or cannot be reached at p_now; null: they want it.
create or replace function jobs.mail_refusal(p jobs.mail_people, p_kind text, p_now timestamptz) returns text
language sql stable as $$
    select coalesce(case when p.banned_until > p_now and p.unreachable is distinct from 'user_deleted'
        then 'user_banned' else p.unreachable end, case when not case p_kind
        when 'threshold_alert' then p.wants_alerts
        when 'integration_trouble' then true
        when 'monthly_reminder' then p.wants_reminder
        when 'monthly_recap' then p.wants_recap
        when 'marketing_day3' then p.wants_marketing
        else jobs.reject_unknown_kind(p_kind) end then 'refused_by_user' end);
$$;

-- Gives each planned delivery of a run its item and its message: the end of every plan of mails, in its transaction. A
-- run that was closed is open again. p_user_id: only this user's. Answers how many were queued.
create or replace function jobs.queue_mails(p_run_id uuid, p_user_id uuid, p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
            select d.run_id, jobs.lane_of_mail(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id), p_now, p_now
            from jobs.email_deliveries d
            where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            on conflict (run_id, kind, subject) do nothing
            returning item_id, lane, kind, version
        )
        select lane, kind, version, array_agg(item_id order by item_id) as items
        from items group by lane, kind, version
    loop
        perform jobs.send_messages(p_run_id, batch.lane, batch.kind, batch.version, batch.items);
        queued := queued + cardinality(batch.items);
    end loop;
    if queued > 0 then
        update jobs.job_runs set status = 'running', finished_at = null
        where run_id = p_run_id and finished_at is not null;
    end if;
    return queued;
end $$;

-- Plans the J+3 mails (p_first_day, p_last_day) or the reminders for a month (p_month, p_expires_at). With p_dry_run
-- nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], unreadable?: n, candidates?: […]}}
-- unreadable: how many of those that were looked at have an account that cannot be read (see account_flaws); noted.
create or replace function public.jobs_plan_mails(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_user_id uuid, p_dry_run boolean, p_prices jsonb,
    p_first_day integer, p_last_day integer, p_month date, p_expires_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set work_mem = '32MB' set jit = off as $$
declare
    opened jsonb;
    outline jsonb;
    users uuid[];
    flawed uuid[];
    flaws text[];
begin
    if p_kind not in ('marketing_day3', 'monthly_reminder') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        with c as materialized (
            select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
            where p_kind = 'marketing_day3'
            union all
            select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
            where p_kind = 'monthly_reminder'
        )
        select jsonb_build_object(
            'items', count(*) filter (where c.reason is null),
            'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                select reason, count(*) as n from c where reason is not null group by reason) n),
            'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
                select distinct left(unknown_price, 80) as unknown_price
                from c where unknown_price is not null order by 1 limit 10) n),
            'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                select c.user_id, coalesce(c.reason, 'due') as outcome
                from c order by c.reason nulls first, c.user_id limit 100) f)),
            array_agg(c.user_id)
        into outline, users from c;
        return jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', outline
            || coalesce((select jsonb_build_object('unreadable', count(*))
                from jobs.account_flaws(users) having count(*) > 0), '{}'));
    end if;
    opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    with c as materialized (
        select * from jobs.marketing_candidates(p_user_id, p_prices, p_first_day, p_last_day, p_now)
        where p_kind = 'marketing_day3'
        union all
        select * from jobs.reminder_candidates(p_user_id, p_prices, p_month, p_expires_at, p_now)
        where p_kind = 'monthly_reminder'
    ), planned as (
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select c.dedupe_key, p_kind, c.user_id, c.user_id, p_run_id, c.facts, c.expires_at
        from c where c.reason is null
        order by c.user_id                    -- two plans at once wait for each other in one order
        on conflict (dedupe_key) do nothing   -- another run was faster
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n),
        'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
            select distinct left(unknown_price, 80) as unknown_price
                from c where unknown_price is not null order by 1 limit 10) n)),
        (select array_agg(c.user_id) from c)
    into outline, users;
    select array_agg(f.user_id order by f.user_id), array_agg(f.flaw order by f.user_id) into flawed, flaws
    from jobs.account_flaws(users) f;
    perform jobs.note_unreadable('account', users, flawed, flaws, p_now);
    if flawed is not null then
        outline := outline || jsonb_build_object('unreadable', cardinality(flawed));
    end if;
    perform jobs.queue_mails(p_run_id, null, p_now);
    update jobs.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

drop function public.mail_claim;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds}], sealed batches in the order of their payload}
create function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    lane text;
    claimed jsonb;
    items bigint[];
    mine bigint[];
    batches uuid[];
begin
    perform jobs.lock_mail_ledger();
    for lane in select l.lane from jobs.known_lanes() l where l.is_mail order by l.place loop
        claimed := public.jobs_claim(p_claim, lane, p_limit, p_seconds);
        if claimed = 'null'::jsonb then
            return claimed;
        end if;
        exit when claimed <> '[]'::jsonb;
    end loop;
    if lane = 'alerts' and jobs.hold_trouble_mails(p_claim, p_outage, p_now)
        and not exists (select from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued') then
        return 'null'::jsonb;
    end if;

    -- By arrays: statistics know nothing yet of what was just planned.
    mine := array(select (i.payload ->> 'delivery_id')::bigint from jobs.job_items i
        where i.lease_id = p_claim and i.status = 'queued');
    update jobs.email_deliveries d set item_id = i.item_id
    from jobs.job_items i
    where d.delivery_id = any (mine) and d.item_id is null
        and i.lease_id = p_claim and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = d.delivery_id;
    batches := (select array_agg(distinct d.batch_id) from jobs.email_deliveries d
        where d.delivery_id = any (mine) and d.status = 'sealed');

    if batches is not null then
        -- All of one batch, whoever claimed some of it: they are fenced off. The others' turn comes.
        batches := batches[1:1];
        select i.lane into lane from jobs.job_items i where i.lease_id = p_claim and i.status = 'queued' limit 1;
        select array_agg(i.item_id order by i.item_id) into items
        from jobs.job_items i left join jobs.email_deliveries d on d.item_id = i.item_id
        where i.lease_id = p_claim and i.status = 'queued' and d.batch_id is distinct from batches[1];
        if items is not null then
            perform public.jobs_release(lane, items, array_fill(p_claim, array[cardinality(items)]), 0);
        end if;
        perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.batch_id = batches[1] and d.status = 'sealed' and i.status = 'queued'
        order by i.msg_id;
        update jobs.job_items i
        set lease_id = p_claim, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from jobs.email_deliveries d
        where d.batch_id = batches[1] and d.status = 'sealed' and i.item_id = d.item_id and i.status = 'queued';
    end if;

    return jsonb_build_object('mails', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient,
            'batch_id', d.batch_id, 'digest', d.digest, 'attempts', coalesce(i.attempts, 0),
            'address', case when d.status = 'sealed' then d.address
                when d.kind = 'operator_digest' then d.facts ->> 'to' else p.address end,
            'facts', case d.status when 'sealed' then d.facts else d.facts
                || jsonb_build_object('kind', d.kind, 'first_name', p.first_name)
                || case d.kind when 'monthly_reminder' then
                    jsonb_build_object('recorded', m.recorded, 'entries', m.entries,
                        'books', jobs.books_to_declare(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')),
                        'profile', jsonb_build_object('created', t.created, 'has_acre', t.has_acre,
                            'income_tax', t.income_tax))
                    when 'monthly_recap' then jsonb_build_object('year', y.sums, 'created', y.created) else '{}' end end,
            'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                    case when d.kind = 'integration_trouble'
                        then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end) end,
            'expired', coalesce(d.expires_at <= p_now, false),
            'age_seconds', greatest(0, extract(epoch from p_now - b.sealed_at))::bigint)
            order by d.position, d.delivery_id), '[]')
        from (
            select * from jobs.email_deliveries
            where delivery_id = any (mine) and status = 'planned' and batches is null
            union all
            -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
            select * from jobs.email_deliveries where batch_id = batches[1] and status = 'sealed'
        ) d
        left join jobs.job_items i on i.item_id = d.item_id
        left join jobs.email_batches b on b.batch_id = d.batch_id
        -- A fence (offset 0): of all people only these.
        left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
        left join lateral jobs.month_books(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM')) m
            on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
        left join lateral jobs.tax_profiles(array[d.user_id]) t on d.kind = 'monthly_reminder' and d.status = 'planned'
        left join lateral (
            select b.created, b.years -> 0 -> 'sums' as sums
            from jobs.books(array[d.user_id], left(d.facts ->> 'month', 4)::integer, left(d.facts ->> 'month', 4)::integer) b
            where jsonb_array_length(b.years -> 0 -> 'sums') <= 20   -- no mail is long
        ) y on d.kind = 'monthly_recap' and d.status = 'planned'));
end $$;

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that hold_mails let pass.
create or replace function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    update jobs.email_deliveries d
    set status = o.status, reason = left(o.reason, 500), provider_id = o.provider_id, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;

    insert into public.marketing_emails (user_id, email_type, sent_at)
    select d.user_id, 'upgrade_day3', p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'marketing_day3' and d.user_id is not null and o.status in ('sent', 'unknown')
    order by d.user_id
    on conflict (user_id, email_type) do nothing;

    update jobs.job_items i
    set status = case o.status when 'sent' then 'done' when 'skipped' then 'skipped' when 'expired' then 'skipped'
            else 'failed' end,
        result = jsonb_strip_nulls(jsonb_build_object(
            'user_id', i.user_id, 'mail', o.status, 'reason', left(o.reason, 500))),
        error = case when o.status in ('refused', 'failed', 'unknown')
            then jobs.cut_failure(jsonb_build_object('code', coalesce(o.code, o.status), 'message', o.reason)) end,
        leased_until = null, settled_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, code text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    for batch in
        select i.lane, array_agg(i.msg_id) as messages
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        join jobs.job_items i on i.item_id = d.item_id
        where i.lease_id = p_claim group by i.lane
    loop
        perform pgmq.delete('jobs_' || batch.lane, batch.messages);
    end loop;

    update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
    where b.state = 'sealed'
        and b.batch_id in (select d.batch_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
            join jobs.email_deliveries d on d.delivery_id = o.delivery_id)
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
end $$;

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown. What another claim holds by now is
-- left to it. p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this
-- call or by an earlier one that it repeats.
create or replace function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    perform jobs.write_mail_outcomes(p_claim, (
        select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held)), p_now);
    return (select count(*)
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id and d.status = o.status
        left join jobs.job_items i on i.item_id = d.item_id
        where i.item_id is null or i.lease_id = p_claim);
end $$;

-- Gives mails back. With an error it is an attempt, and attempt number p_max_attempts ends them: as unknown where they
-- were sealed, as failed otherwise. p_release_batch: the batch was definitely not accepted; its mails are free for
-- another one. A repeated call finds nothing that is held.
create or replace function public.mail_give_back(
    p_claim uuid, p_deliveries bigint[], p_delay_seconds integer, p_error jsonb, p_release_batch uuid,
    p_max_attempts integer, p_now timestamptz
) returns void language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    ended jsonb;
    batch record;
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim, p_deliveries, 60);
    if p_release_batch is not null then
        update jobs.email_batches set state = 'released', ended_at = clock_timestamp()
        where batch_id = p_release_batch and state = 'sealed'
            and not exists (select from jobs.email_deliveries d
                where d.batch_id = p_release_batch and d.status = 'sealed' and d.delivery_id <> all (held));
        if found then
            update jobs.email_deliveries
            set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
            where delivery_id = any (held) and batch_id = p_release_batch;
        end if;
    end if;
    if p_error is not null then
        update jobs.job_items i set attempts = i.attempts + 1, error = jobs.cut_failure(p_error)
        from jobs.email_deliveries d where d.delivery_id = any (held) and i.item_id = d.item_id;
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id,
            'status', case d.status when 'sealed' then 'unknown' else 'failed' end,
            'code', p_error ->> 'code', 'reason', p_error ->> 'message'))
        into ended
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.attempts >= p_max_attempts;
        if ended is not null then
            perform jobs.write_mail_outcomes(p_claim, ended, p_now);
        end if;
    end if;
    for batch in
        select i.lane, array_agg(i.item_id order by i.item_id) as items
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.status = 'queued' and i.lease_id = p_claim group by i.lane
    loop
        perform public.jobs_release(batch.lane, batch.items,
            array_fill(p_claim, array[cardinality(batch.items)]), p_delay_seconds);
    end loop;
end $$;

-- Stops one kind of mail for a user; an error for a kind that no preference stops. A missing row stands for "no
-- reminder": making it must not start one.
create or replace function public.mail_unsubscribe(p_user_id uuid, p_kind text) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    if p_kind not in ('monthly_reminder', 'monthly_recap', 'marketing_day3', 'threshold_alert') then
        perform jobs.reject_unknown_kind(p_kind);
    end if;
    insert into public.email_preferences as e
        (user_id, monthly_reminder, monthly_recap_email, marketing_email, threshold_alert_email)
    select u.id, false, p_kind <> 'monthly_recap', p_kind <> 'marketing_day3', p_kind <> 'threshold_alert'
    from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set
        monthly_reminder = e.monthly_reminder and p_kind <> 'monthly_reminder',
        monthly_recap_email = case when p_kind = 'monthly_recap' then false else e.monthly_recap_email end,
        marketing_email = e.marketing_email and p_kind <> 'marketing_day3',
        threshold_alert_email = e.threshold_alert_email and p_kind <> 'threshold_alert',
        updated_at = clock_timestamp();
    return found;
end $$;

drop function public.mail_feedback;

-- What the mail service reports of a mail, once for each event id. p_suppress (bounced, complained): no mail goes to
-- p_address any more. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_suppress text, p_address text, p_now timestamptz
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.email_events (event_id, kind, received_at) values (p_event_id, p_kind, p_now)
    on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_suppress is not null and p_address is not null then
        insert into jobs.email_suppressions (address_hash, reason)
        values (jobs.address_hash(p_address), p_suppress) on conflict (address_hash) do nothing;
    end if;
    if p_suppress is not null and p_provider_id is not null then
        update jobs.email_deliveries set feedback = p_suppress where provider_id = p_provider_id;
    end if;
    return true;
end $$;

-- Plans the month's recap, where the run wants recaps and the user, too. Call in the settlement's transaction.
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    -- What ca_records says, where the month is in the books at all; else what was read.
    in_books boolean := exists (select from jobs.integration_state s where s.user_id = p_user_id and s.counted @> p_month)
        or exists (select from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month);
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
        -- A debit on its way, an open dispute, an account that was taken out of the books: nothing to tell of.
        or not exists (select from jobs.integration_transactions t
            join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
            left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
            where t.user_id = p_user_id and t.paris_month = p_month and not coalesce(f.left_out, s.left_out)
                and coalesce(t.excluded, '') not in ('pending', 'failed', 'not_lost', 'no_turnover')) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', coalesce(sum(s.gross + s.refunds), 0)::bigint,
        'sources', coalesce(jsonb_agg(jsonb_build_object(
            'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        -- Something else: what is in other currencies, what was not read and what may count twice is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}'
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)))
    into facts
    from (select c.provider, coalesce(sum(c.amount_minor) filter (where c.amount_minor > 0), 0) as gross,
            coalesce(sum(c.amount_minor) filter (where c.amount_minor < 0), 0) as refunds
          from jobs.countable_movements(p_user_id, array[p_month], in_books) c group by c.provider) s;
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- Tells a user whose integration was refused several times in a row to connect it again; once more later, where it
-- still is. Refused: what connecting again mends. Call in the settlement's transaction.
-- p_policy: {refusals: how many in a row, mails: how many until it is good again, pause_days: between two of them,
-- open_days: until such a mail expires, codes: [the refusals that connecting again mends]}
create or replace function jobs.plan_reconnect_mail(
    p_item_id bigint, p_user_id uuid, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    s jobs.integration_state;
    p jobs.mail_people;
    part record;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    for part in
        select e ->> 'provider' as provider, e -> 'error' ->> 'code' as code, e -> 'error' ->> 'message' as message
        from jsonb_array_elements(p_parts) e
    loop
        if part.code is null then
            update jobs.integration_state k set refusals = 0, trouble_mails = 0
            where k.user_id = p_user_id and k.provider = part.provider and (k.refusals, k.trouble_mails) <> (0, 0);
            continue;
        end if;
        -- A month's item says once more what the sync of these hours says: it is no refusal of its own.
        continue when i.kind = 'sync_month' or not (p_policy -> 'codes') ? part.code;
        update jobs.integration_state k set refusals = k.refusals + 1
        where k.user_id = p_user_id and k.provider = part.provider returning * into s;
        select * into p from jobs.mail_people m where m.user_id = p_user_id;
        continue when s.refusals < (p_policy ->> 'refusals')::integer
            or s.trouble_mails >= (p_policy ->> 'mails')::integer
            or s.trouble_mailed_at > p_now - make_interval(days => (p_policy ->> 'pause_days')::integer)
            or jobs.mail_refusal(p, 'integration_trouble', p_now) is not null;
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        values ('integration_trouble/' || p_user_id || '/' || part.provider || '/' || i.item_id, 'integration_trouble',
            p_user_id, p_user_id, i.run_id, jsonb_build_object('provider', part.provider, 'reason', part.message,
                'read_until', s.last_success_to),
            p_now + make_interval(days => (p_policy ->> 'open_days')::integer))
        on conflict (dedupe_key) do nothing;
        update jobs.integration_state k
        set trouble_mails = k.trouble_mails + 1, trouble_mailed_at = p_now
        where k.user_id = p_user_id and k.provider = part.provider;
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end loop;
end $$;

-- Notes which of these users cannot be read, in this part, and takes away the notes of those who can be read again.
-- p_flawed and p_flaws: the user and the flaw of each.
create function jobs.note_unreadable(p_part text, p_users uuid[], p_flawed uuid[], p_flaws text[], p_now timestamptz)
returns void language sql set search_path = '' as $$
    insert into jobs.unreadable_input as k (user_id, part, flaw, since)
    select f.user_id, p_part, f.flaw, p_now
    from unnest(p_flawed, p_flaws) as f (user_id, flaw) join auth.users u on u.id = f.user_id
    order by f.user_id
    on conflict (user_id, part) do update set flaw = excluded.flaw where k.flaw <> excluded.flaw;
    delete from jobs.unreadable_input k
    where k.part = p_part and k.user_id = any (p_users) and k.user_id <> all (coalesce(p_flawed, '{}'));
$$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor: p_floors {year: cents}, in proportion to the days of a creation year. The year before each comes
-- with it. A user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, held: [{year, threshold, step}], years: [{year, sums, mixed}]}],
--    due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) - 1 from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    users uuid[];
    due jsonb;
    above uuid[];
    last_user uuid;
    more boolean;
    flawed uuid[];
    flaws text[];
    is_cut boolean;
    people jsonb;
begin
    if p_due then
        -- Before the books: a mark that is set again while they are read is not taken for this one.
        select array_agg(d.user_id order by d.user_id),
            jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from jobs.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    above := coalesce(jobs.users_above(users, p_due, p_floors), '{}');
    if cardinality(above) > most_books then
        above := above[1:most_books];
        last_user := above[most_books];
        more := true;
    end if;

    with held as (
        select t.user_id,
            jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step)) as held
        from jobs.threshold_alerts t
        where t.user_id = any (above) and t.year between first_year and last_year group by 1
    ), people_found as (
        select b.user_id, jsonb_build_object(
            'user_id', b.user_id, 'created', b.created,
            'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
            'held', coalesce(h.held, '[]'), 'years', coalesce(b.years, '[]')) as person
        from jobs.books(above, first_year, last_year) b
        -- A fence (offset 0): of all people only these.
        cross join lateral (select * from jobs.mail_people m where m.user_id = b.user_id offset 0) p
        left join held h on h.user_id = b.user_id
    ), measured as materialized (
        select f.user_id, f.person, row_number() over w as n, sum(octet_length(f.person::text)) over w as bytes
        from people_found f window w as (order by f.user_id)
    ), page as (
        select * from measured m where m.n = 1 or m.bytes <= p_bytes
    )
    select jsonb_agg(g.person order by g.user_id), array_agg(g.user_id order by g.user_id),
        array_agg(g.user_id order by g.user_id) filter (where g.person ->> 'flaw' is not null),
        array_agg(g.person ->> 'flaw' order by g.user_id) filter (where g.person ->> 'flaw' is not null),
        (select count(*) from measured) > count(*)
    into people, above, flawed, flaws, is_cut
    from page g;
    if is_cut then
        last_user := above[cardinality(above)];
        more := true;
    end if;

    if p_noted_at is not null then
        perform jobs.note_unreadable('books', array(select u from unnest(users) u where u <= last_user), flawed, flaws,
            p_noted_at);
    end if;
    return jsonb_build_object(
        'people', coalesce(people, '[]'),
        'due', (select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(due) d
            where (d ->> 'user_id')::uuid <= last_user),
        'scanned', (select count(*) from unnest(users) u where u <= last_user),
        'next', case when more then last_user end);
end $$;

drop function public.jobs_note_alerts;

-- Notes what one page of a check has found, for the plan of its run. A repeated call notes nothing twice. What a check
-- noted that came to no plan goes a day later.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], …}, used_up: [{threshold, step}]}]
create function public.jobs_note_alerts(p_run_id uuid, p_alerts jsonb, p_now timestamptz) returns void
language sql security definer set search_path = '' set statement_timeout = '10s' as $$
    delete from jobs.found_alerts where found_at < p_now - interval '1 day';
    insert into jobs.found_alerts (run_id, user_id, year, facts, used_up, found_at)
    select p_run_id, a.user_id, a.year, a.facts, a.used_up, p_now
    from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb)
    join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
    order by a.user_id, a.year
    on conflict (run_id, user_id, year) do nothing;
$$;

-- Plans alerts: each step once for each user and year, in one mail for all that are new. p_append: to a run that is
-- there already (a sync whose totals changed). p_due: the marks that were checked, taken away unless set again since.
-- What was found for the run by jobs_note_alerts is planned, and gone from there.
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}}
create or replace function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_due jsonb, p_outline jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    outline jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := jobs.open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters, p_now);
        if opened ->> 'state' <> 'planned' then
            delete from jobs.found_alerts where run_id = p_run_id;
            return opened;
        end if;
    end if;
    with alerts as materialized (
        delete from jobs.found_alerts where run_id = p_run_id returning user_id, year, facts, used_up
    ), marked as (
        insert into jobs.threshold_alerts (user_id, year, threshold, step, run_id)
        select a.user_id, a.year, s.threshold, s.step, p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint)
        order by 1, 2, 3, 4
        on conflict (user_id, year, threshold, step) do nothing
        returning user_id, year, threshold, step
    ), fresh as (   -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, a.facts, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(c.crossing ->> 'threshold' || '-' || (c.crossing ->> 'step'), '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year, a.facts
    )
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    select 'threshold_alert/' || f.user_id || '/' || f.year || '/' || f.steps, 'threshold_alert', f.user_id, f.user_id,
        p_run_id, f.facts || jsonb_build_object('crossings', f.crossings)
    from fresh f
    on conflict (dedupe_key) do nothing;

    planned := jobs.queue_mails(p_run_id, null, p_now);
    delete from jobs.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;

    outline := p_outline || jsonb_build_object('items', planned);
    if not p_append then
        update jobs.job_runs set plan = outline where run_id = p_run_id;
    end if;
    return opened || jsonb_build_object('plan', outline);
end $$;

drop function jobs.store_movements;

-- Stores movements in bulk. {records: how many were new or changed, months: the Paris months they touch}
--
-- Known stays known: an answer that says less changes nothing. A payment that has succeeded is not pending again, one that
-- has failed (another row may have said so) is nothing else again; an amount
-- that was known in the account's currency stays, as long as the amount that was told is the same; so do the state, the
-- references, a debit's date.
create function jobs.store_movements(
    p_user_id uuid, p_provider text, p_account text, p_movements jsonb, p_now timestamptz
) returns jsonb language sql set search_path = '' as $$
    with incoming as (
        select distinct on (m.external_id) m.external_id, m.kind, m.occurred_at, m.amount_minor, left(m.currency, 20) as currency,
            coalesce(m."references", '{}') as refs, m.source_kind, m.state, m.listed_at, m.original,
            -- As the version before this one told it, as long as one of its calls is under way.
            coalesce(m.method, nullif(m.excluded, 'unresolved_currency')) as method,
            coalesce(m.converted, m.excluded is distinct from 'unresolved_currency') as converted
        from jsonb_to_recordset(p_movements) as m (
            external_id text, kind text, occurred_at timestamptz, amount_minor bigint, currency text,
            "references" text[], source_kind text, state text, method text, listed_at timestamptz, converted boolean,
            original jsonb, excluded text)
    ), before as (
        select t.external_id, t.paris_month from jobs.integration_transactions t join incoming using (external_id)
        where t.user_id = p_user_id and t.provider = p_provider
    ), merged as (
        select n.external_id,
            case when n.kind = 'unknown' or (n.kind = 'refund' and t.kind = 'platform_reversal')
                then coalesce(t.kind, n.kind) else n.kind end as kind,
            case when n.kind = 'dispute' and n.state is distinct from t.state then n.occurred_at
                when t.occurred_at <> t.listed_at and n.occurred_at = n.listed_at and n.listed_at = t.listed_at
                then t.occurred_at else coalesce(n.occurred_at, t.occurred_at) end as occurred_at,
            case when k.keep then t.amount_minor else n.amount_minor end as amount_minor,
            case when k.keep then t.currency else n.currency end as currency,
            case when k.keep then true else n.converted end as converted,
            case when k.keep then coalesce(t.original, n.original) when t.amount_minor is null then n.original
                else coalesce(n.original, t.original) end as original,
            case when t.refs @> n.refs then t.refs
                else array(select distinct r from unnest(t.refs || n.refs) r order by r) end as refs,
            coalesce(n.source_kind, t.source_kind) as source_kind,
            case when n.kind = 'payment' and t.state = 'failed' then t.state
                when n.state in ('pending', 'unknown') and t.state = 'succeeded' then t.state
                when n.state = 'unknown' then coalesce(t.state, n.state)
                else coalesce(n.state, t.state) end as state,
            coalesce(n.method, t.method) as method,
            coalesce(n.listed_at, t.listed_at) as listed_at
        from incoming n
        left join jobs.integration_transactions t
            on t.user_id = p_user_id and t.provider = p_provider and t.external_id = n.external_id
        cross join lateral (
            select coalesce(t.converted and t.amount_minor is not null and (not n.converted or n.amount_minor is null)
                and (t.original is null or (t.original -> 'amount', t.original -> 'currency')
                    is not distinct from (n.original -> 'amount', n.original -> 'currency')), false) as keep) k
    ), stored as (
        insert into jobs.integration_transactions as t
            (user_id, provider, external_id, account, kind, occurred_at, amount_minor, currency, refs, source_kind, state,
            method, listed_at, converted, original, first_seen_at)
        select p_user_id, p_provider, m.external_id, p_account, m.kind, m.occurred_at, m.amount_minor, m.currency, m.refs,
            m.source_kind, m.state, m.method, m.listed_at, m.converted, m.original, p_now
        from merged m order by m.external_id
        on conflict (user_id, provider, external_id) do update set
            account = excluded.account, kind = excluded.kind, occurred_at = excluded.occurred_at,
            amount_minor = excluded.amount_minor, currency = excluded.currency, refs = excluded.refs,
            source_kind = excluded.source_kind, state = excluded.state, method = excluded.method,
            listed_at = excluded.listed_at, converted = excluded.converted, original = excluded.original,
            updated_at = clock_timestamp()
        where (t.account, t.kind, t.occurred_at, t.amount_minor, t.currency, t.refs, t.source_kind, t.state, t.method,
                t.listed_at, t.converted, t.original)
            is distinct from
            (excluded.account, excluded.kind, excluded.occurred_at, excluded.amount_minor, excluded.currency, excluded.refs,
                excluded.source_kind, excluded.state, excluded.method, excluded.listed_at, excluded.converted,
                excluded.original)
        returning t.external_id, t.paris_month
    )
    -- A movement whose date was corrected touches the month it leaves, too.
    select jsonb_build_object(
        'records', count(*),
        'months', coalesce(jsonb_agg(distinct s.paris_month), '[]')
            || coalesce(jsonb_agg(distinct b.paris_month) filter (where b.paris_month <> s.paris_month), '[]'))
    from stored s left join before b using (external_id);
$$;

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), and payments of which another row says that they failed. The months that
-- this touches.
create function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language sql set search_path = '' as $$
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
            and exists (select from failures f where f.r = any (t.refs))
        returning t.paris_month, t.refs
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    from (select paris_month from learned
        union all select paris_month from failed
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from failed p join failures f on f.r = any (p.refs)) m;
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use}
-- p_chunk numbers the calls of one lease, from 1. p_cursor comes back with the next claim, should this one be lost.
-- p_month (a Paris month) asks for that month's figures in the result.
--   {state: settled | stored | lost, result, repeated: an earlier call settled it}
create or replace function jobs.settle_figures(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    hold text;
    i jobs.job_items;
    part record;
    t public.integration_tokens;
    s jobs.integration_state;
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
    unreadable jsonb;   -- why movements could not be understood, with how many
    left_alone jsonb;
    flawed boolean;
    outcome text;
    answer jsonb;
begin
    -- Its own statement, first: what follows sees everything the last holder of this lock committed.
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));

    -- Whoever deletes the user waits for us, or we for them: not both, each with half of the rows.
    perform from auth.users where id = p_user_id for key share;

    hold := jobs.hold_item(p_item_id, p_lease_id);
    select * into i from jobs.job_items where item_id = p_item_id;
    if hold = 'settled' then
        return jsonb_build_object('state', 'settled', 'result', i.result, 'repeated', true);
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
            count_month boolean, kinds jsonb, deep boolean)
        order by x.provider
    loop
        parts := parts + 1;
        select * into t from public.integration_tokens k where k.id = part.integration_id and k.user_id = p_user_id;
        insert into jobs.integration_state (user_id, provider) values (p_user_id, part.provider)
        on conflict (user_id, provider) do nothing;
        select * into s from jobs.integration_state k
        where k.user_id = p_user_id and k.provider = part.provider for update;

        if part.account is not null then
            stored := jobs.store_movements(p_user_id, part.provider, part.account, coalesce(part.movements, '[]'), p_now);
            records := records + (stored ->> 'records')::bigint;
            by_provider := by_provider || jsonb_build_object(part.provider,
                coalesce((by_provider ->> part.provider)::bigint, 0) + (stored ->> 'records')::bigint);
            months := months || array(select jsonb_array_elements_text(stored -> 'months')::date);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what was frozen, else inferred once.
            new_activity := case
                when t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale')
                    then t.activity_type
                else coalesce(s.activity, jobs.infer_activity(p_user_id, part.provider)) end;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
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
            update jobs.integration_state k
            set failures = k.failures + 1, failed_at = p_now, failure = part.error, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (tstzmultirange(
                    tstzrange((part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz))
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null)))
                    else k.covered end,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                    then greatest(k.last_success_to, (part."window" ->> 'to')::timestamptz) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, (part."window" ->> 'to')::timestamptz) else k.deep_read_to end,
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
        update jobs.job_items set progress = jsonb_build_object('lease', p_lease_id, 'chunk', p_chunk,
            'records', records, 'by_provider', by_provider, 'months', to_jsonb(months), 'cursor', p_cursor)
        where item_id = p_item_id;
        return jsonb_build_object('state', 'stored');
    end if;

    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind from jobs.integration_transactions x
        where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
            and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
            and jobs.is_uncounted(x)
    )
    select
        (select coalesce(jsonb_agg(distinct m.currency), '[]') from missing m
            where m.currency <> 'EUR' or m.reason = 'unresolved_currency'),
        (select coalesce(jsonb_object_agg(k.kind, k.n), '{}') from (
            select coalesce(m.source_kind, m.reason) as kind, count(*) as n from missing m
            where m.reason = 'unknown_kind' group by 1) k),
        (select coalesce(jsonb_object_agg(k.reason, k.n), '{}') from (
            select m.reason, count(*) as n from missing m
            where m.reason not in ('unknown_kind', 'currency', 'unresolved_currency') group by 1) k)
    into not_euro, unknown, unreadable;

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}';
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
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}')));
    if p_month is not null then
        answer := answer || (
            -- Not read to its end: no figure rather than a wrong one.
            select jsonb_build_object('userId', p_user_id,
                'totalCA', case when outcome <> 'failed' then coalesce(sum(f.amount), 0) end,
                'details', case when outcome = 'failed' then '[]' else coalesce(jsonb_agg(
                    jsonb_build_object('source', f.provider, 'amount', f.amount) order by f.provider), '[]') end,
                'month_status', jobs.month_status(p_user_id, p_month, p_as_of))
            from (select c.provider, (sum(c.amount_minor)::numeric / 100)::numeric(14, 2) as amount
                  from jobs.countable_movements(p_user_id, array[p_month], false) c group by c.provider) f);
    end if;

    -- One row of the log for each integration, in the same transaction.
    insert into public.sync_logs (user_id, provider, sync_type, status, records_synced, error_message, synced_at, metadata)
    select p_user_id, e ->> 'provider',
        (select r.trigger from jobs.job_runs r where r.run_id = i.run_id),
        case when e -> 'error' ->> 'code' is not null then 'error'
             when flawed then 'partial' else 'success' end,
        coalesce((by_provider ->> (e ->> 'provider'))::integer, 0), e -> 'error' ->> 'message', p_now,
        jsonb_strip_nulls(jsonb_build_object('run_id', i.run_id, 'window', e -> 'window', 'code', e -> 'error' -> 'code',
            'uncounted_currencies', nullif(not_euro, '[]'), 'left_alone', nullif(left_alone, '[]'),
            'unreadable_movements', nullif(unreadable, '{}'), 'notes', nullif(e -> 'notes', '{}'),
            -- The same account or shop, claimed by others too: proven by its own token or refused. Theirs is
            -- written out, as the index integration_tokens_account has it.
            'also_claimed_by', nullif((
                select count(*) from public.integration_tokens mine
                join public.integration_tokens other on other.provider = mine.provider and other.user_id <> mine.user_id
                    and case other.provider when 'stripe' then other.stripe_account_id else other.shop_domain end
                        = jobs.claimed_account(mine)
                where mine.id = (e ->> 'integration_id')::uuid), 0)))
    from jsonb_array_elements(p_parts) e;

    perform jobs.finish_item(p_item_id, outcome, answer, first_error, p_now);
    return jsonb_build_object('state', 'settled', 'result', answer);
end $$;

-- Takes an account out of a user's books, for who connected a wrong one by mistake, or back into them (p_out false). Its
-- movements stay in the ledger; taken out they count in no month, whatever is read, until it is taken back or connected
-- again in place of another. Repeating it changes nothing. An account that is not the user's is an error.
--   {months: [YYYY-MM] whose totals were added up again, left_alone: see recompute_totals}
create function jobs.leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_as_of timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    touched date[];
    left_alone jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));
    if not exists (select from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account))
        and not exists (select from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) then
        raise exception 'user % has no account % at %', p_user_id, p_account, p_provider using errcode = '22023';
    end if;
    update jobs.integration_state s set left_out = p_out, updated_at = p_as_of,
        counted = case when p_out then '{}' else datemultirange(daterange(s.first_month, null)) end
    where s.user_id = p_user_id and s.provider = p_provider and s.account = p_account and s.left_out <> p_out;
    update jobs.former_accounts f set left_out = p_out,
        counted = case when p_out then '{}' else datemultirange(daterange(f.first_month,
            (date_trunc('month', f.replaced_at at time zone 'Europe/Paris') + interval '1 month')::date)) end
    where f.user_id = p_user_id and f.provider = p_provider and f.account = p_account and f.left_out <> p_out;
    touched := array(select distinct t.paris_month from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account);
    touched := touched || jobs.months_reported_twice(p_user_id, touched);
    left_alone := jobs.recompute_totals(p_user_id, touched, p_as_of);
    insert into jobs.threshold_checks_due as d (user_id, since) values (p_user_id, p_as_of)
    on conflict (user_id) do update set since = excluded.since;
    return jsonb_build_object('left_alone', left_alone, 'months', (
        select coalesce(jsonb_agg(to_char(m, 'YYYY-MM') order by m), '[]') from unnest(touched) m));
end $$;

drop function public.jobs_sign_in;

-- Counts a try before the secret is looked at, so that no number of them at once passes the limits: p_most of an
-- address and p_most_together of all, in p_seconds. A repeated call counts once. Tries that are older are deleted. One
-- that another instance's clock puts later than p_now counts.
--   {allowed, retry_after: seconds, epoch}
create function public.jobs_sign_in(
    p_try uuid, p_address text, p_most integer, p_most_together integer, p_seconds integer, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '5s' as $$
declare
    span constant interval := make_interval(secs => p_seconds);
    epoch constant bigint := (select s.epoch from jobs.job_sign_outs s);
    free_at timestamptz;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.sign_ins', 0));
    delete from jobs.job_sign_ins where tried_at <= p_now - span;
    if exists (select from jobs.job_sign_ins where try_id = p_try) then
        return jsonb_build_object('allowed', true, 'epoch', epoch);
    end if;
    -- Of so many tries as are allowed the oldest: when it is over, there is room.
    free_at := greatest(
        (select t.tried_at from jobs.job_sign_ins t where t.address = p_address
         order by t.tried_at desc offset p_most - 1 limit 1),
        (select t.tried_at from jobs.job_sign_ins t
            order by t.tried_at desc offset p_most_together - 1 limit 1)) + span;
    if free_at is not null then
        return jsonb_build_object('allowed', false,
            'retry_after', greatest(1, ceil(extract(epoch from free_at - p_now)))::integer);
    end if;
    insert into jobs.job_sign_ins (try_id, address, tried_at) values (p_try, p_address, p_now);
    return jsonb_build_object('allowed', true, 'epoch', epoch);
end $$;

-- The number that a session must carry now.
create function public.jobs_session_epoch() returns bigint
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select s.epoch from jobs.job_sign_outs s;
$$;

-- Ends every session that carries p_epoch or less. A repeated call ends nothing that began since.
create function public.jobs_sign_out(p_epoch bigint) returns void
language sql security definer set search_path = '' set statement_timeout = '5s' as $$
    update jobs.job_sign_outs set epoch = p_epoch + 1 where epoch <= p_epoch;
$$;

-- A message in which every address is cut as mask_address does. Of a long one, which may have been cut before, only the
-- beginning is looked at, without its last word: a part of an address is not known as one.
create or replace function jobs.mask_text(p_text text) returns text
language sql immutable set search_path = '' as $$
    select left(regexp_replace(case when length(p_text) < 500 then p_text
            else regexp_replace(left(p_text, 2000), '[^\s@<>()",;:]*$', '') end,
        '([^\s@<>()",;:]?)[^\s@<>()",;:]*@([^\s@<>()",;:]?)[^\s@<>()",;:]*', '\1…@\2…', 'g'), 500);
$$;

-- The last p_runs runs for everybody of each task, with what happened to their items by lane and up to ten of those
-- in trouble; and how many runs for single users there were within a day.
--   {runs: [{run_id, task, slot, trigger, as_of, status, started_at, duration_ms, parameters, skipped, records,
--    lanes: [{lane, planned, queued, done, partial, failed, skipped, superseded}],
--    troubles, troubled: [{user_id, address, lane, status, code, message}]}],
--    single: [{task, runs, erred}]}
create or replace function jobs.status_runs(p_tasks text[], p_runs integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with latest as materialized (
        select r.* from unnest(p_tasks) t (task)
        cross join lateral (
            select * from jobs.job_runs j where j.task = t.task and not (j.parameters ? 'user_id')
            order by j.started_at desc limit p_runs) r
    ), ids as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(l.run_id) as ids from latest l
    ), lanes as (
        select i.run_id, i.lane, count(*) as planned,
            count(*) filter (where i.status = 'queued') as queued,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'skipped') as skipped,
            count(*) filter (where i.status = 'superseded') as superseded,
            coalesce(sum((i.result ->> 'records')::bigint), 0) as records
        from jobs.job_items i where i.run_id = any ((select ids from ids)::uuid[]) group by 1, 2
    ), troubled as (
        select i.*, row_number() over (partition by i.run_id order by i.item_id) as n,
            count(*) over (partition by i.run_id) as troubles
        from jobs.job_items i
        where i.run_id = any ((select ids from ids)::uuid[])
            and (i.status in ('failed', 'partial') or (i.status = 'queued' and i.error is not null))
    )
    select jsonb_build_object(
        'runs', (select coalesce(jsonb_agg(jsonb_build_object(
            'run_id', r.run_id, 'task', r.task, 'slot', r.slot, 'trigger', r.trigger, 'as_of', r.as_of,
            'status', r.status, 'started_at', r.started_at,
            'duration_ms', case when r.finished_at is not null then (extract(epoch from r.took) * 1000)::bigint end,
            'parameters', r.parameters, 'skipped', coalesce(r.plan -> 'skipped', '{}'),
            'records', (select coalesce(sum(l.records), 0) from lanes l where l.run_id = r.run_id),
            'lanes', (select coalesce(jsonb_agg(to_jsonb(l) - 'run_id' - 'records' order by l.lane), '[]')
                from lanes l where l.run_id = r.run_id),
            'troubles', (select coalesce(max(t.troubles), 0) from troubled t where t.run_id = r.run_id),
            'troubled', (select coalesce(jsonb_agg(jsonb_build_object(
                    'user_id', t.user_id, 'address', jobs.mask_address(u.email), 'lane', t.lane,
                    'status', t.status, 'message', jobs.mask_text(t.error ->> 'message'),
                    -- What was counted in part has no error, but a reason.
                    'code', coalesce(left(t.error ->> 'code', 80), (select min(k) from jsonb_object_keys(t.result) k
                        where k in ('uncounted_currencies', 'left_alone', 'unknown_movements', 'unreadable_movements'))))
                    order by t.item_id), '[]')
                from troubled t left join auth.users u on u.id = t.user_id
                where t.run_id = r.run_id and t.n <= 10))
            order by r.started_at desc), '[]') from latest r),
        'single', (select coalesce(jsonb_agg(s), '[]') from (
            select j.task, count(*) as runs, count(*) filter (where j.status in ('partial', 'error')) as erred
            from jobs.job_runs j
            where j.as_of >= p_now - interval '1 day' and j.parameters ? 'user_id'
            group by 1 order by 1) s));
$$;

-- Each lane that has something: waiting, of these in flight and put off after a failure; failed since p_failed_since
-- and not made up for; of mails also how many ended without anybody knowing.
create or replace function jobs.status_queue(p_failed_since timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with waiting as (
        select i.lane, count(*) as waiting, count(*) filter (where i.leased_until > clock_timestamp()) as in_flight,
            count(*) filter (where i.error is not null) as put_off, min(i.waiting_since) as oldest
        from jobs.job_items i where i.status = 'queued' group by 1
    ), failed as (
        select f.lane, count(*) filter (where f.mail is distinct from 'unknown') as failed,
            count(*) filter (where f.mail = 'unknown') as unknown
        from jobs.open_failures(p_failed_since) f group by 1
    )
    select coalesce(jsonb_agg(jsonb_build_object('lane', lane,
        'waiting', coalesce(w.waiting, 0), 'in_flight', coalesce(w.in_flight, 0), 'put_off', coalesce(w.put_off, 0),
        'oldest', w.oldest, 'failed', coalesce(f.failed, 0), 'unknown', coalesce(f.unknown, 0))), '[]')
    from waiting w full join failed f using (lane);
$$;

-- Mails by kind and Paris day of the last p_days days, and why some were not sent.
create or replace function jobs.status_mails(p_days integer, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with since as (
        select ((p_now at time zone 'Europe/Paris')::date - p_days + 1)::timestamp at time zone 'Europe/Paris' as at
    ), settled as materialized (
        select d.kind, (d.settled_at at time zone 'Europe/Paris')::date as day, d.status, d.reason, d.feedback
        from jobs.email_deliveries d where d.settled_at >= (select at from since)
    )
    select jsonb_build_object(
        'days', (select coalesce(jsonb_agg(m order by m.day, m.kind), '[]') from (
            select s.kind, s.day, count(*) filter (where s.status = 'sent') as sent,
                count(*) filter (where s.status in ('failed', 'refused')) as failed,
                count(*) filter (where s.status = 'unknown') as unknown,
                count(*) filter (where s.status in ('skipped', 'expired')
                    and s.reason is distinct from 'suppressed') as skipped,
                count(*) filter (where s.status = 'skipped' and s.reason = 'suppressed') as suppressed,
                count(*) filter (where s.feedback is not null) as returned
            from settled s group by 1, 2) m),
        'reasons', (select coalesce(jsonb_agg(r), '[]') from (
            select s.kind, s.status, jobs.mask_text(coalesce(s.reason, s.status)) as reason, count(*) as count
            from settled s where s.status <> 'sent' group by 1, 2, 3 order by 4 desc, 1, 2, 3 limit 12) r),
        'suppressed_addresses', (select count(*) from jobs.email_suppressions));
$$;

-- Integrations by state (late: without a success since p_late_before), and the first p_limit that are broken.
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
        'broken', (select coalesce(jsonb_agg(jsonb_build_object(
                'user_id', b.user_id, 'address', jobs.mask_address(b.address), 'provider', b.provider,
                'failures', b.failures, 'failed_at', b.failed_at, 'last_success_at', b.last_success_at,
                'code', left(b.failure ->> 'code', 80), 'message', jobs.mask_text(b.failure ->> 'message'))
                order by b.failures desc, b.id), '[]')
            from (select * from known k where k.state = 'failing' order by k.failures desc, k.id limit p_limit) b),
        -- Renewed by us, with our credentials, and still good.
        -- They die on 1 January 2027, but for those of custom applications.
        'shopify_permanent', (select count(*) from known k join public.integration_tokens t on t.id = k.id
            where k.provider = 'shopify' and k.state <> 'inactive' and coalesce(btrim(t.refresh_token), '') = ''),
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

-- Who has written something that cannot be read, the first p_limit by name.
--   {total, users: [{user_id, address, flaw, since}]}
create function jobs.status_unreadable(p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'total', (select count(*) from jobs.unreadable_input),
        'users', (select coalesce(jsonb_agg(jsonb_build_object('user_id', b.user_id,
                'address', jobs.mask_address(u.email), 'flaw', b.flaw, 'since', b.since)
                order by b.since, b.user_id, b.part), '[]')
            from (select * from jobs.unreadable_input order by since, user_id, part limit p_limit) b
            join auth.users u on u.id = b.user_id));
$$;

drop function public.jobs_status;

-- Everything that the status page shows. Changes nothing.
-- p_functions: what this version calls (those that are missing are answered); slots claimed since p_since; for
-- p_failed_since and p_late_before see status_queue and status_integrations.
--   {missing: [name], slots: [{task, slot}], first_claims: {task: instant}, runs, queue, mails, integrations,
--    unreadable, owed_months: [{month, code, message, count}],
--    outages: see integration_outages}
create function public.jobs_status(
    p_functions text[], p_tasks text[], p_runs integer, p_days integer, p_broken integer, p_since timestamptz,
    p_failed_since timestamptz, p_late_before timestamptz, p_outage jsonb, p_now timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$    -- compiling takes longer than asking
begin
    return jsonb_build_object(
        'missing', (select coalesce(jsonb_agg(f order by f), '[]') from unnest(p_functions) f
            where not exists (select from pg_catalog.pg_proc p
                where p.pronamespace = 'public'::regnamespace and p.proname = f)),
        'slots', (select coalesce(jsonb_agg(jsonb_build_object('task', s.task, 'slot', s.slot)), '[]')
            from jobs.job_slots s where s.claimed_at >= p_since),
        'first_claims', (select coalesce(jsonb_object_agg(s.task, s.at), '{}') from (
            select task, min(claimed_at) as at from jobs.job_slots group by 1) s),
        'runs', jobs.status_runs(p_tasks, p_runs, p_now),
        'queue', jobs.status_queue(p_failed_since),
        'mails', jobs.status_mails(p_days, p_now),
        'integrations', jobs.status_integrations(p_broken, p_late_before, p_now),
        'unreadable', jobs.status_unreadable(p_broken),
        'outages', public.integration_outages(p_outage, p_now),
        'owed_months', (select coalesce(jsonb_agg(o order by o.count desc, o.code), '[]') from (
            select m.month, m.error ->> 'code' as code, jobs.mask_text(min(m.error ->> 'message')) as message,
                count(*) as count
            from jobs.owed_months(p_now) m group by 1, 2 order by 4 desc limit 10) o));
end $$;

-- Has a lane's work done again: what waits is visible at once; a mail that the mail service definitely did not take
-- (failed, refused) is queued again, one that it may have taken (unknown) never; a sync that failed is planned anew,
-- in one run. Looks back to p_failed_since. A repeated call with the same p_run_id answers what the first one did.
--   {woken, mails, planned}
create or replace function public.jobs_retry(
    p_run_id uuid, p_lane text, p_route text, p_failed_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    is_mail constant boolean := (select l.is_mail from jobs.known_lanes() l where l.lane = p_lane);
    last_month constant text := to_char((p_now at time zone 'Europe/Paris') - interval '1 month', 'YYYY-MM');
    woken integer;
    mails integer := 0;
    planned integer := 0;
    again bigint[];
    told jsonb;
begin
    delete from jobs.job_answers where answered_at < p_now - interval '1 day';
    -- A repeated call waits here for the first one, which may still be at it.
    insert into jobs.job_answers (call_id, answer, answered_at) values (p_run_id, '{}', p_now)
    on conflict (call_id) do nothing;
    if not found then
        select a.answer into told from jobs.job_answers a where a.call_id = p_run_id;
        return told;
    end if;
    if is_mail is null then
        raise exception 'unknown lane %', p_lane using errcode = '22023';
    elsif is_mail then
        perform jobs.lock_mail_ledger();
        again := array(
            select f.item_id from jobs.open_failures(p_failed_since) f
            join jobs.email_deliveries d on d.item_id = f.item_id
            where f.lane = p_lane and d.status in ('failed', 'refused')
                and d.provider_id is null and d.user_id is not null and (d.expires_at is null or d.expires_at > p_now));
        update jobs.email_deliveries d
        set status = 'planned', reason = null, batch_id = null, position = null, address = null, digest = null,
            sealed_at = null, settled_at = null
        where d.item_id = any (again) and d.status in ('failed', 'refused');
        perform from jobs.job_items i where i.item_id = any (again) order by i.item_id for update;
        update jobs.job_items i
        set status = 'queued', attempts = 0, error = null, result = '{}', settled_at = null,
            msg_id = null, lease_id = null, leased_until = null, returned_lease = null
        where i.item_id = any (again) and i.status = 'failed';
        get diagnostics mails = row_count;
        if mails > 0 then
            perform pgmq.send_batch('jobs_' || p_lane, (select array_agg(jsonb_build_object('version', i.version,
                    'run_id', i.run_id, 'item_id', i.item_id, 'kind', i.kind) order by i.item_id)
                from jobs.job_items i where i.item_id = any (again)));
            update jobs.job_runs r set status = 'running', finished_at = null
            where r.finished_at is not null
                and r.run_id in (select i.run_id from jobs.job_items i where i.item_id = any (again));
        end if;
    else
        again := array(select f.item_id from jobs.open_failures(p_failed_since) f where f.lane = p_lane);
        if cardinality(again) > 0 and jobs.open_run(p_run_id,
                case p_lane when 'months' then 'monthly_sync' else 'sync_integrations' end, null, 'manual', p_route,
                p_now, jsonb_build_object('retry', p_lane), p_now) ->> 'state' = 'planned' then
            insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
            select distinct on (i.kind, i.subject) p_run_id, i.lane, i.kind, i.subject, i.user_id,
                -- An old month's recap is no news any more.
                case when i.payload ->> 'month' < last_month then i.payload || '{"recap": false}' else i.payload end,
                p_now, p_now
            from jobs.job_items i where i.item_id = any (again)
            order by i.kind, i.subject, i.item_id desc;
            get diagnostics planned = row_count;
            perform jobs.send_items(p_run_id);
            update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
        end if;
    end if;

    -- Put off by a failure or a quota. What somebody holds stays theirs; what was never claimed is visible already.
    perform pgmq.set_vt('jobs_' || p_lane, i.msg_id, 0)
    from jobs.job_items i
    where i.status = 'queued' and i.lane = p_lane and i.msg_id is not null
        and coalesce(i.leased_until, '-infinity') < clock_timestamp()
    order by i.msg_id;
    get diagnostics woken = row_count;
    told := jsonb_build_object('woken', woken, 'mails', mails, 'planned', planned);
    update jobs.job_answers set answer = told where call_id = p_run_id;
    return told;
end $$;

-- Months of the last monthly slot that failed and that nothing has made up for since, of users who still have an
-- integration; with the last failure, and how often the crons have tried.
create function jobs.owed_months(p_now timestamptz)
returns table (item_id bigint, user_id uuid, month text, error jsonb, tries bigint)
language sql stable set search_path = '' as $$
    with latest as materialized (
        select max(s.slot) as month from jobs.job_slots s
        where s.task = 'monthly_sync' and s.slot ~ '^[0-9]{4}-[0-9]{2}$'
    ), runs as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(s.run_id) as ids from jobs.job_slots s, latest l
        where s.task = 'monthly_sync' and (s.slot = l.month or s.slot like l.month || '/%')
    ), failed as materialized (
        select i.subject, max(i.item_id) as item_id, count(*) as tries
        from jobs.job_items i
        where i.run_id = any ((select r.ids from runs r)::uuid[]) and i.kind = 'sync_month' and i.status = 'failed'
        group by 1
    )
    select f.item_id, i.user_id, l.month, i.error, f.tries
    from failed f join jobs.job_items i using (item_id) cross join latest l
    where not exists (select from jobs.job_items n
            where n.user_id = i.user_id and n.kind = i.kind and n.subject = i.subject and n.item_id > f.item_id
                and n.status not in ('failed', 'superseded') and n.payload ->> 'month' = l.month)
        and exists (select from public.integration_tokens t join auth.users u on u.id = t.user_id
            where t.user_id = i.user_id and t.is_active and u.deleted_at is null
                and coalesce(u.banned_until <= p_now, true));
$$;

-- Gives the months that failed on their last day their next chance, with the recap that they owe: in one run, once for
-- each p_occasion of a cron, until the p_last_day-th of the month after. What only its user can mend (p_users_codes) is
-- tried once more, since a refusal may pass, and again when the user's integrations are good.
--   {run_id, items}
create function public.jobs_retake_months(
    p_run_id uuid, p_occasion text, p_route text, p_last_day integer, p_users_codes text[], p_recap boolean,
    p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    again bigint[];
    month text;
    opened jsonb;
    planned integer;
begin
    select array_agg(o.item_id), min(o.month) into again, month
    from jobs.owed_months(p_now) o
    where (p_as_of at time zone 'Europe/Paris')::date
            < (to_date(o.month, 'YYYY-MM') + interval '1 month')::date + p_last_day
        and (coalesce(o.error ->> 'code', '') <> all (p_users_codes) or o.tries = 1
            or not exists (select from public.integration_tokens t
                join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
                where t.user_id = o.user_id and t.is_active and s.failures > 0));
    -- A repeated call finds nothing any more: its run answers.
    if again is null and not exists (select from jobs.job_runs r where r.run_id = p_run_id) then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    opened := jobs.open_run(p_run_id, 'monthly_sync', month || '/' || p_occasion, 'cron', p_route, p_as_of,
        jsonb_build_object('retaken', month), p_now);
    if opened ->> 'state' = 'repeated' then
        return jsonb_build_object('run_id', p_run_id, 'items', coalesce(opened -> 'plan' -> 'items', '0'));
    elsif opened ->> 'state' <> 'planned' then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
    select p_run_id, i.lane, i.kind, i.subject, i.user_id, i.payload || jsonb_build_object('recap', p_recap), p_now,
        p_now
    from jobs.job_items i where i.item_id = any (again) order by i.item_id;
    get diagnostics planned = row_count;
    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
    return jsonb_build_object('run_id', p_run_id, 'items', planned);
end $$;

drop function public.jobs_troubles;

-- What went wrong since the last digest (at least since p_latest_since, at most since p_first_since: a first digest
-- does not tell of years), what was queued before p_stuck_before and still is, and what is needed to find missed crons:
-- slots since p_slots_since, the routes' last calls since p_calls_since.
--   {since, slots: [{task, slot}], failed: [{lane, code, message, count}], stuck: [{lane, count, oldest}],
--    unreadable: users who could not be read any more since then, calls: [{route, message, count}],
--    routes: {route: last call}, outages: see integration_outages,
--    permanent_tokens: active Shopify integrations whose token cannot be renewed}
create function public.jobs_troubles(
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
        'outages', public.integration_outages(p_outage, p_now),
        'permanent_tokens', (select count(*) from public.integration_tokens t
            where t.provider = 'shopify' and t.is_active and coalesce(btrim(t.refresh_token), '') = ''),
        'routes', (select coalesce(jsonb_object_agg(l.route, l.last), '{}') from (
            select left(l.metadata ->> 'route', 200) as route, max(l.synced_at) as last
            from public.sync_logs l
            where l.user_id is null and l.sync_type = 'cron' and l.synced_at > p_calls_since
            group by 1 order by 2 desc limit 50) l where l.route is not null));
end $$;

-- The outages of this moment. p_rule: {least: so many integrations at least, percent: more than so many of a provider's
-- active ones, codes: [what proves that we are refused], hours: they prove it for so long, days: whoever was
-- asked to connect again longer ago does not count, wait_seconds: see hold_trouble_mails}
create function jobs.provider_outages(p_rule jsonb, p_now timestamptz)
returns table (provider text, code text, message text, failing bigint, active bigint)
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.provider, coalesce(s.failures, 0) as failures, s.failure
        from public.integration_tokens t join auth.users u on u.id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.is_active and u.deleted_at is null and coalesce(u.banned_until <= p_now, true)
            -- Whose user was asked long ago is that user's to mend: no news of a provider.
            and coalesce(not (s.failures > 0 and s.trouble_mails > 0
                and s.trouble_mailed_at < p_now - make_interval(days => (p_rule ->> 'days')::integer)), true)
    ), alike as (
        select k.provider, k.failure ->> 'code' as code,
            jobs.mask_text(min(left(k.failure ->> 'message', 2000))) as message, count(*) as failing
        from known k where k.failures > 0 group by 1, 2
    ), active as (
        select k.provider, count(*) as active from known k group by 1
    ), refused as (   -- its items wait, so no integration has failed
        select case when p.problem ->> 'message' like '%Shopify%' then 'shopify' else 'stripe' end as provider,
            p.problem ->> 'code' as code,
            jobs.mask_text(min(left(p.problem ->> 'message', 2000))) as message
        from public.sync_logs l
        cross join lateral jsonb_path_query(l.metadata, '$.answer.**.problems[*]') as p (problem)
        where l.synced_at > p_now - make_interval(hours => (p_rule ->> 'hours')::integer)
            and l.provider = 'jobs' and l.status <> 'success' and (p_rule -> 'codes') ? (p.problem ->> 'code')
        group by 1, 2
    )
    select a.provider, a.code, a.message, a.failing, n.active
    from alike a join active n using (provider)
    where a.failing >= (p_rule ->> 'least')::integer and a.failing * 100 > n.active * (p_rule ->> 'percent')::integer
    union all
    select r.provider, r.code, r.message, null, coalesce(n.active, 0)
    from refused r left join active n using (provider);
$$;

-- The same for those who tell it.
--   [{provider, code, message, failing, active}]
create function public.integration_outages(p_rule jsonb, p_now timestamptz) returns jsonb
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select coalesce(jsonb_agg(o order by o.provider, o.code), '[]') from jobs.provider_outages(p_rule, p_now) o;
$$;

-- Keeps back what this claim and the lane hold of mails that ask users to connect again, as long as their provider has
-- an outage: nobody is asked to mend what is not theirs. They wait, are looked at again after the rule's wait_seconds,
-- and expire unsent should it last. Answers whether any was kept back.
create function jobs.hold_trouble_mails(
    p_claim uuid, p_rule jsonb, p_now timestamptz
) returns boolean
language plpgsql set search_path = '' as $$
declare
    wait constant integer := (p_rule ->> 'wait_seconds')::integer;
    mine bigint[];
    providers text[];
begin
    mine := array(
        select i.item_id from jobs.job_items i
        join jobs.email_deliveries d on d.delivery_id = (i.payload ->> 'delivery_id')::bigint
        where i.lease_id = p_claim and i.status = 'queued' and d.kind = 'integration_trouble' and d.status = 'planned'
            and d.expires_at > p_now);
    if cardinality(mine) = 0 then
        return false;
    end if;
    providers := array(select distinct o.provider from jobs.provider_outages(p_rule, p_now) o);
    mine := array(
        select i.item_id from jobs.job_items i
        join jobs.email_deliveries d on d.delivery_id = (i.payload ->> 'delivery_id')::bigint
        where i.item_id = any (mine) and d.facts ->> 'provider' = any (providers)
            -- What is no longer true is dropped at once.
            and jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') is null);
    if cardinality(mine) = 0 then
        return false;
    end if;
    perform public.jobs_release('alerts', mine, array_fill(p_claim, array[cardinality(mine)]), wait);
    -- All others of the lane, too: else each hundred of them would be claimed and given back.
    update pgmq.q_jobs_alerts q set vt = clock_timestamp() + make_interval(secs => wait)
    where q.vt <= clock_timestamp() and (q.message ->> 'item_id')::bigint = any (array(
        select i.item_id from jobs.job_items i
        join jobs.email_deliveries d on d.delivery_id = (i.payload ->> 'delivery_id')::bigint
        where i.lane = 'alerts' and i.status = 'queued' and d.kind = 'integration_trouble' and d.status = 'planned'
            and d.expires_at > p_now and d.facts ->> 'provider' = any (providers)));
    return true;
end $$;

-- Why nobody has to be asked to connect again any more; null: it still is to be mended.
create function jobs.trouble_is_over(p_user_id uuid, p_provider text) returns text
language sql stable set search_path = '' as $$
    select case
        when not exists (select from public.integration_tokens t
            where t.user_id = p_user_id and t.provider = p_provider and t.is_active) then 'inactive'
        when not exists (select from jobs.integration_state s
            where s.user_id = p_user_id and s.provider = p_provider and s.refusals > 0) then 'connection_good' end;
$$;

drop function public.jobs_prune;

-- Deletes what is older than p_before: logs, events, finished runs and their items. Ledgers stay, without what is
-- personal of those settled before p_personal_before. What is personal of users who are gone goes at once, but for a
-- batch that was sealed later than p_sealed_until: it may be sent again as sealed.
--
-- The oldest first, at most 20,000 rows per table a call, so that it never takes long; left says that there is more:
-- call again. Waits for nobody: what is locked just now has time.
--
-- Rows go by where they were found (ctid): looking them up again would read the index of all logs, at random.
--   {logs, items, runs, events, blanked, left}
create function public.jobs_prune(
    p_before timestamptz, p_personal_before timestamptz, p_sealed_until timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    max_rows_per_table constant integer := 20000;
    logs integer;
    items integer;
    runs integer;
    events integer;
    blanked integer;
    of_old integer;
begin
    delete from public.sync_logs where ctid = any (array(
        select l.ctid from public.sync_logs l where l.synced_at < p_before order by l.synced_at limit max_rows_per_table
        for update skip locked));
    get diagnostics logs = row_count;
    delete from jobs.job_items where ctid = any (array(
        select i.ctid
        from (select run_id from jobs.job_runs
            where finished_at < p_before order by finished_at limit max_rows_per_table) r
        -- In the order of an index (here and below): else the whole table may seem quicker.
        cross join lateral (select ctid from jobs.job_items where run_id = r.run_id order by kind, subject
            limit max_rows_per_table for update skip locked) i
        limit max_rows_per_table));
    get diagnostics items = row_count;
    delete from jobs.job_runs where ctid = any (array(
        select r.ctid
        from (select ctid, run_id from jobs.job_runs
            where finished_at < p_before order by finished_at limit max_rows_per_table for update skip locked) r
        left join lateral (select true as one from jobs.job_items where run_id = r.run_id order by kind, subject
            limit 1) i on true
        where i.one is null));
    get diagnostics runs = row_count;
    delete from jobs.email_events where ctid = any (array(
        select e.ctid from jobs.email_events e
        where e.received_at < p_before order by e.received_at limit max_rows_per_table for update skip locked));
    get diagnostics events = row_count;
    -- Few, and of no use after some minutes; nobody may have tried since.
    delete from jobs.job_sign_ins where tried_at < p_now - interval '1 day';
    -- What is personal of those who are gone: at once, but for a batch that may be sent again as sealed. Their items
    -- went with them, so nobody else ends what was still open. (The operator's digest never had a user.)
    with ended as (
        update jobs.email_deliveries d
        set address = null, facts = '{}',
            status = case d.status when 'planned' then 'skipped' when 'sealed' then 'unknown' else d.status end,
            reason = case when d.status in ('planned', 'sealed') then 'user_deleted' else d.reason end,
            settled_at = coalesce(d.settled_at, p_now)
        where d.delivery_id = any (array(
            select g.delivery_id from jobs.email_deliveries g
            where g.user_id is null and g.kind <> 'operator_digest'
                and (g.address is not null or g.facts <> '{}' or g.status in ('planned', 'sealed'))
                and (g.status <> 'sealed' or exists (select from jobs.email_batches b
                    where b.batch_id = g.batch_id and b.sealed_at <= p_sealed_until))
            limit max_rows_per_table for update of g skip locked))
        returning d.delivery_id, d.batch_id
    ), batches as (
        update jobs.email_batches b set state = 'settled', ended_at = clock_timestamp()
        where b.state = 'sealed' and b.batch_id in (select e.batch_id from ended e)
            and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed'
                and d.delivery_id not in (select e.delivery_id from ended e))
    )
    select count(*) into blanked from ended;
    -- Of the others after 13 months.
    update jobs.email_deliveries set address = null, facts = '{}' where delivery_id = any (array(
        select d.delivery_id from jobs.email_deliveries d
        where (d.address is not null or d.facts <> '{}') and d.settled_at < p_personal_before
        order by d.settled_at limit max_rows_per_table for update skip locked));
    get diagnostics of_old = row_count;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs, 'events', events,
        'blanked', blanked + of_old, 'left', max_rows_per_table in (logs, items, runs, events, blanked, of_old));
end $$;

-- Who may do what; the last file, and the only one about rights. Supabase's default privileges open every new table and
-- function of `public` to everybody, and PostgreSQL grants EXECUTE on every new function to PUBLIC: both are taken
-- back.

-- Ours: nobody but the owner, not even service_role. Row-level security without a policy, should somebody ever get in.
revoke all on schema jobs from public, anon, authenticated, service_role;
revoke all on all tables in schema jobs from public, anon, authenticated, service_role;
revoke all on all sequences in schema jobs from public, anon, authenticated, service_role;
revoke all on all functions in schema jobs from public, anon, authenticated, service_role;
do $$
declare
    name text;
begin
    for name in select c.oid::regclass from pg_catalog.pg_class c
        where c.relnamespace = 'jobs'::regnamespace and c.relkind = 'r'
    loop
        execute format('alter table %s enable row level security', name);
    end loop;
end $$;

-- What the code calls: service_role only. By name alone, which fails where a function has an overload.
revoke all on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books
from public, anon, authenticated, service_role;
grant execute on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books
to service_role;

commit;
