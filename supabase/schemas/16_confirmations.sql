-- What users have confirmed of their books: whether what they typed and what was imported for one month is the same
-- money. The page behind the link in a mail writes it (41_confirmations.sql); the books are read by it
-- (17_user_input.sql).

-- An answer for one month stands before the one for every month. Who has withdrawn an answer has no row any more.
create table jobs.book_confirmations (
    user_id uuid not null references auth.users (id) on delete cascade,
    month date,                                      -- its 1st; null: every month without an answer of its own
    verdict text not null check (verdict in ('distinct', 'same')),
    confirmed_at timestamptz not null,
    unique nulls not distinct (user_id, month)
);

-- Movements of these users that are in no total, since they are in another currency, and that the other provider tells in
-- euros, and counts or follows: nothing is missing for them. One movement explains one: a payment by the name of its charge, a
-- refund by its own, or by the charge, or the order that names it, and the same amount in the money of one of the two.
create function jobs.told_in_euros(p_users uuid[]) returns table (user_id uuid, provider text, external_id text)
language plpgsql stable set search_path = '' set enable_nestloop = off set jit = off as $$
#variable_conflict use_column
declare
    asked uuid[] := array(      -- almost always none
        select f.user_id from (select distinct t.user_id, t.provider from jobs.integration_transactions t
            where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')) f
        where exists (select from jobs.integration_transactions x
            where x.user_id = f.user_id and x.provider = case f.provider when 'stripe' then 'shopify' else 'stripe' end));
begin
    if asked = '{}' then
        return;
    end if;
    return query
    with judged as materialized (
        select t.user_id, t.provider, t.external_id, t.amount_minor > 0 as is_in, t.occurred_at, t.refs,
            coalesce(t.excluded in ('currency', 'unresolved_currency'), false) as is_foreign,
            t.currency || t.amount_minor as money, (t.original ->> 'currency') || (t.original ->> 'amount_minor') as bought
        from jobs.integration_transactions t
        join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
        left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
        where t.user_id = any (asked) and t.kind in ('payment', 'partial_capture', 'refund')
            and (t.excluded in ('currency', 'unresolved_currency') or t.excluded is null
                or t.provider = 'stripe' and t.excluded in ('pending', 'failed'))
            and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
    ), of_orders as materialized (      -- by which names an order was paid
        select distinct p.user_id, o as of_order, n as name
        from judged p cross join unnest(p.refs) o cross join unnest(p.refs) n
        where p.provider = 'shopify' and p.is_in and o ~ '^gid:' and n ~ '^(ch|py|pi)_'
    ), keys as materialized (
        select j.user_id, j.provider, j.external_id, j.is_in, j.is_foreign, j.occurred_at, n as key
        from judged j cross join unnest(j.refs) n
        where case when j.is_in then n ~ '^(ch|py|pi)_' else n ~ '^(re|pyr)_' end
        union
        select j.user_id, j.provider, j.external_id, j.is_in, j.is_foreign, j.occurred_at, n || ' ' || m.money
        from (select r.*, n from judged r cross join unnest(r.refs) n where not r.is_in and n ~ '^(ch|py|pi)_'
            union
            select r.*, o.name from judged r cross join unnest(r.refs) g
            join of_orders o on o.user_id = r.user_id and o.of_order = g where not r.is_in) j (
                user_id, provider, external_id, is_in, occurred_at, refs, is_foreign, money, bought, n)
        cross join unnest(array[j.money, j.bought]) m (money) where m.money is not null
    ), numbered as materialized (
        select k.*, row_number() over (partition by k.user_id, k.provider, k.is_foreign, k.is_in, k.key
            order by k.occurred_at, k.external_id) as nth
        from keys k
    )
    select distinct f.user_id, f.provider, f.external_id
    from numbered f join numbered c using (user_id, is_in, key, nth)
    where f.is_foreign and not c.is_foreign and f.provider <> c.provider;
end $$;

-- Months of these users with money in currencies that no total has. Our mails ask to type it, so that what was typed for
-- such a month is not what was imported: an answer for every month that it is the same is not about these.
create function jobs.foreign_months(p_users uuid[]) returns table (user_id uuid, month date)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    return query
    select distinct t.user_id, t.paris_month
    from jobs.integration_transactions t
    join jobs.integration_state s on s.user_id = t.user_id and s.provider = t.provider
    left join jobs.former_accounts f on (f.user_id, f.provider, f.account) = (t.user_id, t.provider, t.account)
    where t.user_id = any (p_users) and t.excluded in ('currency', 'unresolved_currency')
        and not coalesce(f.left_out, s.left_out) and coalesce(f.counted, s.counted) @> t.paris_month
        and (t.user_id, t.provider, t.external_id) not in (
            select e.user_id, e.provider, e.external_id from jobs.told_in_euros(p_users) e);
end $$;

-- What a user has confirmed of a month: distinct, same, or null.
create function jobs.book_verdict(p_user_id uuid, p_month date) returns text
language plpgsql stable set search_path = '' as $$
declare
    own text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month = p_month);
    general text := (select a.verdict from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null);
begin
    return case when own is not null then own
        when general = 'same' and jobs.uncounted_currencies(p_user_id, array[p_month]) <> '[]' then null    -- see foreign_months
        else general end;
end $$;

-- Whether a side of a month counts, the typed or the imported one: both do, but where the user has confirmed that they
-- are the same money. Then the greater one counts; of equals the typed one, whose activity is the user's own word. A
-- side that is not above zero is in nothing twice.
create function jobs.side_counts(p_is_imported boolean, p_typed numeric, p_imported numeric, p_verdict text)
returns boolean language sql immutable as $$
    select p_verdict is distinct from 'same' or least(p_typed, p_imported) <= 0
        or (p_imported > p_typed) = p_is_imported;
$$;
