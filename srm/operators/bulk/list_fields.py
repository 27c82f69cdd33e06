"""Fields that hold a list and are stored in a table of their own: groups of contents, contents of products.

An import stages such a list as an array of texts, one for each item. The text of a group is its name; the text of a
product's content is `contentType:contentID`. A change log entry of an import shows these texts, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from sqlalchemy import ARRAY, Column, ColumnElement, Table, Text, func, literal, select
from sqlalchemy.dialects.postgresql import aggregate_order_by

from srm.db import models
from srm.db.models import Base
from srm.operators.resources import CONTENTS, PRODUCTS, Kind

TEXTS = ARRAY(Text)


@dataclass(frozen=True)
class ListField:
    """A list field. Its table has a row for each item.

    `owner` is the column with the key of the resource that has the item. `item` is the text of an item, made from the
    columns of its row. `columns` makes from the text the columns beside the owner, by name.
    """

    name: str
    table: Table
    owner: Column[str]
    item: ColumnElement[str]
    columns: Callable[[ColumnElement[str]], dict[str, ColumnElement[str]]]

    def items_of(self, key: ColumnElement[str]) -> ColumnElement[list[str]]:
        """Array of the items that the resource with this key has, in an order that no database's collation changes."""
        items = func.array_agg(aggregate_order_by(self.item, self.item.collate("C")), type_=TEXTS)
        return func.coalesce(select(items).where(self.owner == key).scalar_subquery(), literal([], TEXTS))


def table_of(model: type[Base]) -> Table:
    """Return the table of a model."""
    return cast("Table", model.__table__)


def content_id_of(item: ColumnElement[str]) -> ColumnElement[str]:
    """Content id in the text of a product's content; the id may have colons in it."""
    return func.substr(item, func.strpos(item, ":") + 1)


_groups, _contents = table_of(models.ContentGroup), table_of(models.ProductContent)
LIST_FIELDS: dict[Kind, ListField] = {
    CONTENTS: ListField(
        "groups", _groups, _groups.c.content_id, _groups.c.content_group, lambda item: {"content_group": item}
    ),
    PRODUCTS: ListField(
        "contents",
        _contents,
        _contents.c.product_id,
        func.concat(_contents.c.content_type, ":", _contents.c.content_id),
        lambda item: {"content_type": func.split_part(item, ":", 1), "content_id": content_id_of(item)},
    ),
}
