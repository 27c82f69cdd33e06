"""Create operators.

People and systems that use the operator API have a name and a role. A key is shown once; the table keeps only its hash.
The row of a revoked key stays, because the change log names its owner.

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "operators",
        sa.Column("name", sa.Text(), nullable=False, comment="Name of the person or system"),
        sa.Column("role", sa.Text(), nullable=False, comment="viewer = reads; care = also ends sessions; admin = all"),
        sa.Column(
            "key_hash", sa.LargeBinary(), nullable=False, comment="SHA-256 of the secret part of the Operator-Key"
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When the key was made",
        ),
        sa.Column(
            "revoked_at",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="When the key stopped working; null = it works",
        ),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 255", name=op.f("operators_name_check")),
        sa.CheckConstraint("role IN ('viewer', 'care', 'admin')", name=op.f("operators_role_check")),
        sa.PrimaryKeyConstraint("name", name=op.f("operators_pkey")),
        schema="srm",
        comment="Who may use the operator API; srm operator add, list, revoke",
    )


def downgrade() -> None:
    op.drop_table("operators", schema="srm")
