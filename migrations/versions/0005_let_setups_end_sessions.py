"""Let setups end sessions.

A profile says what happens to a setup at the limit: deny it, or end the oldest or the newest session. A profile also
says what happens to a session that the device already has. An account may have another limit than its profile. A
session that was ended for another one keeps the name of the device that took its place; the viewer gets to read it.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

ACCOUNT_USAGE = """
CREATE OR REPLACE VIEW srm.account_usage AS
SELECT a.account_id, a.enabled, a.profile_id, {max_sessions},
       (SELECT count(*) FROM srm.active_sessions s WHERE s.account_id = a.account_id) AS active_sessions
FROM srm.accounts a
JOIN srm.account_profiles p ON p.profile_id = a.profile_id
"""

CHECKS = {
    "on_limit": "on_limit IN ('deny', 'evict_oldest', 'evict_newest')",
    "same_device": "same_device IN ('count', 'replace')",
}


def upgrade() -> None:
    op.add_column(
        "account_profiles",
        sa.Column(
            "on_limit",
            sa.Text(),
            server_default=sa.text("'deny'"),
            nullable=False,
            comment="At the limit: deny = refuse the setup; evict_oldest, evict_newest = end as few sessions as make room",
        ),
        schema="srm",
    )
    op.add_column(
        "account_profiles",
        sa.Column(
            "same_device",
            sa.Text(),
            server_default=sa.text("'count'"),
            nullable=False,
            comment="The sessions that the device of a setup already has: count = they count; replace = they are ended",
        ),
        schema="srm",
    )
    for name, condition in CHECKS.items():
        op.create_check_constraint(op.f(f"account_profiles_{name}_check"), "account_profiles", condition, schema="srm")
    op.add_column(
        "accounts",
        sa.Column(
            "max_sessions",
            sa.Integer(),
            nullable=True,
            comment="Instead of max_sessions of the profile; null = the profile's",
        ),
        schema="srm",
    )
    # NOT VALID first: the table is large, and checking every row would block it.
    op.create_check_constraint(
        op.f("accounts_max_sessions_check"), "accounts", "max_sessions >= 0", schema="srm", postgresql_not_valid=True
    )
    op.execute("ALTER TABLE srm.accounts VALIDATE CONSTRAINT accounts_max_sessions_check")
    for table in ("sessions", "session_history"):
        op.add_column(
            table,
            sa.Column(
                "ended_by",
                sa.Text(),
                nullable=True,
                comment="What the viewer calls the device whose setup ended the session; null = no setup did",
            ),
            schema="srm",
        )
    op.execute(ACCOUNT_USAGE.format(max_sessions="coalesce(a.max_sessions, p.max_sessions) AS max_sessions"))


def downgrade() -> None:
    op.execute(ACCOUNT_USAGE.format(max_sessions="p.max_sessions"))
    for table in ("session_history", "sessions"):
        op.drop_column(table, "ended_by", schema="srm")
    op.drop_column("accounts", "max_sessions", schema="srm")
    op.drop_column("account_profiles", "same_device", schema="srm")
    op.drop_column("account_profiles", "on_limit", schema="srm")
