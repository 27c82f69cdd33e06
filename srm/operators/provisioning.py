"""Provisioning: operators read and change accounts, devices, entitlements and the catalogue one by one.

Functions take an open transaction and never commit. A change goes in two steps: `lock` the resource, which tells its
present state, then `save` or `delete` it.

Whoever changes an account, or anything that belongs to it, holds the lock of the account's row. So changes of one
account come one after the other, and a setup sees all of a change or nothing. Once a disabling is acknowledged, no
session of the account or device is active (docs/design.md, Invariant 8). The change ends the session of a setup that
came before. A setup that comes after finds the account or device disabled.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, literal, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from srm.db.models import Base, EndReason, sessions
from srm.errors import Conflict, ResourceNotFound
from srm.operators import change_log, documents, rows
from srm.operators.change_log import NewChange
from srm.operators.resources import ACCOUNTS, DEVICES, ENTITLEMENTS, Kind, Resource, ResourceKey
from srm.operators.sessions import end_and_record
from srm.playback import entitlements
from srm.playback.model import EndedSession

FOREIGN_KEY_VIOLATION = "23503"
UNIQUE_VIOLATION = "23505"

MISSING_REFERENCES = {
    "accounts": "there is no such profile",
    "entitlements": "there is no such product",
    "products": "there is no such content",
    "contents": "there is no such channel",
}
"""Message when a resource refers to something that does not exist, by the plural of the resource's kind."""


class CreatedMeanwhile(Exception):
    """Another transaction created the resource after this one found none. Try again: the resource is found now."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A resource under lock. `row` and `present` are None when it does not exist yet."""

    kind: Kind
    key: ResourceKey
    row: Base | None
    present: Resource | None

    def existing(self) -> Resource:
        """Return the present resource. Raises ResourceNotFound when it does not exist."""
        if self.present is None:
            raise ResourceNotFound
        return self.present


@dataclass(frozen=True, slots=True)
class Saved:
    """A resource as it was saved, and the sessions that ended with the change."""

    resource: Resource
    ended: Sequence[EndedSession]


def get(db: Session, kind: Kind, key: ResourceKey) -> Resource:
    """Return the resource. Raises ResourceNotFound when it does not exist."""
    row = db.get(kind.table, key)
    if row is None:
        raise ResourceNotFound
    return rows.read(db, kind, [row])[0]


def list_resources(
    db: Session, kind: Kind, account: ResourceKey, *, limit: int, after: str | None = None
) -> list[Resource]:
    """Return at most `limit` resources with ids greater than `after`, in the order of their ids.

    `account` is the account id for devices and entitlements, else empty. Raises ResourceNotFound when that account does
    not exist.
    """
    id_column = getattr(kind.table, kind.key[-1])
    query = select(kind.table).order_by(id_column).limit(limit)
    if account:
        rows.check_account_exists(db, *account)
        query = query.where(getattr(kind.table, kind.key[0]) == account[0])
    if after is not None:
        query = query.where(id_column > after)
    return rows.read(db, kind, db.scalars(query).all())


def lock(db: Session, kind: Kind, key: ResourceKey) -> Locked:
    """Lock the resource until the transaction ends, and read it.

    Raises ResourceNotFound when its account does not exist. A resource of the catalogue that does not exist yet cannot
    be locked: `save` may raise CreatedMeanwhile.
    """
    row = rows.lock(db, kind, key)
    return Locked(kind, key, row, None if row is None else rows.read(db, kind, [row])[0])


