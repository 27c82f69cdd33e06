"""Leave for players in browsers: what pages of other origins may ask and read (Fetch Standard, "CORS protocol")."""

from collections.abc import Collection, Iterable
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

ANY_ORIGIN = "*"

METHODS = "GET, POST, PUT, DELETE"
ASKED_WITH = "Client-Token, Content-Type, Idempotency-Key, X-Correlation-Id"
READABLE = "X-Correlation-Id, Retry-After, SRM-End-Reason"

PREFLIGHT_SECONDS = "7200"
"""How long a browser may remember a preflight. More than this none does; less doubles the number of requests."""


def with_cors(application: WSGIApplication, origins: Collection[str], paths: tuple[str, ...]) -> WSGIApplication:
    """Let pages of these origins, or of any, ask what begins with one of the paths, and read the answers, errors too.

    To a page of another origin nothing is different: its browser gives it no answer, and the preflight is a 405.
    """
    allows_any = ANY_ORIGIN in origins

    def headers_for(origin: str) -> list[tuple[str, str]]:
        vary = [] if allows_any else [("Vary", "Origin")]
        if not origin or not (allows_any or origin in origins):
            return vary
        allowed = ANY_ORIGIN if allows_any else origin
        return [*vary, ("Access-Control-Allow-Origin", allowed), ("Access-Control-Expose-Headers", READABLE)]

    def wrapped(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith(paths):
            return application(environ, start_response)
        cors = headers_for(environ.get("HTTP_ORIGIN", ""))
        is_preflight = "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ and environ["REQUEST_METHOD"] == "OPTIONS"
        if is_preflight and len(cors) > 1:
            cors += [("Access-Control-Allow-Methods", METHODS), ("Access-Control-Allow-Headers", ASKED_WITH)]
            start_response("204 No Content", [*cors, ("Access-Control-Max-Age", PREFLIGHT_SECONDS)])
            return ()

        def start(status: str, headers: list[tuple[str, str]], *exc_info: object) -> object:
            return start_response(status, [*headers, *cors], *exc_info)  # type: ignore[arg-type]

        return application(environ, start)  # type: ignore[arg-type]

    return wrapped
