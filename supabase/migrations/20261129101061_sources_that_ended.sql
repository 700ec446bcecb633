-- A month in which an account was disconnected lacks what nobody read of it, and one that is not read up to now is not provisional.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

drop function jobs.month_sources(uuid, date, timestamptz);
-- Of what a month's figure is made, with what was read of it: each account whose books have the month; every active
-- integration where none has, or that was never read. is_owed: its money belongs into the books of the month. is_former: the
-- account was replaced; is_disconnected: it was disconnected. Neither is read any further.
create function jobs.month_sources(p_user_id uuid, p_month date, p_as_of timestamptz)
returns table (provider text, covered tstzmultirange, is_former boolean, is_owed boolean, is_disconnected boolean)
language sql stable as $$
    with former as materialized (
        select f.provider, f.covered from jobs.former_accounts f where f.user_id = p_user_id and f.counted @> p_month
    )
    select t.provider, coalesce(s.covered, '{}'), false, coalesce(s.counted @> p_month, false) or (s.first_month is null
        and jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_as_of) <= p_month), false
    from public.integration_tokens t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.is_active and s.left_out is not true
        and (s.first_month is null or s.counted @> p_month or (not exists (select from former)
            and not exists (select from jobs.integration_state o where o.user_id = p_user_id and o.counted @> p_month)))
    union all
    -- The month in which an account was replaced holds what was read of it until then, which may not be all.
    select f.provider, f.covered, true, true, false from former f
    union all
    -- What came in before an account was disconnected, and after it was last read, nobody has read. When that was nobody
    -- tells: the months go up to the one in which it was read, or could not be, for the last time.
    select s.provider, s.covered, false, true, true
    from jobs.integration_state s
    where s.user_id = p_user_id and s.counted @> p_month and not s.left_out
        and p_month <= greatest(s.last_success_to, s.last_success_at, s.failed_at) at time zone 'Europe/Paris'
        and not exists (select from public.integration_tokens t
            where t.user_id = p_user_id and t.provider = s.provider and t.is_active);
$$;

-- A source that was read longer ago than this is late: some reads in a row have failed or never began. The status page calls
-- it so, too (`LATE_AFTER`).
create or replace function jobs.late_after() returns interval language sql immutable set search_path = '' as $$
    select interval '36 hours';
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up to
-- now, no later than late_after), partial (something of it was never read, or it has flaws). It follows from the ledger and
-- from what was read, of each account whose books have the month; of every active integration where none has, or that was
-- never read.
--   {status, flaws?: see month_flaws}
create or replace function jobs.month_worth(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language plpgsql stable set search_path = '' as $$
declare
    answer jsonb;
    known_to constant timestamptz := jobs.known_up_to(p_user_id, p_as_of);
    late_at constant timestamptz := known_to - jobs.late_after();
begin
    with flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    ), bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as materialized (
        select s.covered, s.covered * tstzmultirange(tstzrange(b.starts, b.ends)) as of_month,
            s.is_former or s.is_disconnected as has_ended
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    )
    select jsonb_strip_nulls(jsonb_build_object('flaws', nullif(f.found, '{}'), 'status', case
        when f.found <> '{}' then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when known_to < b.ends and coalesce(bool_and(not s.has_ended and case
            -- One piece from the first instant on: no hole before what was read last.
            when s.covered @> b.starts then upper(s.of_month) >= late_at
                and (select count(*) = 1 from unnest(s.of_month) piece)
            -- The month has just begun.
            else isempty(s.of_month) and late_at < b.starts and coalesce(upper(s.covered) >= late_at, false) end), false)
            then 'provisional'
        else 'partial' end))
    into answer
    from flaws f cross join bounds b left join sources s on true
    group by f.found, b.starts, b.ends;
    return answer;
