"""A real browser, and local sites whose pages the browser shows."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import httpx

from tests import tools
from tests.support import Process, running, wait_until

TEST_DEADLINE_SECONDS = 30
"""Longest wait for the browser or a page; after that the test fails instead of hanging."""

OPTIONS = (
    "--headless",
    "--no-sandbox",  # Chromium has no sandbox as root.
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-breakpad",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
)
"""The browser opens no window. It connects only to the sites of the test and to the addresses that their pages ask."""

PAGE = """<!doctype html>
<title>A page of tests</title>
<link rel="icon" href="data:,">
<script type="module">
const given = {given};
const report = (what) => fetch("/report", {{method: "POST", body: JSON.stringify(what)}});
try {{
{script}
}} catch (error) {{ report({{thrown: String(error)}}); }}
</script>
"""
"""Page that runs a script. `given` has the values for the script; `report` sends a value to the test."""


class Site:
    """A site with one page at a time. `origin` is its origin as browsers write it."""

    def __init__(self) -> None:
        self._page = b""
        self._reports: Queue[Any] = Queue()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(site._page)

            def do_POST(self) -> None:
                site._reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def show(self, script: str, **given: Any) -> None:
        """Replace the page by one that runs this script."""
        self._page = PAGE.format(given=json.dumps(given), script=script).encode()
        self._reports = Queue()  # Reports of an earlier page are dropped.

    def report(self) -> Any:
        """Return the next report of the page. AssertionError when the script throws, or reports nothing in time."""
        try:
            report = self._reports.get(timeout=TEST_DEADLINE_SECONDS)
        except Empty:
            raise AssertionError(f"nothing was reported in {TEST_DEADLINE_SECONDS} s") from None
        assert not (isinstance(report, dict) and "thrown" in report), report["thrown"]
        return report

    def stop(self) -> None:
        """Stop the server of the site."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def site() -> Iterator[Site]:
    started = Site()
    try:
        yield started
    finally:
        started.stop()


class Browser:
    """A browser with an empty profile: it remembers nothing, no preflight either."""

    def __init__(self, port: int) -> None:
        self._remote = httpx.Client(
            verify=False, base_url=f"http://127.0.0.1:{port}/json", timeout=TEST_DEADLINE_SECONDS
        )

    def open(self, url: str) -> str:
        """Open a page in a new tab; return the id of the tab."""
        return str(self._remote.put(f"/new?{url}").raise_for_status().json()["id"])

    def close(self, tab: str) -> None:
        """Close the tab, as a user does with a click."""
        self._remote.get(f"/close/{tab}").raise_for_status()

    def disconnect(self) -> None:
        self._remote.close()


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser during the block."""
    # Not below pytest's own folder: the paths of its sockets would be too long.
    with TemporaryDirectory(prefix="srm-browser-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = [tools.need("chromium"), *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        with running(command, folder / "output", variables={"HOME": name, "TMPDIR": name}) as process:
            wait_until(lambda: _remote_port(process, folder))
            started = Browser(_remote_port(process, folder))
            try:
                yield started
            finally:
                started.disconnect()


def _remote_port(process: Process, folder: Path) -> int:
    """Port of the DevTools protocol; 0 until the browser has written it."""
    assert process.popen.poll() is None, process.text()
    announced = folder / "DevToolsActivePort"
    port, end, _ = announced.read_text().partition("\n") if announced.exists() else ("", "", "")
    return int(port) if end else 0
