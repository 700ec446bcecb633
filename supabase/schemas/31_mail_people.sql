-- Who may get what.

-- Suppressions remember no address.
create function jobs.address_hash(p_address text) returns bytea
language sql stable as $$
    select sha256(convert_to(lower(btrim(p_address)), 'UTF8'));
$$;

-- An objection to advertising belongs to a person, not to an account: who has refused offers, deleted the account and signed up
-- again gets none. Kept is a keyed hash of the address (HMAC-SHA256, the key is the deployment's), nothing else.
create table jobs.advertising_objections (
    address_hash bytea primary key,
    since timestamptz not null
);

-- Accounts whose address has objected under an earlier account.
create table jobs.objecting_users (
    user_id uuid primary key references auth.users (id) on delete cascade
);

-- Everybody, with what keeps mail away (unreachable: null where nothing does, but for a ban) and what they wish. A
-- missing row of email_preferences means: no reminder, everything else. Metadata is the user's own: it only ever keeps
-- an offer away.
create view jobs.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at, u.banned_until,
        nullif(left(split_part(btrim(left(p.full_name, 400)), ' ', 1), 40), '') as first_name,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.is_anonymous then 'anonymous'
            when coalesce(btrim(u.email), '') = '' then 'no_address'
            when u.email_confirmed_at is null then 'unconfirmed'
            when s.address_hash is not null then 'suppressed'
        end as unreachable,
        coalesce(e.monthly_reminder, false) as wants_reminder,
        coalesce(e.monthly_recap_email, true) as wants_recap,
        coalesce(e.marketing_email, true) and o.user_id is null as wants_marketing,
        coalesce(e.threshold_alert_email, true) as wants_alerts,
        coalesce(m.said ->> 'plan', m.said ->> 'subscription_plan', u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (m.said ->> 'is_pro', m.said ->> 'is_premium') as says_paid
    from auth.users u
    -- What is large is not looked into (see account_flaws).
    cross join lateral (select case when pg_column_size(u.raw_user_meta_data) <= 16384 then u.raw_user_meta_data end as said) m
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(u.email::text)
    left join jobs.objecting_users o on o.user_id = u.id;

-- An error for a kind of mail that nothing says how to refuse: a kind that is forgotten is sent to nobody.
create function jobs.reject_unknown_kind(p_kind text) returns boolean
language plpgsql stable set search_path = '' as $$
begin
    raise exception 'no preference is known for the kind %', p_kind using errcode = '22023';
end $$;

-- Whether somebody refuses a kind of mail, or cannot be reached at p_now; null: they want it.
create function jobs.mail_refusal(p jobs.mail_people, p_kind text, p_now timestamptz) returns text
language sql stable as $$
    select coalesce(case when p.banned_until > p_now and p.unreachable is distinct from 'user_deleted'
        then 'user_banned' else p.unreachable end, case when not case p_kind
        when 'threshold_alert' then p.wants_alerts
        when 'integration_trouble' then true
        when 'monthly_reminder' then p.wants_reminder
        when 'monthly_recap' then p.wants_recap
        when 'definitive_month' then p.wants_recap    -- what the recap said, put right
        when 'marketing_day3' then p.wants_marketing
        else jobs.reject_unknown_kind(p_kind) end then 'refused_by_user' end);
$$;

-- Each user's plan: free, pro or premium; null where a subscription has a price that p_prices
-- ({price id: pro | premium}) does not know. Nobody is taken for free for want of knowing.
-- past_due pays, as long as Stripe tries again; unpaid, paused and incomplete are suspended: such a subscription is still
-- there, so it brings no service, and nobody is asked to take another one.
create function jobs.user_plans(p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, plan text, unknown_price text)
language sql stable as $$
    select u.id, k.plan, case when k.plan is null then coalesce(s.price_id, '') end
    from auth.users u
    left join public.subscriptions s on s.user_id = u.id
    left join public.user_profiles p on p.id = u.id
    cross join lateral (select case
        when s.status in ('active', 'trialing') then p_prices ->> s.price_id
        when p.trial_ends_at > p_now and p.trial_plan in ('pro', 'premium') then p.trial_plan
        when p.plan in ('pro', 'premium') and p.plan_status = 'active' then p.plan
        when s.status = 'past_due' then p_prices ->> s.price_id
        when p.plan in ('pro', 'premium') and p.plan_status = 'past_due' then p.plan
        when s.status in ('unpaid', 'paused', 'incomplete') then 'suspended'
        when p.plan in ('pro', 'premium') and p.plan_status = 'unpaid' then 'suspended'
        else 'free' end as plan) k;
$$;
