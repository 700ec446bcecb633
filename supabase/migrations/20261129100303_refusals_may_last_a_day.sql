-- A refusal that only its user can mend may last a day before a recap leaves without it.
--
-- Locks nothing but the catalogue. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

create or replace function jobs.recap_waits(
    p_run_id uuid, p_user_id uuid, p_month date, p_parts jsonb, p_policy jsonb, p_now timestamptz
) returns boolean language sql stable set search_path = '' as $$
    select coalesce(p_now < (p_month + interval '1 month'
                + make_interval(days => (p_policy ->> 'recap_waits_until')::integer - 1)) at time zone 'Europe/Paris', false)
        and exists (select from jobs.job_runs r where r.run_id = p_run_id and r.slot is not null)
        and exists (select from jsonb_array_elements(p_parts) e
            join jobs.integration_state s on s.user_id = p_user_id and s.provider = e ->> 'provider'
            where e -> 'error' ->> 'code' is not null
                and (not (p_policy -> 'users_codes') ? (e -> 'error' ->> 'code')
                    or s.last_success_at > p_now - make_interval(hours => (p_policy ->> 'recap_waits_hours')::integer)));
$$;

commit;
