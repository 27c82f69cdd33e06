"""The temporary tables of an import, and the statements that merge them into the tables of a kind of resource."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Integer,
    MetaData,
    Select,
    Subquery,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.dialects.postgresql import insert as upsert

from srm.db import models
from srm.db.models import Base, sessions
from srm.operators.documents import field_name
from srm.operators.resources import ACCOUNTS, CONTENTS, DEVICES, ENTITLEMENTS, PRODUCTS, Kind
from srm.playback.expiry import is_active

WORDS = ARRAY(Text)
OF_DEPTH = bindparam("of_depth", type_=Integer)

NOWHERE = 1_000_000
"""Depth of a content whose channel is neither in the database nor in the file."""


@dataclass(frozen=True)
class Parts:
    """A field that has a table of its own, with a row for each word of the field.

    `columns`: what a word says, in the order of the columns behind the owner.
    """

    field: str
    table: Table
    word: ColumnElement[str]
    columns: Callable[[ColumnElement[str]], tuple[ColumnElement[str], ...]]

    @property
    def owner(self) -> Column[str]:
        """The column that says whose they are."""
        return self.table.columns[0]

    def of(self, key: ColumnElement[str]) -> ColumnElement[list[str]]:
        """The words of one, in an order that is the same in every database."""
        words = func.array_agg(aggregate_order_by(self.word, self.word.collate("C")), type_=WORDS)
        return func.coalesce(select(words).where(self.owner == key).scalar_subquery(), literal([], WORDS))


def _table(model: type[Base]) -> Table:
    return cast("Table", model.__table__)


def _id_of(word: ColumnElement[str]) -> ColumnElement[str]:
    return func.substr(word, func.strpos(word, ":") + 1)


_groups, _contents = _table(models.ContentGroup), _table(models.ProductContent)
PARTS = {
    CONTENTS: Parts("groups", _groups, _groups.c.content_group, lambda word: (word,)),
    PRODUCTS: Parts(
        "contents",
        _contents,
        func.concat(_contents.c.content_type, ":", _contents.c.content_id),
        lambda word: (func.split_part(word, ":", 1), _id_of(word)),
    ),
}
REFERENCES: dict[Kind, dict[str, type[Base]]] = {
    ACCOUNTS: {"profile_id": models.AccountProfile},
    DEVICES: {"account_id": models.Account},
    ENTITLEMENTS: {"account_id": models.Account, "product_id": models.Product},
    CONTENTS: {"channel_id": models.Content},
    PRODUCTS: {},
}
"""The fields that name something else, and where that has to be."""


class Staging:
    """The tables and statements for a kind.

    `staged` holds the rows of the file: number and text of the line, the fields, and in `named` a bit for each field
    that the line names. `batch` holds some of them until the end of the transaction, and what shall become of them: set
    aside for a `reason`, or `taken`; and if so, whether it `is_new`, or `differs` from what is there.
    """

    def __init__(self, kind: Kind, *, dry_run: bool) -> None:
        self._kind = kind
        self._dry_run = dry_run
        self.table = _table(kind.table)
        self._parts = PARTS.get(kind)
        self.bits = {name: 1 << index for index, name in enumerate(kind.resource.model_fields)}
        self.staged = Table("staged", MetaData(), *self._columns(), prefixes=["TEMPORARY"])
        self.batch = Table(
            "batch",
            MetaData(),
            *self._columns(),
            Column("reason", Text),
            *(Column(name, Boolean) for name in ("taken", "is_new", "differs")),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DELETE ROWS",
        )
        self._taken = self.batch.c.taken
        self._is_new = and_(self._taken, self.batch.c.is_new)
        self._differs = and_(self._taken, self.batch.c.differs)
        self.find_last = self._find_last()
        self.fill = self._fill()
        self.count = self._count()
        self.list_rejected = (
            select(self.batch.c.line, self.batch.c.reason, self.batch.c.text)
            .where(self.batch.c.reason.is_not(None))
            .order_by(self.batch.c.line)
        )
        self.lock = self._lock()
        self.record = self._record()
        self.update = self._update()
        self.insert = self._insert()
        self.write_parts = self._write_parts()

    def _columns(self) -> Iterator[Column[Any]]:
        yield Column("line", BigInteger)
        yield Column("text", Text)
        yield Column("named", Integer)
        for name in self.bits:
            yield Column(name, self.table.c[name].type if name in self.table.c else WORDS)
        if self._kind is CONTENTS:
            yield Column("depth", Integer, server_default=text(str(NOWHERE)))

    def key_of(self, table: FromClause) -> tuple[ColumnElement[str], ...]:
        """The columns with the key."""
        return tuple(table.c[name] for name in self._kind.key)

    def _names(self, table: FromClause, field: str) -> ColumnElement[bool]:
        """Whether the line names the field."""
        bit = literal_column(str(self.bits[field]), Integer)
        return table.c.named.bitwise_and(bit) != literal_column("0", Integer)

    def _find_last(self) -> Select[Any]:
        """The key with which a batch of `size` rows `after_…` ends."""
        key = self.key_of(self.staged)
        rows = select(*key).where(self._is_behind()).order_by(*key).limit(bindparam("size", type_=Integer)).subquery()
        return select(*rows.c).order_by(*(column.desc() for column in rows.c)).limit(1)

    def _is_behind(self) -> ColumnElement[bool]:
        after = (bindparam(f"after_{name}", type_=Text) for name in self._kind.key)
        is_behind = tuple_(*self.key_of(self.staged)) > tuple_(*after)
        return and_(self.staged.c.depth == OF_DEPTH, is_behind) if self._kind is CONTENTS else is_behind

    def _fill(self) -> Executable:
        """Put the rows `after_…`, up to `last_…`, into `batch`."""
        staged = self.staged
        last = (bindparam(f"last_{name}", type_=Text) for name in self._kind.key)
        there = self.table.alias("there")
        is_there = there.c[self._kind.key[0]].is_not(None)
        joined: FromClause = staged.outerjoin(there, _all_equal(self.key_of(there), self.key_of(staged)))
        reasons: list[ColumnElement[Any]] = []
        for field, model in REFERENCES[self._kind].items():
            named = _table(model).alias(f"named_{field}")
            column = next(iter(named.primary_key))
            joined = joined.outerjoin(named, column == staged.c[field])
            reasons.append(self._missing(field, column.is_(None)))
        if self._kind is PRODUCTS:
            reasons.append(self._missing_content())
        found = (
            select(
                *staged.c,
                func.nullif(func.concat_ws("; ", *reasons), "").label("reason"),
                (~is_there).label("is_new"),
                and_(is_there, or_(*self._differences(there))).label("differs"),
            )
            .select_from(joined)
            .where(self._is_behind(), tuple_(*self.key_of(staged)) <= tuple_(*last))
            .subquery("found")
        )
        names = [column.name for column in self.batch.c if column.name != "taken"]
        columns: dict[str, ColumnElement[Any]] = {name: found.c[name] for name in names}
        columns["text"] = case((found.c.reason.is_not(None), found.c.text))
        columns["taken"] = and_(self._is_last(found), found.c.reason.is_(None))
        return insert(self.batch).from_select([*columns], select(*columns.values()))

    def _is_last(self, found: Subquery) -> ColumnElement[bool]:
        """Of the good rows with the same key."""
        good = func.max(found.c.line).filter(found.c.reason.is_(None))
        return found.c.line == good.over(partition_by=self.key_of(found))

    def _missing(self, field: str, is_missing: ColumnElement[bool]) -> ColumnElement[str | None]:
        column = self.staged.c[field]
        if self._kind is CONTENTS:
            is_missing = and_(is_missing, column.is_not(None), column != self.staged.c.content_id)
            if self._dry_run:  # it may be in the file
                is_missing = self.staged.c.depth == NOWHERE
        words = f"{field_name(field)}: no such {field.removesuffix('_id')}: "
        return case((is_missing, literal(words, Text) + column))

    def _missing_content(self) -> ColumnElement[str]:
        word = func.unnest(self.staged.c.contents).column_valued("word", joins_implicitly=True)
        content = _table(models.Content)
        is_missing = ~exists().where(content.c.content_id == _id_of(word))
        return literal("contents: no such content: ", Text) + (
            select(func.min(_id_of(word))).where(is_missing).scalar_subquery()
        )

    def _differences(self, there: FromClause) -> Iterator[ColumnElement[bool]]:
        for name in self.bits:
            if name in self._kind.key:
                continue
            if name in there.c:
                now: ColumnElement[Any] = there.c[name]
            else:
                now = cast("Parts", self._parts).of(self.key_of(there)[0])
            yield and_(self._names(self.staged, name), self.staged.c[name].is_distinct_from(now))

    def _count(self) -> Executable:
        """Rows, and how many of them are taken, new, different, disabled, set aside."""
        of = (self._taken, self._is_new, self._differs, self._is_disabled(), self.batch.c.reason.is_not(None))
        return select(func.count(), *(func.count().filter(condition) for condition in of)).select_from(self.batch)

    def _is_disabled(self) -> ColumnElement[bool]:
        return and_(self._taken, ~self.batch.c.enabled) if "enabled" in self.bits else literal_column("false")

    def _lock(self) -> Select[Any]:
        """Lock the accounts of what is changed or disabled, else what is changed, in the order of their keys."""
        table = _table(models.Account) if self._kind.is_of_account else self.table
        (key,) = table.primary_key
        of = select(self.batch.c[key.name]).where(or_(self._differs, self._is_disabled()))
        return select(key).where(key.in_(of)).order_by(key).with_for_update(key_share=True)

    def _record(self) -> Executable:
        """Record what is there and what will be, of all that is changed; `of_operator` does it."""
        is_it = _all_equal(self.key_of(self.table), self.key_of(self.batch))
        now: list[ColumnElement[Any]] = []
        then: list[ColumnElement[Any]] = []
        for name in self.bits:
            is_column = name in self.table.c
            before = self.table.c[name] if is_column else cast("Parts", self._parts).of(self.key_of(self.table)[0])
            now += (literal(field_name(name), Text), before)
            then += (
                literal(field_name(name), Text),
                case((self._names(self.batch, name), self.batch.c[name]), else_=before),
            )
        key = self.key_of(self.table)
        marks = {f"{{{index}}}": column for index, column in enumerate(key)}
        parts = (marks.get(part, literal(part, Text)) for part in self._kind.path(*marks).split("/"))
        columns = {
            "operator": bindparam("of_operator", type_=Text),
            "action": literal("update", Text),
            "resource": func.concat_ws("/", *parts),
            "account_id": key[0] if self._kind.is_of_account else literal("", Text),
            "before": func.jsonb_build_object(*now, type_=JSONB),
            "after": func.jsonb_build_object(*then, type_=JSONB),
        }
        rows = select(*columns.values()).select_from(self.table).where(is_it, self._differs)
        return insert(_table(models.OperatorChange)).from_select(list(columns), rows)

    def _update(self) -> Executable:
        values = {
            name: case((self._names(self.batch, name), self.batch.c[name]), else_=self.table.c[name])
            for name in self.bits
            if name in self.table.c and name not in self._kind.key
        }
        is_it = _all_equal(self.key_of(self.table), self.key_of(self.batch))
        return update(self.table).where(is_it, self._differs).values(values)

    def _insert(self) -> Executable:
        columns: dict[str, ColumnElement[Any]] = {
            name: self.batch.c[name] for name in self.bits if name in self.table.c
        }
        if self._kind is ENTITLEMENTS:
            columns["valid_from"] = func.coalesce(columns["valid_from"], func.statement_timestamp())
        rows = select(*columns.values()).where(self._is_new).order_by(*self.key_of(self.batch))
        return insert(self.table).from_select(list(columns), rows)

    def _write_parts(self) -> tuple[Executable, ...]:
        if self._parts is None:
            return ()
        (key,) = self.key_of(self.batch)
        words = self.batch.c[self._parts.field]
        is_written = and_(or_(self._is_new, self._differs), self._names(self.batch, self._parts.field))
        word = func.unnest(words).column_valued("word", joins_implicitly=True)
        rows = select(key, *self._parts.columns(word)).where(is_written)
        names = [column.name for column in self._parts.table.columns]
        return (
            delete(self._parts.table).where(self._parts.owner == key, is_written, self._parts.word != func.all(words)),
            upsert(self._parts.table).from_select(names, rows.order_by(key)).on_conflict_do_nothing(),
        )

    def is_of_disabled(self) -> ColumnElement[bool]:
        """Of sessions: those of accounts or devices that the batch disables."""
        return tuple_(*(sessions[name] for name in self._kind.key)).in_(
            select(*self.key_of(self.batch)).where(self._is_disabled())
        )

    def count_sessions(self) -> Executable:
        """How many active sessions what the batch disables has."""
        return select(func.count()).select_from(models.PlaybackSession).where(self.is_of_disabled(), is_active())

    def drop_repeated(self) -> Delete:
        """Of contents: leave the last row of each alone in `staged`."""
        other = self.staged.alias("other")
        is_repeated = and_(other.c.content_id == self.staged.c.content_id, other.c.line > self.staged.c.line)
        return delete(self.staged).where(exists().where(is_repeated))

    def deepen(self) -> Executable:
        """Of contents: `of_depth` is the depth of those that need none deeper, neither in the file nor otherwise."""
        staged, other, content = self.staged, self.staged.alias("other"), _table(models.Content)
        channel = staged.c.channel_id
        is_there = or_(
            channel.is_(None),
            channel == staged.c.content_id,
            exists().where(content.c.content_id == channel),
            exists().where(other.c.content_id == channel, other.c.depth < OF_DEPTH),
        )
        return update(staged).where(staged.c.depth == NOWHERE, is_there).values(depth=OF_DEPTH)


def _all_equal(left: Sequence[ColumnElement[Any]], right: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    return and_(*(one == other for one, other in zip(left, right, strict=True)))
