-- Mails: the outbox, which is the permanent ledger, too.
--
-- A mail is planned (a delivery, an item, a message: one transaction), then sealed with others into a batch just
-- before the batch's first request, then settled. A sealed batch is only ever sent again as sealed, under its own
-- key; after a definite refusal it is released or split into child batches. A delivery's dedupe_key is unique for
-- ever: nothing that is planned twice is sent twice.

create table jobs.email_batches (
    batch_id uuid primary key,                   -- with a prefix: the Idempotency-Key of its requests
    kind text not null,
    state text not null default 'sealed' check (state in ('sealed', 'released', 'split', 'settled')),
    parent_id uuid,                              -- split off that one, which was refused
    sealed_at timestamptz not null,
    ended_at timestamptz
);

create table jobs.email_deliveries (
    delivery_id bigint generated always as identity primary key,
    dedupe_key text not null unique,
    kind text not null check (jobs.lane_of_mail(kind) is not null),
    user_id uuid references auth.users (id) on delete set null,
    recipient uuid,                              -- the user, also when they are gone: signed into the mail's links;
                                                 -- null: the operator, whose address is among the facts
    run_id uuid not null,                        -- outlives its run
    item_id bigint,                              -- since it was claimed
    facts jsonb not null default '{}',           -- what the mail says; complete and final once sealed
    address text,                                -- since it was sealed
    digest text,                                 -- of the mail as rendered when it was sealed
    batch_id uuid references jobs.email_batches (batch_id),
    position integer,                            -- within the batch: its payload has an order
    status text not null default 'planned'
        check (status in ('planned', 'sealed', 'sent', 'skipped', 'expired', 'refused', 'failed', 'unknown')),
    reason text,                                 -- why it was not sent
    provider_id text,                            -- as the mail service names it
    feedback text,                               -- what came back of it: see jobs.feedback_rank
    planned_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz,                      -- not sent from then on
    sealed_at timestamptz,
    settled_at timestamptz,
    feedback_at timestamptz,                     -- since when it is known not to have arrived, as feedback says
    not_before timestamptz                       -- a second attempt that waits until then; it has no item yet
);
create index email_deliveries_planned on jobs.email_deliveries (run_id, user_id) where status = 'planned';
create index email_deliveries_batch on jobs.email_deliveries (batch_id) where status = 'sealed';
create index email_deliveries_user on jobs.email_deliveries (user_id);
create index email_deliveries_provider on jobs.email_deliveries (provider_id) where provider_id is not null;
create index email_deliveries_personal on jobs.email_deliveries (settled_at) where address is not null or facts <> '{}';
create index email_deliveries_gone on jobs.email_deliveries (delivery_id)
    where user_id is null and (address is not null or facts <> '{}' or status in ('planned', 'sealed'));
create index email_deliveries_came_back on jobs.email_deliveries (kind, feedback_at) where feedback is not null;
create index email_deliveries_put_off on jobs.email_deliveries (not_before) where not_before is not null;
create index email_deliveries_settled on jobs.email_deliveries (settled_at) include (kind, status);

-- Addresses that no mail goes to, as hashes.
create table jobs.email_suppressions (
    address_hash bytea primary key,
    reason text not null check (reason in ('bounced', 'complained', 'suppressed')),
    created_at timestamptz not null default clock_timestamp()
);

-- Webhooks of the mail service, by their svix-id: each has its effect once.
create table jobs.email_events (
    event_id text primary key,
    kind text not null,
    received_at timestamptz not null,
    provider_id text,                            -- the mail that it is about
    outcome text                                 -- what it says of that mail: see jobs.feedback_rank
);
create index email_events_received on jobs.email_events (received_at);
create index email_events_provider on jobs.email_events (provider_id) where outcome is not null;
