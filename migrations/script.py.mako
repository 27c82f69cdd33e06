"""${message}

Why: …

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}

Rules of a migration (remove these lines when you have kept them):
- One change, in a file NNNN_verb_object; give the next number with `--rev-id`.
- Expand, fill, contract: the release before must work on the new schema (docs/migrations.md).
- Name every constraint. Add a constraint to an existing column in a statement of its own; on a large table NOT VALID
  first.
- Index a large table CONCURRENTLY, outside the transaction.
- Comment every table and column.
- Write no triggers.
- Write the downgrade.
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
