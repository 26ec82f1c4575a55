-- Statements for PostgreSQL after which sequences go on where MySQL's or MariaDB's numbers went on: those of rows that were deleted
-- are not given again (docs/from-mysql.md). Only reads.
--
--     mariadb --batch --skip-column-names label < numbers-mysql.sql | psql --quiet --output=/dev/null "$POSTGRES_URL"
select concat('select setval(pg_get_serial_sequence(''', lower(t.table_name), ''', ''', lower(c.column_name), '''), ',
              coalesce(t.auto_increment, 1), ', false);')
from information_schema.tables t
join information_schema.columns c on c.table_schema = t.table_schema and c.table_name = t.table_name
where t.table_schema = database() and c.extra like '%auto_increment%';
