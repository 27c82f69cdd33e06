"""The baselines, which answer keep-alive requests and do nothing: a Flask view, and a bare WSGI callable."""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask

app = Flask("empty")


@app.put("/srm/v1/sessions/<session_id>")
def empty(session_id: str) -> str:  # noqa: ARG001
    """Answer 200 without a body."""
    return ""


def bare(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer 200 without a body."""
    start_response("200 OK", [("Content-Length", "0")])
    return []
