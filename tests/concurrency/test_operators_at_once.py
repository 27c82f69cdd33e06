"""Operators who change one resource at the same moment: no change is lost, no unread state is overwritten."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.concurrency.conftest import Service
from tests.concurrency.players import at_once
from tests.support import Factory

OPERATORS = 6
ROUNDS = 12

NEW: dict[str, dict[str, Any]] = {
    "accounts": {"profileId": "p"},
    "profiles": {"deviceGroups": {"tv": {"maxSessions": 1}}},
    "products": {"name": "new", "contents": [{"contentType": "COD", "contentID": "film"}]},
    "contents": {"groups": ["a", "b"]},
}
PATCHES: dict[str, Callable[[int], dict[str, object]]] = {
    "accounts": lambda number: {"maxSessions": number},
    "profiles": lambda number: {"maxSessions": number},
    "products": lambda number: {"name": f"number {number}"},
    "contents": lambda number: {"title": f"number {number}"},
}


class Operators:
    """Operators who call at once, each on a connection of its own."""

    def __init__(self, base: str, key: dict[str, str]) -> None:
        self._clients = [
            httpx.Client(verify=False, base_url=f"{base}/srm/v1/", headers=key, timeout=10) for _ in range(OPERATORS)
        ]

    def at_once(self, method: str, path: str, bodies: list[Any], **headers: str) -> list[httpx.Response]:
        """Send one body from each operator at the same moment; return the answers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def send(number: int, barrier: Any) -> httpx.Response:
            barrier.wait()
            return self._clients[number].request(method, path, json=bodies[number], headers=named)

        return at_once(OPERATORS, send)

    def get(self, path: str) -> httpx.Response:
        return self._clients[0].get(path).raise_for_status()

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def operators(service: Service) -> Iterator[Operators]:
    factory = Factory(service.database)
    factory.profile("p")
    operators = Operators(service.base, factory.operator("admin"))
    yield operators
    operators.close()


@pytest.mark.parametrize("kind", NEW)
def test_one_operator_creates_and_one_changes_a_state_that_all_have_read(operators: Operators, kind: str) -> None:
    for number in range(ROUNDS):
        path = f"{kind}/new-{number}"

        created = operators.at_once("PUT", path, [NEW[kind]] * OPERATORS)
        assert sorted(answer.status_code for answer in created) == [200] * (OPERATORS - 1) + [201]
        assert len({answer.headers["ETag"] for answer in created}) == 1

        bodies = [PATCHES[kind](number) for number in range(1, OPERATORS + 1)]
        changed = operators.at_once("PATCH", path, bodies, If_Match=created[0].headers["ETag"])
        assert sorted(answer.status_code for answer in changed) == [200] + [412] * (OPERATORS - 1)
        (winner,) = (answer for answer in changed if answer.is_success)
        assert operators.get(path).json() == winner.json()

        only_one = operators.at_once("PUT", f"{path}-b", [NEW[kind]] * OPERATORS, If_None_Match="*")
        assert sorted(answer.status_code for answer in only_one) == [201] + [412] * (OPERATORS - 1)


def test_no_patch_of_different_members_is_lost(operators: Operators) -> None:
    members = ["maxSessions", "timeoutSeconds", "maxSessionSeconds", "maxSessionsPerContent", "maxIpAddresses"]
    for number in range(ROUNDS):
        bodies: list[Any] = [{name: number + 1} for name in members]
        bodies.append({"deviceGroups": {f"group {number}": {"maxSessions": number}}})

        answers = operators.at_once("PATCH", "profiles/p", bodies)

        assert [answer.status_code for answer in answers] == [200] * OPERATORS
        profile = operators.get("profiles/p").json()
        assert {name: profile[name] for name in members} == dict.fromkeys(members, number + 1)
        assert len(profile["deviceGroups"]) == number + 1
