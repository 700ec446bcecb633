-- Mails: the outbox, which is the permanent ledger, too; thresholds; what follows from a settlement.
--
-- A mail is planned (a delivery, an item, a message: one transaction), then sealed with others into a batch just
-- before the batch's first request, then settled. A sealed batch is only ever sent again as sealed, under its own
-- key; after a definite refusal it is released or split into child batches. A delivery's dedupe_key is unique for
-- ever: nothing that is planned twice is sent twice.
--
-- Lock order: everything that claims, seals or settles mails takes one advisory lock first (mail_ledger_lock), then
-- users, messages, items, each in the order of their ids. Planning takes none of it but its own rows.
--
-- Forward only. Of the application's tables none is locked; of ours, job_items for a moment.

begin;
set local lock_timeout = '5s';

-- An item whose mail is not wanted any more, or came too late: neither done nor failed.
alter table public.job_items drop constraint job_items_status_check;
alter table public.job_items add constraint job_items_status_check
    check (status in ('queued', 'done', 'partial', 'failed', 'superseded', 'skipped')) not valid;

create table public.email_batches (
    batch_id uuid primary key,                   -- with a prefix: the Idempotency-Key of its requests
    kind text not null,
    state text not null default 'sealed' check (state in ('sealed', 'released', 'split', 'settled')),
    parent_id uuid,                              -- split off that one, which was refused
    sealed_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz
);

create table public.email_deliveries (
    delivery_id bigint generated always as identity primary key,
    dedupe_key text not null unique,
    kind text not null check (kind in ('threshold_alert', 'integration_trouble', 'operator_digest',
        'monthly_reminder', 'monthly_recap', 'marketing_day3')),
    user_id uuid references auth.users (id) on delete set null,
    recipient uuid,                              -- the user, also when they are gone: signed into the mail's links;
                                                 -- null: the operator, whose address is among the facts
    run_id uuid not null,                        -- outlives its run
    item_id bigint,                              -- since it was claimed
    facts jsonb not null default '{}',           -- what the mail says; complete and final once sealed
    address text,                                -- since it was sealed
    digest text,                                 -- of the mail as rendered when it was sealed
    batch_id uuid references public.email_batches (batch_id),
    position integer,                            -- within the batch: its payload has an order
    status text not null default 'planned'
        check (status in ('planned', 'sealed', 'sent', 'skipped', 'expired', 'refused', 'failed', 'unknown')),
    reason text,                                 -- why it was not sent
    provider_id text,                            -- as the mail service names it
    feedback text,                               -- bounced, complained
    planned_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,                      -- not sent from then on
    sealed_at timestamptz,
    settled_at timestamptz
);
create index email_deliveries_planned on public.email_deliveries (run_id, user_id) where status = 'planned';
create index email_deliveries_batch on public.email_deliveries (batch_id) where status = 'sealed';
create index email_deliveries_user on public.email_deliveries (user_id);
create index email_deliveries_provider on public.email_deliveries (provider_id) where provider_id is not null;
create index email_deliveries_personal on public.email_deliveries (settled_at) where address is not null or facts <> '{}';
create index email_deliveries_gone on public.email_deliveries (delivery_id)
    where user_id is null and (address is not null or facts <> '{}' or status in ('planned', 'sealed'));

-- Addresses that no mail goes to, as hashes.
create table public.email_suppressions (
    address_hash bytea primary key,
    reason text not null check (reason in ('bounced', 'complained')),
    created_at timestamptz not null default clock_timestamp()
);

-- Webhooks of the mail service, by their svix-id: each has its effect once.
create table public.email_events (
    event_id text primary key,
    kind text not null,
    received_at timestamptz not null default clock_timestamp()
);
create index email_events_received on public.email_events (received_at);

-- Steps of thresholds that were mailed, or used up by a higher one: each once a year.
create table public.threshold_alerts (
    user_id uuid not null references auth.users (id) on delete cascade,
    year integer not null,
    threshold text not null,
    step smallint not null,
    run_id uuid not null,
    created_at timestamptz not null default clock_timestamp(),
    primary key (user_id, year, threshold, step)
);

-- Users whose imported totals have changed since their thresholds were checked last.
create table public.threshold_checks_due (
    user_id uuid primary key references auth.users (id) on delete cascade,
    since timestamptz not null default clock_timestamp()
);

alter table public.email_batches enable row level security;
alter table public.email_deliveries enable row level security;
alter table public.email_suppressions enable row level security;
alter table public.email_events enable row level security;
alter table public.threshold_alerts enable row level security;
alter table public.threshold_checks_due enable row level security;
revoke all on public.email_batches, public.email_deliveries, public.email_suppressions, public.email_events,
    public.threshold_alerts, public.threshold_checks_due from public, anon, authenticated, service_role;
revoke all on sequence public.email_deliveries_delivery_id_seq from public, anon, authenticated, service_role;

-- Who may get what ------------------------------------------------------------------------------------------

-- Suppressions remember no address.
create function public.mail_address_hash(p_address text) returns bytea
language sql stable as $$
    select sha256(convert_to(lower(btrim(p_address)), 'UTF8'));
$$;

-- The queue of a kind of mail.
create function public.mail_lane(p_kind text) returns text
language sql immutable as $$
    select case p_kind when 'threshold_alert' then 'alerts' when 'integration_trouble' then 'alerts'
        when 'operator_digest' then 'alerts' when 'monthly_reminder' then 'reminders'
        when 'monthly_recap' then 'recaps' when 'marketing_day3' then 'marketing' end;
$$;

-- Everybody, with what keeps mail away (unreachable: null where nothing does) and what they wish. A missing row of
-- email_preferences means: no reminder, everything else. Metadata is the user's own: it only ever keeps an offer
-- away.
create view public.mail_people as
    select u.id as user_id, u.email::text as address, u.created_at,
        nullif(left(split_part(btrim(p.full_name), ' ', 1), 40), '') as first_name,
        case
            when u.deleted_at is not null then 'user_deleted'
            when u.banned_until > clock_timestamp() then 'user_banned'
            when u.is_anonymous then 'anonymous'
            when coalesce(btrim(u.email), '') = '' then 'no_address'
            when u.email_confirmed_at is null then 'unconfirmed'
            when s.address_hash is not null then 'suppressed'
        end as unreachable,
        coalesce(e.monthly_reminder, false) as wants_reminder,
        coalesce(e.monthly_recap_email, true) as wants_recap,
        coalesce(e.marketing_email, true) as wants_marketing,
        coalesce(e.threshold_alert_email, true) as wants_alerts,
        coalesce(u.raw_user_meta_data ->> 'plan', u.raw_user_meta_data ->> 'subscription_plan',
            u.raw_app_meta_data ->> 'plan') in ('pro', 'premium')
            or 'true' in (u.raw_user_meta_data ->> 'is_pro', u.raw_user_meta_data ->> 'is_premium') as says_paid
    from auth.users u
    left join public.user_profiles p on p.id = u.id
    left join public.email_preferences e on e.user_id = u.id
    left join public.email_suppressions s on s.address_hash = public.mail_address_hash(u.email::text);
revoke all on public.mail_people from public, anon, authenticated, service_role;

