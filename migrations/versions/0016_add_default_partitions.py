"""Add default partitions.

The reaper makes the partitions of history and denials months ahead. It may not run, may lack a right, or may find the
name taken. Then the default partition takes the rows, which PostgreSQL would otherwise refuse. The reaper moves them
once it can make the partition.

Revision ID: 0016
Revises: 0015
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

PARTITIONED = ("session_history", "denials")


def upgrade() -> None:
    for table in PARTITIONED:
        default = f"srm.{table}_default"
        # Made apart and then attached, so that others can read and write meanwhile.
        op.execute(f"CREATE TABLE {default} (LIKE srm.{table} INCLUDING DEFAULTS)")
        op.execute(f"COMMENT ON TABLE {default} IS 'What has no partition of its month; the reaper makes that'")
        op.execute(f"ALTER TABLE srm.{table} ATTACH PARTITION {default} DEFAULT")


def downgrade() -> None:
    for table in PARTITIONED:
        default = f"srm.{table}_default"
        op.execute(
            f"""
            DO $$ BEGIN
                LOCK TABLE {default} IN ACCESS EXCLUSIVE MODE;
                IF EXISTS (SELECT FROM {default}) THEN
                    RAISE EXCEPTION '{default} holds rows: let the reaper make their months first';
                END IF;
            END $$
            """
        )
        op.execute(f"DROP TABLE {default}")
