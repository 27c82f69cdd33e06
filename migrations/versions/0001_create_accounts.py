"""Create accounts.

Accounts, their devices and their profiles: who may ask for a session, and under which limits. A setup locks the row of
its account, so that setups of one account run one after the other.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("COMMENT ON TABLE srm.alembic_version IS 'Which migrations have been run; Alembic keeps it'")
    op.execute("COMMENT ON COLUMN srm.alembic_version.version_num IS 'Revision that the schema is at'")
    op.create_table(
        "account_profiles",
        sa.Column("profile_id", sa.Text(), nullable=False, comment="Name of the profile"),
        sa.Column(
            "max_sessions",
            sa.Integer(),
            nullable=True,
            comment="Most playback sessions that an account may have at once; null = no limit",
        ),
        sa.Column(
            "timeout_seconds",
            sa.Integer(),
            nullable=True,
            comment="Seconds in which a keep-alive is expected; null = keep-alive disabled, sessions never lapse",
        ),
        sa.CheckConstraint("char_length(profile_id) BETWEEN 1 AND 255", name=op.f("account_profiles_profile_id_check")),
        sa.CheckConstraint("max_sessions >= 0", name=op.f("account_profiles_max_sessions_check")),
        sa.CheckConstraint("timeout_seconds > 0", name=op.f("account_profiles_timeout_seconds_check")),
        sa.PrimaryKeyConstraint("profile_id", name=op.f("account_profiles_pkey")),
        schema="srm",
        comment="Limits and timeout that accounts share",
    )
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text(), nullable=False, comment="Id in the subscriber system"),
        sa.Column("profile_id", sa.Text(), nullable=False, comment="Profile whose limits hold for the account"),
        sa.Column(
            "enabled",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: every setup is refused with SRM-0004",
        ),
        sa.CheckConstraint("char_length(account_id) BETWEEN 1 AND 255", name=op.f("accounts_account_id_check")),
        sa.ForeignKeyConstraint(
            ["profile_id"], ["srm.account_profiles.profile_id"], name=op.f("accounts_profile_id_fkey")
        ),
        sa.PrimaryKeyConstraint("account_id", name=op.f("accounts_pkey")),
        schema="srm",
        comment="Subscribers; the row is the lock under which the sessions of the account are counted",
    )
    op.create_index(op.f("accounts_profile_id_idx"), "accounts", ["profile_id"], unique=False, schema="srm")
    op.create_table(
        "devices",
        sa.Column("account_id", sa.Text(), nullable=False, comment="Account that the device belongs to"),
        sa.Column("device_id", sa.Text(), nullable=False, comment="Id of the device within the account"),
        sa.Column("device_group", sa.Text(), nullable=False, comment="Kind of device: tv, mobile, …"),
        sa.Column("name", sa.Text(), nullable=False, comment="What the viewer calls it: Living-room TV"),
        sa.Column(
            "enabled",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="False: every setup from it is refused with SRM-0005",
        ),
        sa.CheckConstraint("char_length(device_id) BETWEEN 1 AND 255", name=op.f("devices_device_id_check")),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["srm.accounts.account_id"],
            name=op.f("devices_account_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("account_id", "device_id", name=op.f("devices_pkey")),
        schema="srm",
        comment="Devices of the accounts",
    )


def downgrade() -> None:
    op.execute("COMMENT ON COLUMN srm.alembic_version.version_num IS NULL")
    op.execute("COMMENT ON TABLE srm.alembic_version IS NULL")
    op.drop_table("devices", schema="srm")
    op.drop_table("accounts", schema="srm")
    op.drop_table("account_profiles", schema="srm")
