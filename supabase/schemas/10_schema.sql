-- The schema of the scheduled jobs: their tables and everything that only their own functions call.
--
-- Nobody but the owner has usage on it, and the Data API does not expose it. What the code calls stands in `public`
-- (jobs_…, mail_…, integration_…, threshold_…): security definer, and only service_role may execute it. Rights are
-- given in 90_rights.sql, at the end and nowhere else.
--
-- pgmq carries and redelivers; jobs.job_items is the record. A message holds {version, run_id, item_id, kind}.
-- Who holds an item is its lease_id (the id of the claim that read the message last): settling with another
-- lease writes nothing.
--
-- Lock order, everywhere: the ledger of mails (advisory), the user (advisory), the user's account, message, item;
-- several messages and several items each by their ids. Keeping it is what makes claims, heartbeats, settlements and
-- plans free of deadlocks.

create schema jobs;

do $$
begin
    if exists (select from pg_catalog.pg_available_extensions where name = 'pgmq') then
        create extension if not exists pgmq;
    elsif to_regprocedure('pgmq.create(text)') is null then
        raise exception 'pgmq is missing: enable Queues (extension pgmq) in the Supabase dashboard, '
            'then run this file again';
    end if;
end $$;

-- A failure ({code, message}) as it is kept and told: cut, whatever a vendor's or a user's words have made of it.
create function jobs.cut_failure(p_failure jsonb) returns jsonb
language sql immutable set search_path = '' as $$
    select jsonb_strip_nulls(jsonb_build_object(
        'code', left(p_failure ->> 'code', 80), 'message', left(p_failure ->> 'message', 500)))
    where jsonb_typeof(p_failure) = 'object';
$$;
