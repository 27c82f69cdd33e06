"""Record the changes of operators.

Who changed what and when, and which sessions ended by it. The table is append-only. Its owner revokes the right to
change rows from itself too. So an application that runs as the owner cannot rewrite the record by mistake.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "operator_audit",
        sa.Column(
            "account_id",
            sa.Text(),
            nullable=False,
            comment="Account that was changed; empty = none: the catalogue, a profile, an operator",
        ),
        sa.Column(
            "changed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When",
        ),
        sa.Column(
            "change_id",
            sa.Uuid(),
            server_default=sa.text("gen_random_uuid()"),
            nullable=False,
            comment="Tells changes of the same instant apart",
        ),
        sa.Column(
            "operator",
            sa.Text(),
            nullable=False,
            comment="Who: name in operators, or cli: and a user of the system",
        ),
        sa.Column(
            "action",
            sa.Text(),
            nullable=False,
            comment="What was done: create, update, delete, end, import, revoke",
        ),
        sa.Column("resource", sa.Text(), nullable=False, comment="To what: its path below /srm/v1/"),
        sa.Column("before", postgresql.JSONB(), nullable=True, comment="What it was; null = it was not there"),
        sa.Column("after", postgresql.JSONB(), nullable=True, comment="What it is now; null = it is gone"),
        sa.Column(
            "correlation_id",
            sa.Text(),
            nullable=True,
            comment="X-Correlation-Id of the request; null = it was none",
        ),
        sa.PrimaryKeyConstraint("account_id", "changed_at", "change_id", name=op.f("operator_audit_pkey")),
        schema="srm",
        comment="What operators changed, and the sessions that they ended; nothing in it is ever changed",
    )
    for columns in (["changed_at", "change_id"], ["operator", "changed_at", "change_id"]):
        name = op.f(f"operator_audit_{'_'.join(columns)}_idx")
        op.create_index(name, "operator_audit", columns, unique=False, schema="srm")
    op.execute("REVOKE UPDATE, DELETE, TRUNCATE ON srm.operator_audit FROM CURRENT_USER")


def downgrade() -> None:
    op.drop_table("operator_audit", schema="srm")
