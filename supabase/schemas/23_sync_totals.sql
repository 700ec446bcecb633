-- Which movements count, what a month's figure is worth, and the totals in ca_records that follow from them.

-- A user's Shopify movements of some months that Stripe reports, too. A movement's payment is known by its own
-- references, or for a refund that names none by those of its order's payments. Where such an order was also paid
-- in another way (cash), a refund is Stripe's only where Stripe has one of the same amount, each of them once.
-- p_written: only among days that go into ca_records.
--
-- Never by loops: a merchant may have a thousand times as many rows as the average that the planner reckons with.
create function jobs.movements_reported_twice(p_user_id uuid, p_months date[], p_written boolean)
returns table (external_id text)
language sql stable set search_path = '' set enable_nestloop = off as $$
    with shop as materialized (
        select t.external_id, t.paris_month, t.amount_minor, t.currency, t.occurred_at, t.refs, t.excluded,
            exists (select from unnest(t.refs) r where r !~ '^gid:') as named
        from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = 'shopify' and t.refs <> '{}'
    ), doubted as materialized (
        select * from shop where paris_month = any (p_months) and currency = 'EUR' and excluded is null
    ), paid as materialized (
        select t.external_id, t.amount_minor, r as ref
        from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = 'stripe' and t.currency = 'EUR' and t.excluded is null
            and (not p_written or s.counted @> t.paris_month)
            and exists (select from doubted)
    ), orders as materialized (   -- the payments of each order, by the names that Stripe may know
        select o as shop_order, array_agg(distinct n) filter (where n is not null) as names,
            bool_or(not s.named and s.excluded is null) as mixed
        from shop s cross join unnest(s.refs) o left join unnest(s.refs) n on n !~ '^gid:'
        where o ~ '^gid:' and s.amount_minor > 0
        group by o
    ), nameless as materialized (
        select d.external_id, d.amount_minor, o.shop_order, o.names, o.mixed,
            row_number() over (partition by o.shop_order, d.amount_minor order by d.occurred_at, d.external_id) as nth
        from doubted d cross join unnest(d.refs) g join orders o on o.shop_order = g
        where not d.named and d.amount_minor < 0 and o.names is not null
    )
    select d.external_id
    from doubted d cross join unnest(d.refs) r join paid p on p.ref = r and sign(p.amount_minor) = sign(d.amount_minor)
    where d.named
    union
    select n.external_id
    from nameless n cross join unnest(n.names) r join paid p on p.ref = r and p.amount_minor < 0
    where not n.mixed or p.amount_minor = n.amount_minor
    group by n.external_id, n.mixed, n.nth
    having not n.mixed or n.nth <= count(distinct p.external_id);
$$;

-- A user's countable movements of some months, one row for each movement: EUR, not excluded, and a payment that
-- Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint)
language sql stable set search_path = '' set enable_nestloop = off as $$
    select t.provider, t.paris_month, s.activity, t.amount_minor
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.currency = 'EUR' and t.excluded is null
        and (not p_written or s.counted @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
$$;

-- Other months in which a user's Shopify rows may now count or no longer count: those of the same payments and
-- orders as the rows of these months. None where only one provider can report: then nothing that it reports changes
-- what another month's rows count for.
create function jobs.months_reported_twice(p_user_id uuid, p_months date[]) returns date[]
language sql stable set search_path = '' set enable_nestloop = off as $$
    with named as materialized (
        select t.provider, t.external_id, t.paris_month, r as ref
        from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'shopify')
            and (exists (select from jobs.integration_transactions x
                    where x.user_id = p_user_id and x.provider = 'stripe')
                or exists (select from jobs.integration_state x
                    where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null))
    ), touched as (   -- the shop's side of what Stripe reports, and the shop's own
        select s.external_id from named s where s.provider = 'shopify' and s.paris_month = any (p_months)
        union
        select s.external_id from named p join named s on s.ref = p.ref and s.provider = 'shopify'
        where p.provider = 'stripe' and p.paris_month = any (p_months)
    )
    select coalesce(array_agg(distinct o.paris_month), '{}')
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
$$;

-- What a month's figure is worth: complete (read to its end), provisional (read from its first Paris instant up
-- to now), partial (something of it was never read, is not in euros, or may be reported twice).
create function jobs.month_status(p_user_id uuid, p_month date, p_as_of timestamptz) returns text
language sql stable set search_path = '' as $$
    with bounds as (
        select p_month::timestamp at time zone 'Europe/Paris' as starts,
            (p_month + interval '1 month') at time zone 'Europe/Paris' as ends
    ), sources as (   -- an active integration without a state was never read
        select coalesce(s.covered, '{}') as covered
        from public.integration_tokens t
        left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        where t.user_id = p_user_id and t.is_active
    )
    select case
        when exists (select from jobs.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month and jobs.is_uncounted(t))
            then 'partial'
        -- A refund of an order whose payment was never read: Stripe may report it, too.
        when exists (select from jobs.integration_state x
                where x.user_id = p_user_id and x.provider = 'stripe' and x.account is not null)
            and exists (
                select o from jobs.integration_transactions t, unnest(t.refs) o
                where t.user_id = p_user_id and t.provider = 'shopify' and t.paris_month = p_month
                    and t.amount_minor < 0 and t.excluded is null
                    and not exists (select from unnest(t.refs) r where r !~ '^gid:')
                except   -- not by loops: see movements_reported_twice
                select o from jobs.integration_transactions p, unnest(p.refs) o
                where p.user_id = p_user_id and p.provider = 'shopify' and p.amount_minor > 0)
            then 'partial'
        when coalesce(bool_and(s.covered @> tstzrange(b.starts, b.ends)), false) then 'complete'
        when p_as_of < b.ends and coalesce(bool_and(s.covered @> b.starts and (
            -- One piece from the first instant on: no hole before what was read last.
            select count(*) = 1 from unnest(s.covered * tstzmultirange(tstzrange(b.starts, b.ends))) piece)), false)
            then 'provisional'
        else 'partial' end
    from bounds b left join sources s on true
    group by b.starts, b.ends;
$$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    wanted jsonb;       -- [{month, activity, amount, metadata}]
    differing jsonb;
begin
    -- 1. Rows that are no longer as we wrote them: theirs.
    update jobs.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));

    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select month, activity, (sum(minor) / 100)::numeric(12, 2) as amount, jsonb_build_object(
            'status', jobs.month_status(p_user_id, month, p_as_of),
            'sources', jsonb_object_agg(provider, (minor / 100)::numeric(12, 2))) as metadata
        from (select c.month, c.activity, c.provider, sum(c.amount_minor)::numeric as minor
              from jobs.countable_movements(p_user_id, p_months, true) c
              where c.activity is not null
              group by 1, 2, 3) t
        group by month, activity) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    delete from jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) where w.month = l.month and w.activity = l.activity);
    update jobs.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from jobs.auto_sync_totals k left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb) on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (p_months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update jobs.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and l.written_eur is distinct from w.amount;

    -- 4. New rows. One that is already there under our key was not written by us: theirs. And where a row of the
    -- month that the user has taken over stands for money whose activity has changed since, that money is counted
    -- already.
    with taken as (
        select distinct l.month from jobs.auto_sync_totals l
        where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
            and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
                where w.month = l.month and w.activity = l.activity)
    ), missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
        where not exists (select from jobs.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m where m.month not in (select month from taken)
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (p_months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;
