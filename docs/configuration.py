"""Prints docs/configuration.md, the page with every setting, as `srm.config.Settings` describes them: `make docs`."""

import sys
from typing import get_args, get_origin

from pydantic.fields import FieldInfo

from srm.config import Settings

HEAD = """# Configuration

SRM reads environment variables, once, when a process starts. A variable that is empty counts as unset. A wrong value
stops the start, with one line that names the variable, the value and what is allowed. SRM never shows the value of a
secret.

`make docs` writes this page from `srm/config.py`.

| variable | default | allowed | meaning |
| --- | --- | --- | --- |
"""
BOUNDS = {"ge": "from {}", "gt": "more than {}", "le": "to {}", "lt": "less than {}"}


def default_of(field: FieldInfo) -> str:
    """The default, as somebody would write it; nothing when the variable is unset."""
    value = field.get_default(call_default_factory=True)
    return "" if value is None or value == frozenset() else f"`{value}`"


def allowed(field: FieldInfo) -> str:
    """The words that the setting may be, or the range of its number; nothing when there is no such limit."""
    if words := [word for part in (field.annotation, *get_args(field.annotation)) for word in _words(part)]:
        return ", ".join(f"`{word}`" for word in words)
    bounds = [
        (text, getattr(limit, name))
        for limit in field.metadata
        for name, text in BOUNDS.items()
        if hasattr(limit, name)
    ]
    return " ".join(text.format(f"{bound:g}" if isinstance(bound, float) else bound) for text, bound in bounds)


def _words(annotation: object) -> tuple[str, ...]:
    return get_args(annotation) if str(get_origin(annotation)) == "typing.Literal" else ()


def page() -> str:
    """The whole page."""
    rows = [
        (f"`SRM_{name.upper()}`", default_of(field), allowed(field), (field.description or "").replace("|", "\\|"))
        for name, field in Settings.model_fields.items()
    ]
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(page())
