-- What was told by an alert and does not hold any more is said once, in the next mail that its user gets anyway.

-- Whether a mail has said what it says, or is about to: it did not come back.
create function jobs.is_said(d jobs.email_deliveries) returns boolean
language sql immutable set search_path = '' as $$
    select d.status in ('planned', 'sealed', 'sent', 'unknown')
        and coalesce(d.feedback, '') not in ('bounced', 'suppressed', 'refused');
$$;

-- Whether an alert that left has told of a step as certain.
create function jobs.was_step_mailed(a jobs.threshold_alerts) returns boolean
language sql stable set search_path = '' as $$
    select exists (select from jobs.email_deliveries d
        where d.user_id = a.user_id and d.kind = 'threshold_alert' and jobs.is_said(d) and d.status <> 'planned'
            and split_part(d.dedupe_key, '/', 3) = a.year::text
            and exists (select from jsonb_array_elements(d.facts -> 'crossings') c
                where c ->> 'threshold' = a.threshold and c ->> 'step' = a.step::text
                    and coalesce(c -> 'doubt', 'null') = 'null'));
$$;

-- Notes for these mails, which are about to be written, what they say of earlier ones: that a ceiling is not exceeded, or
-- that something does not follow, which an alert said. What a mail was to say that never left, another one says. Steps below
-- the ceiling need no word: nothing followed from them. A ceiling waits as long as it is perhaps exceeded, or its neighbour (of
-- services, of all turnover) is, or the same follows from the year for another reason.
-- Call only under the ledger's lock.
create function jobs.retract_in_mails(p_deliveries bigint[]) returns void
language plpgsql set search_path = '' as $$
declare
    users uuid[];
    mails bigint[];     -- of each of them, the one that says it
begin
    select array_agg(m.user_id), array_agg(m.delivery_id) into users, mails
    from (select d.user_id, min(d.delivery_id) as delivery_id from jobs.email_deliveries d
        where d.delivery_id = any (p_deliveries) and d.status = 'planned' and d.user_id is not null
            and d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') group by 1) m;
    if not exists (select from jobs.threshold_alerts a where a.user_id = any (users) and a.withdrawn_at is not null)
        and not exists (select from jobs.told_consequences a where a.user_id = any (users) and a.withdrawn_at is not null) then
        return;
    end if;
    -- In the order of jobs_plan_alerts.
    perform from jobs.threshold_alerts a where a.user_id = any (users)
    order by a.user_id, a.year, a.threshold, a.step, a.told_as for update;
    perform from jobs.told_consequences a where a.user_id = any (users)
    order by a.user_id, a.year, a.consequence for update;
    update jobs.threshold_alerts a set unsaid_by = m.delivery_id
    from unnest(users, mails) as m (user_id, delivery_id)
    where a.user_id = m.user_id and a.withdrawn_at is not null and a.step = 100 and a.told_as = 'certain'
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and not exists (select from jobs.threshold_alerts v
            where (v.user_id, v.year, v.step) = (a.user_id, a.year, a.step) and v.withdrawn_at is null
                and regexp_replace(v.threshold, '_(services|total)$', '') = regexp_replace(a.threshold, '_(services|total)$', ''))
        and not exists (select from jobs.told_consequences c
            where c.user_id = a.user_id and c.year = a.year and c.withdrawn_at is null
                and (c.consequence = 'vat_due') = (a.threshold like 'vat%'))
        and jobs.was_step_mailed(a);
    update jobs.told_consequences a set unsaid_by = m.delivery_id
    from unnest(users, mails) as m (user_id, delivery_id)
    where a.user_id = m.user_id and a.withdrawn_at is not null
        and not exists (select from jobs.email_deliveries e
            where e.delivery_id = a.unsaid_by and jobs.is_said(e))
        and exists (select from jobs.email_deliveries e
            where e.user_id = a.user_id and e.run_id = a.run_id and e.kind = 'threshold_alert' and jobs.is_said(e)
                and e.status <> 'planned');
end $$;

-- What a mail says of earlier ones: see retract_in_mails.
--   [{year, threshold}, {year, consequence}]
create function jobs.retractions(p_user_id uuid, p_delivery_id bigint) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(r.what order by r.year, r.name), '[]') from (
        select a.year, a.threshold as name, jsonb_build_object('year', a.year, 'threshold', a.threshold) as what
        from jobs.threshold_alerts a
        where a.user_id = p_user_id and a.unsaid_by = p_delivery_id and a.withdrawn_at is not null
        union all
        select a.year, a.consequence, jsonb_build_object('year', a.year, 'consequence', a.consequence)
        from jobs.told_consequences a
        where a.user_id = p_user_id and a.unsaid_by = p_delivery_id and a.withdrawn_at is not null) r;
$$;
