"""A line that cannot be written is lost; nothing else is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_full_disk_fails_nobody_who_has_something_to_say(log_format: str) -> None:
    code = (
        f"import logging, structlog; from srm import logs; logs.configure({log_format!r})\n"
        "for _ in range(1000):\n"
        "    structlog.get_logger().info('of ours')\n"
        "print('alive')"
    )

    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=full, check=False
        )

    assert result.stdout == b"alive\n"
