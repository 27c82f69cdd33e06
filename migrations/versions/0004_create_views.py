"""Create views.

Views for people with psql: which sessions are active, and how full each account is. Like the service, the views judge
by the clock; they do not depend on the reaper.

Revision ID: 0004
Revises: 0003
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ACTIVE_SESSIONS = """
CREATE VIEW srm.active_sessions AS
SELECT s.account_id, s.session_id, s.device_id, d.name AS device_name, d.device_group,
       s.content_type, s.content_id, s.started_at, s.last_keep_alive_at,
       s.last_keep_alive_at + make_interval(secs => s.timeout_seconds) AS lapses_at
FROM srm.sessions s
LEFT JOIN srm.devices d ON d.account_id = s.account_id AND d.device_id = s.device_id
WHERE s.ended_at IS NULL
  AND (s.timeout_seconds IS NULL
       OR statement_timestamp() - s.last_keep_alive_at < make_interval(secs => s.timeout_seconds))
"""

ACCOUNT_USAGE = """
CREATE VIEW srm.account_usage AS
SELECT a.account_id, a.enabled, a.profile_id, p.max_sessions,
       (SELECT count(*) FROM srm.active_sessions s WHERE s.account_id = a.account_id) AS active_sessions
FROM srm.accounts a
JOIN srm.account_profiles p ON p.profile_id = a.profile_id
"""

COMMENTS = {
    "active_sessions": {
        "": "Sessions that hold a slot at this moment",
        "account_id": "Account that holds the slot",
        "session_id": "The sessionId of the API",
        "device_id": "Device that set the session up",
        "device_name": "What the viewer calls the device; null = the device is gone",
        "device_group": "Kind of device: tv, mobile, …; null = the device is gone",
        "content_type": "contentType of the setup",
        "content_id": "contentID of the setup",
        "started_at": "When the slot was taken",
        "last_keep_alive_at": "When the client was last heard of",
        "lapses_at": "When the session lapses unless a keep-alive comes; null = never",
    },
    "account_usage": {
        "": "Accounts, their limit and how many sessions they have at this moment",
        "account_id": "The account",
        "enabled": "False: every setup is refused with SRM-0004",
        "profile_id": "Profile whose limits hold for the account",
        "max_sessions": "Most playback sessions that the account may have at once; null = no limit",
        "active_sessions": "Sessions that hold a slot at this moment",
    },
}


def upgrade() -> None:
    op.execute(ACTIVE_SESSIONS)
    op.execute(ACCOUNT_USAGE)
    for view, comments in COMMENTS.items():
        for column, comment in comments.items():
            what = f"COLUMN srm.{view}.{column}" if column else f"VIEW srm.{view}"
            op.execute(f"COMMENT ON {what} IS '{comment}'")


def downgrade() -> None:
    op.execute("DROP VIEW srm.account_usage")
    op.execute("DROP VIEW srm.active_sessions")
