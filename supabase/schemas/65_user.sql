-- What an operator sees of one user: who they are, their connections, their months, one month's movements, their mails.
-- No address leaves the database whole, and no token at all. Each list has its bound.

-- The account that an operator looks for, by its id or its whole address; null: there is none. Where an address has several,
-- the one that is not deleted, the oldest first.
create function public.jobs_find_user(p_who text) returns uuid
language sql stable security definer set search_path = '' set statement_timeout = '10s' as $$
    select u.id from auth.users u
    where u.id::text = lower(btrim(p_who)) or lower(u.email::text) = lower(btrim(p_who))
    order by u.deleted_at is not null, u.created_at limit 1;
$$;

-- Who somebody is, what they wish and what keeps mail from them. Plan: null where their price is not known.
create function jobs.user_person(p_user_id uuid, p_prices jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'user_id', p.user_id, 'address', jobs.mask_address(p.address), 'signed_up_at', jobs.readable_instant(p.created_at),
        'plan', l.plan, 'unreachable', jobs.mail_refusal(p, 'integration_trouble', p_now),
        'suppressed_for', s.reason, 'suppressed_at', s.created_at,
        'wants', jsonb_build_object('threshold_alert', p.wants_alerts, 'monthly_reminder', p.wants_reminder,
            'monthly_recap', p.wants_recap, 'marketing_day3', p.wants_marketing),
        'flaws', (select coalesce(jsonb_agg(jsonb_build_object('flaw', k.flaw, 'since', k.since) order by k.part), '[]')
            from jobs.unreadable_input k where k.user_id = p.user_id))
    from (select * from jobs.mail_people m where m.user_id = p_user_id offset 0) p
    left join lateral (select * from jobs.user_plans(p_prices, p_now) u where u.user_id = p_user_id) l on true
    left join jobs.email_suppressions s on s.address_hash = jobs.address_hash(p.address);
$$;

