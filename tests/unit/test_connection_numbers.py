"""README and docs/production.md say how many connections to the database a host opens."""

import re

import pytest

from srm.db.database import CONNECTIONS
from srm.serve.supervisor import REAPER_CONNECTIONS
from tests.support import ROOT


@pytest.mark.parametrize("page", ["README.md", "docs/production.md"])
def test_a_page_has_the_number_of_connections_that_the_code_opens(page: str) -> None:
    (said,) = re.findall(r"at most 2 \S (\d+) \+ (\d+) = (\d+)", (ROOT / page).read_text())

    assert [int(number) for number in said] == [CONNECTIONS, REAPER_CONNECTIONS, 2 * CONNECTIONS + REAPER_CONNECTIONS]
