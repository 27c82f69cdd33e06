"""Plays a fresh Debian host for the install blocks of docs/production.md. Runs as root in namespaces of its own.

    unshare --mount --net --pid --fork --kill-child --mount-proc python -m tests.deploy.host FOLDER SOCKET_FOLDER

FOLDER has `script.sh`, which runs in FOLDER/checkout with this terminal as its own. SOCKET_FOLDER has the Unix socket
of a PostgreSQL, which answers as db.example:5432.

Real: files, users, nginx, psql, curl, SRM's processes. Stubs: `apt-get`; `python3 -m venv` and its pip; `systemctl`,
which starts the commands of the installed units without their sandbox.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from srm.db.embedded import programs

STUB = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.deploy import host_stubs
sys.exit(host_stubs.{name}(sys.argv[1:]))
"""
ROOT = Path(__file__).parent.parent.parent
NAMES = "127.0.0.1 localhost db.example srm.example\n"


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def hide(folder: Path) -> None:
    """Put an empty folder there."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)


def shadow_etc(folder: Path) -> None:
    """Put a copy of /etc there, without an installed SRM and with the names of the page."""
    copy = folder / "etc"
    shutil.copytree("/etc", copy, symlinks=True, ignore=shutil.ignore_patterns("srm", "srm*"))
    subprocess.run(["chown", "--recursive", "--reference=/etc", str(copy)], check=True)
    (copy / "hosts").write_text(NAMES)
    mount("--bind", copy, "/etc")


def shadow_opt(folder: Path) -> None:
    """Put a folder there that has all of /opt, without an installed SRM, and may be written."""
    kept = folder / "opt"
    kept.mkdir()
    mount("--rbind", "/opt", kept)
    hide(Path("/opt"))
    for path in kept.iterdir():
        if path.is_dir() and path.name != "srm":
            (Path("/opt") / path.name).mkdir()
            mount("--rbind", path, Path("/opt") / path.name)


def raise_loopback() -> None:
    """A network namespace begins with its loopback interface down (netdevice(7): SIOCSIFFLAGS, IFF_UP)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", 1))


def answer_as_database(socket_path: str) -> None:
    """Hand on each connection to 127.0.0.1:5432 to the Unix socket of the PostgreSQL outside."""
    listener = socket.create_server(("127.0.0.1", 5432))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def accept() -> None:
        while True:
            client, _ = listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(socket_path)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=copy, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def install_stubs(folder: Path) -> None:
    folder.mkdir()
    for program in ("apt-get", "python3", "systemctl"):
        stub = folder / program
        stub.write_text(STUB.format(python=sys.executable, root=str(ROOT), name=program.replace("-", "_")))
        stub.chmod(0o755)


def main() -> int:
    folder, socket_folder = Path(sys.argv[1]), Path(sys.argv[2])
    os.setsid()
    # psql and `read` ask on the terminal of their session: the first one that its leader opens (tty(4)).
    terminal = os.open(os.ttyname(0), os.O_RDWR)
    mount("--make-rprivate", "/")
    raise_loopback()
    shadow_etc(folder)
    shadow_opt(folder)
    for path in ("/run", "/var/log"):
        hide(Path(path))
    Path("/var/log/nginx").mkdir()
    install_stubs(folder / "stubs")
    answer_as_database(f"{socket_folder}/.s.PGSQL.5432")
    environment = {
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PATH": f"{folder}/stubs:/usr/sbin:/usr/bin:/sbin:/bin:{programs()}",
        "CURL_CA_BUNDLE": f"{folder}/checkout/certificate.pem",
        "STUB_LOG": str(folder / "stubs.log"),
    }
    command = ["bash", str(folder / "script.sh")]
    done = subprocess.run(command, cwd=folder / "checkout", env=environment, stdin=terminal, check=False)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
