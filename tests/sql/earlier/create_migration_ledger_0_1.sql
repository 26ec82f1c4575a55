-- As release 0.1.0 shipped it, for the test of its upgrade.
-- The ledger: every run and every job, what was converted and how it was before, and who may store a dataset.
-- Label's own tables are not referred to by foreign keys: the application deletes its rows as it likes.

-- States and their allowed arrows, in one place. The database refuses any other (see the trigger below).
create table if not exists migration_state_arrows (
    machine    text not null check (machine in ('run', 'job')),
    from_state text not null,                          -- '' means: the row is new
    to_state   text not null,
    meaning    text not null,
    constraint migration_state_arrows_pkey primary key (machine, from_state, to_state)
);
comment on table migration_state_arrows is 'The two state machines of the ledger: the only arrows a run or a job may take';

insert into migration_state_arrows (machine, from_state, to_state, meaning) values
    ('run', '',          'planned',   'the run and its jobs are written; nothing has been sent yet'),
    ('run', 'planned',   'running',   'every waiting job has been sent to the broker'),
    ('run', 'planned',   'paused',    'held while it was still being sent'),
    ('run', 'planned',   'cancelled', 'given up before it was sent'),
    ('run', 'planned',   'finished',  'no job was waiting: nothing to do'),
    ('run', 'running',   'paused',    'the operator holds the run; jobs hand themselves back'),
    ('run', 'paused',    'running',   'the operator lets the run go on'),
    ('run', 'running',   'finished',  'every job has its outcome'),
    ('run', 'paused',    'finished',  'the last job ended while the run was being held'),
    ('run', 'running',   'cancelled', 'the operator stopped the run for good'),
    ('run', 'paused',    'cancelled', 'the operator stopped the held run for good'),
    ('run', 'finished',  'running',   'failed jobs were queued again'),
    ('job', '',          'queued',    'selected; waits for a worker'),
    ('job', '',          'skipped',   'selected, but there is nothing to do; the outcome says why'),
    ('job', 'queued',    'running',   'a worker took the lease'),
    ('job', 'queued',    'cancelled', 'the run was cancelled before a worker took it'),
    ('job', 'running',   'queued',    'handed back, or the lease ran out'),
    ('job', 'running',   'done',      'converted, rolled back or verified (a dry run: would be)'),
    ('job', 'running',   'skipped',   'the worker found nothing to do; the outcome says why'),
    ('job', 'running',   'failed',    'the outcome says why and what to do'),
    ('job', 'running',   'cancelled', 'the run was cancelled while a worker had it'),
    ('job', 'failed',    'queued',    'queued again by the operator')
on conflict on constraint migration_state_arrows_pkey do update set meaning = excluded.meaning;

create table if not exists migration_runs (
    run_id      uuid primary key,
    verb        text        not null check (verb in ('migrate', 'rollback', 'verify')),
    dry_run     boolean     not null,
    state       text        not null default 'planned',
    selection   jsonb       not null default '{}',     -- the options the run was opened with
    created_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz
);
comment on table  migration_runs is 'One row for each call of a verb over some projects. Holds no totals: they are computed from the jobs';
comment on column migration_runs.selection is 'The options the run was opened with, and what they left out and why';
alter table migration_runs add column if not exists paused_because text;
comment on column migration_runs.paused_because is 'Why a paused run stands still';
alter table migration_runs add column if not exists limit_bytes_per_second bigint;
comment on column migration_runs.limit_bytes_per_second is 'How fast all workers of the run together may read; null: as fast as they can';
create index if not exists migration_runs_created_at on migration_runs (created_at desc);

