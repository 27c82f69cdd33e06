"""The order in which contents are imported: a channel before its events, wherever they stand in the file.

A content has depth 0 if it has no channel, is its own channel, or has a channel that is in the database. Otherwise its
depth is one more than the depth of its channel in the file. Contents are merged depth by depth.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Delete, Index, Update, and_, delete, exists, or_, select, update

from srm.db import models
from srm.operators.bulk.list_fields import table_of
from srm.operators.bulk.staging import DEPTH, UNREACHABLE, Staging


def set_depths(db: Connection, staging: Staging) -> int:
    """Set the depth of each staged content, after deleting all but its last row. Return the number of deleted rows.

    Contents whose channel is neither in the file nor in the database keep the depth UNREACHABLE.
    """
    staged = staging.staged
    with db.begin():
        Index("staged_contents", staged.c.content_id, staged.c.line).create(db)
        db.exec_driver_sql("ANALYZE staged")
        repeated = db.execute(_delete_repeated(staging)).rowcount
    depth = 0
    while _set_depth(db, staging, depth) > 0:
        depth += 1
    return repeated


def depths(db: Connection, staging: Staging) -> Sequence[int]:
    """Return the depths of the staged contents, lowest first."""
    depth = staging.staged.c.depth
    with db.begin():
        return db.scalars(select(depth).distinct().order_by(depth)).all()


def _delete_repeated(staging: Staging) -> Delete:
    staged, later = staging.staged, staging.staged.alias("later")
    is_repeated = and_(later.c.content_id == staged.c.content_id, later.c.line > staged.c.line)
    return delete(staged).where(exists().where(is_repeated))


def _set_depth(db: Connection, staging: Staging, depth: int) -> int:
    """Give this depth to the contents that have it; return their number."""
    with db.begin():
        return db.execute(_set_depth_statement(staging), {DEPTH.key: depth}).rowcount


def _set_depth_statement(staging: Staging) -> Update:
    """Set the depth of contents without one whose channel is in the database, or has a lower depth in the file."""
    staged, other, content = staging.staged, staging.staged.alias("other"), table_of(models.Content)
    channel = staged.c.channel_id
    is_reachable = or_(
        channel.is_(None),
        channel == staged.c.content_id,
        exists().where(content.c.content_id == channel),
        exists().where(other.c.content_id == channel, other.c.depth < DEPTH),
    )
    return update(staged).where(staged.c.depth == UNREACHABLE, is_reachable).values(depth=DEPTH)
