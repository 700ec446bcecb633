-- Planning of syncs: which integrations and which users' months a run works on.

-- The integrations a run could work on, and why it does not work on some of them (reason null: due).
create function jobs.sync_candidates(p_user_id uuid, p_as_of timestamptz)
returns table (integration_id uuid, user_id uuid, provider text, reason text)
language sql stable set search_path = '' as $$
    select t.id, t.user_id, t.provider,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.banned_until > p_as_of then 'user_banned'
            when t.is_active is not true then 'inactive'
        end
    from public.integration_tokens t join auth.users u on u.id = t.user_id
    where p_user_id is null or t.user_id = p_user_id;
$$;

-- What a new item inherits from the items that it supersedes: attempts, last error, stored movements, days to look
-- back (p_most_days at most). No row for a subject whose items have nothing of that.
create function jobs.inherited_progress(
    p_items bigint[], p_payload jsonb, p_most_days integer, p_as_of timestamptz
)
returns table (subject uuid, attempts integer, error jsonb, progress jsonb, payload jsonb)
language sql stable as $$
    with old as materialized (
        select i.subject, i.attempts, i.error, i.progress, d.days
        from jobs.job_items i
        cross join lateral (select case when i.payload ->> 'days' is not null then (i.payload ->> 'days')::integer
            + (p_as_of at time zone 'Europe/Paris')::date - (
                select (r.as_of at time zone 'Europe/Paris')::date from jobs.job_runs r where r.run_id = i.run_id)
            end as days) d
        where i.item_id = any (p_items)
            and (i.attempts > 0 or i.progress ? 'records' or d.days > coalesce((p_payload ->> 'days')::integer, 0))
    ), providers as (
        select n.subject, jsonb_object_agg(n.provider, n.n) as by_provider from (
            select o.subject, e.key as provider, sum(e.value::text::bigint) as n
            from old o, jsonb_each(o.progress -> 'by_provider') e group by 1, 2) n
        group by n.subject
    ), months as (
        select o.subject, jsonb_agg(distinct m) as months
        from old o, jsonb_array_elements(o.progress -> 'months') m group by o.subject
    ), summed as (
        select o.subject, max(case when o.days > p_most_days then p_most_days else o.days end) as days,
            -- A provider that keeps failing is given up after five attempts, however often it is planned anew.
            max(o.attempts) as attempts, (array_agg(o.error order by o.attempts desc))[1] as error,
            bool_or(o.progress ? 'records') as stored, sum((o.progress ->> 'records')::bigint) as records
        from old o group by o.subject
    )
    select s.subject, s.attempts, s.error,
        -- Stored at a checkpoint: the new item's to account for, since to it these movements are not new.
        case when s.stored then jsonb_build_object('records', s.records,
            'by_provider', p.by_provider, 'months', coalesce(m.months, '[]')) else '{}' end,
        case when s.days > coalesce((p_payload ->> 'days')::integer, 0)
            then p_payload || jsonb_build_object('days', s.days) else p_payload end
    from summed s left join providers p using (subject) left join months m using (subject);
$$;

-- Plans one item for each due integration (p_kind sync_integration) or for each user who has one (sync_month).
-- Items of the same subject that older runs left in the queue are superseded: the new one reads at least as far
-- back, accounts for what they had stored, goes on counting their attempts, and has waited as long as they have.
-- (Their messages go with them, but for those that a claim is reading just now: it finds no item behind them.)
-- p_most_days bounds how far back. With p_dry_run nothing is written.
--
-- Never by loops: statistics know nothing yet of the items that were just planned. Old items by their ids alone: a
-- join would read 90 days of finished ones. No just-in-time compilation, which what loops would have cost sets off.
--   {state: planned | joined | repeated | dry_run, run_id, plan: {items, skipped: {reason: n}, candidates?: […]}}
create function public.jobs_plan_sync(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_payload jsonb, p_user_id uuid, p_dry_run boolean, p_most_days integer, p_now timestamptz
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
    select n.user_id, n.provider, n.account, p_now
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
        insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, attempts, error, progress,
            created_at, waiting_since)
        select p_run_id, d.lane, p_kind, d.subject, d.user_id, coalesce(t.payload, p_payload),
            coalesce(t.attempts, 0), t.error, coalesce(t.progress, '{}'), p_now, least(w.since, p_now)
        from (select distinct c.user_id,
                  case p_kind when 'sync_month' then c.user_id else c.integration_id end as subject,
                  case p_kind when 'sync_month' then 'months' else c.provider end as lane
              from c where c.reason is null) d
        left join jobs.inherited_progress(likely, p_payload, p_most_days, p_as_of) t using (subject)
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
        select * from jobs.inherited_progress(needless, p_payload, p_most_days, p_as_of)
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
