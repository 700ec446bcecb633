-- A page of one user, or of one mail, that takes too long is named and left: the others go on. A token that is too long is
-- not handed out.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Lets one holder at a time refresh a shop's token. A repeated call by the holder keeps the lease.
--   {acquired, access_token, refresh_token, elsewhere}: the pair as stored now, which another holder may just have
--   renewed; elsewhere: another user has connected the same account since, and both proved it
create or replace function public.integration_refresh_begin(p_integration_id uuid, p_holder uuid, p_seconds integer) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null then
        return jsonb_build_object('acquired', false, 'gone', true);
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state where user_id = t.user_id and provider = t.provider for update;
    if s.refresh_lease is distinct from p_holder and s.refresh_lease_until > clock_timestamp() then
        return jsonb_build_object('acquired', false);
    end if;
    -- Read again under the lock: the last holder may have stored a new pair since.
    select * into t from public.integration_tokens where id = p_integration_id;
    if jobs.readable_identifier(t.access_token) is null then
        return jsonb_build_object('acquired', false);  -- too long to be one; the next claim says so
    end if;
    update jobs.integration_state
    set refresh_lease = p_holder, refresh_lease_until = clock_timestamp() + make_interval(secs => p_seconds)
    where user_id = t.user_id and provider = t.provider;
    return jsonb_build_object('acquired', true, 'access_token', t.access_token,
        'refresh_token', jobs.readable_identifier(t.refresh_token),
        'elsewhere', s.account is not distinct from jobs.claimed_account(t) and exists (
            select from public.integration_tokens o
            join jobs.integration_state k on k.user_id = o.user_id and k.provider = o.provider
            where o.provider = t.provider and o.user_id <> t.user_id and o.is_active
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = s.account
                and k.account = s.account and k.proof = jobs.token_fingerprint(o) and k.proven_at > s.proven_at));
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
            ) w on q.months is not null and exists (select from public.integration_tokens t where t.user_id = d.user_id)
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

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year, but the first, that stands. The first year only explains those after it; the three before it come, too. A
-- user with a flaw comes without years, and is noted as such where p_noted_at says when.
-- One who alone takes longer than this may has the flaw too_slow: a page of one answers always.
-- What was assumed of their imported money is corrected first, unless nothing is to be written (p_noted_at null).
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      consequences: [{year, consequence, times, withdrawn}], years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 3;         -- what is due may have begun then
    most_corrected constant integer := 50;      -- some milliseconds each
    users uuid[];
    due jsonb;
    above uuid[];
    last_user uuid;
    more boolean;
    flawed uuid[];
    flaws text[];
    is_cut boolean;
    people jsonb;
begin
    if p_due then
        -- Before the books: a mark that is set again while they are read is not taken for this one.
        select array_agg(d.user_id order by d.user_id),
            jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from jobs.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    begin
        if p_noted_at is not null then
            perform jobs.correct_assumed_activities(users, most_corrected, p_now);
        end if;
        above := array(
            select unnest(jobs.users_above(users, p_due, p_floors))
            union
            select t.user_id from jobs.threshold_alerts t
            where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
                and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
            union
            select t.user_id from jobs.told_consequences t
            where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
                and t.year > first_year and t.year <= last_year and t.withdrawn_at is null
            order by 1);
        if cardinality(above) > most_books then
            above := above[1:most_books];
            last_user := above[most_books];
            more := true;
        end if;

        with told as (
            select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step,
                'told_as', t.told_as, 'times', t.times, 'withdrawn', t.withdrawn_at is not null)) as told
            from jobs.threshold_alerts t
            where t.user_id = any (above) and t.year between first_year and last_year group by 1
        ), followed as (
            select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'consequence', t.consequence, 'times', t.times,
                'withdrawn', t.withdrawn_at is not null)) as told
            from jobs.told_consequences t
            where t.user_id = any (above) and t.year between first_year and last_year group by 1
        ), people_found as (
            select a.user_id, jsonb_build_object(
                'user_id', a.user_id, 'created', b.created,
                'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
                'told', coalesce(t.told, '[]'), 'consequences', coalesce(f.told, '[]'),
                'years', coalesce(b.years, '[]')) as person
            -- Who has nothing in their books any more was told something that has to be withdrawn.
            from unnest(above) a (user_id)
            left join jobs.books(above, first_year - years_before, last_year) b on b.user_id = a.user_id
            -- A fence (offset 0): of all people only these.
            cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
            left join told t on t.user_id = a.user_id
            left join followed f on f.user_id = a.user_id
        ), measured as materialized (
            select f.user_id, f.person, row_number() over w as n, sum(octet_length(f.person::text)) over w as bytes
            from people_found f window w as (order by f.user_id)
        ), page as (
            select * from measured m where m.n = 1 or m.bytes <= p_bytes
        )
        select jsonb_agg(g.person order by g.user_id), array_agg(g.user_id order by g.user_id),
            array_agg(g.user_id order by g.user_id) filter (where g.person ->> 'flaw' is not null),
            array_agg(g.person ->> 'flaw' order by g.user_id) filter (where g.person ->> 'flaw' is not null),
            (select count(*) from measured) > count(*)
        into people, above, flawed, flaws, is_cut
        from page g;
    exception when query_canceled then
        -- Fewer are asked for. One alone is named, and the others go on.
        if cardinality(users) is distinct from 1 then
            raise;
        end if;
        people := jsonb_build_array(jsonb_build_object('user_id', users[1], 'flaw', 'too_slow', 'told', '[]'::jsonb,
            'consequences', '[]'::jsonb, 'years', '[]'::jsonb));
        flawed := users;
        flaws := array['too_slow'];
        is_cut := false;
    end;
    if is_cut then
        last_user := above[cardinality(above)];
        more := true;
    end if;

    if p_noted_at is not null then
        perform jobs.note_unreadable('books', array(select u from unnest(users) u where u <= last_user), flawed, flaws,
            p_noted_at);
    end if;
    return jsonb_build_object(
        'people', coalesce(people, '[]'),
        'due', (select coalesce(jsonb_agg(d), '[]') from jsonb_array_elements(due) d
            where (d ->> 'user_id')::uuid <= last_user),
        'scanned', (select count(*) from unnest(users) u where u <= last_user),
        'next', case when more then last_user end);
end $$;

commit;
