"""Operators, their roles, and the Operator-Keys that prove who they are.

An Operator-Key is the name of the operator, a dot, and a secret. Keys are not cached: a new or revoked key takes effect
in every process at once.
"""

import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple, get_args

from sqlalchemy import Connection, Text, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert

from srm.db import models
from srm.db.connection import Executor
from srm.db.models import Role
from srm.db.sql import compiled
from srm.errors import CommandError, Conflict, OperatorKeyNotValid
from srm.operators import change_log
from srm.operators.change_log import NewChange

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_@.-]{0,62}[A-Za-z0-9_])?")
"""Names of operators. They need no quoting in a header, a log line or a shell command."""

SECRET_BYTES = 32
"""A random secret as long as its SHA-256 hash needs neither salt nor a slow hash."""

ABSENT_HASH = bytes(SECRET_BYTES)
"""Compared with the secret of an unknown name, so that timing does not tell which names exist."""


class StoredKey(NamedTuple):
    """Role and hash of a key that works."""

    role: Role
    key_hash: bytes


class OperatorRow(NamedTuple):
    """An operator as listed. `revoked_at` is None while the key works."""

    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None


FIND_KEY = compiled(
    select(*(getattr(models.Operator, name) for name in StoredKey._fields)).where(
        models.Operator.name == bindparam("name", type_=Text), models.Operator.revoked_at.is_(None)
    )
)
"""The key of the operator `name`, unless it was revoked."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A person or system that has proved its name."""

    name: str
    role: Role

    def may(self, needed: Role) -> bool:
        """True when the operator's role includes the rights of the needed role."""
        roles = get_args(Role)
        return bool(roles.index(self.role) >= roles.index(needed))


def authenticate(db: Executor, key: str) -> Operator:
    """Return the operator whose key this is. Raises OperatorKeyNotValid when the key is wrong or revoked."""
    name, _, secret = key.rpartition(".")
    if not NAME.fullmatch(name):
        raise OperatorKeyNotValid
    row = db.execute(FIND_KEY, {"name": name}).fetchone()
    stored = None if row is None else StoredKey(*row)
    is_right = hmac.compare_digest(_hash(secret), ABSENT_HASH if stored is None else stored.key_hash)
    if stored is None or not is_right:
        raise OperatorKeyNotValid
    return Operator(name, stored.role)


def add(db: Connection, by: str, name: str, role: Role) -> str:
    """Make a key for a new operator, or for one whose key was revoked. Return the key: only its hash is stored.

    Raises Conflict when the operator has a key that works. Raises CommandError when the name is not allowed.
    """
    if not NAME.fullmatch(name):
        raise CommandError(f"{name!r} is not a name: use 1 to 64 letters, digits and _; @ - . may stand between them")
    secret = secrets.token_urlsafe(SECRET_BYTES)
    values = {"role": role, "key_hash": _hash(secret), "created_at": func.statement_timestamp(), "revoked_at": None}
    added = db.execute(
        insert(models.Operator)
        .values(name=name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values, where=models.Operator.revoked_at.is_not(None))
        .returning(models.Operator.name)
    )
    if added.first() is None:
        raise Conflict(f"{name} has a key already; revoke it first")
    change_log.record(db, [NewChange(by, "create", f"operators/{name}", after={"role": role})])
    return f"{name}.{secret}"


def revoke(db: Connection, by: str, name: str) -> None:
    """Revoke the key of the operator, in every process at once. Raises Conflict when no key of that name works."""
    role = db.execute(
        update(models.Operator)
        .where(models.Operator.name == name, models.Operator.revoked_at.is_(None))
        .values(revoked_at=func.statement_timestamp())
        .returning(models.Operator.role)
    ).scalar()
    if role is None:
        raise Conflict(f"{name} has no key that works")
    change_log.record(db, [NewChange(by, "revoke", f"operators/{name}", before={"role": role})])


def list_operators(db: Connection) -> list[OperatorRow]:
    """Return all operators, by name; those whose key was revoked too."""
    query = select(*(getattr(models.Operator, name) for name in OperatorRow._fields)).order_by(models.Operator.name)
    return [OperatorRow(*row) for row in db.execute(query)]


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
