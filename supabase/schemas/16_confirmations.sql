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

-- Months of these users with money in currencies that no total has. Our mails ask to type it, so that what was typed for
-- such a month is not what was imported: an answer for every month that it is the same is not about these.
create function jobs.foreign_months(p_users uuid[]) returns table (user_id uuid, month date)
language plpgsql stable set search_path = '' as $$
#variable_conflict use_column
begin
    return query
    select distinct t.user_id, t.month from jobs.foreign_movements(p_users) t;
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