-- Whether somebody refuses a kind of mail, or cannot be reached; null: they want it.
create function public.mail_refusal(p public.mail_people, p_kind text) returns text
language sql stable as $$
    select coalesce(p.unreachable, case when not case p_kind
        when 'threshold_alert' then p.wants_alerts
        when 'integration_trouble' then true
        when 'monthly_reminder' then p.wants_reminder
        when 'monthly_recap' then p.wants_recap
        when 'marketing_day3' then p.wants_marketing end then 'refused_by_user' end);
$$;

-- Each user's plan: free, pro or premium; null where a subscription has a price that p_prices
-- ({price id: pro | premium}) does not know. Nobody is taken for free for want of knowing.
create function public.mail_plans(p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, plan text, unknown_price text)
language sql stable as $$
    select u.id,
        case
            when s.status in ('active', 'trialing') then p_prices ->> s.price_id
            when p.trial_ends_at > p_now and p.trial_plan in ('pro', 'premium') then p.trial_plan
            when p.plan in ('pro', 'premium') and p.plan_status = 'active' then p.plan
            else 'free' end,
        case when s.status in ('active', 'trialing') and p_prices ->> s.price_id is null
            then coalesce(s.price_id, '') end
    from auth.users u
    left join public.subscriptions s on s.user_id = u.id
    left join public.user_profiles p on p.id = u.id;
$$;

-- Planning ---------------------------------------------------------------------------------------------------

-- The J+3 mail: everybody who signed up 3 to 6 Paris days before p_now, and why not (reason null: gets it).
create function public.mail_marketing_candidates(p_user_id uuid, p_prices jsonb, p_now timestamptz)
returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    with today as (select (p_now at time zone 'Europe/Paris')::date as day)
    select p.user_id,
        case
            when d.delivery_id is not null then 'already_planned'
            when m.id is not null then 'already_sent'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'free' then 'paid_plan'
            when p.says_paid then 'metadata_says_paid'
            else public.mail_refusal(p, 'marketing_day3') end,
        case when d.delivery_id is null and m.id is null then l.unknown_price end,
        'marketing_day3/' || p.user_id, '{}'::jsonb,
        ((p.created_at at time zone 'Europe/Paris')::date + 7)::timestamp at time zone 'Europe/Paris'
    from today t
    join public.mail_people p on p.created_at >= (t.day - 6)::timestamp at time zone 'Europe/Paris'
        and p.created_at < (t.day - 2)::timestamp at time zone 'Europe/Paris'
    join public.mail_plans(p_prices, p_now) l on l.user_id = p.user_id
    left join public.marketing_emails m on m.user_id = p.user_id and m.email_type = 'upgrade_day3'
    left join public.email_deliveries d on d.dedupe_key = 'marketing_day3/' || p.user_id
    where p_user_id is null or p.user_id = p_user_id;
$$;

-- The reminder for p_month (its 1st): everybody who is Premium or wishes to be reminded, and why not.
create function public.mail_reminder_candidates(p_user_id uuid, p_prices jsonb, p_month date, p_now timestamptz)
returns table (user_id uuid, reason text, unknown_price text, dedupe_key text, facts jsonb, expires_at timestamptz)
language sql stable as $$
    select p.user_id,
        case
            when d.delivery_id is not null then 'already_planned'
            when l.plan is null then 'unknown_price'
            when l.plan <> 'premium' then 'not_premium'
            else public.mail_refusal(p, 'monthly_reminder') end,
        case when d.delivery_id is null then l.unknown_price end,
        'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM'),
        jsonb_build_object('month', to_char(p_month, 'YYYY-MM')),
        -- The Paris month after p_month is the one that it belongs into.
        (p_month + interval '2 months') at time zone 'Europe/Paris'
    from public.mail_plans(p_prices, p_now) l
    join public.mail_people p on p.user_id = l.user_id
    left join public.email_deliveries d
        on d.dedupe_key = 'monthly_reminder/' || p.user_id || '/' || to_char(p_month, 'YYYY-MM')
    where (p_user_id is null or p.user_id = p_user_id)
        and (l.plan = 'premium' or l.plan is null or p.wants_reminder);
$$;

-- Gives each planned delivery of a run its item and its message: the end of every plan of mails, in its
-- transaction. A run that was closed is open again.
create function public.mail_queue(p_run_id uuid, p_user_id uuid) returns integer
language plpgsql security definer set search_path = '' as $$
declare
    queued integer := 0;
    batch record;
begin
    for batch in
        with items as (
            insert into public.job_items (run_id, lane, kind, subject, user_id, payload)
            select d.run_id, public.mail_lane(d.kind), d.kind, md5(d.dedupe_key)::uuid, d.user_id,
                jsonb_build_object('delivery_id', d.delivery_id)
            from public.email_deliveries d
            where d.run_id = p_run_id and d.status = 'planned' and (p_user_id is null or d.user_id = p_user_id)
            on conflict (run_id, kind, subject) do nothing
            returning item_id, lane, kind, version
        )
        select lane, count(*) as n, array_agg(jsonb_build_object(
            'version', version, 'run_id', p_run_id, 'item_id', item_id, 'kind', kind) order by item_id) as messages
        from items group by lane
    loop
        perform pgmq.send_batch('jobs_' || batch.lane, batch.messages);
        queued := queued + batch.n;
    end loop;
    if queued > 0 then
        update public.job_runs set status = 'running', finished_at = null
        where run_id = p_run_id and finished_at is not null;
    end if;
    return queued;
end $$;

-- Plans the J+3 mails or the reminders for a month. With p_dry_run nothing is written.
--   {state: planned | joined | repeated | dry_run, run_id,
--    plan: {items, skipped: {reason: n}, unknown_prices: […], candidates?: […]}}
create function public.jobs_plan_mails(
    p_run_id uuid, p_task text, p_kind text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_user_id uuid, p_dry_run boolean, p_prices jsonb, p_month date, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    outline jsonb;
begin
    if p_kind not in ('marketing_day3', 'monthly_reminder') then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    if p_dry_run then
        with c as materialized (
            select * from public.mail_marketing_candidates(p_user_id, p_prices, p_now) where p_kind = 'marketing_day3'
            union all
            select * from public.mail_reminder_candidates(p_user_id, p_prices, p_month, p_now)
            where p_kind = 'monthly_reminder'
        )
        select jsonb_build_object(
            'items', count(*) filter (where c.reason is null),
            'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
                select reason, count(*) as n from c where reason is not null group by reason) n),
            'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
                select distinct unknown_price from c where unknown_price is not null order by 1 limit 10) n),
            'candidates', (select coalesce(jsonb_agg(f), '[]') from (
                select c.user_id, coalesce(c.reason, 'due') as outcome
                from c order by c.reason nulls first, c.user_id limit 100) f))
        into outline from c;
        return jsonb_build_object('state', 'dry_run', 'run_id', p_run_id, 'plan', outline);
    end if;
    opened := public.jobs_open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
    if opened ->> 'state' <> 'planned' then
        return opened;
    end if;
    with c as materialized (
        select * from public.mail_marketing_candidates(p_user_id, p_prices, p_now) where p_kind = 'marketing_day3'
        union all
        select * from public.mail_reminder_candidates(p_user_id, p_prices, p_month, p_now)
        where p_kind = 'monthly_reminder'
    ), planned as (
        insert into public.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        select c.dedupe_key, p_kind, c.user_id, c.user_id, p_run_id, c.facts, c.expires_at
        from c where c.reason is null
        order by c.user_id                    -- two plans at once wait for each other in one order
        on conflict (dedupe_key) do nothing   -- another run was faster
        returning 1
    )
    select jsonb_build_object(
        'items', (select count(*) from planned),
        'skipped', (select coalesce(jsonb_object_agg(n.reason, n.n), '{}') from (
            select reason, count(*) as n from c where reason is not null group by reason) n),
        'unknown_prices', (select coalesce(jsonb_agg(n.unknown_price), '[]') from (
            select distinct unknown_price from c where unknown_price is not null order by 1 limit 10) n))
    into outline;
    perform public.mail_queue(p_run_id, null);
    update public.job_runs set plan = outline where run_id = p_run_id;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- Sending ----------------------------------------------------------------------------------------------------

