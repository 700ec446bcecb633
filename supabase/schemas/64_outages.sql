-- Failures that are no single user's: many fail alike, or a code proves that it is us whom a provider refuses.

-- The outages of this moment. p_rule: {least: so many integrations at least, percent: more than so many of a provider's
-- active ones, codes: [what proves that we are refused], hours: they prove it for so long, days: whoever was
-- asked to connect again longer ago does not count, wait_seconds: see hold_trouble_mails}
create function jobs.provider_outages(p_rule jsonb, p_now timestamptz)
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
