-- What an operator runs after a backup was restored; an alert that was withdrawn since does not come back. Locks nothing.

begin;
set local lock_timeout = '5s';

-- Mails that never arrived because of their address, and that would now: the user has corrected it, or the mail service
-- has taken it off its list. Of each mail once, as long as what it says is news and still true.
create or replace function jobs.mails_that_would_arrive(p_now timestamptz) returns table (delivery_id bigint, kind text)
language sql stable set search_path = '' as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select d.delivery_id, d.kind
    from today t
    cross join (values ('threshold_alert', 400), ('monthly_recap', 62), ('monthly_reminder', 62), ('integration_trouble', 62))
        as k (kind, days)
    join jobs.email_deliveries d on d.kind = k.kind and d.feedback is not null
        and d.feedback_at > p_now - make_interval(days => k.days)
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p
    where d.feedback in ('bounced', 'suppressed', 'refused') and d.status in ('sent', 'refused')
        and d.address is not null and d.facts <> '{}' and d.dedupe_key not like '%/moved'
        and jobs.mail_refusal(p, d.kind, p_now) is null
        and (d.feedback <> 'refused' or lower(btrim(p.address)) <> lower(btrim(d.address)))
        and case d.kind
            when 'monthly_recap' then t.day < to_date(d.facts ->> 'month', 'YYYY-MM') + interval '2 months'
            when 'threshold_alert' then
                (split_part(d.dedupe_key, '/', 3) = to_char(t.day, 'YYYY') or (extract(month from t.day) = 1
                    and split_part(d.dedupe_key, '/', 3) = to_char(t.day - interval '1 year', 'YYYY')))
                and not exists (
                    select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                    where not exists (select from jobs.threshold_alerts a
                        where a.user_id = d.user_id and a.year::text = split_part(d.dedupe_key, '/', 3)
                            and a.threshold = c.threshold and a.step = c.step
                            and to_jsonb(a) ->> 'withdrawn_at' is null))
            else d.expires_at > p_now end
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- After a backup was restored: settles what waits as of unknown outcome, for it may have left before. Only for an operator, in
-- the SQL editor, while no key lets mails leave (see docs/RUNBOOK.fr.md). What is sealed stays: it is sent again under its
-- own key, which the mail service remembers for a day. Answers how many were settled.
create function jobs.give_up_waiting_mails(p_now timestamptz) returns integer
language plpgsql set search_path = '' as $$
declare
    why constant text := 'Peut-être envoyé après la sauvegarde qui a été restaurée.';
    given_up bigint[];
begin
    perform jobs.lock_mail_ledger();
    with settled as (
        update jobs.email_deliveries d set status = 'unknown', reason = why, settled_at = p_now
        where d.status = 'planned' returning d.delivery_id, d.kind, d.user_id
    ), offers as (
        insert into public.marketing_emails (user_id, email_type, sent_at)
        select s.user_id, 'upgrade_day3', p_now from settled s
        where s.kind = 'marketing_day3' and s.user_id is not null order by s.user_id
        on conflict (user_id, email_type) do nothing
    )
    select array_agg(s.delivery_id order by s.delivery_id) into given_up from settled s;
    update jobs.job_items i
    set status = 'failed', result = jsonb_build_object('user_id', i.user_id, 'mail', 'unknown', 'reason', why),
        error = jsonb_build_object('code', 'unknown_outcome', 'message', why),
        lease_id = null, leased_until = null, settled_at = p_now
    from jobs.known_lanes() l
    where l.is_mail and i.lane = l.lane and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = any (given_up);
    -- Their messages go with the next claim, which finds them without an item that is queued.
    return coalesce(cardinality(given_up), 0);
end $$;

revoke all on function jobs.give_up_waiting_mails from public, anon, authenticated, service_role;

commit;
