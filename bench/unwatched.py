"""The service without what it counts, measures and logs of each request: the difference is what watching costs."""

from srm.api import telemetry

telemetry.answered = lambda *_: None
telemetry.WAITED.observe = lambda *_: None  # type: ignore[method-assign]

from wsgi import app  # noqa: E402, F401