-- Both of a user's integrations, also one that was taken away since. Late: without a success since p_late_before.
create function jobs.user_connections(p_user_id uuid, p_late_before timestamptz, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce(jsonb_agg(jsonb_build_object(
        'provider', v.provider, 'account', left(s.account, 120),
        'claimed_account', left(jobs.readable_identifier(jobs.claimed_account(t)), 120),
        'is_proven', coalesce(s.proof = jobs.token_fingerprint(t), false),
        'state', case
            when t.id is null then 'gone'
            when t.is_active is not true or u.deleted_at is not null or u.banned_until > p_now then 'inactive'
            when s.failures > 0 then 'failing'
            when s.last_success_at is null then 'new'
            when s.last_success_at < p_late_before then 'late'
            else 'good' end,
        'connected_at', jobs.readable_instant(t.connected_at), 'first_month', to_char(s.first_month, 'YYYY-MM'),
        'activity', s.activity, 'left_out', coalesce(s.left_out, false),
        'last_success_at', s.last_success_at, 'read_to', s.last_success_to, 'deep_read_to', s.deep_read_to,
        'failures', coalesce(s.failures, 0), 'failed_at', s.failed_at,
        'code', left(s.failure ->> 'code', 80), 'message', jobs.mask_text(s.failure ->> 'message'),
        'refusals', coalesce(s.refusals, 0), 'trouble_mailed_at', s.trouble_mailed_at,
        -- Such a token cannot be renewed.
        'is_permanent', t.provider = 'shopify' and jobs.is_blank(t.refresh_token),
        'token_expires_at', s.token_expires_at, 'reads_all_orders', s.all_orders,
        'also_claimed_by', (select count(*) from public.integration_tokens o
            where o.provider = t.provider and o.user_id <> t.user_id
                -- As the index integration_tokens_account has it.
                and case o.provider when 'stripe' then o.stripe_account_id else o.shop_domain end = jobs.claimed_account(t)))
        order by v.provider), '[]')
    from (values ('shopify'), ('stripe')) as v (provider)
    join auth.users u on u.id = p_user_id
    left join public.integration_tokens t on t.user_id = p_user_id and t.provider = v.provider
    left join jobs.integration_state s on s.user_id = p_user_id and s.provider = v.provider
    where t.id is not null or s.user_id is not null;
$$;

-- The accounts whose movements a user's ledger holds, and what became of their books; 20 at most, the present ones first.
create function jobs.user_accounts(p_user_id uuid) returns jsonb
language sql stable set search_path = '' set jit = off as $$
    with read as materialized (
        select t.provider, t.account, count(*) as movements, min(t.paris_month) as first, max(t.paris_month) as latest
        from jobs.integration_transactions t where t.user_id = p_user_id group by 1, 2
    ), known as (
        select s.provider, s.account, s.first_month, s.left_out, null::timestamptz as replaced_at
        from jobs.integration_state s where s.user_id = p_user_id and s.account is not null
        union all
        select f.provider, f.account, f.first_month, f.left_out, f.replaced_at
        from jobs.former_accounts f where f.user_id = p_user_id
    )
    select coalesce(jsonb_agg(to_jsonb(a) order by a.replaced_at desc nulls first, a.provider), '[]') from (
        select k.provider, left(k.account, 120) as account, to_char(k.first_month, 'YYYY-MM') as first_month, k.left_out,
            k.replaced_at, coalesce(r.movements, 0) as movements,
            to_char(r.first, 'YYYY-MM') as movements_from, to_char(r.latest, 'YYYY-MM') as movements_to
        from known k left join read r on r.provider = k.provider and r.account = k.account
        order by k.replaced_at desc nulls first, k.provider limit 20) a;
$$;

-- The last p_limit items that read something of a user's.
create function jobs.user_reads(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with theirs as materialized (   -- by the user's index: by the items' own order all users' would be read
        select i.item_id, i.kind from jobs.job_items i where i.user_id = p_user_id
    ), latest as materialized (
        select t.item_id from theirs t where t.kind in ('sync_integration', 'sync_month') order by t.item_id desc limit p_limit
    )
    select coalesce(jsonb_agg(jsonb_build_object(
        'lane', i.lane, 'month', left(i.payload ->> 'month', 7), 'trigger', r.trigger, 'status', i.status,
        'attempts', i.attempts, 'records', coalesce(i.result -> 'records', '0'), 'created_at', i.created_at,
        'settled_at', i.settled_at, 'code', left(i.error ->> 'code', 80), 'message', jobs.mask_text(i.error ->> 'message'))
        order by i.item_id desc), '[]')
    from latest l join jobs.job_items i using (item_id) join jobs.job_runs r using (run_id);
$$;

-- A user's last p_limit months that have anything: movements, rows of the books, a recap. Cents.
--   {total, shown: [{month, movements, uncounted, computed, imported, typed, flaw, is_edited, worth, recap, recapped}]}
-- computed: what the movements say, as it was added up last; worth: what it is worth, as ca_records says.
create function jobs.user_months(p_user_id uuid, p_limit integer) returns jsonb
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

-- Each movement of some of a user's months, with why it does not count in the books (null: it counts):
--   left_out: its account was taken out of the books; before_connection: the month is the user's own;
--   reported_twice: Stripe reports the same money, and that counts; else see why_excluded
create function jobs.judged_movements(p_user_id uuid, p_months date[])
returns table (
    provider text, external_id text, account text, kind text, source_kind text, occurred_at timestamptz,
    first_seen_at timestamptz, updated_at timestamptz, amount_minor bigint, currency text, state text, method text,
    refs text[], original jsonb, reason text)
language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with twice as materialized (
        select w.external_id from jobs.movements_reported_twice(p_user_id, p_months, true) w
        where exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'stripe')
            and exists (select from jobs.integration_transactions x where x.user_id = p_user_id and x.provider = 'shopify')
    )
    select t.provider, t.external_id, t.account, t.kind, t.source_kind, t.occurred_at, t.first_seen_at, t.updated_at,
        t.amount_minor, t.currency, t.state, t.method, t.refs, t.original,
        case
            when coalesce(f.left_out, s.left_out) then 'left_out'
            when coalesce(f.counted, s.counted) @> t.paris_month is not true then 'before_connection'
            -- What was told in another currency, too.
            when w.external_id is not null and (t.excluded is null or t.excluded in ('currency', 'unresolved_currency'))
                then 'reported_twice'
            when t.excluded is not null then t.excluded end
    from jobs.integration_transactions t
    left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    left join twice w on t.provider = 'shopify' and w.external_id = t.external_id
    where t.user_id = p_user_id and t.paris_month = any (p_months);
$$;

-- A user's month: its figure and what it is worth, what the books say beside it, what was mailed, and a page of its movements
-- (p_uncounted: only of those that do not count). Cents.
create function jobs.user_month(
    p_user_id uuid, p_month date, p_uncounted boolean, p_offset integer, p_limit integer, p_now timestamptz
) returns jsonb language sql stable set search_path = '' set enable_nestloop = off set jit = off as $$
    with judged as materialized (
        select * from jobs.judged_movements(p_user_id, array[p_month])
    ), wanted as materialized (
        select j.provider, j.external_id,
            row_number() over (order by coalesce(j.occurred_at, j.first_seen_at), j.provider, j.external_id) as n
        from judged j where not p_uncounted or j.reason is not null
    ), page as materialized (
        select j.*, w.n from wanted w join judged j on j.provider = w.provider and j.external_id = w.external_id
        where w.n > p_offset and w.n <= p_offset + p_limit
    ), twice as materialized (
        select g.external_id, g.amount_minor, r as name from page g, unnest(g.refs) r where g.reason = 'reported_twice'
    ), names as materialized (   -- of the payment; where the shop names none (a refund), those of its order
        select t.external_id, t.amount_minor, t.name from twice t where t.name !~ '^gid:'
        union
        select t.external_id, t.amount_minor, n
        from twice t
        join (select s.refs, o from jobs.integration_transactions s, unnest(s.refs) o
            where s.user_id = p_user_id and s.provider = 'shopify' and exists (select from twice)) s on s.o = t.name
        cross join unnest(s.refs) n
        where t.name ~ '^gid:' and n !~ '^gid:'
    ), twins as materialized (
        select distinct on (n.external_id) n.external_id, p.external_id as twin
        from names n
        join (select t.external_id, t.amount_minor, t.occurred_at, r as name
            from jobs.integration_transactions t, unnest(t.refs) r
            where t.user_id = p_user_id and t.provider = 'stripe' and t.kind in ('payment', 'partial_capture', 'refund')
                and exists (select from twice)) p using (name)
        where (p.amount_minor > 0) = (n.amount_minor > 0)
        order by n.external_id, abs(p.amount_minor - n.amount_minor), p.occurred_at, p.external_id
    )
    select jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'total', (select coalesce(sum(j.amount_minor), 0)::bigint from judged j where j.reason is null),
        'counted', (select count(*) from judged j where j.reason is null),
        'sources', (select coalesce(jsonb_agg(s order by s.provider), '[]') from (
            select j.provider, coalesce(sum(j.amount_minor) filter (where j.amount_minor > 0), 0)::bigint as gross,
                coalesce(sum(j.amount_minor) filter (where j.amount_minor < 0), 0)::bigint as refunds
            from judged j where j.reason is null group by 1) s),
        'uncounted', (select coalesce(jsonb_agg(u order by u.count desc, u.reason), '[]') from (
            select j.reason, left(j.currency, 20) as currency, count(*) as count, sum(j.amount_minor)::bigint as amount
            from judged j where j.reason is not null group by 1, 2 order by 3 desc, 1 limit 30) u),
        'worth', jobs.month_worth(p_user_id, p_month, p_now),
        'recorded', (select jsonb_build_object('typed', r.typed, 'imported', r.imported, 'entries', r.entries,
            'flaw', r.flaw) from jobs.recorded_months(p_user_id) r where r.month = p_month),
        'rows', (select coalesce(jsonb_agg(r order by r.is_imported, r.amount desc nulls first), '[]')
            from jobs.recorded_rows(p_user_id, p_month, 30) r),
        'totals', (select coalesce(jsonb_agg(jsonb_build_object('activity', l.activity,
            'computed', jobs.readable_cents(l.computed_eur), 'recorded', jobs.readable_cents(r.amount_eur),
            'is_gone', r.id is null, 'edited_at', l.locked_at) order by l.activity), '[]')
            from jobs.auto_sync_totals l left join public.ca_records r on r.id = l.record_id and r.user_id = l.user_id
            where l.user_id = p_user_id and l.month = p_month),
        'recap', (select jsonb_build_object('status', d.status, 'reason', jobs.mask_text(d.reason), 'settled_at', d.settled_at,
            'total', d.facts -> 'total', 'provisional_at', d.facts -> 'provisional_at')
            from jobs.email_deliveries d
            where d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM')),
        'movements_total', (select count(*) from wanted),
        'movements', (select coalesce(jsonb_agg(jsonb_build_object(
            'provider', g.provider, 'id', left(g.external_id, 120), 'account', left(g.account, 120), 'kind', g.kind,
            'source_kind', left(g.source_kind, 80), 'at', g.occurred_at, 'amount', g.amount_minor,
            'currency', left(g.currency, 20), 'state', left(g.state, 40), 'method', left(g.method, 60), 'reason', g.reason,
            'twin', left(w.twin, 120), 'original_amount', left(g.original ->> 'amount', 40),
            'original_currency', left(g.original ->> 'currency', 20), 'first_seen_at', g.first_seen_at,
            'updated_at', g.updated_at) order by g.n), '[]')
            from page g left join twins w on g.provider = 'shopify' and w.external_id = g.external_id));
$$;

-- A user's last p_limit mails, and what became of each. About: the month, the year or the source, as the mail's key has it.
--   {total, shown: […]}
create function jobs.user_mails(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    with theirs as materialized (
        select d.delivery_id, count(*) over () as total from jobs.email_deliveries d where d.user_id = p_user_id
        order by d.planned_at desc, d.delivery_id desc limit p_limit
    )
    select jsonb_build_object('total', coalesce(max(t.total), 0), 'shown', coalesce(jsonb_agg(jsonb_build_object(
        'delivery_id', d.delivery_id, 'kind', d.kind, 'about', left(split_part(d.dedupe_key, '/', 3), 40), 'status', d.status,
        'reason', jobs.mask_text(d.reason), 'feedback', d.feedback, 'service_id', left(d.provider_id, 80),
        'not_before', d.not_before, 'planned_at', d.planned_at, 'settled_at', d.settled_at, 'expires_at', d.expires_at,
        'attempts', case when d.status in ('planned', 'sealed') then i.attempts end,
        'waits_for', case when d.status in ('planned', 'sealed') then jobs.mask_text(i.error ->> 'message') end)
        order by d.planned_at desc, d.delivery_id desc), '[]'))
    from theirs t join jobs.email_deliveries d using (delivery_id) left join jobs.job_items i on i.item_id = d.item_id;
$$;

-- What a user has confirmed of months with both typed and imported turnover: of every month, and of the last p_limit months
-- that have an answer of their own.
--   {every: {verdict, at} | null, months: [{month, verdict, at}]}
create function jobs.user_confirmations(p_user_id uuid, p_limit integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'every', (select jsonb_build_object('verdict', a.verdict, 'at', a.confirmed_at)
            from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null),
        'months', (select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'), 'verdict', m.verdict,
                'at', m.confirmed_at) order by m.month desc), '[]')
            from (select * from jobs.book_confirmations a where a.user_id = p_user_id and a.month is not null
                order by a.month desc limit p_limit) m));
