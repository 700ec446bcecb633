-- How a sender claims mails and keeps them.
--
-- Everything that claims, seals or settles mails first takes one advisory lock (lock_mail_ledger), then accounts,
-- messages, items, each in the order of their ids. Planning takes none of it but its own rows.

-- Claims, seals and settlements of mails, one at a time: a batch is taken over as a whole, whoever held which of
-- its mails. Each takes some milliseconds; the mail service takes ten batches a second at most.
create function jobs.lock_mail_ledger() returns void language sql set search_path = '' as $$
    select pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.mails', 0));
$$;

-- Takes the messages and items of deliveries that this claim holds, and keeps them invisible for p_seconds.
-- Answers the ids of the deliveries that may be written: those held, and those whose item went with its user.
create function jobs.hold_mails(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns bigint[]
language plpgsql set search_path = '' as $$
declare
    held bigint[];
begin
    -- Whoever deletes a user waits for us, or we for them.
    perform from auth.users u
    where u.id in (select d.user_id from jobs.email_deliveries d where d.delivery_id = any (p_deliveries))
    order by u.id for key share;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
    from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and i.lease_id = p_claim and i.status = 'queued'
    order by i.msg_id;
    perform from jobs.job_items i
    where i.item_id in (select d.item_id from jobs.email_deliveries d where d.delivery_id = any (p_deliveries))
        and i.lease_id = p_claim and i.status = 'queued'
    order by i.item_id for update;
    update jobs.job_items i set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
    from jobs.email_deliveries d
    where d.delivery_id = any (p_deliveries) and i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    select array_agg(d.delivery_id) into held
    from jobs.email_deliveries d left join jobs.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and d.status in ('planned', 'sealed')
        and (i.item_id is null or (i.lease_id = p_claim and i.status = 'queued'));
    return coalesce(held, '{}');
end $$;

-- Why a planned mail is not sent after all (null: it is): what may have changed since it was planned.
create function jobs.mail_skip_reason_now(p_kind text, p jobs.mail_people, p_prices jsonb, p_now timestamptz)
returns text language sql stable set search_path = '' as $$
    select case
        when p.user_id is null then 'user_deleted'
        when jobs.mail_refusal(p, p_kind, p_now) is not null then jobs.mail_refusal(p, p_kind, p_now)
        when p_kind = 'marketing_day3' and exists (select from public.marketing_emails m
            where m.user_id = p.user_id and m.email_type = 'upgrade_day3') then 'already_sent'
        when p_kind = 'marketing_day3' and p.says_paid then 'metadata_says_paid'
        when p_prices is not null and p_kind in ('marketing_day3', 'monthly_reminder') then (
            select case when l.plan is null then 'unknown_price'
                when p_kind = 'marketing_day3' and l.plan = 'suspended' then 'plan_suspended'
                when p_kind = 'marketing_day3' and l.plan <> 'free' then 'paid_plan'
                when p_kind = 'monthly_reminder' and l.plan <> 'premium' then 'not_premium' end
            from jobs.user_plans(p_prices, p_now) l where l.user_id = p.user_id) end;
$$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- too_slow: what this one mail is about takes longer than the claim may. It comes without facts, to be put off.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds, too_slow}], sealed batches in the order of their payload}
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

    begin
        if batches is null then
            perform jobs.retract_in_mails(mine);
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
                                'income_tax', t.income_tax), 'mixed', x.months, 'verdict', m.verdict,
                            'definitive', f.told, 'uncounted', f.uncounted, 'incomplete', coalesce(w.incomplete, '[]'),
                            'assumed', jobs.assumed_activities(d.user_id), 'today', (p_now at time zone 'Europe/Paris')::date)
                        when 'definitive_month' then jsonb_build_object('definitive', f.told, 'uncounted', f.uncounted,
                            'incomplete', coalesce(w.incomplete, '[]'))
                        when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums',
                            -- What the books contradict reduces no ceiling.
                            'created', case when z.first is null then t.created end,
                            'contradiction', case when z.first is not null
                                then jsonb_build_array(t.created, to_char(z.first, 'YYYY-MM')) end,
                            'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                            'mixed', x.months, 'verdict', m.verdict,
                            'assumed', jobs.assumed_activities(d.user_id)) || jobs.recap_anew(d.user_id, d.facts, p_now)
                        else '{}' end
                    || case when d.kind in ('threshold_alert', 'monthly_recap', 'monthly_reminder') then jsonb_build_object(
                        'retracted', coalesce(nullif(jobs.retractions(d.user_id, d.delivery_id), '[]'),
                            d.facts -> 'retracted', '[]')) else '{}' end end,
                'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                    then coalesce(jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now), m.flaw,
                        case when d.kind = 'integration_trouble'
                            then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider') end,
                        case when d.kind = 'definitive_month' then case when f.told is null then 'month_incomplete'
                            when f.told ->> 'mailed' = f.told ->> 'total' then 'month_unchanged' end end) end,
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
            left join lateral jobs.tax_profiles(array[d.user_id]) t
                on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'
            left join lateral (     -- the mail's month, with those before it in its quarter for what is to be declared
                select array_agg(g.month::date order by g.month) as months
                from to_date(d.facts ->> 'month', 'YYYY-MM') as o (month) cross join generate_series(
                    case d.kind when 'definitive_month' then o.month else date_trunc('quarter', o.month)::date end,
                    o.month, '1 month') as g (month)
            ) q on d.kind in ('monthly_reminder', 'definitive_month') and d.status = 'planned'
            left join lateral (     -- of who has an integration: what these months lack, and where that is something
                select jsonb_agg(l.lacks order by o.place) filter (where l.lacks @> '{"in_books": true}'
                        and not l.lacks @> '{"maybe_twice": 0, "passed_on": 0, "partial": false}'
                        or l.lacks @> '{"in_books": true}' and l.lacks -> 'unread' <> '[]') as incomplete,
                    (array_agg(l.lacks order by o.place desc))[1] as of_month
                from unnest(q.months) with ordinality as o (month, place)
                cross join lateral (select jobs.month_lacks(d.user_id, o.month, p_now) as lacks offset 0) l
            ) w on q.months is not null and (exists (select from public.integration_tokens t where t.user_id = d.user_id)
                or exists (select from jobs.integration_state c where c.user_id = d.user_id))   -- had one
            left join lateral (
                select jobs.definitive_month(d.user_id, q.months[cardinality(q.months)], w.of_month) as told,
                    jobs.uncounted_currencies(d.user_id, q.months) as uncounted
            ) f on q.months is not null
            left join lateral (     -- no longer than a mail may be
                select jobs.year_to_date(d.user_id, to_date(d.facts ->> 'month', 'YYYY-MM'), coalesce(
                    date_trunc('month', t.created)::date,
                    (select min(c.first_month) from jobs.integration_state c where c.user_id = d.user_id))) as to_date
            ) y on d.kind = 'monthly_recap' and d.status = 'planned'
            left join lateral jobs.turnover_before_creation(d.user_id, t.created) as z (first)
                on d.kind = 'monthly_recap' and d.status = 'planned'
                    and left(d.facts ->> 'month', 4) = to_char(t.created, 'YYYY')
            left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
                select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                    'imported', q.imported) order by q.month), '[]') as months
                from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
            ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
    exception when query_canceled then
        -- Fewer are asked for. One alone is named and may be put off, and the others leave.
        if cardinality(mine) is distinct from 1 or batches is not null then
            raise;
        end if;
        return jsonb_build_object('mails', (
            select coalesce(jsonb_agg(jsonb_build_object(
                'delivery_id', d.delivery_id, 'kind', d.kind, 'user_id', d.recipient, 'attempts', i.attempts,
                'facts', '{}'::jsonb, 'expired', coalesce(d.expires_at <= p_now, false), 'too_slow', true)), '[]')
            from jobs.email_deliveries d join jobs.job_items i on i.item_id = d.item_id
            where d.delivery_id = mine[1] and d.status = 'planned'));
    end;
end $$;

-- Keeps mails invisible for another p_seconds; whether this claim still has all of them.
create function public.mail_extend(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
begin
    perform jobs.lock_mail_ledger();
    return p_deliveries <@ jobs.hold_mails(p_claim, p_deliveries, p_seconds);
end $$;
