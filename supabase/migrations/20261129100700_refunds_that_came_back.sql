-- What comes back of a refund of any other way to pay than a card has the refund's own category at Stripe: what was stored as a
-- refund that adds is a refund that failed. It counts as before, unless it was never paid (follow_movements).
--
-- Locks the rows that it changes: few. One transaction, lock_timeout 5 s. Safe to run twice.

begin;
set local lock_timeout = '5s';

update jobs.integration_transactions set kind = 'refund_failure', updated_at = clock_timestamp()
where provider = 'stripe' and kind = 'refund' and amount_minor > 0;

commit;
