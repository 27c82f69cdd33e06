"""Random sequences of everything that can happen to an account, compared with a plain model of the rules in memory."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Any, get_args
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from srm.db.database import Database
from srm.db.models import Account, AccountProfile, OnLimit, ProfileContentGroup, ProfileDeviceGroup, SameDevice
from srm.playback.limits import Limits
from tests import rules
from tests.support import Factory, issue_token, rows

DEVICES = {"tv 1": "tv", "tv 2": "tv", "phone": "mobile", "tablet": "mobile"}
CONTENTS = {"film": (), "race": ("cars", "sports"), "match": ("sports",)}
ADDRESSES = {"": None, "192.0.2.1": "192.0.2.1", "2001:db8::1": "2001:db8::/64", "2001:db8::2": "2001:db8::/64"}
TIMEOUT_SECONDS, MAX_SESSION_SECONDS = 1000, 5000
MOST_ACTIVE = 9
NUMBERS = count()

A_LIMIT = st.sampled_from([None, None, None, 3, 2, 1, 0])
GROUPS = st.fixed_dictionaries({"max_sessions": A_LIMIT, "counts": st.booleans()})
PROFILES: dict[str, Any] = {
    "limits": st.fixed_dictionaries(
        {
            "max_sessions": A_LIMIT,
            "max_sessions_per_content": A_LIMIT,
            "max_ip_addresses": A_LIMIT,
            "max_sessions_per_ip": A_LIMIT,
            "on_limit": st.sampled_from(get_args(OnLimit)),
            "same_device": st.sampled_from(get_args(SameDevice)),
            "mode": st.sampled_from(["enforce", "enforce", "enforce", "observe"]),
        }
    ),
    "of_account": st.sampled_from([None, None, 0, 1, 4]),
    "device_groups": st.dictionaries(st.sampled_from(["tv", "mobile"]), GROUPS),
    "content_groups": st.dictionaries(st.sampled_from(["cars", "sports"]), GROUPS),
}
SETUPS = st.tuples(
    st.sampled_from(sorted(DEVICES)),
    st.sampled_from(sorted(CONTENTS)),
    st.sampled_from(sorted(ADDRESSES)),
    st.sampled_from([None, None, None, "one", "two"]),
)
"""Device, content, address and Idempotency-Key."""


@dataclass(frozen=True)
class Session:
    """An active session of the model."""

    session_id: str
    device_id: str
    device_group: str
    content_id: str
    content_groups: tuple[str, ...]
    address: str | None
    counts: bool
    key: str | None


@dataclass
class Profile:
    """Rules that the operator has set last."""

    limits: dict[str, Any] = field(default_factory=dict)
    of_account: int | None = None
    device_groups: dict[str, Any] = field(default_factory=dict)
    content_groups: dict[str, Any] = field(default_factory=dict)

    def limits_of(self, session: Session) -> Limits:
        """Return the limits that hold for a session."""
        own = {} if self.of_account is None else {"max_sessions": self.of_account}
        return Limits(
            **{**self.limits, **own},
            max_sessions_of_device_group=self.device_groups.get(session.device_group, {}).get("max_sessions"),
            max_sessions_of_content_groups=[
                self.content_groups.get(group, {}).get("max_sessions") for group in session.content_groups
            ],
        )

    def counts(self, device_group: str, content_groups: Collection[str]) -> bool:
        """Return True when a session of these groups counts towards max_sessions."""
        of_device = self.device_groups.get(device_group, {}).get("counts", True)
        return of_device and all(self.content_groups.get(group, {}).get("counts", True) for group in content_groups)


class Playback(RuleBasedStateMachine):
    """One account. `active`: its sessions, the oldest first; `ended`: device and end reason of the other sessions."""

    def __init__(self, client: FlaskClient, database: Database) -> None:
        super().__init__()
        self.client = client
        self.factory = Factory(database)
        self.account = f"account {next(NUMBERS)}"
        self.factory.account(
            self.account, timeout_seconds=TIMEOUT_SECONDS, max_sessions=None, products=("basic", "sports")
        )
        self.factory.change(AccountProfile, self.of_profile, max_session_seconds=MAX_SESSION_SECONDS)
        for device, group in DEVICES.items():
            self.factory.device(self.account, device, group=group)
        self.profile = Profile()
        self.active: list[Session] = []
        self.ended: dict[str, tuple[str, str]] = {}
        self.silent_seconds: dict[str, int] = {}
        self.denials: list[tuple[str, int, set[str], bool]] = []

    @property
    def of_profile(self) -> dict[str, str]:
        return {"profile_id": f"profile of {self.account}"}

    def headers(self, device: str, **more: str) -> dict[str, str]:
        return {"Client-Token": issue_token(self.account, device), **more}

    def end(self, session: Session, reason: str) -> None:
        self.active.remove(session)
        self.ended[session.session_id] = (session.device_id, reason)

    @rule(**PROFILES)
    def change_profile(
        self,
        limits: dict[str, Any],
        of_account: int | None,
        device_groups: dict[str, Any],
        content_groups: dict[str, Any],
    ) -> None:
        self.profile = Profile(limits, of_account, device_groups, content_groups)
        self.factory.change(AccountProfile, self.of_profile, **limits)
        self.factory.change(Account, {"account_id": self.account}, max_sessions=of_account)
        for model, name, groups in (
            (ProfileDeviceGroup, "device_group", device_groups),
            (ProfileContentGroup, "content_group", content_groups),
        ):
            self.factory.remove(model, **self.of_profile)
            for group, says in groups.items():
                self.factory.add(model, **self.of_profile, **{name: group}, **says)

    @initialize(**PROFILES)
    def begin_with_a_profile(self, **says: Any) -> None:
        self.change_profile(**says)

    @rule(setups=st.lists(SETUPS, min_size=1, max_size=5), data=st.data())
    def set_up(self, setups: list[tuple[str, str, str, str | None]], data: st.DataObject) -> None:
        # Brute force takes twice as long with each session.
        for setup in setups[: max(0, MOST_ACTIVE - len(self.active))]:
            self.set_up_one(*setup, data)

    def set_up_one(self, device: str, content: str, address: str, key: str | None, data: st.DataObject) -> None:
        known = [session.session_id for session in self.active] + list(self.ended)
        take_over = data.draw(
            st.just([]) | st.just([]) | st.lists(st.sampled_from(known), unique=True, max_size=3)
            if known
            else st.just([])
        )
        body = {"content": {"contentID": content, "contentType": "COD"}}
        answer: Any = self.client.post(
            "/srm/v1/sessions",
            json={**body, "options": {"takeOver": take_over, "listConflicts": True}},
            headers=self.headers(device, **({"Idempotency-Key": key} if key else {})),
            environ_overrides={"REMOTE_ADDR": address},
        )
        success = answer.json.get("successResponse", {})
        error = answer.json.get("errorResponse", {})

        repeated = [s for s in self.active if key and (s.device_id, s.key) == (device, key)]
        if repeated:
            if repeated[0].content_id == content:
                assert success == {"sessionId": repeated[0].session_id, "timeout": TIMEOUT_SECONDS}
                self.silent_seconds.pop(repeated[0].session_id, None)
            else:
                assert error["errorCode"] == "SRM-0002"
            return
        groups = (DEVICES[device], CONTENTS[content])
        new = Session(
            success.get("sessionId", str(uuid4())),
            device,
            groups[0],
            content,
            groups[1],
            ADDRESSES[address],
            self.profile.counts(*groups),
            key,
        )
        limits = self.profile.limits_of(new)
        is_replaced = limits.same_device == "replace"
        replaced = [s for s in self.active if s.session_id in take_over or (is_replaced and s.device_id == device)]
        others = [session for session in self.active if session not in replaced]
        broken = rules.broken(limits, others, new)
        evicted = rules.fewest(limits, others, new)
        if broken:
            name, limit, in_the_way = rules.denial(limits, others, new)
            denial = (name, limit, {session.session_id for session in in_the_way})
        if broken and limits.mode == "observe":
            self.denials.append((*denial, True))
            evicted = ()
        elif broken and (limits.on_limit == "deny" or evicted is None):
            self.denials.append((*denial, False))
            assert error["errorCode"] == "SRM-0006"
            assert error["rule"] == {"name": name, "limit": limit}
            assert [s["sessionId"] for s in error["conflicts"]] == [session.session_id for session in in_the_way]
            return
        assert success == {"sessionId": new.session_id, "timeout": TIMEOUT_SECONDS}
        for session in replaced:
            self.end(session, "replaced")
        for session in evicted or ():
            self.end(session, "evicted")
        self.active.append(new)

    @precondition(lambda self: self.active or self.ended)
    @rule(data=st.data(), method=st.sampled_from(["PUT", "DELETE"]))
    def keep_alive_or_tear_down(self, data: st.DataObject, method: str) -> None:
        everyone = {**{s.session_id: (s.device_id, "") for s in self.active}, **self.ended}
        session_id = data.draw(st.sampled_from(list(everyone)))
        device, reason = everyone[session_id]

        answer = self.client.open(f"/srm/v1/sessions/{session_id}", method=method, headers=self.headers(device))

        if not reason or (method, reason) == ("DELETE", "teardown"):
            assert (answer.status_code, answer.data) == (200, b"")
        else:
            assert (answer.status_code, answer.headers["SRM-End-Reason"]) == (410, reason)
        self.silent_seconds.pop(session_id, None)
        if not reason and method == "DELETE":
            self.end(next(s for s in self.active if s.session_id == session_id), "teardown")

    @precondition(lambda self: self.active)
    @rule(data=st.data(), seconds=st.sampled_from([TIMEOUT_SECONDS // 2, TIMEOUT_SECONDS]))
    def be_silent(self, data: st.DataObject, seconds: int) -> None:
        """Let a session be silent; it lapses after its timeout without a keep-alive."""
        session = data.draw(st.sampled_from(self.active))
        self.factory.age(session.session_id, seconds, "last_keep_alive_at")
        silent = self.silent_seconds[session.session_id] = self.silent_seconds.get(session.session_id, 0) + seconds
        if silent >= TIMEOUT_SECONDS:
            self.end(session, "expired")

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def grow_old(self, data: st.DataObject) -> None:
        """Let a session reach its longest life."""
        session = data.draw(st.sampled_from(self.active))
        self.factory.age(session.session_id, MAX_SESSION_SECONDS, "started_at")
        self.end(session, "expired")

    @invariant()
    def the_same_sessions_are_active(self) -> None:
        answer: Any = self.client.get("/srm/v1/sessions", headers=self.headers("phone"))

        listed = [session["sessionId"] for session in answer.json["successResponse"]["sessions"]]
        assert listed == [session.session_id for session in self.active]

    def teardown(self) -> None:
        recorded = rows(
            self.factory.database,
            "SELECT error_code, rule, rule_limit, in_the_way, observed FROM srm.denials "
            "WHERE account_id = :account ORDER BY denied_at",
            account=self.account,
        )
        assert {row.error_code for row in recorded} <= {"SRM-0006"}
        assert [(row[1], row[2], set(map(str, row[3])), row[4]) for row in recorded] == self.denials


@pytest.mark.parametrize("examples", [50, pytest.param(500, marks=pytest.mark.long(120))])
def test_service_and_model_never_differ(
    client: FlaskClient, database: Database, factory: Factory, examples: int
) -> None:
    for content in ("race", "match"):
        factory.content(content, groups=CONTENTS[content])
    factory.product("sports", ("COD", "race"), ("COD", "match"))

    class PlaybackHere(Playback):
        def __init__(self) -> None:
            super().__init__(client, database)

    run_state_machine_as_test(
        PlaybackHere,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
