"""What the label contract, sections 1 and 2, says of the tables, compared with what the files make."""

import pytest
from sqlalchemy import Engine, text

# table.column | type | null | default | M2 and M1 columns with a comment in Label's own files: "comment"
COLUMNS = """
participants.participant_id            | integer                  | not null | identity         |
participants.participant_code          | text                     | not null |                  |
participants.first_name                | text                     | null     |                  |
participants.last_name                 | text                     | null     |                  |
participants.email                     | text                     | null     |                  |
participants.notes                     | text                     | null     |                  |
participants.created_at                | timestamp with time zone | null     | now()            |
participants.great_puffs               | boolean                  | null     | false            |
projects.project_id                    | integer                  | not null | identity         |
projects.project_name                  | text                     | not null |                  |
projects.participant_id                | integer                  | not null |                  |
projects.path                          | text                     | null     |                  | comment
projects.watch_assigned_at             | timestamp with time zone | null     | now()            |
projects.watch_returned_at             | timestamp with time zone | null     |                  |
projects.created_at                    | timestamp with time zone | null     | now()            |
projects.labelings                     | jsonb                    | null     |                  |
projects.legacy_path                   | text                     | null     |                  | comment
projects.project_type                  | text                     | null     | 'legacy'         | comment
projects.analysis_config               | jsonb                    | null     |                  | comment
sessions.session_id                    | integer                  | not null | identity         |
sessions.project_id                    | integer                  | not null |                  |
sessions.session_name                  | text                     | not null |                  |
sessions.status                        | text                     | null     | 'Initial'        |
sessions.keep                          | boolean                  | null     |                  |
sessions.is_visible                    | boolean                  | not null | true             |
sessions.bouts                         | jsonb                    | null     |                  |
sessions.verified                      | smallint                 | null     | 0                |
sessions.puffs_verified                | smallint                 | null     | 0                |
sessions.smoking_verified              | smallint                 | null     | 0                |
sessions.start_ns                      | bigint                   | not null |                  |
sessions.stop_ns                       | bigint                   | not null |                  |
sessions.parent_session_data_path      | text                     | null     |                  | comment
sessions.data_start_offset             | bigint                   | null     |                  | comment
sessions.data_end_offset               | bigint                   | null     |                  | comment
sessions.dataset_id                    | integer                  | null     |                  | comment
sessions.raw_session_name              | text                     | null     |                  | comment
sessions.split_config_id               | integer                  | null     |                  | comment
session_lineage.id                     | integer                  | not null | identity         |
session_lineage.child_session_id       | integer                  | not null |                  |
session_lineage.parent_session_id      | integer                  | not null |                  |
session_lineage.split_timestamp        | timestamp with time zone | not null | now()            |
models.model_id                        | integer                  | not null | identity         |
models.name                            | text                     | not null |                  |
models.description                     | text                     | null     |                  |
models.py_filename                     | text                     | not null |                  |
models.pt_filename                     | text                     | not null |                  |
models.class_name                      | text                     | not null |                  |
models.model_settings                  | jsonb                    | null     |                  |
models.is_active                       | boolean                  | null     | true             |
models.created_at                      | timestamp with time zone | null     | now()            |
models.updated_at                      | timestamp with time zone | null     | now()            |
raw_datasets.dataset_id                | integer                  | not null | identity         |
raw_datasets.dataset_name              | text                     | not null |                  |
raw_datasets.dataset_hash              | text                     | not null |                  | comment
raw_datasets.file_path                 | text                     | not null |                  | comment
raw_datasets.upload_timestamp          | timestamp with time zone | null     | now()            |
raw_datasets.file_size_bytes           | bigint                   | null     |                  | comment
raw_datasets.session_count             | integer                  | null     | 0                | comment
raw_datasets.description               | text                     | null     |                  | comment
raw_datasets.metadata                  | jsonb                    | null     |                  | comment
raw_datasets.created_at                | timestamp with time zone | null     | now()            |
raw_datasets.updated_at                | timestamp with time zone | null     | now()            |
raw_dataset_sessions.raw_session_id    | integer                  | not null | identity         |
raw_dataset_sessions.dataset_id        | integer                  | not null |                  |
raw_dataset_sessions.session_name      | text                     | not null |                  |
raw_dataset_sessions.session_path      | text                     | not null |                  | comment
raw_dataset_sessions.original_labels_json | text                  | null     |                  | comment
raw_dataset_sessions.file_count        | integer                  | null     | 0                | comment
raw_dataset_sessions.created_at        | timestamp with time zone | null     | now()            |
project_dataset_refs.ref_id            | integer                  | not null | identity         |
project_dataset_refs.project_id        | integer                  | not null |                  |
project_dataset_refs.dataset_id        | integer                  | not null |                  |
project_dataset_refs.created_at        | timestamp with time zone | null     | now()            |
project_split_configs.config_id        | integer                  | not null | identity         |
project_split_configs.project_id       | integer                  | not null |                  |
project_split_configs.dataset_id       | integer                  | not null |                  |
project_split_configs.raw_session_name | text                     | not null |                  | comment
project_split_configs.split_strategy   | text                     | null     | 'time_based'     |
project_split_configs.split_parameters | jsonb                    | null     |                  | comment
project_split_configs.created_at       | timestamp with time zone | null     | now()            |
project_split_configs.updated_at       | timestamp with time zone | null     | now()            |
"""

