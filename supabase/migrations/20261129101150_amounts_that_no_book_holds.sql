-- An amount that no book holds costs its own row alone, and a sum that no column holds its own total.
--
-- Reads the ledger once, about two seconds for a million rows, and updates the few rows that count otherwise now. One
-- transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Why a movement does not count, from what its row says alone; null: it counts. This is the one place that decides it
-- (but for money that two providers report: see movements_reported_twice). The row's column `excluded` is this answer.
--
-- State: of a payment pending, succeeded or failed; of a dispute as Shopify calls it, in small letters. Money counts
-- when it was received: a debit is not, as long as it is pending (Stripe, "Changes to Balance Transaction behavior for
-- debit payment methods"), nor is what has a state that nobody knows. A payment that failed was never received, so the
-- row that takes it back does not count either. A refund is pending as long as there is no money to pay it with; one that
-- fails then was never paid, and what takes it back does not count either. An amount that no book could hold is not
-- believed: it would keep everything else of its owner's from being written. (Newer ones are not even stored:
-- providers::movement::is_credible.)
create or replace function jobs.why_excluded(
    p_kind text, p_state text, p_method text, p_occurred_at timestamptz, p_amount_minor bigint, p_currency text,
    p_converted boolean
) returns text language sql immutable as $$
    select case
        when p_kind = 'unknown' then 'unknown_kind'
        when p_kind in ('no_turnover', 'platform_reversal', 'unlisted_payment') then p_kind
        when p_occurred_at is null then 'no_date'
        when p_currency is null then 'no_currency'
        when p_amount_minor is null or p_amount_minor not between -1000000000000000 and 1000000000000000
            or p_currency = 'EUR' and p_amount_minor not between -999999999999 and 999999999999 then 'amount_not_read'
        when p_kind = 'payment' and p_state in ('failed', 'canceled') or p_kind = 'charge_failure' then 'failed'
        when p_kind = 'payment' and p_state <> 'succeeded' then 'pending'
        when p_kind = 'refund' and p_state = 'pending' then 'pending'
        when p_kind in ('refund', 'refund_failure') and p_state = 'never_paid' then 'failed'
        when p_kind = 'dispute' and p_state in ('needs_response', 'under_review', 'won', 'charge_refunded') then 'not_lost'
        when p_kind = 'dispute' and p_state = 'prevented' then 'prevented'
        when p_kind = 'dispute' and p_state not in ('lost', 'accepted') then 'unknown_kind'
        when jobs.paid_before(p_method) is not null then jobs.paid_before(p_method)
        when not p_converted then 'unresolved_currency'
        when p_currency <> 'EUR' then 'currency'
    end;
$$;

-- What was stored before is judged anew. A generated column follows its function only where a column that it reads is written.
update jobs.integration_transactions t set kind = t.kind
where t.excluded is distinct from jobs.why_excluded(
    t.kind, t.state, t.method, t.occurred_at, t.amount_minor, t.currency, t.converted);

-- Writes a user's totals of some months into ca_records. Call only under the user's lock.
-- Rows that already say so are not touched. A row that is not as we left it is the user's from then on, and stands for the
-- money that it was made of, as long as that is in the month: whatever activity that money has by now, it is in no other
-- row, and other money is not kept out for it. Where a total changes, comes or goes, thresholds are due to be checked.
--   [{month, activity, computed, recorded}]: the rows left alone that differ
create or replace function jobs.recompute_totals(p_user_id uuid, p_months date[], p_as_of timestamptz) returns jsonb
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

commit;
