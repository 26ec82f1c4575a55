-- The ledger: every run and every job, what was converted and how it was before, and who may store a dataset.
-- Label's own tables are not referred to by foreign keys: the application deletes its rows as it likes.
-- Indexes of what may be large are in create_indexes.sql.

-- Everything goes into the schema of Label's tables, wherever that is in the search path. "producer schema apply" has seen to
-- that already, for its transaction; here it is for psql, whose session ends with the file.
do $$
declare
    home text := (select quote_ident(nspname) from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.oid = to_regclass('projects'));
begin
    if home is null then
        raise exception 'there is no table projects in the search_path "%": this is not Label''s database, or not its schema',
            current_setting('search_path');
    end if;
    if home is distinct from quote_ident(current_schema()) then
        perform set_config('search_path', home || ', ' || current_setting('search_path'), false);
    end if;
end $$;

-- States and their allowed arrows, in one place. The database refuses any other (see the trigger below).
create table if not exists migration_state_arrows (
    machine    text not null check (machine in ('run', 'job', 'wave')),
    from_state text not null,                          -- '' means: the row is new
    to_state   text not null,
    meaning    text not null,
    constraint migration_state_arrows_pkey primary key (machine, from_state, to_state)
);
comment on table migration_state_arrows is 'The state machines of the ledger: the only arrows a run, a job or a wave may take';
-- Earlier releases knew no waves.
do $$
begin
    if not exists (select from pg_constraint where conrelid = to_regclass('migration_state_arrows')
                   and conname = 'migration_state_arrows_machine_check' and pg_get_constraintdef(oid) like '%wave%') then
        alter table migration_state_arrows drop constraint if exists migration_state_arrows_machine_check;
        alter table migration_state_arrows add constraint migration_state_arrows_machine_check
            check (machine in ('run', 'job', 'wave'));
    end if;
end $$;

insert into migration_state_arrows (machine, from_state, to_state, meaning) values
    ('run', '',          'planned',   'the run and its jobs are written; nothing has been sent yet'),
    ('run', 'planned',   'running',   'every waiting job has been sent to the broker'),
    ('run', 'planned',   'paused',    'paused while it was still being sent'),
    ('run', 'planned',   'cancelled', 'given up before it was sent'),
    ('run', 'planned',   'finished',  'no job was waiting: nothing to do'),
    ('run', 'running',   'paused',    'the operator pauses the run; jobs hand themselves back'),
    ('run', 'paused',    'running',   'the operator resumes the run'),
    ('run', 'running',   'finished',  'every job has its outcome'),
    ('run', 'paused',    'finished',  'the last job ended while the run was being paused'),
    ('run', 'running',   'cancelled', 'the operator stopped the run for good'),
    ('run', 'paused',    'cancelled', 'the operator stopped the paused run for good'),
    ('run', 'finished',  'running',   'failed jobs were queued again'),
    ('job', '',          'queued',    'selected; waits for a worker'),
    ('job', '',          'skipped',   'selected, but there is nothing to do; the outcome says why'),
    ('job', '',          'held',      'selected for a later wave; no worker takes it'),
    ('job', 'held',      'queued',    'its wave was opened; waits for a worker'),
    ('job', 'held',      'cancelled', 'the run was cancelled before its wave was opened'),
    ('job', 'queued',    'running',   'a worker took the lease'),
    ('job', 'queued',    'cancelled', 'the run was cancelled before a worker took it'),
    ('job', 'running',   'queued',    'handed back, or the lease ran out'),
    ('job', 'running',   'done',      'it did what the run is for (a dry run: it would)'),
    ('job', 'running',   'skipped',   'the worker found nothing to do; the outcome says why'),
    ('job', 'running',   'failed',    'the outcome says why and what to do'),
    ('job', 'running',   'cancelled', 'the run was cancelled while a worker had it'),
    ('job', 'failed',    'queued',    'queued again by the operator'),
    ('wave', '',          'waiting',   'the gates before it have not opened; its jobs are held'),
    ('wave', '',          'open',      'the first wave, or one of a dry run; its jobs wait for workers'),
    ('wave', 'waiting',   'open',      'the wave before it went through its gate; its jobs were queued'),
    ('wave', 'open',      'verifying', 'all its jobs have ended; its gate was opened, a run that verifies them'),
    ('wave', 'open',      'passed',    'all its jobs have ended, and it has no gate'),
    ('wave', 'open',      'stopped',   'all its jobs have ended, and the gate found nothing that it could verify'),
    ('wave', 'verifying', 'passed',    'its gate found all of it as it was before'),
    ('wave', 'verifying', 'stopped',   'its gate found a difference, or could not look; the run is paused'),
    ('wave', 'verifying', 'waived',    'the operator lets the run go on without this gate'),
    ('wave', 'stopped',   'verifying', 'the operator resumed the run, so its gate looks again'),
    ('wave', 'stopped',   'waived',    'the operator lets the run go on all the same')
