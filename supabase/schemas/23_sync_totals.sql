-- Which movements count, and the totals in ca_records that follow from them.

-- A user's countable movements of some months, one row for each movement: what counts by its row (why_excluded), and a
-- payment that Stripe and Shopify both report only as Stripe does. p_written: only days that go into ca_records.
--
-- What both report is only looked for where Stripe has reported something.
create function jobs.countable_movements(p_user_id uuid, p_months date[], p_written boolean)
returns table (provider text, month date, activity text, amount_minor bigint, day date, account text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
begin
    return query
    select t.provider, t.paris_month, case when f.account is null then s.activity else f.activity end, t.amount_minor,
        (t.occurred_at at time zone 'Europe/Paris')::date, t.account
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = p_user_id and t.paris_month = any (p_months)
        and t.excluded is null and not coalesce(f.left_out, s.left_out)
        and (not p_written or coalesce(f.counted, s.counted) @> t.paris_month)
        and not (t.provider = 'shopify'
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = 'stripe')
            and t.external_id in (
            select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, p_written) w));
end $$;

-- Other months in which a user's Shopify rows may now count or no longer count: those of the same payments and
-- orders as the rows of these months. None where only one provider can report: then nothing that it reports changes
-- what another month's rows count for.
create function jobs.months_reported_twice(p_user_id uuid, p_months date[]) returns date[]
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
declare
    answer date[];
begin
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
    into answer
    from touched t join named n on n.provider = 'shopify' and n.external_id = t.external_id
    join named o on o.provider = 'shopify' and o.ref = n.ref
    where o.paris_month <> all (p_months);
    return answer;
end $$;

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on, and stands for the
-- money that it was made of, as long as that is in the month: whatever activity that money has by now, it is in no other
-- row, and other money is not kept out for it. Where a total changes, comes or goes, thresholds are due to be checked.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
    months date[];
    wanted jsonb;       -- [{month, activity, amount, metadata, made_of}]
    differing jsonb;
    is_changed boolean;
