-- A role that may do what the migrator does and nothing else: it cannot drop, truncate or alter a table, cannot add or delete
-- one of Label's projects or sessions, and reads neither labels nor who the participants are.
--
-- For psql, as the owner of Label's tables, after every "producer schema apply" (which needs the owner, too):
--
--     psql -v migrator=label_migrator -f create_migrator_role.sql "$DATABASE_URL"
--     psql -c '\password label_migrator' "$DATABASE_URL"
--
-- Then DATABASE_URL of producer and workers names this role. To make the role takes the right to create roles; where it is
-- there already, the owner of the tables is enough. Repeatable: what the role has too much in this schema is taken away.
-- Nothing else applies this file.
\set ON_ERROR_STOP on
\if :{?migrator}
\else
    \set migrator label_migrator
\endif
begin;

select format('create role %I login', :'migrator')
where not exists (select from pg_roles where rolname = :'migrator') \gexec

-- The schema of Label's tables, wherever that is in the search path.
select nspname as schema from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass('projects') \gset
set local search_path to :"schema";
revoke all on all tables    in schema :"schema" from :"migrator";
revoke all on all sequences in schema :"schema" from :"migrator";
grant connect on database :"DBNAME" to :"migrator";
grant usage on schema :"schema" to :"migrator";

-- Label's own tables. A row lock takes the right to update some column. Labels (sessions.bouts) are not among these columns.
grant select (project_id, project_name, path, legacy_path, project_type, analysis_config),
      update (path, legacy_path, project_type, analysis_config)
    on projects to :"migrator";
grant select (session_id, project_id, session_name, start_ns, stop_ns, parent_session_data_path, raw_session_name,
              dataset_id, data_start_offset, data_end_offset, split_config_id),
      update (parent_session_data_path, raw_session_name, dataset_id, data_start_offset, data_end_offset, split_config_id)
    on sessions to :"migrator";

-- Datasets are added, and those that nothing refers to are taken out and may come back, as they were (gc). They are locked while a
-- project is re-pointed to one: updated_at stands for that. One that Label registered itself gets our hash when it is adopted.
grant select, insert, update (dataset_hash, file_size_bytes, session_count, updated_at), delete on raw_datasets to :"migrator";
grant select, insert, update (file_count), delete on raw_dataset_sessions to :"migrator";
-- What a migration adds for a project, its rollback takes away.
grant select (ref_id, project_id, dataset_id), insert (project_id, dataset_id), delete
    on project_dataset_refs to :"migrator";
grant select (config_id, dataset_id, raw_session_name),
      insert (project_id, dataset_id, raw_session_name, split_strategy, split_parameters), delete
    on project_split_configs to :"migrator";

-- The ledger. No run, job, outcome or before-image is ever deleted, and no before-image is rewritten.
grant select on migration_state_arrows, schema_steps to :"migrator";
grant select, insert, update (head) on migration_recording_counts to :"migrator";
grant select, insert, update on migration_runs, migration_jobs, migration_store to :"migrator";
grant select, insert, update (state, reason, gate_run_id, opened_at, gated_at, decided_at) on migration_waves to :"migrator";
grant select, insert, update, delete on migration_dry_run_blobs, migration_blob_checks, migration_unreferenced,
      migration_remembered_digests, migration_job_counts to :"migrator";
grant select, insert, update (rolled_back_at, rollback_run_id) on project_conversions to :"migrator";
grant select, insert, update (claimed_at, owner, attempt, expires_at), delete on dataset_claims to :"migrator";
-- Who needs which blob, what a verification reads, and which directories were moved away.
grant select, insert, delete on migration_dataset_blobs, migration_blob_readers to :"migrator";
grant select, insert, update (checked_at), delete on migration_indexed_datasets to :"migrator";
-- Label's hash of a dataset comes back with its rows.
grant select, insert on migration_label_hashes to :"migrator";
grant select, insert, update (state, reclaimed_at, ended_at, ended_by_run_id) on migration_reclaims to :"migrator";
grant select, insert, update (state, adopted_at, ended_at, ended_by_run_id) on migration_adoptions to :"migrator";

-- The numbers of a new dataset and its sessions are taken before their rows are written, to be written beside the manifest.
-- Other identity columns need no right of their own. Tables that were made by hand may number their rows by a default.
select format('grant usage on sequence %s to %I', pg_get_serial_sequence(t.name, t.key), :'migrator')
from (values ('raw_datasets', 'dataset_id'), ('raw_dataset_sessions', 'raw_session_id'),
             ('project_dataset_refs', 'ref_id'), ('project_split_configs', 'config_id')) as t (name, key)
join pg_attribute a on a.attrelid = t.name::regclass and a.attname = t.key
where (a.attidentity = '' or t.name in ('raw_datasets', 'raw_dataset_sessions'))
  and pg_get_serial_sequence(t.name, t.key) is not null \gexec

-- To be able to say that a sequence is behind its table, after rows were imported with their numbers.
select format('grant select on sequence %s to %I', pg_get_serial_sequence(t.name, t.key), :'migrator')
from (values ('raw_datasets', 'dataset_id'), ('raw_dataset_sessions', 'raw_session_id'),
             ('project_dataset_refs', 'ref_id'), ('project_split_configs', 'config_id'),
             ('project_conversions', 'conversion_id')) as t (name, key)
where pg_get_serial_sequence(t.name, t.key) is not null \gexec

commit;
