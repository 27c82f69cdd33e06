"""SRM as deploy/ runs it: gunicorn with deploy/gunicorn.conf.py, and nginx with deploy/nginx/srm.conf in front."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import tools
from tests.support import ROOT, SECRET, Process, free_port, python_m, running, wait_until

DEPLOY = ROOT / "deploy"
NGINX = DEPLOY / "nginx"

MAIN = """
{user}
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 768; }}
http {{
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    include {folder}/conf.d/*.conf;
}}
"""
"""The parts of Debian's nginx.conf that matter, with files in a folder of the test."""


@dataclass
class Nginx:
    """A running nginx."""

    process: Process
    world: str
    operators: str
    folder: Path

    @property
    def certificate(self) -> str:
        """Path of the certificate that a client has to trust."""
        return str(self.folder / "srm" / "certificate.pem")

    def client(self, **options: object) -> httpx.Client:
        """Client that trusts the certificate and asks as the world does."""
        return httpx.Client(base_url=self.world, verify=tls(self.certificate), timeout=20, **options)  # type: ignore[arg-type]

    def logged(self, name: str) -> str:
        """Content of a log file so far."""
        return (self.folder / name).read_text()


def tls(certificate: str) -> ssl.SSLContext:
    """TLS context that trusts this certificate only."""
    return ssl.create_default_context(cafile=certificate)


def configure(
    folder: Path, upstreams: list[str], world: int, operators: int, token_zone: str = "64m", **files: str
) -> list[str]:
    """Put the shipped configuration into a folder; return the command that starts nginx with it.

    upstream.conf and here.conf name the upstreams. Ports and folders are those of the test. `token_zone` is the size of
    the zone of tokens. `files`: name of a file in srm/ → text that is appended to it.
    """
    (folder / "conf.d").mkdir(parents=True)
    (folder / "srm").mkdir()
    text = (NGINX / "srm.conf").read_text()
    assert "zone=srm_token:64m" in text
    (folder / "conf.d" / "srm.conf").write_text(text.replace("zone=srm_token:64m", f"zone=srm_token:{token_zone}"))
    changes = {"[::]:443": f"[::1]:{world}", "443": f"127.0.0.1:{world}", "127.0.0.1:8081": f"127.0.0.1:{operators}"}
    changes |= {"/etc/nginx/": f"{folder}/", "/var/log/nginx/": f"{folder}/"}
    for path in (NGINX / "srm").iterdir():
        target = folder / "srm" / path.name
        if path.name == "upstream.conf":
            target.write_text("".join(f"server {upstream} max_fails=1 fail_timeout=1s;\n" for upstream in upstreams))
        elif path.name == "here.conf":
            target.write_text(f"server {upstreams[0]};\n")
        elif path.stem in files:
            target.write_text(path.read_text() + files[path.stem])
        else:
            target.symlink_to(path)
    for name in ("listen", "operators", "logs"):
        target = folder / "srm" / f"{name}.conf"
        text = target.read_text()
        for shipped, here in changes.items():
            text = text.replace(f" {shipped}", f" {here}")
        target.unlink()
        target.write_text(text)
    make_certificate(folder / "srm")
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder))
    return [tools.need("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "start.log")]


def make_certificate(folder: Path) -> None:
    """Write a self-signed certificate for this machine."""
    command = [tools.need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem"), "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,DNS:srm.example,IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def nginx(folder: Path, *upstreams: str, **files: str) -> Iterator[Nginx]:
    """Run the real nginx with the shipped configuration in front of the upstreams. `files`: see `configure`."""
    world, operators = free_port(), free_port()
    command = configure(folder, list(upstreams), world, operators, **files)
    with running([*command, "-g", "daemon off;"], folder / "output") as process:
        started = Nginx(process, f"https://127.0.0.1:{world}", f"http://127.0.0.1:{operators}", folder)

        def answers() -> bool:
            assert process.popen.poll() is None, process.text() + started.logged("start.log")
            try:
                with started.client() as client:
                    return client.get("/").status_code == 404
            except httpx.HTTPError:
                return False

        wait_until(answers)
        yield started


@contextmanager
def instance(
    url: str,
    output: Path,
    bind: str,
    *options: str,
    through: Sequence[str] = (),
    listener: socket.socket | None = None,
    variables: Mapping[str, str] = {},
) -> Iterator[Process]:
    """Run one gunicorn with deploy/gunicorn.conf.py; yield it once it is ready.

    `bind` is host:port or unix:/path. `through`: words that stand before the command. `listener`: socket that listens
    at `bind` already. It is handed over as systemd does it (sd_listen_fds(3)): as descriptor 3, with LISTEN_PID.
    """
    command = python_m("gunicorn", "--config", str(DEPLOY / "gunicorn.conf.py"), "--workers", "2", *options, "wsgi:app")
    all_variables = {
        "SRM_DATABASE_URL": url,
        "SRM_TOKEN_SECRET": SECRET,
        "SRM_BIND": bind,
        "SRM_TRUSTED_PROXIES": "1",
        "TMPDIR": str(output.parent),
        **variables,
    }
    command = [*through, *command]
    fds = []
    if listener is not None:
        fds = [listener.fileno()]
        command = ["bash", "-c", f'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&{fds[0]} {fds[0]}<&-', "bash", *command]
    with running(command, output, pass_fds=fds, variables=all_variables) as process:
        wait_until_ready(process, bind)
        yield process


def wait_until_ready(process: Process, bind: str) -> None:
    """Wait until /readyz answers 200. AssertionError with the output when the process ends before that."""
    request = b"GET /readyz HTTP/1.1\r\nHost: srm\r\nConnection: close\r\n\r\n"
    host, _, port = bind.rpartition(":")
    is_unix = host == "unix"

    def is_ready() -> bool:
        assert process.popen.poll() is None, process.text()
        with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as connection:
            connection.settimeout(20)
            if connection.connect_ex(port if is_unix else (host, int(port))) != 0:
                return False
            connection.sendall(request)
            return connection.recv(4096).startswith(b"HTTP/1.1 200")

    try:
        wait_until(is_ready)
    except AssertionError:
        raise AssertionError(f"not ready: {process.text()}") from None
