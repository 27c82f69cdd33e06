"""Cursors of lists: a cursor names the last item of a page, and the next page begins behind it.

A cursor holds the sort key of that item. So page 1,000 costs what page 1 costs, and nobody skips an item when rows come
or go meanwhile.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID


class InstantCursor(NamedTuple):
    """Cursor of a list that begins with the newest item: the instant and the id of an item."""

    at: datetime
    id: UUID


class SessionCursor(NamedTuple):
    """Cursor of a list of sessions in the order of accounts and session ids."""

    account_id: str
    session_id: UUID