on conflict on constraint migration_state_arrows_pkey do update set meaning = excluded.meaning;

create table if not exists migration_runs (
    run_id      uuid primary key,
    verb        text        not null check (verb in ('migrate', 'rollback', 'verify', 'reclaim', 'gc', 'adopt')),
    dry_run     boolean     not null,
    state       text        not null default 'planned',
    selection   jsonb       not null default '{}',     -- the options the run was opened with
    created_at  timestamptz not null default clock_timestamp(),
    finished_at timestamptz
);
comment on table  migration_runs is 'One row for each call of a verb over some projects or datasets. Holds no totals: they are computed from the jobs';
comment on column migration_runs.selection is 'The options the run was opened with, and what they left out and why';
alter table migration_runs add column if not exists paused_because text;
comment on column migration_runs.paused_because is 'Why a paused run stands still';
alter table migration_runs add column if not exists limit_bytes_per_second bigint;
comment on column migration_runs.limit_bytes_per_second is 'How fast all workers of the run together may read; null: as fast as they can';
-- What was left out may be a hundred thousand entries, and every job of the run asks for the options.
alter table migration_runs add column if not exists options jsonb generated always as (selection -> 'options') stored;
comment on column migration_runs.options is 'The options alone';
create index if not exists migration_runs_created_at on migration_runs (created_at desc);

-- Earlier releases knew fewer verbs, those before 0.3 projects only.
do $$
begin
    if not exists (select from pg_constraint where conrelid = to_regclass('migration_runs')
                   and conname = 'migration_runs_verb_check' and pg_get_constraintdef(oid) like '%adopt%') then
        alter table migration_runs drop constraint if exists migration_runs_verb_check;
        alter table migration_runs add constraint migration_runs_verb_check
            check (verb in ('migrate', 'rollback', 'verify', 'reclaim', 'gc', 'adopt'));
    end if;
    if to_regclass('migration_jobs') is not null
       and not exists (select from pg_attribute
                       where attrelid = to_regclass('migration_jobs') and attname = 'subject_id' and not attisdropped) then
        alter table migration_jobs rename column project_id to subject_id;
        alter table migration_jobs rename column project_name to subject_name;
        alter table migration_jobs add column subject text not null default 'project'
            check (subject in ('project', 'dataset', 'store'));
        alter table migration_jobs drop constraint migration_jobs_pkey;
        -- Newer servers name this constraint for the column.
        alter table migration_jobs alter column subject_id drop not null;
        alter table migration_jobs alter column subject_id set not null;
        alter table migration_jobs add constraint migration_jobs_pkey primary key (run_id, subject, subject_id);
        drop index migration_jobs_project;
    end if;
end $$;

-- A run in waves: first some of its projects, then, through a gate, more of them, then all.
create table if not exists migration_waves (
    run_id      uuid        not null references migration_runs on delete cascade,
    wave        integer     not null,                  -- from 1
    asked_for   text        not null,                  -- how many projects this wave and those before it have: '1', '5%'
    gate        text        not null check (gate in ('verify', 'none')),
    projects    integer     not null,                  -- in this wave alone
    bytes_total bigint      not null,                  -- likewise, of those the producer could see
    state       text        not null,
    reason      text,                                  -- what its gate found
    gate_run_id uuid,                                  -- the latest run that verified it
    opened_at   timestamptz,
    gated_at    timestamptz,                           -- when its jobs had ended, and its gate last began to look
    decided_at  timestamptz,
    constraint migration_waves_pkey primary key (run_id, wave)
);
comment on table  migration_waves is 'The waves of a run, in their order: each but the last has a gate behind it, and the next one waits for that';
comment on column migration_waves.gate is 'What happens between this wave and the next: it is verified, or nothing; the last wave has none';
create index if not exists migration_waves_gate_run_id on migration_waves (gate_run_id);