# Keys and checks, as PostgreSQL words them.
KEYS = """
participants: PRIMARY KEY (participant_id)
participants: UNIQUE (participant_code)
projects: PRIMARY KEY (project_id)
projects: UNIQUE (project_name)
projects: UNIQUE (project_name, participant_id)
projects: FOREIGN KEY (participant_id) REFERENCES participants(participant_id) ON DELETE RESTRICT
projects: CHECK ((char_length(project_name) <= 255))
projects: CHECK ((project_type = ANY (ARRAY['legacy'::text, 'dataset_based'::text])))
sessions: PRIMARY KEY (session_id)
sessions: UNIQUE (project_id, session_name)
sessions: FOREIGN KEY (project_id) REFERENCES projects(project_id) ON DELETE CASCADE
sessions: FOREIGN KEY (dataset_id) REFERENCES raw_datasets(dataset_id) NOT VALID
sessions: FOREIGN KEY (split_config_id) REFERENCES project_split_configs(config_id) NOT VALID
session_lineage: PRIMARY KEY (id)
session_lineage: FOREIGN KEY (child_session_id) REFERENCES sessions(session_id)
session_lineage: FOREIGN KEY (parent_session_id) REFERENCES sessions(session_id)
models: PRIMARY KEY (model_id)
raw_datasets: PRIMARY KEY (dataset_id)
raw_datasets: UNIQUE (dataset_hash)
raw_datasets: CHECK ((file_size_bytes >= 0))
raw_datasets: CHECK ((session_count >= 0))
raw_dataset_sessions: PRIMARY KEY (raw_session_id)
raw_dataset_sessions: UNIQUE (dataset_id, session_name)
raw_dataset_sessions: FOREIGN KEY (dataset_id) REFERENCES raw_datasets(dataset_id) ON DELETE CASCADE
raw_dataset_sessions: CHECK ((file_count >= 0))
project_dataset_refs: PRIMARY KEY (ref_id)
project_dataset_refs: UNIQUE (project_id, dataset_id)
project_dataset_refs: FOREIGN KEY (project_id) REFERENCES projects(project_id) ON DELETE CASCADE
project_dataset_refs: FOREIGN KEY (dataset_id) REFERENCES raw_datasets(dataset_id) ON DELETE CASCADE
project_split_configs: PRIMARY KEY (config_id)
project_split_configs: FOREIGN KEY (project_id) REFERENCES projects(project_id) ON DELETE CASCADE
project_split_configs: FOREIGN KEY (dataset_id) REFERENCES raw_datasets(dataset_id) ON DELETE CASCADE
project_split_configs: CHECK ((split_strategy = ANY (ARRAY['time_based'::text, 'bout_based'::text, 'custom'::text])))
"""

# Indexes that no key brings: MySQL makes one for each foreign key by itself, PostgreSQL does not.
INDEXES = """
projects (participant_id)
session_lineage (child_session_id)
session_lineage (parent_session_id)
raw_datasets (dataset_name)
project_dataset_refs (project_id)
project_dataset_refs (dataset_id)
project_split_configs (project_id)
project_split_configs (dataset_id)
sessions (dataset_id)
sessions (raw_session_name)
sessions (split_config_id)
"""

