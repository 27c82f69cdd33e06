"""Record reasons of denials.

A service of the operator may decide content access, and only that service knows the reason for a denial. The reason is
kept with the denial, for the people who answer the customer.

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
