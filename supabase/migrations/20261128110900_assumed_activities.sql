-- An activity that was only assumed follows what the user types; recaps and reminders say that it is assumed.
--
-- Locks: integration_state and former_accounts while a column is added, and their rows while it is filled (a read of
-- ca_records). One transaction, lock_timeout 5 s. A second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

alter table jobs.integration_state
    add column activity_said_by text check (activity_said_by in ('integration', 'entries'));
alter table jobs.former_accounts
    add column activity_said_by text check (activity_said_by in ('integration', 'entries'));

-- How often these users have typed turnover of each activity that we know.
create function jobs.typed_activities(p_users uuid[]) returns table (user_id uuid, activity text, entries bigint)
language sql stable as $$
    select r.user_id, case r.activity_type when 'services' then 'Prestation de services' else r.activity_type end,
        count(*)
    from public.ca_records r
    where r.user_id = any (p_users) and r.source <> 'auto_sync'
        and r.activity_type in ('Vente de marchandises', 'Prestation de services', 'Activité libérale', 'services')
    group by 1, 2;
$$;

-- What a user's entries say that the money of Stripe is, which nothing else tells; null: they say nothing. An activity
-- that follows from entries stays as long as one of them says it. Else what was typed most often wins, and among equals
-- what stands already.
create function jobs.activity_by_entries(p_user_id uuid, p_activity text, p_said_by text) returns text
language plpgsql stable set search_path = '' as $$
begin
    return (select t.activity from jobs.typed_activities(array[p_user_id]) t
        order by coalesce(p_said_by = 'entries' and t.activity = p_activity, false) desc, t.entries desc,
            coalesce(t.activity = p_activity, false) desc, t.activity
        limit 1);
end $$;

-- Gives a user's money of Stripe the activity of their entries, where its integration does not say any: that of accounts
-- which were replaced, too. Answers the months that have to be added up again. Call only under the user's lock.
create function jobs.follow_typed_activity(p_user_id uuid) returns date[]
language plpgsql set search_path = '' as $$
declare
    is_moved boolean;
begin
    with present as (
        update jobs.integration_state s set activity = n.activity, activity_said_by = 'entries'
        from jobs.integration_state k
        cross join lateral (select jobs.activity_by_entries(k.user_id, k.activity, k.activity_said_by) as activity) n
        where k.user_id = p_user_id and k.provider = 'stripe' and k.activity is not null
            and k.activity_said_by is distinct from 'integration' and n.activity is not null
            and (k.activity, k.activity_said_by) is distinct from (n.activity, 'entries')
            and s.user_id = k.user_id and s.provider = k.provider
        returning k.activity <> n.activity as is_other
    ), former as (
        update jobs.former_accounts f set activity = n.activity, activity_said_by = 'entries'
        from jobs.former_accounts k
        cross join lateral (select jobs.activity_by_entries(k.user_id, k.activity, k.activity_said_by) as activity) n
        where k.user_id = p_user_id and k.provider = 'stripe' and k.activity is not null
            and k.activity_said_by is distinct from 'integration' and n.activity is not null
            and (k.activity, k.activity_said_by) is distinct from (n.activity, 'entries')
            and (f.user_id, f.provider, f.account) = (k.user_id, k.provider, k.account)
        returning k.activity <> n.activity as is_other
    )
    select coalesce(bool_or(m.is_other), false) into is_moved
    from (select p.is_other from present p union all select f.is_other from former f) m;
    if not is_moved then
        return '{}';
    end if;
    return array(select distinct x.paris_month from jobs.integration_transactions x
        where x.user_id = p_user_id and x.provider = 'stripe');
end $$;

-- What the integration says now, or an entry of the user, was said; the rest was assumed.
update jobs.integration_state s set activity_said_by = 'integration'
from public.integration_tokens t
where t.user_id = s.user_id and t.provider = s.provider and t.activity_type = s.activity;
with typed as materialized (
    select t.user_id, t.activity from jobs.typed_activities(array(select s.user_id from jobs.integration_state s
        where s.provider = 'stripe' and s.activity_said_by is null
        union select f.user_id from jobs.former_accounts f where f.provider = 'stripe')) t
), present as (
    update jobs.integration_state s set activity_said_by = 'entries' from typed t
    where s.provider = 'stripe' and s.activity_said_by is null and t.user_id = s.user_id and t.activity = s.activity
)
update jobs.former_accounts f set activity_said_by = 'entries' from typed t
where f.provider = 'stripe' and t.user_id = f.user_id and t.activity = f.activity;

