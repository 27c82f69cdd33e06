"""The service without metrics and log lines of requests. The difference to the service is the cost of telemetry."""

from srm.api import telemetry

telemetry.record_request = lambda *_: None
telemetry.WAITED.observe = lambda *_: None  # type: ignore[method-assign]

from wsgi import app  # noqa: E402, F401
