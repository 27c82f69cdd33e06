"""Keep roles from records.

The roles of deploy/postgres/roles.sql get rights on every table when the roles exist before the tables. These rights
are too wide. The application may only add to the records, only the owner may write the revision, and readers may not
see the hashes of keys.

Revision ID: 0018
Revises: 0017
"""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        r"""
        DO $$ BEGIN
            IF to_regrole('srm_application') IS NOT NULL THEN
                REVOKE INSERT, UPDATE, DELETE ON srm.alembic_version FROM srm_application;
                REVOKE DELETE ON srm.operators, srm.availability FROM srm_application;
                REVOKE INSERT, DELETE ON srm.reaper_state FROM srm_application;
                REVOKE UPDATE, DELETE ON srm.operator_audit, srm.session_history, srm.denials FROM srm_application;
                REVOKE INSERT, UPDATE, DELETE ON srm.session_history_default, srm.denials_default FROM srm_application;
            END IF;
            IF to_regrole('srm_readonly') IS NOT NULL THEN
                REVOKE SELECT ON srm.operators FROM srm_readonly;
                GRANT SELECT (name, role, created_at, revoked_at) ON srm.operators TO srm_readonly;
            END IF;
        END $$
        """
    )


def downgrade() -> None:
    """Do nothing: the release before does not need these rights."""
