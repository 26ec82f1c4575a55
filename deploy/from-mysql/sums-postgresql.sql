-- A checksum of each column of Label's tables after their conversion, in the form of sums-mysql.sql (docs/from-mysql.md). Only reads.
--
--     psql --no-psqlrc --quiet --tuples-only --no-align --field-separator=$'\t' --file=sums-postgresql.sql "$DATABASE_URL"
--
-- For the time before "producer schema apply", which adds tables and columns.
\set ON_ERROR_STOP on
select format(
    'select %L, count(*), count(v), coalesce(sum((''x'' || left(md5(k || '':'' || v), 12))::bit(48)::bigint), 0) '
    'from (select %I::text as k, %s as v from %s) as taken',
    lower(c.relname || '.' || a.attname),
    (select k.attname from pg_attribute k where k.attrelid = c.oid and k.attnum > 0 and not k.attisdropped order by k.attnum limit 1),
    format(case format_type(a.atttypid, null)
               when 'boolean' then '%I::integer::text'
               when 'timestamp with time zone' then 'to_char(%I at time zone ''UTC'', ''YYYY-MM-DD HH24:MI:SS'')'
               when 'timestamp without time zone' then 'to_char(%I, ''YYYY-MM-DD HH24:MI:SS'')'
               else '%I::text'
           end, a.attname),
    c.oid::regclass)
from pg_class c
join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where c.relkind = 'r' and c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('projects')) \gexec
