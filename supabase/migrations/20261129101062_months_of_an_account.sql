-- An account that is taken out of the books, or back into them, has all of its months say anew what they are worth.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Takes an account out of a user's books, for who connected a wrong one by mistake, or back into them (p_out false).
-- Its movements stay in the ledger; taken out they count in no month, whatever is read, until it is taken back or
-- connected again in place of another. Repeating it changes nothing. An account that is not the user's is an error.
--   {months: [YYYY-MM] whose totals were added up again, left_alone: see recompute_totals}
create or replace function jobs.leave_account_out(
    p_user_id uuid, p_provider text, p_account text, p_out boolean, p_as_of timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    touched date[];
    left_alone jsonb;
begin
    perform pg_advisory_xact_lock(hashtextextended('comptalyze.jobs.user/' || p_user_id::text, 0));
    if not exists (select from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account))
        and not exists (select from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) then
        raise exception 'user % has no account % at %', p_user_id, p_account, p_provider using errcode = '22023';
    end if;
    update jobs.integration_state s set left_out = p_out, updated_at = p_as_of,
        counted = case when p_out or s.first_month is null then '{}'
            else coalesce(s.counted_before, datemultirange(daterange(s.first_month, null))) end,
        -- One that was never read has no months yet.
        counted_before = case when p_out and s.first_month is not null then s.counted end
    where s.user_id = p_user_id and s.provider = p_provider and s.account = p_account and s.left_out <> p_out;
    update jobs.former_accounts f set left_out = p_out,
        counted = case when p_out or f.first_month is null then '{}' else coalesce(f.counted_before, datemultirange(daterange(f.first_month,
            (date_trunc('month', f.replaced_at at time zone 'Europe/Paris') + interval '1 month')::date))) end,
        counted_before = case when p_out then f.counted end
    where f.user_id = p_user_id and f.provider = p_provider and f.account = p_account and f.left_out <> p_out;
    -- With the account, months may lack something, or no longer do, of which its ledger has no row.
    touched := array(
        select t.paris_month from jobs.integration_transactions t
        where t.user_id = p_user_id and t.provider = p_provider and t.account = p_account
        union
        select l.month from jobs.auto_sync_totals l
        join (select s.counted + coalesce(s.counted_before, '{}') as months from jobs.integration_state s
            where (s.user_id, s.provider, s.account) = (p_user_id, p_provider, p_account)
            union all
            select f.counted + coalesce(f.counted_before, '{}') from jobs.former_accounts f
            where (f.user_id, f.provider, f.account) = (p_user_id, p_provider, p_account)) b on b.months @> l.month
        where l.user_id = p_user_id);
    touched := touched || jobs.months_reported_twice(p_user_id, touched);
    left_alone := jobs.recompute_totals(p_user_id, touched, p_as_of);
    insert into jobs.threshold_checks_due as d (user_id, since) values (p_user_id, p_as_of)
    on conflict (user_id) do update set since = excluded.since;
    return jsonb_build_object('left_alone', left_alone, 'months', (
        select coalesce(jsonb_agg(to_char(m, 'YYYY-MM') order by m), '[]') from unnest(touched) m));
end $$;

commit;
