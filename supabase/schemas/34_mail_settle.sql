-- How a sender seals a batch of mails and settles what came of it.

-- What the mail service reports of a mail that it had accepted, the worse the higher; 0: nothing.
--   delayed: it is still trying; delivered; returned: the mailbox did not take it this time; mailbox_full: it had no room;
--   failed: it did not leave, for a reason of ours or of the service; refused: it did not leave, because of the address; suppressed: the service keeps mails
--   from this address; bounced: the address refuses mails; complained: the reader called it spam
create function jobs.feedback_rank(p_outcome text) returns integer
language sql immutable set search_path = '' as $$
    select coalesce(array_position(array['delayed', 'delivered', 'returned', 'mailbox_full', 'failed', 'refused', 'suppressed', 'bounced',
        'complained'], p_outcome), 0);
$$;

-- How long a mail waits before its second attempt: a mailbox that is full is not emptied within the hour; what failed at the
-- service, or for a reason of ours, may pass sooner.
create function jobs.second_attempt_after(p_feedback text) returns interval
language sql immutable set search_path = '' as $$
    select case p_feedback when 'mailbox_full' then interval '1 day' else interval '30 minutes' end;
$$;

-- Notes on these mails what the service has reported of them, the worst that there is, whether it came before or after our
-- note of their ids. What did not arrive for a reason that is ours or passes is planned once more, under a key of its
-- own, and waits (queue_put_off_mails); not an offer, for which nobody waits, nor what would come too late. An out-of-office
-- note comes as a bounce that passes, too: what was delivered has arrived, and only a full mailbox is tried again.
create function jobs.apply_feedback(p_provider_ids text[], p_now timestamptz) returns void
language sql set search_path = '' as $$
    with worst as (
        select distinct on (e.provider_id) e.provider_id, e.outcome
        from jobs.email_events e where e.provider_id = any (p_provider_ids) and e.outcome is not null
            and not (e.outcome in ('returned', 'mailbox_full') and exists (select from jobs.email_events a
                where a.provider_id = e.provider_id and a.outcome = 'delivered'))
        order by e.provider_id, jobs.feedback_rank(e.outcome) desc
    )
    update jobs.email_deliveries d
    set feedback = nullif(w.outcome, 'delivered'), feedback_at = case when w.outcome <> 'delivered' then p_now end
    from worst w
    where d.provider_id = w.provider_id and (jobs.feedback_rank(w.outcome) > jobs.feedback_rank(d.feedback)
            or w.outcome = 'delivered' and d.feedback in ('returned', 'mailbox_full'))
        -- A mailbox that is full for an offer is nothing to note.
        and (w.outcome not in ('returned', 'mailbox_full') or d.kind <> 'marketing_day3');
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at, not_before)
    select d.dedupe_key || '/again', d.kind, d.user_id, d.recipient, d.run_id, d.facts, d.expires_at,
        p_now + jobs.second_attempt_after(d.feedback)
    from jobs.email_deliveries d join jobs.job_runs r on r.run_id = d.run_id
    where d.provider_id = any (p_provider_ids) and d.feedback in ('failed', 'mailbox_full')
        and d.kind <> 'marketing_day3' and d.facts <> '{}' and d.dedupe_key not like '%/again'
        and (d.user_id is not null or d.recipient is null)
        and (d.expires_at is null or d.expires_at > p_now + jobs.second_attempt_after(d.feedback))
    order by d.delivery_id
    on conflict (dedupe_key) do nothing;
    -- It was delivered after all.
    delete from jobs.email_deliveries n
    using jobs.email_deliveries d
    where d.provider_id = any (p_provider_ids) and d.feedback is null
        and n.dedupe_key = d.dedupe_key || '/again' and n.status = 'planned' and n.not_before is not null;
$$;

