"""Operators: who may use the operator API, by which key, and the record of what they changed.

An Operator-Key is the name of the operator, a dot, and a secret. Nothing of it is cached: a key works, or stops
working, in every process at once.
"""

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import get_args

from sqlalchemy import Connection, Row, Text, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from srm.db import models
from srm.db.connection import Executor
from srm.db.models import Role
from srm.db.sql import compiled
from srm.errors import Conflict, OperatorKeyNotValid, StartupError
from srm.operators.change_log import change, record

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_@.-]{0,62}[A-Za-z0-9_])?")
"""Of an operator; can stand in a header, a log line and a shell command as it is."""

SECRET_BYTES = 32
"""As long as its hash; so the hash needs no salt, and no slowness."""

NOBODY = bytes(SECRET_BYTES)
"""What the secret of an unknown name is compared with, so that names cannot be told apart by time."""

GET_KEY = compiled(
    select(models.Operator.role, models.Operator.key_hash).where(
        models.Operator.name == bindparam("of_name", type_=Text), models.Operator.revoked_at.is_(None)
    )
)


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody, or some system, that proved who it is."""

    name: str
    role: Role

    def may(self, needed: Role) -> bool:
        """Whether the role has all rights of the one that is needed."""
        roles = get_args(Role)
        return bool(roles.index(self.role) >= roles.index(needed))


def authenticate(db: Executor, key: str) -> Operator:
    """Whose key it is. OperatorKeyNotValid when it is nobody's, or was revoked."""
    name, _, secret = key.rpartition(".")
    if not NAME.fullmatch(name):
        raise OperatorKeyNotValid
    found = db.execute(GET_KEY, {"of_name": name}).fetchone()
    role, key_hash = found or (None, NOBODY)
    if not hmac.compare_digest(_hash(secret), key_hash) or role is None:
        raise OperatorKeyNotValid
    return Operator(name, role)


def add(db: Connection, by: str, name: str, role: Role) -> str:
    """Make a key for a new operator, or for one whose key was revoked; the key, which is kept nowhere.

    Conflict when the operator has a key that works. StartupError when the name can be none.
    """
    if not NAME.fullmatch(name):
        raise StartupError(f"{name!r} is no name: 1 to 64 letters, digits and _, and among them @ - .")
    secret = secrets.token_urlsafe(SECRET_BYTES)
    values = {"role": role, "key_hash": _hash(secret), "created_at": func.statement_timestamp(), "revoked_at": None}
    made = db.execute(
        upsert(models.Operator)
        .values(name=name, **values)
        .on_conflict_do_update(index_elements=["name"], set_=values, where=models.Operator.revoked_at.is_not(None))
        .returning(models.Operator.name)
    )
    if made.first() is None:
        raise Conflict(f"{name} has a key already; revoke it first")
    record(db, [change(by, "create", f"operators/{name}", after={"role": role})])
    return f"{name}.{secret}"


def revoke(db: Connection, by: str, name: str) -> None:
    """Make the key of an operator stop working, at once and everywhere. Conflict when there is none that works."""
    revoked = db.execute(
        update(models.Operator)
        .where(models.Operator.name == name, models.Operator.revoked_at.is_(None))
        .values(revoked_at=func.statement_timestamp())
        .returning(models.Operator.role)
    ).scalar()
    if revoked is None:
        raise Conflict(f"{name} has no key that works")
    record(db, [change(by, "revoke", f"operators/{name}", before={"role": revoked})])


def everybody(db: Connection) -> Sequence[Row[str, str, datetime, datetime | None]]:
    """Name, role, when the key was made, and when it was revoked, of all operators, by name."""
    of = models.Operator
    return db.execute(select(of.name, of.role, of.created_at, of.revoked_at).order_by(of.name)).all()


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
