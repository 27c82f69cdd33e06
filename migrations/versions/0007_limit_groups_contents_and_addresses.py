"""Limit groups, contents and addresses.

A profile may limit the sessions on one content, from one address, on the devices of a group and on the contents of a
group, and the number of addresses with a session. A session copies the values that these limits look at, and the limits
under which it was admitted, because both change. Sessions from before this migration have no group and no address, so
the new limits do not count them.

Revision ID: 0007
Revises: 0006
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PROFILE_LIMITS = {
    "max_sessions_per_content": "Most sessions on the same contentID; null = no limit",
    "max_ip_addresses": "Most client addresses with a session, an IPv6 /64 being one; null = no limit",
    "max_sessions_per_ip": "Most sessions from one client address; null = no limit",
}
ADMITTED = "A limit under which the session was admitted, like max_sessions; null = no limit"
ACCOUNT_USAGE = """
CREATE OR REPLACE VIEW srm.account_usage AS
SELECT a.account_id, a.enabled, a.profile_id, coalesce(a.max_sessions, p.max_sessions) AS max_sessions,
       (SELECT count(*) FROM srm.active_sessions s {which}) AS active_sessions
FROM srm.accounts a
JOIN srm.account_profiles p ON p.profile_id = a.profile_id
"""
COMMENT = "COMMENT ON COLUMN srm.account_usage.active_sessions IS '{}'"


def upgrade() -> None:
    for name, comment in PROFILE_LIMITS.items():
        op.add_column("account_profiles", sa.Column(name, sa.Integer(), nullable=True, comment=comment), schema="srm")
        op.create_check_constraint(
            op.f(f"account_profiles_{name}_check"), "account_profiles", f"{name} >= 0", schema="srm"
        )
    op.create_table(
        "content_groups",
        sa.Column("content_id", sa.Text(), nullable=False, comment="The content"),
        sa.Column("content_group", sa.Text(), nullable=False, comment="Name of the group: sports, …"),
        sa.CheckConstraint(
            "char_length(content_group) BETWEEN 1 AND 255", name=op.f("content_groups_content_group_check")
        ),
        sa.ForeignKeyConstraint(
            ["content_id"],
            ["srm.contents.content_id"],
            name=op.f("content_groups_content_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("content_id", "content_group", name=op.f("content_groups_pkey")),
        schema="srm",
        comment="Groups of contents that profiles may limit; an event is also in the groups of its channel",
    )
    create_limits_of("device", "The group, as in devices.device_group", "the devices")
    create_limits_of("content", "The group, as in content_groups.content_group", "the contents")
    for table in ("sessions", "session_history"):
        for column in session_columns():
            op.add_column(table, column, schema="srm")
    op.execute(
        ACCOUNT_USAGE.format(
            which="JOIN srm.sessions USING (account_id, session_id) WHERE s.account_id = a.account_id AND counts"
        )
    )
    op.execute(COMMENT.format("Sessions at this moment that count towards max_sessions"))


def create_limits_of(kind: str, which: str, what: str) -> None:
    """Create the table of a profile's limits for groups of this kind."""
    table, group = f"profile_{kind}_groups", f"{kind}_group"
    op.create_table(
        table,
        sa.Column("profile_id", sa.Text(), nullable=False, comment="The profile"),
        sa.Column(group, sa.Text(), nullable=False, comment=which),
        sa.Column(
            "max_sessions",
            sa.Integer(),
            nullable=True,
            comment=f"Most sessions at once on {kind}s of the group; null = no limit",
        ),
        sa.Column(
            "counts",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: sessions on them do not count towards max_sessions of the profile",
        ),
        sa.CheckConstraint(f"char_length({group}) BETWEEN 1 AND 255", name=op.f(f"{table}_{group}_check")),
        sa.CheckConstraint("max_sessions >= 0", name=op.f(f"{table}_max_sessions_check")),
        sa.ForeignKeyConstraint(
            ["profile_id"],
            ["srm.account_profiles.profile_id"],
            name=op.f(f"{table}_profile_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("profile_id", group, name=op.f(f"{table}_pkey")),
        schema="srm",
        comment=f"What a profile says of sessions on {what} of a group",
    )


def session_columns() -> list[sa.Column[Any]]:
    """Return the new columns of `sessions` and `session_history`."""
    return [
        sa.Column("device_group", sa.Text(), nullable=True, comment="Group of the device, at setup"),
        sa.Column(
            "content_groups",
            sa.ARRAY(sa.Text()),
            nullable=True,
            comment="Groups of the content, at setup; null = it was in none",
        ),
        sa.Column(
            "address",
            postgresql.INET(),
            nullable=True,
            comment="Address of the client at setup, of IPv6 its /64; null = not known",
        ),
        sa.Column(
            "counts",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="Whether it counts towards max_sessions; by the groups of device and content, at setup",
        ),
        sa.Column("max_sessions_per_content", sa.Integer(), nullable=True, comment=ADMITTED),
        sa.Column("max_ip_addresses", sa.Integer(), nullable=True, comment=ADMITTED),
        sa.Column("max_sessions_per_ip", sa.Integer(), nullable=True, comment=ADMITTED),
        sa.Column(
            "max_sessions_of_device_group",
            sa.Integer(),
            nullable=True,
            comment="The limit of device_group under which the session was admitted; null = no limit",
        ),
        sa.Column(
            "max_sessions_of_content_groups",
            sa.ARRAY(sa.Integer()),
            nullable=True,
            comment="The limits of content_groups, in their order, under which the session was admitted",
        ),
    ]


def downgrade() -> None:
    op.execute(ACCOUNT_USAGE.format(which="WHERE s.account_id = a.account_id"))
    op.execute(COMMENT.format("Sessions that hold a slot at this moment"))
    for table in ("session_history", "sessions"):
        for column in session_columns():
            op.drop_column(table, column.name, schema="srm")
    op.drop_table("profile_content_groups", schema="srm")
    op.drop_table("profile_device_groups", schema="srm")
    op.drop_table("content_groups", schema="srm")
    for name in PROFILE_LIMITS:
        op.drop_column("account_profiles", name, schema="srm")