begin
    -- 1. Rows that are no longer as we wrote them: theirs. What never had a row is nobody's, and is tried again.
    with again as (
        delete from jobs.auto_sync_totals l
        where l.user_id = p_user_id and l.record_id is null and l.written_eur is null returning l.month
    )
    select array(select unnest(p_months) union select a.month from again a) into months;
    update jobs.auto_sync_totals l set locked_at = clock_timestamp(), updated_at = clock_timestamp()
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null
        and not exists (
            select from public.ca_records r
            where r.id = l.record_id and r.user_id = l.user_id and r.source = 'auto_sync'
                and r.amount_eur = l.written_eur and r.activity_type = l.activity
                and r.year = extract(year from l.month) and r.month = extract(month from l.month));
    is_changed := found;

    with sums as materialized (
        select c.month, c.activity, c.provider, c.provider || '/' || c.account as source, sum(c.amount_minor)::numeric as minor
        from jobs.countable_movements(p_user_id, months, true) c
        where c.activity is not null
        group by 1, 2, 3, 4
    ), theirs as (
        select distinct on (s.month, s.source) s.month, s.source, l.activity
        from sums s join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = s.month and s.source = any (l.made_of)
        where l.locked_at is not null
        order by s.month, s.source, l.activity = s.activity desc, l.locked_at, l.activity
    ), placed as materialized (
        select s.month, coalesce(t.activity, s.activity) as activity, s.provider, s.source, s.minor
        from sums s left join theirs t using (month, source)
    ), worth as materialized (
        select p.month, jobs.month_worth(p_user_id, p.month, p_as_of) as worth from (select distinct month from placed) p
    )
    select coalesce(jsonb_agg(w), '[]') into wanted from (
        select t.month, t.activity, b.amount,
            -- A sum beyond the column's bound is said as that bound, and is no figure.
            case when b.amount = b.exact then o.worth else o.worth || jsonb_build_object('status', 'partial',
                'flaws', coalesce(o.worth -> 'flaws', '{}') || '{"amount_not_read": 1}') end
            || jsonb_build_object('sources', t.sources) as metadata,
            (select array_agg(distinct p.source order by p.source) from placed p
                where p.month = t.month and p.activity = t.activity) as made_of
        from (
            select s.month, s.activity, sum(s.minor) as minor,
                jsonb_object_agg(s.provider, round(s.minor / 100, 2)) as sources
            from (select month, activity, provider, sum(minor) as minor from placed group by 1, 2, 3) s group by 1, 2) t
        join worth o using (month)
        cross join lateral (select round(t.minor / 100, 2) as exact,
            least(greatest(t.minor / 100, -9999999999.99), 9999999999.99)::numeric(12, 2) as amount) b) w;

    -- 2. Nothing left to say: the row goes.
    delete from public.ca_records r using jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
            where w.month = l.month and w.activity = l.activity);
    delete from jobs.auto_sync_totals l
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is null
        and not exists (select from jsonb_to_recordset(wanted) as w (month date, activity text)
            where w.month = l.month and w.activity = l.activity);
    is_changed := is_changed or found;
    update jobs.auto_sync_totals l set computed_eur = coalesce(w.amount, 0), updated_at = clock_timestamp()
    from jobs.auto_sync_totals k
    left join jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2))
        on w.month = k.month and w.activity = k.activity
    where k.user_id = p_user_id and k.month = any (months) and k.locked_at is not null
        and l.user_id = k.user_id and l.month = k.month and l.activity = k.activity
        and l.computed_eur is distinct from coalesce(w.amount, 0);
    is_changed := is_changed or found;

    -- 3. Rows that say something else now.
    update public.ca_records r set amount_eur = w.amount, metadata = w.metadata
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), metadata jsonb)
    join jobs.auto_sync_totals l on l.user_id = p_user_id and l.month = w.month and l.activity = w.activity
    where l.locked_at is null and r.id = l.record_id
        and r.source = 'auto_sync' and r.amount_eur = l.written_eur  -- not edited in this very moment
        and (r.amount_eur is distinct from w.amount or r.metadata is distinct from w.metadata);
    update jobs.auto_sync_totals l
    set written_eur = w.amount, computed_eur = w.amount, made_of = w.made_of, updated_at = clock_timestamp()
    from jsonb_to_recordset(wanted) as w (month date, activity text, amount numeric(12, 2), made_of text[])
    where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity and l.locked_at is null
        and (l.written_eur, l.made_of) is distinct from (w.amount, w.made_of);
    is_changed := is_changed or found;

    -- 4. New rows. One that is already there under our key was not written by us: theirs.
    with missing as (
        select w.*, to_char(w.month, 'YYYY-MM') || '/' || w.activity as key
        from jsonb_to_recordset(wanted) as w (
            month date, activity text, amount numeric(12, 2), metadata jsonb, made_of text[])
        where not exists (select from jobs.auto_sync_totals l
            where l.user_id = p_user_id and l.month = w.month and l.activity = w.activity)
    ), inserted as (
        insert into public.ca_records (user_id, year, month, activity_type, amount_eur, source, external_id, metadata)
        select p_user_id, extract(year from m.month)::integer, extract(month from m.month)::integer,
            m.activity, m.amount, 'auto_sync', m.key, m.metadata
        from missing m
        on conflict (user_id, external_id) where source = 'auto_sync' do nothing
        returning id, external_id
    )
    insert into jobs.auto_sync_totals (user_id, month, activity, record_id, written_eur, computed_eur, made_of, locked_at)
    select p_user_id, m.month, m.activity, coalesce(i.id, r.id), case when i.id is not null then m.amount end, m.amount,
        m.made_of, case when i.id is null then clock_timestamp() end
    from missing m left join inserted i on i.external_id = m.key
    left join public.ca_records r on r.user_id = p_user_id and r.source = 'auto_sync' and r.external_id = m.key;
    is_changed := is_changed or found;

    if is_changed then
        insert into jobs.threshold_checks_due as d (user_id) values (p_user_id)
        on conflict (user_id) do update set since = excluded.since;
    end if;

    perform jobs.write_estimates(p_user_id);

    select jsonb_agg(jsonb_build_object('month', to_char(l.month, 'YYYY-MM'), 'activity', l.activity,
        'computed', l.computed_eur, 'recorded', r.amount_eur) order by l.month, l.activity)
    into differing
    from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
    where l.user_id = p_user_id and l.month = any (months) and l.locked_at is not null
        and l.computed_eur is distinct from r.amount_eur;
    return coalesce(differing, '[]');
end $$;
