"""Let the reaper make partitions.

Only the owner of a table may make and drop its partitions, and the application is not the owner
(deploy/postgres/roles.sql). These functions run as their owner and do just that for the application: months of the two
tables, within bounds. They drop and delete no row that is less than a day old, whoever asks.

Revision ID: 0017
Revises: 0016
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

TIME_OF = """
    CASE of_table WHEN 'session_history' THEN 'ended_at' WHEN 'denials' THEN 'denied_at' END
"""

REFUSE_OTHER_TABLES = """
    IF time_column IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is not partitioned by month', of_table);
    END IF;
"""

REFUSE_HALF_MONTHS = """
    IF month IS NULL OR NOT isfinite(month) OR month <> date_trunc('month', month) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is not the first instant of a month', month);
    END IF;
"""

AS_ITS_OWNER = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'"

# Lock the parent too. A query that has already read the list of partitions would miss the moved rows. An insert would
# find that its row no longer fits the default partition.
LOCK = """
        EXECUTE format('LOCK TABLE ONLY srm.%I IN ACCESS EXCLUSIVE MODE', of_table);
        EXECUTE format('LOCK TABLE srm.%I IN ACCESS EXCLUSIVE MODE', of_table || '_default');
"""

MAKE_PARTITION = f"""
CREATE FUNCTION srm.make_partition(of_table text, month timestamptz, at_most integer) RETURNS boolean
{AS_ITS_OWNER} AS $$
DECLARE
    time_column text := {TIME_OF};
    next_month timestamptz := month + interval '1 month';
    partition text := format('srm.%I', of_table || to_char(month, '_YYYY_MM'));
    move text;
    moved integer;
BEGIN
    {REFUSE_OTHER_TABLES}
    {REFUSE_HALF_MONTHS}
    IF month NOT BETWEEN statement_timestamp() - interval '11 years' AND statement_timestamp() + interval '1 year' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%L is too far away for a partition', month);
    END IF;
    IF EXISTS (SELECT FROM pg_inherits
               WHERE inhrelid = to_regclass(partition) AND inhparent = format('srm.%I', of_table)::regclass) THEN
        RETURN true;
    END IF;
    IF to_regclass(partition) IS NULL THEN
        BEGIN  -- not to move a million rows in vain: at the end it takes these locks
            {LOCK}
            RAISE SQLSTATE 'SRM00';
        EXCEPTION WHEN SQLSTATE 'SRM00' THEN  -- and the lock is given back
        END;
        EXECUTE format(
            'CREATE TABLE %s (LIKE srm.%I INCLUDING DEFAULTS INCLUDING INDEXES,'
            ' CONSTRAINT month_in_the_making CHECK (%I >= %L AND %I < %L))',
            partition, of_table, time_column, month, time_column, next_month
        );
    ELSIF NOT EXISTS (SELECT FROM pg_constraint
                      WHERE conrelid = to_regclass(partition) AND conname = 'month_in_the_making') THEN
        RAISE duplicate_table USING MESSAGE = format('%s is there, and is no partition of srm.%I', partition, of_table);
    END IF;
    move := format(
        'WITH moved AS (DELETE FROM srm.%I WHERE ctid = ANY (ARRAY('
        '  SELECT ctid FROM srm.%I WHERE %I >= $1 AND %I < $2 LIMIT $3)) RETURNING *)'
        ' INSERT INTO %s SELECT * FROM moved',
        of_table || '_default', of_table || '_default', time_column, time_column, partition
    );
    EXECUTE move USING month, next_month, at_most;
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved >= at_most THEN
        RETURN false;
    END IF;
    {LOCK}
    EXECUTE move USING month, next_month, NULL::integer;
    IF to_regrole('srm_application') IS NOT NULL THEN
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM srm_application', partition);
    END IF;
    EXECUTE format(
        'ALTER TABLE srm.%I ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', of_table, partition, month, next_month
    );
    EXECUTE format('ALTER TABLE %s DROP CONSTRAINT month_in_the_making', partition);
    RETURN true;
END $$
"""  # noqa: S608 its own words

DROP_PARTITION = f"""
CREATE FUNCTION srm.drop_partition(of_table text, month timestamptz) RETURNS void
{AS_ITS_OWNER} AS $$
DECLARE
    time_column text := {TIME_OF};
    partition text := format('srm.%I', of_table || to_char(month, '_YYYY_MM'));
BEGIN
    {REFUSE_OTHER_TABLES}
    {REFUSE_HALF_MONTHS}
    IF month + interval '1 month' > statement_timestamp() - interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('%s is too young to be dropped', partition);
    END IF;
    IF NOT EXISTS (SELECT FROM pg_inherits
                   WHERE inhrelid = to_regclass(partition) AND inhparent = format('srm.%I', of_table)::regclass) THEN
        RAISE undefined_table USING MESSAGE = format('%s is no partition of srm.%I', partition, of_table);
    END IF;
    EXECUTE format('DROP TABLE %s', partition);
END $$
"""

EMPTY_DEFAULT_PARTITION = f"""
CREATE FUNCTION srm.empty_default_partition(of_table text, before timestamptz, at_most integer) RETURNS integer
{AS_ITS_OWNER} AS $$
DECLARE
    time_column text := {TIME_OF};
    deleted integer;
BEGIN
    {REFUSE_OTHER_TABLES}
    IF before IS NULL OR before > statement_timestamp() - interval '1 day' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'what is younger than a day is not deleted';
    END IF;
    EXECUTE format(
        'DELETE FROM srm.%I WHERE ctid = ANY (ARRAY(SELECT ctid FROM srm.%I WHERE %I < $1 LIMIT $2))',
        of_table || '_default', of_table || '_default', time_column
    ) USING before, at_most;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$
"""  # noqa: S608

COMMENTS = {
    "make_partition(text, timestamptz, integer)": "Have the partition of that month (UTC) of session_history or denials, "
    "moving at most so many rows to it out of the default partition: true once it is there; false = call it again, in "
    "the same transaction",
    "drop_partition(text, timestamptz)": "Drop the partition of that month (UTC) of session_history or denials",
    "empty_default_partition(text, timestamptz, integer)": "Delete at most so many rows from before that time out of "
    "the default partition of session_history or denials; how many it were",
}


def upgrade() -> None:
    for function in (MAKE_PARTITION, DROP_PARTITION, EMPTY_DEFAULT_PARTITION):
        op.execute(function)
    for function, comment in COMMENTS.items():
        op.execute(f"REVOKE EXECUTE ON FUNCTION srm.{function} FROM PUBLIC")
        op.execute(f"COMMENT ON FUNCTION srm.{function} IS '{comment}'")


def downgrade() -> None:
    for function in COMMENTS:
        op.execute(f"DROP FUNCTION srm.{function}")