-- Notes that the stored token opens exactly p_account. Where another account was connected before, its books are put
-- aside, and those of this one taken up again, should it have been connected once. p_all_orders: whether the token
-- reads orders of any age; null where the provider did not tell.
create or replace function public.integration_prove(
    p_integration_id uuid, p_access_token text, p_account text, p_all_orders boolean
) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    t public.integration_tokens;
    s jobs.integration_state;
    f jobs.former_accounts;
begin
    select * into t from public.integration_tokens where id = p_integration_id;
    if t.id is null or t.access_token <> p_access_token
        or p_account is distinct from jobs.claimed_account(t) then
        return jsonb_build_object('proven', false);  -- the row was changed while we were proving it
    end if;
    insert into jobs.integration_state (user_id, provider) values (t.user_id, t.provider)
    on conflict (user_id, provider) do nothing;
    select * into s from jobs.integration_state k where k.user_id = t.user_id and k.provider = t.provider for update;
    if s.account is distinct from p_account then
        s.claimed_at := case when s.claimed = p_account then s.claimed_at end;
        if s.account is not null and s.first_month is not null then
            insert into jobs.former_accounts as k (user_id, provider, account, activity, first_month, counted, covered,
                last_success_to, replaced_at, left_out, activity_said_by)
            -- Until the month in which the other account was seen.
            select t.user_id, t.provider, s.account, s.activity, s.first_month,
                s.counted * datemultirange(daterange(null, (date_trunc('month', r.at at time zone 'Europe/Paris')
                    + interval '1 month')::date)), s.covered, s.last_success_to, r.at, s.left_out,
                s.activity_said_by
            from (select coalesce(s.claimed_at, s.last_success_to, s.first_month::timestamp at time zone 'Europe/Paris') as at) r
            on conflict (user_id, provider, account) do update set
                activity = excluded.activity, first_month = excluded.first_month, counted = excluded.counted,
                covered = excluded.covered, last_success_to = excluded.last_success_to, replaced_at = excluded.replaced_at,
                left_out = excluded.left_out, activity_said_by = excluded.activity_said_by;
        end if;
        delete from jobs.former_accounts k
        where k.user_id = t.user_id and k.provider = t.provider and k.account = p_account returning * into f;
        update jobs.integration_state k set
            account = p_account, activity = f.activity, activity_said_by = f.activity_said_by, left_out = false, first_month = null, counted = coalesce(f.counted, '{}'),
            covered = coalesce(f.covered, '{}'), last_success_to = f.last_success_to, deep_read_to = null, all_orders = null,
            doubted = '{}', counted_before = null, token_expires_at = null, refresh_token_expires_at = null
        where k.user_id = t.user_id and k.provider = t.provider;
    end if;
    update jobs.integration_state k set
        proof = jobs.token_fingerprint(t), all_orders = coalesce(p_all_orders, k.all_orders),
        proven_at = clock_timestamp(), updated_at = clock_timestamp()
    where k.user_id = t.user_id and k.provider = t.provider;
    return jsonb_build_object('proven', true);
end $$;

-- Gives imported money of these users whose activity was assumed the one that they have typed since (follow_typed_activity),
-- for who is not synced any more: a sync does it by itself. So many users at most, those that nobody works on: others
-- come with the next check.
create function jobs.correct_assumed_activities(p_users uuid[], p_most integer, p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    assumed uuid[] := array(
        select s.user_id from jobs.integration_state s
        where s.user_id = any (p_users) and s.provider = 'stripe' and s.activity is not null and s.activity_said_by is null
        union
        select f.user_id from jobs.former_accounts f
        where f.user_id = any (p_users) and f.provider = 'stripe' and f.activity is not null and f.activity_said_by is null);
    one uuid;
    months date[];
    changed uuid[] := '{}';
begin
    if assumed = '{}' then
        return;
    end if;
    for one in select distinct t.user_id from jobs.typed_activities(assumed) t order by 1 limit p_most loop
        continue when not pg_try_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || one::text, 0));
        perform from auth.users u where u.id = one for key share skip locked;
        continue when not found;     -- is being deleted
        months := jobs.follow_typed_activity(one);
        if months <> '{}' then
            perform jobs.recompute_totals(one, months || jobs.months_reported_twice(one, months), p_now);
            changed := changed || one;
        end if;
    end loop;
    -- Should this check be lost, another one follows.
    insert into jobs.threshold_checks_due as d (user_id) select u from unnest(changed) u order by 1
    on conflict (user_id) do update set since = excluded.since;
