"""Record denials.

Why could this customer not watch last night? Every denied setup is recorded with the rule, its limit and the sessions
in the way. A profile may also only observe its limits. Then it denies nothing, and setups beyond its limits are
recorded. The table is partitioned by month like the history; the reaper makes and drops the partitions.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "account_profiles",
        sa.Column(
            "mode",
            sa.Text(),
            server_default=sa.text("'enforce'"),
            nullable=False,
            comment="enforce = the limits hold; observe = a setup beyond them is admitted, and recorded in denials",
        ),
        schema="srm",
    )
    op.create_check_constraint(
        op.f("account_profiles_mode_check"), "account_profiles", "mode IN ('enforce', 'observe')", schema="srm"
    )
    op.create_table(
        "denials",
        sa.Column("account_id", sa.Text(), nullable=False, comment="Account of the token"),
        sa.Column(
            "denied_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("statement_timestamp()"),
            nullable=False,
            comment="When it was refused",
        ),
        sa.Column(
            "denial_id",
            sa.Uuid(),
            server_default=sa.text("gen_random_uuid()"),
            nullable=False,
            comment="Tells refusals of the same instant apart",
        ),
        sa.Column("device_id", sa.Text(), nullable=False, comment="Device of the token"),
        sa.Column("content_type", sa.Text(), nullable=False, comment="contentType of the setup"),
        sa.Column("content_id", sa.Text(), nullable=False, comment="contentID of the setup"),
        sa.Column(
            "address",
            postgresql.INET(),
            nullable=True,
            comment="Address of the client, of IPv6 its /64; null = not known",
        ),
        sa.Column("error_code", sa.Text(), nullable=False, comment="errorCode of the answer: SRM-0004 to SRM-0007"),
        sa.Column(
            "rule",
            sa.Text(),
            nullable=True,
            comment="The limit that was reached: max_sessions, device_group:mobile, …; null = it was none",
        ),
        sa.Column("rule_limit", sa.Integer(), nullable=True, comment="What the limit was at"),
        sa.Column(
            "in_the_way",
            sa.ARRAY(sa.Uuid()),
            nullable=True,
            comment="The sessions whose end would have made room",
        ),
        sa.Column(
            "observed",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="True: the profile only observes; the session was admitted, and by an enforced limit it would have "
            "been refused or, as on_limit says, have evicted others",
        ),
        sa.PrimaryKeyConstraint("account_id", "denied_at", "denial_id", name=op.f("denials_pkey")),
        schema="srm",
        comment="Setups that were refused, or would have been, partitioned by month (UTC), dropped by age",
        postgresql_partition_by="RANGE (denied_at)",
    )


def downgrade() -> None:
    op.drop_table("denials", schema="srm")
    op.drop_column("account_profiles", "mode", schema="srm")
