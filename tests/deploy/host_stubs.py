"""Stubs of `apt-get`, `python3` and `systemctl` for tests/deploy/host.py. Each appends its arguments to $STUB_LOG."""

import grp
import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

UNITS = Path("/etc/systemd/system")
PIDS = Path("/run/stub")


def note(*words: str) -> None:
    with Path(os.environ["STUB_LOG"]).open("a") as log:
        log.write(shlex.join(words) + "\n")


def apt_get(arguments: list[str]) -> int:
    """Install nothing: the tests have the programs."""
    note("apt-get", *arguments)
    return 0


def python3(arguments: list[str]) -> int:
    """For `-m venv FOLDER`: make a folder with `srm` and `gunicorn` of this virtual environment, and a stub of pip."""
    note("python3", *arguments)
    assert arguments[:2] == ["-m", "venv"], arguments
    programs = Path(arguments[2]) / "bin"
    programs.mkdir(parents=True)
    here = Path(sys.executable).parent
    for program in ("srm", "gunicorn"):
        (programs / program).symlink_to(here / program)
    text = Path(sys.argv[0]).read_text().replace("host_stubs.python3", "host_stubs.pip")
    (programs / "pip").write_text(text)
    (programs / "pip").chmod(0o755)
    return 0


def pip(arguments: list[str]) -> int:
    """Fail when a named file is not there or has a line without a version and a hash."""
    note("pip", *arguments)
    for option, value in itertools.pairwise(arguments):
        if option == "-r":
            text = Path(value).read_text().replace("\\\n", " ")
            packages = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            assert packages
            assert all("==" in line and "--hash=sha256:" in line for line in packages), value
    return 0


def systemctl(arguments: list[str]) -> int:
    """Start or restart the commands of SRM's units; start or reload nginx."""
    note("systemctl", *arguments)
    PIDS.mkdir(exist_ok=True)
    match arguments:
        case ["daemon-reload"]:
            pass
        case ["enable", "--now", *units] | ["restart", *units]:
            for unit in units:
                if unit.endswith(".service"):
                    stop(unit)
                    start(unit)
        case ["reload", "nginx"]:
            pid = Path("/run/nginx.pid")  # `nginx -t` makes an empty one
            is_running = pid.exists() and pid.read_text().strip() != ""
            subprocess.run(["nginx", *(["-s", "reload"] if is_running else [])], check=True)
        case _:
            raise AssertionError(arguments)
    return 0


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in (UNITS / unit).read_text().splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found[name].append(value)
    return found


def assignments(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def start(unit: str) -> None:
    service = settings(unit)
    # One worker is enough here: each start of a worker loads the whole application.
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "GUNICORN_CMD_ARGS": "--workers 1"}
    for line in service["Environment"]:
        environment.update(assignments(shlex.split(line)))
    for name in service["EnvironmentFile"]:
        environment.update(assignments(Path(name).read_text().splitlines()))
    for name in service["RuntimeDirectory"]:
        (Path("/run") / name).mkdir(exist_ok=True)
    command = shlex.split(service["ExecStart"][0])
    pass_fds: list[int] = []
    if unit.replace(".service", ".socket") in service["Requires"]:
        listener = listen(unit.replace(".service", ".socket"))
        pass_fds = [os.dup2(listener.fileno(), 3)]
        command = ["bash", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "bash", *command]
    with Path(f"/run/stub/{unit}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    (PIDS / unit).write_text(str(process.pid))
    if pass_fds:
        wait_for_answer(service)


def wait_for_answer(service: dict[str, list[str]]) -> None:
    """Wait until a worker answers: on a busy machine the first start takes longer than nginx waits for an answer."""
    (unit,) = service["Requires"]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(settings(unit)["ListenStream"][0])
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: srm\r\nConnection: close\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def listen(unit: str) -> socket.socket:
    asked = settings(unit)
    path = Path(asked["ListenStream"][0])
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    os.chown(path, 0, grp.getgrnam(asked["SocketGroup"][0]).gr_gid)
    path.chmod(int(asked["SocketMode"][0], 8))
    listener.listen(int(asked["Backlog"][0]))
    return listener


def stop(unit: str) -> None:
    if not (PIDS / unit).exists():
        return
    pid = int((PIDS / unit).read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, f"{unit} does not stop"
        time.sleep(0.1)