create table if not exists migration_jobs (
    run_id         uuid        not null references migration_runs on delete cascade,
    subject        text        not null default 'project' check (subject in ('project', 'dataset', 'store')),
    subject_id     integer     not null,
    subject_name   text,                               -- as it was when the run was opened
    path           text,                               -- likewise; the conversion checks that it still holds
    state          text        not null default 'queued',
    attempt        integer     not null default 0,     -- the fencing number: counts the leases taken
    worker         text,                               -- whose the lease is, or was
    lease_until    timestamptz,                        -- by this database's clock
    phase          text,                               -- what its worker does right now, for people
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
    constraint migration_jobs_pkey primary key (run_id, subject, subject_id),
    constraint migration_jobs_lease check ((state = 'running') = (lease_until is not null)),
    constraint migration_jobs_outcome check ((state in ('done', 'skipped', 'failed', 'cancelled')) = (outcome is not null))
);
comment on table  migration_jobs is 'One project or dataset, or the store, in one run: its lease while it runs, its outcome when it has ended';
comment on column migration_jobs.subject is 'What the job is about, and what subject_id counts: projects or datasets; the store is always 1';
alter table migration_jobs add column if not exists project_id integer
    generated always as (case when subject = 'project' then subject_id end) stored;
alter table migration_jobs add column if not exists project_name text
    generated always as (case when subject = 'project' then subject_name end) stored;
comment on column migration_jobs.project_id is 'The subject, if it is a project: for queries written for earlier releases';
comment on column migration_jobs.attempt is 'Fencing number: what is written must still be of this attempt';
comment on column migration_jobs.outcome is 'What became of the job, as the task returned it';
alter table migration_jobs add column if not exists sent_epoch text;
comment on column migration_jobs.sent_epoch is 'Which life of the broker the last message went to; another one has never seen it';
alter table migration_jobs add column if not exists not_before timestamptz;
comment on column migration_jobs.not_before is 'A job that met a transient error waits until then';
alter table migration_jobs add column if not exists retries integer not null default 0;
comment on column migration_jobs.retries is 'How often the job was handed back for a transient error';
alter table migration_jobs add column if not exists crashes integer not null default 0;
comment on column migration_jobs.crashes is 'How many leases ran out: each time a worker died, slept or was cut off';
alter table migration_jobs add column if not exists fenced integer not null default 0;
comment on column migration_jobs.fenced is 'How many attempts found out that the job was not theirs any more, and changed nothing';
alter table migration_jobs add column if not exists waits_for text;
comment on column migration_jobs.waits_for is 'A job that could not be done where it was: the legacy root that was missing there, or "room" in the store';
alter table migration_jobs add column if not exists waits_since timestamptz;
comment on column migration_jobs.waits_since is 'Since when a waiting job has waited for that';

alter table migration_jobs add column if not exists wave integer;
comment on column migration_jobs.wave is 'Which wave of its run the job belongs to; null: the run has none';

-- Workers of earlier releases hold claims in another way and know nothing of gc, reclaims and adoptions, so beside newer ones they
-- could lose data. They do not write this column, and so can take no job; what they run right now they may end.
alter table migration_jobs add column if not exists taken_as text;
comment on column migration_jobs.taken_as is 'Protocol and attempt, such as 2:7, as the worker wrote them that took the job';
do $$
begin
    if not exists (select from pg_constraint where conrelid = to_regclass('migration_jobs')
                   and conname = 'migration_jobs_worker_of_an_earlier_release') then
        update migration_jobs set taken_as = '2:' || attempt where state = 'running';
        alter table migration_jobs add constraint migration_jobs_worker_of_an_earlier_release
            check (state <> 'running' or taken_as is not distinct from '2:' || attempt) not valid;
    end if;
end $$;

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
create or replace trigger migration_waves_arrow before insert or update of state on migration_waves
    for each row execute function migration_check_arrow('wave');

-- Workers of earlier releases know no held jobs, and would finish a run when its first wave has ended: it stays as it is.
create or replace function migration_keep_open() returns trigger language plpgsql as $$
begin
    return case when not exists (select from migration_jobs j where j.run_id = new.run_id and j.state = 'held') then new end;
end $$;
create or replace trigger migration_runs_held before update of state on migration_runs
    for each row when (new.state = 'finished' and old.state <> 'finished') execute function migration_keep_open();

