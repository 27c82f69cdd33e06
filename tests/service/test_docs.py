"""docs/operators.md works as pasted: its shell blocks, one after the other, give the answers that stand below them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from srm.db.database import Database
from srm.operators import demo
from tests import support
from tests.support import ROOT, environment

BLOCK = re.compile(r"```sh\n(.*?)```\n((?:\n(?:    [^\n]+\n)+)?)", re.DOTALL)
VARYING = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z"), "<now>"),
)
END = "=== end of block ==="


def steady(text: str) -> str:
    """Without what differs from run to run."""
    for pattern, word in VARYING:
        text = pattern.sub(word, text)
    return text


def test_the_page_for_operators_works_as_pasted(clone: Callable[[], str], tmp_path: Path) -> None:
    url = clone()
    database = Database(url, application_name="srm-tests")
    with database.transaction() as db:
        demo.load(db)
    database.dispose()
    blocks = BLOCK.findall((ROOT / "docs" / "operators.md").read_text())
    assert len(blocks) >= 12
    srm = f'srm() {{ "{sys.executable}" -m srm.cli "$@"; }}\n'

    with support.api(url, tmp_path / "api.log", workers=1) as (base, _):
        script = "set -euo pipefail\n" + srm + "".join(f"{code}\necho; echo '{END}'\n" for code, _ in blocks)
        script = script.replace("http://127.0.0.1:8080", base).replace("curl -s", "curl -s -w '\\n'")
        result = subprocess.run(
            ["bash", "-c", script],
            env=environment(SRM_DATABASE_URL=url, SRM_TOKEN_SECRET=support.SECRET),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert result.returncode == 0, result.stdout + result.stderr
    outputs = steady(result.stdout).split(END)[: len(blocks)]
    compared = 0
    for (code, shown), output in zip(blocks, outputs, strict=True):
        for line in steady(shown).splitlines():
            if line.strip():
                assert line.strip() in output.splitlines(), (code, output)
                compared += 1
    assert compared >= 15
