-- Who may do what; the last file, and the only one about rights. Supabase's default privileges open every new table and
-- function of `public` to everybody, and PostgreSQL grants EXECUTE on every new function to PUBLIC: both are taken
-- back.

-- Ours: nobody but the owner, not even service_role. Row-level security without a policy, should somebody ever get in.
revoke all on schema jobs from public, anon, authenticated, service_role;
revoke all on all tables in schema jobs from public, anon, authenticated, service_role;
revoke all on all sequences in schema jobs from public, anon, authenticated, service_role;
revoke all on all functions in schema jobs from public, anon, authenticated, service_role;
do $$
declare
    name text;
begin
    for name in select c.oid::regclass from pg_catalog.pg_class c
        where c.relnamespace = 'jobs'::regnamespace and c.relkind = 'r'
    loop
        execute format('alter table %s enable row level security', name);
    end loop;
end $$;

-- What the code calls: service_role only. By name alone, which fails where a function has an overload.
revoke all on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_confirm_books, public.jobs_confirmations, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_reconcile, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_find_user, public.jobs_leave_account_out, public.jobs_lift_suppression, public.jobs_resend_mails,
    public.jobs_user, public.jobs_user_receipts,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_slot_missed,
    public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_keep_objections, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books, public.threshold_details
from public, anon, authenticated, service_role;
grant execute on function
    public.integration_context, public.integration_outages, public.integration_prove, public.integration_refresh_begin,
    public.integration_refresh_end, public.integration_refresh_store, public.integration_settle, public.jobs_claim,
    public.jobs_close_runs, public.jobs_confirm_books, public.jobs_confirmations, public.jobs_give_back, public.jobs_heartbeat, public.jobs_hold_chain,
    public.jobs_hold_turns, public.jobs_lanes, public.jobs_learn_pace, public.jobs_lease_turns, public.jobs_log, public.jobs_note_alerts,
    public.jobs_plan_alerts, public.jobs_plan_digest, public.jobs_plan_mails, public.jobs_plan_sync,
    public.jobs_prune, public.jobs_reconcile, public.jobs_release, public.jobs_report, public.jobs_retake_months,
    public.jobs_find_user, public.jobs_leave_account_out, public.jobs_lift_suppression, public.jobs_resend_mails,
    public.jobs_user, public.jobs_user_receipts,
    public.jobs_retry, public.jobs_run_waits,
    public.jobs_session_epoch, public.jobs_sign_in, public.jobs_sign_out, public.jobs_signed_in, public.jobs_slot_missed,
    public.jobs_status,
    public.jobs_troubles, public.jobs_user_exists, public.mail_claim, public.mail_extend, public.mail_feedback,
    public.mail_give_back, public.mail_keep_objections, public.mail_seal, public.mail_settle, public.mail_split, public.mail_unsubscribe,
    public.threshold_books, public.threshold_details
to service_role;
