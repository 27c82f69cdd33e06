"""Operators who change the same thing at the same moment: nobody overwrites what he has not read, nothing is lost."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.concurrency.conftest import Service
from tests.concurrency.players import at_once
from tests.support import Factory

AGENTS = 6
ROUNDS = 12

NEW: dict[str, dict[str, Any]] = {
    "accounts": {"profileId": "p"},
    "profiles": {"deviceGroups": {"tv": {"maxSessions": 1}}},
    "products": {"name": "new", "contents": [{"contentType": "COD", "contentID": "film"}]},
    "contents": {"groups": ["a", "b"]},
}
ONE_OF_THEM: dict[str, Callable[[int], dict[str, object]]] = {
    "accounts": lambda agent: {"maxSessions": agent},
    "profiles": lambda agent: {"maxSessions": agent},
    "products": lambda agent: {"name": f"agent {agent}"},
    "contents": lambda agent: {"title": f"agent {agent}"},
}


class Agents:
    """Six of them, each on a connection of its own."""

    def __init__(self, base: str, key: dict[str, str]) -> None:
        self._clients = [httpx.Client(base_url=f"{base}/srm/v1/", headers=key, timeout=10) for _ in range(AGENTS)]

    def at_once(self, method: str, path: str, bodies: list[Any], **headers: str) -> list[httpx.Response]:
        """Each sends its body; what they are answered."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}

        def send(agent: int, barrier: Any) -> httpx.Response:
            barrier.wait()
            return self._clients[agent].request(method, path, json=bodies[agent], headers=named)

        return at_once(AGENTS, send)

    def get(self, path: str) -> httpx.Response:
        return self._clients[0].get(path).raise_for_status()

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def agents(service: Service) -> Iterator[Agents]:
    factory = Factory(service.database)
    factory.profile("p")
    agents = Agents(service.base, factory.operator("admin"))
    yield agents
    agents.close()


@pytest.mark.parametrize("kind", NEW)
def test_it_is_created_once_and_changed_by_one_who_has_read_it(agents: Agents, kind: str) -> None:
    for number in range(ROUNDS):
        path = f"{kind}/new-{number}"

        created = agents.at_once("PUT", path, [NEW[kind]] * AGENTS)
        assert sorted(answer.status_code for answer in created) == [200] * (AGENTS - 1) + [201]
        assert len({answer.headers["ETag"] for answer in created}) == 1

        bodies = [ONE_OF_THEM[kind](agent) for agent in range(1, AGENTS + 1)]
        changed = agents.at_once("PATCH", path, bodies, If_Match=created[0].headers["ETag"])
        assert sorted(answer.status_code for answer in changed) == [200] + [412] * (AGENTS - 1)
        (winner,) = (answer for answer in changed if answer.is_success)
        assert agents.get(path).json() == winner.json()

        only_one = agents.at_once("PUT", f"{path}-b", [NEW[kind]] * AGENTS, If_None_Match="*")
        assert sorted(answer.status_code for answer in only_one) == [201] + [412] * (AGENTS - 1)


def test_changes_of_different_members_are_all_there(agents: Agents) -> None:
    members = ["maxSessions", "timeoutSeconds", "maxSessionSeconds", "maxSessionsPerContent", "maxIpAddresses"]
    for number in range(ROUNDS):
        bodies: list[Any] = [{name: number + 1} for name in members]
        bodies.append({"deviceGroups": {f"group {number}": {"maxSessions": number}}})

        answers = agents.at_once("PATCH", "profiles/p", bodies)

        assert [answer.status_code for answer in answers] == [200] * AGENTS
        profile = agents.get("profiles/p").json()
        assert {name: profile[name] for name in members} == dict.fromkeys(members, number + 1)
        assert len(profile["deviceGroups"]) == number + 1
