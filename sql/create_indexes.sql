-- The indexes of tables that may be large, each built beside the work of others: nothing waits for it but other changes of the
-- same table. That is why this file is not one transaction (and does not work with psql -1): each query prints the statements
-- that are to be run after it, one by one. Repeatable; what a build left invalid that was cancelled is built again.

-- What replaces an index is built before the former one goes.
with home as (
    select relnamespace as oid from pg_class where oid = to_regclass('projects')
), wanted (table_name, index_name, definition, column_name) as (
    values
    -- Label's (label contract, section 2, M2). The one on split_config_id is not: without it every deleted split config would read
    -- all sessions, because of its foreign key. An index made by hand on the same column will do.
    ('sessions', 'sessions_dataset_id_idx', '(dataset_id)', 'dataset_id'),
    ('sessions', 'sessions_raw_session_name_idx', '(raw_session_name)', 'raw_session_name'),
    ('sessions', 'sessions_split_config_id_idx', '(split_config_id)', 'split_config_id'),
    -- Whether a session reads from a dataset's tree, wherever that is mounted: asked of each dataset that is to go.
    ('sessions', 'sessions_migration_trees', 'using gin (string_to_array(parent_session_data_path, ''/''))', null),
    -- What every worker asks for every few seconds, however many jobs wait.
    ('migration_jobs', 'migration_jobs_running', '(run_id) where state = ''running''', null),
    ('migration_jobs', 'migration_jobs_queued', '(run_id, queued_at) where state = ''queued''', null),
    ('migration_jobs', 'migration_jobs_to_send', '(run_id, bytes_total desc nulls last, subject_id) where state = ''queued'' and sent_at is null', null),
    ('migration_jobs', 'migration_jobs_waiting', '(run_id, waits_since) where state = ''queued'' and waits_for is not null', null),
    ('migration_jobs', 'migration_jobs_wait_for_room', '(run_id) where state = ''queued'' and waits_for = ''room''', null),
    ('migration_jobs', 'migration_jobs_held', '(run_id, wave) where state = ''held''', null),
    -- What people ask of a run.
    ('migration_jobs', 'migration_jobs_retried', '(run_id, not_before) where state = ''queued'' and not_before is not null', null),
    ('migration_jobs', 'migration_jobs_failed', '(run_id, coalesce(error_class, ''''), subject, subject_id) where state = ''failed''', null),
    ('migration_jobs', 'migration_jobs_ended', '(run_id, finished_at) include (started_at) where finished_at is not null', null),
    ('migration_jobs', 'migration_jobs_subject', '(subject, subject_id)', null),
    -- The place of a project that was converted, by its text. No index entry may have more than 2,700 bytes.
    ('project_conversions', 'project_conversions_place', '(left(%1$I.migration_normal_path(legacy_path), 400) collate "C") where rolled_back_at is null', null),
    ('project_conversions', 'project_conversions_dataset', '(dataset_id)', null),
    ('project_conversions', 'project_conversions_hash', '(dataset_hash)', null),
    ('migration_recording_counts', 'migration_recording_counts_beginning', '(size_bytes, head)', null)
), found as (
    select w.*, n.nspname, t.oid as table_oid, i.indexrelid is not null as is_there, coalesce(i.indisvalid, true) as is_valid
    from wanted w cross join home join pg_namespace n on n.oid = home.oid
    join pg_class t on t.relname = w.table_name and t.relnamespace = home.oid
    left join pg_class c on c.relname = w.index_name and c.relnamespace = home.oid
    left join pg_index i on i.indexrelid = c.oid
)
select statement from (
select format('drop index concurrently %I.%I', nspname, index_name) as statement, 1 as turn from found where is_there and not is_valid
union all
select format('create index concurrently %I on %I.%I ', index_name, nspname, table_name) || format(definition, nspname), 2
from found f
where not (is_there and is_valid)
  and not exists (select from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                  where i.indrelid = f.table_oid and a.attname = f.column_name and i.indnkeyatts = 1 and i.indpred is null
                    and i.indisvalid)
union all
select format('drop index concurrently %I.%I', nspname, former), 3
from (values ('migration_jobs_open'), ('migration_jobs_unsent'), ('migration_jobs_waits'), ('migration_recording_counts_size')) as t (former)
cross join home join pg_namespace n on n.oid = home.oid
where exists (select from pg_class where relname = former and relnamespace = home.oid)
) as statements order by turn \gexec