-- Counts the mails that asked users to connect again: sent, perhaps sent, or refused for their address. What expired or
-- was skipped has asked nobody.
create function jobs.note_trouble_mails(p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
begin
    perform from jobs.integration_state k
    where k.user_id = any (array(
        select d.user_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join jobs.email_deliveries d on d.delivery_id = o.delivery_id
        where d.kind = 'integration_trouble' and d.user_id is not null))
    order by k.user_id, k.provider for update;     -- as every plan locks them
    update jobs.integration_state k set trouble_mails = k.trouble_mails + 1, trouble_mailed_at = p_now
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join jobs.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'integration_trouble' and o.status in ('sent', 'unknown', 'refused')
        and k.user_id = d.user_id and k.provider = split_part(d.dedupe_key, '/', 3);
end $$;

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that hold_mails let pass.
create function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    batch record;
begin
    update jobs.email_deliveries d
    set status = o.status, reason = left(o.reason, 500), provider_id = o.provider_id, settled_at = p_now,
        feedback = case o.status when 'refused' then 'refused' end,
        feedback_at = case o.status when 'refused' then p_now end
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;
    perform jobs.apply_feedback(array(
        select o.provider_id from jsonb_to_recordset(p_outcomes) as o (provider_id text) where o.provider_id is not null),
        p_now);
    perform jobs.note_trouble_mails(p_outcomes, p_now);

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

-- Seals a batch just before its first request: who gets it, what it says. Whoever has refused meanwhile, or has
-- another address, is left out; where nobody is left there is no batch. A repeated call gives the first one's answer.
-- p_mails: [{delivery_id, address, facts, digest}] in the order of the payload.
--   [delivery_id]: those that are in the batch
create function public.mail_seal(
    p_claim uuid, p_batch_id uuid, p_kind text, p_mails jsonb, p_prices jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    unwanted jsonb;
begin
    perform jobs.lock_mail_ledger();
    if not exists (select from jobs.email_batches where batch_id = p_batch_id) then
        held := jobs.hold_mails(p_claim,
            array(select (m ->> 'delivery_id')::bigint from jsonb_array_elements(p_mails) m), 60);
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id, 'status', 'skipped', 'reason', t.reason))
        into unwanted
        from jobs.email_deliveries d
        left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
        cross join lateral (select jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now) as reason) t
        where d.delivery_id = any (held) and d.kind <> 'operator_digest' and t.reason is not null;
        if unwanted is not null then
            perform jobs.write_mail_outcomes(p_claim, unwanted, p_now);
        end if;
        insert into jobs.email_batches (batch_id, kind, sealed_at) values (p_batch_id, p_kind, p_now);
        update jobs.email_deliveries d
        set status = 'sealed', batch_id = p_batch_id, position = m.position, address = m.mail ->> 'address',
            facts = m.mail -> 'facts', digest = m.mail ->> 'digest', sealed_at = p_now
        from jsonb_array_elements(p_mails) with ordinality as m (mail, position)
        where d.delivery_id = (m.mail ->> 'delivery_id')::bigint and d.delivery_id = any (held)
            and d.status = 'planned' and m.mail ->> 'address' = case d.kind when 'operator_digest' then d.facts ->> 'to'
                else (select u.email from auth.users u where u.id = d.user_id) end;
        -- Do not keep an empty batch.
        if not found then
            delete from jobs.email_batches where batch_id = p_batch_id;
        end if;
    end if;
    return (select coalesce(jsonb_agg(d.delivery_id order by d.position), '[]')
        from jobs.email_deliveries d where d.batch_id = p_batch_id and d.status = 'sealed');
end $$;

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown; planned: it has not left, for a reason that
-- is no mail's own, and waits again for another batch. What another claim holds by now is left to it.
-- p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this call or by an
-- earlier one that it repeats.
create function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    again bigint[];
    emptied uuid[];
    batch record;
begin
    perform jobs.lock_mail_ledger();
    held := jobs.hold_mails(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    -- In one transaction with the others' outcomes: the batch's key would send these few as another payload.
    again := array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o
        where o ->> 'status' = 'planned' and (o ->> 'delivery_id')::bigint = any (held));
    emptied := array(select distinct d.batch_id from jobs.email_deliveries d where d.delivery_id = any (again));
    update jobs.email_deliveries
    set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
    where delivery_id = any (again);
    perform jobs.write_mail_outcomes(p_claim, (
        select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held) and (o ->> 'delivery_id')::bigint <> all (again)), p_now);
    -- Nobody is left in it whose outcome would settle it.
    update jobs.email_batches b set state = 'released', ended_at = clock_timestamp()
    where b.batch_id = any (emptied) and b.state = 'sealed'
        and not exists (select from jobs.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
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

-- Gives mails back. With an error it is an attempt, and attempt number p_max_attempts ends them: as unknown where they
-- were sealed, as failed otherwise. p_release_batch: the batch was definitely not accepted; its mails are free for
-- another one. A repeated call finds nothing that is held.
create function public.mail_give_back(
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

-- Splits a batch that was definitely refused into child batches, each under a key of its own.
-- p_children: [{batch_id, mails: [delivery_id]}]. A repeated call changes nothing. False: another claim has it.
create function public.mail_split(p_claim uuid, p_batch_id uuid, p_children jsonb, p_now timestamptz) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    members bigint[];
begin
    perform jobs.lock_mail_ledger();
    if exists (select from jobs.email_batches where batch_id = (p_children -> 0 ->> 'batch_id')::uuid) then
        return true;
    end if;
    members := array(select d.delivery_id from jobs.email_deliveries d
        where d.batch_id = p_batch_id and d.status = 'sealed');
    if cardinality(members) = 0 or not (members <@ jobs.hold_mails(p_claim, members, 60)) then
        return false;
    end if;
    insert into jobs.email_batches (batch_id, kind, parent_id, sealed_at)
    select (c ->> 'batch_id')::uuid, b.kind, p_batch_id, p_now
    from jsonb_array_elements(p_children) c, jobs.email_batches b where b.batch_id = p_batch_id;
    update jobs.email_deliveries d set batch_id = c.batch_id, position = m.position
    from jsonb_to_recordset(p_children) as c (batch_id uuid, mails jsonb),
        jsonb_array_elements_text(c.mails) with ordinality as m (delivery_id, position)
    where d.delivery_id = m.delivery_id::bigint and d.batch_id = p_batch_id and d.status = 'sealed';
    update jobs.email_batches set state = 'split', ended_at = clock_timestamp() where batch_id = p_batch_id;
    return true;
end $$;
