"""Record reasons of denials.

Whether an account may watch a content can be decided by a service of the operator, which alone knows why it said no. What
it said is kept with the denial, for whoever has to answer the customer.

Revision ID: 0013
Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "denials",
        sa.Column(
            "reason",
            sa.Text(),
            nullable=True,
            comment="Why content access was denied, in the words of the entitlement service; null = it gave no reason, "
            "was not asked, or the refusal was another",
        ),
        schema="srm",
    )


def downgrade() -> None:
    op.drop_column("denials", "reason", schema="srm")
