-- What an operator has done for one user. With p_dry_run each function says what it would do, and changes nothing.

-- Takes an account out of a user's books, or back into them (p_out false): see leave_account_out. Null: the user has no such
-- account.
--   {is_out, movements, counted: cents of those that count by themselves, months: [YYYY-MM], left_alone?}
create function public.jobs_leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    known boolean := (select k.left_out from (
        select s.left_out from jobs.integration_state s
        where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account)
        union all
        select f.left_out from jobs.former_accounts f
        where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) k limit 1);
    seen jsonb;
begin
    if known is null then
        return null;
    end if;
    select jsonb_build_object('is_out', known, 'movements', count(*),
        'counted', coalesce(sum(t.amount_minor) filter (where t.excluded is null), 0)::bigint,
        'months', coalesce(jsonb_agg(distinct to_char(t.paris_month, 'YYYY-MM')), '[]'))
    into seen from jobs.integration_transactions t
    where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account;
    if p_dry_run then
        return seen;
    end if;
    return seen || jobs.leave_account_out(p_user_id, p_provider, p_account, p_out, p_now) || jsonb_build_object('is_out', p_out);
end $$;

-- Lets mails go to a user's address again. The mail service has a list of its own, which this does not touch.
--   {reason, since}: why and since when none went; null: they were not held back
create function public.jobs_lift_suppression(p_user_id uuid, p_dry_run boolean) returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    hash bytea := (select jobs.address_hash(u.email::text) from auth.users u where u.id = p_user_id);
    lifted jsonb := (select jsonb_build_object('reason', s.reason, 'since', s.created_at)
        from jobs.email_suppressions s where s.address_hash = hash);
begin
    if not p_dry_run then
        delete from jobs.email_suppressions s where s.address_hash = hash;
    end if;
    return lifted;
end $$;

-- A user's mails that the mail service definitely did not take since p_failed_since, with why one is not sent again (null: it
-- is): no longer wanted, too late, or not true any more. An alert whose step was withdrawn since is not true.
create function jobs.mails_to_resend(p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_now timestamptz)
returns table (delivery_id bigint, item_id bigint, lane text, kind text, about text, reason text)
language sql stable set search_path = '' as $$
    select d.delivery_id, i.item_id, i.lane, d.kind, left(split_part(d.dedupe_key, '/', 3), 40),
        case
            when d.expires_at <= p_now then 'expired'
            when jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now) is not null
                then jobs.mail_skip_reason_now(d.kind, p, p_prices, p_now)
            when d.kind = 'integration_trouble' then jobs.trouble_is_over(d.user_id, d.facts ->> 'provider')
            when d.kind = 'threshold_alert' and exists (
                select from jsonb_to_recordset(d.facts -> 'crossings') as c (threshold text, step smallint)
                where not exists (select from jobs.threshold_alerts a where a.user_id = d.user_id
                    and a.year = (d.facts ->> 'year')::integer and a.threshold = c.threshold and a.step = c.step
                        and a.withdrawn_at is null)
                union all
                select from jsonb_array_elements_text(d.facts -> 'consequences') as c (name)
                where not exists (select from jobs.told_consequences a where a.user_id = d.user_id
                    and a.year = (d.facts ->> 'year')::integer and a.consequence = c.name and a.withdrawn_at is null))
                then 'no_longer_true' end
    from jobs.email_deliveries d
    join jobs.job_items i on i.item_id = d.item_id and i.status = 'failed'
    left join lateral (select * from jobs.mail_people m where m.user_id = d.user_id offset 0) p on true
    where d.user_id = p_user_id and d.status in ('failed', 'refused') and d.provider_id is null
        and d.settled_at >= p_failed_since
        -- It has left for another address.
        and not exists (select from jobs.email_deliveries n where n.dedupe_key = d.dedupe_key || '/moved');
$$;

-- Queues them again, each in its lane. A repeated call with the same p_call_id answers what the first one did.
--   {mails: [{delivery_id, kind, about, reason}], queued}
create function public.jobs_resend_mails(
    p_call_id uuid, p_user_id uuid, p_prices jsonb, p_failed_since timestamptz, p_dry_run boolean, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    told jsonb;
    again bigint[];
begin
    if not p_dry_run then
        -- A repeated call waits here for the first one, which may still be at it.
        insert into jobs.job_answers (call_id, answer, answered_at) values (p_call_id, '{}', p_now)
        on conflict (call_id) do nothing;
        if not found then
            select a.answer into told from jobs.job_answers a where a.call_id = p_call_id;
            return told;
        end if;
        perform jobs.lock_mail_ledger();
    end if;
    select jsonb_build_object('mails', coalesce(jsonb_agg(jsonb_build_object('delivery_id', m.delivery_id, 'kind', m.kind,
            'about', m.about, 'reason', m.reason) order by m.delivery_id desc), '[]')),
        coalesce(array_agg(m.item_id) filter (where m.reason is null), '{}')
    into told, again
    from (select * from jobs.mails_to_resend(p_user_id, p_prices, p_failed_since, p_now) r
        order by r.delivery_id desc limit 50) m;
    if p_dry_run then
        return told || jsonb_build_object('queued', 0);
    end if;
    told := told || jsonb_build_object('queued', jobs.requeue_mails(again));
    update jobs.job_answers set answer = told where call_id = p_call_id;
    return told;
end $$;