end $$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- too_slow: what this one mail is about takes longer than the claim may. It comes without facts, to be put off.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds, too_slow}], sealed batches in the order of their payload}
create or replace function public.mail_claim(
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

-- Plans the month's recap, where the run wants recaps and the user, too: of what was imported, or that there was nothing
-- where there used to be. Call in the settlement's transaction.
-- p_policy: {users_codes: [the refusals that only one user can mend], recap_waits_until, recap_waits_hours: see recap_waits}
create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    ended jsonb;        -- sources that nobody reads any further, as month_lacks tells them
    is_empty boolean;
    in_books boolean := jobs.is_in_books(p_user_id, p_month);
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
    -- Connected after the month: whoever looks at everybody's month once it is over finds it in no books. A replay of its
    -- last day sees it as it was.
    if not in_books and over and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    if jobs.recap_waits(i.run_id, p_user_id, p_month, p_parts, p_policy, p_now) then
        update jobs.job_items set result = result || '{"recap_waits": true}' where item_id = p_item_id;
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.movements_in_books(p_user_id, array[p_month]))
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    ended := case when i.result ->> 'month_status' = 'partial' then (
        select jsonb_agg(u) from jsonb_array_elements(jobs.month_lacks(p_user_id, p_month, p_as_of) -> 'unread') u
        where u @> '{"is_former": true}' or u @> '{"is_disconnected": true}') end;
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'not_theirs', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e
            where not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')),
        'ended', coalesce(ended, '[]'),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself, and so are sources that ended.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}' and ended is null
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

