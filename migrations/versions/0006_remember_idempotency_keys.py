"""Remember idempotency keys.

A setup whose answer got lost is asked again with the same key: as long as its session is active it is given back,
instead of burning a second slot. The key stays with the session in the hot table and is found with the
sessions of the account, which a setup lists anyway: it needs no index.

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
