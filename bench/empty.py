"""The yardstick: a Flask view that takes the same requests as the keep-alive, and does nothing."""

from flask import Flask

app = Flask("empty")


@app.put("/srm/v1/sessions/<session_id>")
def empty(session_id: str) -> str:  # noqa: ARG001
    """200 without a body."""
    return ""
