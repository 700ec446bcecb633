-- A mail that asks a user to connect again counts once it was sent: what was only planned, and expired, asked nobody. A
-- batch whose mails all went back is released. Nobody gets the recap of a month before their connection from a run for
-- everybody. Locks those rows of integration_state whose count is put right, a moment. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Counts the mails that asked users to connect again: sent, perhaps sent, or refused for their address. What expired or
-- was skipped has asked nobody.
create or replace function jobs.note_trouble_mails(p_outcomes jsonb, p_now timestamptz) returns void
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
create or replace function jobs.write_mail_outcomes(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns void
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

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown; planned: it has not left, for a reason that
-- is no mail's own, and waits again for another batch. What another claim holds by now is left to it.
-- p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this call or by an
-- earlier one that it repeats.
create or replace function public.mail_settle(p_claim uuid, p_outcomes jsonb, p_now timestamptz) returns integer
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

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    is_empty boolean;
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
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active) then
        return;
    end if;
    -- Connected after the month: whoever looks at everybody's month finds it in no books.
    if not in_books and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month)
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', coalesce(sum(s.gross + s.refunds), 0)::bigint,
        'activities', (select coalesce(jsonb_agg(jsonb_build_object('activity', a.activity, 'total', a.total)
                order by a.activity), '[]')
            from (select left(c.activity, 80) as activity, sum(c.amount_minor)::bigint as total
                  from jobs.countable_movements(p_user_id, array[p_month], in_books) c
                  where c.activity is not null group by 1) a),
        'sources', coalesce(jsonb_agg(jsonb_build_object(
            'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
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
-- still is. Refused: what connecting again mends. A mail counts once it was sent (see note_trouble_mails); until then, no
-- other one is planned. Call in the settlement's transaction.
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
            or jobs.mail_refusal(p, 'integration_trouble', p_now) is not null
            or exists (select from jobs.email_deliveries d
                where d.user_id = p_user_id and d.kind = 'integration_trouble' and d.status in ('planned', 'sealed')
                    and d.expires_at > p_now and split_part(d.dedupe_key, '/', 3) = part.provider);
        insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        values ('integration_trouble/' || p_user_id || '/' || part.provider || '/' || i.item_id, 'integration_trouble',
            p_user_id, p_user_id, i.run_id, jsonb_build_object('provider', part.provider, 'reason', part.message,
                'read_until', s.last_success_to),
            p_now + make_interval(days => (p_policy ->> 'open_days')::integer))
        on conflict (dedupe_key) do nothing;
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end loop;
end $$;

-- The outages of this moment. p_rule: {least: so many integrations at least, percent: more than so many of a provider's
-- active ones, codes: [what proves that we are refused], hours: they prove it for so long, days: whoever was
-- asked to connect again longer ago does not count, wait_seconds: see hold_trouble_mails}
create or replace function jobs.provider_outages(p_rule jsonb, p_now timestamptz)
returns table (provider text, code text, message text, failing bigint, active bigint)
language sql stable set search_path = '' as $$
    with known as materialized (
        select t.provider, coalesce(s.failures, 0) as failures, s.failure
        from public.integration_tokens t join jobs.mail_people u on u.user_id = t.user_id
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.is_active and u.unreachable is distinct from 'user_deleted' and coalesce(u.banned_until <= p_now, true)
            -- Whom no mail reaches will never have been asked.
            and not (coalesce(s.failures, 0) > 0 and u.unreachable is not null)
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
revoke all on function jobs.note_trouble_mails from public, anon, authenticated, service_role;

-- What was counted when it was planned.
update jobs.integration_state k
set trouble_mails = least(k.trouble_mails, n.asked), trouble_mailed_at = n.asked_at
from (
    select s.user_id, s.provider, count(d.delivery_id) as asked, max(d.settled_at) as asked_at
    from jobs.integration_state s
    left join jobs.email_deliveries d on d.user_id = s.user_id and d.kind = 'integration_trouble'
        and d.status in ('sent', 'unknown', 'refused') and split_part(d.dedupe_key, '/', 3) = s.provider
    where s.trouble_mailed_at is not null
    group by 1, 2) n
where n.user_id = k.user_id and n.provider = k.provider;

commit;
