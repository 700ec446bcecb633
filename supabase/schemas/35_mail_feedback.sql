-- What comes back: refusals by the user, and what the mail service reports.

-- Stops one kind of mail for a user; an error for a kind that no preference stops. A missing row stands for "no
-- reminder": making it must not start one.
create function public.mail_unsubscribe(p_user_id uuid, p_kind text) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    if p_kind not in ('monthly_reminder', 'monthly_recap', 'definitive_month', 'marketing_day3', 'threshold_alert') then
        perform jobs.reject_unknown_kind(p_kind);
    end if;
    insert into public.email_preferences as e
        (user_id, monthly_reminder, monthly_recap_email, marketing_email, threshold_alert_email)
    select u.id, false, p_kind not in ('monthly_recap', 'definitive_month'), p_kind <> 'marketing_day3', p_kind <> 'threshold_alert'
    from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set
        monthly_reminder = e.monthly_reminder and p_kind <> 'monthly_reminder',
        monthly_recap_email = case when p_kind in ('monthly_recap', 'definitive_month') then false else e.monthly_recap_email end,
        marketing_email = e.marketing_email and p_kind <> 'marketing_day3',
        threshold_alert_email = e.threshold_alert_email and p_kind <> 'threshold_alert',
        updated_at = clock_timestamp();
    return found;
end $$;

-- What the mail service reports, once for each event id: of a mail that it had accepted, or of an address. p_report: see
-- feedback_rank; where it is bounced, complained or suppressed, no mail goes to p_address any more; lifted: mails may go to
-- it again. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_report text, p_address text, p_now timestamptz
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into jobs.email_events (event_id, kind, received_at, provider_id, outcome)
    values (p_event_id, p_kind, p_now, p_provider_id, case when jobs.feedback_rank(p_report) > 0 then p_report end)
    on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_report = 'lifted' then
        delete from jobs.email_suppressions where address_hash = jobs.address_hash(p_address);
    elsif p_report in ('bounced', 'complained', 'suppressed') and p_address is not null then
        insert into jobs.email_suppressions (address_hash, reason)
        values (jobs.address_hash(p_address), p_report) on conflict (address_hash) do nothing;
    end if;
    if p_provider_id is not null then
        perform jobs.apply_feedback(array[p_provider_id], p_now);
    end if;
    return true;
end $$;

-- HMAC-SHA256 of an address, its case and outer spaces aside. p_inner and p_outer: the key as the two blocks that RFC 2104
-- makes of it.
create function jobs.keyed_address_hash(p_address text, p_inner bytea, p_outer bytea) returns bytea
language sql stable set search_path = '' as $$
    select sha256(p_outer || sha256(p_inner || convert_to(lower(btrim(p_address)), 'UTF8')));
$$;

-- Notes who refuses offers now (p_user_id: only this one), and which accounts of the last p_days days are those of people
-- who did so before. Answers how many such accounts were found. A repeated call finds nothing more.
create function public.mail_keep_objections(
    p_user_id uuid, p_inner text, p_outer text, p_days integer, p_now timestamptz
) returns integer language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    inner_block constant bytea := decode(p_inner, 'hex');
    outer_block constant bytea := decode(p_outer, 'hex');
    found_again integer;
begin
    insert into jobs.advertising_objections (address_hash, since)
    select distinct jobs.keyed_address_hash(u.email, inner_block, outer_block), p_now
    from public.email_preferences e join auth.users u on u.id = e.user_id
    where not e.marketing_email and u.email is not null and (p_user_id is null or e.user_id = p_user_id)
    order by 1
    on conflict (address_hash) do nothing;
    insert into jobs.objecting_users (user_id)
    select u.id from auth.users u
    join jobs.advertising_objections o on o.address_hash = jobs.keyed_address_hash(u.email, inner_block, outer_block)
    where u.created_at > p_now - make_interval(days => p_days) and u.created_at > o.since
        and (p_user_id is null or u.id = p_user_id)
    order by u.id
    on conflict (user_id) do nothing;
    get diagnostics found_again = row_count;
    return found_again;
end $$;
