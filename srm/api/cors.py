"""CORS: lets players on pages of other origins call the client API (Fetch Standard, "CORS protocol")."""

from collections.abc import Collection, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ANY_ORIGIN = "*"

METHODS = "GET, POST, PUT, DELETE"
REQUEST_HEADERS = "Client-Token, Content-Type, Idempotency-Key, X-Correlation-Id"
"""Headers that a page may send."""

RESPONSE_HEADERS = "X-Correlation-Id, Retry-After, SRM-End-Reason"
"""Headers of the answer that a page may read."""

PREFLIGHT_SECONDS = "7200"
"""Time for which a browser may remember a preflight: the longest that any browser does. Each preflight is a request."""


def with_cors(application: WSGIApplication, origins: Collection[str], paths: tuple[str, ...]) -> WSGIApplication:
    """Wrap the application: pages of these origins may call these paths and read the answers, errors too.

    `origins`: may contain ANY_ORIGIN. `paths`: beginnings of paths. For pages of other origins nothing changes: the
    browser keeps the answer from them, and a preflight gets 405.
    """
    allows_any = ANY_ORIGIN in origins

    def headers_for(origin: str) -> list[tuple[str, str]]:
        # A cache must not give the answer for one origin to another.
        vary = [] if allows_any else [("Vary", "Origin")]
        if not origin or not (allows_any or origin in origins):
            return vary
        allowed = ANY_ORIGIN if allows_any else origin
        return [*vary, ("Access-Control-Allow-Origin", allowed), ("Access-Control-Expose-Headers", RESPONSE_HEADERS)]

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith(paths):
            return application(environ, start_response)
        cors = headers_for(environ.get("HTTP_ORIGIN", ""))
        is_preflight = "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ and environ["REQUEST_METHOD"] == "OPTIONS"
        if is_preflight and len(cors) > 1:
            cors += [("Access-Control-Allow-Methods", METHODS), ("Access-Control-Allow-Headers", REQUEST_HEADERS)]
            start_response("204 No Content", [*cors, ("Access-Control-Max-Age", PREFLIGHT_SECONDS)])
            return ()

        def start(status: str, headers: list[tuple[str, str]], *exc_info: object) -> object:
            return start_response(status, [*headers, *cors], *exc_info)  # type: ignore[arg-type]

        return application(environ, start)  # type: ignore[arg-type]

    return wrapped