create table if not exists migration_jobs (
    run_id         uuid        not null references migration_runs on delete cascade,
    project_id     integer     not null,
    project_name   text,                               -- as it was when the run was opened
    path           text,                               -- likewise; the conversion checks that it still holds
    state          text        not null default 'queued',
    attempt        integer     not null default 0,     -- the fencing number: counts the leases taken
    worker         text,                               -- who holds, or held, the lease
    lease_until    timestamptz,                        -- by this database's clock
    phase          text,                               -- what the holder does right now, for people
    dataset_hash   text,                               -- known once the tree is hashed
    sessions_total integer,
    files_total    bigint,
    bytes_total    bigint,
    files_done     bigint      not null default 0,
    bytes_done     bigint      not null default 0,
    outcome        jsonb,
    error_class    text,
    error          text,
    queued_at      timestamptz not null default clock_timestamp(),
    sent_at        timestamptz,
    started_at     timestamptz,                        -- of the latest attempt
    finished_at    timestamptz,
    constraint migration_jobs_pkey primary key (run_id, project_id),
    constraint migration_jobs_lease check ((state = 'running') = (lease_until is not null)),
    constraint migration_jobs_outcome check ((state in ('done', 'skipped', 'failed', 'cancelled')) = (outcome is not null))
);
comment on table  migration_jobs is 'One project in one run: its lease while it runs, its outcome when it has ended';
comment on column migration_jobs.attempt is 'Fencing number: whoever writes must still hold this attempt';
comment on column migration_jobs.outcome is 'What became of the job, as the task returned it';
alter table migration_jobs add column if not exists sent_epoch text;
comment on column migration_jobs.sent_epoch is 'Which life of the broker the last message went to; another one has never seen it';
alter table migration_jobs add column if not exists not_before timestamptz;
comment on column migration_jobs.not_before is 'A job that failed for something passing waits until then';
alter table migration_jobs add column if not exists retries integer not null default 0;
comment on column migration_jobs.retries is 'How often the job was handed back for something passing';
alter table migration_jobs add column if not exists crashes integer not null default 0;
comment on column migration_jobs.crashes is 'How many leases ran out: each time a worker died, slept or was cut off';
alter table migration_jobs add column if not exists fenced integer not null default 0;
comment on column migration_jobs.fenced is 'How many attempts found out that the job was not theirs any more, and changed nothing';
create index if not exists migration_jobs_project on migration_jobs (project_id);
-- What every worker asks for every few seconds, however many jobs wait.
create index if not exists migration_jobs_running on migration_jobs (run_id) where state = 'running';
create index if not exists migration_jobs_unsent on migration_jobs (run_id) where state = 'queued' and sent_at is null;
create index if not exists migration_jobs_open on migration_jobs (run_id, state) where state in ('queued', 'running');

create or replace function migration_check_arrow() returns trigger language plpgsql as $$
declare
    machine_name text := tg_argv[0];
    old_state    text := case when tg_op = 'INSERT' then '' else old.state end;
begin
    if tg_op = 'UPDATE' and new.state = old.state then
        return new;
    end if;
    if not exists (select from migration_state_arrows a
                   where a.machine = machine_name and a.from_state = old_state and a.to_state = new.state) then
        raise exception 'a % may not go from "%" to "%"', machine_name, old_state, new.state
            using errcode = 'check_violation', constraint = 'migration_state_arrow';
    end if;
    return new;
end $$;

create or replace trigger migration_runs_arrow before insert or update of state on migration_runs
    for each row execute function migration_check_arrow('run');
create or replace trigger migration_jobs_arrow before insert or update of state on migration_jobs
    for each row execute function migration_check_arrow('job');

-- Which new content a dry run has met: the lowest project id that holds a digest is the one that would store it.
create table if not exists migration_dry_run_blobs (
    run_id     uuid    not null references migration_runs on delete cascade,
    digest     text    not null,
    size_bytes bigint  not null,
    project_id integer not null,
    constraint migration_dry_run_blobs_pkey primary key (run_id, digest)
);
comment on table migration_dry_run_blobs is 'Content that a dry run would store, and the project that would be the first to store it';

create table if not exists project_conversions (
    conversion_id    bigint generated by default as identity primary key,
    project_id       integer     not null,
    run_id           uuid        not null,
    dataset_id       integer     not null,
    dataset_hash     text        not null,
    legacy_path      text        not null,
    before           jsonb       not null,
    tree_attributes  bytea       not null,
    converted_at     timestamptz not null default clock_timestamp(),
    rolled_back_at   timestamptz,
    rollback_run_id  uuid
);
comment on table  project_conversions is 'The before-image: the exact old values of every row that a conversion changed, so that a rollback restores instead of computing';
comment on column project_conversions.before is 'Old and new values: project, sessions, and the ids of the rows the conversion made';
comment on column project_conversions.tree_attributes is 'Modes and times of the legacy tree in the manifest''s order (zlib, JSON), for rebuilding it';
create unique index if not exists project_conversions_active on project_conversions (project_id) where rolled_back_at is null;

create table if not exists migration_recording_counts (
    digest     text   primary key,
    size_bytes bigint not null,
    records    bigint                                  -- null: pandas cannot read it, or it has none
);
comment on table migration_recording_counts is 'How many records a recording has, by its content: counted once, however many projects hold it';
create index if not exists migration_recording_counts_size on migration_recording_counts (size_bytes);

create table if not exists migration_blob_checks (
    digest     text        primary key,
    inode      bigint      not null,
    mtime_ns   bigint      not null,
    checked_at timestamptz not null default clock_timestamp()
);
comment on table migration_blob_checks is 'When the bytes of a blob were last seen to have its digest, and what stat said of the file then';

create table if not exists dataset_claims (
    dataset_hash text primary key,
    claimed_at   timestamptz not null default clock_timestamp()
);
comment on table dataset_claims is 'One row for each dataset that anybody ever stored; its row lock makes one worker the one who stores it';
