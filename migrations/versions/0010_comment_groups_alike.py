"""Comment groups alike.

The columns for device groups and for content groups mean one thing, so their comments use one wording.

Revision ID: 0010
Revises: 0009
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MAX_SESSIONS = "Most sessions at once in the group; null = no limit"
COUNTS = "False: sessions in it do not count towards max_sessions of the profile"


def comment(kind: str, max_sessions: str, counts: str) -> None:
    table = f"profile_{kind}_groups"
    op.alter_column(table, "max_sessions", comment=max_sessions, schema="srm")
    op.alter_column(table, "counts", comment=counts, schema="srm")


def upgrade() -> None:
    for kind in ("device", "content"):
        comment(kind, MAX_SESSIONS, COUNTS)


def downgrade() -> None:
    for kind in ("device", "content"):
        comment(
            kind,
            f"Most sessions at once on {kind}s of the group; null = no limit",
            "False: sessions on them do not count towards max_sessions of the profile",
        )