-- Claims, seals and settlements of mails, one at a time: a batch is taken over as a whole, whoever held which of
-- its mails. Each takes some milliseconds; the mail service takes ten batches a second at most.
create function public.mail_ledger_lock() returns void language sql set search_path = '' as $$
    select pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.mails', 0));
$$;

-- Takes the messages and items of deliveries that this claim holds, and keeps them invisible for p_seconds.
-- Answers the ids of the deliveries that may be written: held ones, and those whose item went with its user.
create function public.mail_hold(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns bigint[]
language plpgsql security definer set search_path = '' as $$
declare
    held bigint[];
begin
    -- Whoever deletes a user waits for us, or we for them.
    perform from auth.users u
    where u.id in (select d.user_id from public.email_deliveries d where d.delivery_id = any (p_deliveries))
    order by u.id for key share;
    perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
    from public.email_deliveries d join public.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and i.lease_id = p_claim and i.status = 'queued'
    order by i.msg_id;
    perform from public.job_items i
    where i.item_id in (select d.item_id from public.email_deliveries d where d.delivery_id = any (p_deliveries))
        and i.lease_id = p_claim and i.status = 'queued'
    order by i.item_id for update;
    update public.job_items i set leased_until = clock_timestamp() + make_interval(secs => p_seconds)
    from public.email_deliveries d
    where d.delivery_id = any (p_deliveries) and i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    select array_agg(d.delivery_id) into held
    from public.email_deliveries d left join public.job_items i on i.item_id = d.item_id
    where d.delivery_id = any (p_deliveries) and d.status in ('planned', 'sealed')
        and (i.item_id is null or (i.lease_id = p_claim and i.status = 'queued'));
    return coalesce(held, '{}');
end $$;

-- Why a planned mail is not sent after all: what may have changed since it was planned.
create function public.mail_second_thoughts(p_kind text, p public.mail_people, p_prices jsonb, p_now timestamptz)
returns text language sql stable set search_path = '' as $$
    select case
        when p.user_id is null then 'user_deleted'
        when public.mail_refusal(p, p_kind) is not null then public.mail_refusal(p, p_kind)
        when p_kind = 'marketing_day3' and exists (select from public.marketing_emails m
            where m.user_id = p.user_id and m.email_type = 'upgrade_day3') then 'already_sent'
        when p_kind = 'marketing_day3' and p.says_paid then 'metadata_says_paid'
        when p_prices is not null and p_kind in ('marketing_day3', 'monthly_reminder') then (
            select case when l.plan is null then 'unknown_price'
                when p_kind = 'marketing_day3' and l.plan <> 'free' then 'paid_plan'
                when p_kind = 'monthly_reminder' and l.plan <> 'premium' then 'not_premium' end
            from public.mail_plans(p_prices, p_now) l where l.user_id = p.user_id) end;
$$;

-- Claims up to p_limit mails of the first lane that has any, and tells all that is needed to send them. Where one of
-- them belongs to a sealed batch, the whole batch comes with it, and nothing else.
-- Null: only messages without an item were seen so far, ask again. p_now: null but where a test plays another day.
--   {mails: [{delivery_id, kind, user_id, batch_id, digest, address, facts, attempts, reason, expired,
--             age_seconds}], sealed batches in the order of their payload}
create function public.mail_claim(
    p_claim uuid, p_limit integer, p_seconds integer, p_prices jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    moment constant timestamptz := coalesce(p_now, clock_timestamp());
    lane text;
    claimed jsonb;
    items bigint[];
    mine bigint[];
    batches uuid[];
begin
    perform public.mail_ledger_lock();
    foreach lane in array array['alerts', 'reminders', 'recaps', 'marketing'] loop
        claimed := public.jobs_claim(p_claim, lane, p_limit, p_seconds);
        if claimed = 'null'::jsonb then
            return claimed;
        end if;
        exit when claimed <> '[]'::jsonb;
    end loop;

    -- By arrays: statistics know nothing yet of what was just planned.
    mine := array(select (i.payload ->> 'delivery_id')::bigint from public.job_items i
        where i.lease_id = p_claim and i.status = 'queued');
    update public.email_deliveries d set item_id = i.item_id
    from public.job_items i
    where d.delivery_id = any (mine) and d.item_id is null
        and i.lease_id = p_claim and i.status = 'queued' and (i.payload ->> 'delivery_id')::bigint = d.delivery_id;
    batches := (select array_agg(distinct d.batch_id) from public.email_deliveries d
        where d.delivery_id = any (mine) and d.status = 'sealed');

    if batches is not null then
        -- All of one batch, whoever claimed some of it: they are fenced off. The others' turn comes.
        batches := batches[1:1];
        select i.lane into lane from public.job_items i where i.lease_id = p_claim and i.status = 'queued' limit 1;
        select array_agg(i.item_id order by i.item_id) into items
        from public.job_items i left join public.email_deliveries d on d.item_id = i.item_id
        where i.lease_id = p_claim and i.status = 'queued' and d.batch_id is distinct from batches[1];
        if items is not null then
            perform public.jobs_release(lane, items, array_fill(p_claim, array[cardinality(items)]), 0);
        end if;
        perform pgmq.set_vt('jobs_' || i.lane, i.msg_id, p_seconds)
        from public.email_deliveries d join public.job_items i on i.item_id = d.item_id
        where d.batch_id = batches[1] and d.status = 'sealed' and i.status = 'queued'
        order by i.msg_id;
        update public.job_items i
        set lease_id = p_claim, returned_lease = null, leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from public.email_deliveries d
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
                || case d.kind when 'monthly_reminder' then (
                    select jsonb_build_object('recorded', coalesce(sum(r.amount_eur * 100), 0)::bigint, 'entries', count(*))
                    from public.ca_records r
                    where r.user_id = d.user_id and r.year = left(d.facts ->> 'month', 4)::integer
                        and r.month = right(d.facts ->> 'month', 2)::integer) else '{}' end end,
            'reason', case when d.status = 'planned' and d.kind <> 'operator_digest'
                then public.mail_second_thoughts(d.kind, p, p_prices, moment) end,
            'expired', coalesce(d.expires_at <= moment, false),
            'age_seconds', extract(epoch from clock_timestamp() - b.sealed_at)::bigint)
            order by d.position, d.delivery_id), '[]')
        from (
            select * from public.email_deliveries where delivery_id = any (mine) and status = 'planned' and batches is null
            union all
            -- From the ledger, not from the items: one may have gone with its user, and the payload must not change.
            select * from public.email_deliveries where batch_id = batches[1] and status = 'sealed'
        ) d
        left join public.job_items i on i.item_id = d.item_id
        left join public.email_batches b on b.batch_id = d.batch_id
        -- A fence (offset 0): of all people only these.
        left join lateral (select * from public.mail_people m where m.user_id = d.user_id offset 0) p on true));
