-- Runs and slots: what was asked for, and which occasion of a cron it stands for.

create table jobs.job_runs (
    run_id uuid primary key,
    task text not null,
    slot text,                                   -- null: asked for by hand, blocks nobody
    trigger text not null check (trigger in ('cron', 'manual', 'replay')),
    route text not null,
    as_of timestamptz not null,                  -- the instant the run works for (a replay: in the past)
    parameters jsonb not null default '{}',
    plan jsonb not null default '{}',            -- what planning answered, given again when planning is repeated
    status text not null default 'running' check (status in ('running', 'success', 'partial', 'error')),
    counts jsonb not null default '{}',
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,                     -- by the function's clock: retention goes by it
    took interval                                -- measured by the database, from started_at to the end
);
create index job_runs_open on jobs.job_runs (started_at) where finished_at is null;
create index job_runs_task on jobs.job_runs (task, started_at desc);
-- The last runs for everybody: the application asks for single users all day long.
create index job_runs_whole on jobs.job_runs (task, started_at desc) where not (parameters ? 'user_id');
create index job_runs_single on jobs.job_runs (as_of) where parameters ? 'user_id';
-- The oldest runs first, without a look at the others: every question about a single user leaves a run, too.
create index job_runs_finished on jobs.job_runs (finished_at) where finished_at is not null;

create table jobs.job_slots (
    task text not null,
    slot text not null,
    run_id uuid not null,
    claimed_at timestamptz not null,
    primary key (task, slot)
);

-- Opens a run, or says which one already has the slot. A repeated call finds the first one's run.
--   {state: planned | joined | repeated, run_id, trigger, started_at, plan}
create function jobs.open_run(
    p_run_id uuid, p_task text, p_slot text, p_trigger text, p_route text, p_as_of timestamptz, p_parameters jsonb,
    p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
    r jobs.job_runs;
begin
    if p_slot is not null then
        -- Waits for a concurrent claim of the same slot: it either commits (joined) or rolls back (ours).
        insert into jobs.job_slots (task, slot, run_id, claimed_at) values (p_task, p_slot, p_run_id, p_now)
        on conflict (task, slot) do nothing;
        if not found then
            select j.* into r from jobs.job_slots s join jobs.job_runs j using (run_id)
            where s.task = p_task and s.slot = p_slot;
            if r.run_id is null then  -- the run is gone after its 90 days, the slot is not
                return jsonb_build_object('state', 'joined', 'run_id', null, 'plan', '{}'::jsonb);
            elsif r.run_id <> p_run_id then
                return jsonb_build_object('state', 'joined', 'run_id', r.run_id, 'plan', r.plan,
                    'trigger', r.trigger, 'started_at', r.started_at);
            end if;
        end if;
    end if;
    -- A repeated call waits here for the first one, which may still be at it.
    insert into jobs.job_runs (run_id, task, slot, trigger, route, as_of, parameters)
    values (p_run_id, p_task, p_slot, p_trigger, p_route, p_as_of, p_parameters)
    on conflict (run_id) do nothing;
    if not found then
        select * into r from jobs.job_runs where run_id = p_run_id;
        return jsonb_build_object('state', 'repeated', 'run_id', r.run_id, 'plan', r.plan);
    end if;
    return jsonb_build_object('state', 'planned', 'run_id', p_run_id, 'plan', '{}'::jsonb);
end $$;

-- Whether nobody has taken this slot, although this installation was at work before it opened (p_opens): then a later
-- cron makes it up. What was due before anything ever ran here is owed to nobody.
create function public.jobs_slot_missed(p_task text, p_slot text, p_opens timestamptz) returns boolean
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select not exists (select from jobs.job_slots s where s.task = p_task and s.slot = p_slot)
        and (exists (select from jobs.job_runs r where r.finished_at < p_opens)
            -- Not ended yet. A replay works for an instant at which nothing ran.
            or exists (select from jobs.job_runs r
                where r.finished_at is null and r.as_of < p_opens and r.trigger <> 'replay'));
$$;

-- Whether there is such a user: who asks for one by id may have mistyped it.
create function public.jobs_user_exists(p_user_id uuid) returns boolean
language sql stable security definer set search_path = '' set statement_timeout = '5s' as $$
    select exists (select from auth.users u where u.id = p_user_id);
$$;
