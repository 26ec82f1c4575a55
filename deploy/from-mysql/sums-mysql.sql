-- A checksum of each column of Label's MySQL or MariaDB database, to be compared with those that sums-postgresql.sql finds after the
-- conversion (docs/from-mysql.md). Only reads.
--
--     mariadb --batch --skip-column-names label < sums-mysql.sql
--
-- Each line: table and column, rows, values that are not NULL, and the sum of 48 bits of the MD5 of each row's key and value. A
-- value is taken as it should arrive: times in UTC, no zero dates, no NUL, no enum value that is none, yes or no.
set session group_concat_max_len = 16777216, time_zone = '+00:00';
set @home = database();

set @sums = (
    select group_concat(
        'select ''', lower(c.table_name), '.', lower(c.column_name), ''' as place, count(*) as all_rows, count(v) as filled, ',
        'coalesce(sum(cast(conv(left(md5(concat(k, '':'', v)), 12), 16, 10) as unsigned)), 0) as checksum from (select `',
        k.column_name, '` as k, ',
        replace(case
            when c.data_type in ('date', 'datetime', 'timestamp')
                then 'case when cast(? as char) not like ''0000-00-00%'' then cast(? as char(19)) end'
            when c.data_type = 'tinyint' and c.column_name in ('keep', 'is_visible', 'great_puffs', 'is_active')
                then 'convert(? <> 0 using utf8mb4)'
            when c.data_type = 'enum' then 'case when ? + 0 <> 0 then convert(? using utf8mb4) end'
            when c.column_name in ('labelings', 'analysis_config', 'bouts', 'model_settings', 'metadata', 'split_parameters')
                then 'nullif(convert(? using utf8mb4), '''')'
            when c.data_type like '%text' or c.data_type in ('char', 'varchar', 'json')
                then 'replace(convert(? using utf8mb4), char(0), '''')'
            else 'convert(? using utf8mb4)'
        end, '?', concat('`', c.column_name, '`')),
        ' as v from `', c.table_name, '`) as taken'
        separator ' union all ')
    from information_schema.columns c
    join information_schema.tables t on t.table_schema = c.table_schema and t.table_name = c.table_name
                                    and t.table_type = 'BASE TABLE'
    join information_schema.columns k on k.table_schema = c.table_schema and k.table_name = c.table_name
                                     and k.ordinal_position = 1
    where c.table_schema = @home);
prepare sums from @sums;
execute sums;
