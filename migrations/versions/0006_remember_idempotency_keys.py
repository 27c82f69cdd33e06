"""Remember idempotency keys.

A client that lost the answer to a setup repeats the setup with its key. While the session is active, the repeat returns
that session instead of taking a second slot. The key is a column of `sessions`. It needs no index, because a setup
lists the sessions of its account anyway.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sessions",
        sa.Column(
            "idempotency_key", sa.Text(), nullable=True, comment="Idempotency-Key of the setup; null = it had none"
        ),
        schema="srm",
    )


def downgrade() -> None:
    op.drop_column("sessions", "idempotency_key", schema="srm")