end $$;

-- Keeps mails invisible for another p_seconds; whether this claim still has all of them.
create function public.mail_extend(p_claim uuid, p_deliveries bigint[], p_seconds integer) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
begin
    perform public.mail_ledger_lock();
    return p_deliveries <@ public.mail_hold(p_claim, p_deliveries, p_seconds);
end $$;

-- Writes outcomes down: deliveries, items, messages, and what others read (marketing_emails). Call only under the
-- ledger's lock, with deliveries that mail_hold let pass.
create function public.mail_write(p_claim uuid, p_outcomes jsonb) returns void
language plpgsql security definer set search_path = '' as $$
declare
    batch record;
begin
    update public.email_deliveries d
    set status = o.status, reason = o.reason, provider_id = o.provider_id, settled_at = clock_timestamp()
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, provider_id text)
    where d.delivery_id = o.delivery_id;

    insert into public.marketing_emails (user_id, email_type, sent_at)
    select d.user_id, 'upgrade_day3', clock_timestamp()
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
    join public.email_deliveries d on d.delivery_id = o.delivery_id
    where d.kind = 'marketing_day3' and d.user_id is not null and o.status in ('sent', 'unknown')
    order by d.user_id
    on conflict (user_id, email_type) do nothing;

    update public.job_items i
    set status = case o.status when 'sent' then 'done' when 'skipped' then 'skipped' when 'expired' then 'skipped'
            else 'failed' end,
        result = jsonb_strip_nulls(jsonb_build_object('user_id', i.user_id, 'mail', o.status, 'reason', o.reason)),
        error = case when o.status in ('refused', 'failed', 'unknown')
            then jsonb_build_object('code', coalesce(o.code, o.status), 'message', o.reason) end,
        leased_until = null, settled_at = clock_timestamp()
    from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text, reason text, code text)
    join public.email_deliveries d on d.delivery_id = o.delivery_id
    where i.item_id = d.item_id and i.lease_id = p_claim and i.status = 'queued';
    for batch in
        select i.lane, array_agg(i.msg_id) as messages
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
        join public.email_deliveries d on d.delivery_id = o.delivery_id
        join public.job_items i on i.item_id = d.item_id
        where i.lease_id = p_claim group by i.lane
    loop
        perform pgmq.delete('jobs_' || batch.lane, batch.messages);
    end loop;

    update public.email_batches b set state = 'settled', ended_at = clock_timestamp()
    where b.state = 'sealed'
        and b.batch_id in (select d.batch_id from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint)
            join public.email_deliveries d on d.delivery_id = o.delivery_id)
        and not exists (select from public.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed');
end $$;

-- Seals a batch just before its first request: who gets it, what it says. Whoever has refused meanwhile, or has
-- another address, is left out; where nobody is left there is no batch. A repeated call gives the first one's answer.
-- p_mails: [{delivery_id, address, facts, digest}] in the order of the payload.
--   [delivery_id]: those that are in the batch
create function public.mail_seal(
    p_claim uuid, p_batch_id uuid, p_kind text, p_mails jsonb, p_prices jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    unwanted jsonb;
begin
    perform public.mail_ledger_lock();
    if not exists (select from public.email_batches where batch_id = p_batch_id) then
        held := public.mail_hold(p_claim,
            array(select (m ->> 'delivery_id')::bigint from jsonb_array_elements(p_mails) m), 60);
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id, 'status', 'skipped', 'reason', t.reason))
        into unwanted
        from public.email_deliveries d
        left join lateral (select * from public.mail_people m where m.user_id = d.user_id offset 0) p on true
        cross join lateral (select public.mail_second_thoughts(d.kind, p, p_prices,
            coalesce(p_now, clock_timestamp())) as reason) t
        where d.delivery_id = any (held) and d.kind <> 'operator_digest' and t.reason is not null;
        if unwanted is not null then
            perform public.mail_write(p_claim, unwanted);
        end if;
        insert into public.email_batches (batch_id, kind) values (p_batch_id, p_kind);
        update public.email_deliveries d
        set status = 'sealed', batch_id = p_batch_id, position = m.position, address = m.mail ->> 'address',
            facts = m.mail -> 'facts', digest = m.mail ->> 'digest', sealed_at = clock_timestamp()
        from jsonb_array_elements(p_mails) with ordinality as m (mail, position)
        where d.delivery_id = (m.mail ->> 'delivery_id')::bigint and d.delivery_id = any (held)
            and d.status = 'planned' and m.mail ->> 'address' = case d.kind when 'operator_digest' then d.facts ->> 'to'
                else (select u.email from auth.users u where u.id = d.user_id) end;
        -- A batch that nobody is in is none.
        if not found then
            delete from public.email_batches where batch_id = p_batch_id;
        end if;
    end if;
    return (select coalesce(jsonb_agg(d.delivery_id order by d.position), '[]')
        from public.email_deliveries d where d.batch_id = p_batch_id and d.status = 'sealed');
end $$;

-- Settles mails: sent, skipped, expired, refused (the address), failed, unknown. What another claim holds by now is
-- left to it. p_outcomes: [{delivery_id, status, reason, code, provider_id}]. Answers how many were written, by this
-- call or by an earlier one that it repeats.
create function public.mail_settle(p_claim uuid, p_outcomes jsonb) returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
begin
    perform public.mail_ledger_lock();
    held := public.mail_hold(p_claim,
        array(select (o ->> 'delivery_id')::bigint from jsonb_array_elements(p_outcomes) o), 60);
    perform public.mail_write(p_claim, (select coalesce(jsonb_agg(o), '[]') from jsonb_array_elements(p_outcomes) o
        where (o ->> 'delivery_id')::bigint = any (held)));
    return (select count(*)
        from jsonb_to_recordset(p_outcomes) as o (delivery_id bigint, status text)
        join public.email_deliveries d on d.delivery_id = o.delivery_id and d.status = o.status
        left join public.job_items i on i.item_id = d.item_id
        where i.item_id is null or i.lease_id = p_claim);
end $$;

-- Gives mails back. With an error it is an attempt, the fifth ends them: as unknown where they were sealed, as failed
-- otherwise. p_release_batch: the batch was definitely not accepted; its mails are free for another one.
-- A repeated call finds nothing that is held.
create function public.mail_give_back(
    p_claim uuid, p_deliveries bigint[], p_delay_seconds integer, p_error jsonb, p_release_batch uuid
) returns void language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    held bigint[];
    ended jsonb;
    batch record;
