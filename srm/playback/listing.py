"""Active sessions of an account, as its devices may see them."""

from srm.db.connection import Executor
from srm.errors import AccountNotEnabled, DeviceNotEnabled
from srm.playback.model import ListedSession, Principal
from srm.playback.statements import LIST_SESSIONS, read_asker, read_listed_session


def list_sessions(db: Executor, principal: Principal) -> list[ListedSession]:
    """Return the active sessions of the account, the oldest first.

    Raises AccountNotEnabled or DeviceNotEnabled where a setup would be denied with it.
    """
    params: dict[str, object] = {"account_id": principal.account_id, "device_id": principal.device_id}
    rows = db.execute(LIST_SESSIONS, params).fetchall()
    if not rows:
        raise AccountNotEnabled
    asker = read_asker(rows[0])
    if not asker.account_enabled:
        raise AccountNotEnabled
    if not asker.device_enabled:
        raise DeviceNotEnabled
    listed = [read_listed_session(row) for row in rows]
    return [session for session in listed if session.session_id is not None]