end $$;

-- Turnover of users as ca_records has it: a page of p_limit users after p_after, or of one user, or (p_due) of those
-- whose imported totals have changed since they were checked last, who are listed in `due`. Only users with a year that
-- reaches its floor (p_floors {year: cents}, in proportion to the days of a creation year), or who were told something of
-- such a year that stands. The two years before each come with it. A user with a flaw comes without years, and is noted
-- as such where p_noted_at says when.
-- What was assumed of their imported money is corrected first, unless nothing is to be written (p_noted_at null).
-- A page ends earlier where it would be larger than 2,000 books or p_bytes: `scanned` are those up to its end.
-- Sorting and adding up a page fits into work_mem as set here.
--   {people: [{user_id, created, reason, flaw, told: [{year, threshold, step, told_as, times, withdrawn}],
--      years: [{year, rows}]}], due: [{user_id, since}], scanned, next}
create or replace function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb, p_bytes integer,
    p_noted_at timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s'
set work_mem = '32MB' set jit = off as $$
declare
    most_books constant integer := 2000;
    first_year constant integer := (select min(y::integer) from jsonb_object_keys(p_floors) y);
    last_year constant integer := (select max(y::integer) from jsonb_object_keys(p_floors) y);
    years_before constant integer := 2;
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
    if p_noted_at is not null then
        perform jobs.correct_assumed_activities(users, most_corrected, p_now);
    end if;
    last_user := users[cardinality(users)];
    more := p_user_id is null and cardinality(users) = p_limit;
    above := array(
        select unnest(jobs.users_above(users, p_due, p_floors))
        union
        select t.user_id from jobs.threshold_alerts t
        where t.user_id between users[1] and last_user and (not p_due or t.user_id = any (users))
            and t.year between first_year and last_year and t.withdrawn_at is null
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
    ), people_found as (
        select a.user_id, jsonb_build_object(
            'user_id', a.user_id, 'created', b.created,
            'reason', jobs.mail_refusal(p, 'threshold_alert', p_now), 'flaw', b.flaw,
            'told', coalesce(t.told, '[]'), 'years', coalesce(b.years, '[]')) as person
        -- Who has nothing in their books any more was told something that has to be withdrawn.
        from unnest(above) a (user_id)
        left join jobs.books(above, first_year - years_before, last_year) b on b.user_id = a.user_id
        -- A fence (offset 0): of all people only these.
        cross join lateral (select * from jobs.mail_people m where m.user_id = a.user_id offset 0) p
        left join told t on t.user_id = a.user_id
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

-- Of which of a user's integrations nobody has said the activity.
--   [{provider, activity}]
create function jobs.assumed_activities(p_user_id uuid) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object('provider', k.provider, 'activity', k.activity) order by k.provider), '[]')
    from jobs.integration_state k
    left join public.integration_tokens t on t.user_id = k.user_id and t.provider = k.provider
    where k.user_id = p_user_id and k.activity is not null and not k.left_out
        and k.activity_said_by is null and t.activity_type is distinct from k.activity;
