"""Tell clock steps.

The database's clock may step back, as after a failover to a host whose clock is behind. Instants from before the step
then lie in the future, and after a while nobody can tell them from those after it. So `availability` keeps the last
instant of the clock before the step, and each keep-alive notes which step it knows of. `reaper_state` keeps how far the
reaper trusts the clock, so that a clock that jumps ahead by years drops no history.

The release before goes on to work: it leaves the new columns null. The view follows the new rule.

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

COLUMNS = {
    "sessions": {
        "clock_stepped_from": "availability.clock_stepped_from at the last keep-alive; where that has changed since, a "
        "step back of the clock came after the keep-alive",
    },
    "availability": {
        "clock_stepped_from": "Latest instant that the clock can have shown before it last stepped back; null = no "
        "step is known of",
        "clock_stepped_at": "When a step back of the clock was last noticed, by the clock after the step; null = no "
        "step is known of",
    },
    "reaper_state": {
        "trusted_at": "Time by which the reaper drops history: the clock, or less after the clock jumped ahead by more "
        "than a day; null = no reaper has looked yet",
    },
}

ACTIVE_SESSIONS = """
CREATE OR REPLACE VIEW srm.active_sessions AS
SELECT s.account_id, s.session_id, s.device_id, d.name AS device_name, d.device_group,
       s.content_type, s.content_id, s.started_at, s.last_keep_alive_at,
       least({heard_of_at} + make_interval(secs => s.timeout_seconds),
             s.started_at + make_interval(secs => s.max_session_seconds)) AS lapses_at
FROM srm.sessions s
LEFT JOIN srm.devices d ON d.account_id = s.account_id AND d.device_id = s.device_id
WHERE s.ended_at IS NULL
  AND (s.timeout_seconds IS NULL
       OR statement_timestamp() - {heard_of_at} < make_interval(secs => s.timeout_seconds))
  AND (s.max_session_seconds IS NULL
       OR statement_timestamp() - s.started_at < make_interval(secs => s.max_session_seconds))
"""

BEFORE = """greatest(s.last_keep_alive_at,
    (SELECT CASE WHEN a.seen_at < statement_timestamp() - interval '5 seconds'
     THEN statement_timestamp() ELSE a.available_since END FROM srm.availability a))"""

AFTER = """greatest(
    CASE WHEN s.last_keep_alive_at
              <= nullif((SELECT a.clock_stepped_from FROM srm.availability a), s.clock_stepped_from)
         THEN NULL ELSE s.last_keep_alive_at END,
    (SELECT CASE WHEN a.seen_at < statement_timestamp() - interval '5 seconds'
                   OR isfinite(a.seen_at) AND a.seen_at > statement_timestamp() + interval '5 seconds'
     THEN statement_timestamp() ELSE a.available_since END FROM srm.availability a))"""


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        for name, comment in columns.items():
            column = sa.Column(name, postgresql.TIMESTAMP(timezone=True), nullable=True, comment=comment)
            op.add_column(table, column, schema="srm")
    op.execute(ACTIVE_SESSIONS.format(heard_of_at=AFTER))


def downgrade() -> None:
    op.execute(ACTIVE_SESSIONS.format(heard_of_at=BEFORE))
    for table, columns in COLUMNS.items():
        for name in columns:
            op.drop_column(table, name, schema="srm")
