-- A mail that is refused for a cause of all mails waits again instead of being settled. Locks nothing. A second time it
-- changes nothing. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown; planned: it has not left, for a reason that
-- is no mail's own, and waits again for another batch. What another claim holds by now is left to it.
-- p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this call or by an
-- earlier one that it repeats.
create or replace function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    again bigint[];
    batch record;
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    -- In one transaction with the others' outcomes: the batch's key would send these few as another payload.
    again := array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o
        where o ->> 'status' = 'planned' and (o ->> 'delivery_id')::bigint = any (held));
    update jobs.email_deliveries
    set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
    where delivery_id = any (again);
    perform jobs.write_mail_outcomes(p_claim, (
        select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held) and (o ->> 'delivery_id')::bigint <> all (again)), p_now);
    for batch in
        select i.lane, array_agg(i.item_id order by i.item_id) as items
        from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (again) and i.status = 'queued' and i.lease_id = p_claim group by i.lane
    loop
        perform public.jobs_release(batch.lane, batch.items, array_fill(p_claim, array[cardinality(batch.items)]), 0);
    end loop;
    return (select count(*)
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id and d.status = o.status
        left join jobs.job_items i on i.item_id = d.item_id
        where i.item_id is null or p_claim in (i.lease_id, i.returned_lease));
end $$;

commit;
