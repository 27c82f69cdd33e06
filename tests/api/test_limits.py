"""Rules of a profile other than the number of sessions, each through the API (docs/rules.md)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient
from psycopg.errors import CheckViolation
from sqlalchemy.exc import IntegrityError

from srm.db.database import Database
from srm.db.models import AccountProfile, ContentGroup, ProfileContentGroup, ProfileDeviceGroup
from tests.support import Factory, error_of, issue_token, rows

DEVICES = {"tv": "tv", "second tv": "tv", "phone": "mobile", "tablet": "mobile", "laptop": "computer"}
HOME, CAFE, HOTEL = "192.0.2.1", "198.51.100.7", "203.0.113.9"


@dataclass
class Household:
    """The account `a`, with a profile without limits, devices in three groups, and four contents."""

    client: FlaskClient
    factory: Factory

    def rules(self, **columns: Any) -> None:
        self.factory.change(AccountProfile, {"profile_id": "profile of a"}, **columns)

    def device_group(self, group: str, max_sessions: int | None = None, *, counts: bool = True) -> None:
        self.factory.add(
            ProfileDeviceGroup, profile_id="profile of a", device_group=group, max_sessions=max_sessions, counts=counts
        )

    def content_group(self, group: str, max_sessions: int | None = None, *, counts: bool = True) -> None:
        self.factory.add(
            ProfileContentGroup,
            profile_id="profile of a",
            content_group=group,
            max_sessions=max_sessions,
            counts=counts,
        )

    def set_up(
        self, device: str = "tv", content: str = "film", kind: str = "COD", address: str = HOME, **options: Any
    ) -> Any:
        body = {"content": {"contentID": content, "contentType": kind}, "options": options}
        return self.client.post(
            "/srm/v1/sessions",
            json=body,
            headers={"Client-Token": issue_token("a", device)},
            environ_overrides={"REMOTE_ADDR": address},
        )

    def admitted(self, *args: Any, **kwargs: Any) -> str:
        """Set up a session, which has to be admitted; return its id."""
        session_id: str = self.set_up(*args, **kwargs).json["successResponse"]["sessionId"]
        return session_id

    def denial_of(self, *args: Any, **kwargs: Any) -> tuple[str, int, list[str]]:
        """Set up a session, which has to be denied; return rule, limit and the sessions in the way."""
        assert error_of(self.set_up(*args, **kwargs)) == (200, "DENIED", "SRM-0006")
        error = self.set_up(*args, **kwargs, listConflicts=True).json["errorResponse"]
        assert error["errorMessage"] == "Session Limit Reached"
        return error["rule"]["name"], error["rule"]["limit"], [session["sessionId"] for session in error["conflicts"]]

    def keep_alive(self, device: str, session_id: object) -> Any:
        return self.client.put(f"/srm/v1/sessions/{session_id}", headers={"Client-Token": issue_token("a", device)})

    def tear_down(self, device: str, session_id: str) -> None:
        answer = self.client.delete(
            f"/srm/v1/sessions/{session_id}", headers={"Client-Token": issue_token("a", device)}
        )
        assert answer.status_code == 200


@pytest.fixture
def household(client: FlaskClient, factory: Factory) -> Household:
    factory.content("race")
    factory.content("channel")
    factory.content("match", channel_id="channel")
    factory.product("sports", ("COD", "race"), ("LIVE", "channel"), ("TS", "channel"), ("CU", "channel"))
    factory.account("a", max_sessions=None, products=("basic", "sports"))
    for device, group in DEVICES.items():
        if device != "tv":
            factory.device("a", device, group=group)
    return Household(client, factory)


class TestMaxSessionsPerContent:
    def test_one_more_session_on_the_same_content_is_denied(self, household: Household) -> None:
        household.rules(max_sessions_per_content=2)
        in_the_way = [household.admitted("tv"), household.admitted("phone")]
        household.admitted("tablet", "race")

        assert household.denial_of("laptop") == ("max_sessions_per_content", 2, in_the_way)
        household.admitted("laptop", "race")

    def test_a_content_counts_as_one_under_all_content_types(self, household: Household) -> None:
        household.rules(max_sessions_per_content=1)
        live = household.admitted("tv", "channel", "LIVE")

        assert household.denial_of("phone", "channel", "TS") == ("max_sessions_per_content", 1, [live])

    def test_a_slot_is_free_again_after_a_teardown(self, household: Household) -> None:
        household.rules(max_sessions_per_content=1)
        household.tear_down("tv", household.admitted("tv"))

        household.admitted("phone")


class TestMaxIpAddresses:
    def test_a_session_from_one_address_more_is_denied(self, household: Household) -> None:
        household.rules(max_ip_addresses=2)
        in_the_way = [household.admitted(address=HOME), household.admitted(address=CAFE)]

        assert household.denial_of(address=HOTEL) == ("max_ip_addresses", 2, in_the_way)
        household.admitted(address=CAFE)

    def test_an_address_no_longer_counts_once_its_last_session_is_gone(self, household: Household) -> None:
        household.rules(max_ip_addresses=1)
        first, second = household.admitted("tv", address=HOME), household.admitted("phone", address=HOME)

        household.tear_down("tv", first)
        assert household.denial_of(address=CAFE) == ("max_ip_addresses", 1, [second])
        household.tear_down("phone", second)
        household.admitted(address=CAFE)

    def test_an_eviction_ends_all_sessions_of_as_few_addresses_as_needed(self, household: Household) -> None:
        household.rules(max_ip_addresses=2, on_limit="evict_oldest")
        home = [household.admitted("tv", address=HOME), household.admitted("second tv", address=HOME)]
        cafe = household.admitted("phone", address=CAFE)

        household.admitted("laptop", address=HOTEL)

        assert household.keep_alive("tv", home[0]).status_code == 200
        assert household.keep_alive("second tv", home[1]).status_code == 200
        assert household.keep_alive("phone", cafe).headers["SRM-End-Reason"] == "evicted"

    @pytest.mark.parametrize(
        ("one", "other", "is_the_same"),
        [
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
            ("192.0.2.1", "::ffff:192.0.2.1", True),
            ("192.0.2.1", "192.0.2.2", False),
            ("192.0.2.1", "2001:db8::1", False),
        ],
    )
    def test_ipv6_clients_count_by_their_64(
        self, household: Household, one: str, other: str, is_the_same: bool
    ) -> None:
        household.rules(max_ip_addresses=1)
        household.admitted(address=one)

        assert ("successResponse" in household.set_up(address=other).json) == is_the_same


class TestMaxSessionsPerIp:
    def test_one_more_session_from_the_same_address_is_denied(self, household: Household) -> None:
        household.rules(max_sessions_per_ip=2)
        in_the_way = [household.admitted("tv"), household.admitted("phone")]
        household.admitted("laptop", address=CAFE)

        assert household.denial_of("tablet") == ("max_sessions_per_ip", 2, in_the_way)
        household.admitted("tablet", address=CAFE)

    def test_a_client_without_a_known_address_is_not_limited(self, household: Household) -> None:
        """A proxy on a Unix socket that does not name the client."""
        household.rules(max_sessions_per_ip=1, max_ip_addresses=1)

        for _ in range(3):
            household.admitted(address="")


class TestTrustedProxies:
    @pytest.mark.parametrize(
        ("trusted_proxies", "forwarded", "address"),
        [
            (0, HOTEL, HOME),
            (1, HOTEL, HOTEL),
            (1, f"{CAFE}, {HOTEL}", HOTEL),
            (2, f"{CAFE}, {HOTEL}", CAFE),
            (2, f"forged, {CAFE}, {HOTEL}", CAFE),
            (2, HOTEL, HOTEL),
            (1, None, HOME),
            (1, "unknown", None),
            (1, f"{HOTEL}:4711", HOTEL),
            (1, "[2001:db8::1]:4711", "2001:db8::/64"),
        ],
    )
    def test_the_address_comes_from_as_many_entries_as_there_are_proxies(
        self,
        make_client: Callable[..., FlaskClient],
        factory: Factory,
        url: str,
        database: Database,
        trusted_proxies: int,
        forwarded: str | None,
        address: str | None,
    ) -> None:
        factory.account("a")
        client = make_client(database_url=url, trusted_proxies=trusted_proxies)
        headers = {"Client-Token": issue_token("a", "tv"), **({"X-Forwarded-For": forwarded} if forwarded else {})}

        answer = client.post(
            "/srm/v1/sessions",
            data=json.dumps({"content": {"contentID": "film", "contentType": "COD"}}),
            headers=headers,
            environ_overrides={"REMOTE_ADDR": HOME},
        )

        assert "successResponse" in answer.json  # type: ignore[operator]
        assert [row.address for row in rows(database, "SELECT address FROM srm.sessions")] == [address]


class TestDeviceGroups:
    def test_one_more_session_on_devices_of_the_group_is_denied(self, household: Household) -> None:
        household.device_group("mobile", 1)
        phone = household.admitted("phone")

        assert household.denial_of("tablet") == ("device_group:mobile", 1, [phone])
        household.admitted("tv")
        household.admitted("second tv")

    def test_sessions_of_a_group_that_does_not_count_do_not_use_max_sessions(self, household: Household) -> None:
        household.rules(max_sessions=1)
        household.device_group("mobile", counts=False)

        household.admitted("phone")
        household.admitted("tablet")
        tv = household.admitted("tv")
        household.admitted("phone")

        assert household.denial_of("laptop") == ("max_sessions", 1, [tv])

    def test_a_group_that_does_not_count_may_have_a_limit_of_its_own(self, household: Household) -> None:
        household.rules(max_sessions=1)
        household.device_group("mobile", 1, counts=False)
        household.admitted("tv")
        phone = household.admitted("phone")

        assert household.denial_of("tablet") == ("device_group:mobile", 1, [phone])

    def test_a_limit_of_zero_shuts_a_device_group_out(self, household: Household) -> None:
        household.device_group("computer", 0)

        assert household.denial_of("laptop") == ("device_group:computer", 0, [])

    def test_a_session_stays_in_the_group_that_its_device_was_in(
        self, household: Household, database: Database
    ) -> None:
        household.device_group("mobile", 1)
        phone = household.admitted("phone")
        with database.transaction() as db:
            db.exec_driver_sql("UPDATE srm.devices SET device_group = 'tv' WHERE device_id = 'phone'")

        assert household.denial_of("tablet") == ("device_group:mobile", 1, [phone])

    def test_the_limit_of_a_device_group_holds_for_its_profile_only(
        self, household: Household, factory: Factory
    ) -> None:
        factory.profile("other")
        factory.add(ProfileDeviceGroup, profile_id="other", device_group="tv", max_sessions=0, counts=False)

        household.admitted("tv")


class TestContentGroups:
    @pytest.fixture(autouse=True)
    def groups(self, household: Household, factory: Factory) -> None:
        for content, group in (("race", "sports"), ("race", "cars"), ("channel", "sports"), ("film", "films")):
            factory.add(ContentGroup, content_id=content, content_group=group)

    def test_one_more_session_on_contents_of_the_group_is_denied(self, household: Household) -> None:
        household.content_group("sports", 1)
        channel = household.admitted("tv", "channel", "LIVE")

        assert household.denial_of("phone", "race") == ("content_group:sports", 1, [channel])
        household.admitted("phone", "film")

    def test_an_event_is_in_the_groups_of_its_channel(self, household: Household) -> None:
        household.content_group("sports", 1)
        match = household.admitted("tv", "match", "CU")

        assert household.denial_of("phone", "race") == ("content_group:sports", 1, [match])
        household.tear_down("tv", match)
        race = household.admitted("phone", "race")
        assert household.denial_of("tv", "match", "CU") == ("content_group:sports", 1, [race])

    def test_an_event_in_the_group_of_its_channel_counts_once(
        self, household: Household, factory: Factory, database: Database
    ) -> None:
        factory.add(ContentGroup, content_id="match", content_group="sports")
        household.content_group("sports", 2)
        household.admitted("tv", "match", "CU")

        (session,) = rows(database, "SELECT content_groups, max_sessions_of_content_groups AS limits FROM srm.sessions")
        assert (session.content_groups, session.limits) == (["sports"], [2])

    def test_each_group_of_a_content_has_a_limit_of_its_own(self, household: Household) -> None:
        household.content_group("sports", 2)
        household.content_group("cars", 1)
        race = household.admitted("tv", "race")

        assert household.denial_of("phone", "race") == ("content_group:cars", 1, [race])
        channel = household.admitted("phone", "channel", "LIVE")
        assert household.denial_of("tablet", "channel", "LIVE") == ("content_group:sports", 2, [race, channel])

    def test_sessions_of_a_group_that_does_not_count_do_not_use_max_sessions(self, household: Household) -> None:
        household.rules(max_sessions=1)
        household.content_group("sports", counts=False)

        household.admitted("phone", "race")
        film = household.admitted("tv", "film")
        household.admitted("phone", "channel", "LIVE")

        assert household.denial_of("laptop", "film") == ("max_sessions", 1, [film])


class TestMaxSessionSeconds:
    def test_the_longest_life_ends_a_session_that_is_kept_alive(
        self, household: Household, factory: Factory, database: Database
    ) -> None:
        household.rules(max_sessions=1, max_session_seconds=3600)
        first = household.admitted("tv")
        factory.age(first, 3599, "started_at")
        assert household.keep_alive("tv", first).status_code == 200
        assert household.denial_of("phone")[2] == [first]

        factory.age(first, 1, "started_at")

        household.admitted("phone")
        answer = household.keep_alive("tv", first)
        assert (answer.status_code, answer.headers["SRM-End-Reason"]) == (410, "expired")
        (ended,) = rows(
            database, "SELECT ended_at - started_at AS life FROM srm.sessions WHERE session_id = :id", id=first
        )
        assert ended.life.total_seconds() == 3600

    def test_a_keep_alive_finds_out_that_the_longest_life_is_over(self, household: Household, factory: Factory) -> None:
        household.rules(max_session_seconds=60)
        session = household.admitted("tv")
        factory.age(session, 60, "started_at")

        assert household.keep_alive("tv", session).status_code == 410

    def test_the_longest_life_ends_sessions_without_keep_alive(self, household: Household, factory: Factory) -> None:
        household.rules(max_sessions=1, max_session_seconds=60, timeout_seconds=None)
        answer = household.set_up("tv").json["successResponse"]
        assert set(answer) == {"sessionId"}

        factory.age(answer["sessionId"], 60)

        household.admitted("phone")

    def test_the_timeout_still_ends_a_session_before_its_longest_life(
        self, household: Household, factory: Factory
    ) -> None:
        household.rules(max_sessions=1, max_session_seconds=3600)
        silent = household.admitted("tv")
        factory.age(silent, 31)

        household.admitted("phone")

    def test_a_new_longest_life_does_not_hold_for_older_sessions(self, household: Household, factory: Factory) -> None:
        session = household.admitted("tv")
        factory.age(session, 1000, "started_at")
        household.rules(max_session_seconds=60)

        assert household.keep_alive("tv", session).status_code == 200

    def test_a_session_beyond_its_longest_life_is_not_listed(self, household: Household, factory: Factory) -> None:
        household.rules(max_session_seconds=60)
        factory.age(household.admitted("tv"), 60, "started_at")

        answer = household.client.get("/srm/v1/sessions", headers={"Client-Token": issue_token("a", "tv")})

        assert answer.json["successResponse"]["sessions"] == []  # type: ignore[index]


class TestObserve:
    def test_observe_admits_beyond_every_limit(self, household: Household, database: Database) -> None:
        household.rules(max_sessions=1, max_sessions_per_content=1, mode="observe")
        household.device_group("tv", 0)

        for _ in range(3):
            household.admitted("tv")

        kept = rows(
            database,
            "SELECT max_sessions, max_sessions_per_content, max_sessions_of_device_group AS of_group FROM srm.sessions",
        )
        assert kept == [(None, None, None)] * 3  # Nobody enforced a limit, so the limit check must not see one.

    def test_observe_evicts_nobody(self, household: Household) -> None:
        household.rules(max_sessions=1, on_limit="evict_oldest", mode="observe")
        first = household.admitted("tv")
        household.admitted("phone")

        assert household.keep_alive("tv", first).status_code == 200

    def test_observe_still_replaces(self, household: Household) -> None:
        household.rules(same_device="replace", mode="observe")
        first = household.admitted("tv")
        household.admitted("tv")

        assert household.keep_alive("tv", first).headers["SRM-End-Reason"] == "replaced"

    def test_after_observe_every_session_counts(self, household: Household) -> None:
        household.rules(max_sessions=1, mode="observe")
        observed = [household.admitted("tv"), household.admitted("phone")]
        household.rules(mode="enforce")

        assert household.denial_of("laptop") == ("max_sessions", 1, observed)

    def test_observe_still_enforces_other_denials(self, household: Household) -> None:
        household.rules(mode="observe")

        assert error_of(household.set_up("tv", "unknown"))[2] == "SRM-0007"


class TestSeveralRules:
    def test_one_session_in_the_way_of_two_limits_is_evicted_alone(self, household: Household) -> None:
        household.rules(max_sessions_per_content=2, on_limit="evict_oldest")
        household.device_group("tv", 2)
        on_a_tv = household.admitted("tv", "race")
        on_the_film = household.admitted("phone", "film")
        both = household.admitted("second tv", "film")

        household.admitted("tv", "film")

        assert household.keep_alive("tv", on_a_tv).status_code == 200
        assert household.keep_alive("phone", on_the_film).status_code == 200
        assert household.keep_alive("second tv", both).headers["SRM-End-Reason"] == "evicted"

    def test_only_sessions_that_make_room_are_evicted(self, household: Household) -> None:
        household.rules(on_limit="evict_oldest")
        household.device_group("mobile", 1)
        tv = household.admitted("tv")
        phone = household.admitted("phone")

        household.admitted("tablet")

        assert household.keep_alive("tv", tv).status_code == 200
        assert household.keep_alive("phone", phone).headers["SRM-End-Reason"] == "evicted"

    def test_a_take_over_of_the_sessions_in_the_way_is_admitted(self, household: Household) -> None:
        household.device_group("mobile", 1)
        phone = household.admitted("phone")
        _, _, in_the_way = household.denial_of("tablet")

        household.admitted("tablet", takeOver=in_the_way)

        assert household.keep_alive("phone", phone).headers["SRM-End-Reason"] == "replaced"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("max_sessions_per_content", -1),
        ("max_ip_addresses", -1),
        ("max_sessions_per_ip", -1),
        ("max_session_seconds", 0),
        ("mode", "'off'"),
    ],
)
def test_the_database_rejects_rules_that_make_no_sense(
    household: Household, database: Database, column: str, value: Any
) -> None:
    with pytest.raises(IntegrityError) as rejected, database.transaction() as db:
        db.exec_driver_sql(f"UPDATE srm.account_profiles SET {column} = {value}")

    assert isinstance(rejected.value.orig, CheckViolation)