OURS = "^(migration_.*|project_conversions|dataset_claims|schema_steps)$"
LABELS = f"relnamespace = 'public'::regnamespace and relkind = 'r' and relname !~ '{OURS}'"


def lines(block: str) -> set[str]:
    """The lines of a block, with single spaces."""
    return {" ".join(line.split()) for line in block.strip().splitlines()}


def test_columns_have_type_nullability_and_default_of_the_contract(database: Engine) -> None:
    query = text(f"""
        select concat_ws(' | ', c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod),
            case when a.attnotnull then 'not null' else 'null' end,
            case when a.attidentity = 'd' then 'identity'
                 else coalesce(replace(pg_get_expr(d.adbin, d.adrelid), '::text', ''), '') end)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where {LABELS}
    """)

    with database.connect() as connection:
        found = lines("\n".join(connection.scalars(query)))

    assert found == {line.rpartition("|")[0].strip() for line in lines(COLUMNS)}


def test_tables_and_columns_are_described(database: Engine) -> None:
    columns = {line.partition(" ")[0] for line in lines(COLUMNS) if line.endswith("comment")}
    tables = {line.partition(".")[0] for line in lines(COLUMNS)}
    query = text("""
        select objoid::regclass || case objsubid when 0 then '' else '.' || (
            select attname from pg_attribute where attrelid = objoid and attnum = objsubid) end
        from pg_description where classoid = 'pg_class'::regclass and length(description) > 10
    """)

    with database.connect() as connection:
        described = set(connection.scalars(query))

    assert columns | tables <= described


def test_keys_and_checks_are_those_of_the_contract(database: Engine) -> None:
    query = text(f"""
        select c.relname || ': ' || pg_get_constraintdef(k.oid)
        from pg_class c join pg_constraint k on k.conrelid = c.oid
        where {LABELS} and k.contype <> 'n'
    """)

    with database.connect() as connection:
        found = list(connection.scalars(query))

    assert set(found) == lines(KEYS)
    assert len(found) == len(set(found))


def test_every_key_and_check_has_its_table_in_its_name(database: Engine) -> None:
    query = text(f"""
        select k.conname from pg_class c join pg_constraint k on k.conrelid = c.oid
        where {LABELS} and k.conname !~ ('^' || c.relname || '_.*(pkey|key|fkey|check|not_null)$')
    """)

    with database.connect() as connection:
        assert list(connection.scalars(query)) == []


def test_indexes_are_those_of_the_contract(database: Engine) -> None:
    query = text(f"""
        select c.relname || ' ' || substring(pg_get_indexdef(i.indexrelid) from 'USING btree (.*)$')
        from pg_class c join pg_index i on i.indrelid = c.oid
        where {LABELS} and not i.indisunique
          -- Ours, on Label's table.
          and i.indexrelid <> 'sessions_migration_trees'::regclass
    """)

    with database.connect() as connection:
        found = list(connection.scalars(query))

    assert sorted(found) == sorted(lines(INDEXES))


def test_every_foreign_key_finds_its_rows_by_an_index(database: Engine) -> None:
    """Without one, deleting the row referred to reads the whole table that refers to it."""
    query = text(f"""
        select c.relname || '.' || k.conname
        from pg_class c join pg_constraint k on k.conrelid = c.oid and k.contype = 'f'
        where {LABELS} and not exists (
            select from pg_index i where i.indrelid = c.oid and i.indkey[0] = k.conkey[1] and i.indpred is null)
    """)

    with database.connect() as connection:
        assert list(connection.scalars(query)) == []


@pytest.mark.parametrize("table", ["participants", "projects", "sessions", "raw_datasets", "models"])
def test_rows_may_be_imported_with_their_ids(database: Engine, table: str) -> None:
    query = text("select attidentity from pg_attribute where attrelid = to_regclass(:table) and attnum = 1")

    with database.connect() as connection:
        assert connection.scalar(query, {"table": table}) == "d"  # "by default", not "always"