$$;

-- The mails that a user might have expected: the offer after the sign-up, the reminder and the recap of each of the last
-- p_months months and of this one, and the definitive total of those whose recap has left. With the delivery's status where there is one, else with why there is none, by what they
-- wish and are today. Items older than p_kept_since are gone.
--   [{kind, month, status, reason, message, at}]
create function jobs.user_expected_mails(
    p_user_id uuid, p_prices jsonb, p_months integer, p_first_day integer, p_last_day integer, p_kept_since timestamptz,
    p_now timestamptz
) returns jsonb language sql stable set search_path = '' as $$
    with person as materialized (
        select m.* from jobs.mail_people m where m.user_id = p_user_id
    ), today as (
        select (p_now at time zone 'Europe/Paris')::date as day
    ), months as materialized (
        select m::date as month, (m + interval '1 month')::date as after, t.day, to_char(m, 'YYYY-MM') as name
        from person p cross join today t
        cross join generate_series(date_trunc('month', t.day::timestamp) - make_interval(months => p_months),
            date_trunc('month', t.day::timestamp), interval '1 month') m
        where (m + interval '1 month') at time zone 'Europe/Paris' > p.created_at
    ), theirs as materialized (
        select i.item_id, i.kind, i.status, i.payload, i.error from jobs.job_items i where i.user_id = p_user_id
    ), reads as materialized (
        select distinct on (i.payload ->> 'month') i.payload ->> 'month' as name, i.item_id, i.status, i.error,
            i.payload ->> 'recap' = 'true' as has_recap
        from theirs i where i.kind = 'sync_month' and i.status <> 'superseded'
        order by i.payload ->> 'month', i.item_id desc
    ), told as (
        select 1 as place, 'monthly_recap' as kind, n.name as month, d.status, d.reason as said, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after - 1 then 'not_due_yet'
                when not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
                    then 'no_connection'
                when i.item_id is null and n.after::timestamp at time zone 'Europe/Paris' < p_kept_since then 'not_kept'
                when i.item_id is null then 'month_not_read'
                when i.status = 'queued' then 'month_waits'
                when i.status = 'failed' then 'month_failed'
                when i.has_recap is not true then 'data_only'
                when jobs.mail_refusal(p, 'monthly_recap', p_now) is not null then jobs.mail_refusal(p, 'monthly_recap', p_now)
                when not jobs.month_has_news(p_user_id, n.month) then 'no_movement'
                else 'changed_since' end as reason,
            case when d.status is null then i.error ->> 'message' end as message
        from months n cross join person p
        left join reads i on i.name = n.name
        left join jobs.email_deliveries d on d.dedupe_key = 'monthly_recap/' || p_user_id || '/' || n.name
        union all
        select 2, 'monthly_reminder', n.name, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after + 1 then 'not_due_yet'
                when jobs.mail_skip_reason_now('monthly_reminder', p, p_prices, p_now) is not null
                    then jobs.mail_skip_reason_now('monthly_reminder', p, p_prices, p_now)
                when p.created_at > (n.after + 2)::timestamp at time zone 'Europe/Paris' then 'signed_up_since'
                when not exists (select from jobs.job_slots s
                    where s.task = 'monthly_reminders' and s.slot = to_char(n.after, 'YYYY-MM')) then 'run_missed'
                else 'changed_since' end, null
        from months n cross join person p
        left join jobs.email_deliveries d on d.dedupe_key = 'monthly_reminder/' || p_user_id || '/' || n.name
        where n.after <= n.day
        union all
        -- As definitive_candidates finds them.
        select 3, 'definitive_month', n.name, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when n.day < n.after + 1 then 'not_due_yet'
                when r.delivery_id is not null then 'told_by_reminder'
                when (c.facts ->> 'total')::bigint = (select coalesce(sum(l.computed_eur), 0) * 100
                    from jobs.auto_sync_totals l where l.user_id = p_user_id and l.month = n.month) then 'month_unchanged'
                when jobs.mail_refusal(p, 'definitive_month', p_now) is not null
                    then jobs.mail_refusal(p, 'definitive_month', p_now)
                when not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active)
                    then 'no_connection'
                when not exists (select from jobs.job_slots s
                    where s.task = 'monthly_reminders' and s.slot = to_char(n.after, 'YYYY-MM')) then 'run_missed'
                else 'changed_since' end, null
        from months n cross join person p
        join jobs.email_deliveries c on c.dedupe_key = 'monthly_recap/' || p_user_id || '/' || n.name
            and c.status = 'sent' and c.facts ? 'total'
        left join jobs.email_deliveries r on r.dedupe_key = 'monthly_reminder/' || p_user_id || '/' || n.name
        left join jobs.email_deliveries d on d.dedupe_key = 'definitive_month/' || p_user_id || '/' || n.name
        where n.after <= n.day
        union all
        select 4, 'marketing_day3', null, d.status, d.reason, d.settled_at,
            case
                when d.status is not null then null
                when t.day < s.day + p_first_day then 'not_due_yet'
                when jobs.mail_skip_reason_now('marketing_day3', p, p_prices, p_now) is not null
                    then jobs.mail_skip_reason_now('marketing_day3', p, p_prices, p_now)
                when t.day > s.day + p_last_day then 'expired'
                else 'waits_for_run' end, null
        from person p cross join today t
        cross join lateral (select (p.created_at at time zone 'Europe/Paris')::date as day) s
        left join jobs.email_deliveries d on d.dedupe_key = 'marketing_day3/' || p_user_id
    )
    select coalesce(jsonb_agg(jsonb_build_object('kind', t.kind, 'month', t.month, 'status', t.status,
        'reason', coalesce(jobs.mask_text(t.said), t.reason), 'message', jobs.mask_text(t.message), 'at', t.settled_at)
        order by t.place, t.month desc), '[]')
    from told t;