def save(db: Session, operator: str, locked: Locked, wanted: Resource) -> Saved:
    """Create the locked resource, or replace it; record the change; end the sessions of what is disabled.

    A resource that is already as wanted leaves no entry in the change log. Raises Conflict when it refers to something
    that does not exist. Raises CreatedMeanwhile when another transaction has just created it.
    """
    kind = locked.kind
    row = locked.row
    if row is None:
        row = kind.table(**dict(zip(kind.key, locked.key, strict=True)))
        db.add(row)
    try:
        rows.write(db, row, wanted)
    except IntegrityError as error:
        if _sqlstate(error) == FOREIGN_KEY_VIOLATION:
            reason = MISSING_REFERENCES.get(kind.plural, "it refers to something that does not exist")
            raise Conflict(f"{Conflict.message}: {reason}") from error
        if _sqlstate(error) == UNIQUE_VIOLATION:
            raise CreatedMeanwhile from error
        raise
    db.refresh(row)
    (saved,) = rows.read(db, kind, [row])
    if saved != locked.present:
        _record(db, operator, locked, saved)
    is_disabled = getattr(saved, "enabled", True) is False
    return Saved(saved, _end_sessions_of(db, operator, locked) if is_disabled else ())


def delete(db: Session, operator: str, locked: Locked, *, end_sessions: bool = False) -> Sequence[EndedSession]:
    """Delete the locked resource and all that belongs to it; record it; return the sessions that ended with it.

    Sessions of a deleted account or device always end. With `end_sessions`, sessions that only the deleted entitlement
    allowed end too. Raises ResourceNotFound when the resource does not exist. Raises Conflict when another resource
    refers to it.
    """
    locked.existing()
    if locked.kind is ACCOUNTS:
        _record_deleted_with_account(db, operator, locked.key[0])
    try:
        db.delete(locked.row)
        db.flush()
    except IntegrityError as error:
        if _sqlstate(error) != FOREIGN_KEY_VIOLATION:
            raise
        raise Conflict(f"{Conflict.message}: it is still in use") from error
    _record(db, operator, locked, None)
    if locked.kind in (ACCOUNTS, DEVICES):
        return _end_sessions_of(db, operator, locked)
    if locked.kind is ENTITLEMENTS and end_sessions:
        return end_and_record(db, operator, "operator", _is_granted_only_by(*locked.key))
    return ()


def _record(db: Session, operator: str, locked: Locked, after: Resource | None) -> None:
    """Record that the locked resource became `after`; None = it was deleted."""
    before = locked.present
    change = NewChange(
        operator,
        "create" if before is None else "delete" if after is None else "update",
        locked.kind.path(*locked.key),
        account_id=locked.key[0] if locked.kind.is_of_account else "",
        before=None if before is None else documents.of_resource(before),
        after=None if after is None else documents.of_resource(after),
    )
    change_log.record(db.connection(), [change])


def _record_deleted_with_account(db: Session, operator: str, account_id: str) -> None:
    """Record the deletion of the devices and entitlements of an account, which go with it."""
    for kind in (DEVICES, ENTITLEMENTS):
        query = select(kind.table).where(getattr(kind.table, "account_id") == account_id)  # noqa: B009
        for row in db.scalars(query):
            (resource,) = rows.read(db, kind, [row])
            key = (account_id, getattr(resource, kind.key[1]))
            _record(db, operator, Locked(kind, key, row, resource), None)


def _end_sessions_of(db: Session, operator: str, locked: Locked) -> list[EndedSession]:
    """End all sessions of the locked account or device."""
    reason: EndReason = "account_disabled" if locked.kind is ACCOUNTS else "device_disabled"
    which = and_(*(sessions[name] == value for name, value in zip(locked.kind.key, locked.key, strict=True)))
    return end_and_record(db, operator, reason, which)


def _is_granted_only_by(account_id: str, product_id: str) -> ColumnElement[bool]:
    """Condition on sessions of the account: the product has the content, and no entitlement that is left grants it."""
    return and_(
        sessions.account_id == account_id,
        entitlements.is_in_product(literal(product_id), sessions.content_type, sessions.content_id),
        ~entitlements.is_granted(sessions.account_id, sessions.content_type, sessions.content_id),
    )


def _sqlstate(error: IntegrityError) -> str | None:
    return getattr(error.orig, "sqlstate", None)
