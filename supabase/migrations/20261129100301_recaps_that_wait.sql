-- Recaps wait for an integration that was not read for a reason that may pass; months come back as soon as one of their
-- integrations can be read again, and are read up to then.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

create or replace function public.jobs_claim(p_claim uuid, p_lane text, p_limit integer, p_seconds integer)
returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '15s' as $$
declare
    begun constant timestamptz := clock_timestamp();
    wanted integer := p_limit;
    emptied boolean := false;
    message record;
    read_ids bigint[];
    read_items bigint[];
    alive bigint[];
    orphans bigint[];
begin
    if exists (select from jobs.job_items where lease_id = p_claim and status = 'queued') then
        wanted := 0;
    end if;
    while wanted > 0 and clock_timestamp() < begun + interval '10 s' loop
        -- After a round with orphans there are probably more of them: look at many at once.
        select array_agg(m.msg_id order by m.msg_id), array_agg((m.message ->> 'item_id')::bigint order by m.msg_id)
        into read_ids, read_items
        from pgmq.read('jobs_' || p_lane, p_seconds, case when orphans is null then wanted else 1000 end) m;
        emptied := read_ids is null;
        exit when emptied;

        -- Without a condition on the status, which statistics may not know of yet: by the primary key.
        select array_agg(l.item_id) filter (where l.status = 'queued') into alive from (
            select i.item_id, i.status from jobs.job_items i
            where i.item_id = any (read_items) order by i.item_id for update) l;
        update jobs.job_items i
        set lease_id = p_claim, msg_id = p.msg_id, returned_lease = null,
            leased_until = clock_timestamp() + make_interval(secs => p_seconds)
        from (select * from unnest(read_ids, read_items) as t (msg_id, item_id)
              where item_id = any (alive) order by msg_id limit wanted) p
        where i.item_id = p.item_id;

        -- Seen while looking for orphans, and more than wanted: visible again.
        for message in
            select t.msg_id from unnest(read_ids, read_items) as t (msg_id, item_id)
            where t.item_id = any (alive) order by t.msg_id offset wanted
        loop
            perform pgmq.set_vt('jobs_' || p_lane, message.msg_id, 0);
        end loop;
        wanted := wanted - coalesce(cardinality(alive), 0);

        -- Their item is settled, superseded, or gone with its user.
        select array_agg(t.msg_id) into orphans from unnest(read_ids, read_items) as t (msg_id, item_id)
        where alive is null or t.item_id <> all (alive);
        exit when orphans is null;
        perform pgmq.delete('jobs_' || p_lane, orphans);
    end loop;
    if not emptied and wanted = p_limit and p_limit > 0 then
        return 'null'::jsonb;
    end if;

    return coalesce((
        select jsonb_agg(jsonb_build_object(
            'item_id', i.item_id, 'run_id', i.run_id, 'version', i.version, 'kind', i.kind, 'subject', i.subject,
            'user_id', i.user_id, 'payload', i.payload, 'progress', i.progress, 'attempts', i.attempts,
            'as_of', r.as_of, 'is_replay', r.as_of < i.created_at) order by i.item_id)
        from jobs.job_items i join jobs.job_runs r using (run_id)
        where i.lease_id = p_claim and i.status = 'queued'), '[]');
end $$;

