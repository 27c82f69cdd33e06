"""Keep what the reaper did.

The reaper logs its work, but people with only psql or Prometheus do not see the log. One row has the time of the last
complete run, the number of sessions that were ended and moved, and the last failure.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "reaper_state",
        sa.Column(
            "singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False, comment="There is one row"
        ),
        sa.Column(
            "ran_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When a reaper was last through with all its work, done or failed; null = never",
        ),
        sa.Column(
            "expired",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Lapsed sessions that it has ended, ever",
        ),
        sa.Column(
            "archived",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Ended sessions that it has moved to session_history, ever",
        ),
        sa.Column(
            "failed_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When a piece of its work failed; null = the last run went well",
        ),
        sa.Column(
            "failure",
            sa.Text(),
            nullable=True,
            comment="Which piece of the last run failed, and why; null = the last run went well",
        ),
        sa.CheckConstraint("singleton", name=op.f("reaper_state_singleton_check")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("reaper_state_pkey")),
        schema="srm",
        comment="What the reaper did; one row, whichever reaper it was",
    )
    op.execute("INSERT INTO srm.reaper_state DEFAULT VALUES")


def downgrade() -> None:
    op.drop_table("reaper_state", schema="srm")