$$;

-- Everything that the page of one user shows; null: there is no such user. Changes nothing.
-- p_month: the month that is opened, or null; p_uncounted, p_offset, p_limit: which of its movements. p_prices: see
-- user_plans. For p_late_before see user_connections; for the other days see user_expected_mails.
--   {person, connections, accounts, reads, months, month, mails, expected, told: [{year, threshold, step, at, to_verify, withdrawn_at}],
--   confirmations, check_due}
create function public.jobs_user(
    p_user_id uuid, p_month date, p_uncounted boolean, p_offset integer, p_limit integer, p_prices jsonb,
    p_late_before timestamptz, p_first_day integer, p_last_day integer, p_kept_since timestamptz, p_now timestamptz
) returns jsonb language plpgsql stable security definer
set search_path = '' set statement_timeout = '20s' set jit = off as $$
declare
    person jsonb := jobs.user_person(p_user_id, p_prices, p_now);
begin
    if person is null then
        return null;
    end if;
    return jsonb_build_object(
        'person', person,
        'connections', jobs.user_connections(p_user_id, p_late_before, p_now),
        'accounts', jobs.user_accounts(p_user_id),
        'reads', jobs.user_reads(p_user_id, 12),
        'months', jobs.user_months(p_user_id, 60),
        'month', case when p_month is not null
            then jobs.user_month(p_user_id, p_month, p_uncounted, p_offset, p_limit, p_now) end,
        'mails', jobs.user_mails(p_user_id, 40),
        'expected', jobs.user_expected_mails(p_user_id, p_prices, 3, p_first_day, p_last_day, p_kept_since, p_now),
        'told', (select coalesce(jsonb_agg(jsonb_build_object('year', a.year, 'threshold', a.threshold, 'step', a.step,
            'at', a.created_at, 'to_verify', a.told_as = 'to_verify', 'withdrawn_at', a.withdrawn_at) order by a.year desc, a.created_at desc, a.threshold, a.step), '[]')
            from (select * from jobs.threshold_alerts k where k.user_id = p_user_id
                order by k.year desc, k.created_at desc limit 60) a),
        'confirmations', jobs.user_confirmations(p_user_id, 24),
        'check_due', exists (select from jobs.threshold_checks_due d where d.user_id = p_user_id));
end $$;

-- A user's receipts of some months, as the books count them, by date: a part of p_limit rows after p_offset.
--   {total, rows: [[day, id, kind, provider, method, cents]]}
create function public.jobs_user_receipts(
    p_user_id uuid, p_first date, p_last date, p_offset integer, p_limit integer
) returns jsonb language sql stable security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
    with counted as materialized (
        select (j.occurred_at at time zone 'Europe/Paris')::date as day, j.external_id, j.kind, j.provider, j.method,
            j.amount_minor, row_number() over (order by j.occurred_at, j.provider, j.external_id) as n
        from jobs.judged_movements(p_user_id, array(
            select m::date from generate_series(p_first::timestamp, p_last::timestamp, interval '1 month') m)) j
        where j.reason is null
    )
    select jsonb_build_object('total', (select count(*) from counted), 'rows', coalesce((
        select jsonb_agg(jsonb_build_array(c.day, regexp_replace(left(c.external_id, 80), '[[:cntrl:]]', ' ', 'g'), c.kind,
            c.provider, regexp_replace(left(c.method, 40), '[[:cntrl:]]', ' ', 'g'), c.amount_minor) order by c.n)
        from counted c where c.n > p_offset and c.n <= p_offset + p_limit), '[]'));
$$;