begin
    perform public.mail_ledger_lock();
    held := public.mail_hold(p_claim, p_deliveries, 60);
    if p_release_batch is not null then
        update public.email_batches set state = 'released', ended_at = clock_timestamp()
        where batch_id = p_release_batch and state = 'sealed'
            and not exists (select from public.email_deliveries d
                where d.batch_id = p_release_batch and d.status = 'sealed' and d.delivery_id <> all (held));
        if found then
            update public.email_deliveries
            set status = 'planned', batch_id = null, position = null, address = null, digest = null, sealed_at = null
            where delivery_id = any (held) and batch_id = p_release_batch;
        end if;
    end if;
    if p_error is not null then
        update public.job_items i set attempts = i.attempts + 1, error = p_error
        from public.email_deliveries d where d.delivery_id = any (held) and i.item_id = d.item_id;
        select jsonb_agg(jsonb_build_object('delivery_id', d.delivery_id,
            'status', case d.status when 'sealed' then 'unknown' else 'failed' end,
            'code', p_error ->> 'code', 'reason', p_error ->> 'message'))
        into ended
        from public.email_deliveries d join public.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.attempts >= 5;
        if ended is not null then
            perform public.mail_write(p_claim, ended);
        end if;
    end if;
    for batch in
        select i.lane, array_agg(i.item_id order by i.item_id) as items
        from public.email_deliveries d join public.job_items i on i.item_id = d.item_id
        where d.delivery_id = any (held) and i.status = 'queued' and i.lease_id = p_claim group by i.lane
    loop
        perform public.jobs_release(batch.lane, batch.items,
            array_fill(p_claim, array[cardinality(batch.items)]), p_delay_seconds);
    end loop;
end $$;

-- Splits a batch that was definitely refused into child batches, each under a key of its own.
-- p_children: [{batch_id, mails: [delivery_id]}]. A repeated call changes nothing. False: another claim has it.
create function public.mail_split(p_claim uuid, p_batch_id uuid, p_children jsonb) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '20s' as $$
declare
    members bigint[];
begin
    perform public.mail_ledger_lock();
    if exists (select from public.email_batches where batch_id = (p_children -> 0 ->> 'batch_id')::uuid) then
        return true;
    end if;
    members := array(select d.delivery_id from public.email_deliveries d
        where d.batch_id = p_batch_id and d.status = 'sealed');
    if cardinality(members) = 0 or not (members <@ public.mail_hold(p_claim, members, 60)) then
        return false;
    end if;
    insert into public.email_batches (batch_id, kind, parent_id)
    select (c ->> 'batch_id')::uuid, b.kind, p_batch_id
    from jsonb_array_elements(p_children) c, public.email_batches b where b.batch_id = p_batch_id;
    update public.email_deliveries d set batch_id = c.batch_id, position = m.position
    from jsonb_to_recordset(p_children) as c (batch_id uuid, mails jsonb),
        jsonb_array_elements_text(c.mails) with ordinality as m (delivery_id, position)
    where d.delivery_id = m.delivery_id::bigint and d.batch_id = p_batch_id and d.status = 'sealed';
    update public.email_batches set state = 'split', ended_at = clock_timestamp() where batch_id = p_batch_id;
    return true;
end $$;

-- What comes back ------------------------------------------------------------------------------------------

-- Stops one kind of mail for a user. A missing row stands for "no reminder": making it must not start one.
create function public.mail_unsubscribe(p_user_id uuid, p_kind text) returns boolean
language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    if public.mail_lane(p_kind) is null then
        raise exception 'unknown kind %', p_kind using errcode = '22023';
    end if;
    insert into public.email_preferences as e
        (user_id, monthly_reminder, monthly_recap_email, marketing_email, threshold_alert_email)
    select u.id, false, p_kind <> 'monthly_recap', p_kind <> 'marketing_day3', p_kind <> 'threshold_alert'
    from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set
        monthly_reminder = e.monthly_reminder and p_kind <> 'monthly_reminder',
        monthly_recap_email = case when p_kind = 'monthly_recap' then false else e.monthly_recap_email end,
        marketing_email = e.marketing_email and p_kind <> 'marketing_day3',
        threshold_alert_email = e.threshold_alert_email and p_kind <> 'threshold_alert',
        updated_at = clock_timestamp();
    return found;
end $$;

-- What the mail service reports of a mail, once for each event id. p_suppress (bounced, complained): no mail goes to
-- p_address any more. False: the event was known.
create function public.mail_feedback(
    p_event_id text, p_kind text, p_provider_id text, p_suppress text, p_address text
) returns boolean language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
begin
    insert into public.email_events (event_id, kind) values (p_event_id, p_kind) on conflict (event_id) do nothing;
    if not found then
        return false;
    end if;
    if p_suppress is not null and p_address is not null then
        insert into public.email_suppressions (address_hash, reason)
        values (public.mail_address_hash(p_address), p_suppress) on conflict (address_hash) do nothing;
    end if;
    if p_suppress is not null and p_provider_id is not null then
        update public.email_deliveries set feedback = p_suppress where provider_id = p_provider_id;
    end if;
    return true;
end $$;

-- Thresholds -------------------------------------------------------------------------------------------------

