"""Quick `srm …` for tests that run it a hundred times: forks of one process that has imported SRM once.

An import takes a second, a fork milliseconds. `commands` starts the process and writes a program that calls it.
"""

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from srm.cli.main import COMMANDS
from tests.support import python_m, running, wait_until

CLIENT = """
import json, os, socket, sys
request = json.dumps([os.getcwd(), dict(os.environ), sys.argv[1:]]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [len(request).to_bytes(4)], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(16)))
"""
"""Program that passes its folder, environment, arguments and standard streams on; exits as the command does."""


@contextmanager
def commands(program: Path) -> Iterator[None]:
    """Write a program that works like `srm`: `srm serve` is a new process, any other command a fork."""
    address = program.with_name("warm.socket")
    client = program.with_name("warm.py")
    client.write_text(CLIENT.format(address=str(address)))
    real, fork = shlex.join(python_m("srm.cli")), shlex.join([sys.executable, "-IS", str(client)])
    program.write_text(f'#!/bin/sh\nif [ "$1" = serve ]; then exec {real} "$@"; else exec {fork} "$@"; fi\n')
    program.chmod(0o755)
    with running(python_m("tests.warm", str(address)), program.with_name("warm.log")):
        wait_until(address.exists)
        yield


def serve(address: str) -> NoReturn:
    """Run each requested command in a fork, until this process is killed."""
    for command in COMMANDS.values():  # forks have the modules that are imported here
        import_module(f"srm.cli.{command.partition('.')[0]}")

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(connection: socket.socket) -> NoReturn:
    """Run the command and send its exit code. The command gets a fork of its own: it may become psql by exec."""
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        folder, variables, arguments = json.loads(stream.read(int.from_bytes(size)))
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        _run(arguments)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(str(code).encode())
    os._exit(0)


def _run(arguments: list[str]) -> NoReturn:
    from srm.cli.main import main

    sys.argv = ["srm", *arguments]
    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    if isinstance(code, str):
        print(code, file=sys.stderr)  # as the interpreter does
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(sys.argv[1])
