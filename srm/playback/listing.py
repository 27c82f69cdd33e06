"""The active sessions of an account, as its devices may see them."""

from srm.db.connection import Executor
from srm.errors import AccountNotEnabled, DeviceNotEnabled
from srm.playback.model import ListedSession, Principal
from srm.playback.statements import LIST_SESSIONS


def list_sessions(db: Executor, principal: Principal) -> list[ListedSession]:
    """The active sessions of the account, the oldest first. AccountNotEnabled or DeviceNotEnabled as for a setup."""
    names: dict[str, object] = {"of_account": principal.account_id, "of_device": principal.device_id}
    rows = db.execute(LIST_SESSIONS, names).fetchall()
    if not rows or not rows[0][0]:
        raise AccountNotEnabled
    if not rows[0][1]:
        raise DeviceNotEnabled
    return [ListedSession(*session) for _, _, *session in rows if session[0] is not None]