-- Turnover of the next p_limit users after p_after, as ca_records has it: added up by year and activity, typed and
-- imported apart; months that have both once more by month. Only users with a year that reaches its floor:
-- p_floors {year: cents}, in proportion to the days of a creation year. The year before each is told with it.
-- p_due: only users whose imported totals have changed since they were checked last; these answer in `due`.
--   {people: [{user_id, created, reason, held: [{year, threshold, step}], years: [{year, sums, mixed}]}],
--    due: [{user_id, since}], scanned, next}
create function public.threshold_books(
    p_after uuid, p_limit integer, p_user_id uuid, p_due boolean, p_floors jsonb
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    floors constant jsonb := p_floors;
    users uuid[];
    due jsonb;
    last_user uuid;
    first_year integer;
    last_year integer;
    people jsonb;
begin
    select min(y::integer) - 1, max(y::integer) into first_year, last_year from jsonb_object_keys(floors) y;
    if p_due then
        select array_agg(d.user_id order by d.user_id), jsonb_agg(jsonb_build_object('user_id', d.user_id, 'since', d.since))
        into users, due
        from (select * from public.threshold_checks_due q
              where p_after is null or q.user_id > p_after order by q.user_id limit p_limit) d;
    elsif p_user_id is not null then
        users := array(select u.id from auth.users u where u.id = p_user_id);
    else
        users := array(select u.id from auth.users u
            where p_after is null or u.id > p_after order by u.id limit p_limit);
    end if;
    last_user := users[cardinality(users)];

    with added as materialized (
        -- By the range of ids, so that the index is read in one piece.
        select r.user_id, r.year, r.activity_type as activity,
            (coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100)::bigint as typed,
            (coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100)::bigint as imported
        from public.ca_records r
        where r.user_id between users[1] and last_user and r.year between first_year and last_year
            and (not p_due or r.user_id = any (users))
        group by 1, 2, 3
    ), reached as materialized (
        select distinct a.user_id
        from added a left join public.user_onboarding_data o on o.user_id = a.user_id
        group by a.user_id, a.year, o.company_creation_date
        -- What is below zero must not hide what is above it in another activity.
        having sum(greatest(a.typed + a.imported, 0)) >= (floors ->> a.year::text)::bigint * case
            when a.year = extract(year from o.company_creation_date)
                then (make_date(a.year, 12, 31) - o.company_creation_date + 1) / 366.0
            else 1 end
    ), mixed as (
        select r.user_id, r.year, r.month, r.activity_type as activity,
            (coalesce(sum(r.amount_eur) filter (where r.source <> 'auto_sync'), 0) * 100)::bigint as typed,
            (coalesce(sum(r.amount_eur) filter (where r.source = 'auto_sync'), 0) * 100)::bigint as imported,
            bool_or(bool_or(r.source = 'auto_sync')) over w and bool_or(bool_or(r.source <> 'auto_sync')) over w as is_mixed
        from public.ca_records r
        where r.user_id in (select x.user_id from reached x) and r.year between first_year and last_year
        group by 1, 2, 3, 4
        window w as (partition by r.user_id, r.year, r.month)
    ), mixed_years as (
        select m.user_id, m.year, jsonb_agg(jsonb_build_object('month', m.month, 'activity', m.activity,
            'typed', m.typed, 'imported', m.imported) order by m.month, m.activity) as mixed
        from mixed m where m.is_mixed group by 1, 2
    ), years as (
        select a.user_id, a.year, jsonb_agg(jsonb_build_object(
            'activity', a.activity, 'typed', a.typed, 'imported', a.imported) order by a.activity) as sums
        from added a where a.user_id in (select x.user_id from reached x) group by 1, 2
    ), books as (
        select y.user_id, jsonb_agg(jsonb_build_object('year', y.year, 'sums', y.sums,
            'mixed', coalesce(m.mixed, '[]')) order by y.year) as years
        from years y left join mixed_years m using (user_id, year) group by 1
    ), held as (
        select t.user_id, jsonb_agg(jsonb_build_object('year', t.year, 'threshold', t.threshold, 'step', t.step)) as held
        from public.threshold_alerts t
        where t.user_id in (select x.user_id from reached x) and t.year between first_year and last_year group by 1
    )
    select jsonb_agg(jsonb_build_object(
        'user_id', b.user_id, 'created', o.company_creation_date, 'reason', public.mail_refusal(p, 'threshold_alert'),
        'held', coalesce(h.held, '[]'), 'years', b.years) order by b.user_id)
    into people
    from books b
    -- A fence (offset 0): of all people only these.
    cross join lateral (select * from public.mail_people m where m.user_id = b.user_id offset 0) p
    left join public.user_onboarding_data o on o.user_id = b.user_id
    left join held h on h.user_id = b.user_id;

    return jsonb_build_object('people', coalesce(people, '[]'), 'due', coalesce(due, '[]'),
        'scanned', coalesce(cardinality(users), 0),
        'next', case when p_user_id is null and cardinality(users) = p_limit then last_user end);
end $$;

-- Plans alerts: each step once for each user and year, in one mail for all that are new. p_append: to a run that is
-- there already (a sync whose totals changed). p_due: the marks that were checked, taken away unless set again since.
-- p_alerts: [{user_id, year, facts: {crossings: [{threshold, step, …}], …}, used_up: [{threshold, step}]}]
--   {state: planned | joined | repeated, run_id, plan: {items, …p_outline}}
create function public.jobs_plan_alerts(
    p_run_id uuid, p_append boolean, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz,
    p_parameters jsonb, p_alerts jsonb, p_due jsonb, p_outline jsonb
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    opened jsonb;
    outline jsonb;
    planned integer;
begin
    if p_append then
        opened := jsonb_build_object('state', 'planned', 'run_id', p_run_id);
    else
        opened := public.jobs_open_run(p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters);
        if opened ->> 'state' <> 'planned' then
            return opened;
        end if;
    end if;
    with alerts as (
        select a.user_id, a.year, a.facts, a.used_up
        from jsonb_to_recordset(p_alerts) as a (user_id uuid, year integer, facts jsonb, used_up jsonb)
        join auth.users u on u.id = a.user_id    -- gone since: nobody to tell
    ), marked as (
        insert into public.threshold_alerts (user_id, year, threshold, step, run_id)
        select a.user_id, a.year, s.threshold, s.step, p_run_id
        from alerts a, jsonb_to_recordset(a.used_up) as s (threshold text, step smallint)
        order by 1, 2, 3, 4
        on conflict (user_id, year, threshold, step) do nothing
        returning user_id, year, threshold, step
    ), fresh as (   -- of each alert, what nobody was faster to tell
        select a.user_id, a.year, a.facts, jsonb_agg(c.crossing order by c.n) as crossings,
            string_agg(c.crossing ->> 'threshold' || '-' || (c.crossing ->> 'step'), '+' order by c.n) as steps
        from alerts a, jsonb_array_elements(a.facts -> 'crossings') with ordinality as c (crossing, n)
        join marked m on m.threshold = c.crossing ->> 'threshold' and m.step = (c.crossing ->> 'step')::smallint
        where m.user_id = a.user_id and m.year = a.year
        group by a.user_id, a.year, a.facts
    )
    insert into public.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    select 'threshold_alert/' || f.user_id || '/' || f.year || '/' || f.steps, 'threshold_alert', f.user_id, f.user_id, p_run_id,
        f.facts || jsonb_build_object('crossings', f.crossings)
    from fresh f
    on conflict (dedupe_key) do nothing;

    planned := public.mail_queue(p_run_id, null);
    delete from public.threshold_checks_due d
    using jsonb_to_recordset(p_due) as q (user_id uuid, since timestamptz)
    where d.user_id = q.user_id and d.since = q.since;

    outline := p_outline || jsonb_build_object('items', planned);
    if not p_append then
        update public.job_runs set plan = outline where run_id = p_run_id;
    end if;
    return opened || jsonb_build_object('plan', outline);
end $$;

-- What follows from a settlement -----------------------------------------------------------------------------

-- The month's recap, where the run wants recaps and the user, too. Call in the settlement's transaction.
create function public.mail_plan_recap(p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb)
returns void language plpgsql security definer set search_path = '' as $$
declare
    i public.job_items;
    p public.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
begin
    select * into i from public.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from public.mail_people where user_id = p_user_id;
    if public.mail_refusal(p, 'monthly_recap') is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
        or not exists (select from public.integration_transactions t
            where t.user_id = p_user_id and t.paris_month = p_month) then
        return;
    end if;
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', coalesce(sum(s.gross + s.refunds), 0)::bigint,
        'sources', coalesce(jsonb_agg(jsonb_build_object(
            'source', s.provider, 'gross', s.gross, 'refunds', s.refunds) order by s.provider), '[]'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select (sum(r.amount_eur) * 100)::bigint from public.ca_records r
            where r.user_id = p_user_id and r.source <> 'auto_sync'
                and r.year = extract(year from p_month) and r.month = extract(month from p_month)),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        -- Something else: what is in other currencies and what was not read is told by itself.
        'partial', i.result ? 'unknown_movements' or (coalesce(i.result ->> 'month_status' = 'partial', true)
            and not i.result ? 'uncounted_currencies'
            and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)))
    into facts
    from (select c.provider, coalesce(sum(c.amount_minor) filter (where c.amount_minor > 0), 0) as gross,
            coalesce(sum(c.amount_minor) filter (where c.amount_minor < 0), 0) as refunds
          from public.integration_countable(p_user_id, array[p_month], false) c group by c.provider) s;
    insert into public.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform public.mail_queue(i.run_id, p_user_id);
    end if;
end $$;

-- How often in a row a user's integration was refused, and when they were told last.
alter table public.integration_state
    add column refusals integer not null default 0,
    add column trouble_mails integer not null default 0,
    add column trouble_mailed_at timestamptz;

