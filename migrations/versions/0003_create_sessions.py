"""Create sessions.

Sessions and their history. Every keep-alive updates `sessions`. No index has `last_keep_alive_at`, and each page keeps
free space, so that these updates touch no index. `session_history` is partitioned by month, so that old months can be
dropped. The reaper makes the partitions.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("account_id", sa.Text(), nullable=False, comment="Account that holds the slot"),
        sa.Column("session_id", sa.Uuid(), nullable=False, comment="The sessionId of the API"),
        sa.Column("device_id", sa.Text(), nullable=False, comment="Device that set the session up"),
        sa.Column("content_type", sa.Text(), nullable=False, comment="contentType of the setup"),
        sa.Column("content_id", sa.Text(), nullable=False, comment="contentID of the setup"),
        sa.Column(
            "started_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When the slot was taken",
        ),
        sa.Column(
            "last_keep_alive_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When the client was last heard of",
        ),
        sa.Column(
            "timeout_seconds",
            sa.Integer(),
            nullable=True,
            comment="Seconds from a keep-alive to the lapse, copied from the profile at setup; null = never lapses",
        ),
        sa.Column(
            "max_sessions",
            sa.Integer(),
            nullable=True,
            comment="The limit of the account at setup, under which the session was admitted; null = no limit",
        ),
        sa.Column(
            "ended_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the slot became free; for a lapsed session the moment of the lapse; null = not ended",
        ),
        sa.Column("end_reason", sa.Text(), nullable=True, comment="Why it ended; null = not ended"),
        sa.CheckConstraint(
            "content_type IN ('COD', 'CU', 'TS', 'NPVR', 'LIVE')", name=op.f("sessions_content_type_check")
        ),
        sa.CheckConstraint(
            "end_reason IN ('teardown', 'expired', 'operator', 'evicted', 'replaced', 'account_disabled', 'device_disabled')",
            name=op.f("sessions_end_reason_check"),
        ),
        sa.CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name=op.f("sessions_ended_check")),
        sa.PrimaryKeyConstraint("account_id", "session_id", name=op.f("sessions_pkey")),
        schema="srm",
        comment="Playback sessions: active, lapsed and freshly ended ones",
        postgresql_with={"fillfactor": "70", "autovacuum_vacuum_scale_factor": "0.05"},
    )
    op.create_index(
        op.f("sessions_ended_at_idx"),
        "sessions",
        ["ended_at"],
        unique=False,
        schema="srm",
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_table(
        "session_history",
        sa.Column("account_id", sa.Text(), nullable=False, comment="Account that holds the slot"),
        sa.Column("session_id", sa.Uuid(), nullable=False, comment="The sessionId of the API"),
        sa.Column("device_id", sa.Text(), nullable=False, comment="Device that set the session up"),
        sa.Column("content_type", sa.Text(), nullable=False, comment="contentType of the setup"),
        sa.Column("content_id", sa.Text(), nullable=False, comment="contentID of the setup"),
        sa.Column(
            "started_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When the slot was taken",
        ),
        sa.Column(
            "last_keep_alive_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When the client was last heard of",
        ),
        sa.Column(
            "timeout_seconds",
            sa.Integer(),
            nullable=True,
            comment="Seconds from a keep-alive to the lapse, copied from the profile at setup; null = never lapses",
        ),
        sa.Column(
            "max_sessions",
            sa.Integer(),
            nullable=True,
            comment="The limit of the account at setup, under which the session was admitted; null = no limit",
        ),
        sa.Column(
            "ended_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="When the slot became free",
        ),
        sa.Column("end_reason", sa.Text(), nullable=False, comment="Why it ended"),
        sa.PrimaryKeyConstraint("account_id", "session_id", "ended_at", name=op.f("session_history_pkey")),
        schema="srm",
        comment="Ended sessions, partitioned by month (UTC) of ended_at, dropped by age",
        postgresql_partition_by="RANGE (ended_at)",
    )


def downgrade() -> None:
    op.drop_table("session_history", schema="srm")
    op.drop_table("sessions", schema="srm")
