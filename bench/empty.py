"""The baseline: a Flask view that takes keep-alive requests and does nothing."""

from flask import Flask

app = Flask("empty")


@app.put("/srm/v1/sessions/<session_id>")
def empty(session_id: str) -> str:  # noqa: ARG001
    """Answer 200 without a body."""
    return ""
