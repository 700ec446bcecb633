-- A row that a provider told without its id is missing until it is told with it.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

-- Brings the rows of a provider up to what is known since they were stored: a kind that this version has learned
-- (p_kinds: {the provider's name: our kind}), payments of which another row says that they failed, what took back a
-- refund that was never paid, and rows without an id that are told with theirs now. The months that this touches.
create or replace function jobs.follow_movements(p_user_id uuid, p_provider text, p_kinds jsonb, p_now timestamptz) returns date[]
language plpgsql set search_path = '' as $$
declare
    answer date[];
begin
    with learned as (
        update jobs.integration_transactions t set kind = p_kinds ->> t.source_kind, updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and p_kinds ->> t.source_kind is not null and t.kind = 'unknown'
        returning t.paris_month
    ), failures as materialized (
        select r, t.paris_month from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'charge_failure'
            and r !~ '^pi_'
    ), failed as (
        update jobs.integration_transactions t set state = 'failed', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'payment' and t.state is distinct from 'failed'
            and exists (select from failures)
            and exists (select from failures f where f.r = any (t.refs))
        returning t.paris_month, t.refs
    ), unpaid as materialized (
        select r from jobs.integration_transactions t, unnest(t.refs) r
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'failed' and t.kind = 'refund'
            and r ~ '^(re|pyr)_'
    ), undone as (
        update jobs.integration_transactions t set state = 'never_paid', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.kind = 'refund_failure'
            and t.state is distinct from 'never_paid'
            and exists (select from unpaid)
            and exists (select from unpaid u where u.r = any (t.refs))
        returning t.paris_month
    ), named as (
        update jobs.integration_transactions t set kind = 'no_turnover', updated_at = p_now
        where t.user_id = p_user_id and t.provider = p_provider and t.excluded = 'unknown_kind'
            and t.source_kind in ('row_without_id', 'dispute:without_id')
            and exists (select from jobs.integration_transactions x
                where x.user_id = p_user_id and x.provider = p_provider and x.paris_month = t.paris_month
                    and x.excluded is distinct from 'unknown_kind' and x.account = t.account and x.listed_at = t.listed_at
                    and (x.amount_minor, x.currency) is not distinct from (t.amount_minor, t.currency))
        returning t.paris_month
    )
    select coalesce(array_agg(distinct m.paris_month), '{}')
    into answer
    from (select paris_month from learned
        union all select paris_month from failed
        union all select paris_month from undone
        union all select paris_month from named
        -- What took it back counted once, too, where it was stored before failures were followed.
        union all select f.paris_month from failed p join failures f on f.r = any (p.refs)) m;
    return answer;
end $$;

commit;
