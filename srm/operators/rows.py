"""Rows of the resources: how they are locked, read and written."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import ARRAY, Text, delete, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from srm.db import models
from srm.db.models import Base
from srm.errors import ResourceNotFound
from srm.operators.resources import ACCOUNTS, PRODUCTS, Kind, Product, Resource, ResourceKey


def lock(db: Session, kind: Kind, key: ResourceKey) -> Base | None:
    """Lock the resource against changes until the transaction ends; return its row, or None if there is none.

    What belongs to an account is locked by the row of that account. Raises ResourceNotFound when the account does not
    exist.
    """
    if kind.is_of_account and kind is not ACCOUNTS:
        lock_account(db, key[0])
        return db.get(kind.table, key)
    return db.get(kind.table, key, with_for_update={"key_share": True})


def lock_account(db: Session, account_id: str) -> None:
    """Lock the account until the transaction ends. Raises ResourceNotFound when it does not exist."""
    if lock(db, ACCOUNTS, (account_id,)) is None:
        raise ResourceNotFound


def check_account_exists(db: Session, account_id: str) -> None:
    """Raise ResourceNotFound when the account does not exist."""
    if db.get(models.Account, account_id) is None:
        raise ResourceNotFound


def read(db: Session, kind: Kind, rows: Sequence[Base]) -> list[Resource]:
    """Return the resources of these rows, in their order."""
    if kind is not PRODUCTS:
        return [kind.resource.of_row(row) for row in rows]
    products: dict[str, dict[str, Any]] = {
        row.product_id: {"product_id": row.product_id, "name": row.name, "contents": []}
        for row in cast("Sequence[models.Product]", rows)
    }
    table = models.ProductContent
    query = select(table.product_id, table.content_type, table.content_id).where(table.product_id.in_(products))
    # Unpacked by position: reading 50,000 rows by attribute costs 60 to 110 ms more while the transaction is open.
    for product_id, content_type, content_id in db.execute(query.order_by(table.content_type, table.content_id)):
        products[product_id]["contents"].append({"content_type": content_type, "content_id": content_id})
    return [kind.resource.of_row(product) for product in products.values()]


def write(db: Session, row: Base, resource: Resource) -> None:
    """Write the resource to its row, and to the rows of its groups or contents."""
    for name in type(resource).model_fields:
        value = getattr(resource, name)
        match name:
            case "device_groups":
                devices = models.ProfileDeviceGroup
                value = {group: devices(device_group=group, **dict(rule)) for group, rule in value.items()}
            case "content_groups":
                contents = models.ProfileContentGroup
                value = {group: contents(content_group=group, **dict(rule)) for group, rule in value.items()}
            case "groups":
                name, value = "in_groups", [models.ContentGroup(content_group=group) for group in value]
            case "valid_from" if value is None:
                continue
            case "contents":
                continue
        setattr(row, name, value)
    db.flush()
    if isinstance(resource, Product):
        _write_contents(db, resource)


def _write_contents(db: Session, product: Product) -> None:
    """Replace the contents of a product in two statements: there may be thousands."""
    table = models.ProductContent
    wanted = func.unnest(
        literal([content.content_type for content in product.contents], ARRAY(Text)),
        literal([content.content_id for content in product.contents], ARRAY(Text)),
    ).table_valued("content_type", "content_id", name="wanted")
    wanted = wanted.render_derived()
    pairs = select(wanted.c.content_type, wanted.c.content_id)
    db.execute(
        delete(table)
        .where(table.product_id == product.product_id, tuple_(table.content_type, table.content_id).not_in(pairs))
        .execution_options(synchronize_session=False)
    )
    names = ["product_id", "content_type", "content_id"]
    rows = select(literal(product.product_id), wanted.c.content_type, wanted.c.content_id)
    db.execute(insert(table).from_select(names, rows).on_conflict_do_nothing())
