"""Export: reads all resources of a kind, page by page."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Text, bindparam, select, tuple_

from srm.db.database import Database
from srm.operators.bulk.staging import Staging
from srm.operators.resources import PRODUCTS, Kind, Resource

PAGE_ROWS = 5_000
"""Rows that one transaction reads."""


def export_resources(database: Database, kind: Kind) -> Iterator[Resource]:
    """Yield all resources of the kind in the order of their keys.

    Each page shows its resources at its own instant, so that no transaction stays open for long.
    """
    staging = Staging(kind)
    table = staging.target
    key = staging.key_of(table)
    columns = [staging.present_value(table, name).label(name) for name in staging.bits]
    after_key = tuple_(*key) > tuple_(*(bindparam(name, type_=Text) for name in kind.key))
    page = select(*columns).where(after_key).order_by(*key).limit(PAGE_ROWS)
    after = dict.fromkeys(kind.key, "")  # no id is empty
    while after:
        with database.transaction() as db:
            rows = db.execute(page, after).mappings().all()
        for row in rows:
            yield _resource(kind, dict(row))
        after = {name: rows[-1][name] for name in kind.key} if rows else {}


def _resource(kind: Kind, row: dict[str, Any]) -> Resource:
    if kind is PRODUCTS:
        items = (item.partition(":") for item in row["contents"])
        row["contents"] = [{"content_type": type_, "content_id": id_} for type_, _, id_ in items]
    return kind.resource.of_row(row)
