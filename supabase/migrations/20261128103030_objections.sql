-- An objection to advertising outlives its account. Locks nothing but the new tables' foreign key: writes to auth.users wait
-- for a moment.

begin;
set local lock_timeout = '5s';

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
alter table jobs.advertising_objections enable row level security;
alter table jobs.objecting_users enable row level security;

create or replace view jobs.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at, u.banned_until,
        nullif(left(split_part(btrim(p.full_name), ' ', 1), 40), '') as first_name,
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
        coalesce(u.raw_user_meta_data ->> 'plan', u.raw_user_meta_data ->> 'subscription_plan',
            u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (u.raw_user_meta_data ->> 'is_pro', u.raw_user_meta_data ->> 'is_premium') as says_paid
    from auth.users u
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(u.email::text)
    left join jobs.objecting_users o on o.user_id = u.id;

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

revoke all on jobs.advertising_objections, jobs.objecting_users from public, anon, authenticated, service_role;
revoke all on function jobs.keyed_address_hash from public, anon, authenticated, service_role;
revoke all on function public.mail_keep_objections from public, anon, authenticated, service_role;
grant execute on function public.mail_keep_objections to service_role;

commit;
