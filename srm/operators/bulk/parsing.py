"""Parsers that make resources from the lines of import files, CSV or JSON."""

import csv
from collections.abc import Callable
from typing import Any, TypeAlias, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from srm.operators.bulk.lines import MAX_LINE_BYTES
from srm.operators.documents import field_name, model_of
from srm.operators.resources import Kind, Resource

Parser: TypeAlias = "Callable[[str], Resource]"
"""Makes a resource from a line. ValueError or csv.Error when the line is not one."""

csv.field_size_limit(MAX_LINE_BYTES)


def json_parser(kind: Kind) -> Parser:
    """Return a parser of JSON lines."""
    model = model_of(kind)
    return lambda text: model.model_validate_json(_utf_8(text), strict=True)


def csv_parser(kind: Kind, header: str) -> Parser:
    """Return a parser of CSV lines below this header. ValueError or csv.Error when the header is wrong.

    An empty cell is null if the field may be null. Otherwise it names nothing. A cell of a list field has JSON.
    """
    model = model_of(kind)
    names = _cells(header)
    fields = {field_name(name): field for name, field in kind.resource.model_fields.items()}
    _check_header(names, fields)
    nullable = {name for name, field in fields.items() if _is_nullable(field)}
    lists = [name for name in names if isinstance(fields[name].default, list)]

    def parse(text: str) -> Resource:
        cells = _cells(_utf_8(text))
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells, but the header has {len(names)}")
        row: dict[str, Any] = dict(zip(names, cells, strict=True))
        if "" in cells:
            row = {name: cell or None for name, cell in row.items() if cell or name in nullable}
        for name in lists:
            if name in row:
                row[name] = _list(name, row[name])
        return model.model_validate(row)

    return parse


def reason_of(error: ValidationError) -> str:
    """Return, for people, why a row is rejected: each wrong field with its problem."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in details)


def _check_header(names: list[str], fields: dict[str, FieldInfo]) -> None:
    if unknown := [name for name in names if name not in fields]:
        raise ValueError(f"unknown column: {', '.join(unknown)}; there are {', '.join(fields)}")
    if missing := [name for name, field in fields.items() if field.is_required() and name not in names]:
        raise ValueError(f"missing column: {', '.join(missing)}")
    if len(set(names)) < len(names):
        raise ValueError("a column comes twice")


def _cells(text: str) -> list[str]:
    return text.split(",") if '"' not in text else next(csv.reader([text], strict=True))


def _utf_8(text: str) -> str:
    """Return the text. Raises ValueError when the line was not in UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError("not in UTF-8") from None
    return text


def _list(name: str, cell: str) -> object:
    try:
        return from_json(cell)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _is_nullable(field: FieldInfo) -> bool:
    return type(None) in get_args(field.annotation)
