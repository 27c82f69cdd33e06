"""OpenAPI 3.1 document of the API, v1, made of the models that validate requests."""

from functools import cache
from typing import Any

from flask import Blueprint, Response, json
from pydantic.json_schema import models_json_schema

from srm import version
from srm.api.v1.client import openapi as openapi_client
from srm.api.v1.operator import openapi as openapi_operator

blueprint = Blueprint("openapi", __name__)


@blueprint.get("/openapi.json")
def show() -> Response:
    """Answer with the document."""
    return Response(rendered(), mimetype="application/json")


@cache
def rendered() -> str:
    """Return the document as JSON."""
    return json.dumps(document(), indent=2, sort_keys=False)


def document() -> dict[str, Any]:
    """Return the document."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in (*openapi_client.MODELS, *openapi_operator.MODELS)],
        ref_template="#/components/schemas/{model}",
    )
    schemas = definitions["$defs"]
    schemas.update(openapi_operator.bodies(schemas))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "SRM API",
            "version": version.build(),
            "description": "For clients: before a player starts a stream it sets a session up; while it plays it keeps "
            "the session alive; when it stops it tears the session down. A client looks for `successResponse`, "
            "never at the HTTP status alone: denials by a business rule are 200 with an `errorResponse` whose "
            "status is `DENIED`.\n\nFor operators: accounts, devices, entitlements and the catalogue, who watches "
            "now, and why somebody could not watch. Here the HTTP status tells success from failure; errors come in an "
            "`errorResponse` too.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "/srm/v1", "description": "This version"},
            {"url": "/srm", "description": "The newest version"},
        ],
        "paths": {**openapi_client.paths(), **openapi_operator.paths()},
        "components": {"schemas": schemas},
    }
