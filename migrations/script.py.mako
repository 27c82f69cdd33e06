"""${message}

Why: …

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Rules of a migration (remove this paragraph when you have kept them): one change, named
NNNN_verb_object, `--rev-id` with the next number. Expand, fill, contract: the release before this one
keeps working on the schema after it. Name every constraint; add one to a column that exists in a
statement of its own, NOT VALID first when the table is large. Index large tables CONCURRENTLY, outside
the transaction. Comment every table and column. No triggers. Write the way back.
"""

from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