-- How many jobs each run has in each state, kept by the triggers below, so that a scrape need not read every job there ever was.
-- Each change adds rows and updates none: jobs that end at once wait for no common row. What is asked for is the sum.
create table if not exists migration_job_counts (
    run_id       uuid    not null,
    subject      text    not null,
    state        text    not null,
    error_class  text,
    jobs         bigint  not null,
    retries      bigint  not null,
    crashes      bigint  not null,
    fenced       bigint  not null,
    bytes_total  bigint  not null,
    bytes_done   bigint  not null,                     -- of running jobs nothing: they say it every few seconds
    files_done   bigint  not null,                     -- likewise
    shared_bytes bigint  not null,                     -- allocated, came into the store by sharing blocks
    folded       boolean not null default false
);
comment on table  migration_job_counts is 'Counts and sums over migration_jobs: add them up, several rows may be about the same jobs';
comment on column migration_job_counts.folded is 'A sum of earlier rows, which are gone';
create index if not exists migration_job_counts_run on migration_job_counts (run_id);
create index if not exists migration_job_counts_new on migration_job_counts (run_id) where not folded;

-- Counted from all jobs whenever this file is applied, while none of them can change; for jobs that came while no trigger saw it,
-- as in a restore of rows alone, call migration_count_all_jobs().
do $make$
declare
    count_them constant text := $count$
        insert into migration_job_counts (run_id, subject, state, error_class, jobs, retries, crashes, fenced, bytes_total,
                                          bytes_done, files_done, shared_bytes)
        select * from (
            select run_id, subject, state, error_class, sum(times) as jobs, sum(times * retries) as retries,
                   sum(times * crashes) as crashes, sum(times * fenced) as fenced,
                   sum(times * coalesce(bytes_total, 0)) as bytes_total,
                   sum(times * case state when 'running' then 0
                                          when 'queued' then least(bytes_done, coalesce(bytes_total, bytes_done))
                                          when 'held' then 0
                                          -- Whatever an ended job had is dealt with, also where it failed.
                                          else coalesce(bytes_total, 0) end) as bytes_done,
                   sum(times * case state when 'running' then 0 else files_done end) as files_done,
                   sum(times * case when outcome @? '$ ? (@.links.cloned > 0 && @.disk.shared.type() == "number")'
                                    then (outcome #> '{disk,shared}')::bigint else 0 end) as shared_bytes
            from (%s) as changed group by run_id, subject, state, error_class) as counted
        where (jobs, retries, crashes, fenced, bytes_total, bytes_done, files_done, shared_bytes) <> (0, 0, 0, 0, 0, 0, 0, 0)$count$;
    each constant text := 'select %s as times, run_id, subject, state, error_class, retries, crashes, fenced, bytes_total, bytes_done,
                                  files_done, outcome from %s';
    come constant text := format(each, 1, 'new_rows');
    gone constant text := format(each, -1, 'old_rows');
begin
    execute format($function$
        create or replace function migration_count_all_jobs() returns void language plpgsql as $body$
        begin
            lock table migration_jobs in share row exclusive mode;
            delete from migration_job_counts;
            %s;
        end $body$ $function$,
        format(count_them, format(each, 1, 'migration_jobs')));
    execute format($function$
        create or replace function migration_count_jobs() returns trigger language plpgsql as $body$
        begin
            if tg_op = 'INSERT' then %s;
            elsif tg_op = 'UPDATE' then %s;
            elsif tg_op = 'DELETE' then %s;
            else delete from migration_job_counts;
            end if;
            return null;
        end $body$ $function$,
        format(count_them, come), format(count_them, come || ' union all ' || gone), format(count_them, gone));
    create or replace trigger migration_jobs_count_new after insert on migration_jobs
        referencing new table as new_rows for each statement execute function migration_count_jobs();
    create or replace trigger migration_jobs_count_changed after update on migration_jobs
        referencing old table as old_rows new table as new_rows for each statement execute function migration_count_jobs();
    create or replace trigger migration_jobs_count_deleted after delete on migration_jobs
        referencing old table as old_rows for each statement execute function migration_count_jobs();
    create or replace trigger migration_jobs_count_none after truncate on migration_jobs
        for each statement execute function migration_count_jobs();
    perform migration_count_all_jobs();
end $make$;

-- Which new content a dry run has met: the lowest project id that holds a digest is the one that would store it.
create table if not exists migration_dry_run_blobs (
    run_id     uuid    not null references migration_runs on delete cascade,
    digest     text    not null,
    size_bytes bigint  not null,
    project_id integer not null,
    constraint migration_dry_run_blobs_pkey primary key (run_id, digest)
);
comment on table migration_dry_run_blobs is 'Content that a dry run would store, and the project (or, of an adoption, the dataset) that would be the first to store it';

-- Where a path leads by its text: as os.path.normpath says, but for a second slash at the beginning.
create or replace function migration_normal_path(path text) returns text language plpgsql immutable strict parallel safe as $$
declare
    part text;
    kept text[] := '{}';
begin
    if path ~ '^/' and path !~ '//|/\.{1,2}(/|$)|./$' then
        return path;
    end if;
    foreach part in array string_to_array(path, '/') loop
        if part = '..' then
            kept := kept[:cardinality(kept) - 1];
        elsif part not in ('', '.') then
            kept := array_append(kept, part);
        end if;
    end loop;
    return '/' || array_to_string(kept, '/');
end $$;

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
alter table migration_recording_counts add column if not exists head text;
comment on column migration_recording_counts.head is 'Digest of the first 64 KiB: by it and the size a recording is known before it is read';

-- What was learned of a project's legacy files when they were read, and what stat said of each then. One row a project, more of
-- a large one; whatever is missing is read again.
create table if not exists migration_remembered_digests (
    project_id integer     not null,
    part       integer     not null,
    algorithm  text        not null,
    entries    bytea       not null,                   -- packed and compressed (worker/legacy/remembered.py)
    written_at timestamptz not null default clock_timestamp(),
    constraint migration_remembered_digests_pkey primary key (project_id, part)
);
comment on table migration_remembered_digests is 'Digests of legacy files by what stat said of them, so that untouched ones need not be read again';
alter table migration_remembered_digests alter column entries set storage external;

-- Label's own hash of a content (worker/store/label_hash.py), computed when it was first needed.
create table if not exists migration_label_hashes (
    dataset_hash text        primary key,
    label_hash   text,                                 -- null: Label has none, because a name is not UTF-8
    computed_at  timestamptz not null default clock_timestamp()
);
comment on table migration_label_hashes is 'By which hash Label itself would know a dataset, for exports to other servers and imports from them';
create index if not exists migration_label_hashes_label_hash on migration_label_hashes (label_hash);

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
comment on table dataset_claims is 'One row for each dataset or big file that was ever claimed; its owner is the one attempt that stores it';
alter table dataset_claims add column if not exists owner uuid;
comment on column dataset_claims.owner is 'The task id of the job that holds the claim, null: none does';
alter table dataset_claims add column if not exists attempt integer;
comment on column dataset_claims.attempt is 'Which attempt at that job: its fencing number';
alter table dataset_claims add column if not exists expires_at timestamptz;
comment on column dataset_claims.expires_at is 'From then on anyone may take the claim, unless it is renewed';
create index if not exists dataset_claims_owner on dataset_claims (owner) where owner is not null;

-- Which dataset needs which content. Rebuildable from the manifests; complete for the datasets of migration_indexed_datasets.
create table if not exists migration_dataset_blobs (
    dataset_hash text   not null,
    digest       text   not null,
    size_bytes   bigint not null,
    constraint migration_dataset_blobs_pkey primary key (dataset_hash, digest)
);
comment on table migration_dataset_blobs is 'Which content each dataset needs: an index over the manifests, for repairs and gc';
create index if not exists migration_dataset_blobs_digest on migration_dataset_blobs (digest);

create table if not exists migration_indexed_datasets (
    dataset_hash text        primary key,
    indexed_at   timestamptz not null default clock_timestamp()
);
comment on table migration_indexed_datasets is 'The datasets whose content migration_dataset_blobs lists in full';
alter table migration_indexed_datasets add column if not exists checked_at timestamptz;
comment on column migration_indexed_datasets.checked_at is 'When manifest and tree of the dataset were last found to be whole';

create table if not exists migration_blob_readers (
    run_id     uuid    not null references migration_runs on delete cascade,
    digest     text    not null,
    dataset_id integer not null,
    constraint migration_blob_readers_pkey primary key (run_id, digest)
);
comment on table migration_blob_readers is 'Which dataset''s job of a verification reads a blob that several share, so that it is read once';

-- Legacy directories that were moved away: where each was, where it is, and what became of it.
create table if not exists migration_reclaims (
    reclaim_id            bigint generated by default as identity primary key,
    conversion_id         bigint      not null,
    project_id            integer     not null,
    run_id                uuid        not null,
    legacy_path           text        not null,        -- the project's own directory, links in its path resolved
    moved_from            text        not null,        -- the directory that is renamed: its own, or one around it
    moved_to              text        not null,
    carried_by_project_id integer,
    state                 text        not null
        check (state in ('moving', 'reclaimed', 'undoing', 'undone', 'purging', 'purged')),
    files                 bigint      not null default 0,
    bytes                 bigint      not null default 0,
    begun_at              timestamptz not null default clock_timestamp(),
    reclaimed_at          timestamptz,
    ended_at              timestamptz,
    ended_by_run_id       uuid
);
comment on table  migration_reclaims is 'Legacy directories that a reclaim moved away; written before the directory is renamed, so that a crash can be completed';
comment on column migration_reclaims.carried_by_project_id is 'The project with whose directory, which is the same or around it, this one was moved; null: it was moved itself';
alter table migration_reclaims add column if not exists tree_attributes bytea;
comment on column migration_reclaims.tree_attributes is 'Modes and times of the directory as it was moved away (zlib, JSON), in the manifest''s order: what a purge may remove';
comment on column migration_reclaims.bytes is 'Allocated on disk, hard links counted once; 0 for a carried one';
create unique index if not exists migration_reclaims_active on migration_reclaims (conversion_id) where state <> 'undone';
create index if not exists migration_reclaims_project on migration_reclaims (project_id);

-- Datasets that Label had registered itself and that became ours in place: what their rows said before, and where the directories
-- are that Label had.
create table if not exists migration_adoptions (
    adoption_id     bigint generated by default as identity primary key,
    dataset_id      integer     not null,
    run_id          uuid        not null,
    file_path       text        not null,
    folder          text        not null,              -- in quarantine; the directory that Label had is "tree" in it
    inode           bigint      not null,
    tree_inode      bigint      not null,
    listing         text        not null,
    size_bytes      bigint      not null,
    dataset_hash    text        not null,
    registered_hash text        not null,
    label_hash      text,                              -- null: Label has none, because a name is not UTF-8
    before          jsonb       not null,
    state           text        not null
        check (state in ('adopting', 'adopted', 'undoing', 'clearing', 'undone', 'removing', 'removed')),
    begun_at        timestamptz not null default clock_timestamp(),
    adopted_at      timestamptz,
    ended_at        timestamptz,
    ended_by_run_id uuid
);
comment on table  migration_adoptions is 'Datasets that Label had registered itself and that became ours in place; written before the directories change places, so that a crash can be completed';
comment on column migration_adoptions.inode is 'Which directory is the one that Label had, wherever it is';
comment on column migration_adoptions.tree_inode is 'Which directory is ours';
comment on column migration_adoptions.listing is 'A digest of what stat said of everything in the directory that Label had, when it was put aside';
comment on column migration_adoptions.size_bytes is 'Allocated by that directory, hard links counted once';
comment on column migration_adoptions.registered_hash is 'What raw_datasets.dataset_hash was before';
comment on column migration_adoptions.label_hash is 'Label''s own hash of the bytes that were adopted: another one than registered_hash if Label rewrote files since it registered them';
comment on column migration_adoptions.before is 'The rows of the dataset and its sessions as they were, so that an undo restores instead of computing';
create unique index if not exists migration_adoptions_active on migration_adoptions (dataset_id) where state <> 'undone';
create index if not exists migration_adoptions_registered_hash on migration_adoptions (registered_hash);

create table if not exists migration_unreferenced (
    kind      text        not null check (kind in ('dataset', 'tree', 'manifest', 'blob')),
    name      text        not null,
    marked_at timestamptz not null default clock_timestamp(),
    constraint migration_unreferenced_pkey primary key (kind, name)
);
comment on table migration_unreferenced is 'What a gc found that nothing refers to, and since when. A job that is to use it removes the mark first';

-- Which store the datasets of this database are in: the id in its store.json. At most one row.
create table if not exists migration_store (
    only_row boolean     not null default true check (only_row),
    store_id uuid,
    digest   text,
    named_at timestamptz not null default clock_timestamp(),
    constraint migration_store_pkey primary key (only_row)
);
comment on table migration_store is 'The one store of this database: a worker whose DATA_DIR holds another one, or none, does no job';
comment on column migration_store.store_id is 'Null: the operator lets the next migration name the store it finds, or make a new one';
