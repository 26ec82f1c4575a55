-- Virtual splits: a session may be a range of rows of its parent's file instead of a file of its own.
-- PostgreSQL form of Label's step of the same name (label contract, section 2, M1). Repeatable, and harmless where the
-- columns were made by hand. Works with psql -f and inside a transaction, which is why there is no begin or commit here.

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

-- New columns without a default touch the catalog only, so a big table is not rewritten.
alter table sessions
    add column if not exists parent_session_data_path text,
    add column if not exists data_start_offset        bigint,
    add column if not exists data_end_offset          bigint;

-- There is no check that 0 <= start < end, nor that offsets need a parent path, although readers assume both: a row of
-- the application that breaks them would from then on refuse every update, labels included.

-- Paths of more than 500 characters broke the reference tool. From varchar to text nothing is rewritten either.
do $$
begin
    if exists (select from pg_attribute
               where attrelid = 'sessions'::regclass and attname = 'parent_session_data_path'
                 and atttypid = 'varchar'::regtype and atttypmod > 0) then
        alter table sessions alter column parent_session_data_path type text;
    end if;
exception when feature_not_supported then
    -- A view or a trigger of the laboratory holds on to the column; short paths work as they did.
    raise warning 'sessions.parent_session_data_path keeps its limit of characters: %', sqlerrm;
end $$;

comment on column sessions.parent_session_data_path is 'Absolute directory (not file) that holds the rows of this session; NULL: projects.path/session_name';
comment on column sessions.data_start_offset is 'First data row, from 0, the header not counted, in the file as it is on disk';
comment on column sessions.data_end_offset is 'Data row after the last one; NULL together with the start';
