"""JSON names for the fields of resources and other read models.

Models have the names of table columns. A format chooses its own names by a function from field to name: documents in
`documents.py`, each API version in its `wire.py`.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeAlias, TypeVar, cast, get_args, get_origin

from pydantic import ConfigDict

from srm.operators.resources import ReadModel

Model = TypeVar("Model", bound=ReadModel)
Naming: TypeAlias = Callable[[str], str]
"""Returns the JSON name of a field."""


def to_json(shown: ReadModel, name_of: Naming) -> dict[str, Any]:
    """Return the model as JSON values, its members called `name_of(field)` at any depth."""
    return _rename([shown.model_dump(mode="json")], type(shown), name_of)[0]


def with_names(model: type[Model], name_of: Naming) -> type[Model]:
    """Return a subclass of the model that parses JSON whose members are called `name_of(field)` at any depth.

    The subclass keeps the name of the model, which becomes the name of its schema in an OpenAPI document.
    """
    return cast("type[Model]", _with_names(model, name_of))


@cache
def _with_names(model: type[ReadModel], name_of: Naming) -> type[ReadModel]:
    annotations = {}
    for field, inner in _inner_models(model).items():
        annotation = model.model_fields[field].annotation
        container: Any = get_origin(annotation)
        annotations[field] = container[*get_args(annotation)[:-1], _with_names(inner, name_of)]
    members = {
        "__doc__": model.__doc__,
        "__module__": model.__module__,
        "__annotations__": annotations,
        **{field: model.model_fields[field] for field in annotations},
        "model_config": ConfigDict(alias_generator=name_of),
    }
    metaclass: Any = type(model)
    return cast("type[ReadModel]", metaclass(model.__name__, (model,), members))


@cache
def _inner_models(model: type[ReadModel]) -> dict[str, type[ReadModel]]:
    """Return the models of list items and dict values, by the field that has the list or dict."""
    last_arguments = {name: (get_args(field.annotation) or (None,))[-1] for name, field in model.model_fields.items()}
    return {
        name: inner
        for name, inner in last_arguments.items()
        if isinstance(inner, type) and issubclass(inner, ReadModel)
    }


@cache
def _names(model: type[ReadModel], name_of: Naming) -> dict[str, str]:
    return {field: name_of(field) for field in model.model_fields}


def _rename(contents: Iterable[dict[str, Any]], model: type[ReadModel], name_of: Naming) -> list[dict[str, Any]]:
    """Rename the members of dumped models. All at once, since a product has thousands of contents."""
    names, inner_models = _names(model, name_of), _inner_models(model)
    renamed = [{names[field]: value for field, value in content.items()} for content in contents]
    for field, inner in inner_models.items():
        for content in renamed:
            value = content[names[field]]
            if isinstance(value, list):
                content[names[field]] = _rename(value, inner, name_of)
            else:
                content[names[field]] = dict(zip(value, _rename(value.values(), inner, name_of), strict=True))
    return renamed
