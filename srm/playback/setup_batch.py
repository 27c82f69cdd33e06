"""Setups of a batch: one transaction for plain setups of many accounts.

The statements come in the order of one setup (docs/design.md, "Concurrency protocol"): lock the accounts, read terms,
limits and sessions with a younger snapshot, decide, insert, commit. The batch decides only setups that change no other
session. Every other setup, and each setup of a batch that fails, goes the ordinary way: `srm.playback.setup.set_up`.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from srm.db.connection import ConnectionPool, Cursor, waive_durability
from srm.errors import DependencyUnavailable, SrmError
from srm.playback.model import Admission, Result
from srm.playback.setup import AccountState, SetupRequest, decide_new, new_session
from srm.playback.statements import (
    ASKED_OF_ALL,
    GET_TERMS_AND_SESSIONS_OF_ALL,
    INSERT_SESSIONS,
    INSERTED,
    LOCK_ACCOUNTS,
    LockedAccountOfBatch,
    read_account_of_batch,
    read_limits,
    read_session,
    read_state,
    read_terms,
)

Outcomes = list[Result[Admission] | None]


def is_plain(request: SetupRequest) -> bool:
    """True when a batch may decide the setup: it has no Idempotency-Key and takes no session over."""
    return request.idempotency_key is None and not request.take_over


def set_all_up(db: ConnectionPool, batch: Sequence[SetupRequest]) -> Outcomes:
    """Return the committed result of each setup of the batch, or None where `set_up` has to decide.

    The batch decides the first setup of each account. A second setup has to see what the first one changes. When the
    connection breaks at the commit, nobody knows the outcome: the results are DependencyUnavailable.
    """
    first = {request.principal.account_id: request for request in reversed(batch)}
    results: dict[str, Result[Admission]] = {}
    is_decided = False
    try:
        with db.request() as cursor:
            results = _set_up_first(cursor, first)
            is_decided = True
    except DependencyUnavailable as error:
        if not is_decided:
            raise
        results = dict.fromkeys(results, Result(error))
    return [
        results.get(account) if first[account := request.principal.account_id] is request else None for request in batch
    ]


def _set_up_first(db: Cursor, requests: dict[str, SetupRequest]) -> dict[str, Result[Admission]]:
    """Return the decided setups by account, without those that a batch cannot decide."""
    locked = db.execute(LOCK_ACCOUNTS, {"account_ids": list(requests)}).fetchall()
    states = _read_states(db, requests, [read_account_of_batch(row) for row in locked])
    results: dict[str, Result[Admission]] = {}
    inserted: list[dict[str, Any]] = []
    for account_id, state in states.items():
        request = requests[account_id]
        try:
            decision = decide_new(state, request)
        except SrmError as denial:
            results[account_id] = Result(denial)
            continue
        if not decision.replaced and not decision.evicted:
            values = new_session(request, state)
            admission = Admission(values["session_id"], state.terms.timeout_seconds, decision.observed)
            results[account_id] = Result(admission)
            inserted.append(values)
    if inserted:
        rows = [{name: row[name] for name in INSERTED if row[name] is not None} for row in inserted]
        db.execute(INSERT_SESSIONS, {"sessions": json.dumps(rows, default=str)})
    else:
        waive_durability(db)
    return results


def _read_states(
    db: Cursor, requests: dict[str, SetupRequest], accounts: Sequence[LockedAccountOfBatch]
) -> dict[str, AccountState]:
    """Read terms, limits and active sessions of the locked accounts; leave out those with a lapsed session."""
    if not accounts:
        return {}
    asked = [
        (
            account.account_id,
            requests[account.account_id].principal.device_id,
            requests[account.account_id].content.content_type,
            requests[account.account_id].content.content_id,
            account.profile_id,
            account.max_sessions,
        )
        for account in accounts
    ]
    columns = zip(*asked, strict=True)
    params = {name: list(values) for name, values in zip(ASKED_OF_ALL, columns, strict=True)}
    rows_of = defaultdict(list)
    for row in db.execute(GET_TERMS_AND_SESSIONS_OF_ALL, params).fetchall():
        rows_of[row[-1]].append(row)
    states = {}
    for account_id, rows in rows_of.items():
        of_sessions = [read_state(row) for row in rows]
        if not any(state.is_lapsed for state in of_sessions):
            active = [
                read_session(row) for row, state in zip(rows, of_sessions, strict=True) if state.session_id is not None
            ]
            states[account_id] = AccountState(read_terms(rows[0]), read_limits(rows[0]), active, ())
    return states
