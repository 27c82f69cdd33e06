"""The system user of the embedded server: created once, however many processes start a server for the first time."""

import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest

from srm.db import system_user
from srm.errors import StartupError

PROCESSES = 4

CREATE_AT_ONCE = """
import sys
from srm.db import system_user
print("ready", flush=True)
sys.stdin.readline()
print(system_user.find_or_create(sys.argv[1]).uid)
"""


@pytest.fixture
def name() -> Iterator[str]:
    """A name that no user has; the user is removed afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root creates system users")
    name = f"srm-test-{uuid4().hex[:8]}"
    yield name
    subprocess.run(["userdel", name], capture_output=True, check=False)


def test_processes_that_create_the_user_at_once_all_find_it(name: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_AT_ONCE, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert said == [str(pwd.getpwnam(name).pw_uid)] * PROCESSES


def test_an_existing_user_is_not_created_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    created = system_user.find_or_create(name)
    monkeypatch.setenv("PATH", "")

    assert system_user.find_or_create(name) == created


def test_a_user_that_cannot_be_created_stops_the_start_with_the_words_of_useradd() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root creates system users")

    with pytest.raises(StartupError, match="no:name"):
        system_user.find_or_create("no:name")


def test_a_host_without_useradd_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root creates system users")
    monkeypatch.setenv("PATH", "")

    with pytest.raises(StartupError, match="useradd"):
        system_user.find_or_create("nobody-has-this-name")