-- What keeps a user's month from being whole: what was not read of it, and its flaws as a recap tells them.
--   {month, in_books: the month belongs into the books of an account, read_whole: it was read to its end,
--    unread: [{source, since: null where a hole lies elsewhere, wholly, is_former, is_disconnected}], maybe_twice, passed_on,
--    partial: something else is missing}
create or replace function jobs.month_lacks(p_user_id uuid, p_month date, p_as_of timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    with bounds as materialized (
        select tstzmultirange(tstzrange(p_month::timestamp at time zone 'Europe/Paris',
            (p_month + interval '1 month') at time zone 'Europe/Paris')) as days
    ), sources as materialized (
        select s.provider, s.is_former, s.is_disconnected, s.is_owed, b.days, b.days - s.covered as missing
        from bounds b cross join jobs.month_sources(p_user_id, p_month, p_as_of) s
    ), reading as materialized (
        select coalesce(bool_or(s.is_owed), false) as in_books, coalesce(bool_and(isempty(s.missing)), false) as is_whole,
            coalesce(jsonb_agg(jsonb_build_object('source', s.provider, 'is_former', s.is_former,
                'is_disconnected', s.is_disconnected, 'wholly', s.missing = s.days,
                'since', case when s.missing = tstzmultirange(tstzrange(lower(s.missing), upper(s.days)))
                    and lower(s.missing) > lower(s.days) then lower(s.missing) end)
                order by s.provider, s.is_former, s.is_disconnected) filter (where s.is_owed and not isempty(s.missing)), '[]') as unread
        from sources s
    ), flaws as materialized (
        select jobs.month_flaws(p_user_id, p_month, p_as_of) as found
    )
    select jsonb_build_object('month', to_char(p_month, 'YYYY-MM'), 'in_books', r.in_books,
        'read_whole', r.is_whole and not f.found ?| array['beyond_scope', 'doubted_list'], 'unread', r.unread,
        'maybe_twice', coalesce((f.found ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((f.found ->> 'passed_on')::integer, 0),
        -- As in a recap (see plan_recap): what is in other currencies is told by itself.
        'partial', f.found - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}')
    from reading r cross join flaws f;
$$;

-- What is true now of a provisional recap that leaves when its month is over and was read to its end; {} for any other.
create or replace function jobs.recap_anew(p_user_id uuid, p_facts jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce((
        select jobs.recap_amounts(p_user_id, o.month) || jsonb_build_object('provisional_at', null, 'unread', '[]'::jsonb, 'ended', '[]'::jsonb,
            'not_theirs', '[]'::jsonb,
            'uncounted', jobs.uncounted_currencies(p_user_id, array[o.month]),
            'typed', (select m.typed from jobs.month_books(p_user_id, o.month) m),
            'maybe_twice', l.lacks -> 'maybe_twice', 'passed_on', l.lacks -> 'passed_on', 'partial', l.lacks -> 'partial')
        from to_date(p_facts ->> 'month', 'YYYY-MM') as o (month)
        cross join lateral (select jobs.month_lacks(p_user_id, o.month, p_now) as lacks offset 0) l
        where p_facts ->> 'provisional_at' is not null
            and p_now >= (o.month + interval '1 month') at time zone 'Europe/Paris'
            and l.lacks @> '{"read_whole": true}'), '{}');
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted, order_payments: see note_unlisted_payments}
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
    said_by text;
    months date[];
    records bigint;
    by_provider jsonb;
    parts integer := 0;
    failed integer := 0;
    first_error jsonb;
    not_euro jsonb;
    unknown jsonb;      -- kinds of movement that this version does not know, with how many
    unreadable jsonb;   -- why movements could not be understood, with how many
    unlisted jsonb := '{}';     -- how many known movements each provider's list has lacked
    known bigint;
    window_from timestamptz;
    window_to timestamptz;
    fresh tstzmultirange;       -- what this read covers and none before it
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
            count_month boolean, kinds jsonb, deep boolean, listed bigint, order_payments jsonb)
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
            months := months || jobs.note_unlisted_payments(
                p_user_id, part.account, coalesce(part.order_payments, '[]'),
                case when s.account = part.account then s.covered else '{}' end + tstzmultirange(tstzrange(
                    (part."window" ->> 'from')::timestamptz, (part."window" ->> 'to')::timestamptz)), p_now);
            if p_final then
                months := months || jobs.follow_movements(p_user_id, part.provider, coalesce(part.kinds, '{}'), p_now);
            end if;

            -- The activity: what the integration says, else what stands, else an assumption; what the user has typed
            -- decides below.
            new_activity := coalesce(s.activity,
                case part.provider when 'shopify' then 'Vente de marchandises' else 'Prestation de services' end);
            said_by := s.activity_said_by;
            if t.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale') then
                new_activity := t.activity_type;
                said_by := 'integration';
            end if;
            if s.activity is distinct from new_activity then
                -- Every month of this provider moves to the other activity.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if s.first_month is null then
                -- Months before the connection are the user's own, who has typed them.
                s.first_month := jobs.first_month(t.connected_at, least(s.claimed_at, p_as_of), p_now);
                -- Of an account that is out of the books they count once it is taken back.
                if not s.left_out then
                    s.counted := s.counted + datemultirange(daterange(s.first_month, null));
                end if;
                -- With a connection, other months of this account and of the one before may count than did.
                months := months || array(select distinct x.paris_month from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = part.provider);
            end if;
            if part.count_month and p_month is not null and not s.left_out then
                s.counted := s.counted + datemultirange(daterange(p_month, (p_month + interval '1 month')::date));
            end if;
            update jobs.integration_state k
            set activity = new_activity, activity_said_by = said_by, first_month = s.first_month, counted = s.counted,
                updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider
                and (k.activity, k.activity_said_by, k.first_month, k.counted)
                    is distinct from (new_activity, said_by, s.first_month, s.counted);
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
            -- The month up to which it was read, and the present one, may not be whole any more.
            months := months || array(select m::date from unnest(array[s.last_success_to, p_as_of]) a (known)
                cross join lateral date_trunc('month', a.known at time zone 'Europe/Paris') m where s.counted @> m::date);
        else
            update public.integration_tokens k
            set last_sync_at = greatest(k.last_sync_at, p_as_of), last_error = null, updated_at = clock_timestamp()
            where k.id = part.integration_id;
            -- Read once, not for each row that is compared with them.
            window_from := part."window" ->> 'from';
            window_to := part."window" ->> 'to';
            fresh := tstzmultirange(tstzrange(window_from, window_to));
            -- What the list showed before it still has to show: rows are never taken back. Both lists go by seconds.
            select count(*) into known from jobs.integration_transactions x
            where x.user_id = p_user_id and x.provider = part.provider and x.account = part.account
                -- By the index. What counts long after it was listed is left out: fewer are known than could be.
                and x.paris_month >= date_trunc('month', window_from at time zone 'Europe/Paris')::date
                and x.paris_month <= (window_to at time zone 'Europe/Paris')::date
                -- Disputes have a list of their own, those of an unknown state too.
                and x.kind <> 'no_turnover'
                and (x.provider = 'stripe' or x.kind <> 'dispute' and coalesce(x.source_kind, '') !~ '^dispute')
                and x.listed_at >= window_from
                and x.listed_at < date_trunc('second', window_to);
            s.doubted := case
                when s.account is distinct from part.account or part.listed is null then s.doubted
                when known > part.listed then s.doubted + (fresh - s.covered)
                when part.listed > 0 then s.doubted - fresh
                -- Nothing is known there and nothing listed: as doubtful as the days before it.
                when s.doubted && fresh then s.doubted + (fresh - s.covered)
                else s.doubted end;
            if known > part.listed then
                unlisted := unlisted || jsonb_build_object(part.provider, known - part.listed);
            end if;
            update jobs.integration_state k
            -- Where the user has connected another account meanwhile, nothing of that one was read.
            -- What the scope does not reach was not read either, whatever the list said.
            set covered = case when k.account = part.account then k.covered + (fresh - s.doubted)
                    * tstzmultirange(tstzrange(case when k.all_orders is false then p_now - interval '60 days' end, null))
                    else k.covered end,
                doubted = s.doubted,
                last_success_at = p_now,
                -- Only these windows follow one another without a hole; a month read on request does not. Nor does an
                -- empty list that is in doubt: what it lacked is read again with what follows.
                last_success_to = case when i.kind = 'sync_integration' and k.account = part.account
                        and not coalesce(part.listed = 0 and s.doubted && fresh, false)
                    then greatest(k.last_success_to, window_to) else k.last_success_to end,
                deep_read_to = case when part.deep and k.account = part.account
                    then greatest(k.deep_read_to, window_to) else k.deep_read_to end,
                failures = 0, failed_at = null, failure = null, updated_at = clock_timestamp()
            where k.user_id = p_user_id and k.provider = part.provider;
            -- The window's own months: what they are worth may change even where no movement did.
            months := months || array(select m::date from generate_series(
                date_trunc('month', window_from at time zone 'Europe/Paris'),
                (window_to - interval '1 microsecond') at time zone 'Europe/Paris',
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

    months := months || jobs.follow_typed_activity(p_user_id);
    months := array(select distinct m from unnest(months || jobs.months_reported_twice(p_user_id, months)) m);
    perform jobs.take_rates(e -> 'rates') from jsonb_array_elements(p_parts) e limit 1;
    left_alone := jobs.recompute_totals(p_user_id, months, p_as_of);

    -- What the figures lack, from the ledger: it is said for as long as it is so, whatever this run has read.
    with missing as materialized (
        select x.excluded as reason, x.currency, x.source_kind
        from unnest(case when p_month is null then months else array[p_month] end) m
        cross join lateral jobs.uncounted_movements(p_user_id, m) x
        where x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
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

    flawed := not_euro <> '[]' or left_alone <> '[]' or unknown <> '{}' or unreadable <> '{}' or unlisted <> '{}';
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
        'unknown_movements', nullif(unknown, '{}'), 'unreadable_movements', nullif(unreadable, '{}'),
        'unlisted_movements', nullif(unlisted, '{}')));
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
            'unreadable_movements', nullif(unreadable, '{}'), 'unlisted_movements', unlisted -> (e ->> 'provider'),
            'notes', nullif(e -> 'notes', '{}'),
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

revoke all on function jobs.month_sources, jobs.late_after from public, anon, authenticated, service_role;

commit;