$$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item, or mails that have to wait, were seen so far, ask again.
-- p_outage: see provider_outages; mails that ask users to connect again wait for its end.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds}], sealed batches in the order of their payload}
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
                    when 'monthly_recap' then jsonb_build_object('year', y.to_date -> 'sums', 'created', t.created,
                        'ahead', y.to_date -> 'ahead', 'empty', coalesce(y.to_date -> 'empty', '[]'),
                        'mixed', x.months, 'verdict', m.verdict,
                        'assumed', jobs.assumed_activities(d.user_id)) || jobs.recap_anew(d.user_id, d.facts, p_now)
                    else '{}' end end,
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
        left join lateral (     -- the year's months that may count twice: nothing is confirmed of them
            select coalesce(jsonb_agg(jsonb_build_object('month', to_char(q.month, 'YYYY-MM'), 'typed', q.typed,
                'imported', q.imported) order by q.month), '[]') as months
            from jobs.mixed_months(d.user_id, left(d.facts ->> 'month', 4)::integer) q where q.verdict is null
        ) x on d.kind in ('monthly_reminder', 'monthly_recap') and d.status = 'planned'));
end $$;

-- What an alert tells beside its steps, for users who are to get one: what movements of some months add up to on each day
-- (as far as they are in the books, and not too many), what the year has in other currencies, and of which integrations
-- the activity was never said by anybody.
-- p_asked: [{user_id, year, months: [YYYY-MM-01]}]
--   [{user_id, year, days: [{day, activity, amount}], uncounted: [{currency, amount}], assumed: [{provider, activity}]}]
create or replace function public.threshold_details(p_asked jsonb) returns jsonb
language sql security definer stable set search_path = '' set statement_timeout = '28s' set jit = off as $$
    select coalesce(jsonb_agg(jsonb_build_object('user_id', a.user_id, 'year', a.year,
        'days', coalesce(d.days, '[]'), 'uncounted', coalesce(c.uncounted, '[]'),
        'assumed', jobs.assumed_activities(a.user_id))), '[]')
    from jsonb_to_recordset(p_asked) as a (user_id uuid, year integer, months date[])
    left join lateral (
        -- Three activities on 31 days are 93.
        select jsonb_agg(jsonb_build_object('day', m.day, 'activity', m.activity, 'amount', m.amount)) as days
        from (select x.day, left(x.activity, 80) as activity, sum(x.amount_minor)::bigint as amount
              from jobs.countable_movements(a.user_id, a.months, true) x
              where cardinality(a.months) > 0 and x.activity is not null group by 1, 2) m
        having count(*) <= 100 * cardinality(a.months)
    ) d on true
    left join lateral (
        select jsonb_agg(jsonb_build_object('currency', m.currency, 'amount', m.amount) order by m.currency) as uncounted
        from (select t.currency, sum(t.amount_minor)::bigint as amount from jobs.integration_transactions t
              where t.user_id = a.user_id and t.excluded in ('currency', 'unresolved_currency')
                  and t.paris_month between make_date(a.year, 1, 1) and make_date(a.year, 12, 31)
              group by 1 order by 1 limit 20) m
    ) c on true;
$$;

-- Settles (p_final) or checkpoints a sync item under the user's lock and the item's lease. A checkpoint stores
-- movements; settling stores the last ones and writes coverage, totals, log and result in the same transaction.
-- A repeated call gives the first one's answer.
--
-- p_parts: one object for each integration read:
--   {integration_id, provider, account, window: {from, to}, movements: […], error: {code, message} | null,
--    notes: {…}, count_month: bool, kinds: {the provider's name of a kind: ours}, rates: see rates_in_use,
--    listed: how many movements the list had, null: not counted}
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
            count_month boolean, kinds jsonb, deep boolean, listed bigint)
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
                s.counted := s.counted + datemultirange(daterange(s.first_month, null));
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
                and x.kind <> 'no_turnover' and (x.kind <> 'dispute' or x.provider = 'stripe')
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
        select x.excluded as reason, x.currency, x.source_kind from jobs.integration_transactions x
        where x.user_id = p_user_id and x.paris_month = any (case when p_month is null then months else array[p_month] end)
            and x.provider in (select e ->> 'provider' from jsonb_array_elements(p_parts) e)
            and jobs.is_uncounted(x)
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

drop function jobs.infer_activity(uuid, text);

-- Rights of the new functions, as 90_rights.sql gives them.
revoke all on function jobs.typed_activities, jobs.activity_by_entries, jobs.follow_typed_activity,
    jobs.correct_assumed_activities, jobs.assumed_activities from public, anon, authenticated, service_role;

commit;