create or replace function jobs.recap_waits(
    p_run_id uuid, p_user_id uuid, p_month date, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns boolean language sql stable set search_path = '' as $$
    select coalesce(p_now < (p_month + interval '1 month'
                + make_interval(days => (p_policy ->> 'recap_waits_until')::integer - 1)) at time zone 'Europe/Paris', false)
        and exists (select from jobs.job_runs r where r.run_id = p_run_id and r.slot is not null)
        and exists (select from jsonb_array_elements(p_parts) e
            join jobs.integration_state s on s.user_id = p_user_id and s.provider = e ->> 'provider'
            where e -> 'error' ->> 'code' is not null
                and (not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code') or s.failures <= 1));
$$;

drop function if exists jobs.plan_recap(bigint, uuid, date, timestamptz, jsonb, timestamptz);

create or replace function jobs.plan_recap(
    p_item_id bigint, p_user_id uuid, p_month date, p_as_of timestamptz, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns void language plpgsql set search_path = '' as $$
declare
    i jobs.job_items;
    p jobs.mail_people;
    over boolean := p_as_of >= (p_month + interval '1 month') at time zone 'Europe/Paris';
    facts jsonb;
    flaws jsonb;
    is_empty boolean;
    in_books boolean := jobs.is_in_books(p_user_id, p_month);
begin
    select * into i from jobs.job_items where item_id = p_item_id;
    if i.payload ->> 'recap' is distinct from 'true' or i.status not in ('done', 'partial') then
        return;
    end if;
    select * into p from jobs.mail_people where user_id = p_user_id;
    if jobs.mail_refusal(p, 'monthly_recap', p_now) is not null
        or not exists (select from public.integration_tokens t where t.user_id = p_user_id and t.is_active) then
        return;
    end if;
    -- Connected after the month: whoever looks at everybody's month once it is over finds it in no books. A replay of its
    -- last day sees it as it was.
    if not in_books and over and exists (select from jobs.job_runs r where r.run_id = i.run_id and r.slot is not null)
        and not exists (select from jobs.integration_state s where s.user_id = p_user_id and s.first_month <= p_month) then
        return;
    end if;
    if jobs.recap_waits(i.run_id, p_user_id, p_month, p_parts, p_policy, p_now) then
        update jobs.job_items set result = result || '{"recap_waits": true}' where item_id = p_item_id;
        return;
    end if;
    -- Nothing was sold, and all of it was read: told to those who sold before, since it is declared as 0 as well. Who
    -- typed something knows what to declare.
    is_empty := in_books and coalesce(i.result ->> 'month_status' in ('complete', 'provisional'), false)
        and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)
        and not exists (select from jobs.movements_in_books(p_user_id, array[p_month]))
        and (select m.typed is null and m.flaw is null from jobs.month_books(p_user_id, p_month) m)
        and jobs.has_books_before(p_user_id, p_month);
    if not is_empty and not jobs.month_has_news(p_user_id, p_month) then
        return;
    end if;
    flaws := jobs.month_flaws(p_user_id, p_month, p_as_of);
    facts := jobs.recap_amounts(p_user_id, p_month) || jsonb_build_object(
        'month', to_char(p_month, 'YYYY-MM'),
        'provisional_at', case when not over then p_as_of end,
        'typed', (select m.typed from jobs.month_books(p_user_id, p_month) m),
        'uncounted', coalesce(i.result -> 'uncounted_currencies', '[]'),
        'unread', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null),
        'not_theirs', (select coalesce(jsonb_agg(e ->> 'provider' order by e ->> 'provider'), '[]')
            from jsonb_array_elements(p_parts) e
            where not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')),
        'maybe_twice', coalesce((flaws ->> 'maybe_twice')::integer, 0),
        'passed_on', coalesce((flaws ->> 'passed_on')::integer, 0),
        -- Something else: what is in other currencies, what was not read, what may count twice and what a platform
        -- passed on is told by itself.
        'partial', flaws - array['currency', 'unresolved_currency', 'maybe_twice', 'passed_on'] <> '{}'
            or (coalesce(i.result ->> 'month_status' = 'partial', true) and flaws = '{}'
                and not exists (select from jsonb_array_elements(p_parts) e where e -> 'error' ->> 'code' is not null)));
    insert into jobs.email_deliveries (dedupe_key, kind, user_id, recipient, run_id, facts)
    values ('monthly_recap/' || p_user_id || '/' || to_char(p_month, 'YYYY-MM'), 'monthly_recap', p_user_id, p_user_id,
        i.run_id, facts)
    on conflict (dedupe_key) do nothing;
    if found then
        perform jobs.queue_mails(i.run_id, p_user_id, p_now);
    end if;
end $$;

create or replace function jobs.recap_anew(p_user_id uuid, p_facts jsonb, p_now timestamptz) returns jsonb
language sql stable set search_path = '' as $$
    select coalesce((
        select jobs.recap_amounts(p_user_id, o.month) || jsonb_build_object('provisional_at', null, 'unread', '[]'::jsonb,
            'not_theirs', '[]'::jsonb,
            'uncounted', jobs.uncounted_currencies(p_user_id, array[o.month]),
            'typed', (select m.typed from jobs.month_books(p_user_id, o.month) m),
            'maybe_twice', l.lacks -> 'maybe_twice', 'passed_on', l.lacks -> 'passed_on', 'partial', l.lacks -> 'partial')
        from to_date(p_facts ->> 'month', 'YYYY-MM') as o (month)
        cross join lateral (select jobs.month_lacks(p_user_id, o.month, p_now) as lacks offset 0) l
        where p_facts ->> 'provisional_at' is not null
            and p_now >= (o.month + interval '1 month') at time zone 'Europe/Paris'
            and l.lacks @> '{"read_whole": true}'), '{}');
$$;

create or replace function public.integration_settle(
    p_item_id bigint, p_lease_id uuid, p_user_id uuid, p_chunk integer, p_final boolean, p_parts jsonb,
    p_cursor jsonb, p_month date, p_as_of timestamptz, p_reconnect jsonb, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '28s' set enable_seqscan = off set jit = off as $$
declare
    settled jsonb := jobs.settle_figures(
        p_item_id, p_lease_id, p_user_id, p_chunk, p_final, p_parts, p_cursor, p_month, p_as_of, p_now);
begin
    if settled ->> 'state' <> 'settled' then
        return settled;
    end if;
    if not settled ? 'repeated' then
        perform jobs.plan_reconnect_mail(p_item_id, p_user_id, p_parts, p_reconnect, p_now);
    end if;
    -- Written in this transaction, whose clock began before.
    if exists (select from jobs.auto_sync_totals t
        where t.user_id = p_user_id and t.updated_at >= transaction_timestamp()) then
        insert into jobs.threshold_checks_due as d (user_id) values (p_user_id)
        on conflict (user_id) do update set since = excluded.since;
    end if;
    if p_month is not null then
        perform jobs.plan_recap(p_item_id, p_user_id, p_month, p_as_of, p_parts, p_reconnect, p_now);
    end if;
    return settled - 'repeated';
end $$;

create or replace function jobs.owed_months(p_now timestamptz)
returns table (item_id bigint, user_id uuid, month text, error jsonb, tries bigint)
language sql stable set search_path = '' as $$
    with latest as materialized (
        select max(s.slot) as month from jobs.job_slots s
        where s.task = 'monthly_sync' and s.slot ~ '^[0-9]{4}-[0-9]{2}$'
    ), runs as materialized (   -- as an array, so that items are looked up and not all of them read
        select array_agg(s.run_id) as ids from jobs.job_slots s, latest l
        where s.task = 'monthly_sync' and (s.slot = l.month or s.slot like l.month || '/%')
    ), failed as materialized (
        select i.subject, max(i.item_id) as item_id, count(*) as tries
        from jobs.job_items i
        where i.run_id = any ((select r.ids from runs r)::uuid[]) and i.kind = 'sync_month'
            and (i.status = 'failed' or i.status = 'partial' and i.result ? 'recap_waits')
        group by 1
    )
    select f.item_id, i.user_id, l.month, i.error, f.tries
    from failed f join jobs.job_items i using (item_id) cross join latest l
    where not exists (select from jobs.job_items n
            where n.user_id = i.user_id and n.kind = i.kind and n.subject = i.subject and n.item_id > f.item_id
                and n.status not in ('failed', 'superseded') and n.payload ->> 'month' = l.month)
        and exists (select from public.integration_tokens t join auth.users u on u.id = t.user_id
            where t.user_id = i.user_id and t.is_active and u.deleted_at is null
                and coalesce(u.banned_until <= p_now, true));
$$;

create or replace function public.jobs_retake_months(
    p_run_id uuid, p_occasion text, p_route text, p_last_day integer, p_users_codes text[], p_recap boolean,
    p_as_of timestamptz, p_now timestamptz
) returns jsonb language plpgsql security definer
set search_path = '' set statement_timeout = '25s' set jit = off as $$
declare
    again bigint[];
    month text;
    opened jsonb;
    planned integer;
begin
    select array_agg(o.item_id), min(o.month) into again, month
    from jobs.owed_months(p_now) o
    where (p_as_of at time zone 'Europe/Paris')::date
            < (to_date(o.month, 'YYYY-MM') + interval '1 month')::date + p_last_day
        and (coalesce(o.error ->> 'code', '') <> all (p_users_codes) or o.tries = 1
            or exists (select from public.integration_tokens t
                left join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
                where t.user_id = o.user_id and t.is_active
                    and (coalesce(s.failures, 0) = 0 or coalesce(s.failure ->> 'code', '') <> all (p_users_codes))))
        and exists (select from jobs.job_items i where i.item_id = o.item_id and i.created_at < p_now);
    -- A repeated call finds nothing any more: its run answers.
    if again is null and not exists (select from jobs.job_runs r where r.run_id = p_run_id) then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    opened := jobs.open_run(p_run_id, 'monthly_sync', month || '/' || p_occasion, 'cron', p_route, p_as_of,
        jsonb_build_object('retaken', month), p_now);
    if opened ->> 'state' = 'repeated' then
        return jsonb_build_object('run_id', p_run_id, 'items', coalesce(opened -> 'plan' -> 'items', '0'));
    elsif opened ->> 'state' <> 'planned' then
        return jsonb_build_object('run_id', null, 'items', 0);
    end if;
    insert into jobs.job_items (run_id, lane, kind, subject, user_id, payload, created_at, waiting_since)
    select p_run_id, i.lane, i.kind, i.subject, i.user_id, i.payload || jsonb_build_object('recap', p_recap), p_now,
        p_now
    from jobs.job_items i where i.item_id = any (again) order by i.item_id;
    get diagnostics planned = row_count;
    perform jobs.send_items(p_run_id);
    update jobs.job_runs set plan = jsonb_build_object('items', planned) where run_id = p_run_id;
    return jsonb_build_object('run_id', p_run_id, 'items', planned);
end $$;

revoke all on function jobs.recap_waits, jobs.plan_recap from public, anon, authenticated, service_role;

commit;
