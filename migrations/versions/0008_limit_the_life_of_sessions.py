"""Limit the life of sessions.

A profile may limit the life of a session, with or without keep-alives. A client that forgets to tear down a session
without keep-alive gets its slot back in the end. A session copies the limit at its setup. Earlier sessions have none.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ACTIVE_SESSIONS = """
CREATE OR REPLACE VIEW srm.active_sessions AS
SELECT s.account_id, s.session_id, s.device_id, d.name AS device_name, d.device_group,
       s.content_type, s.content_id, s.started_at, s.last_keep_alive_at,
       {lapses_at} AS lapses_at
FROM srm.sessions s
LEFT JOIN srm.devices d ON d.account_id = s.account_id AND d.device_id = s.device_id
WHERE s.ended_at IS NULL
  AND (s.timeout_seconds IS NULL
       OR statement_timestamp() - s.last_keep_alive_at < make_interval(secs => s.timeout_seconds))
"""
LAPSES_AT = "s.last_keep_alive_at + make_interval(secs => s.timeout_seconds)"
YOUNG_ENOUGH = """
  AND (s.max_session_seconds IS NULL
       OR statement_timestamp() - s.started_at < make_interval(secs => s.max_session_seconds))
"""
COMMENTS = {
    "account_profiles": (
        "Seconds in which a keep-alive is expected; null = keep-alive disabled, sessions never lapse",
        "Seconds in which a keep-alive is expected; null = keep-alive disabled",
    ),
    "sessions": (
        "Seconds from a keep-alive to the lapse, copied from the profile at setup; null = never lapses",
        "Seconds from a keep-alive to the lapse, copied from the profile at setup; null = no keep-alive needed",
    ),
    "session_history": (
        "Seconds from a keep-alive to the lapse, copied from the profile at setup; null = never lapses",
        "Seconds from a keep-alive to the lapse, copied from the profile at setup; null = no keep-alive needed",
    ),
}
LAPSES_AT_COMMENT = "COMMENT ON COLUMN srm.active_sessions.lapses_at IS '{}'"


def max_session_seconds(comment: str) -> sa.Column[int]:
    return sa.Column("max_session_seconds", sa.Integer(), nullable=True, comment=comment)


def upgrade() -> None:
    op.add_column(
        "account_profiles",
        max_session_seconds("Longest that a session may live, keep-alives or not; null = no limit"),
        schema="srm",
    )
    op.create_check_constraint(
        op.f("account_profiles_max_session_seconds_check"), "account_profiles", "max_session_seconds >= 1", schema="srm"
    )
    for table in ("sessions", "session_history"):
        op.add_column(
            table,
            max_session_seconds("Seconds from started_at to the lapse, keep-alives or not; null = no limit"),
            schema="srm",
        )
    for table, (before, after) in COMMENTS.items():
        op.alter_column(table, "timeout_seconds", comment=after, existing_comment=before, schema="srm")
    at_the_latest = "s.started_at + make_interval(secs => s.max_session_seconds)"
    op.execute(ACTIVE_SESSIONS.format(lapses_at=f"least({LAPSES_AT}, {at_the_latest})") + YOUNG_ENOUGH)
    op.execute(
        LAPSES_AT_COMMENT.format(
            "When the session lapses unless a keep-alive comes, or is as old as it may get; null = never"
        )
    )


def downgrade() -> None:
    op.execute(ACTIVE_SESSIONS.format(lapses_at=LAPSES_AT))
    op.execute(LAPSES_AT_COMMENT.format("When the session lapses unless a keep-alive comes; null = never"))
    for table, (before, after) in COMMENTS.items():
        op.alter_column(table, "timeout_seconds", comment=before, existing_comment=after, schema="srm")
    for table in ("session_history", "sessions", "account_profiles"):
        op.drop_column(table, "max_session_seconds", schema="srm")