-- Tells a user whose integration was refused three times in a row to connect it again; once more after 30 days, where
-- it still is. Refused: what connecting again mends. Call in the settlement's transaction.
create function public.mail_plan_trouble(p_item_id bigint, p_user_id uuid, p_parts jsonb) returns void
language plpgsql security definer set search_path = '' as $$
declare
    i public.job_items;
    s public.integration_state;
    p public.mail_people;
    part record;
begin
    select * into i from public.job_items where item_id = p_item_id;
    for part in
        select e ->> 'provider' as provider, e -> 'error' ->> 'code' as code, e -> 'error' ->> 'message' as message
        from jsonb_array_elements(p_parts) e
    loop
        if part.code is null then
            update public.integration_state k set refusals = 0, trouble_mails = 0
            where k.user_id = p_user_id and k.provider = part.provider and (k.refusals, k.trouble_mails) <> (0, 0);
            continue;
        end if;
        continue when part.code not in ('token_rejected', 'access_revoked', 'refresh_rejected', 'token_expired',
            'not_connected', 'account_mismatch', 'bad_shop_domain', 'unknown_account')
            -- Stripe's would be our own key's.
            and not (part.code = 'missing_scope' and part.provider = 'shopify');
        update public.integration_state k set refusals = k.refusals + 1
        where k.user_id = p_user_id and k.provider = part.provider returning * into s;
        select * into p from public.mail_people m where m.user_id = p_user_id;
        continue when s.refusals < 3 or s.trouble_mails >= 2
            or s.trouble_mailed_at > clock_timestamp() - interval '30 days'
            or public.mail_refusal(p, 'integration_trouble') is not null;
        insert into public.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts, expires_at)
        values ('integration_trouble/' || p_user_id || '/' || part.provider || '/' || i.item_id, 'integration_trouble',
            p_user_id, p_user_id, i.run_id, jsonb_build_object('provider', part.provider, 'reason', part.message,
                'read_until', s.last_success_to),
            clock_timestamp() + interval '7 days')
        on conflict (dedupe_key) do nothing;
        update public.integration_state k
        set trouble_mails = k.trouble_mails + 1, trouble_mailed_at = clock_timestamp()
        where k.user_id = p_user_id and k.provider = part.provider;
        perform public.mail_queue(i.run_id, p_user_id);
    end loop;
end $$;

-- Settling figures stays what it was; what follows from them is planned in the same transaction.
alter function public.integration_settle(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz)
    rename to integration_settle_figures;

