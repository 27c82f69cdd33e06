"""Log lines that cannot be written are lost, and nothing else fails."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_logging_to_a_full_disk_does_not_fail(log_format: str) -> None:
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
