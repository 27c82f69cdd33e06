"""Active sessions of an account, as its devices may see them."""

from srm.db.connection import Executor
from srm.errors import AccountNotEnabled, DeviceNotEnabled
from srm.playback.model import ListedSession, Principal
from srm.playback.statements import LIST_SESSIONS, read_list_state, read_listed_session


def list_sessions(db: Executor, principal: Principal) -> list[ListedSession]:
    """Return the active sessions of the account, the oldest first.

    Raises AccountNotEnabled or DeviceNotEnabled where a setup would be denied with it.
    """
    params: dict[str, object] = {"account_id": principal.account_id, "device_id": principal.device_id}
    rows = db.execute(LIST_SESSIONS, params).fetchall()
    if not rows:
        raise AccountNotEnabled
    states = [read_list_state(row) for row in rows]
    if not states[0].account_enabled:
        raise AccountNotEnabled
    if not states[0].device_enabled:
        raise DeviceNotEnabled
    return [read_listed_session(row) for row, state in zip(rows, states, strict=True) if state.session_id is not None]
