"""Reword comments.

Comments begin with the thing that they describe, and use no pronoun. psql shows them.

Revision ID: 0020
Revises: 0019
"""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

COMMENTS = (
    (
        "accounts",
        "max_sessions",
        "Instead of max_sessions of the profile; null = the profile's",
        "Limit that replaces max_sessions of the profile; null = the limit of the profile",
    ),
    (
        "devices",
        "name",
        "What the viewer calls it: Living-room TV",
        "Name that the viewer gave the device: Living-room TV",
    ),
    (
        "entitlements",
        "valid_from",
        "First instant at which it holds",
        "First instant at which the entitlement holds",
    ),
    (
        "entitlements",
        "valid_until",
        "First instant at which it does not hold any more; null = no end",
        "First instant at which the entitlement no longer holds; null = no end",
    ),
    (
        "sessions",
        "started_at",
        "When the slot was taken",
        "Time at which the slot was taken",
    ),
    (
        "session_history",
        "started_at",
        "When the slot was taken",
        "Time at which the slot was taken",
    ),
    (
        "sessions",
        "last_keep_alive_at",
        "When the client was last heard of",
        "Time of the last keep-alive, or else of the setup",
    ),
    (
        "session_history",
        "last_keep_alive_at",
        "When the client was last heard of",
        "Time of the last keep-alive, or else of the setup",
    ),
    (
        "sessions",
        "max_sessions",
        "The limit of the account at setup, under which the session was admitted; null = no limit",
        "Limit of the account under which the session was admitted; null = no limit",
    ),
    (
        "session_history",
        "max_sessions",
        "The limit of the account at setup, under which the session was admitted; null = no limit",
        "Limit of the account under which the session was admitted; null = no limit",
    ),
    (
        "sessions",
        "ended_by",
        "What the viewer calls the device whose setup ended the session; null = no setup did",
        "Name of the device whose setup ended the session; null = no setup did",
    ),
    (
        "session_history",
        "ended_by",
        "What the viewer calls the device whose setup ended the session; null = no setup did",
        "Name of the device whose setup ended the session; null = no setup did",
    ),
    (
        "sessions",
        "content_groups",
        "Groups of the content, at setup; null = it was in none",
        "Groups of the content, at setup; null = no group",
    ),
    (
        "session_history",
        "content_groups",
        "Groups of the content, at setup; null = it was in none",
        "Groups of the content, at setup; null = no group",
    ),
    (
        "sessions",
        "counts",
        "Whether it counts towards max_sessions; by the groups of device and content, at setup",
        "True: the session counts towards max_sessions; decided at setup by the groups of device and content",
    ),
    (
        "session_history",
        "counts",
        "Whether it counts towards max_sessions; by the groups of device and content, at setup",
        "True: the session counts towards max_sessions; decided at setup by the groups of device and content",
    ),
    (
        "sessions",
        "max_sessions_per_content",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "session_history",
        "max_sessions_per_content",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "sessions",
        "max_ip_addresses",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "session_history",
        "max_ip_addresses",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "sessions",
        "max_sessions_per_ip",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "session_history",
        "max_sessions_per_ip",
        "A limit under which the session was admitted, like max_sessions; null = no limit",
        "Limit under which the session was admitted, as max_sessions; null = no limit",
    ),
    (
        "sessions",
        "max_sessions_of_device_group",
        "The limit of device_group under which the session was admitted; null = no limit",
        "Limit of device_group under which the session was admitted; null = no limit",
    ),
    (
        "session_history",
        "max_sessions_of_device_group",
        "The limit of device_group under which the session was admitted; null = no limit",
        "Limit of device_group under which the session was admitted; null = no limit",
    ),
    (
        "sessions",
        "max_sessions_of_content_groups",
        "The limits of content_groups, in their order, under which the session was admitted",
        "Limits of content_groups, in their order, under which the session was admitted",
    ),
    (
        "session_history",
        "max_sessions_of_content_groups",
        "The limits of content_groups, in their order, under which the session was admitted",
        "Limits of content_groups, in their order, under which the session was admitted",
    ),
    (
        "sessions",
        "ended_at",
        "When the slot became free; for a lapsed session the moment of the lapse; null = not ended",
        "Time at which the slot became free; for a lapsed session the instant of the lapse; null = not ended",
    ),
    (
        "sessions",
        "end_reason",
        "Why it ended; null = not ended",
        "Reason of the end; null = not ended",
    ),
    (
        "sessions",
        "idempotency_key",
        "Idempotency-Key of the setup; null = it had none",
        "Idempotency-Key of the setup; null = no key",
    ),
    (
        "session_history",
        "ended_at",
        "When the slot became free",
        "Time at which the slot became free",
    ),
    (
        "session_history",
        "end_reason",
        "Why it ended",
        "Reason of the end",
    ),
    (
        "availability",
        "seen_at",
        "When the API was last able to; each second, while it is",
        "Last time at which the API could take keep-alives; written each second",
    ),
    (
        "availability",
        "available_since",
        "When the last outage was over: until a timeout after it no session lapses for want of keep-alives",
        "End of the last outage; until a timeout after it no session lapses for want of keep-alives",
    ),
    (
        "availability",
        "outage_at",
        "When the last outage began; null = none is known of",
        "Beginning of the last outage; null = no outage is known",
    ),
    (
        "availability",
        "clock_stepped_from",
        "Latest instant that the clock can have shown before it last stepped back; null = no step is known of",
        "Latest instant that the clock can have shown before it last stepped back; null = no step is known",
    ),
    (
        "availability",
        "clock_stepped_at",
        "When a step back of the clock was last noticed, by the clock after the step; null = no step is known of",
        "Time at which the last step back of the clock was noticed, by the clock after the step; null = no step is known",
    ),
    (
        "denials",
        "denied_at",
        "When it was refused",
        "Time of the denial",
    ),
    (
        "denials",
        "denial_id",
        "Tells refusals of the same instant apart",
        "Tells denials of one instant apart",
    ),
    (
        "denials",
        "rule",
        "The limit that was reached: max_sessions, device_group:mobile, …; null = it was none",
        "Limit that was reached: max_sessions, device_group:mobile, …; null = no limit was reached",
    ),
    (
        "denials",
        "rule_limit",
        "What the limit was at",
        "Value of that limit",
    ),
    (
        "denials",
        "in_the_way",
        "The sessions whose end would have made room",
        "Sessions whose end would have made room",
    ),
    (
        "denials",
        "reason",
        "Why content access was denied, in the words of the entitlement service; null = it gave no reason, was not asked, or the refusal was another",
        "Reason of the entitlement service for denying content access; null = no reason was given, or no access was denied",
    ),
    (
        "operators",
        "created_at",
        "When the key was made",
        "Time at which the key was made",
    ),
    (
        "operators",
        "revoked_at",
        "When the key stopped working; null = it works",
        "Time at which the key stopped working; null = the key works",
    ),
    (
        "operator_audit",
        "account_id",
        "Account that was changed; empty = none: the catalogue, a profile, an operator",
        "Account that was changed; empty = no account: the catalogue, a profile, an operator",
    ),
    (
        "operator_audit",
        "changed_at",
        "When",
        "Time of the change",
    ),
    (
        "operator_audit",
        "change_id",
        "Tells changes of the same instant apart",
        "Tells changes of one instant apart",
    ),
    (
        "operator_audit",
        "operator",
        "Who: name in operators, or cli: and a user of the system",
        "Author: name in operators, or cli: and a user of the system",
    ),
    (
        "operator_audit",
        "action",
        "What was done: create, update, delete, end, import, revoke",
        "Action: create, update, delete, end, import, revoke",
    ),
    (
        "operator_audit",
        "resource",
        "To what: its path below /srm/v1/",
        "Path of the changed resource below /srm/v1/",
    ),
    (
        "operator_audit",
        "before",
        "What it was; null = it was not there",
        "State before the change; null = there was nothing",
    ),
    (
        "operator_audit",
        "after",
        "What it is now; null = it is gone",
        "State after the change; null = nothing is left",
    ),
    (
        "operator_audit",
        "correlation_id",
        "X-Correlation-Id of the request; null = it was none",
        "X-Correlation-Id of the request; null = no request made the change",
    ),
    (
        "reaper_state",
        "ran_at",
        "When a reaper was last through with all its work, done or failed; null = never",
        "Time at which a reaper last finished a run, failed tasks included; null = never",
    ),
    (
        "reaper_state",
        "expired",
        "Lapsed sessions that it has ended, ever",
        "Lapsed sessions that reapers have ended, ever",
    ),
    (
        "reaper_state",
        "archived",
        "Ended sessions that it has moved to session_history, ever",
        "Ended sessions that reapers have moved to session_history, ever",
    ),
    (
        "reaper_state",
        "failed_at",
        "When a piece of its work failed; null = the last run went well",
        "Time at which a task of the last run failed; null = all tasks succeeded",
    ),
    (
        "reaper_state",
        "failure",
        "Which piece of the last run failed, and why; null = the last run went well",
        "Task of the last run that failed, and its error; null = all tasks succeeded",
    ),
)
"""Table, column, comment before, comment after."""


def upgrade() -> None:
    for table, column, _, comment in COMMENTS:
        op.alter_column(table, column, comment=comment, schema="srm")


def downgrade() -> None:
    for table, column, comment, _ in COMMENTS:
        op.alter_column(table, column, comment=comment, schema="srm")
