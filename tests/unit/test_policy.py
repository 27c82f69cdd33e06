"""May the account have one more session?"""

from uuid import uuid4

import pytest

from srm import policy
from srm.errors import SessionLimitReached
from srm.policy import Limits


@pytest.mark.parametrize(("limit", "active"), [(1, 0), (3, 0), (3, 2), (None, 0), (None, 10_000)])
def test_it_admits_below_the_limit(limit: int | None, active: int) -> None:
    policy.check(Limits(limit), [uuid4() for _ in range(active)])


@pytest.mark.parametrize(("limit", "active"), [(0, 0), (0, 1), (1, 1), (3, 3), (3, 4)])
def test_it_refuses_from_the_limit_on(limit: int, active: int) -> None:
    with pytest.raises(SessionLimitReached):
        policy.check(Limits(limit), [uuid4() for _ in range(active)])
