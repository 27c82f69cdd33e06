"""What the first release asked the database: schema 0004, and the statements of its client API, word for word.

That release is on the road; what it says does not change with the code.
"""

REVISION = "0004"

LOCK_ACCOUNT = "SELECT enabled FROM srm.accounts WHERE account_id = %(account)s FOR NO KEY UPDATE"

GET_TERMS_AND_LIST = """
    SELECT srm.devices.enabled, EXISTS (
               SELECT * FROM srm.entitlements, srm.product_contents
               WHERE srm.entitlements.account_id = %(account)s
                 AND srm.entitlements.valid_from <= statement_timestamp()
                 AND (srm.entitlements.valid_until IS NULL OR srm.entitlements.valid_until > statement_timestamp())
                 AND srm.product_contents.product_id = srm.entitlements.product_id
                 AND srm.product_contents.content_type = %(content_type)s
                 AND (srm.product_contents.content_id = %(content)s
                      OR %(content_type)s IN ('CU', 'NPVR') AND srm.product_contents.content_id = (
                          SELECT srm.contents.channel_id FROM srm.contents
                          WHERE srm.contents.content_id = %(content)s))),
           srm.account_profiles.max_sessions, srm.account_profiles.timeout_seconds, srm.sessions.session_id,
           statement_timestamp() - srm.sessions.last_keep_alive_at
               >= make_interval(0, 0, 0, 0, 0, 0, srm.sessions.timeout_seconds)
    FROM srm.accounts
    JOIN srm.account_profiles ON srm.account_profiles.profile_id = srm.accounts.profile_id
    LEFT OUTER JOIN srm.devices ON srm.devices.account_id = %(account)s AND srm.devices.device_id = %(device)s
    LEFT OUTER JOIN srm.sessions ON srm.sessions.account_id = %(account)s AND srm.sessions.ended_at IS NULL
    WHERE srm.accounts.account_id = %(account)s
"""

ADMIT = """
    INSERT INTO srm.sessions (account_id, session_id, device_id, content_type, content_id, timeout_seconds,
                              max_sessions)
    VALUES (%(account)s, %(session)s, %(device)s, %(content_type)s, %(content)s, %(timeout_seconds)s, %(max_sessions)s)
"""

OWN_ACTIVE_SESSION = """
    account_id = %(account)s AND session_id = %(session)s AND device_id = %(device)s AND ended_at IS NULL
    AND (statement_timestamp() - last_keep_alive_at >= make_interval(0, 0, 0, 0, 0, 0, timeout_seconds)) IS NOT true
"""

KEEP_ALIVE = f"""
    UPDATE srm.sessions SET last_keep_alive_at = greatest(last_keep_alive_at, statement_timestamp())
    WHERE {OWN_ACTIVE_SESSION}
"""

TEAR_DOWN = f"""
    UPDATE srm.sessions SET ended_at = statement_timestamp(), end_reason = 'teardown' WHERE {OWN_ACTIVE_SESSION}
"""

OPTIONS = "-c statement_timeout=1500 -c lock_timeout=1500 -c idle_in_transaction_session_timeout=1500"
"""Of its connections."""
