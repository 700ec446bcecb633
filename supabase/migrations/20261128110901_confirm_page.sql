-- The page on which users confirm what is twice says where books cannot be read, and where no answer was taken back.
--
-- Locks: nothing but the catalogue, for a moment. One transaction, lock_timeout 5 s. A second time it is refused and
-- changes nothing.

begin;
set local lock_timeout = '5s';

-- Whether a user's year can be read as far as its months with typed and imported turnover go (see mixed_months).
create function jobs.is_year_readable(p_user_id uuid, p_year integer) returns boolean
language sql stable set search_path = '' as $$
    select count(*) <= 50000 and not coalesce(bool_or(f.amount_eur = 'NaN'), false)
    from (select a.amount_eur from public.ca_records a where a.user_id = p_user_id and a.year = p_year limit 50001) f;
$$;

-- A user's answers, and the months of a year that they are about. is_readable: no amount of the year keeps months back.
--   {every: {verdict, at} | null, is_readable, months: [{month, typed, imported, verdict, is_own}]}, in cents
create or replace function jobs.confirmations(p_user_id uuid, p_year integer) returns jsonb
language sql stable set search_path = '' as $$
    select jsonb_build_object(
        'every', (select jsonb_build_object('verdict', a.verdict, 'at', a.confirmed_at)
            from jobs.book_confirmations a where a.user_id = p_user_id and a.month is null),
        'is_readable', jobs.is_year_readable(p_user_id, p_year),
        'months', (select coalesce(jsonb_agg(jsonb_build_object('month', to_char(m.month, 'YYYY-MM'),
                'typed', m.typed, 'imported', m.imported, 'verdict', m.verdict,
                'is_own', exists (select from jobs.book_confirmations a
                    where a.user_id = p_user_id and a.month = m.month)) order by m.month), '[]')
            from jobs.mixed_months(p_user_id, p_year) m));
$$;

-- Writes a user's answer down: for one month (its 1st), or (null) for every month, those to come too, in the place of all
-- answers before. p_verdict: distinct, same, or null, which withdraws the answer. The thresholds of the user are to be
-- checked again. Answers what the page shows then, and how many answers it has taken away.
create or replace function public.jobs_confirm_books(
    p_user_id uuid, p_year integer, p_month date, p_verdict text, p_now timestamptz
) returns jsonb language plpgsql security definer set search_path = '' set statement_timeout = '10s' as $$
declare
    withdrawn integer;
begin
    delete from jobs.book_confirmations a
    where a.user_id = p_user_id and a.verdict is distinct from p_verdict and (p_month is null or a.month = p_month)
        or a.user_id = p_user_id and p_month is null and a.month is not null;
    get diagnostics withdrawn = row_count;
    if p_verdict is not null then
        insert into jobs.book_confirmations (user_id, month, verdict, confirmed_at)
        select u.id, p_month, p_verdict, p_now from auth.users u where u.id = p_user_id
        on conflict (user_id, month) do nothing;     -- said before
    end if;
    insert into jobs.threshold_checks_due as d (user_id) select u.id from auth.users u where u.id = p_user_id
    on conflict (user_id) do update set since = excluded.since;
    return jobs.confirmations(p_user_id, p_year) || jsonb_build_object('withdrawn', withdrawn);
end $$;

-- Rights of the new function, as 90_rights.sql gives them.
revoke all on function jobs.is_year_readable from public, anon, authenticated, service_role;

commit;
