"""Provisioning: accounts, devices, entitlements and the catalogue, one by one, as operators change them.

Functions take an open transaction and never commit. Whoever changes an account, or anything of it, holds the lock of
the account's row meanwhile: changes of one account come one after the other, and a setup sees all of a change or
nothing. Hence the promise that once the disabling of an account or device is acknowledged, no session of it is active:
a setup that came before it is ended by it, one that comes after it finds it disabled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import ARRAY, ColumnElement, Connection, Text, and_, func, literal, select, tuple_
from sqlalchemy import delete as delete_rows
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from srm.db import models
from srm.db.models import Base, EndReason, sessions
from srm.errors import Conflict, ResourceNotFound
from srm.operators import change_log
from srm.operators.resources import ACCOUNTS, DEVICES, ENTITLEMENTS, PRODUCTS, Kind, Product, Resource
from srm.playback import ending, entitlements
from srm.playback.model import EndedSession

Key = tuple[str, ...]

FOREIGN_KEY_VIOLATION = "23503"
UNIQUE_VIOLATION = "23505"


class CreatedMeanwhile(Exception):
    """Somebody else created it at this very moment: do the change again, and it will be found."""


@dataclass(frozen=True, slots=True)
class Changed:
    """What became of a resource. `before` is None where it was not there. `ended`: sessions that ended with it."""

    before: Resource | None
    after: Resource
    ended: Sequence[EndedSession]


def get(db: Session, kind: Kind, key: Key) -> Resource:
    """The resource. ResourceNotFound when there is none."""
    row = db.get(kind.table, key)
    if row is None:
        raise ResourceNotFound
    return _read(db, kind, row)


def list_(db: Session, kind: Kind, of_account: Key, *, limit: int, after: str | None) -> list[Resource]:
    """Those whose key comes behind `after`, in the order of their keys, of the account if they are of one.

    ResourceNotFound when the account is not there.
    """
    *_, last = (getattr(kind.table, name) for name in kind.key)
    query = select(kind.table).order_by(last).limit(limit)
    if of_account:
        check_is_account(db, *of_account)
        query = query.where(getattr(kind.table, kind.key[0]) == of_account[0])
    if after is not None:
        query = query.where(last > after)
    return _read_all(db, kind, db.scalars(query).all())


def check_is_account(db: Session, account_id: str) -> None:
    """ResourceNotFound when the account is not there."""
    if db.get(models.Account, account_id) is None:
        raise ResourceNotFound


def change(db: Session, by: str, kind: Kind, key: Key, make: Callable[[Resource | None], Resource]) -> Changed:
    """Create the resource, or replace what it says, by what `make` returns for what it says now (None: not there).

    An account or device that is disabled by it has no active session any more. ResourceNotFound when its account is
    not there; Conflict when it names something that is not there; CreatedMeanwhile; whatever `make` raises.
    """
    try:
        return _change(db, by, kind, key, make)
    except IntegrityError as error:
        if _sqlstate(error) == FOREIGN_KEY_VIOLATION:
            raise Conflict(f"{Conflict.message}: {_needs(kind)}") from error
        if _sqlstate(error) == UNIQUE_VIOLATION:
            raise CreatedMeanwhile from error
        raise


def _change(db: Session, by: str, kind: Kind, key: Key, make: Callable[[Resource | None], Resource]) -> Changed:
    row = _lock(db, kind, key)
    before = None if row is None else _read(db, kind, row)
    wanted = make(before)
    if row is None:
        row = kind.table(**dict(zip(kind.key, key, strict=True)))
        db.add(row)
    _write(db, row, wanted)
    db.refresh(row)
    after = _read(db, kind, row)
    if after != before:
        _record(db, by, "create" if before is None else "update", kind, key, before, after)
    ended: Sequence[EndedSession] = ()
    if getattr(after, "enabled", True) is False:
        ended = _end(db, by, _reason(kind), _sessions_of(kind, key))
    return Changed(before, after, ended)


def delete(
    db: Session,
    by: str,
    kind: Kind,
    key: Key,
    check: Callable[[Resource], None],
    *,
    end_sessions: bool = False,
) -> Sequence[EndedSession]:
    """Remove the resource, and what belongs to it; the sessions that end with it, as those of an account or device do.

    `check` may raise on what it says now. With `end_sessions`, sessions on what a removed entitlement was needed for
    end too. ResourceNotFound when it is not there; Conflict when something else names it.
    """
    row = _lock(db, kind, key)
    if row is None:
        raise ResourceNotFound
    before = _read(db, kind, row)
    check(before)
    if kind is ACCOUNTS:
        _record_what_goes_with(db, by, *key)
    try:
        db.delete(row)
        db.flush()
    except IntegrityError as error:
        if _sqlstate(error) != FOREIGN_KEY_VIOLATION:
            raise
        raise Conflict(f"{Conflict.message}: it is still in use") from error
    _record(db, by, "delete", kind, key, before, None)
    if kind in (ACCOUNTS, DEVICES):
        return _end(db, by, _reason(kind), _sessions_of(kind, key))
    if kind is ENTITLEMENTS and end_sessions:
        return _end(db, by, "operator", _not_granted_without(*key))
    return ()


def end_sessions(db: Session, by: str, account_id: str, which: ColumnElement[bool] | None = None) -> list[EndedSession]:
    """Stop the active sessions of the account, or those of them, and end those that turn out to have lapsed.

    ResourceNotFound without the account.
    """
    if _lock(db, ACCOUNTS, (account_id,)) is None:
        raise ResourceNotFound
    of_account = sessions.account_id == account_id
    return _end(db, by, "operator", of_account if which is None else and_(of_account, which))


def record_ended(db: Connection, by: str, ended: Sequence[EndedSession]) -> int:
    """Record the sessions that a change has ended, which those that turned out to have lapsed are not; how many."""
    stopped = [session for session in ended if session.end_reason != "expired"]
    change_log.record(
        db,
        [
            change_log.change(
                by,
                "end",
                f"accounts/{session.account_id}/sessions/{session.session_id}",
                account_id=session.account_id,
                before={
                    "deviceId": session.device_id,
                    "contentType": session.content_type,
                    "contentID": session.content_id,
                    "startedAt": session.started_at.isoformat(),
                },
                after={"endedAt": session.ended_at.isoformat(), "endReason": session.end_reason},
            )
            for session in stopped
        ],
    )
    return len(stopped)


def _lock(db: Session, kind: Kind, key: Key) -> Base | None:
    """The row, if there is one, under a lock that keeps it as it is: its own, or that of its account.

    ResourceNotFound when its account is not there.
    """
    if kind.is_of_account and kind is not ACCOUNTS:
        if _lock(db, ACCOUNTS, key[:1]) is None:
            raise ResourceNotFound
        return db.get(kind.table, key)
    return db.get(kind.table, key, with_for_update={"key_share": True})


def _read(db: Session, kind: Kind, row: Base) -> Resource:
    return _read_all(db, kind, [row])[0]


def _read_all(db: Session, kind: Kind, rows: Sequence[Base]) -> list[Resource]:
    """What the rows say, and those that belong to them."""
    if kind is not PRODUCTS:
        return [kind.resource.of_row(row) for row in rows]
    products: dict[str, dict[str, Any]] = {
        row.product_id: {"product_id": row.product_id, "name": row.name, "contents": []}
        for row in cast("Sequence[models.Product]", rows)
    }
    of = models.ProductContent
    query = select(of.product_id, of.content_type, of.content_id).where(of.product_id.in_(products))
    for product_id, content_type, content_id in db.execute(query.order_by(of.content_type, of.content_id)):
        products[product_id]["contents"].append({"content_type": content_type, "content_id": content_id})
    return [kind.resource.of_row(product) for product in products.values()]


def _write(db: Session, row: Base, resource: Resource) -> None:
    """Make the row, and those that belong to it, say what the resource says."""
    for name in type(resource).model_fields:
        value = getattr(resource, name)
        match name:
            case "device_groups":
                of_devices = models.ProfileDeviceGroup
                value = {group: of_devices(device_group=group, **dict(rule)) for group, rule in value.items()}
            case "content_groups":
                of_contents = models.ProfileContentGroup
                value = {group: of_contents(content_group=group, **dict(rule)) for group, rule in value.items()}
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
    """Write the contents of a product, of which there may be thousands, in two statements."""
    of = models.ProductContent
    wanted = func.unnest(
        literal([content.content_type for content in product.contents], ARRAY(Text)),
        literal([content.content_id for content in product.contents], ARRAY(Text)),
    ).table_valued("content_type", "content_id", name="wanted")
    wanted = wanted.render_derived()
    pair = select(wanted.c.content_type, wanted.c.content_id)
    db.execute(
        delete_rows(of)
        .where(of.product_id == product.product_id, tuple_(of.content_type, of.content_id).not_in(pair))
        .execution_options(synchronize_session=False)
    )
    names = ["product_id", "content_type", "content_id"]
    of_product = select(literal(product.product_id), wanted.c.content_type, wanted.c.content_id)
    db.execute(insert(of).from_select(names, of_product).on_conflict_do_nothing())


def _record(
    db: Session, by: str, action: str, kind: Kind, key: Key, before: Resource | None, after: Resource | None
) -> None:
    changed = change_log.change(
        by,
        action,
        kind.path(*key),
        account_id=key[0] if kind.is_of_account else "",
        before=None if before is None else before.as_json(),
        after=None if after is None else after.as_json(),
    )
    change_log.record(db.connection(), [changed])


def _record_what_goes_with(db: Session, by: str, account_id: str) -> None:
    for kind in (DEVICES, ENTITLEMENTS):
        for row in db.scalars(select(kind.table).where(kind.table.account_id == account_id)):  # type: ignore[attr-defined]
            gone = _read(db, kind, row)
            _record(db, by, "delete", kind, (account_id, getattr(gone, kind.key[1])), gone, None)


def _end(db: Session, by: str, reason: EndReason, which: ColumnElement[bool]) -> list[EndedSession]:
    ended = ending.end_sessions(db.connection(), reason, which)
    record_ended(db.connection(), by, ended)
    return ended


def _reason(kind: Kind) -> EndReason:
    return "account_disabled" if kind is ACCOUNTS else "device_disabled"


def _sessions_of(kind: Kind, key: Key) -> ColumnElement[bool]:
    """Sessions of an account or a device."""
    return and_(*(sessions[name] == value for name, value in zip(kind.key, key, strict=True)))


def _not_granted_without(account_id: str, product_id: str) -> ColumnElement[bool]:
    """Sessions of the account on contents of the product that its other products do not let it watch."""
    return and_(
        sessions.account_id == account_id,
        entitlements.is_in_product(literal(product_id), sessions.content_type, sessions.content_id),
        ~entitlements.is_granted(sessions.account_id, sessions.content_type, sessions.content_id),
    )


def _needs(kind: Kind) -> str:
    return {
        "accounts": "there is no such profile",
        "entitlements": "there is no such product",
        "products": "there is no such content",
        "contents": "there is no such channel",
    }.get(kind.plural, "what it names is not there")


def _sqlstate(error: IntegrityError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
