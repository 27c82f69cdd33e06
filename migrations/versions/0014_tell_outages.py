"""Tell outages.

The API notes each second in one row that it can take keep-alives. While it cannot, no session lapses; afterwards each
session has its whole timeout again. Otherwise an outage longer than the timeout would end every session although its
viewer is still there. The view follows this rule too.

Revision ID: 0014
Revises: 0013
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

ACTIVE_SESSIONS = """
CREATE OR REPLACE VIEW srm.active_sessions AS
SELECT s.account_id, s.session_id, s.device_id, d.name AS device_name, d.device_group,
       s.content_type, s.content_id, s.started_at, s.last_keep_alive_at,
       least({heard_of_at} + make_interval(secs => s.timeout_seconds),
             s.started_at + make_interval(secs => s.max_session_seconds)) AS lapses_at
FROM srm.sessions s
LEFT JOIN srm.devices d ON d.account_id = s.account_id AND d.device_id = s.device_id
WHERE s.ended_at IS NULL
  AND (s.timeout_seconds IS NULL
       OR statement_timestamp() - {heard_of_at} < make_interval(secs => s.timeout_seconds))
  AND (s.max_session_seconds IS NULL
       OR statement_timestamp() - s.started_at < make_interval(secs => s.max_session_seconds))
"""
AVAILABLE_SINCE = """(SELECT CASE WHEN a.seen_at < statement_timestamp() - interval '5 seconds'
                     THEN statement_timestamp() ELSE a.available_since END FROM srm.availability a)"""


def upgrade() -> None:
    op.create_table(
        "availability",
        sa.Column(
            "singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="There is one row"
        ),
        sa.Column(
            "seen_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="When the API was last able to; each second, while it is",
        ),
        sa.Column(
            "available_since",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="When the last outage was over: until a timeout after it no session lapses for want of keep-alives",
        ),
        sa.Column(
            "outage_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the last outage began; null = none is known of",
        ),
        sa.CheckConstraint("singleton", name=op.f("availability_singleton_check")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("availability_pkey")),
        schema="srm",
        comment="Since when SRM has been able to take keep-alives; one row",
    )
    op.execute(
        "INSERT INTO srm.availability (seen_at, available_since) VALUES (statement_timestamp(), statement_timestamp())"
    )
    op.execute(ACTIVE_SESSIONS.format(heard_of_at=f"greatest(s.last_keep_alive_at, {AVAILABLE_SINCE})"))


def downgrade() -> None:
    op.execute(ACTIVE_SESSIONS.format(heard_of_at="s.last_keep_alive_at"))
    op.drop_table("availability", schema="srm")
