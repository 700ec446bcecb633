-- Items of work, and one queue for each lane that carries them.

-- The lanes, in order of priority: mails first. The one list of them; crates/jobs/src/lane.rs has the same.
create function jobs.known_lanes() returns table (lane text, place integer, is_mail boolean)
language sql immutable as $$
    values ('alerts', 1, true), ('reminders', 2, true), ('recaps', 3, true), ('marketing', 4, true),
        ('stripe', 5, false), ('shopify', 6, false), ('months', 7, false);
$$;

-- The lane of a kind of mail; null for what is no kind. The one list of kinds; crates/jobs/src/mail_kind.rs
-- has the same.
create function jobs.lane_of_mail(p_kind text) returns text
language sql immutable as $$
    select case p_kind when 'threshold_alert' then 'alerts' when 'integration_trouble' then 'alerts'
        when 'operator_digest' then 'alerts' when 'monthly_reminder' then 'reminders'
        when 'monthly_recap' then 'recaps' when 'definitive_month' then 'recaps' when 'marketing_day3' then 'marketing' end;
$$;

do $$
begin
    perform pgmq.create('jobs_' || l.lane) from jobs.known_lanes() l order by l.place;
end $$;

create table jobs.job_items (
    item_id bigint generated always as identity primary key,
    run_id uuid not null references jobs.job_runs (run_id) on delete cascade,
    lane text not null,
    kind text not null,
    version integer not null default 1,         -- of the payload: a rolled-back deployment leaves newer items alone
    subject uuid not null,                       -- what is worked on: an integration, a user
    user_id uuid references auth.users (id) on delete cascade,
    payload jsonb not null default '{}',
    status text not null default 'queued'
        check (status in ('queued', 'done', 'partial', 'failed', 'superseded',
            'skipped')),                         -- a mail that is not wanted any more, or came too late
    attempts integer not null default 0,         -- classified failures of the item itself
    msg_id bigint,                               -- known once claimed
    lease_id uuid,                               -- the claim that holds it: the fence of every write
    leased_until timestamptz,
    returned_lease uuid,                         -- the claim that gave it back last: a repeated call is known by it
    progress jsonb not null default '{}',        -- checkpoint of unfinished work
    result jsonb not null default '{}',
    error jsonb,                                 -- {code, message} of the last failure
    created_at timestamptz not null default clock_timestamp(),
    settled_at timestamptz,
    -- Since when its subject waits, however often it was planned anew.
    waiting_since timestamptz not null default clock_timestamp(),
    unique (run_id, kind, subject)
);
create index job_items_lease on jobs.job_items (lease_id) where status = 'queued' and lease_id is not null;
create index job_items_run_queued on jobs.job_items (run_id) where status = 'queued';
create index job_items_user on jobs.job_items (user_id);
create index job_items_failed on jobs.job_items (settled_at) where status = 'failed';

-- Sends one message for each of these items of a run, in their order. pgmq.send_batch does the same, but takes all
-- messages as one value and hands all their ids back through three functions: this is straight from the ids.
create function jobs.send_messages(
    p_run_id uuid, p_lane text, p_kind text, p_version integer, p_items bigint[]
) returns void language plpgsql set search_path = '' as $$
begin
    execute format('insert into pgmq.%I (vt, message) select $1, jsonb_build_object(
            ''version'', $2, ''run_id'', $3, ''item_id'', n.item_id, ''kind'', $4)
        from unnest($5) with ordinality n (item_id, place) order by n.place', 'q_jobs_' || p_lane)
    using clock_timestamp(), p_version, p_run_id, p_kind, p_items;
end $$;

-- Sends one message for each queued item of a run, whoever has waited longest first: the end of every plan, in its
-- transaction.
create function jobs.send_items(p_run_id uuid) returns void
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

-- Takes the message and the item for a write.
--   held: go on; lost: somebody else has it, write nothing; settled: it was ours and is done (a repeated call)
create function jobs.hold_item(p_item_id bigint, p_lease_id uuid) returns text
language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.item_id is null or i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    if i.status <> 'queued' then
        return case i.status when 'superseded' then 'lost' else 'settled' end;
    end if;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, 60);     -- locks the message before the item
    select * into i from jobs.job_items where item_id = p_item_id for update;
    if i.lease_id is distinct from p_lease_id then
        return 'lost';
    end if;
    return case i.status when 'queued' then 'held' when 'superseded' then 'lost' else 'settled' end;
end $$;

-- Writes an item's result and takes its message away. Call only on a held item.
create function jobs.finish_item(
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
