-- What of Label's MySQL or MariaDB database will change, or be refused, when it is converted (docs/from-mysql.md). Only reads.
--
--     mariadb --batch --skip-column-names label < check-mysql.sql
--
-- One line for each column with such rows: what happens to them, the column, how many. No line: nothing is awkward.
-- The statement is made from the columns that are there, whichever of Label's own steps this database has had.
set session group_concat_max_len = 16777216;
set @home = database();

set @finds = (
    select group_concat(
        'select ''', verdict, ''' as happens, ''', table_name, '.', column_name, ''' as place, count(*) as found from `',
        table_name, '` where ', replace(awkward, '?', concat('`', column_name, '`'))
        separator ' union all ')
    from (
        select c.table_name as table_name, c.column_name as column_name, w.verdict, w.awkward
        from information_schema.columns c
        join information_schema.tables t on t.table_schema = c.table_schema and t.table_name = c.table_name
                                        and t.table_type = 'BASE TABLE'
        join (
            -- pgloader would lose the whole table for one of these where the column must not be empty.
            select 'zero date, becomes NULL' as verdict, 'cast(? as char) like ''0000-00-00%''' as awkward,
                   'date|datetime|timestamp' as types, '.*' as names
            union all select 'not one of the enum, becomes NULL', '? + 0 = 0', 'enum', '.*'
            union all select 'holds NUL, which is removed', 'instr(?, char(0)) > 0', 'char|varchar|tinytext|text|mediumtext|longtext', '.*'
            union all select 'not JSON, so its table is refused: correct it', '? <> '''' and not json_valid(?)',
                             'char|varchar|tinytext|text|mediumtext|longtext',
                             'labelings|analysis_config|bouts|model_settings|metadata|split_parameters'
            union all select 'neither 0 nor 1, becomes true', '? not in (0, 1)', 'tinyint', 'keep|is_visible|great_puffs|is_active'
            union all select 'beyond 64 bits, so its table is refused: correct it', '? > 9223372036854775807', 'bigint', '.*'
            union all select 'exactly 500 characters, so perhaps cut off: correct it', 'char_length(?) = 500', 'varchar',
                             'path|legacy_path|file_path|session_path|parent_session_data_path'
            -- UTF-8 that was stored through a connection that said latin1. No other text is UTF-8 again when it is read so.
            union all select 'UTF-8 stored as latin1, stays garbled: correct it',
                             'length(convert(? using utf8mb4)) <> char_length(?) and convert(convert(? using latin1) using utf8mb4) = convert(? using utf8mb4) and hex(convert(? using latin1)) regexp ''^([0-7].|C[2-9A-F][89AB].|D.[89AB].|E.([89AB].){2}|F[0-4]([89AB].){3})+$''',
                             'char|varchar|tinytext|text|mediumtext|longtext', '.*'
        ) w on c.data_type regexp concat('^(', w.types, ')$') and c.column_name regexp concat('^(', w.names, ')$')
        where c.table_schema = @home
    ) as wanted);
set @finds = concat('select * from (', @finds, ') as all_of_them where found > 0 order by happens, place');
prepare finds from @finds;
execute finds;

select 'not InnoDB: its foreign keys are not there' as happens, table_name as place, table_rows as found
from information_schema.tables where table_schema = @home and table_type = 'BASE TABLE' and engine <> 'InnoDB';
