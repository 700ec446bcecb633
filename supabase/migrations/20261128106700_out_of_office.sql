-- An out-of-office note sends no mail again; a month has one line on a user's page, whatever left again. Locks nothing. A
-- second time it is refused and changes nothing.

begin;
set local lock_timeout = '5s';

do $$ begin
    if jobs.feedback_rank('mailbox_full') > 0 then
        raise exception 'this file has been applied already';
    end if;
end $$;

create or replace function jobs.feedback_rank(p_outcome text) returns integer
language sql immutable set search_path = '' as $$
    select coalesce(array_position(array['delayed', 'delivered', 'returned', 'mailbox_full', 'failed', 'refused', 'suppressed', 'bounced',
        'complained'], p_outcome), 0);
$$;

create or replace function jobs.apply_feedback(p_provider_ids text[], p_now timestamptz) returns void
language plpgsql set search_path = '' as $$
declare
    run record;
begin
    with worst as (
        select distinct on (e.provider_id) e.provider_id, e.outcome
        from jobs.email_events e where e.provider_id = any (p_provider_ids) and e.outcome is not null
            and not (e.outcome in ('returned', 'mailbox_full') and exists (select from jobs.email_events a
                where a.provider_id = e.provider_id and a.outcome = 'delivered'))
        order by e.provider_id, jobs.feedback_rank(e.outcome) desc
    )
    update jobs.email_deliveries d
    set feedback = nullif(w.outcome, 'delivered'), feedback_at = case when w.outcome <> 'delivered' then p_now end
    from worst w
    where d.provider_id = w.provider_id and (jobs.feedback_rank(w.outcome) > jobs.feedback_rank(d.feedback)
            or w.outcome = 'delivered' and d.feedback in ('returned', 'mailbox_full'))
        -- A mailbox that is full for an offer is nothing to note.
        and (w.outcome not in ('returned', 'mailbox_full') or d.kind <> 'marketing_day3');
    for run in
        with again as (
            insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
            select d.dedupe_key || '/again', d.kind, d.user_id, d.recipient, d.run_id, d.facts, d.expires_at
            from jobs.email_deliveries d join jobs.job_runs r on r.run_id = d.run_id
            where d.provider_id = any (p_provider_ids) and d.feedback in ('failed', 'mailbox_full')
                and d.kind <> 'marketing_day3' and d.facts <> '{}' and d.dedupe_key not like '%/again'
                and (d.user_id is not null or d.recipient is null)
                and (d.expires_at is null or d.expires_at > p_now)
            order by d.delivery_id
            on conflict (dedupe_key) do nothing
            returning run_id
        )
        select distinct a.run_id from again a order by 1
    loop
        perform jobs.queue_mails(run.run_id, null, p_now);
    end loop;
end $$;

create or replace function jobs.user_months(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' set jit = off as $$
    with ledger as materialized (
        select t.paris_month as month, count(*) as movements, count(*) filter (where t.excluded is not null) as uncounted
        from jobs.integration_transactions t where t.user_id = p_user_id group by 1
    ), computed as materialized (
        select l.month, sum(jobs.readable_cents(l.computed_eur))::bigint as computed,
            bool_or(l.locked_at is not null) as is_edited
        from jobs.auto_sync_totals l where l.user_id = p_user_id group by 1
    ), recorded as materialized (
        select * from jobs.recorded_months(p_user_id)
    ), mailed as materialized (
        -- The last one of each: what did not arrive may have left again.
        select distinct on (1) to_date(split_part(d.dedupe_key, '/', 3), 'YYYY-MM') as month, d.status as recap,
            d.settled_at as recapped
        from jobs.email_deliveries d
        where d.user_id = p_user_id and d.kind = 'monthly_recap'
            and split_part(d.dedupe_key, '/', 3) ~ '^[0-9]{4}-(0[1-9]|1[0-2])$'
        order by 1, d.delivery_id desc
    ), months as (
        select month from ledger union select month from computed union select month from recorded
        union select month from mailed
    ), latest as materialized (
        select m.month, count(*) over () as total from months m
        where m.month between '2000-01-01' and '2100-12-01' order by m.month desc limit p_limit
    )
    select jsonb_build_object('total', coalesce(max(m.total), 0), 'shown', coalesce(jsonb_agg(jsonb_build_object(
        'month', to_char(m.month, 'YYYY-MM'), 'movements', coalesce(l.movements, 0), 'uncounted', coalesce(l.uncounted, 0),
        'computed', c.computed, 'imported', r.imported, 'typed', r.typed, 'flaw', r.flaw,
        'is_edited', coalesce(c.is_edited, false), 'worth', r.worth, 'recap', d.recap, 'recapped', d.recapped)
        order by m.month desc), '[]'))
    from latest m left join ledger l using (month) left join computed c using (month) left join recorded r using (month)
    left join mailed d using (month);
$$;

commit;