-- integration_settle_figures, then what follows: "connect again", the month's recap, and a mark where totals changed:
-- thresholds are to be checked.
create function public.integration_settle(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    settled jsonb := public.integration_settle_figures(
        p_item_id, p_lease_id, p_user_id, p_chunk, p_final, p_parts, p_cursor, p_month, p_as_of);
begin
    if settled ->> 'state' <> 'settled' then
        return settled;
    end if;
    -- A repeated call finds what an earlier transaction settled: nothing follows from it again.
    if exists (select from public.job_items i
        where i.item_id = p_item_id and i.settled_at >= transaction_timestamp()) then
        perform public.mail_plan_trouble(p_item_id, p_user_id, p_parts);
    end if;
    -- Written in this transaction, whose clock began before.
    if exists (select from public.auto_sync_totals t
        where t.user_id = p_user_id and t.updated_at >= transaction_timestamp()) then
        insert into public.threshold_checks_due as d (user_id) values (p_user_id)
        on conflict (user_id) do update set since = excluded.since;
    end if;
    if p_month is not null then
        perform public.mail_plan_recap(p_item_id, p_user_id, p_month, p_as_of, p_parts);
    end if;
    return settled;
end $$;

-- Report -----------------------------------------------------------------------------------------------------

-- As before; a mail that was not wanted any more is no failure.
create or replace function public.jobs_close_runs() returns integer
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    closed integer;
begin
    with ended as (
        select r.run_id,
            count(*) filter (where i.status = 'done') as done,
            count(*) filter (where i.status = 'partial') as partial,
            count(*) filter (where i.status = 'failed') as failed,
            count(*) filter (where i.status = 'superseded') as superseded,
            count(*) filter (where i.status = 'skipped') as skipped
        from public.job_runs r left join public.job_items i using (run_id)
        where r.finished_at is null
            -- Asked first and by an index of its own: a run with work left is not added up each time.
            and not exists (select from public.job_items q where q.run_id = r.run_id and q.status = 'queued')
        group by r.run_id
    )
    update public.job_runs r
    set finished_at = clock_timestamp(),
        counts = jsonb_build_object('done', e.done, 'partial', e.partial, 'failed', e.failed,
            'superseded', e.superseded, 'skipped', e.skipped),
        status = case
            when e.failed + e.partial + e.superseded = 0 then 'success'
            when e.done + e.partial + e.superseded + e.skipped = 0 then 'error'
            else 'partial' end
    from ended e where r.run_id = e.run_id and r.finished_at is null;
    get diagnostics closed = row_count;
    return closed;
end $$;

-- What came of a run's items, whoever drained them: its data (integrations, months) and, by lane, its mails.
-- Closes what has nothing queued any more first.
--   {counts: {…}, in_flight, records, errors: [{code, message, count}], results: [first p_limit results],
--    results_total, mails: {lane: {planned, queued, sent, skipped, failed, erred, unsent: {reason: n},
--    errors: [{code, message, count}]}}}
create or replace function public.jobs_report(p_run_id uuid, p_limit integer) returns jsonb
language plpgsql volatile security definer set search_path = '' set statement_timeout = '28s' as $$
declare
    mail_lanes constant text[] := array['alerts', 'reminders', 'recaps', 'marketing'];
begin
    perform public.jobs_close_runs();
    return (
        select jsonb_build_object(
            'run_id', r.run_id, 'status', r.status, 'slot', r.slot, 'trigger', r.trigger, 'started_at', r.started_at,
            'plan', r.plan, 'counts', s.counts, 'in_flight', s.in_flight, 'records', s.records,
            'errors', (select coalesce(jsonb_agg(e), '[]') from (
                select error ->> 'code' as code, min(error ->> 'message') as message, count(*) as count
                from public.job_items
                where run_id = p_run_id and lane <> all (mail_lanes)
                    and error is not null and status in ('queued', 'partial', 'failed')
                group by 1 order by 3 desc, 1 limit 20) e),
            'results', (select coalesce(jsonb_agg(t.result order by t.item_id), '[]') from (
                select result, item_id from public.job_items
                where run_id = p_run_id and lane <> all (mail_lanes) and status in ('done', 'partial', 'failed')
                order by item_id limit p_limit) t),
            'results_total', s.results_total,
            'mails', (select coalesce(jsonb_object_agg(m.lane, to_jsonb(m) - 'lane' || jsonb_build_object(
                'unsent', (select coalesce(jsonb_object_agg(u.reason, u.n), '{}') from (
                    select coalesce(result ->> 'reason', result ->> 'mail') as reason, count(*) as n
                    from public.job_items where run_id = p_run_id and lane = m.lane and status = 'skipped' group by 1) u),
                'errors', (select coalesce(jsonb_agg(e), '[]') from (
                    select error ->> 'code' as code, min(error ->> 'message') as message, count(*) as count
                    from public.job_items
                    where run_id = p_run_id and lane = m.lane and error is not null and status in ('queued', 'failed')
                    group by 1 order by 3 desc, 1 limit 20) e))), '{}')
                from (select lane, count(*) as planned,
                        count(*) filter (where status = 'queued') as queued,
                        count(*) filter (where status = 'done') as sent,
                        count(*) filter (where status = 'skipped') as skipped,
                        count(*) filter (where status = 'failed') as failed,
                        count(*) filter (where status = 'failed' or (status = 'queued' and error is not null)) as erred
                      from public.job_items where run_id = p_run_id and lane = any (mail_lanes) group by lane) m))
        from public.job_runs r, (
            select jsonb_build_object(
                    'planned', count(*) filter (where data),
                    'queued', count(*) filter (where data and status = 'queued'),
                    'done', count(*) filter (where data and status = 'done'),
                    'partial', count(*) filter (where data and status = 'partial'),
                    'failed', count(*) filter (where data and status = 'failed'),
                    'superseded', count(*) filter (where data and status = 'superseded'),
                    -- Failed altogether or in part, or waiting for another attempt: what `errors` counts.
                    'erred', count(*) filter (where data and (status = 'failed'
                        or (status in ('partial', 'queued') and error is not null))))
                    as counts,
                count(*) filter (where status = 'queued' and leased_until > clock_timestamp()) as in_flight,
                coalesce(sum((result ->> 'records')::bigint), 0) as records,
                count(*) filter (where data and status in ('done', 'partial', 'failed')) as results_total
            from (select i.*, i.lane <> all (mail_lanes) as data from public.job_items i where i.run_id = p_run_id) i) s
        where r.run_id = p_run_id);
end $$;

-- Forgets what is older than 90 days: logs, events, finished runs and their items. Ledgers stay, without what is
-- personal after 13 months. At most 20,000 rows of a sort a call, so that it never takes long.
create or replace function public.jobs_prune() returns jsonb
language plpgsql security definer set search_path = '' set statement_timeout = '25s' as $$
declare
    old timestamptz := clock_timestamp() - interval '90 days';
    logs integer;
    items integer;
    runs integer;
    events integer;
    blanked integer;
    of_old integer;
begin
    delete from public.sync_logs where id in (
        select id from public.sync_logs where synced_at < old order by synced_at limit 20000);
    get diagnostics logs = row_count;
    delete from public.job_items where item_id in (
        select i.item_id from public.job_runs r join public.job_items i using (run_id)
        where r.finished_at < old limit 20000);
    get diagnostics items = row_count;
    delete from public.job_runs r
    where r.finished_at < old and not exists (select from public.job_items i where i.run_id = r.run_id);
    get diagnostics runs = row_count;
    delete from public.email_events where event_id in (
        select event_id from public.email_events where received_at < old limit 20000);
    get diagnostics events = row_count;
    -- What is personal of those who are gone: at once, but for a batch that may be sent again as sealed. Their items
    -- went with them, so nobody else ends what was still open.
    with gone as (
        select d.delivery_id, d.status from public.email_deliveries d
        where d.user_id is null and (d.address is not null or d.facts <> '{}' or d.status in ('planned', 'sealed'))
            and (d.status <> 'sealed' or exists (select from public.email_batches b
                where b.batch_id = d.batch_id and b.sealed_at < clock_timestamp() - interval '24 hours'))
        limit 20000 for update skip locked
    ), ended as (
        update public.email_deliveries d
        set address = null, facts = '{}',
            status = case g.status when 'planned' then 'skipped' when 'sealed' then 'unknown' else g.status end,
            reason = case when g.status in ('planned', 'sealed') then 'user_deleted' else d.reason end,
            settled_at = coalesce(d.settled_at, clock_timestamp())
        from gone g where d.delivery_id = g.delivery_id
        returning d.delivery_id, d.batch_id
    ), batches as (
        update public.email_batches b set state = 'settled', ended_at = clock_timestamp()
        where b.state = 'sealed' and b.batch_id in (select e.batch_id from ended e)
            and not exists (select from public.email_deliveries d where d.batch_id = b.batch_id and d.status = 'sealed'
                and d.delivery_id not in (select e.delivery_id from ended e))
    )
    select count(*) into blanked from ended;
    -- Of the others after 13 months.
    update public.email_deliveries set address = null, facts = '{}' where delivery_id in (
        select delivery_id from public.email_deliveries
        where (address is not null or facts <> '{}') and settled_at < clock_timestamp() - interval '13 months'
        limit 20000);
    get diagnostics of_old = row_count;
    blanked := blanked + of_old;
    return jsonb_build_object('logs', logs, 'items', items, 'runs', runs, 'events', events, 'blanked', blanked);
end $$;

-- Rights -----------------------------------------------------------------------------------------------------

revoke all on function
    public.mail_address_hash(text),
    public.mail_lane(text),
    public.mail_refusal(public.mail_people, text),
    public.mail_plans(jsonb, timestamptz),
    public.mail_marketing_candidates(uuid, jsonb, timestamptz),
    public.mail_reminder_candidates(uuid, jsonb, date, timestamptz),
    public.mail_queue(uuid, uuid),
    public.jobs_plan_mails(uuid, text, text, text, text, text, timestamptz, jsonb, uuid, boolean, jsonb, date, timestamptz),
    public.mail_ledger_lock(),
    public.mail_hold(uuid, bigint[], integer),
    public.mail_extend(uuid, bigint[], integer),
    public.mail_second_thoughts(text, public.mail_people, jsonb, timestamptz),
    public.mail_claim(uuid, integer, integer, jsonb, timestamptz),
    public.mail_write(uuid, jsonb),
    public.mail_seal(uuid, uuid, text, jsonb, jsonb, timestamptz),
    public.mail_settle(uuid, jsonb),
    public.mail_give_back(uuid, bigint[], integer, jsonb, uuid),
    public.mail_split(uuid, uuid, jsonb),
    public.mail_unsubscribe(uuid, text),
    public.mail_feedback(text, text, text, text, text),
    public.threshold_books(uuid, integer, uuid, boolean, jsonb),
    public.jobs_plan_alerts(uuid, boolean, text, text, text, text, timestamptz, jsonb, jsonb, jsonb, jsonb),
    public.mail_plan_recap(bigint, uuid, date, timestamptz, jsonb),
    public.mail_plan_trouble(bigint, uuid, jsonb),
    public.integration_settle_figures(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz),
    public.integration_settle(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz)
from public, anon, authenticated, service_role;
grant execute on function
    public.jobs_plan_mails(uuid, text, text, text, text, text, timestamptz, jsonb, uuid, boolean, jsonb, date, timestamptz),
    public.mail_claim(uuid, integer, integer, jsonb, timestamptz),
    public.mail_extend(uuid, bigint[], integer),
    public.mail_seal(uuid, uuid, text, jsonb, jsonb, timestamptz),
    public.mail_settle(uuid, jsonb),
    public.mail_give_back(uuid, bigint[], integer, jsonb, uuid),
    public.mail_split(uuid, uuid, jsonb),
    public.mail_unsubscribe(uuid, text),
    public.mail_feedback(text, text, text, text, text),
    public.threshold_books(uuid, integer, uuid, boolean, jsonb),
    public.jobs_plan_alerts(uuid, boolean, text, text, text, text, timestamptz, jsonb, jsonb, jsonb, jsonb),
    public.integration_settle(bigint, uuid, uuid, integer, boolean, jsonb, jsonb, date, timestamptz)
to service_role;

commit;
